"""The evaluation protocol on networks whose circuit is known, and its exact values where they are known."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import toys

import crosspatch as cp
from crosspatch.attribution.attribute import attribute
from crosspatch.attribution.setup import Setup, setup_of
from crosspatch.circuits import mib
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.control import on_model, random_weights
from crosspatch.circuits.evaluate import evaluate
from crosspatch.circuits.evaluation import CircuitEvaluation
from crosspatch.circuits.frontier import Frontier, frontier, frontier_of_scores
from crosspatch.circuits.gates import control_gate
from crosspatch.circuits.judge import Judge, held_out_pairs
from crosspatch.circuits.masked import run_masks
from crosspatch.circuits.random import random_circuits
from crosspatch.circuits.select import path_aware
from crosspatch.circuits.specificity import Specificity, specificity
from crosspatch.circuits.worst import worst_pairs
from crosspatch.errors import CircuitError, GateError, ResultError

ONE = ["input->a0.h0.v", "a0.h0->m1", "m1->logits"]
BOTH = [*ONE, "input->a0.h1.v", "a0.h1->m1"]
FAST = {"n_boot": 200, "n_random": 4, "n_controls": 0}


@lru_cache
def gate(which: str, n: int = toys.FILLERS) -> Setup:
    """A network that computes x AND y (or x OR y), and pairs in which both inputs change."""
    return setup_of(getattr(toys, f"{which}_network")(), toys.gate_task(n))


@lru_cache
def indirect_objects(n: int = 40) -> Setup:
    return setup_of(cp.load("embedded"), cp.make_task("ioi", n=n, seed=0))


@lru_cache
def found_circuit() -> Circuit:
    setup = indirect_objects()
    scores = attribute(setup.split(0.5, 0)[0], "eap-ig")
    return path_aware(scores.mean, setup.model.shape, 60, origin=scores.origin)


def circuit(setup: Setup, edges: list[str], name: str = "") -> Circuit:
    return Circuit.from_edges(setup.model.shape, edges, name=name)


# ------------------------------------------------------------------------------------------------- exact ends


@pytest.mark.parametrize("ablation", ["paired", "zero", "mean"])
def test_ends_are_exact(ablation: str) -> None:
    setup = indirect_objects()
    shape = setup.model.shape
    found = evaluate(setup, [Circuit.full(shape), Circuit.empty(shape)], ablation=ablation, **FAST)
    for share in ("faithfulness", "necessity", "faithfulness_of_pairs", "necessity_of_pairs"):
        for end in ("", "_low", "_high"):
            assert found.frame[share + end].tolist() == [1.0, 0.0]
    assert not found.frame["above_one"].any()
    assert found.frame["p_faithfulness"].tolist() == [1.0, 1.0]  # a random circuit of that size is the same circuit


def test_directions_are_sums_of_masks() -> None:
    """Sufficiency runs the circuit's mask, necessity its complement's, on the pairs of `split`."""
    setup, shape = indirect_objects(), indirect_objects().model.shape
    one = found_circuit()
    result = evaluate(setup, one, **FAST)
    judged, _ = held_out_pairs(setup, 0.5, 0)
    assert sorted(judged.digests) == sorted(setup.split(0.5, 0)[1].digests) == sorted(result.pairs)
    values = run_masks(judged, [Circuit.full(shape).keep, Circuit.empty(shape).keep, one.keep, (~one).keep])
    for mine, theirs in zip((result.clean, result.empty, result.kept[0], result.cut[0]), values, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    row, (clean, empty, kept, cut) = result.frame.iloc[0], values.mean(1)
    assert row["faithfulness"] == pytest.approx((kept - empty) / (clean - empty), abs=1e-6)
    assert row["necessity"] == pytest.approx((clean - cut) / (clean - empty), abs=1e-6)


# ---------------------------------------------------------------------------------------------- planted circuits


def test_true_circuit_passes_and_half_of_it_fails() -> None:
    setup = gate("and")
    truth, half = circuit(setup, BOTH, "truth"), circuit(setup, ONE, "half")
    result = evaluate(setup, [truth, half], seed=1, n_boot=200, n_random=100, n_controls=1)
    assert result.ok, result.findings
    assert result.require() is result
    assert result.frame["faithfulness"].round(5).tolist() == [1, 0]
    assert result.frame["necessity"].round(5).tolist() == [1, 1]  # without either input there is no AND
    verdict = {(f.message.split(":")[0], f.level) for f in result.verdict()}
    assert {("truth is sufficient", "info"), ("truth is necessary", "info")} <= verdict
    assert {("half is not shown to be sufficient", "failure"), ("half is necessary", "info")} <= verdict
    beside = [f for f in result.verdict() if f.code == "faithfulness-random"]
    assert [f.level for f in beside] == ["info", "failure"]
    assert result.frame["q_necessity"].min() > 0.05  # cutting one input is enough: many random circuits do
    assert "half is not shown to be sufficient" in str(result)
    assert result.summary()[1].endswith("holds: necessity; fails: sufficiency, faithfulness-random, necessity-random")


def test_either_input_suffices_and_neither_is_needed_in_an_or() -> None:
    setup = gate("or")
    frame = evaluate(setup, [circuit(setup, ONE), circuit(setup, ONE[:2])], **FAST).frame
    assert frame["faithfulness"].round(5).tolist() == [1, 0]
    assert frame["necessity"].round(5).tolist() == [1, 0]  # the first holds the way out, which both inputs share
    both = evaluate(setup, circuit(setup, BOTH), **FAST).frame.iloc[0]
    assert (round(both["faithfulness"], 5), round(both["necessity"], 5)) == (1, 1)


def test_values_above_one_are_flagged() -> None:
    """A second path that works against the answer: the circuit without it beats the model."""
    setup = gate("or")
    model = setup.model
    against = Circuit.from_edges(model.shape, ["input->a0.h1.v", "a0.h1->m1"])
    with_less = setup_of(_weakened(), toys.gate_task(toys.FILLERS))
    result = evaluate(with_less, [~against, Circuit.from_edges(model.shape, ONE[:2])], **FAST)
    np.testing.assert_allclose(result.frame["faithfulness"], [1 / 0.6, 0], atol=1e-5)
    np.testing.assert_allclose(result.frame["necessity"], [1, 1 / 0.6], atol=1e-5)  # y alone pushes below "neither"
    assert result.frame["above_one"].all()
    assert not [f for f in result.verdict() if f.code == "sufficiency" and f.level == "info"]  # 1.67 is not faithful
    flagged = [f for f in result.verdict() if f.code == "above-one"]
    assert [f.level for f in flagged] == ["warning", "warning"]
    assert "2411.16105" in flagged[0].message and "2410.13032" in flagged[1].message
    assert result.summary()[0].endswith("above-one") and "beware: " in result.summary()[0]
    assert not [f for f in evaluate(setup, circuit(setup, BOTH), **FAST).verdict() if f.code == "above-one"]


def test_two_ways_of_averaging_that_disagree_are_told() -> None:
    setup = gate("and")
    result = evaluate(setup, circuit(setup, BOTH), **FAST)
    assert not [f for f in result.verdict() if f.code == "orders"]
    rare = dataclasses.replace(result, clean=result.clean.copy(), kept=result.kept.copy())
    rare.clean[0], rare.kept[0, 0] = 1e3, 1e3  # one pair with a huge gap is explained, the others are not
    rare.kept[0, 1:] = rare.empty[1:]
    assert [f.level for f in rare.verdict() if f.code == "orders"] == ["warning"]
    assert rare.frame["faithfulness"][0] > 0.9 > 0.2 > rare.frame["faithfulness_of_pairs"][0]


def _weakened() -> cp.Model:
    """x makes the answer, y takes half of it away."""
    network = toys.blank()
    toys.copy_head(network, 0, 0, toys.IS_X, toys.BIT_X, toys.A)
    toys.copy_head(network, 0, 1, toys.IS_Y, toys.BIT_Y, toys.B)
    toys.hidden_unit(network, 1, 0, {toys.A: 1.0}, 0.0, 1.0)
    toys.hidden_unit(network, 1, 1, {toys.B: 1.0}, 0.0, -0.4)
    return cp.load(network, toys.tokenizer())


# --------------------------------------------------------------------------------------------- gates and controls


def test_random_model_fails_the_gates() -> None:
    model, _ = toys.random_network()
    setup = setup_of(model, toys.random_task(n=40))
    scores = attribute(setup.split(0.5, 0)[0], "eap")
    result = evaluate(setup, path_aware(scores.mean, model.shape, 30), **FAST)
    assert not result.ok
    assert "gap" in {f.code for f in result.failures}
    assert result.verdict()[0].code == "gates"
    with pytest.raises(GateError, match="no circuit may be claimed"):
        result.require()


def test_pairs_without_a_difference_give_no_numbers_and_no_claim() -> None:
    setup = gate("and")
    same = dataclasses.replace(setup, corrupt=setup.clean)
    listed = [circuit(setup, ONE), circuit(setup, BOTH)]
    result = evaluate(same, listed, **FAST)
    assert {"gap"} <= {f.code for f in result.failures}
    assert result.frame["faithfulness"].isna().all() and "nan" in str(result)
    assert result.summary()[0].endswith("gates failed; fails: sufficiency, necessity")
    assert frontier(same, listed, n_random=2, n_boot=20).areas["value"].isna().all()
    claims = {"a": (same, listed[0]), "b": (same, listed[1])}
    assert specificity(claims, n_random=1, n_boot=20).frame["own_better"].isna().all()


def test_random_circuits_are_no_better_than_random_circuits() -> None:
    """p-values of circuits that are nothing special are spread over 0 to 1."""
    model, _ = toys.random_network()
    setup = setup_of(model, toys.random_task(n=12))
    listed = random_circuits(model.shape, 25, 24, seed=99)
    frame = evaluate(setup, listed, held_out=0, n_random=19, n_boot=20, n_controls=0).frame
    for direction in ("faithfulness", "necessity"):
        p = frame[f"p_{direction}"]
        assert (p <= 0.1).sum() <= 7 and p.max() > 0.6
        assert (frame[f"q_{direction}"] > 0.05).all()


def test_too_few_pairs_fail() -> None:
    setup = gate("and")
    result = evaluate(setup.select(list(range(8))), circuit(setup, BOTH), held_out=0, **FAST)
    assert {"examples"} == {f.code for f in result.failures}


def test_control_model_shows_nothing_and_is_compared() -> None:
    setup = indirect_objects()
    result = evaluate(setup, found_circuit(), n_boot=200, n_random=2, n_controls=2)
    assert result.control_clean.shape == (2, len(result.clean))
    assert np.abs(result.control_clean - result.control_empty).mean() < 0.2 * result.gap.mean()
    assert [f.level for f in result.findings if f.code == "control"] == ["info"]
    assert [f.level for f in evaluate(setup, found_circuit(), **FAST).findings if f.code == "control"] == ["warning"]


def test_prompts_that_give_the_answer_away_fail_the_control() -> None:
    """A model without training (one that copies tokens by its shared embedding) shows the same gap."""
    setup = gate("and")
    gap = np.full(20, 3.0)
    sampler = Judge(setup.select(list(range(20)))).sampler(100, 0)
    shown = control_gate(gap, gap[None] * 0.5, np.zeros((1, 1)), sampler, "higher")
    hidden = control_gate(gap, gap[None] * 0.1, np.zeros((1, 1)), sampler, "higher")
    other = control_gate(gap, gap[None] * -0.5, np.zeros((1, 1)), sampler, "higher")
    assert shown is not None and hidden is not None and other is not None
    assert [shown.level, hidden.level, other.level] == ["failure", "info", "info"]


def test_permuted_weights_keep_each_tensor_and_leave_the_model_alone() -> None:
    model = cp.load("embedded")
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    control = random_weights(model, seed=3)
    for (name, old), new in zip(model.hf.named_parameters(), control.hf.parameters(), strict=True):
        assert old.equal(before[name])
        assert old.flatten().sort().values.equal(new.flatten().sort().values)
    assert not all(p.equal(before[name]) for name, p in control.hf.named_parameters())
    again = dict(random_weights(model, seed=3).hf.named_parameters())
    assert all(p.equal(again[name]) for name, p in control.hf.named_parameters())
    setup = indirect_objects()
    assert on_model(setup, control).clean == setup.clean


# -------------------------------------------------------------------------------------- held out, order, methodology


def test_nothing_depends_on_the_order_of_pairs() -> None:
    setup = indirect_objects()
    order = np.random.default_rng(0).permutation(len(setup)).tolist()
    one, other = (evaluate(each, found_circuit(), n_boot=100, n_random=3) for each in (setup, setup.select(order)))
    assert one.pairs == other.pairs
    assert one.methodology == other.methodology
    pd.testing.assert_frame_equal(one.frame, other.frame, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(one.random_kept, other.random_kept, atol=1e-4)


def test_pairs_that_were_searched_on_are_told() -> None:
    setup, one = indirect_objects(), found_circuit()
    assert [f.message for f in evaluate(setup, one, **FAST).findings if f.code == "held-out"] == [
        "no judged pair was used to find the circuits"
    ]
    seen = [f for f in evaluate(setup, one, held_out=0, **FAST).findings if f.code == "held-out"]
    assert seen[0].level == "warning" and len(seen[0].examples) == len(setup.split(0.5, 0)[0])
    wrong_split = [f for f in evaluate(setup, one | one, seed=5, **FAST).findings if f.code == "held-out"]
    assert wrong_split[0].level == "warning"
    untold = one.with_(origin={})
    levels = [
        next(f.level for f in evaluate(setup, untold, held_out=part, **FAST).findings if f.code == "held-out")
        for part in (0.5, 0)
    ]
    assert levels == ["info", "warning"]


def test_refusals() -> None:
    setup = gate("and")
    with pytest.raises(CircuitError, match="no circuit was given"):
        evaluate(setup, [])
    with pytest.raises(CircuitError, match="held_out"):
        evaluate(setup, circuit(setup, ONE), held_out=1.0)
    with pytest.raises(CircuitError, match="another model"):
        evaluate(setup, found_circuit())
    with pytest.raises(CircuitError, match="no span 'nowhere'"):
        evaluate(setup, Circuit.full(setup.model.shape, spans=("nowhere",)))


def test_split_divides_every_template_alike() -> None:
    setup = indirect_objects()
    for share in (0.25, 0.5, 0.8):
        search, judged = setup.split(share, seed=1)
        assert len(judged) == round(share * len(setup)) and not set(search.digests) & set(judged.digests)
        for template in set(setup.clusters):
            count = setup.clusters.count(template)
            assert abs(judged.clusters.count(template) - share * count) < 1
    few = setup.select(list(range(4)))
    assert [len(part) for part in few.split(0.5)] == [2, 2]


def test_judge_runs_nothing_twice() -> None:
    setup = gate("and")
    judge = Judge(setup)
    first = judge.values([judge.full, circuit(setup, ONE), circuit(setup, ONE), judge.empty])
    assert judge.n_runs == 3
    again = judge.values([circuit(setup, ONE)])
    assert judge.n_runs == 3 and np.array_equal(again[0], first[1])


def test_spans_are_cut_token_by_token() -> None:
    """When a circuit that is kept at overlapping spans is cut, all other tokens stay whole."""
    setup = indirect_objects()
    shape = setup.model.shape
    spans = [
        {**named, "A": (1, len(ids) - 2), "B": (2, len(ids) - 1), "both": (1, len(ids) - 1), "head": (0, 1),
         "tail": (len(ids) - 1, len(ids))}
        for named, ids in zip(setup.spans, setup.clean, strict=True)
    ]  # fmt: skip
    judge = Judge(dataclasses.replace(setup, spans=spans))
    overlapping = Circuit.full(shape, spans=("A", "B"))
    rest = judge.values([Circuit.full(shape, spans=("head", "tail"))])
    np.testing.assert_allclose(judge.without([overlapping]), rest, atol=1e-5)
    np.testing.assert_allclose(judge.without([Circuit.full(shape, spans=("both",))]), rest, atol=1e-5)
    partly = found_circuit().restrict(("A",))
    assert np.array_equal(judge.without([Circuit.empty(shape, spans=("A",))])[0], judge.values([judge.full])[0])
    assert np.array_equal(judge.without([Circuit.full(shape, spans=("*",))])[0], judge.values([judge.empty])[0])
    result = evaluate(judge.setup, partly, n_boot=50, n_random=2, n_controls=0)
    assert result.random_edges.tolist() == [[partly.n_edges] * 2]


# ------------------------------------------------------------------------------------------------------- frontier


def test_areas_by_hand() -> None:
    setup = gate("and")
    shape = setup.model.shape
    listed = [circuit(setup, ONE), circuit(setup, BOTH), Circuit.full(shape)]
    result = frontier(setup, listed, [0.1, 0.5, 1.0], n_random=3, n_boot=50)
    np.testing.assert_allclose(result.frame["faithfulness"], [0, 1, 1], atol=1e-5)
    area = result.areas.set_index("area")["value"]
    assert area["cpr"] == pytest.approx(0.5 * 0.4 + 0.5, abs=1e-5)
    assert area["cmd"] == pytest.approx(0.5 * 0.4, abs=1e-5)
    total = np.log(result.n_total)
    by_log = (0.5 * np.log(5 / 3) + total - np.log(5)) / total
    assert area["log_cpr"] == pytest.approx(by_log, abs=1e-5)
    assert area["log_cmd"] == pytest.approx(1 - by_log, abs=1e-5)


def test_frontier_of_scores_is_that_of_the_benchmark() -> None:
    """Top n = int(k x edges), pruned; ratio of means on the judged pairs; trapezoids over the nominal size."""
    setup = indirect_objects()
    scores = attribute(setup.split(0.5, 0)[0], "eap-ig")
    result = frontier_of_scores(setup, scores.mean, origin=scores.origin, n_random=2, n_boot=100)
    judged, _ = held_out_pairs(setup, 0.5, 0)
    masks = []
    for k in mib.GRID:
        keep = np.zeros(result.n_total, dtype=bool)
        keep[np.argsort(-scores.mean, kind="stable")[: int(k * result.n_total)]] = True
        masks.append(Circuit.from_mask(setup.model.shape, keep).pruned().keep)
    clean, empty, *values = run_masks(judged, [masks[-1], np.zeros_like(masks[0]), *masks]).mean(1)
    f = (np.array(values) - empty) / (clean - empty)
    np.testing.assert_allclose(result.frame["faithfulness"], f, atol=1e-5)
    area = result.areas.set_index("area")
    assert area["value"]["cpr"] == pytest.approx(float(np.trapezoid(f, mib.GRID)), abs=1e-5)
    assert area["value"]["cmd"] == pytest.approx(float(np.trapezoid(np.abs(1 - f), mib.GRID)), abs=1e-5)
    assert ((area["low"] <= area["value"]) & (area["value"] <= area["high"])).all()
    assert area["random_high"]["cpr"] < area["value"]["cpr"]
    assert {"areas", "gap", "examples", "held-out"} <= {f.code for f in result.findings}


def test_frontier_refuses_sizes_that_do_not_grow() -> None:
    setup = gate("and")
    with pytest.raises(CircuitError, match="growing nominal size"):
        frontier(setup, [circuit(setup, BOTH), circuit(setup, ONE)])


# ---------------------------------------------------------------------------------- specificity and worst pairs


def test_specificity_of_two_tasks() -> None:
    """x and y ask for different heads of an OR: each circuit serves its own task only."""
    model = toys.or_network()
    tasks = {
        "x": (setup_of(model, toys.gate_task(toys.FILLERS, "x1 y0", "x0 y0")), ONE),
        "y": (
            setup_of(model, toys.gate_task(toys.FILLERS, "x0 y1", "x0 y0")),
            ["input->a0.h1.v", "a0.h1->m1", "m1->logits"],
        ),
    }
    claims = {name: (setup, circuit(setup, edges)) for name, (setup, edges) in tasks.items()}
    result = specificity(claims, n_random=4, n_boot=50)
    np.testing.assert_allclose(result.matrix()[["x", "y"]], np.eye(2), atol=1e-5)
    np.testing.assert_allclose(result.matrix("necessity")[["x", "y"]], [[1, 1], [1, 1]], atol=1e-5)
    others = result.frame[~result.frame["own"]]
    np.testing.assert_allclose(others["own_better"], 1, atol=1e-5)
    assert (others["q"] <= 0.05).all()
    assert others["edges_shared"].tolist() == [0.2, 0.2]
    with pytest.raises(CircuitError, match="at least two tasks"):
        specificity({"x": claims["x"]})


def test_random_circuits_and_controls_may_be_left_out(tmp_path) -> None:
    setup = gate("and")
    listed = [circuit(setup, ONE), circuit(setup, BOTH)]
    result = evaluate(setup, listed, n_random=0, n_controls=0, n_boot=50)
    assert np.isnan(result.frame[["p_faithfulness", "q_necessity"]]).all(axis=None)
    assert {f.code for f in result.verdict()} == {"sufficiency", "necessity"}
    assert str(CircuitEvaluation.load(result.save(tmp_path))) == str(result)
    assert np.isnan(frontier(setup, listed, n_random=0, n_boot=50).areas["random_high"]).all()


@pytest.mark.parametrize("by", ["metric", "kl"])
def test_worst_pairs(by: str) -> None:
    setup, one = indirect_objects(), found_circuit()
    table = worst_pairs(setup, one, n=3, by=by)
    assert table["deviation"].is_monotonic_decreasing and (table["deviation"] > 0).all()
    judged, _ = held_out_pairs(setup, 0.5, 0)
    assert set(table["pair"]) <= set(judged.digests)
    if by == "metric":
        kept, clean = (evaluate(setup, one, **FAST).kept[0], evaluate(setup, one, **FAST).clean)
        assert table["deviation"][0] == pytest.approx(np.abs(kept - clean).max(), abs=1e-4)
    prompt = setup.model.tokenizer.decode(judged.clean[judged.digests.index(table["pair"][0])])
    assert table["clean_prompt"][0] == prompt


# --------------------------------------------------------------------------------------------------------- files


def test_results_come_back_from_files(tmp_path) -> None:
    setup = gate("and")
    listed = [circuit(setup, ONE), circuit(setup, BOTH)]
    results = [
        evaluate(setup, listed, n_boot=50, n_random=2),
        frontier(setup, listed, n_random=2, n_boot=50),
        specificity({"a": (setup, listed[0]), "b": (setup, listed[1])}, n_random=2, n_boot=50),
    ]
    for i, (result, kind) in enumerate(zip(results, (CircuitEvaluation, Frontier, Specificity), strict=True)):
        folder = result.save(tmp_path / str(i))
        again = kind.load(folder)
        assert str(again) == str(result)
        assert again.circuits == result.circuits
        pd.testing.assert_frame_equal(again.frame, result.frame)
        assert result.save(folder) == folder and len(list(folder.iterdir())) == 2
    with pytest.raises(ResultError, match="expected 'crosspatch-Frontier'"):
        Frontier.load(tmp_path / "0")
    arrays = next((tmp_path / "1").glob("*.parquet"))
    arrays.write_bytes(arrays.read_bytes()[:-10])
    with pytest.raises(ResultError, match="checksum"):
        Frontier.load(tmp_path / "1")
    broken = dataclasses.replace(results[0], clean=results[0].clean[:-1])
    with pytest.raises(ResultError, match="example"):
        broken.save(tmp_path / "3")
