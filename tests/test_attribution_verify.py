"""Rankings against exact patching: what is printed about them must be true."""

from __future__ import annotations

import numpy as np
import pytest
from attribution_setups import family_setup, setup_on
from path_toys import linear_model

from crosspatch.attribution.attribute import attribute
from crosspatch.attribution.verify import Verification, verify
from crosspatch.errors import ResultError


def test_a_perfect_ranking_in_a_linear_network_is_found_perfect():
    setup = setup_on(linear_model())
    checked = verify(setup, attribute(setup, "eap"), top=15, sample=25)
    assert checked.correlation("top")[0] == pytest.approx(1)
    assert checked.correlation("sample")[0] == pytest.approx(1)
    np.testing.assert_allclose(checked.exact, checked.scores.per_example[:, checked.measured], atol=1e-9)
    assert checked.frame()["sign_agrees"].all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_exact_scores_verify_themselves_and_correct_estimates(family):
    setup = family_setup(family)
    exact, estimate = attribute(setup, "exact"), attribute(setup, "eap")
    np.testing.assert_allclose(
        verify(setup, exact, 10, 10).exact, exact.per_example[:, verify(setup, exact, 10, 10).measured]
    )
    checked = verify(setup, estimate, 10, 20)
    mended = checked.corrected()
    np.testing.assert_allclose(
        mended.per_example[:, checked.measured], exact.per_example[:, checked.measured], atol=1e-6
    )
    rest = np.setdiff1d(np.arange(len(exact.parts)), checked.measured)
    np.testing.assert_array_equal(mended.per_example[:, rest], estimate.per_example[:, rest])


def test_the_bound_holds_for_the_stated_share_of_samples():
    """Over many samples the bound lies below the truth at most as often as its confidence allows."""
    setup = family_setup("gpt2")
    exact = attribute(setup, "exact")
    ranked = attribute(setup, "eap")
    theta = float(np.quantile(np.abs(exact.mean), 0.8))
    order = np.argsort(-np.abs(ranked.mean), kind="stable")
    top, rest = order[:10], order[10:]
    draw = np.random.default_rng(0)
    missed = 0
    for _ in range(300):
        sample = draw.choice(rest, 15, replace=False)
        chosen = np.concatenate([top, sample])
        one = Verification(ranked, top, sample, exact.per_example[:, chosen], theta)
        truth = (np.abs(exact.mean[np.setdiff1d(rest, sample)]) >= theta).sum()
        missed += truth > one.missed_bound
    assert 0 < missed / 300 <= 0.07


def test_everything_measured_leaves_nothing_to_bound():
    setup = family_setup("gpt2")
    scores = attribute(setup, "eap")
    checked = verify(setup, scores, top=20, sample=len(scores.parts))
    assert checked.unmeasured == 0
    assert checked.missed_bound == 0
    assert "at most 0 of the 0 edges" in checked.describe()


def test_an_unknown_ablation_has_to_be_given():
    setup = family_setup("gpt2")
    scores = attribute(setup, "eap")
    scores.origin["ablation"] = "optimal"
    with pytest.raises(ResultError, match="pass it as ablation"):
        verify(setup, scores)
