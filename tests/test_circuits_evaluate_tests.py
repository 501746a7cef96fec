"""Random circuits, stability, completeness, minimality and hypothesis tests, on numbers and networks known by hand."""

from __future__ import annotations

from functools import lru_cache

import families
import numpy as np
import pandas as pd
import pytest
import toys
from ground_truth import compiled, needs_ground_truth
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import crosspatch as cp
from crosspatch.attribution.attribute import attribute
from crosspatch.attribution.scores import Scores
from crosspatch.attribution.setup import Setup, setup_of
from crosspatch.circuits import shares
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.completeness import Completeness, completeness
from crosspatch.circuits.evaluate import evaluate
from crosspatch.circuits.hypotheses import HypothesisTests, equivalence, hypothesis_tests, independence, relaxed
from crosspatch.circuits.known import needed_edges, program_setup
from crosspatch.circuits.minimality import Minimality, minimality
from crosspatch.circuits.random import random_circuits, random_inflations, random_like
from crosspatch.circuits.select import path_aware, top_n
from crosspatch.circuits.stability import Stability, jaccards, stability
from crosspatch.errors import CircuitError
from crosspatch.graph import ModelShape, edge_table
from crosspatch.results.statistics import resampler

SHAPES = {
    "gpt2": ModelShape(3, 2, 2, 8, 4, 16, 10),
    "grouped": ModelShape(2, 4, 2, 8, 4, 16, 10),
    "parallel": ModelShape(2, 2, 1, 8, 4, 16, 10, parallel=True),
    "attention only": ModelShape(2, 2, 2, 8, 4, 0, 10, has_neurons=False, has_mlp=False),
}
WAY = ["m1->logits"]
X = ["input->a0.h0.v", "a0.h0->m1"]
Y = ["input->a0.h1.v", "a0.h1->m1"]


@lru_cache
def gate(which: str) -> Setup:
    return setup_of(getattr(toys, f"{which}_network")(), toys.gate_task(toys.FILLERS))


def circuit(setup: Setup, *edges: str) -> Circuit:
    return Circuit.from_edges(setup.model.shape, edges)


# ----------------------------------------------------------------------------------------------- random circuits


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SHAPES)), st.floats(0, 1), st.integers(0, 1000), st.sampled_from([(), ("A", "B"), ("*",)])
)
def test_random_circuits_are_connected_and_of_the_size_asked(
    name: str, share: float, seed: int, spans: tuple[str, ...]
) -> None:
    shape = SHAPES[name]
    size = round(share * len(edge_table(shape)) * max(len(spans), 1))
    first, second = random_circuits(shape, size, 2, seed=seed, spans=spans)
    for one in (first, second):
        assert one.is_connected
        assert size - 1 <= one.n_edges <= size
        assert one.spans == spans
    assert random_circuits(shape, size, 1, seed=seed, spans=spans) == [first]


def test_random_circuits_differ_by_draw_and_seed_and_use_every_edge() -> None:
    shape = SHAPES["gpt2"]
    several = random_circuits(shape, 12, 300)
    assert len({c.flat.tobytes() for c in several}) > 250
    assert np.mean([c.n_edges == 12 for c in several]) > 0.99
    assert np.array([c.flat for c in several]).any(0).all()
    assert random_circuits(shape, 12, 1, seed=1) != several[:1]


def test_random_circuits_within_others() -> None:
    shape = SHAPES["gpt2"]
    taken = random_circuits(shape, 30)[0]
    rest = ~taken
    found = random_circuits(shape, 10, 5, within=rest)
    assert all(one <= rest and one.is_connected and one.n_edges == 10 for one in found)
    with pytest.raises(CircuitError, match="are on a path"):
        random_circuits(shape, rest.n_edges + 1, within=rest)
    assert [c.n_edges for c in random_like(taken, 3)] == [30] * 3


