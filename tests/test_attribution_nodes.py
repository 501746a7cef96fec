"""Node attribution against exact patching: slopes at every kind of site, sum rules, and parts that gradients miss."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
import torch
from attribution_setups import Toward, family_setup, setup_on
from hypothesis import given, settings
from hypothesis import strategies as st
from path_toys import linear_model
from torch import nn
from toys import BIT_X, ID, IS_X, OUT, A, blank, copy_head, hidden_unit

from crosspatch.attribution.ablation import Constants, Paired, Zero, mean_of, resolve_ablation
from crosspatch.attribution.edges import edge_scores
from crosspatch.attribution.exact_nodes import node_effects
from crosspatch.attribution.forward import trace
from crosspatch.attribution.nodes import node_keys, node_scores, node_scores_by_activation
from crosspatch.attribution.points import CLEAN, INPUT, integration_points
from crosspatch.attribution.rules import relp
from crosspatch.attribution.setup import Setup
from crosspatch.errors import AddressError, CrosspatchError, InterventionError, MetricError, ModelError
from crosspatch.graph import ModelShape, edge_table, key_value, nodes
from crosspatch.metrics import KL, LogitDiff, Targets
from crosspatch.model import load

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2", "olmo2", "shortformer")


@lru_cache
def cached(family: str) -> Setup:
    return family_setup(family)


def sites_of(shape: ModelShape, layer: int = 1) -> list[str]:
    """The input, and one or two sites of every kind in a layer."""
    found = ["input", f"r{layer}", f"r{layer}.post", f"a{layer}", f"a{layer}.h0", f"a{layer}.h3", f"a{layer}.h2.q"]
    found += [str(key_value(kind, layer, group, shape)) for kind in "kv" for group in (0, shape.n_kv_heads - 1)]
    if shape.has_mlp:
        found += [f"m{layer}", f"m{layer}.act", f"m{layer}.n0", f"m{layer}.n77"]
    return [*found, f"r{layer}.mid"] if shape.has_resid_mid else found


def slopes(setup, sites, ablation, spans=None, h=1e-5):
    """What a small step of each site towards its replacement changes, by the executor: central differences."""
    sets = [[f"{site}@{span}" if span else site] for span in (spans or [None]) for site in sites]
    near, far = (node_effects(setup, Toward(ablation, step), sets) for step in (h, -h))
    return ((near - far) / (2 * h)).reshape(len(setup), len(spans or [None]), len(sites))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("ablation", "layer"), [("paired", 1), ("zero", 2)])
def test_scores_are_the_slope_at_the_site_itself(family, ablation, layer):
    setup = cached(family)
    sites = sites_of(setup.model.shape, layer)
    chosen = resolve_ablation(ablation, setup)
    found = node_scores(setup, sites, chosen)
    wanted = slopes(setup, sites, chosen)
    if ablation == "paired":  # every site was moved; halving all of what a norm reads changes nothing
        assert np.abs(found).max(axis=(0, 1)).min() > 1e-7
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.abs(found).max())


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_spans_are_slopes_of_their_tokens(family):
    setup, spans = cached(family), ["first", "END"]
    sites = sites_of(setup.model.shape, layer=0)
    found = node_scores(setup, sites, Paired(), spans=spans)
    np.testing.assert_allclose(found, slopes(setup, sites, Paired(), spans), rtol=1e-5, atol=1e-6)
    with pytest.raises(MetricError, match="no span 'verb'"):
        node_scores(setup, sites, Paired(), spans=["verb"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("points", [CLEAN, integration_points(3)])
def test_edges_out_of_a_node_add_up_to_its_score(family, points):
    setup = cached(family)
    table = edge_table(setup.model.shape)
    edges = table.matrix(edge_scores(setup, Paired(), points)).sum(-1)
    found = node_scores(setup, nodes(setup.model.shape), Paired(), points)
    if points is not CLEAN and family in ("gemma2", "olmo2"):
        # A norm after the attention joins its heads: what one head writes is linearised at the clean run by edges, and
        # at each point by nodes. Other senders are not touched by it.
        kept = [i for i, site in enumerate(table.senders) if site.kind != "z"]
        edges, found = edges[..., kept], found[..., kept]
    np.testing.assert_allclose(found, edges, rtol=1e-9, atol=1e-9 * np.abs(edges).max())


def test_scores_are_exact_in_a_linear_network():
    setup = setup_on(linear_model())
    sites = [*nodes(setup.model.shape), "a1", "m1.act", "m1.n5", "a2.h1.v", "r1", "r2.mid", "r2.post", "a1.h0.q"]
    exact = node_effects(setup, Paired(), [[site] for site in sites])
    ruled = straight_setup()
    for found in (
        node_scores(setup, sites, Paired())[:, 0],
        node_scores(setup, sites, Paired(), integration_points(2))[:, 0],
        node_scores_by_activation(setup, sites, Paired(), integration_points(2))[:, 0],
        node_scores(ruled, sites, Paired(), rules=relp())[:, 0],
    ):
        np.testing.assert_allclose(found, exact, atol=1e-9)
    assert np.abs(exact[:, :-1]).max(0).min() > 1e-3
    assert np.abs(exact[:, -1]).max() == 0  # uniform attention


class Straight(nn.Module):
    """An activation function that is none."""

    def forward(self, x):
        return x


def straight_setup() -> Setup:
    """The linear network with its missing activations as modules, which the rules look for."""
    model = linear_model()
    for block in model.hf.transformer.h:
        block.mlp.act = Straight()
    return setup_on(model)


def sharp_last_layer() -> Setup:
    """Linear but for the attention patterns of the last layer, which are far from uniform."""
    model = linear_model()
    with torch.no_grad():
        attention = model.hf.transformer.h[-1].attn.c_attn
        attention.weight[:, :24] = 3 * torch.randn(12, 24, generator=torch.Generator().manual_seed(1))
    return setup_on(model)


def test_the_qk_fix_is_exact_where_only_the_pattern_is_not_linear():
    setup, spans = sharp_last_layer(), ["first", "rest"]
    sites = [f"a2.h{head}.{kind}" for head in range(3) for kind in "qk"]
    sets = [[f"{site}@{span}"] for span in spans for site in sites]
    exact = node_effects(setup, Paired(), sets).reshape(len(setup), 2, len(sites))
    np.testing.assert_allclose(node_scores(setup, sites, Paired(), qk_fix=True, spans=spans), exact, atol=1e-9)
    assert np.abs(node_scores(setup, sites, Paired(), spans=spans) - exact).max() > 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_qk_fix_changes_nothing_where_changes_are_small(family):
    """Soft caps, windows, grouped keys and rotation included."""
    setup, h = cached(family), 1e-6
    shape = setup.model.shape
    sites = [f"a1.h{head}.q" for head in range(4)] + [str(key_value("k", 1, g, shape)) for g in range(shape.n_kv_heads)]
    plain = node_scores(setup, sites, Paired(), spans=["first", "rest"])
    fixed = node_scores(setup, sites, Toward(Paired(), h), spans=["first", "rest"], qk_fix=True) / h
    np.testing.assert_allclose(fixed, plain, rtol=1e-3, atol=1e-4 * np.abs(plain).max())


def toy_setup(hf, clean: str, corrupt: str) -> Setup:
    """One pair of words of the hand-wired networks, with yes as the answer."""
    ids = [[ID[word] for word in text.split()] for text in (clean, corrupt)]
    n = len(ids[0])
    return Setup(
        load(hf), ids[:1], ids[1:], [(n - 1,)], [tuple(range(n))], LogitDiff(),
        Targets(torch.tensor([[ID["yes"]]]), torch.tensor([[ID["no"]]])), [{"END": (n - 1, n)}], ["toy"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("site", "clean", "corrupt", "effect"),
    [("a0.h0.k", "w0 x1 y0 ?", "w0 y0 x1 ?", 6.0), ("a0.h0.q", "w0 x1 y0 ?", "w0 x1 y0 w1", 4.5)],
)
def test_atp_misses_saturated_attention_and_the_qk_fix_finds_it(site, clean, corrupt, effect):
    hf = blank()
    copy_head(hf, 0, 0, IS_X, BIT_X, OUT)
    setup = toy_setup(hf, clean, corrupt)
    assert node_effects(setup, Paired(), [[site]])[0, 0] == pytest.approx(effect)
    assert abs(node_scores(setup, [site], Paired())[0, 0, 0]) < 1e-3
    assert node_scores(setup, [site], Paired(), qk_fix=True)[0, 0, 0] == pytest.approx(effect)
    star = node_scores(setup, [site], Paired(), qk_fix=True, grad_drop=True)[0, 0, 0]
    assert star == pytest.approx(effect)  # nothing later depends on it, so that dropping a layer takes nothing away


def test_atp_misses_cancelling_effects_and_graddrop_finds_them():
    """The head adds x to OUT; a neuron takes relu(x - 1/2) off again: at the clean run the two slopes cancel."""
    hf = blank()
    copy_head(hf, 0, 0, IS_X, BIT_X, OUT)
    with torch.no_grad():
        hf.model.layers[0].self_attn.o_proj.weight[A, 0] = 1.0
    hidden_unit(hf, 1, 0, {A: 1.0}, -0.5, -1.0)
    setup = toy_setup(hf, "w0 x1 y0 ?", "w0 x0 y0 ?")
    assert node_effects(setup, Paired(), [["a0.h0"]])[0, 0] == pytest.approx(3.0)
    assert node_scores(setup, ["a0.h0"], Paired())[0, 0, 0] == pytest.approx(0.0)
    assert node_scores(setup, ["a0.h0"], Paired(), grad_drop=True)[0, 0, 0] == pytest.approx(6.0)  # the direct effect


def test_graddrop_is_the_size_of_the_effect_where_it_is_all_direct():
    """Only what the last layer writes and what goes past it matters here: no drop changes it, whatever kind of site."""
    model = linear_model()
    with torch.no_grad():
        for block in model.hf.transformer.h:
            block.attn.c_attn.weight[:, 24:] = 0  # attention and MLPs write constants
            block.mlp.c_fc.weight.zero_()
    setup = setup_on(model)
    sites = ["input", "r1", "a1.h2", "m1", "m2.n4", "a0.h0.v", "r2.post"]
    far = Constants({key: torch.full((), 2.0) for key in node_keys(model, sites)})
    exact = node_effects(setup, far, [[site] for site in sites])
    found = node_scores(setup, sites, far, grad_drop=True)[:, 0]
    np.testing.assert_allclose(found, np.abs(exact), atol=1e-9)
    assert np.abs(exact).max(0).min() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_graddrop_is_the_mean_of_passes_without_one_layer(family):
    """Against runs in which that layer's outputs are constants of the same value."""
    setup = cached(family)
    sites = ["input", "a0.h1", "a2.h1", "m1"]
    sums = np.zeros((len(setup), len(sites)))
    for dropped in range(3):
        gradients = _without(setup, dropped)
        for s, (key, head) in enumerate([(INPUT, None), ((0, "z"), 1), ((2, "z"), 1), ((1, "mlp_out"), None)]):
            if key == (dropped, "mlp_out"):
                continue
            run, corrupt = setup.record_clean([key]), setup.record_corrupt([key])
            product = (run.packed(key) - corrupt.packed(key)) * gradients[key]
            product = product.sum(-1) if head is None else product[:, head].sum(-1)
            sums[:, s] += [abs(float(product[a:b].sum())) for a, b in zip(run.offset, run.offset[1:], strict=False)]
    np.testing.assert_allclose(
        node_scores(setup, sites, Paired(), grad_drop=True)[:, 0], sums / [3, 2, 2, 2], rtol=1e-9, atol=1e-9
    )


