"""Queries, keys and values of one layer's heads, from the streams that their copies read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.model.attention import query_key_value
from crosspatch.model.project import Rows, Slot, answering, linear_weight, project_slots, rows_of, run_of
from crosspatch.paths.compile import HeadVariant

if TYPE_CHECKING:
    from crosspatch.paths.forward import Forward

SLICED = 0.6
"""Heads are projected one by one where that is at most this share of projecting every stream for all heads."""
NORMED_MIB = 16.0
"""Streams are normed and projected in parts of this size, which caches hold and allocators keep."""
MIB = 2**20


class Projected:
    """q, k and v of one layer's heads from streams: by kind, and whether the stream is there at all positions."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, bool], Float[Tensor, "row pair position head d_head"]] = {}
        self.spots: dict[tuple[str, int, int], tuple[bool, int]] = {}

    def row(self, kind: str, index: int, stream: int) -> Float[Tensor, "pair position d_head"]:
        """Of one head, or key/value head, from one stream."""
        wide, row = self.spots[kind, index, stream]
        return self.tables[kind, wide][row, :, :, index]

    def rows(
        self, kind: str, wanted: list[tuple[int, int]], forward: Forward, layer: int, tail: bool
    ) -> Float[Tensor, "row pair position d_head"]:
        """Of several (head, stream or plain run), at all positions or at the tail."""
        sources: dict[tuple[bool, int], list[int]] = defaultdict(list)
        for place, (index, one) in enumerate(wanted):
            sources[(True, one) if one < 0 else (False, int(self.spots[kind, index, one][0]))].append(place)
        found: dict[tuple[bool, int], Tensor] = {}
        for source, places in sources.items():
            plain, which = source
            heads = [wanted[place][0] for place in places]
            if plain:
                value = forward.plain(which, layer, kind)[:, :, heads].permute(2, 0, 1, 3)
            else:
                table = self.tables[kind, bool(which)]
                at = [self.spots[(kind, *wanted[place])][1] for place in places]
                value = table[torch.tensor(at, device=table.device), :, :, torch.tensor(heads, device=table.device)]
            short = tail and value.shape[2] != len(forward.tail)
            found[source] = value[:, :, forward.tail] if short else value
        if len(found) == 1:
            return next(iter(found.values()))
        first = next(iter(found.values()))
        out = first.new_empty(len(wanted), *first.shape[1:])
        for source, places in sources.items():
            out[places] = found[source]
        return out


def project(forward: Forward, layer: int, heads: list[HeadVariant]) -> Projected:
    """q, k and v that the copies of one layer's heads need, from the streams that they read."""
    shape, wide = forward.shape, forward.readers.wide
    wanted: dict[Slot, list[int]] = defaultdict(list)
    for variant in heads:
        head = forward.plan.words.nodes[variant.node].index or 0
        wanted[("q", head)].append(variant.q)
        for kind, rows in (("k", variant.k), ("v", variant.v)):
            wanted[(kind, shape.group_of(head))] += [one for row in rows for one in row]
    found = Projected()
    for everywhere in (True, False):
        asked = {
            slot: [one for one in dict.fromkeys(streams) if one >= 0 and (one in wide) == everywhere]
            for slot, streams in wanted.items()
        }
        asked = {slot: streams for slot, streams in asked.items() if streams}
        if asked:
            _project(found, forward, layer, asked, everywhere)
    return found


