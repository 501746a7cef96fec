"""How stable a clustering is, what explains it, and whether it is true: adjusted Rand indices, beside their nulls.

The adjusted Rand index is 1 for the same partition and 0 on average for unrelated ones, whatever their numbers of
clusters (Hubert and Arabie 1985); homogeneity is 1 if every cluster has one label, completeness if every label lies in
one cluster (Rosenberg and Hirschberg 2007). Many small clusters are homogeneous for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats
from sklearn.metrics import homogeneity_completeness_v_measure

from crosspatch.discover.clusters import Clustering, Labels
from crosspatch.discover.samples import Samples

GROUPS = 20
"""Groups of documents that intervals leave out in turn."""


def numbered(names: Sequence[Any] | np.ndarray) -> Labels:
    """Any names as numbers."""
    return np.unique(np.asarray(names), return_inverse=True)[1]


def adjusted_rand(a: Labels, b: Labels) -> float:
    """Adjusted Rand index of two partitions; 1 where chance leaves nothing else (both of one cluster, or all alone)."""

    def pairs(names: np.ndarray) -> float:
        counts = np.unique(names, return_counts=True)[1].astype(np.float64)
        return float((counts * (counts - 1)).sum() / 2)

    n = len(a)
    both, of_a, of_b = pairs(a.astype(np.int64) * (int(b.max(initial=0)) + 1) + b), pairs(a), pairs(b)
    expected = of_a * of_b / max(n * (n - 1) / 2, 1)
    most = (of_a + of_b) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def leave_out(
    statistic: Callable[[Int[np.ndarray, " sample"]], float], documents: Labels, level: float = 0.95
) -> tuple[float, float, float]:
    """A statistic of all samples with its interval by the jackknife over groups of documents.

    A bootstrap would count samples twice, which a measure of pairs takes for agreement.

    Returns:
        Value, lower and upper end (NaN with fewer than two documents).
    """
    whole = statistic(np.arange(len(documents)))
    names = np.unique(documents)
    groups = min(GROUPS, len(names))
    if groups < 2:
        return whole, float("nan"), float("nan")
    # Which group a document is in depends on its number alone.
    group = np.random.default_rng(0).permutation(np.arange(len(names)) % groups)[np.searchsorted(names, documents)]
    without = np.array([statistic(np.flatnonzero(group != g)) for g in range(groups)])
    spread = np.sqrt((groups - 1) / groups * ((without - without.mean()) ** 2).sum())
    half = float(stats.t.ppf((1 + level) / 2, groups - 1) * spread)
    return whole, whole - half, whole + half


def rand_index(a: Labels, b: Labels, documents: Labels) -> tuple[float, float, float]:
    """Adjusted Rand index of two partitions, and its interval over documents."""
    value, low, high = leave_out(lambda kept: adjusted_rand(a[kept], b[kept]), documents)
    return value, low, min(high, 1.0)


def stability(runs: Sequence[Labels], level: float = 0.95) -> tuple[float, float, float]:
    """Mean adjusted Rand index of all pairs of runs, and its interval by the jackknife over runs.

    Returns:
        Value, lower and upper end; NaN with fewer than two runs, no interval with fewer than three.
    """
    n, nan = len(runs), float("nan")
    if n < 2:
        return nan, nan, nan
    between = np.zeros((n, n))
    for i, j in combinations(range(n), 2):
        between[i, j] = between[j, i] = adjusted_rand(runs[i], runs[j])
    whole = between.sum() / (n * (n - 1))
    if n < 3:
        return float(whole), nan, nan
    without = (between.sum() - 2 * between.sum(1)) / ((n - 1) * (n - 2))
    half = stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return float(whole), float(whole - half), min(float(whole + half), 1.0)


def shuffled(labels: Labels, truth: Labels, draws: int = 200, seed: int = 0) -> tuple[float, float]:
    """Mean and 97.5 % quantile of the adjusted Rand index of clusters of the same sizes at random."""
    draw = np.random.default_rng(seed)
    found = [adjusted_rand(draw.permutation(labels), truth) for _ in range(draws)]
    return float(np.mean(found)), float(np.quantile(found, 0.975))


def histogram_vectors(samples: Samples) -> Float[np.ndarray, "sample token"]:
    """How often each token is in a context: a baseline that knows no model."""
    used = sorted({token for context in samples.contexts for token in context})
    column = {token: i for i, token in enumerate(used)}
    out = np.zeros((len(samples), len(used)), np.float32)
    for row, context in enumerate(samples.contexts):
        for token, count in Counter(context).items():
            out[row, column[token]] = count
    return out


def baselines(samples: Samples) -> dict[str, Labels]:
    """Clusterings that need no vectors: by answer, by last token, by both."""
    ends = [context[-1] for context in samples.contexts]
    pairs = [f"{end} {answer}" for end, answer in zip(ends, samples.answers.tolist(), strict=True)]
    return {
        "answer token": numbered(samples.answers),
        "last token": numbered(ends),
        "last token and answer": numbered(pairs),
    }


def comparison(
    samples: Samples, found: Mapping[str, Clustering | Labels], *, chosen: Sequence[int] | None = None
) -> pd.DataFrame:
    """Clusterings and baselines beside one another.

    Args:
        found: by name. Those without repeats have no stability.
        chosen: judge these samples only.

    Returns:
        One row each: `clusters`; `stability`, the adjusted Rand index between seeds, with its interval; `answer`, the
        index with the clustering by answer token, which says how much of it is nothing else; and where the samples have
        labels, `truth` (the index with them) with its interval, the same of shuffled clusters (`null`, and its 97.5 %
        quantile `null_high`), `homogeneity` and `completeness`.
    """
    index = np.arange(len(samples)) if chosen is None else np.asarray(chosen)
    part = samples.select(index)
    truth = None if part.labels is None else numbered(part.labels)
    answers = numbered(part.answers)
    rows = []
    for name, given in found.items():
        labels = (given.labels if isinstance(given, Clustering) else given)[index]
        runs = [labels, *(again[index] for again in given.repeats)] if isinstance(given, Clustering) else []
        row: dict[str, Any] = {"clustering": name, "clusters": len(np.unique(labels))}
        row |= dict(zip(("stability", "stability_low", "stability_high"), stability(runs), strict=True))
        row["answer"] = adjusted_rand(answers, labels)
        if truth is not None:
            row |= dict(
                zip(("truth", "truth_low", "truth_high"), rand_index(truth, labels, part.documents), strict=True)
            )
            row |= dict(zip(("null", "null_high"), shuffled(labels, truth), strict=True))
            homogeneity, completeness, _ = homogeneity_completeness_v_measure(truth, labels)
            row |= {"homogeneity": float(homogeneity), "completeness": float(completeness)}
        rows.append(row)
    return pd.DataFrame(rows)
