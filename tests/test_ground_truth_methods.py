"""Every way to score edges, against transformers whose circuits are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ground_truth import PROGRAMS, compiled, needs_ground_truth

from crosspatch.attribution.attribute import attribute
from crosspatch.attribution.exact import exact_edges
from crosspatch.attribution.setup import Setup
from crosspatch.circuits.acdc import acdc
from crosspatch.circuits.compare import auroc
from crosspatch.circuits.known import PAIRINGS, distance_setup, needed_edges, program_setup
from crosspatch.graph import edge_table
from crosspatch.metrics import AnswerLogit, Targets


def score(program: str, method: str, ablation: str, **how) -> float:
    """AUROC of the mean absolute score against the edges that are needed."""
    model, known = compiled(program)
    pairings = PAIRINGS if ablation == "paired" and program != "shuffle-dyck2" else (1,)
    found = attribute(program_setup(model, known, pairings), method, ablation=ablation, **how)
    return auroc(np.abs(found.per_example).mean(0), needed_edges(known, ablation))


def every_output(program: str) -> Setup:
    """One row for each output of each position of each example, against the next example."""
    model, known = compiled(program)
    clean, corrupt = known.tokens(), known.tokens(1)
    n, length, columns = len(clean), len(clean[0]), len(known.examples[0].output[0])
    rows = [(i, p, c) for i in range(n) for p in range(1, length) for c in range(columns)]
    return Setup(
        model,
        [clean[i] for i, *_ in rows],
        [corrupt[i] for i, *_ in rows],
        [(p,) for _, p, _ in rows],
        [tuple(range(length))] * len(rows),
        AnswerLogit(),
        Targets(torch.tensor([[c] for *_, c in rows]), torch.zeros(len(rows), 0, dtype=torch.long)),
        [{}] * len(rows),
        [program] * len(rows),
    )


@needs_ground_truth
@pytest.mark.parametrize("program", ["reverse", "xproportion", "histogram"])
@pytest.mark.parametrize("ablation", ["paired", "zero", "mean"])
def test_exact_edges_reproduce_the_stored_effects(program, ablation):
    _, known = compiled(program)
    found = np.abs(exact_edges(every_output(program), ablation=ablation))
    kind = "resample" if ablation == "paired" else ablation
    np.testing.assert_allclose(found.mean(0), known.effects(f"{kind}_mean_abs"), atol=1e-4)
    if ablation != "paired":  # the stored maximum of resampling is over three pairings
        np.testing.assert_allclose(found.max(0), known.effects(f"{kind}_max_abs"), atol=1e-4)


@needs_ground_truth
@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["paired", "zero"])
def test_exact_edges_reproduce_the_stored_effects_of_dyck(ablation):
    _, known = compiled("shuffle-dyck2")
    kind = "resample" if ablation == "paired" else ablation
    stored = known.effects(f"{kind}_mean_abs")
    edges = np.flatnonzero(stored)[::3]
    found = np.abs(exact_edges(every_output("shuffle-dyck2"), edges.tolist(), ablation))
    np.testing.assert_allclose(found.mean(0), stored[edges], atol=1e-4)


@needs_ground_truth
@pytest.mark.parametrize("program", ["reverse", "xproportion", "histogram"])
@pytest.mark.parametrize("ablation", ["paired", "zero", "mean"])
def test_exact_patching_ranks_every_needed_edge_first(program, ablation):
    assert score(program, "exact", ablation) == 1.0


@needs_ground_truth
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("ablation", ["paired", "zero", "mean"])
def test_acdc_keeps_the_needed_edges_and_no_other(program, ablation):
    """The threshold is far below the effect of any needed edge. Of dyck every sixth row is enough."""
    model, known = compiled(program)
    setup = distance_setup(model, known)
    setup = setup.select(range(0, len(setup), 6)) if program == "shuffle-dyck2" else setup
    found = edge_table(model.shape).flat(acdc(setup, 1e-4, ablation).keep)
    np.testing.assert_array_equal(found, needed_edges(known, ablation))


@needs_ground_truth
@pytest.mark.slow
def test_exact_patching_ranks_every_needed_edge_of_dyck_first():
    """On one position of every fourth example; all unused heads included."""
    model, known = compiled("shuffle-dyck2")
    setup = program_setup(model, known, (1,))
    found = attribute(setup.select(range(0, len(setup), 5)), "exact", ablation="paired")
    assert auroc(np.abs(found.per_example).mean(0), needed_edges(known, "paired")) == 1.0


@needs_ground_truth
@pytest.mark.parametrize("program", PROGRAMS)
def test_eap_ig_ranks_every_needed_edge_first(program):
    assert score(program, "eap-ig", "paired") == 1.0


@needs_ground_truth
@pytest.mark.parametrize("program", PROGRAMS)
def test_eap_misses_saturated_steps_and_nothing_else(program):
    """The gradient at the clean run is zero behind the flat parts of the thresholds that dyck's last layers compute."""
    found = score(program, "eap", "paired")
    assert found == 1.0 if program != "shuffle-dyck2" else 0.85 < found < 0.95


@needs_ground_truth
def test_the_edges_that_eap_misses_in_dyck_are_behind_flat_parts():
    model, known = compiled("shuffle-dyck2")
    truth = needed_edges(known, "paired")
    found = np.abs(attribute(program_setup(model, known, (1,)), "eap").per_example).mean(0)
    names = np.array(edge_table(model.shape).names())
    assert set(names[truth & (found == 0)]) == {"m4->m5", "m5->a6.h0.v", "a6.h0->m6"}


@needs_ground_truth
@pytest.mark.parametrize("program", ["reverse", "histogram"])
def test_unwired_edges_score_zero_not_nan(program):
    model, known = compiled(program)
    names = edge_table(model.shape).names()
    unwired = np.array([name not in known.edges for name in names])
    for method in ("eap", "eap-ig", "eap-ig-activations"):
        found = attribute(program_setup(model, known, (1,)), method).per_example
        assert np.abs(found[:, unwired]).max() < 1e-6
