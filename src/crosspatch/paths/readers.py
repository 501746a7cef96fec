"""What the readers of streams share: projections to q, k, v, and which streams and head outputs are used how often."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.model import Model
from crosspatch.model.attention import AttentionRule, query_key_value
from crosspatch.paths.compile import COUNTER, REFERENCE, HeadVariant, Plan
from crosspatch.paths.project import Rows, Slot, answering, find_rows, linear_weight, project_slot

if TYPE_CHECKING:
    from crosspatch.paths.forward import Forward

SLICED = 0.6
"""Heads are projected one by one where that is at most this share of projecting every stream for all heads."""


class Readers:
    """Looked up while a plan is computed.

    Attributes:
        parents: for each stream the largest one below it that agrees with it on all nodes below that; -1: none.
        kept: streams that others begin with.
        most_streams: how many are held at once, at most.
        copies: for each layer its heads' copies, and its MLP's, that streams read: (node, class).
    """

    def __init__(self, plan: Plan, model: Model) -> None:
        self.plan = plan
        shape = plan.words.shape
        self.parents = _parents(plan)
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
        self._cuts: dict[int, Rows | None] = {}
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

    def project(
        self, forward: Forward, layer: int, heads: list[HeadVariant]
    ) -> dict[tuple[str, int, int], Float[Tensor, "pair position d_head"]]:
        """q, k and v that the copies of one layer's heads need, from the streams that they read."""
        shape, model = self.plan.words.shape, forward.model
        wanted: dict[Slot, list[int]] = defaultdict(list)
        for variant in heads:
            head = self.plan.words.nodes[variant.node].index or 0
            wanted[("q", head)].append(variant.q)
            for kind, rows in (("k", variant.k), ("v", variant.v)):
                wanted[(kind, shape.group_of(head))] += [one for row in rows for one in row]
        asked = {slot: list(dict.fromkeys(one for one in found if one >= 0)) for slot, found in wanted.items()}
        asked = {slot: found for slot, found in asked.items() if found}
        streams = list(dict.fromkeys(one for found in asked.values() for one in found))
        block = model.anatomy.blocks[layer]
        if not streams:
            model.rules.setdefault(layer, self._rule(model, layer))
            return {}
        x = torch.stack([forward.streams[one] for one in streams])
        h = block.norm_attn_in(x).flatten(1, 2)
        positions = torch.arange(forward.first, forward.length, device=x.device).repeat(forward.pairs)
        cut = sum(map(len, asked.values())) <= SLICED * len(streams) * (shape.n_heads + 2 * shape.n_kv_heads)
        cuts = self._cut(model, layer) if cut else None
        if cuts is None:
            kwargs = model.attention_kwargs(layer, positions.repeat(len(streams)), {})
            q, k, v, model.rules[layer] = query_key_value(block.attn, h.flatten(0, 1), kwargs)
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
                q, k, v, model.rules[layer] = query_key_value(block.attn, h.new_zeros(deep * h.shape[1], 1), kwargs)
            spots = {(*slot, one): i for slot, found in asked.items() for i, one in enumerate(found)}
        values = {"q": q, "k": k, "v": v}
        size = (forward.pairs, forward.length - forward.first)
        split = {kind: value.unflatten(0, (-1, *size)) for kind, value in values.items()}
        return {(kind, index, one): split[kind][at, :, :, index] for (kind, index, one), at in spots.items()}

    def _cut(self, model: Model, layer: int) -> Rows | None:
        if layer not in self._cuts:
            self._cuts[layer] = find_rows(model, layer)
        return self._cuts[layer]

    def _rule(self, model: Model, layer: int) -> AttentionRule:
        block = model.anatomy.blocks[layer]
        x = torch.zeros(1, model.shape.d_model, dtype=model.dtype, device=block.device)
        kwargs = model.attention_kwargs(layer, torch.zeros(1, dtype=torch.long), {})
        return query_key_value(block.attn, x, kwargs)[3]


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
