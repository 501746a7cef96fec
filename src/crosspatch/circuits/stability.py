"""Would the same circuit be found on other pairs? Re-selection on resampled pairs, against what noise would give.

A resample shares most of its pairs with every other, so that even noise is selected again and again: the agreement of
resamples means nothing until it is compared with that of scores without a signal, resampled in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.random import random_like
from crosspatch.circuits.ranking import checked_scores
from crosspatch.circuits.stored import Stored
from crosspatch.errors import CircuitError
from crosspatch.graph import ModelShape
from crosspatch.results.statistics import benjamini_hochberg, flip_units, means, resampler

Select = Callable[[Float[np.ndarray, " edge"]], Circuit]
CORE = 0.95
"""Edges in at least this share of resamples are the core."""
NULLS = ("sign-flipped", "permuted")
_NULL_BOOT = 6  # resamples of each data set without a signal; the mean over pairs of resamples has no bias


@dataclass(eq=False)
class Stability(Stored):
    """How much circuits that were selected on resampled pairs have in common.

    Attributes:
        circuit: selected on all pairs.
        often: share of the resamples whose circuit has the edge, by number of edge.
        edges, nodes: Jaccard index of the circuits of every two resamples.
        null_edges, null_nodes: mean Jaccard index on data without a signal, for each kind of `NULLS`.
        random_edges, random_nodes: of every two random connected circuits of the same size.
        methodology: what was done.
    """

    dims: ClassVar = {
        "often": ("edge",),
        "edges": ("pair",),
        "nodes": ("pair",),
        "null_edges": ("kind", "null"),
        "null_nodes": ("kind", "null"),
        "random_edges": ("random",),
        "random_nodes": ("random",),
    }

    circuit: Circuit
    often: Float[np.ndarray, " edge"]
    edges: Float[np.ndarray, " pair"]
    nodes: Float[np.ndarray, " pair"]
    null_edges: Float[np.ndarray, "kind null"]
    null_nodes: Float[np.ndarray, "kind null"]
    random_edges: Float[np.ndarray, " random"]
    random_nodes: Float[np.ndarray, " random"]
    methodology: dict[str, Any] = field(default_factory=dict)

    @property
    def core(self) -> Circuit:
        """The edges of the circuit that are in at least `CORE` of the resamples."""
        keep = self.circuit.table.matrix(self.often >= CORE, False)
        return Circuit(self.circuit.shape, keep & self.circuit.any_span().keep, name="core")

    @property
    def frame(self) -> pd.DataFrame:
        """For edges and nodes: mean Jaccard index, the range of 95 % of all pairs of resamples, and for each null its
        mean, p = P(null at least as stable) and the corrected q (over the four tests). Two resamples that both give an
        empty circuit are left out: NaN where all do."""
        rows = []
        for of in ("edges", "nodes"):
            observed = getattr(self, of)
            mean = _mean(observed)
            known = observed[~np.isnan(observed)]
            low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
            row: dict[str, Any] = {"of": of, "jaccard": mean, "low": low, "high": high}
            for kind, null in zip(NULLS, getattr(self, f"null_{of}"), strict=True):
                null = null[~np.isnan(null)]
                row[f"null_{kind}"] = _mean(null)
                reached = (null >= mean - 1e-12).sum()
                row[f"p_{kind}"] = (1 + reached) / (1 + len(null)) if len(null) and not np.isnan(mean) else np.nan
            row["random"] = _mean(getattr(self, f"random_{of}"))
            rows.append(row)
        table = pd.DataFrame(rows)
        names = [f"p_{kind}" for kind in NULLS]
        q = benjamini_hochberg(table[names].to_numpy(float).ravel()).reshape(len(table), -1)
        for i, kind in enumerate(NULLS):
            table[f"q_{kind}"] = q[:, i]
        return table

    @property
    def stable(self) -> bool:
        """Whether the edges agree more than under both nulls (corrected p at most 0.05)."""
        row = self.frame.iloc[0]
        return bool(all(row[f"q_{kind}"] <= 0.05 for kind in NULLS))

    def __str__(self) -> str:
        about, lines = self.methodology, []
        for row in self.frame.to_dict("records"):
            nulls = ", ".join(f"{kind} {row[f'null_{kind}']:.2f} (q = {row[f'q_{kind}']:.2g})" for kind in NULLS)
            lines.append(
                f"  {row['of']}: mean Jaccard {row['jaccard']:.2f}, pairs of resamples {row['low']:.2f} to "
                f"{row['high']:.2f}; without a signal: {nulls}; random circuits {row['random']:.2f}"
            )
        core = self.core.n_edges
        lines.append(f"  {core:,} of {self.circuit.n_edges:,} edges are in {CORE:.0%} of the resamples")
        word = "more stable than noise" if self.stable else "not shown to be more stable than noise"
        return "\n".join(
            [f"{self.circuit.name or 'circuit'}: {word}, {about['n_boot']} resamples of {about['unit']}", *lines]
        )


def stability(
    scores: Float[np.ndarray, "example edge"],
    select: Select,
    shape: ModelShape,
    *,
    clusters: Sequence[str] | None = None,
    n_boot: int = 30,
    n_null: int = 39,
    seed: int = 0,
) -> Stability:
    """Select a circuit again on resampled pairs, from scores that are already there per pair.

    >>> stability(scores, lambda s: select.top_n(s, shape, 200, absolute=True), shape)  # doctest: +SKIP

    Two nulls, each resampled and selected in the same way. `sign-flipped`: the scores of every pair are multiplied by
    +1 or -1 at random (one sign for all edges of a pair; of a cluster where there are six of them): edges keep their
    sizes and their ties to one another, but none works in a consistent direction. `permuted`: the scores of every pair
    are exchanged among the edges at random: no edge is special. The first is the harder one: edges that vary much
    (those into the logits) come back in it.

    Args:
        scores: `[example, edge]`, by number of edge; their mean over a resample is what is selected from. Not absolute
            values: a sign that alternates between pairs must be able to cancel.
        select: mean scores -> circuit.
        clusters: what is resampled; as a rule the template.
        n_boot: resamples.
        n_null: data sets without a signal, of each kind; the smallest p-value is 1 / (1 + n_null).
        seed: of all draws.

    Raises:
        CircuitError: fewer than two examples or resamples, or scores that do not fit the model.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or len(scores) < 2 or n_boot < 2:
        what = f"scores of shape {scores.shape}, {n_boot} resamples"
        raise CircuitError(what, where="stability", fix="give scores [example, edge] and at least 2 of each")
    checked_scores(scores[0], shape)
    scores, clusters = _ordered(scores, clusters)
    scored = ~np.isnan(scores).any(0)
    sampler = resampler(len(scores), clusters, draws=n_boot, seed=seed)
    found = select(scores.mean(0))
    resamples = _select(scores, sampler.weights, select)
    nulls: dict[str, list[tuple[float, float]]] = {kind: [] for kind in NULLS}
    units = flip_units(len(scores), clusters)
    for i in range(n_null):
        draw = np.random.default_rng([seed, i])
        weights = resampler(len(scores), clusters, draws=_NULL_BOOT, seed=seed + 1 + i).weights
        signs = draw.choice([-1.0, 1.0], size=units.max() + 1)[units]
        exchanged = scores.copy()
        exchanged[:, scored] = draw.permuted(scores[:, scored], axis=1)
        for kind, data in zip(NULLS, (scores * signs[:, None], exchanged), strict=True):
            chosen = _select(data, weights, select)
            nulls[kind].append((_mean(jaccards(_edges(chosen))), _mean(jaccards(_nodes(chosen)))))
    drawn = random_like(found, _NULL_BOOT, seed=seed)
    null = np.array([nulls[kind] for kind in NULLS]).reshape(len(NULLS), n_null, 2)
    return Stability(
        found,
        _edges(resamples).mean(0),
        jaccards(_edges(resamples)),
        jaccards(_nodes(resamples)),
        null[..., 0],
        null[..., 1],
        jaccards(_edges(drawn)),
        jaccards(_nodes(drawn)),
        {
            "n_boot": n_boot,
            "n_null": n_null,
            "n_pairs": len(scores),
            "unit": sampler.unit,
            "n_units": sampler.n_units,
            "seed": seed,
            "selection": dict(found.origin),
        },
    )


