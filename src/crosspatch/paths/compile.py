"""From path sets to the copies of nodes that have to be computed.

Treeify gives every path its own copy of every node on it. A copy is determined by its node and by which of the paths
into it are important (the *residual hypothesis*), so equal ones are one. Copies that no important path reaches have the
counterfactual run's value, copies that only important paths reach the reference run's; both are known. What is left is
a *variant*. The class of a copy is the number of its variant, or that of the plain run (negative) whose value it has.
With an edge set every node has one variant at most (two streams: the other is the counterfactual run).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Int

from crosspatch.paths.automaton import COUNTER, REFERENCE, Automaton, Place, State, Vocabulary, reader_level
from crosspatch.paths.language import CHANNELS
from crosspatch.paths.pathset import Complement, Decohered, EdgePaths, PathSet

NORMS = {
    "recomputed": "norms recomputed on the mixed input",
    "frozen": "norms of mixed inputs frozen at the scale of the reference run",
}


@dataclass(frozen=True)
class Atoms:
    """The kinds of position, and of offset between a position written and one read, that the sets tell apart."""

    places: tuple[frozenset[int | str], ...]
    offsets: tuple[frozenset[tuple[int, int]], ...]


@dataclass(frozen=True, eq=False)
class Stream:
    """What one reader finds in the residual stream: the class of every sender's copy, by kind of position."""

    level: int
    classes: Int[np.ndarray, "node atom"]

    @cached_property
    def copies(self) -> frozenset[int]:
        """The classes that occur."""
        return frozenset(self.classes.ravel().tolist())


@dataclass(frozen=True)
class HeadVariant:
    """A copy of a head: the streams (classes) that its query, keys and values read.

    Copies that write to different kinds of position are different ones, so that the query needs no table.
    """

    node: int
    q: int
    k: tuple[tuple[int, ...], ...]  # [atom][offset]
    v: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class MlpVariant:
    """A copy of an MLP: the stream that it reads."""

    node: int
    x: int


@dataclass
class Plan:
    """Everything to compute for some path sets.

    Attributes:
        words, atoms: vocabulary and kinds of positions.
        streams: residual streams that are read, by number.
        variants: for each node its copies, by number; numbers count over all nodes.
        final: for each set the stream that the logits read, by kind of position.
        norms: whether readers of mixed streams recompute their norm's scale, or take the reference run's.
    """

    words: Vocabulary
    atoms: Atoms
    streams: list[Stream] = field(default_factory=list)
    variants: list[HeadVariant | MlpVariant] = field(default_factory=list)
    final: list[tuple[int, ...]] = field(default_factory=list)
    norms: str = "recomputed"

    @property
    def method(self) -> str:
        """Which of the named special cases this is."""
        if not self.variants:
            return "two plain runs"
        if len(self.atoms.offsets) > 1:
            return "windows in closed form"
        counts = np.bincount([variant.node for variant in self.variants])
        return "two streams" if len(self.final) == 1 and counts.max() == 1 else "memoised"

    @property
    def node_evaluations(self) -> int:
        """Copies of nodes that are computed besides the two plain runs."""
        return len(self.variants)

    def describe(self) -> str:
        """One line: how the sets will be evaluated and what it costs."""
        n = len(self.words.nodes) - 1
        return (
            f"{self.method}: {len(self.variants)} copies of {n} nodes besides the two plain runs "
            f"({len(self.variants) / n:.2f} forward passes' worth of nodes), {len(self.final)} path set"
            f"{'s' if len(self.final) != 1 else ''}; {NORMS[self.norms]}"
        )


def compile_paths(
    sets: Sequence[PathSet | Decohered], words: Vocabulary, atoms: Atoms, anew: Collection[int] = ()
) -> Plan:
    """Find the copies of nodes that some path sets need, each once.

    Args:
        anew: numbers of sets whose copies with the reference's value are computed all the same, to see the rounding.

    Raises:
        PathError: a set does not fit the model.
    """
    return _Compiler(words, atoms).run(sets, anew)


