"""The textbook tables on networks wired by hand: what each part does is known without running anything.

Rule B3 of the method: of AND(A, B) -> C, denoising finds only C and noising finds A, B and C; of OR it is the other
way.
"""

from __future__ import annotations

import numpy as np
import pytest
import toys

from crosspatch.errors import GateError
from crosspatch.patching import GaussianNoise, OtherRun, Zero, causal_trace, conditional, drill, patch
from crosspatch.patching.plan import plan_cells
from crosspatch.patching.sweep import set_up

PARTS = {"A": "a0.h0@END", "B": "a0.h1@END", "C": "m1@END"}
GAP = 2 * toys.SCALE


def effects(model, sites="a*.h*@END, m*@END", **kwargs):
    """(denoise, noise, INT, label) of every row, by address, in units of the gap."""
    result = patch(model, toys.gate_task(), sites, metrics="logit_diff", random_control=False, **kwargs)
    frame = result.frame().set_index("address")
    each = {d: result.effects(d) for d in ("denoise", "noise")}
    assert all(np.ptp(values, axis=1).max() < 1e-5 for values in each.values()), "every example must tell the same"
    table = frame[["denoise_effect", "noise_effect", "int"]] / GAP
    return {a: (*table.loc[a].round(5).tolist(), frame.loc[a, "gate"]) for a in table.index}


def test_and():
    found = effects(toys.and_network())
    assert found[PARTS["A"]] == found[PARTS["B"]] == (0, 1, 1, "and-like")
    assert found[PARTS["C"]] == (1, 1, 0, "additive")
    assert {part for part, row in found.items() if row[:2] != (0, 0)} == set(PARTS.values())


def test_or():
    found = effects(toys.or_network())
    assert found[PARTS["A"]] == found[PARTS["B"]] == (1, 0, -1, "or-like")
    assert found[PARTS["C"]] == (1, 1, 0, "additive")
    assert {part for part, row in found.items() if row[:2] != (0, 0)} == set(PARTS.values())


@pytest.mark.parametrize("make", [toys.and_network, toys.or_network])
def test_the_tables_are_about_the_prompts_too(make):
    """With one bit exchanged only, the other input holds still and cannot be seen (rule A6)."""
    task = toys.gate_task(clean="x1 y1" if make is toys.and_network else "x1 y0", corrupt="x0 y1" if
                          make is toys.and_network else "x0 y0")  # fmt: skip
    frame = patch(make(), task, "a0.h*@END", metrics="logit_diff", random_control=False).frame().set_index("address")
    columns = ["denoise_effect", "noise_effect"]
    assert frame.loc[PARTS["A"], columns].tolist() == [GAP, GAP]
    assert frame.loc[PARTS["B"], columns].tolist() == [0, 0]


def test_a_joint_patch_completes_the_and():
    """Denoising A and B together restores what neither restores alone: a window over the heads' block does it."""
    assert effects(toys.and_network(), "a0@END")["a0@END"] == (1, 1, 0, "additive")


@pytest.mark.parametrize("repair", [1.0, 0.7])
def test_backup(repair):
    model = toys.backup_network(repair)
    alone = effects(model, "a0.h0@END, a1.h0@END")
    assert alone["a0.h0@END"][1] == pytest.approx(1 - repair, abs=1e-5)
    assert alone["a1.h0@END"][1] == 0
    found = conditional(model, toys.gate_task(), ["a0.h0@END"], "a*.h*@END, m*@END")
    row = found.frame.set_index("part").loc["a1.h0@END"]
    assert (row["alone"], row["after"]) == pytest.approx((0, repair * GAP), abs=1e-5)
    assert row["joint"] == pytest.approx(GAP, abs=1e-5)
    assert row["joint"] > row["alone"] + found.removed["a0.h0@END"] + 1  # super-additive
    assert row["repair"] == pytest.approx(repair, abs=1e-5)
    assert found.backups["part"].tolist() == ["a1.h0@END"]
    assert found.findings[0].code == "backup"
    assert "a1.h0@END" in found.findings[0].text


def test_no_backup_is_said():
    found = conditional(toys.and_network(), toys.gate_task(), ["a0.h0@END"], "a*.h*@END")
    assert not found.frame["backup"].any()
    assert [f.code for f in found.findings] == ["no-backup"]