def _project(into: Projected, forward: Forward, layer: int, asked: dict[Slot, list[int]], wide: bool) -> None:
    """`project` for streams that are there at the same positions."""
    shape, model = forward.shape, forward.model
    streams = list(dict.fromkeys(one for found in asked.values() for one in found))
    at = torch.tensor(forward.positions(not wide), device=forward.streams[streams[0]].device).repeat(forward.pairs)
    cut = sum(map(len, asked.values())) <= SLICED * len(streams) * (shape.n_heads + 2 * shape.n_kv_heads)
    cuts = rows_of(model, layer) if cut else None
    if cuts is None:
        h = _normed(forward, layer, streams, forward.streams.of(streams), wide)
        kwargs = model.attention_kwargs(layer, at.repeat(len(streams)), {})
        q, k, v, _ = query_key_value(model.anatomy.blocks[layer].attn, h.flatten(0, 1), kwargs)
        place = {one: i for i, one in enumerate(streams)}
        spots = {(*slot, one): place[one] for slot, found in asked.items() for one in found}
    else:
        deep = max(map(len, asked.values()))
        outputs = _sliced(cuts, forward, layer, asked, streams, wide)
        kwargs = model.attention_kwargs(layer, at.repeat(deep), {})
        flat = {name: value.flatten(0, 1)[None] for name, value in outputs.items()}
        with answering(cuts.projections, flat):
            q, k, v, _ = query_key_value(
                model.anatomy.blocks[layer].attn, at.new_zeros(deep * len(at), 1, dtype=model.dtype), kwargs
            )
        spots = {(*slot, one): i for slot, found in asked.items() for i, one in enumerate(found)}
    for kind, value in (("q", q), ("k", k), ("v", v)):
        into.tables[kind, wide] = value.unflatten(0, (-1, forward.pairs, len(at) // forward.pairs))
    into.spots |= {spot: (wide, row) for spot, row in spots.items()}


def _normed(
    forward: Forward, layer: int, streams: list[int], x: Tensor, wide: bool
) -> Float[Tensor, "stream token d_model"]:
    level = 1 + layer * forward.per_layer
    return forward.norm_streams(level, "norm_attn_in", streams, x, not wide).flatten(1, 2)


def _sliced(
    cuts: Rows, forward: Forward, layer: int, asked: dict[Slot, list[int]], streams: list[int], wide: bool
) -> dict[str, Float[Tensor, "row token out"]]:
    """Outputs of the projections, where each row of them has the heads' parts that some stream is read for."""
    x = forward.streams.of(streams)
    deep, n_tokens = max(map(len, asked.values())), x.shape[1] * x.shape[2]
    outputs = {}
    for name, module in cuts.projections.items():
        weight = linear_weight(module)
        assert weight is not None
        outputs[name] = x.new_zeros(deep, n_tokens, weight.shape[0])
    readers: dict[int, list[tuple[Slot, int]]] = defaultdict(list)  # of a stream: slots, and rows of the outputs
    for slot, found in asked.items():
        for row, one in enumerate(found):
            readers[one].append((slot, row))
    step = max(1, int(NORMED_MIB * MIB / (n_tokens * x.shape[-1] * x.element_size())))
    for lo in range(0, len(streams), step):
        part = streams[lo : lo + step]
        h = _normed(forward, layer, part, x[lo : lo + step], wide)
        for rows, slots, places in _alike(cuts, [readers[one] for one in part]):
            inputs = h[places[0]].expand(len(places), -1, -1) if len({*places}) == 1 else h[run_of(places)]
            value = project_slots(cuts, slots, inputs)
            at = [cuts.of[slot][1] // cuts.d_head for slot in slots]
            out = outputs[cuts.of[slots[0]][0]].unflatten(-1, (-1, cuts.d_head))
            if len(slots) == 1:
                out[run_of(rows), :, at[0]] = value
            else:
                out[rows[0]].transpose(0, 1)[run_of(at)] = value
    return outputs


def _alike(cuts: Rows, readers: list[list[tuple[Slot, int]]]) -> Iterator[tuple[list[int], list[Slot], list[int]]]:
    """What is projected at once: (rows of the output, slots, their streams' places), one slot from several streams, or
    several slots of one kind, each from one."""
    by_slot: dict[Slot, list[tuple[int, int]]] = defaultdict(list)
    for place, found in enumerate(readers):
        for slot, row in found:
            by_slot[slot].append((row, place))
    single: dict[tuple[str, str, int], list[tuple[Slot, int]]] = defaultdict(list)
    for slot, members in by_slot.items():
        rows, places = zip(*members, strict=True)
        if len(members) > 1:
            yield list(rows), [slot], list(places)
        else:
            single[cuts.of[slot][0], slot[0], rows[0]].append((slot, places[0]))
    for (_, _, row), alone in single.items():
        slots, places = zip(*alone, strict=True)
        yield [row], list(slots), list(places)