class _Compiler:
    def __init__(self, words: Vocabulary, atoms: Atoms) -> None:
        self.plan = Plan(words, atoms)
        self.automaton = Automaton(words)
        self.levels = [reader_level(site, words) if site.kind != "input" else 0 for site in words.nodes]
        self.writing = [Place(names) for names in atoms.places]
        zero = next((o for o in atoms.offsets if _contains_zero(o, words)), atoms.offsets[0])
        self.querying = [Place(names, zero) for names in atoms.places]
        self.reading = [[Place(names, offsets) for offsets in atoms.offsets] for names in atoms.places]
        self.anew = False
        self.classes_of: dict[tuple[State, bool], list[tuple[int, ...]]] = {}  # [node][atom], as far as asked for
        self.stream_of: dict[tuple[int, State, bool], int] = {}
        self.node_of: dict[tuple[int, State, bool], tuple[int, ...]] = {}
        self.number: dict[tuple[int, bytes] | HeadVariant | MlpVariant, int] = {}

    def run(self, sets: Sequence[PathSet | Decohered], anew: Collection[int]) -> Plan:
        level = len(self.plan.words.nodes)
        for number, paths in enumerate(sets):
            self.anew = number in anew
            inside, part = (COUNTER, paths.part) if isinstance(paths, Complement) else (REFERENCE, paths)
            if isinstance(part, EdgePaths) and len(self.writing) == len(self.plan.atoms.offsets) == 1:
                self.plan.final.append((self.edge_set(part, inside),))
                continue
            starts = [self.automaton.start(paths, place) for place in self.writing]
            self.plan.final.append(tuple(self.plain(self.stream(level, s), a) for a, s in enumerate(starts)))
        return _pruned(self.plan)

    def edge_set(self, paths: EdgePaths, inside: int) -> int:
        """The class of the stream that the logits read; paths along the edges carry one run, all others another.

        A node has one state in which a path may still come, so that one walk up the nodes finds what `stream` would.
        """
        outside = COUNTER if inside == REFERENCE else REFERENCE
        senders = self.automaton.edge_senders(paths)
        nodes = self.plan.words.nodes
        of = np.full((len(nodes), 1), outside)

        def stream(level: int, reader: State) -> int:
            found = np.full((level, 1), outside)
            chosen = np.fromiter(senders.get(reader, ()), dtype=np.int64)
            found[chosen] = of[chosen]
            return self._stream_number(level, found)

        for node, site in enumerate(nodes):
            level = self.levels[node]
            if site.kind == "input":
                of[node] = inside
            elif site.kind == "mlp_out":
                x = stream(level, (node,))
                of[node] = self._variant(MlpVariant(node, x), {x})
            else:
                q, k, v = (stream(level, (node, channel)) for channel in CHANNELS)
                of[node] = self._variant(HeadVariant(node, q, ((k,),), ((v,),)), {q, k, v})
        return stream(len(nodes), ("logits",))

    def stream(self, level: int, state: State) -> int:
        """The class of the stream that a reader in some state finds."""
        key = (level, state, self.anew)
        if key not in self.stream_of:
            rows = self.classes_of.setdefault((state, self.anew), [])
            while len(rows) < level:  # readers further up go on where one below stopped
                node = len(rows)
                wrote = (self.automaton.write(state, node, place) for place in self.writing)
                rows.append(tuple(self.node(node, after)[atom] for atom, after in enumerate(wrote)))
            self.stream_of[key] = self._stream_number(level, np.array(rows[:level], dtype=np.int64))
        return self.stream_of[key]

    def plain(self, stream: int, atom: int) -> int:
        """The plain run that a stream equals at one kind of position, or its own class."""
        if stream < 0:
            return stream
        if len(self.writing) == 1 and not self.anew:  # it would have been that run's number
            return stream
        run = self._one_run(self.plan.streams[stream].classes[:, atom])
        return stream if run is None else run

    def _one_run(self, classes: Int[np.ndarray, " copy"]) -> int | None:
        """The plain run that all of some copies have the value of, if there is one that may stand for them."""
        run = int(classes.flat[0])
        whole = run < 0 and (classes == run).all() and not (run == REFERENCE and self.anew)
        return run if whole else None

    def _stream_number(self, level: int, classes: Int[np.ndarray, "node atom"]) -> int:
        run = self._one_run(classes)
        if run is not None:
            return run
        signature = (level, classes.tobytes())
        if signature not in self.number:
            self.number[signature] = len(self.plan.streams)
            self.plan.streams.append(Stream(level, classes))
        return self.number[signature]

    def node(self, node: int, state: State) -> tuple[int, ...]:
        """The class of a node's copy, by the kind of position that it writes to."""
        key = (node, state, self.anew)
        if key not in self.node_of:
            self.node_of[key] = self._node(node, state)
        return self.node_of[key]

    def _node(self, node: int, state: State) -> tuple[int, ...]:
        level, kind = self.levels[node], self.plan.words.nodes[node].kind
        places = range(len(self.writing))
        if kind == "input":
            return (self.automaton.source(state),) * len(places)
        q = [self.stream(level, self.automaton.read(state, node, "q", self.querying[a])) for a in places]
        if kind == "mlp_out":
            return tuple(self._variant(MlpVariant(node, q[a]), {self.plain(q[a], a)}) for a in places)
        k, v = (
            tuple(
                tuple(self.stream(level, self.automaton.read(state, node, channel, place)) for place in row)
                for row in self.reading
            )
            for channel in CHANNELS[1:]
        )
        inside = {self.plain(one, a) for rows in (k, v) for a, row in enumerate(rows) for one in row}
        return tuple(self._variant(HeadVariant(node, q[a], k, v), {self.plain(q[a], a), *inside}) for a in places)

    def _variant(self, variant: HeadVariant | MlpVariant, found: set[int]) -> int:
        """The class of a copy, given which plain runs or streams it really reads."""
        if len(found) == 1 and min(found) < 0:
            return found.pop()
        if variant not in self.number:
            self.number[variant] = len(self.plan.variants)
            self.plan.variants.append(variant)
        return self.number[variant]


