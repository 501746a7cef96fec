"""Sets of edges between chosen nodes, and what their evaluation found. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from crosspatch.errors import CircuitError
from crosspatch.features.evaluation import FeatureEvaluation
from crosspatch.features.nodes import Node
from crosspatch.results.statistics import default_min_gap, ratio_of_means

LOGITS = -1


@dataclass(frozen=True, eq=False)
class EdgeSet:
    """Some edges between the nodes of a `NodeSet`; `FeatureEdges.above` and `top` make them.

    Attributes:
        up, down: numbers of the nodes at both ends, in the order in which the set lists them; `down` -1: the logits.
        name: a label.
    """

    up: Int[np.ndarray, " edge"]
    down: Int[np.ndarray, " edge"]
    name: str = ""

    def __post_init__(self) -> None:
        if self.up.ndim != 1 or self.up.shape != self.down.shape or (len(self) and self.up.min() < 0):
            raise CircuitError(f"ends of shape {self.up.shape} and {self.down.shape}", where="EdgeSet")

    def __len__(self) -> int:
        return len(self.up)

    def __repr__(self) -> str:
        return f"<EdgeSet {self.name!r}: {len(self)} edges>"

    def matrix(self, n_nodes: int) -> Bool[np.ndarray, "up down"]:
        """Which edges are in it; the last column is the logits.

        Raises:
            CircuitError: an end that is no number of a node.
        """
        if (len(self) and max(int(self.up.max()), int(self.down.max())) >= n_nodes) or (self.down < LOGITS).any():
            raise CircuitError(
                f"an edge of a node that is not there: there are {n_nodes}",
                where=repr(self),
                fix="give the nodes that the edges were found between",
            )
        marks = np.zeros((n_nodes, n_nodes + 1), dtype=bool)
        marks[self.up, self.down] = True
        return marks

    def random_like(self, population: EdgeSet, nodes: Sequence[Node], rng: np.random.Generator) -> EdgeSet:
        """Edges drawn at random, as many between every two places as here.

        Args:
            population: what is drawn from: as a rule every edge that there may be between the nodes.
            nodes: in the order that the edges' numbers mean.
        """
        names = sorted({node.place for node in nodes})
        place = np.array([*(names.index(node.place) for node in nodes), len(names)], dtype=np.int64)  # -1 is the last

        def kinds(edges: EdgeSet) -> Int[np.ndarray, " edge"]:
            return place[edges.up] * (len(names) + 1) + place[edges.down]

        pool, wanted = kinds(population), kinds(self)
        chosen = [
            rng.permutation(np.flatnonzero(pool == kind))[:count]
            for kind, count in zip(*np.unique(wanted, return_counts=True), strict=True)
        ]
        index = np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)
        return EdgeSet(population.up[index], population.down[index], "random")


@dataclass(eq=False)
class EdgeEvaluation(FeatureEvaluation):
    """Sets of edges on the same pairs; make it with `evaluate_edges`. All values are raw metric values per pair.

    `kept` are values of the model that has a set's edges alone, `cut` of the model without them, `random_...` the same
    of random sets with as many edges between every two places; `sets` repeats the nodes, once for each set of edges.

    Attributes:
        edges: what was evaluated.
        nodes_kept: every edge between the nodes kept, which is `evaluate_nodes` of them.
    """

    edges: list[EdgeSet] = field(default_factory=list)
    nodes_kept: Float[np.ndarray, " example"] = field(default_factory=lambda: np.zeros(0))

    @property
    def frame(self) -> pd.DataFrame:
        """As of `FeatureEvaluation`, with the number of `edges`, and `node_faithfulness`: what the nodes explain with
        every edge between them."""
        table, gap = super().frame, self.gap
        table["set"] = [edges.name or f"set {i}" for i, edges in enumerate(self.edges)]
        table.insert(3, "edges", [len(edges) for edges in self.edges])
        whole = ratio_of_means((self.nodes_kept - self.empty)[None], gap, default_min_gap(gap))
        table.insert(4, "node_faithfulness", float(whole[0]))
        return table

    def __str__(self) -> str:
        whole = self.frame["node_faithfulness"][0]
        return f"{super().__str__()}\n  with every edge between the nodes faithfulness is {whole:.3f}"

    def _size(self, row: Mapping[str, Any]) -> str:
        return f"{row['edges']} edges between {super()._size(row)}"
