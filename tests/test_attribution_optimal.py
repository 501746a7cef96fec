"""Learned constants against the optimum where it is known, and what they must never be: worse than the mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attribution_setups import family_setup, setup_on
from path_toys import linear_model

from crosspatch.attribution.ablation import Constants
from crosspatch.attribution.exact_nodes import node_effects
from crosspatch.attribution.optimal import optimal_constants
from crosspatch.errors import InterventionError
from crosspatch.graph import nodes
from crosspatch.metrics import KL, LogitDiff, Targets


def test_in_a_linear_network_the_constant_is_that_of_least_squares():
    """The change of the metric is affine in the constant: the best one solves a least-squares problem."""
    model = linear_model(n_layers=1)
    setup = setup_on(model, lengths=[5] * 12)
    learned = optimal_constants(setup, objective="metric", steps=80, batch=12, lr=0.3)
    names = list(map(str, nodes(model.shape)))
    for key, head, name in [((0, "z"), 2, "a0.h2"), ((0, "z"), 0, "a0.h0")]:
        d = model.shape.d_head
        values = [torch.zeros(d), *torch.eye(d)]
        effects = [node_effects(setup, Constants({key: v.double()}), [[name]])[:, 0] for v in values]
        slope = np.stack([e - effects[0] for e in effects[1:]], 1)
        best = np.linalg.lstsq(slope, -effects[0], rcond=None)[1][0] / len(setup)
        at = names.index(name)
        assert best * 0.999 <= learned.end[at] <= best * 1.02
        assert learned.start[at] > 1.2 * best
        constant = learned.ablation.values[key][head]
        exact = node_effects(setup, Constants({key: constant}), [[name]])
        assert np.square(exact).mean() == pytest.approx(learned.end[at], rel=1e-6)


@pytest.mark.parametrize(("family", "objective"), [("gpt2", "kl"), ("llama", "metric"), ("shortformer", "kl")])
def test_no_constant_is_worse_than_the_mean_and_most_are_better(family, objective):
    setup = family_setup(family, torch.float32)
    learned = optimal_constants(setup, objective=objective, steps=12, batch=3)
    assert learned.curve.shape == (12, len(learned.senders))
    assert (learned.end <= learned.start).all()
    assert np.mean(learned.end < 0.9 * learned.start) > 0.5


def test_the_loss_is_that_of_replacing_the_sender_exactly():
    """KL of the two predictions, from the executor's own logits."""
    setup = family_setup("llama")
    learned = optimal_constants(setup, steps=3, batch=4)
    targets = Targets(setup.targets.answers, setup.targets.wrong, clean_logits=setup.record_clean().logits())
    kl = replace(setup, metric=KL(), targets=targets)
    for name in ("input", "a1.h2", "m2"):
        found = -node_effects(kl, learned.ablation, [[name]]).mean()
        assert found == pytest.approx(learned.end[learned.senders.index(name)], rel=1e-6)


def test_joint_constants_are_better_together_than_the_mean():
    setup = family_setup("gpt2", torch.float32)
    learned = optimal_constants(setup, joint=True, steps=25, batch=4, share=0.3)
    assert learned.end[0] < 0.8 * learned.start[0]
    assert learned.ablation.name == "optimal-joint"
    assert set(learned.ablation.values) == {(0, "resid_pre"), *((n, k) for n in range(3) for k in ("z", "mlp_out"))}


def test_the_seed_decides_and_memory_does_not():
    setup = family_setup("llama")
    plain, again, small = (optimal_constants(setup, steps=2, batch=2, budget_mib=b) for b in (None, None, 0.1))
    other = optimal_constants(setup, steps=2, batch=2, seed=1)
    for key, value in plain.ablation.values.items():
        torch.testing.assert_close(again.ablation.values[key], value, rtol=0, atol=0)
        torch.testing.assert_close(small.ablation.values[key], value, rtol=1e-6, atol=1e-6)
    assert any(not torch.allclose(value, other.ablation.values[key]) for key, value in plain.ablation.values.items())


def test_refusals_name_what_is_there():
    setup = setup_on(linear_model(), metric=LogitDiff())
    with pytest.raises(InterventionError, match="kl, metric"):
        optimal_constants(setup, objective="cross-entropy")  # type: ignore[arg-type]
    with pytest.raises(InterventionError, match="share"):
        optimal_constants(setup, joint=True, share=0.0)
