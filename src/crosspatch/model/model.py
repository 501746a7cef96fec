"""A Hugging Face model with its graph: the object that every other room receives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crosspatch.errors import ModelError
from crosspatch.graph.names import Site, parse_site, validate
from crosspatch.graph.shape import ModelShape
from crosspatch.model.anatomy import Anatomy
from crosspatch.model.attention import AttentionRule, query_key_value

# Arguments of an attention module that the executor replaces rather than repeats.
_DROPPED = {"hidden_states", "attention_mask", "past_key_values", "past_key_value", "layer_past", "use_cache"}
_PROBE_STEP = 64


class _Stop(Exception):
    pass


class Model:
    """A decoder-only language model in place: its modules, dtype and devices are the user's own.

    Attributes:
        hf: the untouched ``transformers`` model.
        tokenizer: its tokenizer, or None.
        shape: sizes of the graph.
        anatomy: where the parts are.
        name: what the user called it.
    """

    def __init__(self, hf: nn.Module, tokenizer: Any, anatomy: Anatomy, shape: ModelShape, name: str) -> None:
        self.hf: Any = hf
        self.tokenizer = tokenizer
        self.anatomy = anatomy
        self.shape = shape
        self.name = name
        self._calls: list[dict[str, Any]] = []  # keyword arguments of every attention module, for positions 0..n-1
        self._n_positions = 0
        self.rules: dict[int, AttentionRule] = {}  # filled by the executor as it meets each layer

    def __repr__(self) -> str:
        s = self.shape
        return (
            f"Model({self.name!r}, {type(self.hf).__name__}, {s.n_layers} layers x {s.n_heads} heads"
            f"{f' ({s.n_kv_heads} key/value)' if s.grouped else ''}, d_model {s.d_model}, {self.dtype})"
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where tokens go in: the device of the embedding."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def n_tokens(self) -> int:
        """How many token ids there are; `shape.vocab` counts logits, which is another number in a compiled model."""
        return int(self.hf.get_input_embeddings().weight.shape[0])

    @property
    def context(self) -> int | None:
        """Most tokens that a prompt may have, where the config says."""
        config = self.hf.config.get_text_config() if hasattr(self.hf.config, "get_text_config") else self.hf.config
        return getattr(config, "max_position_embeddings", None)

    def site(self, site: Site | str) -> Site:
        """Parse and validate a site of this model."""
        return validate(parse_site(site) if isinstance(site, str) else site, self.shape)

    def require_eval(self) -> None:
        """Refuse a model in training mode: dropout would make two equal runs differ.

        Raises:
            ModelError: naming the fix.
        """
        if self.hf.training:
            raise ModelError(
                "the model is in training mode, so dropout makes two equal runs differ",
                where=self.name,
                fix="call model.hf.eval() first",
            )

    @torch.no_grad()
    def embed(self, tokens: Sequence[Sequence[int]]) -> Float[Tensor, "token d_model"]:
        """The ``input`` node: what the first block reads, for all tokens of all prompts, packed.

        The model's own forward computes it (with its positions, scaling and projections) and is left at block 0.
        """
        caught: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _Stop

        hook = self.anatomy.blocks[0].layer.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            packed = []
            for lo in range(0, len(tokens), 64):
                prompts = tokens[lo : lo + 64]
                longest = max(map(len, prompts))
                ids = torch.zeros(len(prompts), longest, dtype=torch.long)
                for i, prompt in enumerate(prompts):
                    ids[i, : len(prompt)] = torch.tensor(prompt)
                ids = ids.to(self.device)
                try:
                    # Padding on the right, unmasked: positions count from 0 in every row, and blocks never see it.
                    self.hf(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
                except _Stop:
                    packed += [caught[-1][i, : len(prompt)] for i, prompt in enumerate(prompts)]
        finally:
            hook.remove()
        return torch.cat(packed)

    @torch.no_grad()
    def ensure_positions(self, n: int) -> None:
        """Learn, from one forward pass of the model itself, what it hands to its attention modules for positions
        below ``n`` (rotary tables, position ids).

        Raises:
            ModelError: a prompt longer than the model's context.
        """
        if n <= self._n_positions:
            return
        limit = self.context
        if limit is not None and n > limit:
            raise ModelError(
                f"a prompt has {n} tokens, the model's context is {limit}", where=self.name, fix="shorten the prompt"
            )
        size = -(-n // _PROBE_STEP) * _PROBE_STEP
        size = size if limit is None else min(size, limit)
        calls: list[dict[str, Any]] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append({k: v for k, v in kwargs.items() if k not in _DROPPED})

        hooks = [b.attn.register_forward_pre_hook(note, with_kwargs=True) for b in self.anatomy.blocks]
        try:
            ids = torch.zeros(1, size, dtype=torch.long, device=self.device)
            self.hf(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        self._calls, self._n_positions = calls, size

    def attention_kwargs(self, layer: int, positions: Tensor, cache: dict[int, Any]) -> dict[str, Any]:
        """Keyword arguments for one attention module on packed tokens at ``positions [token]``.

        ``cache`` keeps the tables that layers share, as long as the positions stay the same.
        """
        out: dict[str, Any] = {"attention_mask": None}
        for name, value in self._calls[layer].items():
            if id(value) not in cache:
                cache[id(value)] = _at(value, positions, self._n_positions, name)
            out[name] = cache[id(value)]
        return out

    @torch.no_grad()
    def attention_rule(self, layer: int) -> AttentionRule:
        """How a layer turns scores into a pattern. Inside :func:`capturing`, after :meth:`ensure_positions`."""
        if layer not in self.rules:
            block = self.anatomy.blocks[layer]
            x = torch.zeros(1, self.shape.d_model, dtype=self.dtype, device=block.device)
            kwargs = self.attention_kwargs(layer, torch.zeros(1, dtype=torch.long), {})
            self.rules[layer] = query_key_value(block.attn, x, kwargs)[3]
        return self.rules[layer]

    def unembed(
        self, hidden: Float[Tensor, "read d_model"], columns: Sequence[int] | Tensor | None = None
    ) -> Float[Tensor, "read column"]:
        """Logits of normalised last-layer states; only the asked columns of a plain linear head are computed.

        They have a gradient where `hidden` has one.
        """
        with torch.set_grad_enabled(hidden.requires_grad):
            return self._unembed(hidden, columns)

    def _unembed(self, hidden: Tensor, columns: Sequence[int] | Tensor | None) -> Tensor:
        head = self.anatomy.lm_head
        if columns is None:
            logits = head(hidden)
        else:
            columns = torch.as_tensor(columns, dtype=torch.long, device=hidden.device)
            if type(head) is nn.Linear:
                weight = head.weight[columns.to(head.weight.device)]
                bias = None if head.bias is None else head.bias[columns.to(head.weight.device)]
                logits = F.linear(hidden.to(weight.device), weight, bias)
            else:
                logits = head(hidden)[:, columns]
        if self.anatomy.softcap is not None:
            logits = torch.tanh(logits / self.anatomy.softcap) * self.anatomy.softcap
        return logits


def _at(value: Any, positions: Tensor, n_positions: int, name: str) -> Any:
    """The entries of a per-position argument at some positions; anything else unchanged."""
    if isinstance(value, tuple | list):
        return type(value)(_at(item, positions, n_positions, name) for item in value)
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    positions = positions.to(value.device)
    if value.dim() == 1 and value.shape[0] == n_positions:
        return value[positions]
    if value.dim() >= 2 and value.shape[1] == n_positions:
        return value[:1, positions]
    raise ModelError(
        f"the attention modules take {name!r} of shape {list(value.shape)}, which is not one entry per position",
        where="attention",
        fix="this family is not supported yet; please report its name",
    )