def _pruned(plan: Plan) -> Plan:
    """The plan without streams and copies that turned out to be read nowhere."""
    streams: dict[int, int] = {}
    variants: dict[int, int] = {}
    waiting = [one for classes in plan.final for one in classes]
    while waiting:
        stream = waiting.pop()
        if stream < 0 or stream in streams:
            continue
        streams[stream] = 0
        for number in {one for one in plan.streams[stream].copies if one >= 0} - {*variants}:
            variants[number] = 0
            waiting += reads(plan.variants[number])
    for kept in (streams, variants):
        kept |= {old: new for new, old in enumerate(sorted(kept))}
    renumbered = np.zeros(len(plan.variants), dtype=np.int64)
    renumbered[list(variants)] = list(variants.values())

    def renumber(classes: Int[np.ndarray, "node atom"]) -> Int[np.ndarray, "node atom"]:
        found = classes.copy()  # plain runs keep their numbers
        found[classes >= 0] = renumbered[classes[classes >= 0]]
        return found

    return Plan(
        plan.words,
        plan.atoms,
        [Stream(one.level, renumber(one.classes)) for number, one in enumerate(plan.streams) if number in streams],
        [_rewired(one, streams) for number, one in enumerate(plan.variants) if number in variants],
        [tuple(streams.get(one, one) for one in classes) for classes in plan.final],
    )


def reads(variant: HeadVariant | MlpVariant) -> set[int]:
    """The streams, or plain runs, that a copy reads."""
    if isinstance(variant, MlpVariant):
        return {variant.x}
    return {variant.q, *(one for rows in (variant.k, variant.v) for row in rows for one in row)}


def _rewired(variant: HeadVariant | MlpVariant, streams: dict[int, int]) -> HeadVariant | MlpVariant:
    if isinstance(variant, MlpVariant):
        return MlpVariant(variant.node, streams[variant.x])
    k, v = (tuple(tuple(streams.get(one, one) for one in row) for row in rows) for rows in (variant.k, variant.v))
    return HeadVariant(variant.node, streams.get(variant.q, variant.q), k, v)


def _contains_zero(windows: frozenset[tuple[int, int]], words: Vocabulary) -> bool:
    return all((window in windows) == (window[0] <= 0 <= window[1]) for window in words.windows)
