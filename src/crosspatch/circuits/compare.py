"""How alike circuits are, and how well scores or a circuit agree with a known one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.mib import area
from crosspatch.errors import CircuitError

Of = Literal["edges", "nodes"]


def _marks(circuit: Circuit, of: Of) -> Bool[np.ndarray, " item"]:
    """Which of all edges (at every span) or nodes are in the circuit."""
    if of not in ("edges", "nodes"):
        raise CircuitError(f"of={of!r}", where="compare", fix="use 'edges' or 'nodes'")
    return circuit.flat.ravel() if of == "edges" else circuit.node_mask


def iou(a: Circuit, b: Circuit, of: Of = "edges") -> float:
    """Intersection over union (Jaccard index) of edges or nodes; 1 for two circuits without any.

    Raises:
        CircuitError: circuits of different models or spans.
    """
    a.require_like(b)
    one, other = _marks(a, of), _marks(b, of)
    union = int((one | other).sum())
    return float((one & other).sum() / union) if union else 1.0


def edit_distance(a: Circuit, b: Circuit, of: Of = "edges") -> int:
    """How many edges (nodes) must be added to or taken from one circuit to get the other.

    Raises:
        CircuitError: circuits of different models or spans.
    """
    a.require_like(b)
    return int((_marks(a, of) ^ _marks(b, of)).sum())


def common_core(circuits: Sequence[Circuit], share: float = 1.0) -> Circuit:
    """The edges in at least this share of some circuits; all of them by default. Not pruned.

    Raises:
        CircuitError: no circuits, or of different models or spans; a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise CircuitError(f"share is {share}", where="common_core", fix="use a number above 0 and at most 1")
    often = frequency(circuits)
    keep = often >= share * (1 - 1e-12)
    origin = {"common_core": {"of": len(circuits), "share": share}}
    return Circuit(circuits[0].shape, keep, circuits[0].spans, name="common core", origin=origin)


def frequency(circuits: Sequence[Circuit]) -> Float[np.ndarray, "sender receiver ..."]:
    """The share of some circuits that every edge is in.

    Raises:
        CircuitError: no circuits, or of different models or spans.
    """
    if not circuits:
        raise CircuitError("no circuits were given", where="frequency", fix="give at least one")
    total = np.zeros(circuits[0].keep.shape)
    for circuit in circuits:
        circuits[0].require_like(circuit)
        total += circuit.keep
    return total / len(circuits)


@dataclass(frozen=True)
class Agreement:
    """How a found circuit agrees with a known one.

    Attributes:
        true_positive, false_positive, false_negative, true_negative: numbers of edges (nodes).
    """

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def precision(self) -> float:
        """The share of what was found that is right; 1 where nothing was found."""
        found = self.true_positive + self.false_positive
        return self.true_positive / found if found else 1.0

    @property
    def recall(self) -> float:
        """The share of what is there that was found; 1 where nothing is there."""
        there = self.true_positive + self.false_negative
        return self.true_positive / there if there else 1.0

    @property
    def false_positive_rate(self) -> float:
        """The share of what is not there that was found; 0 where everything is there."""
        absent = self.false_positive + self.true_negative
        return self.false_positive / absent if absent else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        wrong = self.false_positive + self.false_negative
        return 2 * self.true_positive / (2 * self.true_positive + wrong) if self.true_positive or wrong else 1.0


def agreement(found: Circuit, known: Circuit, of: Of = "edges") -> Agreement:
    """Compare a found circuit with a known one, edge by edge or node by node.

    Raises:
        CircuitError: circuits of different models or spans.
    """
    found.require_like(known)
    one, other = _marks(found, of), _marks(known, of)
    return Agreement(*(int(n.sum()) for n in (one & other, one & ~other, ~one & other, ~one & ~other)))


@dataclass(frozen=True)
class Roc:
    """A receiver operating characteristic, from (0, 0) to (1, 1).

    Attributes:
        false_positive_rate, true_positive_rate: one value per point.
        threshold: the lowest score that is still taken at this point; infinite at the origin.
    """

    false_positive_rate: Float[np.ndarray, " point"]
    true_positive_rate: Float[np.ndarray, " point"]
    threshold: Float[np.ndarray, " point"]

    @property
    def area(self) -> float:
        """The area below, by trapezoids: the chance that something known scores above something that is not."""
        return area(self.true_positive_rate, self.false_positive_rate)


def roc(scores: Float[np.ndarray, " item"], known: Bool[np.ndarray, " item"], *, absolute: bool = False) -> Roc:
    """The ROC curve of scores against what is known, all items of one score taken together.

    Args:
        scores: of edges (`circuit.flat` is their mask), nodes, or anything else; NaN (not scored) is below all numbers.
        known: which of them are there.
        absolute: compare sizes.

    Raises:
        CircuitError: sizes that differ, or all or none are known: there is then no curve.
    """
    scores, known = np.asarray(scores, np.float64), np.asarray(known, bool)
    if scores.ndim != 1 or scores.shape != known.shape:
        raise CircuitError(
            f"scores {scores.shape}, known {known.shape}",
            where="roc",
            fix="one score for each item, circuit.flat is a mask",
        )
    if known.all() or not known.any():
        raise CircuitError(
            f"{int(known.sum())} of {known.size} are known: one of the two rates has no meaning", where="roc",
            fix="compare with precision and recall (agreement)",
        )  # fmt: skip
    values = np.where(np.isnan(scores), -np.inf, np.abs(scores) if absolute else scores)
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of each run of equal scores
    hits = np.cumsum(known[order])[last]
    misses = np.cumsum(~known[order])[last]
    return Roc(
        np.concatenate([[0.0], misses / misses[-1]]),
        np.concatenate([[0.0], hits / hits[-1]]),
        np.concatenate([[np.inf], ranked[last]]),
    )


def auroc(scores: Float[np.ndarray, " item"], known: Bool[np.ndarray, " item"], *, absolute: bool = False) -> float:
    """The area under `roc`: 0.5 for scores that know nothing, 1 when all that is known is on top; ties count half.

    `mib.interpbench_auroc` computes what InterpBench's leaderboard shows under the same name. Raises as `roc`.
    """
    return roc(scores, known, absolute=absolute).area
