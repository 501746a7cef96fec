"""Sets of nodes: features and error terms at places, at all tokens or by span. Plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool

from crosspatch.errors import CircuitError
from crosspatch.graph import ALL

Errors = Literal["nodes", "kept", "removed", "stream kept"]
"""Policies for error terms: kept where they are nodes of the circuit; all kept; all replaced; those of the residual
stream kept and those of attention and MLP outputs replaced."""
STREAM = ("input", "resid_pre", "resid_mid", "resid_post")


class Node(NamedTuple):
    """A feature, or an error term (`feature` None), at a place and a span of tokens (`*`: all of them)."""

    place: str
    feature: int | None
    span: str = ALL

    def __str__(self) -> str:
        name = f"{self.place}/{'error' if self.feature is None else self.feature}"
        return name if self.span == ALL else f"{name}@{self.span}"


@dataclass(frozen=True, eq=False)
class NodeSet:
    """Some of the nodes at some places.

    Attributes:
        keep: by place, in the order of the computation: which nodes are in it, by span. Columns are features and,
            where the place has one, the error term behind them.
        has_error: by place, whether there is an error term.
        spans: names; `("*",)`: nodes mean all tokens.
        name: a label.
    """

    keep: Mapping[str, Bool[np.ndarray, "span node"]]
    has_error: Mapping[str, bool]
    spans: tuple[str, ...] = (ALL,)
    name: str = ""

    def __post_init__(self) -> None:
        for place, keep in self.keep.items():
            if keep.ndim != 2 or len(keep) != len(self.spans) or place not in self.has_error:
                raise CircuitError(f"{place} has marks of shape {keep.shape}", where="NodeSet")

    def __repr__(self) -> str:
        return f"<NodeSet {self.name!r}: {self.n_features} features and {self.n_errors} error terms>"

    def __len__(self) -> int:
        return sum(int(keep.sum()) for keep in self.keep.values())

    def __iter__(self) -> Iterator[Node]:
        for place, keep in self.keep.items():
            for column, span in zip(*np.nonzero(keep.T), strict=True):
                error = self.has_error[place] and column == keep.shape[1] - 1
                yield Node(place, None if error else int(column), self.spans[span])

    @property
    def n_errors(self) -> int:
        return sum(int(keep[:, -1].sum()) for place, keep in self.keep.items() if self.has_error[place])

    @property
    def n_features(self) -> int:
        return len(self) - self.n_errors

    def emptied(self) -> NodeSet:
        """No node, of the same places and spans."""
        return replace(self, keep={place: np.zeros_like(keep) for place, keep in self.keep.items()}, name="nothing")

    def complement(self) -> NodeSet:
        """All other nodes of the same places."""
        name = f"without {self.name}" if self.name else ""
        return replace(self, keep={place: ~keep for place, keep in self.keep.items()}, name=name)

    def at(self, places: Sequence[str]) -> NodeSet:
        """Those at some places only."""
        return replace(self, keep={place: keep for place, keep in self.keep.items() if place in places})

    def with_errors(self, policy: Errors, stream: Sequence[str] = ()) -> NodeSet:
        """Error terms kept or left out by a policy.

        Args:
            policy: see `Errors`.
            stream: places of the residual stream, for `stream kept`.

        Raises:
            CircuitError: an unknown policy.
        """
        if policy not in get_args(Errors):
            raise CircuitError(
                f"unknown policy {policy!r}", where="error terms", fix=f"use one of {', '.join(get_args(Errors))}"
            )
        if policy == "nodes":
            return self
        made = {}
        for place, keep in self.keep.items():
            made[place] = keep = keep.copy()
            if self.has_error[place]:
                keep[:, -1] = policy == "kept" or (policy == "stream kept" and place in stream)
        return replace(self, keep=made)

    def random_like(self, population: NodeSet, rng: np.random.Generator) -> NodeSet:
        """Features drawn at random, as many at every place as here; error terms stay as they are.

        Args:
            population: what is drawn from; where a place has too few, all of them.
        """
        made = {}
        for place, keep in self.keep.items():
            width = keep.shape[1] - self.has_error[place]
            pool = np.flatnonzero(population.keep[place][:, :width])
            size = int(keep[:, :width].sum())
            chosen = rng.permutation(pool)[:size]
            made[place] = drawn = keep.copy()
            drawn[:, :width] = False
            spans, columns = np.unravel_index(chosen, (len(keep), max(width, 1)))
            drawn[spans, columns] = True
        return replace(self, keep=made, name="random")