def test_inflations_add_a_path_and_take_one_of_its_edges() -> None:
    base = random_circuits(SHAPES["gpt2"], 10)[0]
    for larger, less in random_inflations(base, 20):
        assert base <= less <= larger and larger.n_edges == less.n_edges + 1
        assert larger.is_connected
    with pytest.raises(CircuitError, match="all edges"):
        random_inflations(Circuit.full(SHAPES["gpt2"]), 1)


# -------------------------------------------------------------------------------------------------------- shares


def test_shares_by_hand() -> None:
    clean, empty = np.array([4.0, 8.0, 0.1]), np.array([0.0, 4.0, 0.0])
    kept = np.array([[2.0, 8.0, 5.0]])
    sampler = resampler(3, draws=200)
    ratio = shares.ratio_of_means(kept - empty, clean - empty, sampler)
    assert ratio.value[0] == pytest.approx(11 / 8.1)
    of_pairs, left_out = shares.mean_of_ratios(kept - empty, clean - empty, sampler)
    assert (of_pairs.value[0], left_out[0]) == (
        pytest.approx((0.5 + 1) / 2),
        1,
    )  # the third pair has no gap to speak of
    drawn = shares.resampled(kept - empty, clean - empty, sampler)
    weights = sampler.weights[0]
    assert drawn[0, 0] == pytest.approx((weights @ (kept - empty)[0]) / (weights @ (clean - empty)))


def test_place_among_random_circuits() -> None:
    drawn = np.array([[0.1, 0.2, 0.3, np.nan], [1.0, 1.0, 1.0, 1.0]])
    band, p = shares.against_random(np.array([0.25, 1.0]), drawn)
    assert p.tolist() == [(1 + 1) / (1 + 3), 1.0]
    assert band[0, 1] == pytest.approx(0.2) and band[1].tolist() == [1, 1, 1]
    assert np.isnan(shares.against_random(np.array([0.5]), np.empty((1, 0)))[1]).all()


# ----------------------------------------------------------------------------------------------------- stability


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_jaccard_is_intersection_over_union(seed: int) -> None:
    marks = np.random.default_rng(seed).random((4, 9)) < 0.3
    sets = [set(np.flatnonzero(row)) for row in marks]
    by_hand = [len(a & b) / len(a | b) if a | b else np.nan for i, a in enumerate(sets) for b in sets[i + 1 :]]
    np.testing.assert_allclose(jaccards(marks), by_hand, atol=1e-6)


def test_noise_is_not_stable_and_a_signal_is() -> None:
    shape = ModelShape(6, 4, 4, 8, 4, 16, 10)
    rng = np.random.default_rng(0)
    n = len(edge_table(shape))
    noise = rng.normal(size=(20, n)) * np.exp(rng.normal(size=n))  # some edges vary much: they come back in resamples
    signal = noise * 0.3 + np.where(random_circuits(shape, 20)[0].flat, 3.0, 0.0)

    def choose(mean: np.ndarray) -> Circuit:
        return path_aware(mean, shape, 20)

    quiet = stability(noise, choose, shape, n_boot=15, n_null=19)
    assert not quiet.stable and "not shown" in str(quiet)
    row = quiet.frame.iloc[0]
    assert row["jaccard"] == pytest.approx(row["null_sign-flipped"], abs=0.12)
    assert row["jaccard"] > row["random"]  # resamples share pairs: chance alone is the wrong yardstick
    nothing = stability(noise, lambda mean: Circuit.empty(shape), shape, n_boot=3, n_null=2)
    assert not nothing.stable and np.isnan(nothing.frame["jaccard"]).all()
    loud = stability(signal, choose, shape, n_boot=15)
    assert loud.stable and loud.frame.iloc[0]["jaccard"] > 0.95
    assert loud.core.n_edges == 20 and loud.often.min() == 0


