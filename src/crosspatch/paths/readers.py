"""What the readers of streams share: projections to q, k, v, and which streams and head outputs are used how often."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.model import Model
from crosspatch.model.attention import query_key_value
from crosspatch.paths.compile import COUNTER, REFERENCE, HeadVariant, Plan
from crosspatch.paths.project import Slot, answering, linear_weight, project_slot, rows_of

if TYPE_CHECKING:
    from crosspatch.paths.forward import Forward

Projected = dict[tuple[str, int, int], Float[Tensor, "pair position d_head"]]
"""By kind (q, k, v), head or key/value head, and stream."""
SLICED = 0.6
"""Heads are projected one by one where that is at most this share of projecting every stream for all heads."""


class Readers:
    """Looked up while a plan is computed.

    Attributes:
        parents: for each stream the largest one below it that agrees with it on all nodes below that; -1: none.
        kept: streams that others begin with.
        most_streams: how many are held at once, at most.
        wide: streams that are needed at all positions, because keys or values that matter read them; the others are
            needed at the positions that the logits read.
        wide_copies: copies of nodes of which the same holds.
        copies: for each layer its heads' copies, and its MLP's, that streams read: (node, class).
    """

    def __init__(self, plan: Plan, model: Model) -> None:
        self.plan = plan
        shape = plan.words.shape
        self.parents = _parents(plan)
        self.wide, self.wide_copies = _needed_everywhere(plan)
        self.kept = frozenset(self.parents) - {-1}
        levels = Counter(stream.level for stream in plan.streams)
        self.most_streams = len(self.kept) + max(levels.values(), default=0)
        self._blocks: dict[int, Counter[bytes]] = defaultdict(Counter)
        self.copies: dict[int, set[tuple[int, int]]] = defaultdict(set)
        for stream in plan.streams:
            for layer in range(shape.n_layers):
                start = 1 + layer * (shape.n_heads + int(shape.has_mlp))
                block = stream.classes[start : start + shape.n_heads]
                if len(block) == shape.n_heads and not ((block == COUNTER).all() or (block == REFERENCE).all()):
                    self._blocks[layer][block.tobytes()] += 1
                    self.copies[layer] |= {(start + h, one) for h, row in enumerate(block.tolist()) for one in row}
        self._additive = [not block.post_norm for block in model.anatomy.blocks]

    def uses(self, layer: int, block: Int[np.ndarray, "head atom"]) -> int:
        """How many streams hold exactly these copies of a layer's heads."""
        return self._blocks[layer][block.tobytes()]

    def head_by_head(self, layer: int) -> bool:
        """Whether what each copy writes is kept and summed, and not the output of each combination computed.

        Only where heads add up: a norm after the attention output sees their sum.
        """
        n_heads = self.plan.words.shape.n_heads
        return self._additive[layer] and len(self._blocks[layer]) * n_heads > 2 * len(self.copies[layer])

    def project(self, forward: Forward, layer: int, heads: list[HeadVariant]) -> Projected:
        """q, k and v that the copies of one layer's heads need, from the streams that they read."""
        shape = self.plan.words.shape
        wanted: dict[Slot, list[int]] = defaultdict(list)
        for variant in heads:
            head = self.plan.words.nodes[variant.node].index or 0
            wanted[("q", head)].append(variant.q)
            for kind, rows in (("k", variant.k), ("v", variant.v)):
                wanted[(kind, shape.group_of(head))] += [one for row in rows for one in row]
        asked = {slot: list(dict.fromkeys(one for one in found if one >= 0)) for slot, found in wanted.items()}
        asked = {slot: found for slot, found in asked.items() if found}
        found: Projected = {}
        for wide in (True, False):
            some = {slot: [one for one in streams if (one in self.wide) == wide] for slot, streams in asked.items()}
            some = {slot: streams for slot, streams in some.items() if streams}
            if some:
                found |= self._project(forward, layer, some, forward.positions(not wide))
        return found

    def _project(self, forward: Forward, layer: int, asked: dict[Slot, list[int]], at: tuple[int, ...]) -> Projected:
        """`project` for streams that are there at the same positions."""
        shape, model = self.plan.words.shape, forward.model
        streams = list(dict.fromkeys(one for found in asked.values() for one in found))
        block = model.anatomy.blocks[layer]
        x = torch.stack([forward.streams[one] for one in streams])
        h = block.norm_attn_in(x).flatten(1, 2)
        positions = torch.tensor(at, device=x.device).repeat(forward.pairs)
        cut = sum(map(len, asked.values())) <= SLICED * len(streams) * (shape.n_heads + 2 * shape.n_kv_heads)
        cuts = rows_of(model, layer) if cut else None
        if cuts is None:
            kwargs = model.attention_kwargs(layer, positions.repeat(len(streams)), {})
            q, k, v, _ = query_key_value(block.attn, h.flatten(0, 1), kwargs)
            place = {one: i for i, one in enumerate(streams)}
            spots = {(*slot, one): place[one] for slot, found in asked.items() for one in found}
        else:
            place = {one: i for i, one in enumerate(streams)}
            deep = max(map(len, asked.values()))
            outputs = {
                name: h.new_zeros(deep, h.shape[1], _height(module)) for name, module in cuts.projections.items()
            }
            for slot, found in asked.items():
                name, start = cuts.of[slot]
                value = project_slot(cuts, slot, h[[place[one] for one in found]])
                outputs[name][: len(found), :, start : start + shape.d_head] = value
            kwargs = model.attention_kwargs(layer, positions.repeat(deep), {})
            flat = {name: value.flatten(0, 1)[None] for name, value in outputs.items()}
            with answering(cuts.projections, flat):
                q, k, v, _ = query_key_value(block.attn, h.new_zeros(deep * h.shape[1], 1), kwargs)
            spots = {(*slot, one): i for slot, found in asked.items() for i, one in enumerate(found)}
        values = {"q": q, "k": k, "v": v}
        size = (forward.pairs, len(at))
        split = {kind: value.unflatten(0, (-1, *size)) for kind, value in values.items()}
        return {(kind, index, one): split[kind][i, :, :, index] for (kind, index, one), i in spots.items()}