def _without(setup, dropped):
    """Gradients of the summed metric in a run where one layer writes the same values, cut off from the graph."""
    lengths = [len(ids) for ids in setup.clean]
    stop = {(dropped, kind): torch.Tensor.detach for kind in ("attn_out", "mlp_out")}
    with torch.enable_grad():
        run = trace(setup.model, setup.model.embed(setup.clean), lengths, setup.read, insert=stop)
        return run.gradients(setup.measure(run.hidden).sum(), [INPUT, (0, "z"), (2, "z"), (1, "mlp_out")])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_integrated_gradients_are_complete(family):
    """Scores of the input, and of all heads or neurons of a layer together, add up to the exact effect."""
    setup = cached(family)
    heads = [f"a1.h{head}" for head in range(4)]
    exact = node_effects(setup, Paired(), [["input"], heads, ["m1.act"], ["r2"]])

    def missing(steps):
        points = integration_points(steps)
        along = node_scores_by_activation(setup, [*heads, "m1.act", "r2"], Paired(), points)[:, 0]
        whole = node_scores(setup, ["input"], Paired(), points)[:, 0]
        return np.abs(np.c_[whole, along[:, :4].sum(-1), along[:, 4:]] - exact).mean(0)

    few, many = missing(4), missing(64)
    assert (many < 0.1 * few).all()
    assert (many < 0.01 * np.abs(exact).mean(0)).all()


