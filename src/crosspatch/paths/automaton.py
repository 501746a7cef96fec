"""Reads paths from the logits back to the input and says whether they belong to a set.

A path is a word: the position read by the logits, then for every node the position it writes to, the input it takes and
the position it reads. What can still happen depends on a *state* only, so that all copies of a node that the treeified
network would have in one state are one copy. Positions enter through the few predicates that the set names (`@S1`,
windows): an `atom` says which of them hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from crosspatch.errors import AddressError, PathError
from crosspatch.graph import ModelShape, Site, comes_before, nodes, parse_site, validate
from crosspatch.paths.language import CHANNELS, Channel, Hop, Link, Route, Step, matching, refuse, require_possible
from crosspatch.paths.pathset import EDGE_ENDS, Combined, Complement, Decohered, EdgePaths, PathSet, Pattern

State = tuple[Any, ...]
COUNTER, REFERENCE = -2, -1
"""Runs that a path may carry; further counterfactuals are COUNTER - 1, COUNTER - 2, ..."""
Position = int | str
Window = tuple[int, int]


@dataclass(frozen=True)
class Vocabulary:
    """What the sets of one evaluation speak of: nodes in order of computation, positions, windows."""

    shape: ModelShape
    nodes: tuple[Site, ...]
    positions: tuple[Position, ...]
    windows: tuple[Window, ...]


def vocabulary(sets: Sequence[PathSet | Decohered], shape: ModelShape) -> Vocabulary:
    """Everything that some sets name."""
    positions: dict[Position, None] = {}
    windows: dict[Window, None] = {}
    for one in sets:
        for leaf in one.leaves():
            for hop in leaf.route.hops if isinstance(leaf, Pattern) else ():
                for step in hop.steps:
                    if step.at is not None:
                        positions[step.at] = None
                    if step.window is not None:
                        windows[step.window] = None
    return Vocabulary(shape, tuple(nodes(shape)), tuple(positions), tuple(windows))


def reader_level(site: Site, words: Vocabulary) -> int:
    """How many of the nodes come before a reader; they are the first ones."""
    shape = words.shape
    if site.kind == "logits":
        return len(words.nodes)
    per_layer = shape.n_heads + int(shape.has_mlp)
    start = 1 + (site.layer or 0) * per_layer
    return start if site.kind == "z" or shape.parallel else start + shape.n_heads


@dataclass(frozen=True)
class Place:
    """Which of the vocabulary's positions a token is at, and which windows an offset lies in."""

    positions: frozenset[Position] = frozenset()
    windows: frozenset[Window] = frozenset()


