"""Samples into clusters: spectral clustering on angles between vectors, or spherical k-means where there are too many.

Spectral clustering works on the similarity 1 - arccos(C) / pi, C the cosine, and needs all pairs (Michaud et al. 2023,
arXiv 2303.13506; Marks et al. 2025, section 5). Spherical k-means (Dhillon and Modha 2001) looks at one chunk of
vectors at a time. Vectors of length 0 are at right angles to all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from crosspatch.discover.clusters import Clustering, Labels
from crosspatch.errors import TaskError

Method = Literal["auto", "spectral", "kmeans"]
MOST_SPECTRAL = 10_000
"""Samples up to which all pairs are compared."""
MOST_WHOLE = 50_000
"""Samples up to which every step of k-means looks at all; beyond, at a random batch."""
ROWS = 4096
WHOLE_MIB = 1024
"""Vectors up to this size are kept in memory, others read chunk by chunk."""
LEAST = 5
"""Different contexts that a cluster needs to count, where the number of clusters is to be chosen."""


def cluster(
    values: Float[np.ndarray, "sample entry"],
    k: int | None = None,
    *,
    method: Method = "auto",
    contexts: Sequence[object] | None = None,
    least: int = LEAST,
    seed: int = 0,
    repeats: int = 4,
    device: str | torch.device = "cpu",
) -> Clustering:
    """Cluster vectors.

    Args:
        values: one vector per sample, as `sample_vectors` makes them.
        k: number of clusters; None: the one with the most clusters of at least `least` different contexts (see
            `choose_k`).
        method: `spectral`, `kmeans`, or `auto`: spectral up to `MOST_SPECTRAL` samples.
        contexts: anything that is equal for samples of the same context; None: all differ.
        least: see k. The paper's is 2; from fewer contexts than that no circuit is found and tested.
        seed: of the starting points; other seeds follow it for `repeats`.
        repeats: further runs, for stability.
        device: where k-means multiplies.

    Raises:
        TaskError: fewer than two samples, more clusters than samples, an unknown method, vectors that are not finite.
    """
    n = len(values)
    if method not in get_args(Method):
        raise TaskError(f"method={method!r}", where="cluster", fix=f"use one of {', '.join(get_args(Method))}")
    if n < 2 or (k is not None and not 1 <= k <= n):
        raise TaskError(f"{k} clusters of {n} samples", where="cluster", fix="give more samples, or fewer clusters")
    used = method if method != "auto" else "spectral" if n <= MOST_SPECTRAL else "kmeans"
    runner = _Spectral(values) if used == "spectral" else _KMeans(values, device)
    about: dict[str, Any] = {"method": used, "samples": n, "seed": seed, "repeats": repeats}
    if k is None:
        k, tried = choose_k(runner, n, contexts, least, seed)
        about["chosen"] = {"rule": f"most clusters of {least} or more contexts", "tried": tried}
    labels = [ordered(runner.run(k, seed + i)) for i in range(1 + repeats)]
    return Clustering(labels[0], labels[1:], {**about, "k": k})


def choose_k(
    runner: _Spectral | _KMeans, n: int, contexts: Sequence[object] | None, least: int, seed: int
) -> tuple[int, list[dict[str, int]]]:
    """The number of clusters of which most hold at least `least` different contexts, among some from 2 to n / 3.

    Returns:
        It, and what was tried. Of equals the smallest.
    """
    grid = sorted({round(float(k)) for k in np.geomspace(2, max(2, n // 3), 10)})
    tried = [{"k": k, "clusters": _large(runner.run(k, seed, 1), contexts, least)} for k in grid]
    best = max(tried, key=lambda row: (row["clusters"], -row["k"]))
    return best["k"], tried


def _large(labels: Labels, contexts: Sequence[object] | None, least: int) -> int:
    """Clusters with at least so many different contexts."""
    names = range(len(labels)) if contexts is None else contexts
    pairs = set(zip(labels.tolist(), names, strict=True))
    counts = np.bincount([label for label, _ in pairs])
    return int((counts >= least).sum())


def ordered(labels: Labels) -> Labels:
    """The same clusters, numbered from the largest; of equals the one with the first sample."""
    names, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(names), dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(names))
    return rank[inverse]


def unit(values: Float[np.ndarray, "sample entry"]) -> Float[np.ndarray, "sample entry"]:
    """Vectors of length 1; those of length 0 as they are.

    Raises:
        TaskError: entries that are not finite.
    """
    # Gradients of confident answers are tiny: their squares would vanish in single precision.
    biggest = np.abs(values).max(axis=1, keepdims=True)
    if not np.isfinite(biggest).all():
        bad = int(np.flatnonzero(~np.isfinite(biggest[:, 0]))[0])
        raise TaskError(f"the vector of sample {bad} is not finite", where="vectors", fix="use float32 for the model")
    scaled = np.asarray(values, dtype=np.float32) / np.where(biggest > 0, biggest, 1).astype(np.float32)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(norms > 0, norms, 1)


def angular_similarity(values: Float[np.ndarray, "sample entry"]) -> Float[np.ndarray, "sample sample"]:
    """1 - arccos(cosine) / pi: 1 for the same direction, 1/2 at right angles, 0 for the opposite."""
    x = unit(values)
    similarity = 1 - np.arccos(np.clip(x @ x.T, -1, 1)) / np.pi
    np.fill_diagonal(similarity, 1)
    return similarity


def spectral_space(similarity: Float[np.ndarray, "sample sample"], k: int) -> Float[np.ndarray, "sample k"]:
    """The k leading eigenvectors of the normalised similarity, scaled as normalised cuts are (von Luxburg 2007)."""
    from scipy.linalg import eigh
    from scipy.sparse.linalg import eigsh

    n = len(similarity)
    own = similarity.astype(np.float64)
    np.fill_diagonal(own, 0)  # as scikit-learn's Laplacian
    root = np.sqrt(own.sum(1))
    root[root == 0] = 1
    own /= root[:, None]
    own /= root
    if k < n // 8:
        start = np.random.default_rng(0).uniform(-1, 1, n)
        found, vectors = eigsh(own, k=k, which="LA", v0=start)
    else:
        found, vectors = eigh(own, subset_by_index=[n - k, n - 1])
    vectors = vectors[:, np.argsort(-found, kind="stable")]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(k)])
    return vectors * signs / root[:, None]


class _Spectral:
    """Spectral clustering; the eigenvectors are found once, for all numbers of clusters and seeds."""

    def __init__(self, values: Float[np.ndarray, "sample entry"]) -> None:
        self.similarity = angular_similarity(values)
        self.space = np.zeros((len(values), 0))

    def run(self, k: int, seed: int, n_init: int = 10) -> Labels:
        from sklearn.cluster import KMeans

        if self.space.shape[1] < k:
            # A few more than asked for, as the next number of clusters will be larger.
            self.space = spectral_space(self.similarity, min(len(self.similarity), max(k, 2 * self.space.shape[1])))
        return KMeans(k, n_init=n_init, random_state=seed).fit_predict(self.space[:, :k]).astype(np.int64)


class _KMeans:
    """Spherical k-means: centres are means of unit vectors, put back on the sphere after every step.

    Beyond `MOST_WHOLE` samples a step looks at a random batch, and a centre moves by the share of what it has seen
    (Sculley 2010, web-scale k-means).
    """

    def __init__(self, values: Float[np.ndarray, "sample entry"], device: str | torch.device = "cpu") -> None:
        self.values, self.device = values, torch.device(device)
        self.whole: torch.Tensor | None = None
        if len(values) <= MOST_SPECTRAL and values.shape[1] > len(values):
            # Fewer vectors than entries: the same distances in as many dimensions as there are vectors.
            x = unit(values).astype(np.float64)
            found, vectors = np.linalg.eigh(x @ x.T)
            self.whole = torch.from_numpy((vectors * np.sqrt(np.maximum(found, 0))).astype(np.float32)).to(self.device)
        elif values.nbytes <= WHOLE_MIB * 2**20:
            self.whole = torch.from_numpy(unit(values)).to(self.device)

    def run(self, k: int, seed: int, n_init: int = 4, steps: int = 100) -> Labels:
        if len(self.values) > MOST_WHOLE:
            return self._once(k, np.random.default_rng([seed, 0]), steps, batch=max(ROWS, 4 * k))[0]
        runs = [self._once(k, np.random.default_rng([seed, i]), steps) for i in range(n_init)]
        return max(runs, key=lambda run: run[1])[0]

    def _once(self, k: int, draw: np.random.Generator, steps: int, batch: int | None = None) -> tuple[Labels, float]:
        centres = self._start(k, draw)
        seen = torch.zeros(k, device=self.device)
        labels = np.full(len(self.values), -1)
        for _ in range(steps):
            rows = None if batch is None else np.sort(draw.choice(len(self.values), batch, replace=False))
            new, similarity, sums, counts = self._assign(centres, rows)
            if rows is None and (new == labels).all():
                break
            labels = new
            if rows is not None:
                # The mean of all that a centre has seen so far.
                sums, seen = sums + centres * seen[:, None], seen + counts
            empty = torch.nonzero(counts == 0 if rows is None else seen == 0)[:, 0]
            if len(empty):
                # An empty cluster begins anew at the samples that fit worst where they are.
                worst = np.argsort(similarity, kind="stable")[: len(empty)]
                chosen = worst if rows is None else rows[worst]
                sums[empty] = self._unit(chosen)
            centres = torch.nn.functional.normalize(sums, dim=1)
        labels, similarity, _, _ = self._assign(centres, None)
        return labels, float(similarity.sum())

    def _start(self, k: int, draw: np.random.Generator) -> torch.Tensor:
        """Far-apart samples (k-means++), out of a random part where there are many."""
        n = len(self.values)
        pool = np.sort(draw.choice(n, min(n, max(10 * k, 2000)), replace=False))
        x = self._unit(pool)
        chosen = [int(draw.integers(len(pool)))]
        near = x @ x[chosen[0]]
        while len(chosen) < k:
            away = (1 - near).clamp_min(0).double().cpu().numpy()
            away[chosen] = 0
            total = away.sum()
            left = np.setdiff1d(np.arange(len(pool)), chosen)
            pick = int(draw.choice(len(pool), p=away / total)) if total > 0 else int(draw.choice(left))
            chosen.append(pick)
            near = torch.maximum(near, x @ x[pick])
        return x[chosen]

    def _assign(
        self, centres: torch.Tensor, rows: np.ndarray | None
    ) -> tuple[Labels, np.ndarray, torch.Tensor, torch.Tensor]:
        """For each sample the nearest centre and how near it is; sums and numbers of what each centre got."""
        k = len(centres)
        sums, counts = torch.zeros_like(centres), torch.zeros(k, device=self.device)
        which = np.arange(len(self.values)) if rows is None else rows
        labels, similarity = np.empty(len(which), dtype=np.int64), np.empty(len(which))
        for at in range(0, len(which), ROWS):
            x = self._unit(which[at : at + ROWS])
            near, nearest = (x @ centres.T).max(1)
            sums.index_add_(0, nearest, x)
            counts += torch.bincount(nearest, minlength=k)
            labels[at : at + ROWS] = nearest.cpu().numpy()
            similarity[at : at + ROWS] = near.cpu().numpy()
        return labels, similarity, sums, counts

    def _unit(self, rows: np.ndarray) -> torch.Tensor:
        if self.whole is not None:
            return self.whole[torch.from_numpy(rows).to(self.device)]
        return torch.from_numpy(unit(self.values[rows])).to(self.device)
