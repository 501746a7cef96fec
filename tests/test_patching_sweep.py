"""Sweeps: exact at both ends, resumable, marked, and clear about input that does not fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import toys
from families import VOCAB, make
from scipy.stats import kstest

from crosspatch.errors import (
    AddressError,
    CrosspatchError,
    GateError,
    InterventionError,
    MetricError,
    ModelError,
    TaskError,
)
from crosspatch.model import load, record
from crosspatch.patching import Function, GaussianNoise, Given, Mean, OtherRun, Resample, Zero, drill, patch
from crosspatch.patching import sweep as sweep_module
from crosspatch.patching.drill import PLAN
from crosspatch.results import SweepResult
from crosspatch.tasks.pairs import Pair, Task

QUICK = {"force": True, "random_control": False}


@pytest.fixture(scope="module")
def random_model():
    return toys.random_network()[0]


def base_values(result, side, metric="logit_diff"):
    return np.broadcast_to(getattr(result, side)[metric], result.noise[metric].shape)


# ------------------------------------------------------------------------------------------------------- exactness


def test_patch_everything_is_the_source_run_and_nothing_the_base_run(random_model):
    """Section 16.3: all of r0 is the whole input; a token that both prompts share carries nothing."""
    result = patch(random_model, toys.random_task(n=6), ["r0@*", "r2.post@END", "a1.kv0.k@0", "r1@0"], **QUICK)
    rows = {address: i for i, address in enumerate(result.rows["address"])}
    for metric in result.metrics:
        for whole in ("r0", "r2.post@END"):
            np.testing.assert_allclose(result.denoise[metric][rows[whole]], result.clean[metric], atol=1e-5)
            np.testing.assert_allclose(result.noise[metric][rows[whole]], result.corrupt[metric], atol=1e-5)
        for nothing in ("a1.kv0.k@0", "r1@0"):
            assert np.array_equal(result.denoise[metric][rows[nothing]], result.corrupt[metric])
            assert np.array_equal(result.noise[metric][rows[nothing]], result.clean[metric])


def test_the_same_run_on_both_sides_changes_nothing(random_model):
    task = toys.random_task(n=4)
    same = dataclasses.replace(
        task, pairs=tuple(dataclasses.replace(p, corrupt=p.clean, corrupt_spans=p.spans) for p in task.pairs)
    )
    result = patch(random_model, same, "r*, a*.h*@END, m*@END", **QUICK)
    for metric in result.metrics:
        assert np.array_equal(result.noise[metric], base_values(result, "clean", metric))
        assert np.array_equal(result.denoise[metric], base_values(result, "corrupt", metric))
    assert result.methodology.forced


def test_a_row_is_one_hook_on_the_plain_model(random_model):
    """Against a hook on the untouched module, without any of the package's own code in between."""
    tokenized = toys.random_task(n=3).tokenize(random_model.tokenizer)
    result = patch(random_model, tokenized, "r2@changed", metrics="logit_diff", **QUICK)
    for i in range(3):
        source = record(random_model, [tokenized.corrupt[i]]).value("r2", 0)

        def swap(module, args, source=source, at=tokenized.spans[i]["changed"][0]):
            hidden = args[0].clone()
            hidden[0, at] = source[at]
            return (hidden, *args[1:])

        hook = random_model.hf.model.layers[2].register_forward_pre_hook(swap)
        with torch.no_grad():
            logits = random_model.hf(torch.tensor([tokenized.clean[i]])).logits[0, -1]
        hook.remove()
        expected = float(logits[tokenized.answers[i][0]] - logits[tokenized.wrong[i][0]])
        assert result.noise["logit_diff"][0, i] == pytest.approx(expected, abs=1e-5)


