"""A plain run that can be differentiated: the model's own parts on packed tokens, with every activation in reach.

Only activations get gradients: parameters are frozen while it runs, which saves a third of a backward pass. The
residual stream is never copied per head; `attribution.ports` takes gradients at the projections apart instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.rules import PLAIN, Rules
from crosspatch.errors import MetricError
from crosspatch.model import Model
from crosspatch.model.activation import one_kernel
from crosspatch.model.attention import AttentionRule, attend, capturing, query_key_value
from crosspatch.model.project import Rows, rows_of

Key = tuple[int, str]
Insert = Mapping[Key, Tensor | Callable[[Tensor], Tensor]]
"""What an activation becomes: a value, or a function of what was computed."""


@dataclass
class Trace:
    """Activations of some rows with the graph that leads to them.

    Attributes:
        model: the model.
        lengths: tokens of each row; rows lie one after the other.
        at: activations by layer and kind. Kinds of sites: `resid_pre`, `q`, `k`, `v`, `z`, `attn_out`, `resid_mid`,
            `mlp_act`, `mlp_out`, `resid_post`. What one reader sees: `attn_in` and `mlp_in` (the residual stream as
            that block reads it), `final_in` at layer `n_layers` (as the final norm reads it). `name.proj`: the output
            of an input projection.
        hidden: final-norm outputs at the reads.
        rules: how every layer's scores become a pattern.
        cuts: how its projections are cut into heads.
    """

    model: Model
    lengths: list[int]
    at: dict[Key, Tensor] = field(default_factory=dict)
    hidden: Float[Tensor, "read d_model"] = field(default_factory=lambda: torch.empty(0))
    rules: dict[int, AttentionRule] = field(default_factory=dict)
    cuts: dict[int, Rows | None] = field(default_factory=dict)

    def keep(self, keys: Sequence[Key]) -> None:
        """Forget the graph and every activation but these."""
        self.at = {key: self.at[key].detach() for key in keys if key in self.at}
        self.hidden = self.hidden.detach()

    def gradients(self, value: Float[Tensor, ""], keys: Sequence[Key], keep: bool = False) -> dict[Key, Tensor]:
        """The gradient of a number at some activations; zero where it does not depend on them.

        Args:
            keep: the graph is needed again.

        Raises:
            MetricError: the number is a count or an order, which no gradient leads through.
        """
        if not value.requires_grad:
            raise MetricError(
                "the metric has no gradient", where="attribution", fix="use logit_diff or prob, or exact scores"
            )
        tensors = [self.at[key] for key in keys]
        found = torch.autograd.grad(value, tensors, retain_graph=keep, allow_unused=True)
        pairs = zip(keys, tensors, found, strict=True)
        return {key: torch.zeros_like(x) if g is None else g for key, x, g in pairs}


@contextmanager
def frozen_parameters(model: Model) -> Iterator[None]:
    """While active, no parameter of the model requires a gradient."""
    wanted = [p for p in model.hf.parameters() if p.requires_grad]
    try:
        for p in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


def trace(
    model: Model,
    embedded: Float[Tensor, "token d_model"],
    lengths: Sequence[int],
    reads: Sequence[Sequence[int]],
    *,
    insert: Insert | None = None,
    neurons: bool = False,
    first: int = 0,
    rules: Rules = PLAIN,
    gradients: bool = True,
) -> Trace:
    """Run rows from what the first block reads to the final norm, keeping the graph.

    Args:
        embedded: what the first block reads at every token of every row.
        lengths: tokens of each row; equal lengths should lie together, they share one attention call.
        reads: positions of each row that the final norm is wanted at.
        insert: values of sites, or functions of what is computed there, to be put in its place.
        neurons: keep `mlp_act` as well.
        first: the block that `embedded` is the input of; earlier ones are not run.
        rules: how gradients pass norms, activations and products.
        gradients: False: activations only, without the graph.

    Raises:
        ModelError: a model in training mode, or a prompt longer than its context.
    """
    model.require_eval()
    model.ensure_positions(max(lengths))
    run = Trace(model, list(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths]).to(embedded.device)
    tables: dict[int, Any] = {}
    blocks = model.anatomy.blocks
    insert = insert or {}
    with ExitStack() as stack:
        stack.enter_context(capturing([block.attn for block in blocks]))
        stack.enter_context(frozen_parameters(model))
        stack.enter_context(rules.active(model) if rules.changes_mlp else one_kernel([b.mlp for b in blocks]))
        stack.enter_context(torch.set_grad_enabled(gradients))
        x = embedded.detach().requires_grad_(gradients)
        for layer, block in enumerate(blocks[first:], first):
            x = x.to(block.device)
            kwargs = model.attention_kwargs(layer, positions.to(block.device), tables)
            x = _block(run, layer, x, kwargs, insert, neurons, rules)
        run.at[(len(blocks), "final_in")] = x = _seen(x)
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        at = [start + p for start, where in zip(starts, reads, strict=False) for p in where]
        run.hidden = rules.norm(model.anatomy.final_norm, x)[at]
    return run


def _block(
    run: Trace, layer: int, x: Tensor, kwargs: dict[str, Any], insert: Insert, neurons: bool, rules: Rules
) -> Tensor:
    model, block = run.model, run.model.anatomy.blocks[layer]
    x = _put(run, (layer, "resid_pre"), x, insert)
    run.at[(layer, "attn_in")] = seen = _seen(x)
    h = rules.norm(block.norm_attn_in, seen)
    run.cuts[layer] = rows = rows_of(model, layer)
    with _projections(run, layer, rows):
        q, k, v, rule = query_key_value(block.attn, h, kwargs)
    run.rules[layer] = rule
    q, k, v = (_put(run, (layer, kind), value, insert) for kind, value in (("q", q), ("k", k), ("v", v)))
    z = _put(run, (layer, "z"), _attention(run, q, k, v, rule, rules), insert)
    a = rules.norm(block.norm_attn_out, block.o_proj(z.flatten(1)[None])[0])
    a = rules.written(_put(run, (layer, "attn_out"), a, insert), layer)
    if block.mlp is None:
        return _put(run, (layer, "resid_post"), x + a, insert)
    mid = x if model.shape.parallel else _put(run, (layer, "resid_mid"), x + a, insert)
    if block.shared_norm:
        # One norm serves both readers; the MLP's is taken again, so that its gradient can be told apart.
        run.at[(layer, "mlp_in")] = seen = _seen(mid)
        h = rules.norm(block.norm_attn_in, seen)
    else:
        run.at[(layer, "mlp_in")] = seen = _seen(mid)
        h = rules.norm(block.norm_mlp_in, seen)
    with _neurons(run, layer, neurons, insert):
        out = block.mlp(h[None])
    m = rules.norm(block.norm_mlp_out, (out[0] if isinstance(out, tuple) else out)[0])
    m = rules.written(_put(run, (layer, "mlp_out"), m, insert), layer)
    return _put(run, (layer, "resid_post"), mid + a + m if model.shape.parallel else mid + m, insert)


def _put(run: Trace, key: Key, x: Tensor, insert: Insert) -> Tensor:
    """Keep an activation, or what is to stand in for it, as a place that gradients can be taken at."""
    change = insert.get(key)
    if change is not None:
        x = change(x) if callable(change) else change
    run.at[key] = x = x if x.requires_grad or not torch.is_grad_enabled() else x.clone().requires_grad_(True)
    return x


def _seen(x: Tensor) -> Tensor:
    """The same values as another node of the graph: its gradient is that of one reader alone."""
    return x.view_as(x)


def _attention(run: Trace, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule, rules: Rules) -> Tensor:
    """Head outputs; rows of equal length that lie together are one call."""
    out, start, i = [], 0, 0
    while i < len(run.lengths):
        length, n = run.lengths[i], 1
        while i + n < len(run.lengths) and run.lengths[i + n] == length:
            n += 1
        rows = slice(start, start + n * length)
        qs, ks, vs = (x[rows].unflatten(0, (n, length)) for x in (q, k, v))
        out.append(attend(qs, ks, vs, tuple(range(length)), rule, rules.pattern).flatten(0, 1))
        start, i = start + n * length, i + n
    return torch.cat(out) if len(out) > 1 else out[0]


@contextmanager
def _projections(run: Trace, layer: int, rows: Rows | None) -> Iterator[None]:
    """Keep what the input projections give while the attention module runs."""
    with ExitStack() as stack:
        for name, module in (rows.projections if rows else {}).items():

            def keep(_: Any, args: Any, out: Tensor, name: str = name) -> None:
                run.at[(layer, f"{name}.proj")] = out

            stack.callback(module.register_forward_hook(keep).remove)
        yield


@contextmanager
def _neurons(run: Trace, layer: int, wanted: bool, insert: Insert) -> Iterator[None]:
    down = run.model.anatomy.blocks[layer].down_proj
    if down is None or not (wanted or (layer, "mlp_act") in insert):
        yield
        return

    def keep(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen = _put(run, (layer, "mlp_act"), args[0].flatten(0, -2), insert)
        return (seen.reshape(args[0].shape), *args[1:])

    hook = down.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