@settings(max_examples=12, deadline=None)
@given(
    order=st.permutations(range(4)),
    budget=st.sampled_from([0.05, 0.2, 256.0]),
    about=st.sampled_from([{}, {"points": integration_points(3)}, {"qk_fix": True, "grad_drop": True}]),
)
def test_scores_depend_neither_on_batches_nor_on_order(order, budget, about):
    setup = cached("llama")
    sites = sites_of(setup.model.shape)
    plain = node_scores(setup, sites, Paired(), **about)
    found = node_scores(setup.select(order), sites, Paired(), budget_mib=budget, **about)
    np.testing.assert_allclose(found, plain[list(order)], atol=1e-9)
    backwards = node_scores(setup, sites[::-1], Paired(), **about)
    np.testing.assert_allclose(backwards[..., ::-1], plain, atol=1e-9)


def test_all_neurons_come_at_once():
    setup = cached("llama")
    every = [f"m{layer}.n{n}" for layer in range(3) for n in range(setup.model.shape.d_mlp)]
    found = node_scores(setup, every, Paired())
    np.testing.assert_allclose(found[..., 80 + 7], node_scores(setup, ["m1.n7"], Paired())[..., 0], atol=1e-12)
    whole = node_scores(setup, ["m0.act", "m1.act", "m2.act"], Paired())
    np.testing.assert_allclose(found.reshape(*found.shape[:2], 3, -1).sum(-1), whole, atol=1e-9)