def test_several_metrics_cost_one_pass(random_model):
    one = patch(random_model, toys.random_task(n=4), "r*", metrics="kl", **QUICK)
    many = patch(random_model, toys.random_task(n=4), "r*", metrics="logit_diff,kl,js,prob,rank,top5", **QUICK)
    assert many.cost["patched_forwards"] == one.cost["patched_forwards"]
    np.testing.assert_allclose(many.noise["kl"], one.noise["kl"], atol=1e-6)
    assert {"answer_logit", "wrong_logit", "entropy", "rank_gap"} <= set(many.metrics)


def test_cross_entropy_of_the_clean_text(random_model):
    tokenized = toys.random_task(n=2).tokenize(random_model.tokenizer)
    result = patch(random_model, tokenized, "r0@*", metrics=["logit_diff", "cross_entropy"], **QUICK)
    for i in range(2):
        text = torch.tensor([*tokenized.clean[i], tokenized.answers[i][0]])
        with torch.no_grad():
            logits = random_model.hf(text[None, :-1]).logits[0]
        expected = torch.nn.functional.cross_entropy(logits, text[1:])
        assert result.clean["cross_entropy"][i] == pytest.approx(float(expected), abs=1e-4)
        assert result.denoise["cross_entropy"][0, i] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(
    "source", [Zero(), Mean("clean"), Mean("corrupt", "all"), GaussianNoise(draws=2), Resample(draws=2),
               Function(lambda x: x * 0.5), Given(torch.ones(1)), OtherRun()]
)  # fmt: skip
def test_every_source_runs_in_its_directions(random_model, source):
    result = patch(random_model, toys.random_task(n=4), "a1.h0@END, m1@END", source=source, **QUICK)
    for direction in ("denoise", "noise"):
        values = getattr(result, direction)["logit_diff"]
        assert np.isfinite(values).all() == (direction in source.directions)
    assert source.describe()["source"] in result.methodology.source
    assert ("off-distribution" in {f.code for f in result.findings}) == (not isinstance(source, OtherRun))


def test_windows_patch_consecutive_layers_together(random_model):
    task = toys.random_task(n=4)
    result = patch(random_model, task, "a*@END", window=3, metrics="logit_diff", **QUICK)
    assert result.rows["address"].tolist() == ["a[0-1]@END", "a[0-2]@END", "a[1-2]@END"]
    assert result.rows["n_sites"].tolist() == [2, 3, 2]
    single = patch(random_model, task, "a*@END", metrics="logit_diff", **QUICK)
    assert not np.allclose(result.noise["logit_diff"][1], single.noise["logit_diff"][1])
    assert result.methodology.window == 3


def test_pairs_of_unequal_length_run_by_their_spans(random_model):
    pairs = [
        Pair(f"t1 t{i} t3 t9", f"t1 t{i + 20} t{i + 40} t3 t9", f" t{i + 60}", f" t{i + 80}",
             {"name": f"t{i}"}, {"name": f"t{i + 20} t{i + 40}"})
        for i in range(20, 26)
    ]  # fmt: skip
    result = patch(random_model, Task("unequal", pairs), "r0@*, r1@name, r2.post@END, a1.h1.q@END", **QUICK)
    rows = {address: i for i, address in enumerate(result.rows["address"])}
    np.testing.assert_allclose(result.noise["logit_diff"][rows["r2.post@END"]], result.corrupt["logit_diff"], atol=1e-5)
    np.testing.assert_allclose(result.denoise["logit_diff"][rows["r2.post@END"]], result.clean["logit_diff"], atol=1e-5)
    assert np.isfinite(result.effects("noise")).all()


def test_one_row_per_corruption(random_model):
    parts = [dataclasses.replace(p, corruption=f"kind {i % 2}") for i, p in enumerate(toys.random_task(n=6).pairs)]
    result = patch(random_model, Task("two", parts), "r1@changed, r2@changed", metrics="logit_diff", **QUICK)
    assert result.rows["corruption"].tolist() == ["kind 0"] * 2 + ["kind 1"] * 2
    assert np.isnan(result.noise["logit_diff"][0]).tolist() == [False, True] * 3
    assert np.isnan(result.noise["logit_diff"][2]).tolist() == [True, False] * 3


