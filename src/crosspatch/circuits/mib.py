"""What the MIB benchmark computes from a curve of circuits, exactly, and the same on the true size.

Mueller et al. 2025, arXiv 2504.13151, and the benchmark's code. 85 % of the weight of CPR and CMD lies on three of the
ten sizes (20, 50 and 100 %), the whole model is always 1, and CPR has no upper end: dropping edges that hurt the task
pushes faithfulness above 1. `log_cpr` and `log_cmd` weigh small circuits as much as large ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.errors import CircuitError

Numbers = Sequence[float] | np.ndarray
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Nominal sizes, shares of all edges (or of all scored nodes or neurons)."""


def sizes(n_items: int, grid: Sequence[float] = GRID) -> list[int]:
    """How many items each nominal size takes: `int(k * n)`, as the benchmark cuts (32 for 0.1 % of 32,491)."""
    return [int(k * n_items) for k in grid]


def interpbench_sizes(n_edges: int) -> list[int]:
    """How many edges each nominal size of InterpBench's greedy circuits takes: `k * n` rounded up, not down."""
    return [math.ceil(k * n_edges) for k in GRID]


def area(y: Float[np.ndarray, " point"], x: Float[np.ndarray, " point"]) -> float:
    """The area under a line through points, by trapezoids."""
    return float(((y[1:] + y[:-1]) * np.diff(x)).sum() / 2)


def faithfulness(circuit: Float[np.ndarray, "*size"] | float, empty: float, full: float) -> Float[np.ndarray, "*size"]:
    """`(m(C) - m(empty)) / (m(N) - m(empty))` of mean metrics.

    Args:
        circuit: mean metric with every edge outside the circuit ablated.
        empty: with all edges ablated; for patching the metric of the corrupt prompt with the clean answers.
        full: of the model.

    Raises:
        CircuitError: the model is no better or worse than the empty circuit, so that there is nothing to recover.
    """
    if full == empty:
        what = f"the model and the empty circuit both have a metric of {full}"
        raise CircuitError(what, where="faithfulness", fix="choose pairs on which the metric changes (see gates)")
    return (np.asarray(circuit, np.float64) - empty) / (full - empty)


def cpr(values: Numbers, grid: Sequence[float] = GRID) -> float:
    """Circuit performance ratio, higher is better: the area under faithfulness over nominal size.

    Trapezoids, linear in the nominal share `k` (not in the edges that pruning left), from the least `k` to 1: faithful
    everywhere gives 0.999. There is no greatest value.

    Args:
        values: faithfulness at each nominal size.

    Raises:
        CircuitError: as many values as sizes are needed, in order of size, none of them NaN.
    """
    x, f = _curve(grid, values)
    return area(f, x)


def cmd(values: Numbers, grid: Sequence[float] = GRID) -> float:
    """Circuit-model distance, lower is better, 0 at best: the area under `|1 - faithfulness|`; else as `cpr`."""
    x, f = _curve(grid, values)
    return area(np.abs(1 - f), x)


def log_cpr(n_edges: Numbers, values: Numbers, n_total: int) -> float:
    """The mean faithfulness over true size, between 1 edge and all edges on a logarithmic axis.

    Args:
        n_edges: true (possibly weighted) sizes of the circuits, after pruning, in any order; 0 counts as the empty one.
        values: their faithfulness.
        n_total: edges of the model.

    The ends are known without measuring: the empty circuit, left of 1 edge, has 0, and the model 1. Between two
    circuits faithfulness is linear in the logarithm of the size. Circuits of one size count with their mean.

    Raises:
        CircuitError: as `cpr`, or a circuit larger than the model.
    """
    x, f = _log_curve(n_edges, values, n_total)
    return area(f, x)


def log_cmd(n_edges: Numbers, values: Numbers, n_total: int) -> float:
    """The mean of `|1 - faithfulness|` over true size; else as `log_cpr`."""
    x, f = _log_curve(n_edges, values, n_total)
    return area(np.abs(1 - f), x)


