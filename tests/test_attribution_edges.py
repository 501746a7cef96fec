"""Edge attribution against exact cuts of infinitesimal size, and the properties that it must have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_setups import EVERY_KIND, Toward, family_setup, setup_on
from hypothesis import given, settings
from hypothesis import strategies as st
from path_toys import linear_model

from crosspatch.attribution.ablation import resolve_ablation
from crosspatch.attribution.attribute import attribute, endpoints
from crosspatch.attribution.edges import edge_scores, edge_scores_by_activation
from crosspatch.attribution.methods import EDGE_METHODS
from crosspatch.attribution.points import CLEAN, integration_points
from crosspatch.attribution.rules import relp
from crosspatch.attribution.scores import load_scores
from crosspatch.circuits.masked import run_masks
from crosspatch.errors import MetricError, ResultError
from crosspatch.graph import edge_table
from crosspatch.metrics import KL


def one_by_one(setup, ablation, edges):
    """Exact effect of cutting single edges, `[example, edge]`."""
    table = edge_table(setup.model.shape)
    ends = np.argwhere(table.exists.T)[edges]
    masks = [table.exists.copy()]
    for v, u in ends:
        masks.append(table.exists.copy())
        masks[-1][u, v] = False
    values = run_masks(setup, masks, ablation)
    return (values[0] - values[1:]).T


def some_edges(setup, n=40, seed=0):
    table = edge_table(setup.model.shape)
    return np.sort(np.random.default_rng(seed).choice(len(table), min(n, len(table)), replace=False))


@pytest.mark.parametrize("family", EVERY_KIND)
@pytest.mark.parametrize("ablation", ["paired", "zero"])
def test_eap_is_the_slope_of_an_exact_cut(family, ablation):
    """A cut of size h changes the metric by h times the score, to first order (central differences, float64)."""
    setup = family_setup(family)
    chosen, edges, h = resolve_ablation(ablation, setup), some_edges(setup), 1e-5
    found = edge_scores(setup, chosen)[:, 0, edges]
    slope = (one_by_one(setup, Toward(chosen, h), edges) - one_by_one(setup, Toward(chosen, -h), edges)) / (2 * h)
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-6 * np.abs(found).max())


@pytest.mark.parametrize("method", ["eap", "eap-ig", "eap-ig-activations"])
def test_every_method_is_exact_in_a_linear_network(method):
    setup = setup_on(linear_model())
    exact = one_by_one(setup, resolve_ablation("paired", setup), np.arange(len(edge_table(setup.model.shape))))
    assert (np.abs(exact).max(0) > 1e-6).sum() > 20
    np.testing.assert_allclose(attribute(setup, method).per_example, exact, atol=1e-9)


@pytest.mark.parametrize("positions", [(0, 1, 2, 4, 5, 6), (0, 1, None, 4, 5, 6)])
def test_pairs_of_unequal_length_align_by_their_partners(positions):
    """A token without a partner keeps its value; cutting everything else leads to the corrupt run's answer."""
    setup = family_setup("llama", lengths=(6, 6))
    longer = [[*ids[:3], 7, *ids[3:]] for ids in setup.corrupt]
    partner = [positions] * 2
    unequal = type(setup)(**{**vars(setup), "corrupt": longer, "partner": partner})
    ablation, edges = resolve_ablation("paired", unequal), some_edges(unequal, 20)
    found = edge_scores(unequal, ablation)[:, 0, edges]
    h = 1e-5
    slope = (one_by_one(unequal, Toward(ablation, h), edges) - one_by_one(unequal, Toward(ablation, -h), edges)) / 2 / h
    np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-6 * np.abs(found).max())
    assert not unequal.aligned
    _, cut = endpoints(unequal, ablation)
    np.testing.assert_allclose(cut, unequal.corrupt_metric(unequal.record_corrupt()).numpy(), rtol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_edges_out_of_the_input_add_up_as_steps_grow(family):
    """All of what the input does passes its edges, so that their integrated scores add up to the gap."""
    setup = family_setup(family)
    ablation = resolve_ablation("paired", setup)
    table = edge_table(setup.model.shape)
    clean, cut = endpoints(setup, ablation)

    def missing(steps):
        scores = edge_scores(setup, ablation, integration_points(steps))[:, 0]
        return np.abs(table.matrix(scores)[:, 0].sum(-1) - (clean - cut)).mean()

    few, more, many = missing(2), missing(16), missing(128)
    assert many < 0.2 * more < 0.2 * few
    assert many < 0.02 * np.abs(clean - cut).mean()


@pytest.mark.parametrize("rule", ["left", "right", "trapezoid", "midpoint"])
def test_quadrature_rules_integrate(rule):
    points = integration_points(1000, rule)
    assert sum(p.weight for p in points) == pytest.approx(1)
    assert sum(p.weight * p.clean**2 for p in points) == pytest.approx(1 / 3, abs=2e-3)


def test_unknown_rules_and_methods_are_named():
    with pytest.raises(MetricError, match="simpson"):
        integration_points(5, "simpson")
    with pytest.raises(MetricError, match="eap-ig"):
        attribute(family_setup("gpt2"), "eap-gi")


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(4)), budget=st.sampled_from([0.05, 0.2, 256.0]), steps=st.sampled_from([0, 3]))
def test_scores_depend_neither_on_batches_nor_on_order(order, budget, steps):
    setup = family_setup("llama")
    points = integration_points(steps) if steps else CLEAN
    plain = edge_scores(setup, resolve_ablation("paired", setup), points)
    shuffled = setup.select(order)
    found = edge_scores(shuffled, resolve_ablation("paired", shuffled), points, budget_mib=budget)
    np.testing.assert_allclose(found, plain[list(order)], atol=1e-9)