def oriented(model, task):
    """The pairs with right and wrong answer named so that the clean run does better, whatever the weights."""
    gap = patch(model, task, "r0@END", metrics="logit_diff", **QUICK).gap()
    pairs = [
        p if g > 0 else dataclasses.replace(p, answers=p.wrong, wrong=p.answers)
        for p, g in zip(task.pairs, gap, strict=True)
    ]
    return dataclasses.replace(task, pairs=tuple(pairs))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "mixtral"])
def test_drill_on_other_families(family):
    """Fused projections, parallel blocks, post norms, experts without neurons; every level opened in full."""
    words = toys.tokenizer([f"t{i}" for i in range(VOCAB)])
    model = load(make(family), words)
    task = oriented(model, toys.random_task(n=10, n_words=VOCAB))
    found = drill(model, task, min_effect=0.0, alpha=1.0, top=2, metrics="logit_diff,kl", **QUICK)
    assert list(found.levels) == [g for g in PLAN if g != "neuron" or model.shape.has_neurons]
    table = found.result
    assert np.isfinite(table.effects("noise")).all()
    rows = {address: i for i, address in enumerate(table.rows["address"])}
    last = rows[f"r{model.shape.n_layers - 1}.post@END"]
    np.testing.assert_allclose(table.noise["logit_diff"][last], table.corrupt["logit_diff"], atol=1e-4)
    neurons = table.rows[table.rows["granularity"] == "neuron"]
    assert len(neurons) <= 2 * 32
    assert neurons["parent"].nunique() == (2 if model.shape.has_neurons else 0)


# -------------------------------------------------------------------------------------------- controls and resuming


def test_controls_are_marked_matched_and_seeded():
    model = toys.and_network()
    run = lambda seed: patch(model, toys.gate_task(), "a0.h0@END, r0@x", metrics="logit_diff", seed=seed)  # noqa: E731
    result = run(0)
    rows = result.rows
    sites, pushes = rows[rows["control"] == "random site"], rows[rows["control"] == "random direction"]
    assert set(pushes["address"]) == {"a0.h0@END", "r0@x"}
    assert set(sites["granularity"]) == {"head", "residual"}
    assert not set(sites["address"]) & {"a0.h0@END", "r0@x", "input@x"}
    assert set(sites["position"]) == {"END", "x"}
    assert result.frame()["q_noise"][result.is_control].isna().all()
    again, other = run(0), run(1)
    assert np.array_equal(result.noise["logit_diff"], again.noise["logit_diff"])
    assert not np.array_equal(result.noise["logit_diff"], other.noise["logit_diff"])


def test_a_random_push_is_as_long_as_the_difference_it_replaces(random_model):
    from crosspatch.graph import parse_site
    from crosspatch.metrics import resolve_metrics
    from crosspatch.patching.controls import RandomDirection
    from crosspatch.patching.experiment import prepare

    world = prepare(random_model, toys.random_task(n=2).tokenize(random_model.tokenizer), resolve_metrics("logit_diff"))
    site, spot = parse_site("r2"), world.spots.spot("clean", 1, "*")
    push = RandomDirection(OtherRun().bind(world.setting, []), world.setting, 0).edit("noise", site, 1, spot, 0)
    clean, corrupt = (world.runs[side].value(site, 1) for side in ("clean", "corrupt"))
    assert torch.allclose((push.value - clean).norm(dim=-1), (corrupt - clean).norm(dim=-1), atol=1e-5)
    assert not torch.allclose(push.value[2:], corrupt[2:], atol=1e-2)


