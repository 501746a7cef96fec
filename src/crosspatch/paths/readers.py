"""What the readers of streams share: projections to q, k, v, and which streams and head outputs are used how often."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from crosspatch.model import Model
from crosspatch.model.run import Key
from crosspatch.paths.automaton import COUNTER, REFERENCE, reader_level
from crosspatch.paths.compile import HeadVariant, Plan, Stream, reads

if TYPE_CHECKING:
    pass

DENSE = 0.03
"""Streams that read more than this share of all changes, on average, are summed as one product with all of them."""


class Readers:
    """Looked up while a plan is computed.

    Attributes:
        parents: for each stream the largest one below it that agrees with it on all nodes below that; -1: none, or not
            looked for because sums of its level do not begin with one.
        bases: for each stream the plain run that its sum begins with.
        head_by_head: whether what each copy of a head writes is kept and summed, and not the output of each combination
            of a block's copies computed.
        last_begun: for each stream the highest level of one that begins with it, or its own.
        wide: streams that are needed at all positions, because keys or values that matter read them; the others are
            needed at the positions that the logits read.
        wide_copies: copies of nodes of which the same holds.
    """

    def __init__(self, plan: Plan, model: Model) -> None:
        self.plan = plan
        shape = plan.words.shape
        self.wide, self.wide_copies = _needed_everywhere(plan)
        self.last_begun = [stream.level for stream in plan.streams]
        blocks = [self._mixed_blocks(layer) for layer in range(shape.n_layers)]
        self._blocks = [Counter(block.tobytes() for block in found) for found in blocks]
        copies = sum(_per_row(found.swapaxes(0, 1)) for found in blocks)
        combinations = sum(map(len, self._blocks))
        # A norm after the attention output sees the sum of the heads, so that what they write does not add up.
        additive = not any(block.post_norm for block in model.anatomy.blocks)
        self.head_by_head = additive and combinations * shape.n_heads > 2 * copies
        self.parents = _parents(plan, [not self.row_by_row(stream.level) for stream in plan.streams])
        for stream, parent in zip(plan.streams, self.parents, strict=True):
            if parent >= 0:
                self.last_begun[parent] = max(self.last_begun[parent], stream.level)
        self.bases = [_nearest(stream) for stream in plan.streams]
        self._terms: dict[tuple[int, int, bool], dict[tuple[int, int], int]] = defaultdict(dict)
        self._dense: dict[tuple[int, bool], bool] = {}
        for tail in (False, True):
            self._note_sums(
                [n for n, s in enumerate(plan.streams) if self.row_by_row(s.level) and (n not in self.wide) == tail],
                tail,
            )
        self._inside = self._read_inside()

    def _mixed_blocks(self, layer: int) -> Int[np.ndarray, "stream head atom"]:
        """Copies of a layer's heads that streams hold, but for those of which all are one plain run's."""
        shape = self.plan.words.shape
        start = 1 + layer * (shape.n_heads + int(shape.has_mlp))
        stop = start + shape.n_heads
        above = [stream.classes[start:stop] for stream in self.plan.streams if stream.level >= stop]
        blocks = np.stack(above) if above else np.empty((0, shape.n_heads, len(self.plan.atoms.places)), dtype=np.int64)
        return blocks[((blocks >= 0) | (blocks != blocks[:, :1, :1])).any((1, 2))]

    def _note_sums(self, numbers: list[int], tail: bool) -> None:
        """Remember which copies streams read beside their plain run, of streams that are there at the same positions.

        Where they read many of them, all begin with one plain run, that of which the fewest copies differ, so that what
        copies write beyond it is computed once.
        """
        sums = _Sums(self.plan, numbers)
        bases = np.array([self.bases[number] for number in numbers])
        found = {base: sums.terms(base, bases == base) for base in set(bases.tolist())}
        dense = {
            base: sums.reads(base, bases == base) > DENSE * (bases == base).sum() * len(found[base]) for base in found
        }
        if any(dense.values()):
            every = {base: sums.terms(base, bases < 0) for base in {*found, REFERENCE, COUNTER}}
            base = min(sorted(every), key=lambda one: len(every[one]))
            found, dense = {base: every[base]}, {base: True}
            for number in numbers:
                self.bases[number] = base
        starts = np.array(self.parts(len(self.plan.words.nodes)))
        for base, highest in found.items():
            self._dense[base, tail] = bool(dense[base])
            for (node, one), level in sorted(highest.items()):
                start = int(starts[np.searchsorted(starts, node, "right") - 1])
                self._terms[start, base, tail][node, one] = level

    def _read_inside(self) -> set[int]:
        """Plain runs of which more than the input is read."""
        found = {*self.bases} | ({REFERENCE} if self.plan.norms == "frozen" else set())
        for stream in self.plan.streams:
            found.update(stream.classes[1:].ravel().tolist())
        for variant in self.plan.variants:
            found |= reads(variant)
        return {run for run in found if run < 0}

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
            keys |= set() if self.head_by_head else {(layer, "attn_out")}
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
        """Copies of a part, (node, class), that streams which begin with a plain run read beside it, in order."""
        return list(self._terms.get((start, base, tail), ()))

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
        return len(self.plan.atoms.places) == 1 and (self.head_by_head or layers == 0)

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
                    # Those of this level are normed and projected as well, in edge sets each for one head.
                    dense = self._dense.get((self.bases[number], number not in self.wide), False)
                    of_level = 2 if dense else 5
                    held += d * tokens(number in self.wide) * (of_level if stream.level == level else 1)
            for (start, base, tail), terms in self._terms.items():
                if self._dense[base, tail] or start < level <= max(terms.values()):
                    held += len(terms) * d * tokens(not tail)
            most = max(most, held)
        return most

    def uses(self, layer: int, block: Int[np.ndarray, "head atom"]) -> int:
        """How many streams hold exactly these copies of a layer's heads."""
        return self._blocks[layer][block.tobytes()]