def folder_curve(weighted_counts: Numbers, values: Numbers) -> list[float]:
    """Faithfulness by nominal size of a folder with one circuit for each size, as the benchmark scores it.

    The circuits are sorted by weighted edge count, then by faithfulness, and take the nominal sizes in that order,
    whatever their true size; the model, with 1, is added at the end.

    Raises:
        CircuitError: not one circuit for every size but the last.
    """
    if len(weighted_counts) != len(values) or len(values) != len(GRID) - 1:
        what = f"{len(weighted_counts)} counts, {len(values)} values, expected {len(GRID) - 1} of each"
        raise CircuitError(what, where="folder_curve", fix=f"one circuit for each of {GRID[:-1]}")
    return [float(f) for _, f in sorted(zip(weighted_counts, values, strict=True))] + [1.0]


def interpbench_auroc(found: Sequence[Circuit], known: Circuit, *, quirks: bool = False) -> float:
    """Area under the ROC points of circuits of growing size, as InterpBench's track compares them with the known one.

    Args:
        found: circuits in order of size; the benchmark takes ten, `greedy` by absolute score, of `interpbench_sizes`.
        known: the true circuit.
        quirks: what the leaderboard computes: the curve begins at the first circuit instead of (0, 0), so that the area
            below it is lost, and the last false positive rate counts as 1. Without: from (0, 0) to (1, 1), sorted.
            (The benchmark's other quirk, that edges of the reference which the submitted graph lacks count as found,
            cannot arise between circuits of one shape.)

    Raises:
        CircuitError: no circuits, circuits of different models, or a known circuit of all edges or none.
    """
    if not found:
        raise CircuitError("no circuits were given", where="interpbench_auroc", fix="give one for each size")
    if known.n_edges in (0, known.flat.size):
        raise CircuitError(
            "the known circuit is empty or the whole model", where="interpbench_auroc", fix="no ROC then"
        )
    for circuit in found:
        known.require_like(circuit)
    there = known.flat.ravel()
    marks = [circuit.flat.ravel() for circuit in found]
    y = np.array([mark[there].mean() for mark in marks])
    x = np.array([mark[~there].mean() for mark in marks])
    if quirks:
        return area(y, x / x[-1]) if x[-1] > 0 else 0.0
    order = np.lexsort((y, x))
    return area(np.concatenate([[0], y[order], [1]]), np.concatenate([[0], x[order], [1]]))


def _curve(x: Numbers, values: Numbers) -> tuple[Float[np.ndarray, " size"], Float[np.ndarray, " size"]]:
    at, f = np.asarray(x, np.float64), np.asarray(values, np.float64)
    if at.ndim != 1 or at.shape != f.shape or at.size < 2:
        raise CircuitError(f"{f.size} values for {at.size} sizes", where="curve", fix="give one value for each size")
    if not np.isfinite(f).all() or not np.isfinite(at).all() or (np.diff(at) <= 0).any():
        raise CircuitError("sizes must grow and values be finite", where="curve", fix="evaluate every size, in order")
    return at, f


def _log_curve(
    n_edges: Numbers, values: Numbers, n_total: int
) -> tuple[Float[np.ndarray, " size"], Float[np.ndarray, " size"]]:
    """Share of the logarithmic axis and faithfulness, with both ends."""
    n, f = np.asarray(n_edges, np.float64), np.asarray(values, np.float64)
    if n.ndim != 1 or n.shape != f.shape or not n.size:
        raise CircuitError(f"{f.size} values for {n.size} sizes", where="log curve", fix="give one value for each size")
    if not np.isfinite(f).all() or not ((n >= 0) & (n <= n_total)).all() or n_total < 2:
        what = f"sizes must lie between 0 and the model's {n_total} edges, values be finite"
        raise CircuitError(what, where="log curve", fix="count edges of the same graph, after pruning")
    n, f = n[n >= 1], f[n >= 1]
    at = np.unique(n)
    mean = np.array([f[n == size].mean() for size in at])
    if not at.size or at[0] > 1:
        at, mean = np.append(1.0, at), np.append(0.0, mean)
    if at[-1] < n_total:
        at, mean = np.append(at, n_total), np.append(mean, 1.0)
    return np.log(at) / np.log(n_total), mean