def jaccards(marks: Bool[np.ndarray, "circuit item"]) -> Float[np.ndarray, " pair"]:
    """Intersection over union of every two rows; NaN for two empty ones, which agree about nothing."""
    counts = marks.astype(np.float32)
    both = counts @ counts.T
    size = counts.sum(1)
    either = size[:, None] + size[None] - both
    upper = np.triu_indices(len(marks), 1)
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)[upper].astype(np.float64)


def _ordered(
    scores: Float[np.ndarray, "example edge"], clusters: Sequence[str] | None
) -> tuple[Float[np.ndarray, "example edge"], list[str] | None]:
    """Examples in an order of their own (along a fixed direction), so that draws do not depend on how they came."""
    along = np.nan_to_num(scores) @ np.random.default_rng(0).normal(size=scores.shape[1])
    order = np.argsort(along, kind="stable")
    return scores[order], None if clusters is None else [clusters[i] for i in order]


def _mean(values: Float[np.ndarray, " value"]) -> float:
    return float(means(values[None])[0]) if len(values) else float("nan")


def _select(
    scores: Float[np.ndarray, "example edge"], weights: Float[np.ndarray, "draw example"], select: Select
) -> list[Circuit]:
    return [select(mean) for mean in weights @ scores / weights.sum(1, keepdims=True)]


def _edges(circuits: Sequence[Circuit]) -> Bool[np.ndarray, "circuit edge"]:
    return np.array([c.any_span().flat for c in circuits])


def _nodes(circuits: Sequence[Circuit]) -> Bool[np.ndarray, "circuit sender"]:
    return np.array([c.node_mask for c in circuits])