def test_replacements_of_every_kind_are_the_mean_of_that_activation():
    setup = cached("llama")
    sites = sites_of(setup.model.shape)
    keys = node_keys(setup.model, sites)
    chosen = resolve_ablation("mean-all", setup, keys)
    run, corrupt = setup.record_clean(keys), setup.record_corrupt(keys)
    made = chosen.store(setup, range(len(setup)), {key: run.packed(key) for key in keys})
    for key in keys:
        np.testing.assert_allclose(made[key], corrupt.packed(key).mean(0).expand_as(made[key]), atol=1e-12)
    found = node_scores(setup, sites, chosen)
    np.testing.assert_allclose(found, slopes(setup, sites, chosen), rtol=1e-5, atol=1e-6 * np.abs(found).max())
    with pytest.raises(InterventionError, match="mean_of"):
        node_scores(setup, ["a1.h0.q"], mean_of(setup, per_position=False))


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_relp_conserves_what_flows(family):
    """Without biases, and with norms and patterns fixed, the logits are a sum over what the input's parts pass on.

    Gemma's soft cap of the logits is not linear; the metric's scale is that of a cap far away.
    """
    setup = family_setup(family)
    if setup.model.anatomy.softcap:
        setup.model.hf.config.final_logit_softcapping = None
        setup = setup_on(load(setup.model.hf, name=family))
    metric = setup.measure(setup.record_clean().hidden).numpy()
    found = node_scores(setup, ["input", "r1", "r2.post"], Zero(), rules=relp())[:, 0]
    np.testing.assert_allclose(found, np.repeat(metric[:, None], 3, 1), rtol=1e-9)


