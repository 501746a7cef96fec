"""Sets of paths from the input to the logits, and their algebra. Needs no model: a set is meant for any that fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from crosspatch.errors import PathError
from crosspatch.paths.language import Route, parse_route

MAX_DEPTH = 100
"""Sets within sets, at most, that are read from JSON. What is done with a set goes as deep as the set."""
EDGE_ENDS = "a node such as input, a0.h1, m3, and a receiver such as a1.h5.k, m3, logits"


class PathSet(ABC):
    """A set of paths; combine with `|`, `&`, `-`, `~`.

    >>> induction = paths("input -> a0.h3.v -> a1.h5.k -> logits")
    >>> str(induction | paths("input -> a1.h5.v -> logits"))
    '(input -> a0.h3.v -> a1.h5.k -> logits) or (input -> a1.h5.v -> logits)'
    """

    def __or__(self, other: PathSet) -> PathSet:
        return _combined("or", self, other) if isinstance(other, PathSet) else NotImplemented

    def __and__(self, other: PathSet) -> PathSet:
        return _combined("and", self, other) if isinstance(other, PathSet) else NotImplemented

    def __sub__(self, other: PathSet) -> PathSet:
        return _combined("and", self, ~other) if isinstance(other, PathSet) else NotImplemented

    def __invert__(self) -> PathSet:
        return self.part if isinstance(self, Complement) else Complement(self)

    @abstractmethod
    def leaves(self) -> tuple[Pattern | EdgePaths, ...]:
        """Patterns and edge sets that this set is made of, in order."""

    @abstractmethod
    def to_json(self) -> Any:
        """JSON values; `from_json` reads them back."""


@dataclass(frozen=True)
class Pattern(PathSet):
    """The paths that a route describes."""

    route: Route

    def leaves(self) -> tuple[Pattern | EdgePaths, ...]:
        return (self,)

    def to_json(self) -> Any:
        return str(self.route)

    def __str__(self) -> str:
        return str(self.route)


@dataclass(frozen=True)
class EdgePaths(PathSet):
    """Every path that uses only these edges: what most circuit papers call a circuit."""

    edges: frozenset[tuple[str, str]]

    def leaves(self) -> tuple[Pattern | EdgePaths, ...]:
        return (self,)

    def to_json(self) -> Any:
        return {"edges": sorted(map(list, self.edges))}

    def __str__(self) -> str:
        shown = [f"{u}->{v}" for u, v in sorted(self.edges)[:6]]
        more = f", ... {len(self.edges)} in all" if len(self.edges) > 6 else ""
        return f"paths along the edges {', '.join(shown)}{more}"


@dataclass(frozen=True)
class Combined(PathSet):
    """Union (`or`) or intersection (`and`)."""

    how: str
    parts: tuple[PathSet, ...]

    def leaves(self) -> tuple[Pattern | EdgePaths, ...]:
        return tuple(leaf for part in self.parts for leaf in part.leaves())

    def to_json(self) -> Any:
        return {self.how: [part.to_json() for part in self.parts]}

    def __str__(self) -> str:
        return f" {self.how} ".join(f"({part})" for part in self.parts)


def _combined(how: str, a: PathSet, b: PathSet) -> PathSet:
    """Both as parts of one set, so that a long union is no deep one."""
    parts = (one.parts if isinstance(one, Combined) and one.how == how else (one,) for one in (a, b))
    return Combined(how, tuple(part for some in parts for part in some))


@dataclass(frozen=True)
class Complement(PathSet):
    """Every path that is not in `part`."""

    part: PathSet

    def leaves(self) -> tuple[Pattern | EdgePaths, ...]:
        return self.part.leaves()

    def to_json(self) -> Any:
        return {"not": self.part.to_json()}

    def __str__(self) -> str:
        return f"not ({self.part})"


@dataclass(frozen=True)
class Decohered:
    """A hypothesis with several counterfactuals: `kept` carries the reference, the paths of each group a counterfactual
    of the group's own (those of the first group that a path is in), all other paths the one that they share."""

    kept: PathSet
    groups: tuple[PathSet, ...]

    def leaves(self) -> tuple[Pattern | EdgePaths, ...]:
        """Patterns and edge sets that this is made of."""
        return tuple(leaf for part in (self.kept, *self.groups) for leaf in part.leaves())