@pytest.mark.parametrize("source", [OtherRun(), Zero(), GaussianNoise(draws=2)], ids=lambda s: type(s).__name__)
def test_after_a_removal_a_part_has_the_effect_of_both_edits_in_one_row(source):
    """The removal may be in the base run already (values from a run) or in every row; before, in and after the part."""
    model, task = toys.random_network()[0], toys.random_task(n=6)
    removed, others = ["a1.h1@END", "m1@changed"], "a*.h*@changed, m*@changed, a*.h*@END, m*@END, a1.h*.q@END"
    options = {"source": source, "metrics": "logit_diff", "force": True}
    found = conditional(model, task, [removed], others, **options).frame
    setup = set_up(model, task, direction="noise", **options)
    experiment, tokenized = setup.experiment, setup.experiment.tokenized
    first = plan_cells(model.shape, tokenized, removed)
    bound = source.bind(experiment.setting, [site for cell in first for site in cell.sites])
    clean = experiment.baseline("clean")["logit_diff"]
    for part, joint in zip(found["part"], found["joint"], strict=True):
        cells = [*first, *plan_cells(model.shape, tokenized, part)]
        plans = [
            (0, i, tuple(e for cell in cells for e in experiment.edits("noise", cell, i, bound, draw)))
            for i in range(6)
            for draw in range(source.draws)
        ]
        values, _ = experiment.measure_edits("noise", plans, 1)
        assert joint == pytest.approx((clean - values["logit_diff"][0]).mean(), abs=1e-5), part


def test_removing_a_set_is_removing_all_of_it():
    found = conditional(toys.or_network(), toys.gate_task(), [["a0.h0@END", "a0.h1@END"], "a0.h0@END"], "a0.h1@END")
    assert found.removed == {"a0.h0@END": pytest.approx(0, abs=1e-5)}  # the set has no other part to be tried with
    both = conditional(toys.or_network(), toys.gate_task(), [["a0.h0@END", "a0.h1@END"]], "m1@END")
    assert both.removed == {"a0.h0@END + a0.h1@END": pytest.approx(GAP, abs=1e-5)}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_linear_model_has_no_interaction(seed):
    """Linear in every activation: noising undoes exactly what denoising does, and blocks add up to the stream."""
    model = toys.linear_network(seed)
    result = patch(model, toys.gate_task(), "r*, a*@END, a*.h*@END, a*.h*.v@*", metrics="logit_diff", force=True,
                   random_control=False)  # fmt: skip
    assert np.abs(result.effects("noise")).max() > 0.1
    np.testing.assert_allclose(result.effects("noise"), result.effects("denoise"), atol=2e-5)
    row = {address: result.effects("noise")[i] for i, address in enumerate(result.rows["address"])}
    np.testing.assert_allclose(row["a1.h0@END"] + row["a1.h1@END"], row["a1@END"], atol=2e-5)


def test_drill_opens_only_what_matters():
    found = drill(toys.and_network(), toys.gate_task(), metrics="logit_diff", random_control=False)
    rows = {name: set(level.rows["address"]) for name, level in found.levels.items()}
    assert list(found.levels) == ["residual", "block", "head", "qkv", "neuron"]
    assert rows["block"] == {"a0@END", "m0@END", "a1@END", "m1@END"}
    assert rows["head"] == {"a0.h0@END", "a0.h1@END"}
    assert rows["neuron"] == {"m1.n0@END"}
    frame = found.frame().set_index("address")
    assert frame.loc["a0.h0@END", "parent"] == "a0@END"
    assert frame.loc["a0@END", "parent"] == "r1@END"
    assert frame.loc["a0.h0.v", "parent"] == "a0.h0@END"
    values = frame[frame["granularity"] == "qkv"]
    assert set(values.index[values["noise_effect"] > 1]) == {"a0.h0.v", "a0.h1.v"}
    assert found.top(1, "neuron").index.size == 1


def test_drill_without_parents_runs_a_level_in_full():
    found = drill(toys.or_network(), toys.gate_task(), plan=["neuron"], metrics="logit_diff", random_control=False)
    frame = found.frame().set_index("address")
    assert frame.loc["m1.n0@END", "noise_effect"] == pytest.approx(2 * GAP)  # relu(A + B), halved by the other one
    assert frame.loc["m1.n1@END", "noise_effect"] == pytest.approx(-GAP)


def test_causal_tracing_finds_the_path_of_the_noised_token():
    model, task = toys.and_network(), toys.gate_task()
    with pytest.raises(GateError, match=r"nothing to restore(?s:.*)force=True"):
        causal_trace(model, task, "r*", at="x", noise=GaussianNoise(0.01), metrics="logit_diff", k=50)
    found = causal_trace(model, task, "r*, a*@END", at="x", metrics="logit_diff", force=True, random_control=False)
    frame = found.frame().set_index("address")
    assert frame.loc["r0@x", "denoise_norm"] == pytest.approx(1, abs=1e-5)
    assert frame.loc["a0@END", "denoise_norm"] == pytest.approx(1, abs=1e-5)
    assert frame.loc[["r0@y", "r1@x", "a1@END"], "denoise_norm"].abs().max() < 1e-5
    assert np.isnan(frame["noise_effect"]).all()
    assert found.methodology.n_examples == 12
    assert found.methodology.corruption.startswith("gaussian noise at x")
    assert "noise-corruption" in {f.code for f in found.findings}