def _nearest(stream: Stream) -> int:
    """The plain run that a stream is nearer to."""
    return REFERENCE if (stream.classes == REFERENCE).sum() > (stream.classes == COUNTER).sum() else COUNTER


class _Sums:
    """Which copies some streams of one kind of position hold."""

    def __init__(self, plan: Plan, numbers: list[int]) -> None:
        self.levels = np.array([plan.streams[number].level for number in numbers])
        self.classes = np.zeros((len(numbers), len(plan.words.nodes)), dtype=np.int64)
        for row, number in zip(self.classes, numbers, strict=True):
            stream = plan.streams[number]
            row[: stream.level] = stream.classes[:, 0]
        self.inside = np.arange(len(plan.words.nodes)) < self.levels[:, None]

    def reads(self, base: int, rows: Bool[np.ndarray, " stream"]) -> int:
        """How many copies that are not the plain run's they read in all."""
        return int(np.count_nonzero((self.classes[rows] != base) & self.inside[rows]))

    def terms(self, base: int, rows: Bool[np.ndarray, " stream"]) -> dict[tuple[int, int], int]:
        """Those copies, (node, class), and the highest level at which one of the streams reads each."""
        highest: dict[tuple[int, int], int] = {}
        for level in np.unique(self.levels[rows]).tolist():
            classes = self.classes[rows & (self.levels == level), :level]
            lowest = classes.min(initial=0)
            number = classes.max(initial=0) - lowest + 1
            found = np.unique((np.arange(level) * number + classes - lowest)[classes != base])
            copies = zip((found // number).tolist(), (found % number + lowest).tolist(), strict=True)
            highest |= dict.fromkeys(copies, level)
        return highest


def _needed_everywhere(plan: Plan) -> tuple[frozenset[int], frozenset[int]]:
    """Streams, and copies of nodes, that some key or value in use depends on."""
    used_streams: set[int] = set()
    used: set[int] = set()
    waiting = {one for classes in plan.final for one in classes if one >= 0}
    roots: set[int] = set()  # streams that keys and values of a copy in use read
    while waiting:
        used_streams |= waiting
        copies = {copy for one in waiting for copy in plan.streams[one].copies if copy >= 0} - used
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
        copies = {copy for one in waiting for copy in plan.streams[one].copies if copy >= 0} - wide_copies
        wide_copies |= copies
        reads = (plan.variants[copy] for copy in copies)
        waiting = {one for v in reads for one in ([v.q] if isinstance(v, HeadVariant) else [v.x]) if one >= 0} - wide
    return frozenset(wide), frozenset(wide_copies)


def _per_row(values: Int[np.ndarray, "row stream atom"]) -> int:
    """How many different values rows hold, row by row, in all."""
    return sum(len(np.unique(row)) for row in values)


def _parents(plan: Plan, wanted: list[bool]) -> list[int]:
    known = {(s.level, s.classes.tobytes()): number for number, s in enumerate(plan.streams)} if any(wanted) else {}
    levels = sorted({s.level for s in plan.streams}, reverse=True)
    found = []
    for stream, one in zip(plan.streams, wanted, strict=True):
        below = (level for level in levels if one and level < stream.level)
        numbers = (known.get((level, stream.classes[:level].tobytes()), -1) for level in below)
        found.append(next((number for number in numbers if number >= 0), -1))
    return found