class Automaton:
    """Steps through path sets on one model.

    `start(paths, place)` is the state of the logits reading at a place; `write(state, node, place)` the state once it
    is known which node wrote there; `read(state, node, channel, place)` the state once it is known which input of that
    node the path takes, read at which place (`windows` of the place: of the offset). `holds(state)`: the path, complete
    at the input, belongs to the set. A state says all that matters about what may still come, whichever set it began
    in.

    Raises:
        PathError: a set does not fit the model; points at the place.
    """

    def __init__(self, words: Vocabulary) -> None:
        self.words = words
        self.index = {site: i for i, site in enumerate(words.nodes)}
        self.heads = frozenset(i for site, i in self.index.items() if site.kind == "z")
        self.mlps = frozenset(i for site, i in self.index.items() if site.kind == "mlp_out")
        self.rests: list[_Rest] = []
        self._rest_of: dict[_Rest, int] = {}
        self.steps: list[tuple[Step, ...]] = [()]
        self._number_of: dict[tuple[Step, ...], int] = {(): 0}
        self.senders: list[dict[State, frozenset[int]]] = []
        self._senders_of: dict[EdgePaths, int] = {}

    def start(self, paths: PathSet | Decohered, place: Place) -> State:
        if isinstance(paths, Decohered):
            return _joined("split", [self.start(part, place) for part in (paths.kept, *paths.groups)])
        if isinstance(paths, Pattern):
            route = paths.route
            require_possible(route, self.words.shape)
            at = route.hops[-1].steps[0].at
            return ("route", frozenset({self._rest(route)} if _at(at, place) else ()))
        if isinstance(paths, EdgePaths):
            return ("edges", self._edges(paths), ("logits",))
        if isinstance(paths, Complement):
            return ("not", self.start(paths.part, place))
        assert isinstance(paths, Combined)
        return (paths.how, *(self.start(part, place) for part in paths.parts))

    def write(self, state: State, node: int, place: Place) -> State:
        match state:
            case ("route", items):
                return ("wrote", self._route_write(items, node, place))
            case ("edges", number, reader):
                inside = node in self.senders[number].get(reader, ())
                return ("edges", number, ("node", node)) if inside else _OUTSIDE
            case ("outside",):
                return _OUTSIDE
            case (how, *parts):
                return _joined(how, [self.write(part, node, place) for part in parts])
        raise AssertionError(state)

    def read(self, state: State, node: int, channel: Channel, place: Place) -> State:
        match state:
            case ("wrote", items):
                if node not in self.heads:
                    return ("route", frozenset(i for i, _ in items))
                found = (i for i, n in items if n is None or self._may_read(n, channel, place))
                return ("route", frozenset(found))
            case ("edges", number, _):
                return ("edges", number, (node, channel) if node in self.heads else (node,))
            case ("outside",):
                return _OUTSIDE
            case (how, *parts):
                return _joined(how, [self.read(part, node, channel, place) for part in parts])
        raise AssertionError(state)

    def source(self, state: State) -> int:
        """The run that a path, complete at the input, carries."""
        if state[0] != "split":
            return REFERENCE if self.holds(state) else COUNTER
        kept, *groups = state[1:]
        if self.holds(kept):
            return REFERENCE
        return next((COUNTER - 1 - i for i, group in enumerate(groups) if self.holds(group)), COUNTER)

    def holds(self, state: State) -> bool:
        match state:
            case ("wrote", items):
                return any(not self.rests[i].links and steps is not None for i, steps in items)
            case ("outside",):
                return False
            case ("edges", *_):
                return True
            case ("not", part):
                return not self.holds(part)
            case ("or", *parts):
                return any(self.holds(part) for part in parts)
            case ("and", *parts):
                return all(self.holds(part) for part in parts)
        raise AssertionError(state)

    def _rest(self, route: Route) -> int:
        """The number of what is still to come of a route: all of it but its last hop."""
        rest = _Rest(route.hops[:-1], route.links)
        if rest not in self._rest_of:
            self._rest_of[rest] = len(self.rests)
            self.rests.append(rest)
            named: dict[int, tuple[Step, ...]] = {}
            for step in rest.hops[-1].steps if rest.hops else ():
                for site in matching(step, route.text, self.words.shape):
                    named[self.index[site]] = (*named.get(self.index[site], ()), step)
            rest.named.update({node: self._kept(steps) for node, steps in named.items()})
            rest.anywhere.update(
                {node: all(step.reads_at or step.at is None for step in steps) for node, steps in named.items()}
            )
            if rest.hops:
                rest.earliest.append(min(named, default=len(self.index)))
                rest.next.append(self._rest(Route(route.text, rest.hops, rest.links[:-1])))
        return self._rest_of[rest]

    def _route_write(self, items: frozenset[int], node: int, place: Place) -> frozenset[tuple[int, Any]]:
        """Which hop the node may stand for, with the steps that name it; None: it is passed through on a link.

        Routes are dropped of which no node is left that could be the hop before: states without paths are equal.
        """
        found: set[tuple[int, Any]] = set()
        for i in items:
            rest = self.rests[i]
            if not rest.links:
                continue
            link = rest.links[-1]
            if (node in self.mlps and link != "direct") or (node in self.heads and link == "any"):
                found.add((i, None))
            steps = rest.named.get(node)
            if steps and not rest.anywhere[node]:
                steps = self._kept(tuple(step for step in self.steps[steps] if step.reads_at or _at(step.at, place)))
            if steps:
                found.add((rest.next[0], steps))
        return frozenset(item for item in found if all(first < node for first in self.rests[item[0]].earliest))

    def _may_read(self, number: int, channel: Channel, place: Place) -> bool:
        """Whether any of some steps that name a head allows this input of it."""
        return any(
            (step.channels is None or channel in step.channels)
            and (not step.reads_at or _at(step.at, place))
            and (step.window is None or step.window in place.windows)
            for step in self.steps[number]
        )

    def _kept(self, steps: tuple[Step, ...]) -> int:
        """The number of a tuple of steps, which hashes faster than they do; 0: none."""
        if steps not in self._number_of:
            self._number_of[steps] = len(self.steps)
            self.steps.append(steps)
        return self._number_of[steps]

    def edge_senders(self, paths: EdgePaths) -> dict[State, frozenset[int]]:
        """Which nodes' edges lead to each reader, `("logits",)`, `(mlp,)` or `(head, channel)`."""
        return self.senders[self._edges(paths)]

    def _edges(self, paths: EdgePaths) -> int:
        if paths not in self._senders_of:
            names = {str(site): i for site, i in self.index.items()}
            into: dict[str, list[str]] = defaultdict(list)
            for sender, receiver in paths.edges:
                into[receiver].append(sender)
            senders: dict[State, set[int]] = {}
            for receiver, found in sorted(into.items()):
                unknown = [sender for sender in found if sender not in names]
                if unknown:
                    raise _no_end(min(unknown), min(unknown), receiver, self.words.shape)
                numbers = {names[sender] for sender in found}
                for reader in _readers(self.words.nodes[max(numbers)], receiver, self.words, names):
                    senders.setdefault(reader, set()).update(numbers)
            self._senders_of[paths] = len(self.senders)
            self.senders.append({reader: frozenset(found) for reader, found in senders.items()})
        return self._senders_of[paths]


