"""In which order edges are taken into a circuit, from their scores."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from crosspatch.errors import CircuitError
from crosspatch.graph import ModelShape, edge_table


def checked_scores(scores: np.ndarray, shape: ModelShape) -> Float[np.ndarray, " edge"]:
    """Scores as float64, one for every edge by number.

    Raises:
        CircuitError: another number of them, or an infinite one.
    """
    found, n = np.asarray(scores, np.float64), len(edge_table(shape))
    if found.shape != (n,):
        fix = "edge_table(shape).flat(matrix) numbers a [sender, receiver] matrix"
        raise CircuitError(f"scores have shape {found.shape}, this model has {n:,} edges", where="scores", fix=fix)
    if np.isinf(found).any():
        where = edge_table(shape).names()[int(np.flatnonzero(np.isinf(found))[0])]
        raise CircuitError("an infinite score", where=where, fix="give finite scores, NaN for edges without one")
    return found


def ranking(
    scores: Float[np.ndarray, " edge"], *, absolute: bool = False, positive_share: float | None = None
) -> Int[np.ndarray, " rank"]:
    """Numbers of the scored edges, best first; equal scores in the order of the numbers.

    Args:
        scores: NaN = not scored: left out.
        absolute: by size; else the most positive first.
        positive_share: of every number of first edges at least this share are the most positive ones (while there are
            any), the rest the largest by size of those left (Nikankin et al. 2025, arXiv 2510.25786, who choose a ratio
            of positive to negative edges). 0 is `absolute`; 1 takes all positive ones before any other.

    Raises:
        CircuitError: a share outside [0, 1], or both options.
    """
    by_size = _descending(np.abs(scores))
    if positive_share is None:
        return by_size if absolute else _descending(scores)
    if absolute or not 0 <= positive_share <= 1:
        what = "absolute and positive_share exclude each other" if absolute else f"positive_share is {positive_share}"
        raise CircuitError(what, where="ranking", fix="give positive_share between 0 and 1 and leave absolute out")
    positive = [int(e) for e in _descending(scores) if scores[e] > 0]
    taken = np.zeros(scores.size, dtype=bool)
    found: list[int] = []
    n_positive, p, s = 0, 0, 0
    while len(found) < by_size.size:
        while p < len(positive) and taken[positive[p]]:
            p += 1
        while taken[by_size[s]]:
            s += 1
        short = n_positive < positive_share * (len(found) + 1) - 1e-9
        edge = positive[p] if short and p < len(positive) else int(by_size[s])
        taken[edge] = True
        found.append(edge)
        n_positive += bool(scores[edge] > 0)
    return np.array(found, dtype=np.int64)


def _descending(values: Float[np.ndarray, " edge"]) -> Int[np.ndarray, " rank"]:
    """Numbers in order of falling value, stable, without NaN."""
    order = np.argsort(-values, kind="stable")  # NaN last
    return order[: int((~np.isnan(values)).sum())]


def consistent(samples: Float[np.ndarray, "sample edge"], share: float = 0.95) -> Float[np.ndarray, " edge"]:
    """Mean scores of the edges whose sign is the same in at least this share of resamples, NaN (not scored) elsewhere.

    Args:
        samples: scores on bootstrap samples of the examples (Nikankin et al. 2025, arXiv 2510.25786).

    Raises:
        CircuitError: not a matrix, or a share outside (0.5, 1].
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim != 2 or not samples.size or not 0.5 < share <= 1:
        what = f"samples of shape {samples.shape}, share {share}"
        raise CircuitError(what, where="consistent", fix="give [sample, edge] and a share above 0.5, at most 1")
    agree = np.maximum((samples > 0).mean(0), (samples < 0).mean(0))
    return np.where(agree >= share, samples.mean(0), np.nan)