def test_a_stopped_sweep_goes_on_where_it_was(random_model, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "ROWS_PER_BLOCK", 8)
    task, sites = toys.random_task(n=4), "r*, a*.h*@END"
    whole = patch(random_model, task, sites, force=True)
    blocks = 0

    def stop(stage, done, total):
        nonlocal blocks
        blocks += done == total or done % 2 == 0
        if blocks > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patch(random_model, task, sites, force=True, out=tmp_path, progress=stop)
    assert list((tmp_path / "parts").glob("part-*.parquet"))
    assert not (tmp_path / "result.json").exists()
    resumed = patch(random_model, task, sites, force=True, out=tmp_path)
    assert 0 < resumed.cost["resumed_rows"] < len(whole.rows) * 2
    for metric in whole.metrics:
        np.testing.assert_allclose(resumed.noise[metric], whole.noise[metric], atol=1e-5)
        np.testing.assert_allclose(resumed.denoise[metric], whole.denoise[metric], atol=1e-5)
    assert not (tmp_path / "parts").exists()
    saved = SweepResult.load(tmp_path)
    assert np.array_equal(saved.noise["kl"], resumed.noise["kl"])
    again = patch(random_model, task, sites, force=True, out=tmp_path)  # finished: nothing is run
    assert again.cost == saved.cost


def test_progress_goes_up_to_its_total(random_model):
    seen: dict[str, list[tuple[float, float]]] = {}
    patch(random_model, toys.random_task(n=4), "r*", force=True,
          progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)))  # fmt: skip
    assert {"denoise", "noise"} <= set(seen)
    for steps in seen.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1][0] == pytest.approx(steps[-1][1])


# --------------------------------------------------------------------------------------------------- random weights


def test_gates_refuse_a_model_that_cannot_do_the_task(random_model):
    with pytest.raises(GateError, match=r"behaviour(?s:.*)force=True"):
        patch(random_model, toys.random_task())
    result = patch(random_model, toys.random_task(n=8), "r1", **QUICK)
    assert result.methodology.forced
    assert result.findings[0].code == "forced"
    assert result.findings[0].severity == "error"


def test_p_values_are_uniform_where_there_is_nothing_to_find():
    """Section 16.6. One row per model, so that the p-values are independent; weights and words from other seeds."""
    found = []
    for seed in range(60):
        model, _ = toys.random_network(seed)
        result = patch(
            model, toys.random_task(10_000 + seed, n=12), "m1@changed", metrics="logit_diff", direction="noise", **QUICK
        )
        found.append(result.frame()["p_noise"].iloc[0])
    assert kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) <= 0.15


# -------------------------------------------------------------------------------------------------------- bad input


def fails(error, match, model, task, *args, **kwargs):
    with pytest.raises(error, match=match) as caught:
        patch(model, task, *args, **kwargs)
    assert isinstance(caught.value, CrosspatchError)
    assert caught.value.fix, "every error names a fix"
    return caught.value


def test_bad_input_is_refused_by_name(random_model):
    """Section 11 of the method's table of silent failures, row by row."""
    task = toys.random_task(n=4)
    ok = {"force": True}
    assert (
        fails(
            MetricError,
            r"own_metric'.*shape \[\](?s:.*)do not average over rows",
            random_model,
            task,
            "r1",
            metrics=["logit_diff", lambda logits, answers, wrong: logits.mean()],
            **ok,
        ).where
        == "metric 'own_metric'"
    )
    fails(AddressError, r"hook_resid_pre(?s:.*)did you mean r1", random_model, task, "blocks.1.hook_resid_pre", **ok)
    fails(AddressError, "a7.h0: layer 7 does not exist(?s:.*)3 layers, 0 to 2", random_model, task, "a7.h0", **ok)
    fails(AddressError, "head 9 does not exist(?s:.*)4 heads", random_model, task, "a1.h9", **ok)
    fails(AddressError, "position 9 does not exist(?s:.*)5 tokens", random_model, task, "r1@9", **ok)
    fails(AddressError, "no span 'subject'(?s:.*)changed", random_model, task, "r1@subject", **ok)
    fails(InterventionError, "no source was given(?s:.*)OtherRun", random_model, task, "r1", source=None, **ok)
    fails(InterventionError, "direction='up'", random_model, task, "r1", direction="up", **ok)
    fails(InterventionError, "denoising inserts a clean value, and zero is none", random_model, task, "r1",
          direction="denoise", source=Zero(), **ok)  # fmt: skip
    fails(InterventionError, r"shape \[7\](?s:.*)\[1 positions, 32\]", random_model, task, "r1@END",
          source=Given(torch.zeros(7)), **ok)  # fmt: skip
    fails(
        InterventionError,
        r"r1: the function returned NoneType(?s:.*)\[1, 32\]",
        random_model,
        task,
        "r1@END",
        source=Function(lambda x: None),
        **QUICK,
    )
    fails(TaskError, "str is not a task(?s:.*)make_task", random_model, "ioi", "r1", **ok)
    fails(
        MetricError, "unknown metric 'logit_dif'(?s:.*)logit_diff", random_model, task, "r1", metrics="logit_dif", **ok
    )


