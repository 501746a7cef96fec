"""Candidate steps of a search: what may be added to a hypothesis or taken from it, and random hypotheses of a size.

A hypothesis is here a list of patterns that begin with `** ->` (any way in). One step *adds* `** -> N -> s`, where `s`
is the logits or the rest of a pattern from one of its nodes on, or *removes* a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crosspatch.errors import PathError
from crosspatch.graph import ModelShape, select
from crosspatch.paths.automaton import Automaton, Place, vocabulary
from crosspatch.paths.pathset import PathSet, nothing, paths

START = "** -> "


@dataclass(frozen=True)
class Step:
    """One change of a hypothesis: `add` or `remove` a pattern."""

    kind: str
    pattern: str

    def taken(self, patterns: Sequence[str]) -> list[str]:
        """The patterns after this step."""
        return [*patterns, self.pattern] if self.kind == "add" else [p for p in patterns if p != self.pattern]


def steps(
    patterns: Sequence[str], shape: ModelShape, *, nodes: str = "a*.h*, m*", positions: Sequence[str] = ()
) -> list[Step]:
    """Every one-step extension and removal of a hypothesis.

    Args:
        nodes: which parts may be added in front.
        positions: positions at which the added part may write, such as span names; none: any position.

    Raises:
        PathError: a pattern that does not begin with `** ->`.
    """
    found = [Step("remove", pattern) for pattern in patterns]
    for pattern in _extensions(patterns, shape, nodes, positions):
        if _fits(pattern, shape):
            found.append(Step("add", pattern))
    return found


def _extensions(patterns: Sequence[str], shape: ModelShape, nodes: str, positions: Sequence[str]) -> list[str]:
    """Every pattern that one step might add, those that no model of this shape has among them."""
    ends = ["logits"]
    for pattern in patterns:
        if not pattern.startswith(START):
            raise PathError(
                f"{pattern!r} does not begin with {START.strip()!r}",
                where="refine",
                fix="the loop extends patterns towards the input; begin them with '** ->'",
            )
        parts = re.split(r"\s*(->|~>)\s*", pattern.removeprefix(START).strip())
        ends += [" ".join(parts[i:]) for i in range(0, len(parts) - 2, 2) if parts[i] != "**"]
    names = [str(address).removesuffix("@*") for address in select(nodes, shape)]
    written = [f"{name}{at}" for name in names for at in [f"@{p}" for p in positions] or [""]]
    readers = [reader for end in dict.fromkeys(ends) for reader in _readers(end)]
    made = (f"{START}{name} -> {reader}" for reader in readers for name in written)
    return [pattern for pattern in made if pattern not in patterns]


def _readers(end: str) -> list[str]:
    """A head without a named input is entered by its query, key or value."""
    first, _, rest = end.partition(" ")
    name, at, position = first.partition("@")
    if not name.startswith("a") or name.rsplit(".", 1)[-1] in ("q", "k", "v"):
        return [end]
    # A position of the head is where it writes, which only its query shares.
    return [f"{name}.q{at}{position} {rest}", f"{name}.k {rest}", f"{name}.v {rest}"]


def _fits(pattern: str, shape: ModelShape) -> bool:
    one = paths(pattern)
    try:
        Automaton(vocabulary([one], shape)).start(one, Place())
    except PathError:
        return False
    return True


def hypothesis(patterns: Sequence[str]) -> PathSet:
    """The union of some patterns; no path where there are none."""
    return paths(*patterns) if patterns else nothing()


def random_hypotheses(
    shape: ModelShape, size: int, nodes: str, positions: Sequence[str], n: int, seed: int
) -> list[list[str]]:
    """Random hypotheses: as many patterns, each grown by random additions as the search grows them."""
    draw = np.random.default_rng(seed)
    drawn = []
    for _ in range(n):
        grown: list[str] = []
        while len(grown) < size:
            # Drawn again until it fits: as likely as if only those that fit were drawn from.
            some = _extensions(grown, shape, nodes, positions)
            pattern = next((p for p in map(some.__getitem__, draw.permutation(len(some))) if _fits(p, shape)), None)
            if pattern is None:
                break
            grown.append(pattern)
        drawn.append(grown)
    return drawn