@pytest.mark.parametrize("method", [name for name in EDGE_METHODS if name not in ("exact", "flow")])
def test_spans_that_part_the_prompt_add_up(method):
    setup = family_setup("gpt2")
    apart, whole = attribute(setup, method, spans=["first", "rest"], steps=2), attribute(setup, method, steps=2)
    assert np.abs(apart.values).max(axis=(0, 2)).min() > 0
    np.testing.assert_allclose(apart.per_example, whole.per_example, atol=1e-9)


def test_a_span_that_an_example_lacks_is_named():
    with pytest.raises(MetricError, match="no span 'verb'"):
        attribute(family_setup("gpt2"), "eap", spans=["verb"])


def test_divergence_from_the_clean_run_is_refused_at_the_clean_run():
    setup = family_setup("gpt2")
    logits = setup.record_clean().logits()
    targets = type(setup.targets)(setup.targets.answers, setup.targets.wrong, clean_logits=logits)
    kl = type(setup)(**{**vars(setup), "metric": KL(), "targets": targets})
    with pytest.raises(MetricError, match="eap-ig"):
        attribute(kl, "eap")
    assert np.abs(attribute(kl, "eap-ig").values).max() > 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "phi3", "gpt_neox"])
def test_relp_leaves_the_values_alone_and_freezes_patterns(family):
    setup = family_setup(family)
    ablation = resolve_ablation("paired", setup)
    plain, ruled = edge_scores(setup, ablation), edge_scores(setup, ablation, rules=relp())
    table = edge_table(setup.model.shape)
    reads = np.array([site.kind for site in table.receivers])
    found = table.matrix(ruled[:, 0])
    assert np.abs(found[..., np.isin(reads, ["q", "k"])]).max() == 0
    assert np.abs(found[..., reads == "v"]).max() > 0
    into_logits = table.matrix(plain[:, 0])[..., -1]
    assert np.abs(found[..., -1] - into_logits).max() > 0  # the final norm's scale is fixed
    assert torch.equal(setup.record_clean().hidden, setup.record_clean().hidden)
    assert not any("forward" in vars(part) for part in setup.model.hf.modules() if "Norm" not in type(part).__name__)


def test_activation_integral_is_exact_for_edges_from_the_last_block_in_a_linear_readout():
    """The last MLP feeds the final norm only: integrating along its own output gives its edge's exact effect."""
    setup = family_setup("gpt2")
    ablation = resolve_ablation("paired", setup)
    table = edge_table(setup.model.shape)
    edge = table.number(len(table.senders) - 1, len(table.receivers) - 1)
    exact = one_by_one(setup, ablation, [edge])[:, 0]
    found = edge_scores_by_activation(setup, ablation, integration_points(64))[:, 0, edge]
    np.testing.assert_allclose(found, exact, rtol=1e-3)
    assert np.abs(edge_scores(setup, ablation)[:, 0, edge] - exact).max() > 0.01 * np.abs(exact).max()


def test_parameters_and_their_gradients_are_left_alone():
    setup = family_setup("llama", torch.float32)
    attribute(setup, "eap-ig", steps=2)
    assert all(p.requires_grad and p.grad is None for p in setup.model.hf.parameters())


def test_scores_are_saved_and_read(tmp_path):
    scores = attribute(family_setup("gpt2"), "eap", spans=["first", "END"])
    read = load_scores(scores.save(tmp_path / "scores"))
    np.testing.assert_array_equal(read.values, scores.values)
    assert (read.parts, read.spans, read.origin) == (scores.parts, scores.spans, scores.origin)
    best = scores.top(3)
    assert best["score"].abs().is_monotonic_decreasing
    assert ((best["low"] <= best["score"]) & (best["score"] <= best["high"])).all()
    (tmp_path / "scores" / "scores.json").write_text("{}")
    with pytest.raises(ResultError, match="holds no scores"):
        load_scores(tmp_path / "scores")


def test_a_longer_corrupt_prompt_whose_first_tokens_are_partners_is_read_in_place():
    setup = family_setup("gpt2", lengths=(4, 4))
    longer = type(setup)(**{**vars(setup), "corrupt": [[*ids, 7, 8] for ids in setup.corrupt]})
    assert not longer.aligned
    keys = [(0, "resid_pre")]
    clean = {key: longer.record_clean(keys).packed(key) for key in keys}
    found = resolve_ablation("paired", longer).store(longer, [0, 1], clean)[keys[0]]
    run = longer.record_corrupt(keys)
    for i in range(2):
        assert torch.equal(found[4 * i : 4 * i + 4], run.value("input", i)[:4])