def test_train_mode_is_refused():
    model, _ = toys.random_network()
    model.hf.train()
    fails(ModelError, "training mode(?s:.*)eval", model, toys.random_task(n=4), "r1", force=True)


def test_sides_of_different_sizes_are_refused(random_model):
    tokenized = toys.random_task(n=4).tokenize(random_model.tokenizer)
    short = dataclasses.replace(tokenized, clean=tokenized.clean[:1])
    fails(TaskError, "1 clean, 4 corrupt", random_model, short, "r1", force=True)


def test_clean_equal_to_corrupt_is_refused():
    pairs = [Pair(f"w{i} x1 y1 ?", f"w{i} x1 y1 ?", " yes", " no") for i in range(6)]
    fails(GateError, r"clean-differs(?s:.*)in 6 of 6 pairs(?s:.*)w0", toys.and_network(), Task("same", pairs), "r1")


def test_unequal_lengths_without_spans_are_refused_and_the_end_is_the_end(random_model):
    pairs = [Pair("t1 t2 t3", "t1 t4 t5 t3", " t7", " t8"), Pair("t1 t2 t9", "t1 t4 t5 t9", " t7", " t8")]
    fails(GateError, "alignment(?s:.*)3 and 4 tokens", random_model, Task("bad", pairs), "r1@END")
    fails(TaskError, "no span names what differs", random_model, Task("bad", pairs), "r1@END", force=True)
    named = [dataclasses.replace(p, spans={"x": "t2"}, corrupt_spans={"x": "t4 t5"}) for p in pairs]
    result = patch(random_model, Task("ok", named), "r2.post@END", metrics="logit_diff", **QUICK)
    for i, pair in enumerate(named):  # read at each prompt's own last token, not at a pad
        ids = random_model.tokenizer(pair.corrupt, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = random_model.hf(ids).logits[0, -1]
        assert result.corrupt["logit_diff"][i] == pytest.approx(float(logits[7] - logits[8]), abs=1e-5)
    fails(MetricError, r"differ in length \(example 0: 3 and 4 tokens\)", random_model, Task("ok", named), "r1@END",
          metrics=["logit_diff", "cross_entropy"], force=True)  # fmt: skip
    fails(InterventionError, "pattern rows have(?s:.*)q and k", random_model, Task("ok", named), "a1.h0.pattern@END",
          metrics="logit_diff", force=True)  # fmt: skip


def test_a_confirmatory_run_takes_a_fixed_list(random_model):
    task = toys.random_task(n=4)
    fails(
        InterventionError,
        r"'r\*' is a pattern(?s:.*)exploratory",
        random_model,
        task,
        "r*",
        mode="confirmatory",
        force=True,
    )
    result = patch(random_model, task, ["r1@changed", "a1.h0@*"], mode="confirmatory", **QUICK)
    assert {"logit_diff", "log_prob", "prob", "kl", "accuracy", "rank"} <= set(result.metrics)
    assert result.methodology.mode == "confirmatory"
