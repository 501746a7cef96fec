"""Parts of a layer's linear maps: what one head writes, and the q, k, v of one head from a stream of its own.

A treeified head has private inputs. Projecting every private stream for all heads would cost as many layers as there
are streams, so that the rows of the weights that belong to one head are cut out. Which rows those are is found on the
model itself, by seeing which outputs of the projections reach which head; where that has no answer (a norm over all
heads together, as in OLMo 2; a quantised or adapted layer), the whole projection is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from crosspatch.model.attention import capturing, query_key_value
from crosspatch.model.model import Model


def linear_weight(module: nn.Module) -> Tensor | None:
    """`[out, in]` of a plain linear layer, None for anything else (hooks, adapters, quantised weights)."""
    plain = "forward" not in vars(module) and not module._forward_pre_hooks and not module._forward_hooks
    if type(module) is nn.Linear and plain:
        return module.weight
    return module.weight.T if type(module) is Conv1D and plain else None


def run_of(numbers: Sequence[int]) -> slice | list[int]:
    """Numbers as a slice, which copies nothing, if they follow one another at equal steps."""
    first = numbers[0]
    step = numbers[1] - first if len(numbers) > 1 else 1
    if step < 1 or list(numbers) != list(range(first, first + len(numbers) * step, step)):
        return list(numbers)
    return slice(first, numbers[-1] + 1, step)


def head_write(
    model: Model,
    layer: int,
    head: int,
    z: Float[Tensor, "... d_head"],
    out: Float[Tensor, "token d_model"] | None = None,
) -> Float[Tensor, "... d_model"]:
    """What one head adds to its block's output projection, without the bias.

    Args:
        out: memory for the result, to be used for it, of all tokens one after another.
    """
    o_proj = model.anatomy.blocks[layer].o_proj
    d_head = model.shape.d_head
    weight = linear_weight(o_proj)
    if weight is not None:
        rows = weight[:, head * d_head : (head + 1) * d_head].T
        return z @ rows if out is None else torch.mm(z.flatten(0, -2), rows, out=out)
    padded = z.new_zeros(*z.shape[:-1], model.shape.n_heads * d_head)
    padded[..., head * d_head : (head + 1) * d_head] = z
    found = o_proj(padded) - o_proj(torch.zeros_like(padded[..., :1, :]))
    return found if out is None else out.copy_(found.flatten(0, -2))


def head_writes(
    model: Model,
    layer: int,
    heads: Sequence[int],
    z: Float[Tensor, "head token d_head"],
    out: Float[Tensor, "head token d_model"],
) -> None:
    """What some different heads of a layer add to its block's output projection, without the bias."""
    weight = linear_weight(model.anatomy.blocks[layer].o_proj)
    if weight is not None:
        torch.bmm(z, weight.T.unflatten(0, (-1, model.shape.d_head))[run_of(heads)], out=out)
        return
    for head, one, place in zip(heads, z, out, strict=True):
        head_write(model, layer, head, one, place)


Slot = tuple[str, int]  # ("q", head), ("k", key/value head), ("v", key/value head)


@dataclass(frozen=True)
class Rows:
    """For one attention module, which rows of which projection make each head's q, k and v."""

    projections: dict[str, nn.Module]
    of: dict[Slot, tuple[str, int]]
    d_head: int


_FOUND: WeakKeyDictionary[Model, dict[int, Rows | None]] = WeakKeyDictionary()


def rows_of(model: Model, layer: int) -> Rows | None:
    """`find_rows`, remembered; None as well where a layer was hooked or replaced since."""
    known = _FOUND.setdefault(model, {})
    if layer not in known:
        known[layer] = find_rows(model, layer)
    rows = known[layer]
    return rows if rows and all(linear_weight(module) is not None for module in rows.projections.values()) else None


def find_rows(model: Model, layer: int) -> Rows | None:
    """Cut one layer's projections into heads, or None where they cannot be cut."""
    attn = model.anatomy.blocks[layer].attn
    o_proj = model.anatomy.blocks[layer].o_proj
    shape = model.shape
    inputs = {
        name: module
        for name, module in attn.named_modules()
        if linear_weight(module) is not None and module is not o_proj
    }
    sizes = {name: linear_weight(module).shape for name, module in inputs.items()}  # type: ignore[union-attr]
    if not inputs or any(size[1] != shape.d_model or size[0] % shape.d_head for size in sizes.values()):
        return None
    if sum(size[0] for size in sizes.values()) != (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head:
        return None
    of: dict[Slot, tuple[str, int]] = {}
    for name, size in sizes.items():
        for start in range(0, size[0], shape.d_head):
            reached = _reached(model, layer, inputs, name, start)
            if len(reached) != 1 or reached[0] in of:
                return None
            of[reached[0]] = (name, start)
    return Rows(inputs, of, shape.d_head)


@torch.no_grad()
def _reached(model: Model, layer: int, inputs: dict[str, nn.Module], marked: str, start: int) -> list[Slot]:
    """Which heads' q, k or v turn into NaN when some rows of one projection do."""
    block, shape = model.anatomy.blocks[layer], model.shape
    stop = start + shape.d_head
    outputs = {}
    for name, module in inputs.items():
        weight = linear_weight(module)
        assert weight is not None
        out = torch.ones(1, 1, weight.shape[0], dtype=model.dtype, device=block.device)
        if name == marked:
            out[..., start:stop] = float("nan")
        outputs[name] = out
    model.ensure_positions(1)
    hidden = torch.linspace(-1, 1, shape.d_model, dtype=model.dtype, device=block.device)[None]
    kwargs = model.attention_kwargs(layer, torch.zeros(1, dtype=torch.long), {})
    with capturing([block.attn]), answering(inputs, outputs) as given:
        q, k, v, _ = query_key_value(block.attn, hidden, kwargs)
    if not all(torch.equal(x[0], hidden) for x in given):
        return []  # the module does something to the stream before it projects it
    found: list[Slot] = []
    for kind, value in (("q", q), ("k", k), ("v", v)):
        bad = value[0].isnan().any(-1)
        found += [(kind, int(i)) for i in bad.nonzero().flatten()]
    return found


@contextmanager
def answering(inputs: dict[str, nn.Module], outputs: dict[str, Tensor]) -> Iterator[list[Tensor]]:
    """While active, the projections return these outputs whatever they are given; what they are given is listed."""
    given: list[Tensor] = []

    def returning(value: Tensor) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            given.append(x)
            return value

        return forward

    try:
        for name, module in inputs.items():
            module.forward = returning(outputs[name])  # instance attribute: shadows the method
        yield given
    finally:
        for module in inputs.values():
            vars(module).pop("forward", None)


def project_slots(
    rows: Rows, slots: Sequence[Slot], h: Float[Tensor, "slot token d_model"]
) -> Float[Tensor, "slot token d_head"]:
    """Projections of normed streams, each to one head's q, k or v, before rotary embedding and q/k norms.

    Args:
        slots: of one projection.
        h: what each of them reads.
    """
    module = rows.projections[rows.of[slots[0]][0]]
    weight, bias = linear_weight(module), module.bias
    assert weight is not None
    heads = run_of([rows.of[slot][1] // rows.d_head for slot in slots])
    cut = weight.unflatten(0, (-1, rows.d_head))[heads]
    offset = None if bias is None else bias.unflatten(0, (-1, rows.d_head))[heads]  # type: ignore[operator]
    if len(slots) == 1:
        return F.linear(h, cut[0], None if offset is None else offset[0])
    factor = cut.transpose(1, 2)
    return torch.bmm(h, factor) if offset is None else torch.baddbmm(offset[:, None], h, factor)
