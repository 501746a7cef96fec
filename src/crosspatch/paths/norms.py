"""What readers of mixed streams do first: their norm, with its scale recomputed, or frozen at the reference run's.

Frozen, every reader of a mixed input takes the scale that its norm has in the plain run on the reference prompt, so
that a norm is an affine map and what paths carry adds up in it. A copy of which every path carries the counterfactual
has the value of the plain run on that prompt, with that run's own scale. Norms of queries and keys, which see one head,
are recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from crosspatch.errors import PathError
from crosspatch.model.attention import seen_mask
from crosspatch.model.norms import Norm, frozen_norm
from crosspatch.paths.automaton import COUNTER, REFERENCE
from crosspatch.paths.compile import NORMS, HeadVariant

if TYPE_CHECKING:
    from crosspatch.paths.forward import Forward

Norms = Literal["recomputed", "frozen"]
Source = Int[Tensor, "pair position"]
"""The plain run whose value a copy has at each token, or MIXED."""
MIXED = 0
LARGE = 3.0
"""Times its recomputed size from which on a normed input is called large: far from anything that the model reads."""


@dataclass
class Stretch:
    """How much larger frozen norms leave a mixed input than recomputed ones would, where that is most.

    Attributes:
        ratio: length of the normed input (less the norm's bias), frozen over recomputed; infinite where it overflows.
        reader: the norm, as `norm_mlp_in of layer 2` or `final_norm`.
        position: of the token.
        tokens: reference prompt of the pair, and its counterfactual ones.
    """

    ratio: float = 1.0
    reader: str = ""
    position: int = -1
    tokens: tuple[list[int], ...] = ()

    @property
    def large(self) -> bool:
        return self.ratio > LARGE

    def to_json(self) -> dict[str, Any]:
        """Without the prompts; an overflow has no number."""
        ratio = self.ratio if self.ratio < float("inf") else None
        return {"ratio": ratio, "reader": self.reader, "position": self.position, "large": self.large}


_watching: ContextVar[Stretch | None] = ContextVar("watching", default=None)


@contextmanager
def stretch_of() -> Iterator[Stretch]:
    """Measure the frozen norms of all evaluations inside; without one, nothing is measured.

    >>> with stretch_of() as found:                                                # doctest: +SKIP
    ...     evaluate(model, sets, pairs, on_read, norms="frozen")
    >>> found.ratio, found.reader, found.position                                  # doctest: +SKIP
    """
    found = Stretch()
    token = _watching.set(found)
    try:
        yield found
    finally:
        _watching.reset(token)


def require_norms(norms: str) -> None:
    """Refuse an unknown choice.

    Raises:
        PathError: neither of the two.
    """
    if norms not in NORMS:
        raise PathError(f"{norms!r} is no choice", where="norms", fix=f"use one of {', '.join(NORMS)}")


class Frozen:
    """Frozen norms of one chunk of pairs."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        plan = forward.plan
        self._one_kind = len(plan.atoms.places) == len(plan.atoms.offsets) == 1
        self._kinds = [mask[:, :, 0] for mask in forward.masks]
        self._maps: dict[tuple[int, str, bool], Norm] = {}
        self._streams: dict[int, Source] = {}
        self._copies: dict[int, Source] = {}

    def of_streams(self, level: int, role: str, norm: Norm, numbers: list[int], x: Tensor, tail: bool) -> Tensor:
        """The norms of readers of some streams, `x [stream, pair, position, d]`, at all positions or at the tail."""
        reference = self.forward.plain_stream(REFERENCE, level, tail)
        own = [self._cut(self._stream(n), tail) for n in numbers]
        return self._applied((level, role, tail), norm, reference, x, own)

    def of_mlps(self, layer: int, norm: Norm, numbers: list[int], out: Tensor, tail: bool) -> Tensor:
        """The norm after an MLP, of what some copies of it return."""
        forward = self.forward
        block = forward.model.anatomy.blocks[layer]
        level = forward.level_of_mlp(layer)
        x = forward.plain_stream(REFERENCE, level, tail)
        assert block.mlp is not None
        reference = block.mlp(block.norm_attn_in(x) if block.shared_norm else block.norm_mlp_in(x))
        reference = reference[0] if isinstance(reference, tuple) else reference
        own = [self._cut(self._copy(n), tail) for n in numbers]
        return self._applied((level, "norm_mlp_out", tail), norm, reference, out, own)

    def of_heads(self, layer: int, norm: Norm, block: list[list[int]], out: Tensor, tail: bool) -> Tensor:
        """The norm after an attention block, of what some copies of its heads add up to."""
        forward = self.forward
        z = forward.plain(REFERENCE, layer, "z", tail)
        reference = forward.model.anatomy.blocks[layer].o_proj(z.flatten(2))
        source = _agreed([self._mixed(row) for row in block])
        key = (forward.level_of_mlp(layer), "norm_attn_out", tail)
        return self._applied(key, norm, reference, out, [self._cut(source, tail)])

    def _applied(
        self, key: tuple[int, str, bool], norm: Norm, reference: Tensor, x: Tensor, own: list[Source]
    ) -> Tensor:
        if key not in self._maps:
            self._maps[key] = frozen_norm(norm, reference)
        out = self._maps[key](x)
        if not self._one_kind:  # with one kind, a copy that carries the counterfactual only is the plain run itself
            pure = (torch.stack(own) <= COUNTER).view(*x.shape[:-1], 1)
            out = torch.where(pure, norm(x), out) if pure.any() else out
        if (watched := _watching.get()) is not None:
            self._note(watched, key, norm, x, out)
        return out

    def _note(self, watched: Stretch, key: tuple[int, str, bool], norm: Norm, x: Tensor, out: Tensor) -> None:
        """Keep the largest ratio so far, and where it is."""
        level, role, tail = key
        bias = self._maps[key](torch.zeros_like(x[..., :1, :1, :]))
        wanted, found = ((y - bias).float().norm(dim=-1) for y in (norm(x), out))
        ratio = (found / wanted).nan_to_num(1.0, torch.inf)  # no number at inputs that are 0, or have overflown before
        ratio = ratio.reshape(-1, *ratio.shape[-2:])  # [copy, pair, position]
        worst = float(ratio.max())
        if worst <= watched.ratio:
            return
        _, pair, place = (int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape))
        forward = self.forward
        watched.ratio = worst
        watched.reader = role if role == "final_norm" else f"{role} of layer {(level - 1) // forward.per_layer}"
        watched.position = forward.positions(tail)[place]
        watched.tokens = tuple(list(run.tokens[pair]) for run in forward.runs.values())

    # Which copies have the value of one plain run, token by token; true to the paths, whatever the values are.

    def _cut(self, run: Source, tail: bool) -> Source:
        return run[:, list(self.forward.positions(tail))]

    def _mixed(self, classes: list[int]) -> Source:
        """Of copies that depend on the kind of position."""
        out = torch.full_like(self._kinds[0], MIXED, dtype=torch.long)
        for kind, one in zip(self._kinds, classes, strict=True):
            out = torch.where(kind, self._source(one, copy=True), out)
        return out

    def _source(self, one: int, copy: bool = False) -> Source:
        if one < 0:
            return torch.full_like(self._kinds[0], one, dtype=torch.long)
        return self._copy(one) if copy else self._stream(one)

    def _stream(self, number: int) -> Source:
        if number not in self._streams:
            classes = self.forward.plan.streams[number].classes
            out = torch.full_like(self._kinds[0], MIXED, dtype=torch.long)
            for kind, column in zip(self._kinds, classes.T, strict=True):
                out = torch.where(kind, _agreed([self._source(one, copy=True) for one in {*column.tolist()}]), out)
            self._streams[number] = out
        return self._streams[number]

    def _copy(self, number: int) -> Source:
        if number not in self._copies:
            variant = self.forward.plan.variants[number]
            self._copies[number] = self._head(variant) if isinstance(variant, HeadVariant) else self._source(variant.x)
        return self._copies[number]

    def _head(self, variant: HeadVariant) -> Source:
        forward = self.forward
        places = tuple(range(forward.length))
        rule = forward.model.attention_rule(forward.plan.words.nodes[variant.node].layer or 0)
        device = self._kinds[0].device
        seen = seen_mask(places, forward.length, rule, device)
        out = self._source(variant.q)
        for offset, inside in enumerate(forward.offset_masks(places, device)):
            reads = inside if seen is None else inside & seen
            for rows in (variant.k, variant.v):
                keys = torch.full_like(out, MIXED)
                for kind, row in zip(self._kinds, rows, strict=True):
                    keys = torch.where(kind, self._source(row[offset]), keys)
                other = (reads & (keys[:, None] != out[:, :, None])).any(-1)
                out = torch.where(other, MIXED, out)
        return out


def _agreed(sources: list[Source]) -> Source:
    """The run that all of some copies have the value of."""
    first, *rest = sources
    for other in rest:
        first = torch.where(first == other, first, MIXED)
    return first