def test_relp_conserves_a_plain_mlp():
    """GPT-2's, with its biases and its norm's at zero: input times propagated coefficient is the output."""
    setup = family_setup("gpt2")
    with torch.no_grad():
        for name, parameter in setup.model.hf.named_parameters():
            if "bias" in name:
                parameter.zero_()
    run = trace(setup.model, setup.model.embed(setup.clean), [len(p) for p in setup.clean], setup.read, rules=relp())
    toward = torch.randn(run.at[(1, "mlp_out")].shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.enable_grad():
        out = (run.at[(1, "mlp_out")] * toward).sum()
    found = run.gradients(out, [(1, "mlp_in")])[(1, "mlp_in")]
    torch.testing.assert_close((found * run.at[(1, "mlp_in")]).sum(), out)
    plain = trace(setup.model, setup.model.embed(setup.clean), [len(p) for p in setup.clean], setup.read)
    torch.testing.assert_close(run.hidden, plain.hidden, rtol=1e-12, atol=1e-12)


def test_what_has_no_score_is_refused_with_what_to_use():
    setup = cached("gpt2")
    with pytest.raises(AddressError, match="q and k"):
        node_scores(setup, ["a0.h1.pattern"], Paired())
    with pytest.raises(AddressError, match="last stream"):
        node_scores(setup, ["logits"], Paired())
    kl = dataclasses.replace(setup, metric=KL(), targets=_with_logits(setup))
    with pytest.raises(MetricError, match="atp-ig"):
        node_scores(kl, ["m1"], Paired())
    assert np.abs(node_scores(kl, ["m1"], Paired(), integration_points(2))).max() > 0
    with pytest.raises(ModelError, match="RelP"):
        node_scores(family_setup("mixtral", torch.float32), ["m1"], Paired(), rules=relp())
    with pytest.raises(CrosspatchError, match="mixture"):
        node_scores(family_setup("mixtral", torch.float32), ["m1.n3"], Paired())
    one = setup_on(linear_model(n_layers=1))
    with pytest.raises(MetricError, match="plain AtP"):
        node_scores(one, ["m0"], Paired(), grad_drop=True)


def _with_logits(setup):
    return Targets(setup.targets.answers, setup.targets.wrong, clean_logits=setup.record_clean().logits())


def test_tokens_without_a_partner_keep_their_own_value():
    """The corrupt prompts lack the third token."""
    whole = cached("llama")
    shorter = [ids[:2] + ids[3:] for ids in whole.corrupt]
    partner = [(0, 1, None, *range(2, len(ids) - 1)) for ids in whole.clean]
    spans = [{**named, "third": (2, 3)} for named in whole.spans]
    setup = dataclasses.replace(whole, corrupt=shorter, partner=partner, spans=spans)
    sites = sites_of(setup.model.shape, 0)
    found = node_scores(setup, sites, Paired(), integration_points(2), spans=["third", "END"])
    assert np.abs(found[:, 0]).max() == 0
    assert np.abs(found[:, 1]).max() > 0.1
    np.testing.assert_allclose(
        node_scores(setup, sites, Paired()), slopes(setup, sites, Paired()), rtol=1e-5, atol=1e-6
    )


def test_a_mixture_of_experts_is_one_node():
    setup = family_setup("mixtral", torch.float32)
    table = edge_table(setup.model.shape)
    edges = table.matrix(edge_scores(setup, Paired())).sum(-1)
    np.testing.assert_allclose(node_scores(setup, nodes(setup.model.shape), Paired()), edges, rtol=1e-3, atol=1e-4)
