"""What estimates of feature effects are worth: integrals converge at every place, gradients fail in early layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from attribution_setups import family_setup
from feature_cases import all_places, bases

import crosspatch as cp
from crosspatch.attribution.forward import trace
from crosspatch.attribution.setup import setup_of
from crosspatch.dictionaries import shipped
from crosspatch.features import Node, bases_of, evaluate_nodes, exact_effects, feature_effects, replacement
from crosspatch.features.gradients import clean_keys
from crosspatch.features.replaced import values_of

EARLY, LATE = ("input", "m0", "r0.post"), ("m3", "r3.post")


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("replaced", ["paired", "zero"])
def test_integrals_converge_to_the_effect_of_the_whole_place(name: str, replaced: str) -> None:
    setup = family_setup(name, lengths=(4, 4))
    every = bases(setup, [*all_places(setup.model)[:4], "a1.z", "m2", "r2.post"])
    table = replacement(setup, every, replaced)
    run = setup.record_clean(clean_keys(every))
    values = values_of(setup, every, table, {b.key: run.packed(b.key) for b in every}, run.hidden)
    sums = {}
    for steps in (2, 8, 32):
        found = feature_effects(setup, every, table, method="ig", steps=steps, keep=None)
        sums[steps] = np.array([found.mean[basis.place].sum() for basis in every])
    wanted = []
    for basis in every:
        new = values.whole(basis)
        new = new.unflatten(-1, (setup.model.shape.n_heads, -1)) if basis.key[1] == "z" else new
        moved = trace(setup.model, setup.model.embed(setup.clean), [4, 4], setup.read, insert={basis.key: new})
        wanted.append((values.metric - setup.measure(moved.hidden)).mean().item())
    gaps = {steps: np.abs(found - wanted) for steps, found in sums.items()}
    assert np.abs(wanted).min() > 1e-3
    assert (gaps[32] < 0.02 * np.abs(wanted) + 1e-2).all()
    # the midpoint rule's error falls with the square of the number of steps where the metric is smooth
    assert gaps[32].mean() < gaps[8].mean() / 4 and gaps[8].mean() < gaps[2].mean() / 2


def compared(task: str, places: Sequence[str]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By place and method, of the six nodes that integrals put first, over 30 pairs: the correlation of estimates with
    exact effects, their error, and their sum, the last two as shares of the exact ones."""
    model = cp.load("embedded")
    setup = setup_of(model, cp.make_task(task, n=30, seed=0, tokenizer=model.tokenizer))
    own = shipped()
    every = bases_of(model, {place: own[place] for place in places})
    means = {method: feature_effects(setup, every, method=method).mean for method in ("atp", "ig")}
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for basis in every:
        top = np.argsort(-np.abs(means["ig"][basis.place][0]))[:6]
        nodes = [Node(basis.place, None if i == basis.width else int(i)) for i in top]
        exact = exact_effects(setup, every, nodes).mean(0)
        for method, mean in means.items():
            got, size = mean[basis.place][0, top], np.abs(exact).sum()
            values = np.corrcoef(got, exact)[0, 1], np.abs(got - exact).sum() / size, np.abs(got).sum() / size
            found.setdefault(basis.place, {})[method] = values
    return found


def test_gradients_fail_at_the_first_mlp_and_early_streams_and_integrals_repair_it() -> None:
    """Appendix H of the paper: attribution patching is good in late layers, and not at the layer-0 MLP."""
    found = compared("ioi", (*EARLY, *LATE))
    correlation, error, total = ({p: {m: v[i] for m, v in by.items()} for p, by in found.items()} for i in range(3))
    assert correlation["m0"]["atp"] < 0.5 and correlation["m0"]["ig"] > 0.95
    assert error["m0"]["atp"] > 2 * error["m0"]["ig"]
    assert max(total[place]["atp"] for place in EARLY) < 0.8  # it underestimates
    assert all(by["ig"] < by["atp"] for by in error.values())
    assert min(correlation[place]["atp"] for place in LATE) > 0.95
    assert max(error[place]["atp"] for place in LATE) < 0.35


def test_integrals_overstate_single_features_that_stand_in_for_one_another() -> None:
    """What the paper's figure does not show: all features of a place are interpolated together, so that one that the
    others make up for when it alone is taken out gets its share of the whole effect nevertheless."""
    found = compared("agreement-rc", ("m0",))["m0"]
    assert found["ig"][2] > 2 > 1 > found["atp"][2] and found["ig"][0] > 0.9


def test_random_nodes_explain_nothing_at_the_size_of_a_circuit() -> None:
    model = cp.load("embedded")
    setup = setup_of(model, cp.make_task("agreement-rc", n=24, seed=0, tokenizer=model.tokenizer))
    hidden = [f"m{layer}.act" for layer in range(4)]
    for every in (bases_of(model, shipped()), bases_of(model, neurons=hidden)):
        effects = feature_effects(setup.split(0.5, 0)[0], every, method="ig", steps=4)
        circuit = effects.top(50, start_block=1).with_errors("removed")
        table = evaluate_nodes(
            setup, every, [circuit], "mean-all", start_block=1, population=effects.active(), n_random=8
        ).frame
        assert abs(table["random_faithfulness_median"][0]) < 0.15
    assert table["faithfulness"][0] > table["random_faithfulness_high"][0] + 0.2