def test_edges_without_a_score_stay_out() -> None:
    shape = SHAPES["gpt2"]
    scores = np.random.default_rng(1).normal(size=(8, len(edge_table(shape))))
    scores[:, ::3] = np.nan
    found = stability(scores, lambda mean: path_aware(mean, shape, 9), shape, n_boot=5, n_null=3)
    assert not found.often[::3].any() and np.isfinite(found.null_edges).all()


def test_stability_is_seeded_and_refuses() -> None:
    shape = SHAPES["gpt2"]
    scores = np.random.default_rng(1).normal(size=(8, len(edge_table(shape))))
    first, second, other = (
        stability(scores, lambda mean: path_aware(mean, shape, 9), shape, n_boot=5, n_null=2, seed=seed)
        for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first.frame, second.frame)
    assert not np.array_equal(first.often, other.often)
    order = np.random.default_rng(2).permutation(len(scores))
    shuffled = stability(scores[order], lambda mean: path_aware(mean, shape, 9), shape, n_boot=5, n_null=2)
    pd.testing.assert_frame_equal(first.frame, shuffled.frame)
    with pytest.raises(CircuitError, match="scores of shape"):
        stability(scores[:1], lambda mean: path_aware(mean, shape, 9), shape)
    with pytest.raises(CircuitError, match="edges"):
        stability(scores[:, 1:], lambda mean: path_aware(mean, shape, 9), shape)


@lru_cache
def scores_of(which: str) -> tuple[Setup, Scores]:
    if which == "random":
        model, _ = toys.random_network()
        setup = setup_of(model, toys.random_task(n=24))
    else:
        setup = setup_of(cp.load("embedded"), cp.make_task("ioi", n=24, seed=0))
    return setup, attribute(setup, "eap-ig")


def test_random_weights_are_no_more_stable_than_noise() -> None:
    """The same selection is more stable than noise on a trained model, and not on one that was never trained."""
    found = {}
    for which in ("random", "embedded"):
        setup, scores = scores_of(which)
        shape = setup.model.shape
        found[which] = stability(scores.per_example, lambda mean, s=shape: top_n(mean, s, 40), shape, n_boot=15)
    assert not found["random"].stable
    excess = {name: one.frame.iloc[0]["jaccard"] - one.null_edges[0].mean() for name, one in found.items()}
    assert abs(excess["random"]) < 0.15 < excess["embedded"]
    assert found["embedded"].stable


# ------------------------------------------------------------------------------------ completeness and minimality


def test_a_circuit_that_misses_a_stand_in_is_incomplete() -> None:
    """Of an OR, half is faithful; without its head nothing is left, while the model goes on by the other."""
    setup = gate("or")
    half, whole = circuit(setup, *X, *WAY), circuit(setup, *X, *Y, *WAY)
    options = {"n_random": 3, "budget": 20, "n_boot": 100}
    poor = completeness(setup, half, {"x": ["a0.h0", "a0.h1"]}, **options)
    assert poor.frame.set_index("set").loc["K empty", "difference"] == pytest.approx(0, abs=1e-5)
    assert abs(poor.worst["difference"]) == pytest.approx(1, abs=1e-5)
    assert poor.sets[1] == {"kind": "class", "name": "x", "nodes": ["a0.h0"]}
    assert poor.sets[-1]["nodes"] == [
        "a0.h0",
        "m1",
    ]  # greedy takes the head first: without m1 nothing is left of either
    assert {"class", "random", "greedy"} < set(poor.frame["kind"])
    good = completeness(setup, whole, **options)
    np.testing.assert_allclose(good.frame["difference"], 0, atol=1e-5)
    assert (good.frame["q"] == 1).all()


def test_greedy_search_keeps_its_budget() -> None:
    setup = gate("or")
    runs = {}
    for budget in (0, 4, 100):
        result = completeness(setup, circuit(setup, *X, *Y, *WAY), n_random=0, budget=budget, width=2, n_boot=10)
        runs[budget] = sum(one["kind"] == "greedy" for one in result.sets)
    assert runs == {0: 0, 4: 1, 100: 3}
    with pytest.raises(CircuitError, match="no node but the input"):
        completeness(setup, circuit(setup, "input->logits"))