@dataclass(frozen=True)
class _Rest:
    """What is still to come of a route: hops from the input on, and the links after each of them.

    What follows from the hops: the steps that name each node, by number (`named`), whether they do at any position
    (`anywhere`), the first of those nodes and what remains after the last hop (`earliest`, `next`; none without hops).
    """

    hops: tuple[Hop, ...]
    links: tuple[Link, ...]
    named: dict[int, int] = field(default_factory=dict, compare=False, repr=False)
    anywhere: dict[int, bool] = field(default_factory=dict, compare=False, repr=False)
    earliest: list[int] = field(default_factory=list, compare=False, repr=False)
    next: list[int] = field(default_factory=list, compare=False, repr=False)


_OUTSIDE: State = ("outside",)
EMPTY: tuple[State, ...] = (_OUTSIDE, ("route", frozenset()), ("wrote", frozenset()))
"""States in which no path can come any more; compounds are made simpler by them and may be empty unnoticed."""


def _joined(how: str, parts: list[State]) -> State:
    """A compound state, made simpler where a part can no longer hold."""
    if how == "not":
        return ("not", parts[0])
    dead = [part in EMPTY for part in parts]
    if how == "split":  # the order of the groups says which counterfactual is whose
        return (
            parts[0] if all(dead[1:]) else ("split", *(_OUTSIDE if d else p for p, d in zip(parts, dead, strict=True)))
        )
    if how == "and" and any(dead):
        return _OUTSIDE
    alive = [part for part, gone in zip(parts, dead, strict=True) if not gone]
    alive = list(dict.fromkeys(alive))
    return _OUTSIDE if not alive else alive[0] if len(alive) == 1 else (how, *alive)


def _at(position: Position | None, place: Place) -> bool:
    return position is None or position in place.positions


def _readers(last: Site, receiver: str, words: Vocabulary, index: dict[str, int]) -> list[State]:
    """States of the readers that a receiver's name stands for, if the last of its senders comes before it.

    `a1.kv0.k` is every head of that group.
    """
    sender = str(last)
    if receiver == "logits":
        return [("logits",)]
    head, _, channel = receiver.rpartition(".")
    if channel in CHANNELS:
        names = [head]
        for group in range(words.shape.n_kv_heads) if words.shape.grouped and channel != "q" else ():
            if head.endswith(f".kv{group}"):
                names = [f"{head.split('.')[0]}.h{h}" for h in words.shape.heads_of(group)]
        names = [name for name in names if name in index and words.nodes[index[name]].kind == "z"]
        readers: list[State] = [(index[name], channel) for name in names]
    else:
        names = [receiver] if receiver in index and words.nodes[index[receiver]].kind == "mlp_out" else []
        readers = [(index[name],) for name in names]
    if not readers:
        raise _no_end(receiver, sender, receiver, words.shape)
    if not comes_before(last, words.nodes[index[names[0]]], words.shape):
        text = f"{sender} -> {receiver}"
        raise refuse(
            text,
            len(text) - len(receiver),
            len(text),
            f"{sender} cannot feed {receiver}: it does not come before it",
            "a sender comes before its receiver; heads of one layer do not feed each other",
        )
    return readers


def _no_end(name: str, sender: str, receiver: str, shape: ModelShape) -> PathError:
    text = f"{sender} -> {receiver}"
    start = text.rfind(name) if name == receiver else 0
    what = f"{name!r} is no end of an edge here"
    try:
        validate(parse_site(name), shape)
    except AddressError as error:
        what = error.what
    return refuse(text, start, start + len(name), what, f"an edge joins {EDGE_ENDS}")
