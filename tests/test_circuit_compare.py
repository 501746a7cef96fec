"""Comparison of circuits, ROC curves, and the MIB benchmark's numbers on tables computed by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from circuit_cases import PLAIN, QUICK, SHAPES, random_circuit, random_scores, seeds, shapes
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.circuits import (
    Circuit,
    agreement,
    auroc,
    cmd,
    common_core,
    cpr,
    edit_distance,
    frequency,
    interpbench_auroc,
    iou,
    log_cmd,
    log_cpr,
    mib,
    nested,
    roc,
)
from crosspatch.errors import CircuitError
from crosspatch.graph import edge_table

A = Circuit.from_edges(PLAIN, ["input->m0", "m0->m1", "m1->logits"])
B = Circuit.from_edges(PLAIN, ["input->m0", "m0->logits"])


# -- two circuits -----------------------------------------------------------------------------------------------------


def test_two_circuits_by_hand():
    assert iou(A, B) == 1 / 4 and edit_distance(A, B) == 3
    assert iou(A, B, "nodes") == 2 / 3 and edit_distance(A, B, "nodes") == 1
    found = agreement(B, A)
    assert (found.true_positive, found.false_positive, found.false_negative, found.true_negative) == (1, 1, 2, 42)
    assert found.precision == 1 / 2 and found.recall == 1 / 3 and found.f1 == pytest.approx(0.4)
    assert found.false_positive_rate == 1 / 43
    assert agreement(B, A, "nodes").precision == 1
    empty = Circuit.empty(PLAIN)
    assert iou(empty, empty) == 1 and iou(A, empty) == 0
    assert agreement(empty, A).precision == 1 and agreement(empty, A).recall == 0 and agreement(empty, A).f1 == 0
    assert agreement(empty, empty).f1 == 1 and agreement(A, Circuit.full(PLAIN)).false_positive_rate == 0


@given(shapes, seeds, seeds, st.sampled_from(["edges", "nodes"]), st.sampled_from([(), ("S1", "END")]))
@QUICK
def test_comparison_is_that_of_sets_of_names(shape, one, other, of, spans):
    a, b = random_circuit(shape, one, spans=spans), random_circuit(shape, other, spans=spans)
    left, right = ({*a.edge_names()}, {*b.edge_names()}) if of == "edges" else ({*a.nodes()}, {*b.nodes()})
    assert iou(a, b, of) == len(left & right) / len(left | right) == iou(b, a, of)
    assert edit_distance(a, b, of) == len(left ^ right)
    found = agreement(a, b, of)
    assert found.precision == len(left & right) / len(left) and found.recall == len(left & right) / len(right)
    assert (edit_distance(a, b) == 0) == (a == b)


def test_the_common_core():
    c = A | B
    assert common_core([A, B, c]) == A & B
    assert common_core([A, B, c], 2 / 3) == c and common_core([A, B, c], 0.7) == A & B
    assert frequency([A, B])[edge_table(PLAIN).parse("m0->m1")] == 0.5
    for circuits, share, says in (
        ([], 1, "no circuits"),
        ([A], 0, "share is 0"),
        ([A, A.restrict(["END"])], 1, "spans"),
    ):
        with pytest.raises(CircuitError, match=says):
            common_core(circuits, share)
    with pytest.raises(CircuitError, match="of='paths'"):
        iou(A, B, "paths")


# -- ROC --------------------------------------------------------------------------------------------------------------


def pairs_won(scores: np.ndarray, known: np.ndarray) -> float:
    """The share of (known, other) pairs in which the known one scores higher; ties count half."""
    values = np.where(np.isnan(scores), -np.inf, scores)
    wins = [(a > b) + (a == b) / 2 for a, b in product(values[known], values[~known])]
    return float(np.mean(wins))


@given(seeds, st.floats(0, 0.4), st.booleans())
@QUICK
def test_auroc_is_the_chance_that_a_known_edge_scores_higher(seed, missing, ties):
    rng = np.random.default_rng(seed)
    scores = random_scores(PLAIN, seed, missing, ties)
    known = rng.random(scores.size) < 0.3
    known[:2] = [True, False]
    assert auroc(scores, known) == pytest.approx(pairs_won(scores, known))
    assert auroc(scores, known, absolute=True) == pytest.approx(pairs_won(np.abs(scores), known))
    assert auroc(np.where(known, 2.0, 1.0), known) == 1 and auroc(np.ones(scores.size), known) == 0.5


def test_roc_points_by_hand():
    curve = roc(np.array([3.0, 2.0, 2.0, np.nan, 1.0]), np.array([True, True, False, True, False]))
    assert curve.false_positive_rate.tolist() == [0, 0, 0.5, 1, 1]
    assert curve.true_positive_rate.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 1])
    assert curve.threshold.tolist() == [np.inf, 3, 2, 1, -np.inf]
    assert curve.area == pytest.approx(0.5 * (1 / 3 + 2 / 3) / 2 + 0.5 * 2 / 3)
    for known in (np.ones(5, bool), np.zeros(5, bool), np.ones(4, bool)):
        with pytest.raises(CircuitError):
            roc(np.zeros(5), known)


# -- MIB --------------------------------------------------------------------------------------------------------------


def test_cpr_and_cmd_on_tables_computed_by_hand():
    """Weights of the ten values in a sum of trapezoids over k, and sums with them written out."""
    weights = [0.0005, 0.002, 0.004, 0.0075, 0.02, 0.04, 0.075, 0.2, 0.4, 0.25]
    for i, weight in enumerate(weights):
        assert cpr(np.eye(10)[i]) == pytest.approx(weight, abs=1e-15)
    assert cpr([1] * 10) == pytest.approx(0.999) and cmd([1] * 10) == 0
    blind = [0] * 9 + [1]
    assert cpr(blind) == pytest.approx(0.25), "the published random row"
    assert cmd(blind) == pytest.approx(0.749), "0.75 in the published table, which rounds"
    table = [0, 0.1, 0.1, 0.3, 0.5, 0.8, 1.1, 1.3, 1.2, 1.0]
    assert cpr(table) == pytest.approx(0.0002 + 0.0004 + 0.00225 + 0.01 + 0.032 + 0.0825 + 0.26 + 0.48 + 0.25)
    distance = 0.0005 + 0.0018 + 0.0036 + 0.00525 + 0.01 + 0.008 + 0.0075 + 0.06 + 0.08
    assert cmd(table) == pytest.approx(distance)
    assert cpr([2.0, 4.0], [0.0, 1.0]) == 3 and cmd([2.0, 4.0], [0.0, 1.0]) == 2


def test_sizes_are_cut_as_the_benchmark_cuts_them():
    assert mib.sizes(32_491) == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491]
    assert mib.interpbench_sizes(1108) == [2, 3, 6, 12, 23, 56, 111, 222, 554, 1108]
    assert mib.faithfulness(np.array([3.0, 1.0, 5.0]), 1.0, 5.0).tolist() == [0.5, 0, 1]
    with pytest.raises(CircuitError, match="both have a metric"):
        mib.faithfulness(1.0, 2.0, 2.0)


def test_areas_over_true_size_on_a_log_axis():
    assert log_cpr([1, 1000], [1, 1], 1000) == pytest.approx(1)
    assert log_cmd([1, 1000], [1, 1], 1000) == 0
    # 0 at 1 edge, 1 from 10 edges of 1000 on: a ramp over one third of the axis.
    assert log_cpr([10], [1], 1000) == pytest.approx(1 / 3 / 2 + 2 / 3)
    assert log_cmd([10], [1], 1000) == pytest.approx(1 / 6)
    assert log_cpr([10, 0, 100], [1, 0, 1], 1000) == pytest.approx(log_cpr([10, 100], [1, 1], 1000))
    assert log_cpr([100, 10, 10], [1, 0.2, 0.4], 1000) == pytest.approx(log_cpr([10, 100], [0.3, 1], 1000))
    assert log_cpr([0], [0], 1000) == pytest.approx(0.5), "the two ends alone: a ramp"
    for n, f in (([1001], [1]), ([10], [np.nan]), ([-1], [1]), ([], [])):
        with pytest.raises(CircuitError):
            log_cpr(n, f, 1000)


@pytest.mark.parametrize("values", [[1] * 9, [1] * 9 + [np.nan], []])
def test_a_curve_needs_a_finite_value_for_every_size(values):
    with pytest.raises(CircuitError):
        cpr(values)


def test_a_folder_of_circuits_is_scored_by_their_order_of_size():
    counts, values = [9, 1, 2, 3, 4, 5, 6, 7, 8], [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert mib.folder_curve(counts, values) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert mib.folder_curve([1] * 9, values)[0] == 0.1, "equal sizes come in the order of faithfulness"
    with pytest.raises(CircuitError, match="expected 9"):
        mib.folder_curve(counts[:-1], values[:-1])


def test_interpbench_auroc_with_and_without_its_quirk():
    """Points (0.25, 0.5) and (0.5, 1): the leaderboard loses the area left of 0.25 and stretches 0.5 to 1."""
    every = Circuit.full(PLAIN)
    edges = np.flatnonzero(every.flat)
    known_edges, others = edges[:6], edges[6:]
    assert len(others) % 4 == 0

    def circuit(hits: int, share: float) -> Circuit:
        mask = np.zeros(every.flat.size, dtype=bool)
        mask[known_edges[:hits]] = mask[others[: int(share * len(others))]] = True
        return Circuit.from_mask(every.shape, mask)

    found, known = [circuit(3, 0.25), circuit(6, 0.5)], circuit(6, 0)
    assert interpbench_auroc(found, known, quirks=True) == pytest.approx(0.5 * 0.75)
    assert interpbench_auroc(found, known) == pytest.approx(0.25 * 0.25 + 0.25 * 0.75 + 0.5)
    assert interpbench_auroc(found[::-1], known) == interpbench_auroc(found, known)
    assert interpbench_auroc([known], known) == 1 and interpbench_auroc([known], known, quirks=True) == 0
    for circuits, truth in (
        ([], known),
        ([known], every),
        ([known], Circuit.empty(every.shape)),
        ([Circuit.full(SHAPES["deep"])], known),
    ):
        with pytest.raises(CircuitError):
            interpbench_auroc(circuits, truth)


@given(shapes, seeds)
@QUICK
def test_interpbench_auroc_of_all_sizes_is_near_the_auroc_of_the_scores(shape, seed):
    """Where no edge is lost, circuits of all sizes trace the ROC curve of the scores."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(len(edge_table(shape))).astype(float)
    known = rng.random(scores.size) < 0.3
    known[:2] = [True, False]
    marks = [Circuit.from_mask(shape, scores >= scores.size - n) for n in range(1, scores.size + 1)]
    truth = Circuit.from_mask(shape, known)
    assert interpbench_auroc(marks, truth) == pytest.approx(auroc(scores, known))
    circuits = nested(scores, shape, range(1, scores.size + 1, 5))
    assert 0 <= interpbench_auroc(circuits, truth) <= 1
