"""Direct effects between nodes, as they were found. Plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from crosspatch.errors import CircuitError
from crosspatch.features.edge_sets import LOGITS, EdgeSet
from crosspatch.features.nodes import Node
from crosspatch.results.statistics import bootstrap_mean, resampler


@dataclass(eq=False)
class FeatureEdges:
    """Edges between chosen nodes; make it with `feature_edges`.

    Attributes:
        nodes: which nodes.
        up, down: numbers of the nodes at both ends of each edge; `down` -1: the logits.
        values: effect of each example.
        clusters: what intervals resample.
        pairs: digests of the pairs.
        origin: JSON values: how they were found.
    """

    nodes: list[Node]
    up: Int[np.ndarray, " edge"]
    down: Int[np.ndarray, " edge"]
    values: Float[np.ndarray, "example edge"]
    clusters: list[str]
    pairs: list[str]
    origin: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.up)

    def __iter__(self) -> Iterator[tuple[Node, Node | None, float]]:
        """(sender, receiver or None for the logits, mean effect)."""
        for u, d, value in zip(self.up, self.down, self.values.mean(0), strict=True):
            yield self.nodes[u], None if d == LOGITS else self.nodes[d], float(value)

    def above(self, threshold: float) -> EdgeSet:
        """Edges whose mean effect is larger than a threshold in absolute value (the paper's T_E)."""
        kept = np.abs(self.values.mean(0)) > threshold
        return EdgeSet(self.up[kept], self.down[kept], f"above {threshold:g}")

    def top(self, n: int) -> EdgeSet:
        """The n edges of largest absolute mean effect; of equal ones those listed first. Never one without effect.

        Raises:
            CircuitError: a negative number.
        """
        if n < 0:
            raise CircuitError(f"{n} edges", where="FeatureEdges.top", fix="give a number of edges")
        size = np.abs(self.values.mean(0))
        best = np.argsort(-size, kind="stable")[:n]
        best = np.sort(best[size[best] > 0])
        return EdgeSet(self.up[best], self.down[best], f"top {n}")

    def frame(self, threshold: float = 0.0, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """Edges whose mean effect is larger than a threshold in absolute value (the paper's T_E), the largest first,
        with intervals over resampled clusters of pairs."""
        mean = self.values.mean(0)
        kept = np.flatnonzero(np.abs(mean) > threshold)
        kept = kept[np.argsort(-np.abs(mean[kept]), kind="stable")]
        sampler = resampler(len(self.values), self.clusters, draws=draws, seed=seed)
        ends = bootstrap_mean(self.values[:, kept].T, sampler)
        names = [str(node) for node in self.nodes] + ["logits"]  # number -1 is the last
        return pd.DataFrame(
            {
                "from": [names[u] for u in self.up[kept]],
                "to": [names[d] for d in self.down[kept]],
                "effect": mean[kept],
                "low": ends.low,
                "high": ends.high,
            }
        )
