"""How far frozen norms let a mixed stream grow: the number, the place, and what is said and kept of it."""

from __future__ import annotations

import copy

import pytest
import torch
from path_toys import random_pairs, small

import crosspatch as cp
from crosspatch.errors import MetricError
from crosspatch.graph import Site
from crosspatch.model import record
from crosspatch.paths import Pairs, decohere, evaluate, paths
from crosspatch.paths.norms import stretch_of
from crosspatch.paths.saved import load, save

GROUPS = {"queries": paths("** -> a1.*.q -> ** -> logits"), "first MLP": paths("** -> m0 -> ** -> logits")}
CLAIM = {"heads": paths("** -> a1.h1 -> logits")}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_ratio_is_that_of_the_normed_streams(family):
    model, pairs = small(family, 2), random_pairs(5, seed=3)
    with stretch_of() as found:
        evaluate(model, [paths("input -> logits")], pairs, lambda r: None, norms="frozen")
    sites = [Site("input"), Site("resid_post", model.shape.n_layers - 1)]
    runs = [record(model, side, sites) for side in (pairs.reference, pairs.counterfactual)]
    ratios = []
    for pair in range(len(pairs)):
        read = pairs.read[pair][-1]
        (e, x_ref), (other, x) = ([run.value(site, pair)[read] for site in sites] for run in runs)
        mixed = x + e - other
        scales = []
        for y in (x_ref, mixed):  # an RMS norm has the scale 1 / rms, a LayerNorm that of the centred input
            centred = y - y.mean() if family == "gpt2" else y
            scales.append(centred.pow(2).mean().sqrt())
        ratios.append(float(scales[1] / scales[0]))
    assert max(ratios) > 1 and found.ratio == pytest.approx(max(ratios), rel=1e-3)
    assert found.reader == "final_norm" and found.position == pairs.read[0][-1]
    assert found.tokens[0] == pairs.reference[ratios.index(max(ratios))]


def test_a_stream_that_outgrows_its_scale_is_said_where_and_kept(tmp_path):
    pairs = random_pairs(6, seed=4).with_others(2)
    calm = decohere(small("llama", 2), CLAIM, GROUPS, pairs, norms="frozen")
    model = outsized(pairs, 1000)
    wild = decohere(model, CLAIM, GROUPS, pairs, norms="frozen")
    about = wild.about["stretch"]
    assert about["large"] and about["ratio"] > 10 * calm.about["stretch"]["ratio"]
    assert 0 <= about["pair"] < len(pairs) and 0 <= about["position"] < len(pairs.reference[0])
    assert wild.warning in str(wild) and f"at position {about['position']} in pair {about['pair']}" in wild.warning
    save(wild, tmp_path / "apart.json")
    assert load(tmp_path / "apart.json").warning == wild.warning
    again = decohere(model, CLAIM, GROUPS, pairs)
    assert again.about["stretch"] is None and again.warning == ""


def test_an_overflow_is_refused_with_its_cause():
    pairs = random_pairs(6, seed=4).with_others(2)
    with pytest.raises(MetricError, match=r"frozen norms are out of their range: .* position"):
        decohere(outsized(pairs, 1e22), CLAIM, GROUPS, pairs, norms="frozen")


def outsized(pairs: Pairs, factor: float) -> cp.Model:
    """A model in which tokens that only counterfactual prompts have are so much larger."""
    hf = copy.deepcopy(small("llama", 2).hf).float()
    used = {token for row in pairs.reference for token in row}
    only = {token for side in (pairs.counterfactual, *pairs.others) for row in side for token in row} - used
    with torch.no_grad():
        hf.get_input_embeddings().weight[sorted(only)] *= factor
    return cp.load(hf, name="outsized")