def test_minimality_finds_the_part_that_does_nothing() -> None:
    setup = gate("and")
    loaded = circuit(setup, *X, *Y, *WAY, "input->m0", "m0->logits")
    result = minimality(setup, loaded, n_boot=100)
    label = dict(zip(result.frame["part"], result.frame["label"], strict=True))
    assert {part for part, said in label.items() if said == "redundant"} == {"input->m0", "m0->logits"}
    assert {part for part, said in label.items() if said == "needed"} == {*X, *Y, *WAY}
    nodes = minimality(setup, loaded, "nodes", n_boot=100).frame.set_index("part")
    np.testing.assert_allclose(nodes.loc[["a0.h0", "a0.h1", "m0", "m1"], "effect"], [1, 1, 0, 1], atol=1e-5)
    assert len(minimality(setup, loaded, max_parts=3, n_boot=10).parts) == 3
    with pytest.raises(CircuitError, match="parts='heads'"):
        minimality(setup, loaded, "heads")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ hypothesis tests


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10_000))
def test_equivalence_without_slack_is_the_sign_test(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, one = rng.normal(size=n), rng.normal(size=n)
    wins = int((one > model).sum())
    assert equivalence(one, model, 0.0).p == pytest.approx(stats.binomtest(wins, n).pvalue)
    assert equivalence(one, model, 0.2).p >= equivalence(one, model, 0.0).p - 1e-12
    assert equivalence(one, model).statistic == wins / n


def test_equal_scores_say_nothing() -> None:
    same = np.arange(5.0)
    assert (equivalence(same, same).p, equivalence(same, same).n) == (1.0, 0)


def test_independence_sees_dependence_that_correlation_does_not() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    assert independence(x**2, x, 200).p < 0.02
    assert abs(stats.pearsonr(x**2, x)[0]) < 0.3
    assert independence(np.full(60, 3.0), x, 200).p == 1
    p = [independence(rng.normal(size=15), rng.normal(size=15), 100, seed).p for seed in range(60)]
    assert 0.3 < np.mean(p) < 0.7 and np.mean(np.array(p) <= 0.05) < 0.15
    shifted = independence(5 + 100 * x**2, x - 7, 200)
    assert shifted.p == independence(x**2, x, 200).p  # each kernel has its own width: units do not matter
    assert np.isnan(independence(x[:3], x[:3]).p)


def test_relaxed_tests_count_random_circuits() -> None:
    drawn = np.arange(1.0, 101.0)
    near = relaxed("sufficiency", 3.5, drawn, 0.9, nearer=True)
    assert near.statistic == 0.97 and near.p == pytest.approx(stats.binomtest(97, 100, 0.9, "greater").pvalue)
    assert relaxed("sufficiency", 1.0, np.ones(50), 0.9, nearer=True).p == 1  # ties are no win
    assert relaxed("partial necessity", 3.5, drawn, 0.9, nearer=False).p > 0.99
    assert np.isnan(relaxed("sufficiency", 1.0, np.empty(0), 0.9, nearer=True).p)


def test_truth_stands_the_tests_and_a_wrong_circuit_does_not() -> None:
    setup = gate("and")
    truth = circuit(setup, *X, *Y, *WAY)
    result = hypothesis_tests(setup, truth, n_random=60, n_permutations=99)
    stands = result.frame.set_index("name")["passes"]
    assert stands[["equivalence", "independence", "minimality", "sufficiency"]].all()
    assert result.edge_frame["beats"].min() == 1 and not result.edge_frame["redundant"].any()
    wrong = circuit(setup, "input->m0", "m0->logits", "input->logits")
    failed = hypothesis_tests(setup, wrong, n_random=60, n_permutations=99)
    stands = failed.frame.set_index("name")["passes"]
    assert not stands[["equivalence", "minimality", "sufficiency", "partial necessity"]].any()
    assert failed.edge_frame["redundant"].all()
    assert "against the circuit" in str(failed)


@needs_ground_truth
@pytest.mark.parametrize("program", ["reverse", "histogram"])
def test_known_circuits_of_compiled_programs(program: str) -> None:
    """What a compiled program is known to need keeps everything, and every single edge of it is needed."""
    model, known = compiled(program)
    setup = program_setup(model, known, (1,))
    truth = Circuit.from_mask(model.shape, needed_edges(known, "paired"), name=program)
    result = evaluate(setup, truth, n_random=20, n_boot=100, n_controls=0)
    assert result.ok and result.frame[["faithfulness", "necessity"]].round(5).eq(1).all(axis=None)
    parts = minimality(setup, truth, n_boot=100).frame
    assert set(parts["label"]) == {"needed"} and (parts["low"] > 0.5).all()
    assert hypothesis_tests(setup, truth, n_random=40, n_permutations=19).frame.set_index("name")["passes"][
        "minimality"
    ]


def test_tests_that_cannot_be_made_are_told() -> None:
    setup = gate("and")
    result = hypothesis_tests(setup, Circuit.full(setup.model.shape), n_random=2, n_permutations=9, max_edges=3)
    stands = result.frame.set_index("name")["passes"]
    assert stands["minimality"] is None and stands["partial necessity, outside"] is None
    assert len(result.edges) == 3 and "not made" in str(result)
    with pytest.raises(CircuitError, match="no edges to take out"):
        hypothesis_tests(setup, Circuit.empty(setup.model.shape))


def test_direction_of_the_metric_is_minded() -> None:
    """With KL, of which less is better, a circuit worse than the model scores lower on every pair."""
    setup = setup_of(toys.and_network(), toys.gate_task(toys.FILLERS), "kl")
    half = hypothesis_tests(setup, circuit(setup, *X, *WAY), n_random=2, n_permutations=9)
    assert half.tests[0].statistic == 0.0 and half.methodology["better"] == "lower"


def test_results_come_back_from_files(tmp_path) -> None:
    setup = gate("or")
    one, shape = circuit(setup, *X, *WAY), setup.model.shape
    scores = np.random.default_rng(0).normal(size=(6, len(edge_table(shape))))
    results = [
        (completeness(setup, one, n_random=1, budget=4, n_boot=10), Completeness),
        (minimality(setup, one, n_boot=10), Minimality),
        (hypothesis_tests(setup, one, n_random=3, n_permutations=9), HypothesisTests),
        (stability(scores, lambda mean: top_n(mean, shape, 9), shape, n_boot=3, n_null=2), Stability),
    ]
    for i, (result, kind) in enumerate(results):
        again = kind.load(result.save(tmp_path / str(i)))
        assert str(again) == str(result)
        pd.testing.assert_frame_equal(again.frame, result.frame)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_families(family: str) -> None:
    """The whole protocol runs on grouped queries, parallel blocks and norms after attention; ends are exact."""
    setup = setup_for(family)
    shape = setup.model.shape
    result = hypothesis_tests(
        setup, random_circuits(shape, 30)[0], held_out=0, n_random=3, n_permutations=9, max_edges=4
    )
    assert np.isfinite(result.kept).all() and np.isfinite(result.without).all() and len(result.outside_cut) == 3
    full = hypothesis_tests(setup, Circuit.full(shape), held_out=0, n_random=2, n_permutations=9, max_edges=2)
    assert np.array_equal(full.kept, full.clean) and np.array_equal(full.cut, full.empty)


def setup_for(family: str) -> Setup:
    words = [f"t{i}" for i in range(families.VOCAB)]
    model = cp.load(families.make(family), toys.tokenizer(words), name=family)
    return setup_of(model, toys.random_task(n=6, n_words=families.VOCAB))
