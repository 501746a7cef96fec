"""Queries, keys and values of single heads from streams of their own, and the attention sums of single heads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.recorded import Tokens
from crosspatch.model import Model
from crosspatch.model.attention import AttentionRule, attend, query_key_value
from crosspatch.model.project import Rows, Slot, answering, linear_weight, rows_of

SHARED = 0.5
"""A stream that more than this share of a layer's queries, keys and values are made of is projected for all at once."""


class Projection:
    """One layer's queries, keys and values from several streams, each projected for those that read it only.

    To be used inside `capturing`. Where a layer's projections cannot be cut into heads (`rows_of`), every stream is
    projected for all.

    Args:
        readers: for each stream what is made of it.
        positions: of the tokens that every stream has.
    """

    def __init__(self, model: Model, layer: int, readers: Mapping[int, Sequence[Slot]], positions: Tensor) -> None:
        self.model, self.layer, self.readers, self.positions = model, layer, readers, positions
        self.cuts = rows_of(model, layer)
        self.found: dict[tuple[Slot, int], Float[Tensor, "token d_head"]] = {}
        self.depth: dict[tuple[Slot, int], int] = {}
        counts: dict[Slot, int] = defaultdict(int)
        for stream, slots in readers.items():
            for slot in slots:
                self.depth[(slot, stream)] = counts[slot]
                counts[slot] += 1
        self.deep = max(counts.values())
        self.outputs: dict[str, Float[Tensor, "depth token out"]] = {}
        if self.cuts is not None:
            for name, module in self.cuts.projections.items():
                weight = linear_weight(module)
                assert weight is not None
                self.outputs[name] = weight.new_zeros(self.deep, len(positions), weight.shape[0])

    def add(self, streams: Sequence[int], normed: Float[Tensor, "stream token d_model"]) -> None:
        """Project some streams, which have been through the norm."""
        if self.cuts is None:
            q, k, v = self._split(normed.flatten(0, 1), len(streams))
            for i, stream in enumerate(streams):
                for kind, index in self.readers[stream]:
                    self.found[((kind, index), stream)] = {"q": q, "k": k, "v": v}[kind][i, :, index]
            return
        for stream, h in zip(streams, normed, strict=True):
            self._cut(self.cuts, stream, h)

    def _cut(self, cuts: Rows, stream: int, h: Float[Tensor, "token d_model"]) -> None:
        whole: dict[str, Tensor] = {}
        if len(self.readers[stream]) > SHARED * len(cuts.of):
            whole = {name: module(h) for name, module in cuts.projections.items()}
        for slot in self.readers[stream]:
            name, start = cuts.of[slot]
            stop = start + cuts.d_head
            out = self.outputs[name][self.depth[(slot, stream)], :, start:stop]
            if whole:
                out.copy_(whole[name][:, start:stop])
                continue
            weight, bias = linear_weight(cuts.projections[name]), cuts.projections[name].bias
            assert weight is not None
            if bias is None:
                torch.mm(h, weight[start:stop].T, out=out)
            else:
                torch.addmm(bias[start:stop], h, weight[start:stop].T, out=out)  # type: ignore[index]

    def _split(self, h: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.model.anatomy.blocks[self.layer].attn
        kwargs = self.model.attention_kwargs(self.layer, self.positions.repeat(n), {})
        q, k, v, _ = query_key_value(attn, h, kwargs)
        q, k, v = (x.unflatten(0, (n, len(self.positions))) for x in (q, k, v))
        return q, k, v

    def values(self) -> dict[tuple[Slot, int], Float[Tensor, "token d_head"]]:
        """As attention uses them: after rotary embedding, q/k norms and whatever else the family does."""
        if self.cuts is None:
            return self.found
        flat = {name: value.flatten(0, 1)[None] for name, value in self.outputs.items()}
        with answering(self.cuts.projections, flat):
            q, k, v = self._split(self.positions.new_zeros(self.deep * len(self.positions), 1), self.deep)
        kinds = {"q": q, "k": k, "v": v}
        return {(slot, stream): kinds[slot[0]][at, :, slot[1]] for (slot, stream), at in self.depth.items()}


def attend_heads(
    tokens: Tokens,
    layer: int,
    rule: AttentionRule,
    q: Float[Tensor, "item query d_head"],
    k: Float[Tensor, "item token d_head"],
    v: Float[Tensor, "item token d_head"],
    groups: Sequence[int],
) -> Float[Tensor, "item query d_head"]:
    """Outputs of single heads, any number of them, on all pairs.

    Args:
        q: queries at all tokens, or at those that are read.
        groups: the key/value head of each item, whose keys and values before the first token are the clean run's.
    """
    tail = q.shape[1] != len(tokens.index)
    z = torch.empty_like(q)
    here = there = 0
    for group in tokens.groups:
        n, length = len(group.pairs), group.end - group.first
        at = group.read if tail else tuple(range(group.first, group.end))
        mine, keys = slice(here, here + n * len(at)), slice(there, there + n * length)
        here, there = mine.stop, keys.stop
        pairs = [x[:, keys].reshape(len(q) * n, length, 1, -1) for x in (k, v)]
        if group.first:
            for i, kind in enumerate("kv"):
                before = tokens.before(layer, kind, group)[:, :, list(groups)].permute(2, 0, 1, 3)
                pairs[i] = torch.cat([before.flatten(0, 1)[:, :, None], pairs[i]], 1)
        queries = q[:, mine].reshape(len(q) * n, len(at), 1, -1)
        z[:, mine] = attend(queries, pairs[0], pairs[1], at, rule).reshape(len(q), n * len(at), -1)
    return z
