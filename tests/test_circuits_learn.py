"""Learned masks: the differentiable pass against the exact engine, and that learning finds small faithful circuits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_setups import EVERY_KIND, family_setup

import crosspatch as cp
from crosspatch.attribution.ablation import resolve_ablation, sender_keys
from crosspatch.attribution.setup import setup_of
from crosspatch.circuits.learn import learn_mask
from crosspatch.circuits.masked import run_masks
from crosspatch.circuits.soft import SoftRun
from crosspatch.errors import CircuitError
from crosspatch.graph import edge_table


def soft(setup, ablation, mask):
    keys = sender_keys(setup.model.shape)
    run = setup.record_clean(keys)
    clean = {key: run.packed(key) for key in keys}
    replaced = resolve_ablation(ablation, setup).store(setup, range(len(setup)), clean)
    return setup.measure(SoftRun(setup, clean, replaced, mask).hidden())


@pytest.mark.parametrize("family", EVERY_KIND)
@pytest.mark.parametrize("ablation", ["paired", "zero"])
def test_a_mask_of_zeros_and_ones_is_the_exact_circuit(family, ablation):
    setup = family_setup(family, lengths=(6, 6, 6))
    exists = edge_table(setup.model.shape).exists
    for share in (1.0, 0.5, 0.0):
        mask = exists & (np.random.default_rng(0).random(exists.shape) < share)
        found = soft(setup, ablation, torch.from_numpy(mask).double()).detach().numpy()
        np.testing.assert_allclose(found, run_masks(setup, [mask], ablation)[0], atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_mask_has_the_gradient_of_finite_differences(family):
    setup = family_setup(family, lengths=(5, 5))
    exists = torch.from_numpy(edge_table(setup.model.shape).exists.copy())
    draw = torch.Generator().manual_seed(0)
    mask = (torch.rand(exists.shape, generator=draw, dtype=torch.float64) * exists).requires_grad_(True)
    (gradient,) = torch.autograd.grad(soft(setup, "paired", mask).sum(), mask)
    for u, v in exists.nonzero()[torch.randperm(int(exists.sum()), generator=draw)[:8]].tolist():
        step = torch.zeros_like(mask)
        step[u, v] = 1e-5
        with torch.no_grad():
            slope = (soft(setup, "paired", mask + step).sum() - soft(setup, "paired", mask - step).sum()) / 2e-5
        assert float(gradient[u, v]) == pytest.approx(float(slope), rel=1e-4, abs=1e-6)


def test_learning_finds_a_small_circuit_that_random_ones_do_not_match():
    model = cp.load("embedded")
    setup = setup_of(model, cp.make_task("ioi", n=16, tokenizer=model.tokenizer))
    table = edge_table(model.shape)
    learned = learn_mask(setup, 0.1, steps=80, batch=16)
    assert learned.history["kept"].iloc[-1] < 0.4 < learned.history["kept"].iloc[0]

    def circuit(scores):
        keep = np.zeros(len(table), dtype=bool)
        keep[np.argsort(-scores)[:50]] = True
        return table.matrix(keep, False)

    draw = np.random.default_rng(0)
    random = [circuit(draw.random(len(table))) for _ in range(10)]
    values = run_masks(setup, [table.exists, ~table.exists, circuit(learned.keep), *random]).mean(1)
    faithfulness = (values[2:] - values[1]) / (values[0] - values[1])
    assert 0.9 < faithfulness[0] < 1.1
    assert (faithfulness[1:] < 0.7).all()


def test_scores_can_open_the_gates_and_seeds_decide():
    setup = family_setup("gpt2", torch.float32, lengths=(4, 4))
    scores = np.arange(len(edge_table(setup.model.shape)), dtype=float)
    runs = [learn_mask(setup, 0.2, objective="metric", start=scores, steps=2, seed=seed).keep for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert runs[0][-1] > runs[0][0]
    assert all(p.requires_grad and p.grad is None for p in setup.model.hf.parameters())


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"objective": "l2"}, {"steps": 0}])
def test_bad_requests_are_named(wrong):
    with pytest.raises(CircuitError, match="learn_mask"):
        learn_mask(family_setup("gpt2", torch.float32), **wrong)
