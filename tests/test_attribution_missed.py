"""Exact effects of nodes on networks whose answers are known, and the bound on what a ranking missed."""

from __future__ import annotations

import numpy as np
import pytest
from attribution_setups import family_setup, setup_on
from circuit_toys import TOYS
from path_toys import linear_model

from crosspatch.attribution.ablation import Paired
from crosspatch.attribution.exact_nodes import node_effects
from crosspatch.attribution.missed import missed_bound
from crosspatch.attribution.nodes import node_scores
from crosspatch.attribution.setup import setup_of
from crosspatch.errors import InterventionError, MetricError
from crosspatch.graph import nodes


@pytest.mark.parametrize("name", list(TOYS))
def test_exact_effects_are_those_of_the_wiring(name):
    toy = TOYS[name]
    setup = setup_of(toy.build(), toy.task(4))
    every = [*map(str, nodes(setup.model.shape)), "a0.h0.q", "a0.h0.v", "a0.h1.v", "a1.h0.q", "a1.h0.v"]
    found = node_effects(setup, Paired(), [*([node] for node in every), *toy.together])
    wanted = [toy.noise.get(node, 0.0) for node in every] + list(toy.together.values())
    np.testing.assert_allclose(found, np.tile(wanted, (4, 1)), atol=1e-4)


def test_the_corrections_of_atp_find_what_it_misses():
    saturated, cancelling = (setup_of(TOYS[name].build(), TOYS[name].task(4)) for name in ("saturated", "cancelling"))
    assert np.abs(node_scores(saturated, ["a1.h0.q"], Paired())).max() < 1e-3
    np.testing.assert_allclose(node_scores(saturated, ["a1.h0.q"], Paired(), qk_fix=True), 6, atol=1e-4)
    assert np.abs(node_scores(cancelling, ["a0.h0", "a0.h0.v"], Paired())).max() < 1e-3
    found = node_scores(cancelling, ["a0.h0", "a0.h0.v"], Paired(), qk_fix=True, grad_drop=True)
    np.testing.assert_allclose(found, 12, atol=1e-4)  # the direct part alone


def test_positions_name_what_is_replaced():
    setup = family_setup("gpt2")
    found = node_effects(setup, Paired(), [["m1@-1"], ["m1@END"], ["m1.n3", "m1.n4@END"], ["m1.n3"], ["m2.n3@first"]])
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    assert np.abs(found[:, 2] - found[:, 3]).min() > 0
    assert np.abs(found[:, 4]).max() < 1e-12  # no read sees the last MLP's work at other tokens
    with pytest.raises(MetricError, match="no span 'verb'"):
        node_effects(setup, Paired(), [["m1@verb"]])
    with pytest.raises(MetricError, match="no token 6"):
        node_effects(setup, Paired(), [["m1@6"]])
    with pytest.raises(InterventionError, match="twice"):
        node_effects(setup, Paired(), [["m1.act", "m1.n3"]])


def test_subsets_measure_each_node_where_effects_add_up():
    """Heads of one layer of a linear network: the average marginal effect is the effect alone."""
    setup = setup_on(linear_model())
    names = [f"a1.h{head}" for head in range(3)] + [f"m2.n{n}" for n in range(6)]
    alone = node_effects(setup, Paired(), [[name] for name in names])
    size = np.abs(alone.mean(0)).max()
    told, blind = (missed_bound(setup, names[3:], Paired(), share=0.25, estimates=e) for e in (alone[:, 3:], None))
    np.testing.assert_allclose(told.effect, alone[:, 3:].mean(0), atol=1e-9)  # estimates that are exact leave no spread
    assert told.upper() == pytest.approx(np.abs(alone[:, 3:].mean(0)).max())
    assert (np.abs(blind.effect - alone[:, 3:].mean(0)) < 4 * blind.error).all()
    wrong = missed_bound(setup, names[3:], Paired(), share=0.25, estimates=3 * size - alone[:, 3:])
    assert (np.abs(wrong.effect - alone[:, 3:].mean(0)) < 4 * wrong.error).all()
    assert blind.upper() > np.abs(alone[:, 3:].mean(0)).max()
    assert blind.p_value(100 * size) < 1e-6
    assert blind.suspects(100 * size) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_missed_node_is_among_the_suspects(seed):
    """AtP gives the query of the saturated network zero; subsets show that something of effect 6 is there."""
    toy = TOYS["saturated"]
    setup = setup_of(toy.build(), toy.task(6))
    rest = ["a0.h1", "a1.h0.q", "a1.h1", "m0", "m1", "a0.h0.k"]
    bound = missed_bound(setup, rest, Paired(), pairs=60, share=0.3, seed=seed)
    assert bound.upper() >= 6 - 1e-4
    assert bound.p_value(3.0) > 0.99
    assert bound.suspects(3.0)[0] == "a1.h0.q"
    without = missed_bound(
        setup, [name for name in rest if name != "a1.h0.q"], Paired(), pairs=60, share=0.3, seed=seed
    )
    assert without.upper() < 1e-3
    assert without.p_value(3.0) == 0.0
    assert "none has" in without.describe(3.0)


def test_confidence_covers_the_truth_in_most_draws():
    """A model with interactions: the truth is the average over all contexts, here estimated from very many draws."""
    setup = family_setup("llama")
    names = ["a0.h0", "a0.h2", "a1.h1", "m1", "a2.h3"]
    truth = missed_bound(setup, names, Paired(), pairs=2000, share=0.5, seed=99)
    most = np.abs(truth.effect).max()
    covered = [missed_bound(setup, names, Paired(), pairs=40, share=0.5, seed=s).upper(0.9) >= most for s in range(15)]
    assert np.mean(covered) >= 0.8


def test_what_subsets_cannot_tell_is_refused():
    setup = family_setup("gpt2")
    for about in ({"pairs": 10}, {"share": 0.7}, {"estimates": np.zeros((4, 3))}):
        with pytest.raises(MetricError):
            missed_bound(setup, ["m1", "m2"], Paired(), **about)
    with pytest.raises(MetricError, match="twice"):
        missed_bound(setup, ["m1", "m1"], Paired())