def _needed_everywhere(plan: Plan) -> tuple[frozenset[int], frozenset[int]]:
    """Streams, and copies of nodes, that some key or value in use depends on."""
    used_streams: set[int] = set()
    used: set[int] = set()
    waiting = {one for classes in plan.final for one in classes if one >= 0}
    roots: set[int] = set()  # streams that keys and values of a copy in use read
    while waiting:
        used_streams |= waiting
        copies = {int(c) for one in waiting for c in np.unique(plan.streams[one].classes) if c >= 0} - used
        used |= copies
        waiting = set()
        for copy in copies:
            variant = plan.variants[copy]
            if isinstance(variant, HeadVariant):
                inside = {one for rows in (variant.k, variant.v) for row in rows for one in row if one >= 0}
                roots |= inside
                waiting |= inside | {variant.q}
            else:
                waiting.add(variant.x)
        waiting = {one for one in waiting if one >= 0} - used_streams
    wide: set[int] = set()
    wide_copies: set[int] = set()
    waiting = roots
    while waiting:
        wide |= waiting
        copies = {int(c) for one in waiting for c in np.unique(plan.streams[one].classes) if c >= 0} - wide_copies
        wide_copies |= copies
        reads = (plan.variants[copy] for copy in copies)
        waiting = {one for v in reads for one in ([v.q] if isinstance(v, HeadVariant) else [v.x]) if one >= 0} - wide
    return frozenset(wide), frozenset(wide_copies)


def _parents(plan: Plan) -> list[int]:
    known = {(s.level, s.classes.tobytes()): number for number, s in enumerate(plan.streams)}
    levels = sorted({s.level for s in plan.streams}, reverse=True)
    found = []
    for stream in plan.streams:
        below = (level for level in levels if level < stream.level)
        numbers = (known.get((level, stream.classes[:level].tobytes()), -1) for level in below)
        found.append(next((number for number in numbers if number >= 0), -1))
    return found


def _height(module: torch.nn.Module) -> int:
    weight = linear_weight(module)
    assert weight is not None
    return weight.shape[0]
