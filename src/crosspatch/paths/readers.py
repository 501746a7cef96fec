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
from crosspatch.model.project import Slot, answering, linear_weight, project_slot, rows_of
from crosspatch.model.run import Key
from crosspatch.paths.automaton import COUNTER, REFERENCE, reader_level
from crosspatch.paths.compile import HeadVariant, Plan, Stream, reads
from crosspatch.paths.stacks import run_of

if TYPE_CHECKING:
    from crosspatch.paths.forward import Forward

SLICED = 0.6
"""Heads are projected one by one where that is at most this share of projecting every stream for all heads."""

DENSE = 0.06
"""Streams that read more than this share of all changes, on average, are summed as one product with all of them."""


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


class Readers:
    """Looked up while a plan is computed.

    Attributes:
        parents: for each stream the largest one below it that agrees with it on all nodes below that; -1: none.
        last_begun: for each stream the highest level of one that begins with it, or its own.
        wide: streams that are needed at all positions, because keys or values that matter read them; the others are
            needed at the positions that the logits read.
        wide_copies: copies of nodes of which the same holds.
    """

    def __init__(self, plan: Plan, model: Model) -> None:
        self.plan = plan
        shape = plan.words.shape
        self.parents = _parents(plan)
        self.wide, self.wide_copies = _needed_everywhere(plan)
        self.last_begun = [stream.level for stream in plan.streams]
        blocks = [self._mixed_blocks(layer) for layer in range(shape.n_layers)]
        self._blocks = [Counter(block.tobytes() for block in found) for found in blocks]
        self._copies = [_per_row(found.swapaxes(0, 1)) for found in blocks]
        self._additive = [not block.post_norm for block in model.anatomy.blocks]
        layers = range(shape.n_layers)
        self._additive_below = next((layer for layer in layers if not self.head_by_head(layer)), shape.n_layers)
        self._inside = _read_inside(plan)
        together: dict[tuple[int, bool], list[Stream]] = defaultdict(list)
        for number, stream in enumerate(plan.streams):
            if self.row_by_row(stream.level):
                together[base_of(stream), number not in self.wide].append(stream)
            elif self.parents[number] >= 0:
                parent = self.parents[number]
                self.last_begun[parent] = max(self.last_begun[parent], stream.level)
        self._terms: dict[tuple[int, int, bool], dict[tuple[int, int], int]] = defaultdict(dict)
        self._dense: dict[tuple[int, bool], bool] = {}
        for (base, tail), streams in together.items():
            self._note_terms(streams, base, tail)

    def _mixed_blocks(self, layer: int) -> Int[np.ndarray, "stream head atom"]:
        """Copies of a layer's heads that streams hold, but for those of which all are one plain run's."""
        shape = self.plan.words.shape
        start = 1 + layer * (shape.n_heads + int(shape.has_mlp))
        stop = start + shape.n_heads
        above = [stream.classes[start:stop] for stream in self.plan.streams if stream.level >= stop]
        blocks = np.stack(above) if above else np.empty((0, shape.n_heads, len(self.plan.atoms.places)), dtype=np.int64)
        return blocks[((blocks >= 0) | (blocks != blocks[:, :1, :1])).any((1, 2))]

    def _note_terms(self, streams: list[Stream], base: int, tail: bool) -> None:
        """Remember which copies streams that are summed together read beside their plain run, and up to which level."""
        highest: dict[tuple[int, int], int] = {}
        for level in sorted({stream.level for stream in streams}):
            classes = np.stack([stream.classes[:, 0] for stream in streams if stream.level == level], 1)
            for node in np.flatnonzero((classes != base).any(1)).tolist():
                highest |= dict.fromkeys([(node, one) for one in set(classes[node].tolist()) - {base}], level)
        reads = sum(np.count_nonzero(stream.classes[:, 0] != base) for stream in streams)
        self._dense[base, tail] = bool(reads > DENSE * len(streams) * len(highest))
        starts = np.array(self.parts(len(self.plan.words.nodes)))
        for (node, one), level in highest.items():
            start = int(starts[np.searchsorted(starts, node, "right") - 1])
            self._terms[start, base, tail][node, one] = level

    def keys(self, run: int) -> set[Key]:
        """Activations of a plain run that the evaluation reads. Of a run whose values are read at the input only, those
        that others begin with (`record`)."""
        plan, shape = self.plan, self.plan.words.shape
        if not plan.streams:
            return set()
        keys = {(layer, kind) for layer in range(shape.n_layers) for kind in ("k", "v")} | {(0, "resid_pre")}
        if run not in self._inside:
            return keys
        for layer in range(shape.n_layers):
            keys |= {(layer, kind) for kind in ("resid_pre", "q", "z")}
            keys |= set() if self.head_by_head(layer) else {(layer, "attn_out")}
            keys |= {(layer, "mlp_out")} if shape.has_mlp else set()
            keys |= {(layer, "resid_mid")} if shape.has_mlp and not shape.parallel else set()
        return keys | {(shape.n_layers - 1, "resid_post")}

    def parts(self, level: int) -> list[int]:
        """First nodes of what writes together (the input, a block's heads, its MLP) below a level."""
        shape = self.plan.words.shape
        found = [0]
        for layer in range(shape.n_layers):
            start = 1 + layer * (shape.n_heads + int(shape.has_mlp))
            found += [start, start + shape.n_heads] if shape.has_mlp else [start]
        return [start for start in found if start < level]

    def terms(self, start: int, base: int, tail: bool) -> list[tuple[int, int]]:
        """Copies of a part, (node, class), that streams nearest to a plain run read beside it."""
        return sorted(self._terms.get((start, base, tail), ()))

    def n_terms(self, base: int, tail: bool) -> int:
        """How many there are of all parts."""
        return sum(len(found) for key, found in self._terms.items() if key[1:] == (base, tail))

    def dense(self, base: int, tail: bool) -> bool:
        """Whether a stream reads so many of them that sums are products."""
        return self._dense[base, tail]

    def last_read(self, start: int, base: int, tail: bool) -> int:
        """The highest level at which any of `terms` is read."""
        return max(self._terms[start, base, tail].values())

    def row_by_row(self, level: int) -> bool:
        """Whether streams of a level are sums of what each copy writes: one kind of position, heads that add up."""
        shape = self.plan.words.shape
        per_layer = shape.n_heads + int(shape.has_mlp)
        layers = (level - 1 + per_layer - shape.n_heads) // per_layer
        return len(self.plan.atoms.places) == 1 and layers <= self._additive_below

    def floats(self, length: int, reads: int) -> float:
        """Numbers held at once while a pair of some length is computed, at most, besides the plain runs."""
        plan, shape = self.plan, self.plan.words.shape
        d = shape.d_model

        def tokens(wide: bool) -> int:
            return length if wide else reads

        copies: Counter[int] = Counter()  # by the level from which on they are there
        for number, variant in enumerate(plan.variants):
            width = shape.d_head if isinstance(variant, HeadVariant) else d
            copies[reader_level(plan.words.nodes[variant.node], plan.words)] += width * tokens(
                number in self.wide_copies
            )
        most = 0
        for level in sorted({stream.level for stream in plan.streams}):
            held = sum(size for at, size in copies.items() if at < level)
            for number, stream in enumerate(plan.streams):
                if stream.level <= level <= self.last_begun[number]:
                    # Those of this level are normed and projected as well.
                    held += d * tokens(number in self.wide) * (5 if stream.level == level else 1)
            for (start, base, tail), terms in self._terms.items():
                if self._dense[base, tail] or start < level <= max(terms.values()):
                    held += len(terms) * d * tokens(not tail)
            most = max(most, held)
        return most

    def uses(self, layer: int, block: Int[np.ndarray, "head atom"]) -> int:
        """How many streams hold exactly these copies of a layer's heads."""
        return self._blocks[layer][block.tobytes()]

    def head_by_head(self, layer: int) -> bool:
        """Whether what each copy writes is kept and summed, and not the output of each combination computed.

        Only where heads add up: a norm after the attention output sees their sum.
        """
        n_heads = self.plan.words.shape.n_heads
        return self._additive[layer] and len(self._blocks[layer]) * n_heads > 2 * self._copies[layer]

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
        found = Projected()
        for wide in (True, False):
            some = {slot: [one for one in streams if (one in self.wide) == wide] for slot, streams in asked.items()}
            some = {slot: streams for slot, streams in some.items() if streams}
            if some:
                self._project(found, forward, layer, some, wide)
        return found

    def _project(self, into: Projected, forward: Forward, layer: int, asked: dict[Slot, list[int]], wide: bool) -> None:
        """`project` for streams that are there at the same positions."""
        at = forward.positions(not wide)
        shape, model = self.plan.words.shape, forward.model
        streams = list(dict.fromkeys(one for found in asked.values() for one in found))
        block = model.anatomy.blocks[layer]
        x = forward.streams.of(streams)
        level = 1 + layer * forward.per_layer
        h = forward.norm_streams(level, "norm_attn_in", streams, x, not wide).flatten(1, 2)
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
                value = project_slot(cuts, slot, h[run_of([place[one] for one in found])])
                outputs[name][: len(found), :, start : start + shape.d_head] = value
            kwargs = model.attention_kwargs(layer, positions.repeat(deep), {})
            flat = {name: value.flatten(0, 1)[None] for name, value in outputs.items()}
            with answering(cuts.projections, flat):
                q, k, v, _ = query_key_value(block.attn, h.new_zeros(deep * h.shape[1], 1), kwargs)
            spots = {(*slot, one): i for slot, found in asked.items() for i, one in enumerate(found)}
        size = (forward.pairs, len(at))
        for kind, value in (("q", q), ("k", k), ("v", v)):
            into.tables[kind, wide] = value.unflatten(0, (-1, *size))
        into.spots |= {spot: (wide, row) for spot, row in spots.items()}


def base_of(stream: Stream) -> int:
    """The plain run that a stream is nearer to."""
    return REFERENCE if (stream.classes == REFERENCE).sum() > (stream.classes == COUNTER).sum() else COUNTER


def _read_inside(plan: Plan) -> set[int]:
    """Plain runs of which more than the input is read."""
    found = {base_of(stream) for stream in plan.streams} | ({REFERENCE} if plan.norms == "frozen" else set())
    for stream in plan.streams:
        found |= {*np.unique(stream.classes[1:]).tolist()}
    for variant in plan.variants:
        found |= reads(variant)
    return {run for run in found if run < 0}


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


def _per_row(values: Int[np.ndarray, "row stream atom"]) -> int:
    """How many different values rows hold, row by row, in all."""
    return sum(len(np.unique(row)) for row in values)


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