def paths(*patterns: str) -> PathSet:
    """The union of path patterns; see `paths.language` for how they are written.

    Raises:
        PathError: a pattern that cannot be read; points at the place.
    """
    if not patterns:
        raise PathError("no pattern was given", where="paths", fix="name at least one, or use nothing()")
    return union(Pattern(parse_route(text.strip())) for text in patterns)


def everything() -> PathSet:
    """All paths."""
    return paths("input -> ** -> logits")


def nothing() -> PathSet:
    """No path."""
    return ~everything()


def via(*names: str) -> PathSet:
    """Paths through all of these nodes, in this order (a name may be a glob or `{a, b}`)."""
    return paths(" -> ** -> ".join(("input", *names, "logits")))


def avoiding(*names: str) -> PathSet:
    """Paths through none of these nodes."""
    return ~union(via(name) for name in names)


def from_edges(edges: Iterable[tuple[str, str]]) -> PathSet:
    """Every path along these edges only.

    Args:
        edges: (sender, receiver), e.g. `("a0.h3", "a1.h5.k")`, `("input", "a0.h3.v")`, `("m2", "logits")`. The position
            is kept along an edge; inside a head it may change.

    Raises:
        PathError: no edges, or something that is no pair of names.
    """
    listed = list(edges)
    wrong = [edge for edge in listed if not (isinstance(edge, (tuple, list)) and len(edge) == 2)]
    if wrong or not listed:
        what = f"{wrong[0]!r:.60} is no edge" if wrong else "no edges were given"
        raise PathError(what, where="from_edges", fix=f"give pairs of {EDGE_ENDS}")
    return EdgePaths(frozenset((str(u), str(v)) for u, v in listed))


def union(sets: Iterable[PathSet]) -> PathSet:
    """The union of some sets, or no path where there are none."""
    parts = tuple(sets)
    return nothing() if not parts else parts[0] if len(parts) == 1 else Combined("or", parts)


def from_json(value: Any, where: str = "path set") -> PathSet:
    """Read what `PathSet.to_json` made.

    Raises:
        PathError: anything else, or sets within sets more than `MAX_DEPTH` deep.
    """
    return _read(value, where, 0)


def _read(value: Any, where: str, depth: int) -> PathSet:
    if depth > MAX_DEPTH:
        raise PathError(
            f"sets within sets, more than {MAX_DEPTH} deep",
            where=where,
            fix='write a union or intersection as one list, {"or": [...]}, and no "not" of a "not"',
        )
    if isinstance(value, str):
        return paths(value)
    if isinstance(value, dict) and len(value) == 1:
        (how, inside), *_ = value.items()
        if how == "not":
            return ~_read(inside, where, depth + 1)
        if how in ("or", "and") and isinstance(inside, list) and inside:
            parts = [_read(part, where, depth + 1) for part in inside]
            return parts[0] if len(parts) == 1 else Combined(how, tuple(parts))
        if how == "edges" and isinstance(inside, list) and all(_is_edge(edge) for edge in inside):
            return from_edges([tuple(edge) for edge in inside])
    raise PathError(
        f"{value!r:.80} is no set of paths",
        where=where,
        fix='use a pattern, {"or": [...]}, {"and": [...]}, {"not": ...} or {"edges": [["a0.h1", "logits"]]}',
    )


def _is_edge(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(end, str) for end in value)


def intersection(sets: Sequence[PathSet]) -> PathSet:
    """The intersection of some sets, or all paths where there are none."""
    return reduce(lambda a, b: a & b, sets) if sets else everything()
