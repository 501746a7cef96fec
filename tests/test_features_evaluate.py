"""Sets of nodes: the ablated model against a plain one, faithfulness 1 and 0, and a circuit that was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from feature_cases import FAMILIES, all_places, bases, family
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import BIT_X, BIT_Y, OUT, A, B, and_network, gate_task

from crosspatch.attribution.forward import trace
from crosspatch.attribution.setup import setup_of
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.places import read_place
from crosspatch.errors import CircuitError
from crosspatch.features import (
    NodeSet,
    bases_of,
    evaluate_nodes,
    exact_effects,
    feature_edges,
    feature_effects,
    replacement,
)
from crosspatch.features.forward import ablated
from crosspatch.features.gradients import clean_keys
from crosspatch.features.replaced import values_of

SPANS = ("first", "rest")


def drawn(every, share: float, seed: int, spans=("*",)) -> NodeSet:
    rng = np.random.default_rng(seed)
    keep = {basis.place: rng.random((len(spans), basis.n_nodes)) < share for basis in every}
    return NodeSet(keep, {basis.place: basis.has_error for basis in every}, tuple(spans), f"drawn {share}")


def plainly(setup, every, nodes: NodeSet, replaced: str, start_block: int, kept: str = "recomputed") -> Tensor:
    """The same run written out node by node: encode, mix, decode, add the error term."""
    run = setup.record_clean(clean_keys(every))
    table = replacement(setup, every, replaced)
    values = values_of(setup, every, table, {basis.key: run.packed(basis.key) for basis in every}, run.hidden)
    masks = torch.zeros(len(nodes.spans), len(setup), 5, dtype=torch.bool)
    for s, span in enumerate(nodes.spans):
        for i in range(len(setup)):
            masks[s, i, slice(*((0, 5) if span == "*" else setup.spans[i][span]))] = True
    masks = masks.flatten(1)

    def change(basis):
        def now(present: Tensor) -> Tensor:
            x = present.flatten(1)
            r, e_r = values.features(basis), torch.zeros_like(x)
            if replaced == "paired":
                e_r = basis.error(values.whole(basis))
            elif replaced == "mean-all":
                corrupt = read_place(setup.record_corrupt(), (basis.place,))
                e_r = basis.error(corrupt).mean(0).expand_as(x)
            f, e = basis.features(x), basis.error(x if kept == "recomputed" else values.at[basis.place])
            keep = torch.from_numpy(nodes.keep[basis.place])
            here = torch.stack([keep[m].any(0) if m.any() else torch.ones_like(keep[0]) for m in masks.T])
            whole = basis.compose(torch.where(here[:, : basis.width], f, r))
            return (whole + torch.where(here[:, -1:], e, e_r) if basis.has_error else whole).view_as(present)

        return now

    insert = {basis.key: change(basis) for basis in every if basis.block >= start_block}
    ran = trace(setup.model, setup.model.embed(setup.clean), [5] * len(setup), setup.read, insert=insert)
    return setup.measure(ran.hidden).detach()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_ablated_runs_equal_plain_ones(name: str, share: float) -> None:
    setup = family(name, lengths=(5, 5))
    places = [*all_places(setup.model)[:4], "a1.z", "m1", "r2.post"]
    spans_of = {"paired": [("*",), ("rest",)], "mean-all": [SPANS], "zero": [("*",)]}
    for every in (bases(setup, places), bases_of(setup.model, (), ["input", "m0.act", "a1", "r2.post"])):
        for replaced, start in (("paired", -1), ("mean-all", 1), ("zero", 0)):
            table = replacement(setup, every, replaced)
            kept = "clean" if replaced == "zero" else "recomputed"
            ready = ablated(setup, every, table, start, kept)
            for seed, spans in enumerate(spans_of[replaced]):
                nodes = drawn(every, share, seed, spans)
                wanted = plainly(setup, every, nodes, replaced, start, kept)
                torch.testing.assert_close(ready.run(nodes), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["topk", "layer_norm"])
def test_ablated_runs_with_features_that_compete_or_are_rescaled(kind: str) -> None:
    setup = family("gpt2")
    about = {"selection": "topk", "k": 6} if kind == "topk" else {"normalise": kind}
    every = bases(setup, ["m0", "r1.post"], **about)
    ready = ablated(setup, every, replacement(setup, every, "paired"), 0)
    for seed in range(3):
        nodes = drawn(every, 0.6, seed)
        torch.testing.assert_close(ready.run(nodes), plainly(setup, every, nodes, "paired", 0), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", FAMILIES)
def test_everything_is_the_model_and_nothing_is_empty(name: str) -> None:
    setup = family(name, lengths=(5,) * 6)
    every = bases(setup)
    everything = drawn(every, 2.0, 0)
    found = evaluate_nodes(setup, every, [everything, everything.complement()], "mean-all", start_block=1, held_out=0)
    np.testing.assert_allclose(found.kept[0], found.model, atol=1e-9)
    np.testing.assert_allclose(found.kept[1], found.empty, atol=1e-9)
    np.testing.assert_allclose(found.frame["faithfulness"], [1, 0], atol=1e-8)
    np.testing.assert_allclose(found.frame["completeness"], [0, 1], atol=1e-8)
    assert np.abs(found.gap).min() > 1e-6
    assert found.random_kept.shape == (2, 0, 6) and found.frame["random_faithfulness_low"].isna().all()
    early = [place for place in found.sets[0].keep if place in ("input", "a0", "m0", "r0.post")]
    assert early == [] and found.sets[0].n_errors == 6  # blocks before the first are left alone and not counted


def test_tokens_of_no_span_are_left_to_the_model() -> None:
    setup = family("gemma2")
    every = bases(setup, ["r0.post", "m1"])
    nodes = drawn(every, 2.0, 0, ("first",))
    found = evaluate_nodes(setup, every, [nodes, nodes.emptied()], "paired", start_block=0, held_out=0)
    np.testing.assert_allclose(found.kept[0], found.model, atol=1e-9)
    np.testing.assert_allclose(found.kept[1], found.empty, atol=1e-12)
    corrupt = setup.measure(setup.record_corrupt().hidden).numpy()
    assert np.abs(found.empty - corrupt).min() > 1e-6 and np.abs(found.empty - found.model).min() > 1e-6


def test_paired_replacement_of_everything_is_the_corrupt_run() -> None:
    setup = family("llama")
    every = bases(setup, ["r2.post", "m1"])
    found = evaluate_nodes(setup, every, [drawn(every, 0.5, 0)], "paired", start_block=0, held_out=0)
    corrupt = setup.measure(setup.record_corrupt().hidden).numpy()
    np.testing.assert_allclose(found.empty, corrupt, atol=1e-9)


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_sets_and_policies(seed: int, share: float) -> None:
    has_error = {"m0": True, "r0.post": True, "m1.act": False}
    rng = np.random.default_rng(seed)
    keep = {place: rng.random((2, 9)) < share for place in has_error}
    nodes = NodeSet(keep, has_error, SPANS)
    assert len(list(nodes)) == len(nodes) == nodes.n_features + nodes.n_errors
    assert len(nodes) + len(nodes.complement()) == 2 * 9 * 3
    assert nodes.with_errors("kept").n_errors == 4 and nodes.with_errors("removed").n_errors == 0
    assert nodes.with_errors("stream kept", ["r0.post"]).n_errors == 2
    everything = NodeSet({place: np.ones((2, 9), dtype=bool) for place in has_error}, has_error, SPANS)
    for policy in ("nodes", "kept", "removed"):
        same = nodes.with_errors(policy)
        assert same.n_features == nodes.n_features
        random = same.random_like(everything, np.random.default_rng(seed))
        assert random.n_errors == same.n_errors
        for place in has_error:
            assert random.keep[place][:, :8].sum() == same.keep[place][:, :8].sum() or not has_error[place]
    with pytest.raises(CircuitError, match="unknown policy"):
        nodes.with_errors("some")  # type: ignore[arg-type]


# A circuit that was planted: x AND y, each residual dimension a feature (in an order of its own at every place).
PLANTED = {
    "input": {("x", BIT_X), ("y", BIT_Y)},
    "a0": {("END", A), ("END", B)},
    "r0.post": {("END", A), ("END", B)},
    "m1": {("END", OUT)},
    "r1.post": {("END", OUT)},
}
EDGES = {
    (("input", "x", BIT_X), ("a0", "END", A)),
    (("input", "y", BIT_Y), ("a0", "END", B)),
    (("a0", "END", A), ("r0.post", "END", A)),
    (("a0", "END", B), ("r0.post", "END", B)),
    (("r0.post", "END", A), ("m1", "END", OUT)),
    (("r0.post", "END", B), ("m1", "END", OUT)),
    (("m1", "END", OUT), ("r1.post", "END", OUT)),
    (("r1.post", "END", OUT), "logits"),
}


def planted(without: tuple[str, int] | None = None):
    """The network with a dictionary at every place: all dimensions in an order of its own, and as many that are
    silent; `without` one of them, which is then left to the error term."""
    model = and_network()
    rng = np.random.default_rng(0)
    dictionaries, order = [], {}
    for place in PLANTED:
        dims = [d for d in rng.permutation(8).tolist() if (place, d) != without]
        rows = torch.eye(8)[dims]
        order[place] = dims
        bias = torch.cat([torch.zeros(len(dims)), torch.full((8,), -50.0)])
        encoder = torch.cat([rows, torch.randn(8, 8, generator=torch.Generator().manual_seed(len(dims)))])
        dictionaries.append(
            Dictionary(encoder, bias, encoder, torch.zeros(8), torch.zeros(len(dims) + 8), (place,), (place,))
        )
    return setup_of(model, gate_task(24)), bases_of(model, dictionaries), order


@pytest.mark.parametrize("method", ["atp", "ig"])
def test_a_planted_circuit_is_recovered(method: str) -> None:
    setup, every, order = planted()
    spans = ("x", "y", "END")
    search, _ = setup.split(0.5, 0)
    effects = feature_effects(search, every, "paired", method=method, spans=spans)
    nodes = effects.above(0.1)

    def name(node):
        return node.place, node.span, None if node.feature is None else order[node.place][node.feature]

    assert {name(node) for node in nodes} == {(place, *rest) for place, found in PLANTED.items() for rest in found}
    edges = feature_edges(search, every, nodes, method=method)
    found = {(name(u), "logits" if d is None else name(d)) for u, d, value in edges if abs(value) > 0.1}
    assert found == EDGES
    assert {(row["from"], row["to"]) for row in edges.frame(0.1).to_dict("records")} == {
        (str(u), "logits" if d is None else str(d)) for u, d, value in edges if abs(value) > 0.1
    }
    judged = evaluate_nodes(
        setup, every, [nodes, effects.top(3)], "mean", start_block=-1, population=effects.active(), n_random=5
    )
    assert len(judged.pairs) == 12 and not set(judged.pairs) & set(effects.pairs)
    table = judged.frame
    assert table["faithfulness"][0] == pytest.approx(1) and table["completeness"][0] == pytest.approx(0)
    assert table["faithfulness"][1] == pytest.approx(0)  # part of a chain carries nothing
    assert judged.has_gap and "faithfulness 1.000" in str(judged)
    everything = nodes.emptied().complement()
    random = evaluate_nodes(setup, every, [nodes], "mean", start_block=-1, population=everything, n_random=8).frame
    assert random["random_faithfulness_low"][0] == random["random_faithfulness_high"][0] == 0
    exact = exact_effects(search, every, list(nodes))
    np.testing.assert_allclose(exact.mean(0), judged.gap.mean(), rtol=1e-5)  # every link is needed


def test_what_a_dictionary_lacks_is_in_its_error_term() -> None:
    setup, every, order = planted(without=("m1", OUT))
    effects = feature_effects(setup, every, "paired")
    error = [node for node in effects.above(0.1) if node.place == "m1"]
    assert [str(node) for node in error] == ["m1/error"]
    nodes = effects.above(0.1)
    shares = {
        policy: evaluate_nodes(setup, every, [nodes], "mean", start_block=-1, errors=policy, held_out=0).frame
        for policy in ("nodes", "kept", "removed", "stream kept")
    }
    got = {policy: table["faithfulness"][0] for policy, table in shares.items()}
    assert got == pytest.approx({"nodes": 1, "kept": 1, "removed": 0, "stream kept": 0}, abs=1e-6)
    assert shares["removed"]["error_terms"][0] == 1  # the set is the one given; the policy is said in `about`
    random = evaluate_nodes(
        setup, every, [nodes], "mean", start_block=-1, held_out=0, population=effects.active(), n_random=4
    )
    assert random.random_kept.shape == (1, 4, 24) and random.frame["random_faithfulness_high"].notna().all()
    assert order["m1"].count(OUT) == 0


def test_neurons_find_the_planted_circuit_too() -> None:
    setup = planted()[0]
    every = bases_of(setup.model, (), ["m1.act", "a0"])
    effects = feature_effects(setup, every, "paired")
    assert {str(node) for node in effects.above(0.1)} == {f"a0/{A}", f"a0/{B}", "m1.act/0"}
    table = evaluate_nodes(setup, every, [effects.above(0.1)], "mean", start_block=0, held_out=0).frame
    assert table["faithfulness"][0] == pytest.approx(1)


def test_evaluations_that_make_no_sense_are_refused() -> None:
    setup = family("gpt2")
    every = bases(setup, ["m0", "r0.post"])
    nodes = drawn(every, 0.5, 0)
    for about, message in (
        ({"start_block": 7}, "no place"),
        ({"start_block": 0, "held_out": 1.0}, "held_out"),
        ({"start_block": 0, "errors": "some"}, "unknown policy"),
        ({"start_block": 0, "kept_error": "old"}, "kept_error"),
    ):
        with pytest.raises(CircuitError, match=message):
            evaluate_nodes(setup, every, [nodes], "paired", **about)
    with pytest.raises(CircuitError, match="says nothing"):
        evaluate_nodes(setup, every, [nodes.at(["m0"])], "paired", start_block=0)
    with pytest.raises(CircuitError, match="at least one"):
        evaluate_nodes(setup, every, [], "paired", start_block=0)
    with pytest.raises(CircuitError, match="same spans"):
        evaluate_nodes(setup, every, [nodes, drawn(every, 0.5, 0, SPANS)], "paired", start_block=0)
