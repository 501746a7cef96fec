"""Exact evaluation of circuits and of single edges: against slow twins, path sets, plain hooks, and itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from circuit_twin import hooked_gpt2, random_masks, random_setup, slow_masks, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crosspatch as cp
from crosspatch.attribution.ablation import Constants, sender_keys
from crosspatch.attribution.exact import exact_edges
from crosspatch.attribution.recorded import record_pairs
from crosspatch.circuits.masked import run_masks
from crosspatch.errors import CircuitError, CrosspatchError, InterventionError
from crosspatch.graph import edge_table
from crosspatch.metrics import KL
from crosspatch.paths import Pairs, evaluate, from_edges

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2", "shortformer", "compiled", "llama_both_ways"]
ABLATIONS = ["paired", "mean-all", "zero", "mean"]
# RMS norms of transformers compute in float32 whatever the model's dtype is.
CLOSE = {"gpt2": 1e-9, "gpt_neox": 1e-9, "shortformer": 1e-9, "compiled": 1e-9}


def close(family: str) -> float:
    return CLOSE.get(family, 3e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_random_masks_equal_the_slow_twin(family, ablation):
    model = tiny(family)
    lengths = (5, 5, 4, 4) if ablation == "mean" else (5, 4, 6)
    setup = random_setup(model, lengths, same=(2, 0))
    masks = random_masks(model, (0.0, 0.2, 0.4, 0.6, 0.9, 0.97))
    found = run_masks(setup, masks, ablation)
    expected = slow_masks(setup, masks, ablation)
    np.testing.assert_allclose(found, expected, atol=close(family))
    assert np.abs(expected[3:5] - expected[0]).max(1).min() > 1e-2  # the masks do something


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mask_equals_the_slow_twin(data):
    model = tiny(data.draw(st.sampled_from(FAMILIES)), 2)
    shares = data.draw(st.lists(st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.95]), min_size=1, max_size=4))
    masks = random_masks(model, shares, data.draw(st.integers(0, 99)))
    masks += [masks[0] | masks[-1], edge_table(model.shape).exists & ~masks[0]]
    setup = random_setup(
        model,
        data.draw(st.lists(st.integers(4, 6), min_size=1, max_size=3)),
        data.draw(st.integers(0, 99)),
        same=data.draw(st.sampled_from([(0,), (1, 3), (4, 0)])),
        inserted=data.draw(st.booleans()),
        reads=data.draw(st.integers(1, 2)),
    )
    ablation = data.draw(st.sampled_from(["paired", "mean-all", "zero"]))
    np.testing.assert_allclose(run_masks(setup, masks, ablation), slow_masks(setup, masks, ablation), atol=3e-5)


def test_masks_equal_plain_hooks_on_gpt2():
    model = tiny("gpt2")
    setup = random_setup(model, (5, 6))
    masks = random_masks(model, (0.3, 0.7))
    found = run_masks(setup, masks)
    for number, mask in enumerate(masks):
        for pair in range(2):
            logits = hooked_gpt2(setup, mask, pair)
            expected = logits[setup.targets.answers[pair, 0]] - logits[setup.targets.wrong[pair, 0]]
            assert found[number, pair] == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_masks_equal_the_path_set_of_the_same_edges(family):
    model = tiny(family, 2)
    table, setup = edge_table(model.shape), random_setup(tiny(family, 2), (5, 5, 5))
    for mask in random_masks(model, (0.4, 0.8)):
        chosen = []
        for u, v in np.argwhere(mask):
            receiver = table.receivers[v]
            names = [str(receiver)]
            if receiver.kind in ("k", "v"):  # a key/value head's edges are those of every head that reads it
                names = [f"a{receiver.layer}.h{h}.{receiver.kind}" for h in model.shape.heads_of(receiver.index)]
            chosen += [(str(table.senders[u]), name) for name in names]
        pairs = Pairs(setup.clean, setup.corrupt, setup.read, [(-1,)] * 3, [[]] * 3, [[]] * 3, setup.spans,
                      setup.clusters, "test")  # fmt: skip
        hidden: dict[int, list[torch.Tensor]] = {}
        evaluate(model, [from_edges(chosen)], pairs, lambda r, h=hidden: h.setdefault(r.number, []).append(r.hidden))
        expected = setup.measure(torch.cat(hidden[0])).numpy()
        np.testing.assert_allclose(run_masks(setup, [mask])[0], expected, atol=close(family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_and_empty_circuits_are_the_two_runs_to_the_last_bit(family, dtype):
    model = tiny(family, 2, dtype)
    setup, table = random_setup(model, (5, 5, 5), same=(2,)), edge_table(model.shape)
    for ablation in ("paired", "mean-all", "zero"):
        runs = record_pairs(setup, ablation)
        found = run_masks(setup, [table.exists, ~table.exists], ablation, recorded=runs)
        assert np.array_equal(found[0], setup.measure(runs.clean.hidden).double().numpy())
        plain = setup.measure(setup.record_clean().hidden).double().numpy()
        np.testing.assert_allclose(found[0], plain, rtol=1e-5 if dtype == torch.float32 else 0.1, atol=1e-5)
        if ablation == "paired":
            assert runs.replaced is not None
            assert np.array_equal(found[1], setup.corrupt_metric(runs.replaced).double().numpy())


def test_numbers_depend_neither_on_memory_nor_on_the_order_of_pairs_nor_on_company():
    model = tiny("llama")
    setup = random_setup(model, (5, 6, 5, 4, 6), same=(0, 3, 4))
    masks = random_masks(model, (0.2, 0.5, 0.5, 0.9))
    masks[2] = masks[1] & masks[2]
    whole = run_masks(setup, masks)
    np.testing.assert_allclose(run_masks(setup, masks, budget_mib=0.01), whole, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([run_masks(setup, [m]) for m in masks]), whole, atol=1e-5)
    order = [3, 0, 4, 2, 1]
    np.testing.assert_allclose(run_masks(setup.select(order), masks[::-1]), whole[::-1][:, order], atol=1e-5)
    recorded = record_pairs(setup)
    np.testing.assert_allclose(run_masks(setup, masks, recorded=recorded), whole, atol=1e-5)
    np.testing.assert_allclose(run_masks(setup, masks, recorded=recorded, budget_mib=0.01), whole, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("ablation", ["paired", "zero"])
def test_edges_can_be_kept_at_the_tokens_of_spans(family, ablation):
    model = tiny(family, 2)
    setup = random_setup(model, (5, 6, 5), reads=2)
    spans = ("S", "END", "*")
    masks = [np.stack(random_masks(model, shares, seed), -1) for seed, shares in enumerate([(0.5, 0.5, 0.1),
             (0.9, 0.9, 0.6), (0.4, 0.4, 0.0)])]  # fmt: skip
    found = run_masks(setup, masks, ablation, spans=spans)
    np.testing.assert_allclose(found, slow_masks(setup, masks, ablation, spans), atol=close(family))
    everywhere = [mask & np.array([False, False, True]) for mask in masks]
    plain = run_masks(setup, [mask[..., 2] for mask in masks], ablation)
    np.testing.assert_allclose(run_masks(setup, everywhere, ablation, spans=spans), plain, atol=close(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_metric_of_the_whole_distribution_and_learned_constants(family):
    model = tiny(family, 2)
    setup = random_setup(model, (5, 4), metric=KL())
    draw = torch.Generator().manual_seed(0)
    store = setup.record_clean(sender_keys(model.shape))
    sizes = {key: store.packed(key).shape[1:] for key in sender_keys(model.shape)}
    values = {key: torch.randn(size, generator=draw, dtype=model.dtype) for key, size in sizes.items()}
    masks = random_masks(model, (0.5, 0.8))
    found = run_masks(setup, masks, Constants(values))
    np.testing.assert_allclose(found, slow_masks(setup, masks, Constants(values)), atol=close(family))


def test_masks_that_do_not_fit_are_refused():
    model = tiny("gpt2", 2)
    setup, table = random_setup(model), edge_table(model.shape)
    with pytest.raises(CircuitError, match="shape"):
        run_masks(setup, [table.exists[1:]])
    with pytest.raises(CircuitError, match="span"):
        run_masks(setup, [table.exists[..., None]], spans=["nowhere"])
    with pytest.raises(InterventionError, match="other pairs"):
        run_masks(setup, [table.exists], recorded=record_pairs(setup.select([0])))
    with pytest.raises(CrosspatchError, match="ablation"):
        run_masks(setup, [table.exists], "none")
    assert run_masks(setup, []).shape == (0, len(setup))
    assert isinstance(model, cp.Model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ablation", ["paired", "zero"])
def test_edges_cut_one_by_one_equal_masks_with_one_edge_cut(family, ablation):
    model = tiny(family)
    setup, table = random_setup(model, (5, 4, 6), same=(2, 0, 4)), edge_table(model.shape)
    found = exact_edges(setup, None, ablation)
    masks, edges = [table.exists], np.argwhere(table.exists.T)[::3]
    for v, u in edges:
        mask = table.exists.copy()
        mask[u, v] = False
        masks.append(mask)
    values = run_masks(setup, masks, ablation)
    np.testing.assert_allclose(found.T[::3], values[0] - values[1:], atol=close(family))
    assert np.abs(found).max() > 0.1
    some = [7, 3, len(table) - 1, 3]
    np.testing.assert_allclose(exact_edges(setup, some, ablation, budget_mib=0.02), found[:, some], atol=close(family))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_edges_cut_at_the_tokens_of_a_span(family):
    model = tiny(family, 2)
    setup, table = random_setup(model, (5, 6), reads=2), edge_table(model.shape)
    spans = ("S", "END", "*")
    found = exact_edges(setup, None, spans=spans)
    assert found.shape == (2, len(table), 3)
    np.testing.assert_allclose(found[..., 2], exact_edges(setup), atol=close(family))
    masks = []
    names = ("S", "END", "*", "rest")
    setup.spans[:] = [{**s, "rest": (3, len(ids) - 1)} for s, ids in zip(setup.spans, setup.clean, strict=True)]
    whole = np.repeat(table.exists[..., None], 4, -1) & np.array([True, True, False, True])
    setup.spans[:] = [{**s, "first": (0, 1)} for s in setup.spans]
    whole = np.concatenate([whole, table.exists[..., None]], -1)
    names = (*names, "first")
    chosen = np.argwhere(table.exists.T)[::4]
    for v, u in chosen:
        for span in (0, 1):
            mask = whole.copy()
            mask[u, v, span] = False
            masks.append(mask)
    values = run_masks(setup, [whole, *masks], spans=names)
    expected = (values[0] - values[1:]).reshape(len(chosen), 2, 2).transpose(2, 0, 1)
    np.testing.assert_allclose(found[:, ::4, :2], expected, atol=close(family))


def test_edges_of_pairs_of_unequal_length_and_of_equal_prompts():
    model = tiny("llama", 2)
    setup, table = random_setup(model, (5, 4), inserted=True), edge_table(model.shape)
    found = exact_edges(setup)
    for number in range(0, len(table), 7):
        v = int(np.searchsorted(np.cumsum(table.reach), number, side="right"))
        mask = table.exists.copy()
        mask[number - table.reach[:v].sum(), v] = False
        values = slow_masks(setup, [table.exists, mask])
        np.testing.assert_allclose(found[:, number], values[0] - values[1], atol=3e-5)
    same = random_setup(model, (5, 4), same=(5, 0))
    assert not exact_edges(same)[0].any()
    with pytest.raises(InterventionError, match="edge"):
        exact_edges(setup, [len(table)])
    with pytest.raises(InterventionError, match="span"):
        exact_edges(setup, [0], spans=["nowhere"])
