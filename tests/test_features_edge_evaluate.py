"""Sets of edges: the model with edges cut against a literal recursion over nodes, and the identities that must hold."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from feature_cases import FAMILIES, bases, family
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features_evaluate import drawn, planted

from crosspatch.attribution.setup import Setup
from crosspatch.dictionaries.places import read_place, write_place
from crosspatch.errors import CircuitError
from crosspatch.features import (
    EdgeSet,
    NodeSet,
    all_edges,
    bases_of,
    edge_passes,
    evaluate_edges,
    evaluate_nodes,
    feature_edges,
    feature_effects,
    replacement,
    templatic,
)
from crosspatch.features.basis import Bases
from crosspatch.features.gradients import clean_keys, token_masks
from crosspatch.features.replaced import values_of
from crosspatch.model import record

SEQUENTIAL = ["input", "a0", "m0", "r0.post", "a1", "r1.mid", "m1", "r1.post"]
PARALLEL = ["input", "a0", "m0", "r0.post", "a1", "m1", "r2.post"]
INSIDE = ["r0.post", "a1.z", "m1.act", "r2.post"]


class Literal:
    """The definition written out: one patched run of the whole model for every receiver, no sharing of anything."""

    def __init__(self, setup: Setup, every: Bases, nodes: NodeSet, edges: EdgeSet, replaced: str, cut: bool) -> None:
        self.setup, self.every, self.nodes, self.cut = setup, every, list(nodes), cut
        self.marks = edges.matrix(len(self.nodes))
        run = setup.record_clean(clean_keys(every))
        table = replacement(setup, every, replaced)
        self.values = values_of(setup, every, table, {b.key: run.packed(b.key) for b in every}, run.hidden)
        masks = token_masks(setup, nodes.spans).flatten(1) > 0
        self.none = ~masks.any(0)
        self.masks = dict(zip(nodes.spans, masks, strict=True))
        self.cache: dict[tuple[str, int], torch.Tensor] = {}

    def reads(self, u: int, d: int) -> bool:
        """Whether receiver d (number `len(nodes)`: the logits; -1: all that is not a chosen node) has the edge."""
        return d < 0 or bool(self.marks[u, d]) != self.cut

    def seen(self, place: int, d: int) -> torch.Tensor:
        """The activation of a place as one receiver sees it."""
        basis, values = self.every[place], self.values
        r, r_e = values.features(basis), values.error(basis) if basis.has_error else None
        whole, outside = values.whole(basis), self.none.clone()
        if self.cut:
            outside[:] = True
        if bool(outside.any()):
            whole = torch.where(outside[:, None], self.present(place), whole)
        f, e = basis.features(whole).clone(), basis.error(whole).clone() if basis.has_error else None
        f[~outside] = r[~outside]
        if e is not None:
            e[~outside] = r_e[~outside]
        for u, node in enumerate(self.nodes):
            if node.place != basis.place:
                continue
            mask = self.masks[node.span]
            x = self.computed(place, u)
            if node.feature is None:
                e[mask] = (basis.error(x) if self.reads(u, d) else r_e)[mask]
            else:
                f[mask, node.feature] = (basis.features(x) if self.reads(u, d) else r)[mask, node.feature]
        return basis.compose(f) + (0 if e is None else e)

    def present(self, place: int) -> torch.Tensor:
        return self.computed(place, -1)

    def computed(self, place: int, d: int) -> torch.Tensor:
        """What the model computes at a place (`len(every)`: before the logits) from what one receiver sees."""
        if (place, d) not in self.cache:
            setup, length = self.setup, self.values.length
            edits: list[list] = [[] for _ in range(len(setup))]
            for p in range(place):
                x = self.seen(p, d).unflatten(0, (len(setup), length))
                for i in range(len(setup)):
                    edits[i] += write_place(setup.model, self.every[p].place, range(length), x[i])
            last = place == len(self.every)
            keys = () if last else (self.every[place].key,)
            run = record(setup.model, setup.clean, read=setup.read, edits=[tuple(own) for own in edits], keys=keys)
            self.cache[place, d] = run.hidden if last else read_place(run, (self.every[place].place,))
        return self.cache[place, d]

    def metric(self) -> np.ndarray:
        return self.setup.measure(self.computed(len(self.every), len(self.nodes))).numpy()


def some_of(edges: EdgeSet, share: float, seed: int) -> EdgeSet:
    kept = np.random.default_rng(seed).random(len(edges)) < share
    return EdgeSet(edges.up[kept], edges.down[kept], f"drawn {share}")


def few(every: Bases, seed: int, spans=("*",), n: int = 2) -> NodeSet:
    """A few nodes at every place, error terms among them."""
    rng = np.random.default_rng(seed)
    keep = {}
    for basis in every:
        marks = np.zeros((len(spans), basis.n_nodes), dtype=bool)
        for span in range(len(spans)):
            marks[span, rng.choice(12, n, replace=False)] = True
            if basis.has_error:
                marks[span, -1] = rng.random() < 0.7
        keep[basis.place] = marks
    return NodeSet(keep, {basis.place: basis.has_error for basis in every}, tuple(spans), "few")


CASES = [
    ("gpt2", SEQUENTIAL, "paired"),
    ("llama", SEQUENTIAL, "zero"),
    ("gpt_neox", PARALLEL, "paired"),
    ("gemma2", SEQUENTIAL, "paired"),
    ("olmo2", SEQUENTIAL, "zero"),
    ("gemma2", INSIDE, "zero"),
    ("gpt_neox", INSIDE, "paired"),
]


@pytest.mark.parametrize(("name", "places", "replaced"), CASES)
def test_values_are_those_of_a_literal_recursion(name: str, places: list[str], replaced: str) -> None:
    setup = family(name, lengths=(4, 4))
    every = bases(setup, places)
    nodes = few(every, 1)
    one = some_of(all_edges(setup.model.shape, every, nodes), 0.9, 1)
    found = evaluate_edges(setup, every, nodes, [one], replaced, start_block=-1, held_out=0, n_random=0)
    for got, cut in ((found.kept, False), (found.cut, True)):
        wanted = Literal(setup, every, nodes, one, replaced, cut).metric()
        np.testing.assert_allclose(got[0], wanted, rtol=1e-8, atol=1e-10)
    whole = [found.model, found.empty, found.nodes_kept, found.kept[0], found.cut[0]]
    assert all(np.abs(a - b).min() > 1e-6 for i, a in enumerate(whole) for b in whole[:i])


@pytest.mark.parametrize("spans", [("first", "rest"), ("END",)])
def test_spans_and_tokens_of_none(spans: tuple[str, ...]) -> None:
    setup = family("llama", lengths=(4, 4))
    every = bases(setup, SEQUENTIAL)
    nodes = few(every, 2, spans, n=1)
    one = some_of(all_edges(setup.model.shape, every, nodes), 0.7, 3)
    found = evaluate_edges(setup, every, nodes, [one], "paired", start_block=-1, held_out=0, n_random=0)
    for got, cut in ((found.kept, False), (found.cut, True)):
        np.testing.assert_allclose(got[0], Literal(setup, every, nodes, one, "paired", cut).metric(), rtol=1e-8)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_all_edges_none_and_all_nodes_are(name: str) -> None:
    setup = family(name, lengths=(5,) * 4)
    every = bases(setup, PARALLEL)
    nodes, everything = few(every, 0, n=6), drawn(every, 2.0, 0)
    all_of, complete = (all_edges(setup.model.shape, every, one) for one in (nodes, everything))
    none = EdgeSet(all_of.up[:0], all_of.down[:0], "none")
    silent = EdgeSet(all_of.up[all_of.down >= 0], all_of.down[all_of.down >= 0], "none into the logits")
    about = {"start_block": -1, "held_out": 0, "n_random": 0}
    found = evaluate_edges(setup, every, nodes, [all_of, none, silent], "mean-all", **about)
    by_nodes = evaluate_nodes(setup, every, [nodes], "mean-all", start_block=-1, held_out=0)
    np.testing.assert_allclose(found.kept[0], by_nodes.kept[0], rtol=1e-9)
    np.testing.assert_allclose(found.nodes_kept, by_nodes.kept[0], rtol=1e-9)
    np.testing.assert_allclose(found.kept[1:], np.stack([by_nodes.empty] * 2), rtol=1e-9)
    np.testing.assert_allclose(found.cut[1], by_nodes.model, rtol=1e-9)
    assert np.abs(found.kept[0] - found.empty).min() > 1e-6
    whole = evaluate_edges(setup, every, everything, [complete], "mean-all", **about)
    np.testing.assert_allclose(whole.kept[0], whole.model, rtol=1e-9)
    np.testing.assert_allclose(whole.cut[0], whole.empty, rtol=1e-9)
    np.testing.assert_allclose(whole.frame["faithfulness"], 1)
    np.testing.assert_allclose(whole.frame["completeness"], 0, atol=1e-9)


def test_positions_are_nodes_of_their_own() -> None:
    setup, positions = templatic(family("gpt2", lengths=(4, 4)))
    every = bases(setup, ["r0.post", "a1", "m1", "r1.post"])
    nodes = few(every, 0, positions, n=1)
    edges = [some_of(all_edges(setup.model.shape, every, nodes), share, 5) for share in (0.7, 2.0)]
    found = evaluate_edges(setup, every, nodes, edges, "paired", start_block=0, held_out=0, n_random=0)
    wanted = Literal(setup, every, nodes, edges[0], "paired", False).metric()
    np.testing.assert_allclose(found.kept[0], wanted, rtol=1e-8)
    same = evaluate_nodes(setup, every, [nodes], "paired", start_block=0, held_out=0)
    np.testing.assert_allclose(found.kept[1], same.kept[0], rtol=1e-9)


@pytest.mark.parametrize("kind", ["topk", "layer_norm"])
def test_features_that_compete_or_are_rescaled(kind: str) -> None:
    setup = family("gpt2", lengths=(4, 4))
    about = {"selection": "topk", "k": 6} if kind == "topk" else {"normalise": kind}
    every = bases(setup, ["r0.post", "m1", "r1.post"], **about)
    nodes = few(every, 1)
    one = some_of(all_edges(setup.model.shape, every, nodes), 0.7, 5)
    found = evaluate_edges(setup, every, nodes, [one], "paired", start_block=0, held_out=0, n_random=0)
    for got, cut in ((found.kept, False), (found.cut, True)):
        wanted = Literal(setup, every, nodes, one, "paired", cut).metric()
        np.testing.assert_allclose(got[0], wanted, rtol=1e-8)


def test_chunks_early_blocks_and_neurons() -> None:
    setup = family("olmo2", lengths=(5, 5, 6, 5))
    every = bases_of(setup.model, (), ["input", "a0", "m0.act", "a1", "m1", "r1.post"])
    nodes = few(every, 0)
    edges = some_of(all_edges(setup.model.shape, every, nodes), 0.8, 1)
    about = {"held_out": 0, "n_random": 0}
    found = evaluate_edges(setup, every, nodes, [edges], "zero", start_block=1, **about)
    few_at_once = evaluate_edges(setup, every, nodes, [edges], "zero", start_block=1, budget_mib=0.01, **about)
    np.testing.assert_allclose(found.kept, few_at_once.kept, rtol=1e-9)
    np.testing.assert_allclose(found.cut, few_at_once.cut, rtol=1e-9)
    late = every[3:]
    own = nodes.at([basis.place for basis in late])
    numbers = {node: i for i, node in enumerate(own)}
    listed = list(nodes)
    ends = [(listed[u], listed[d] if d >= 0 else None) for u, d in zip(edges.up, edges.down, strict=True)]
    same = EdgeSet(*np.array([(numbers[u], numbers[d] if d else -1) for u, d in ends if u in numbers]).T)
    only_late = evaluate_edges(setup, late, own, [same], "zero", start_block=1, **about)
    np.testing.assert_allclose(found.kept, only_late.kept, rtol=1e-9)
    wanted = Literal(setup.select([0, 1, 3]), late, own, same, "zero", False).metric()
    np.testing.assert_allclose(found.kept[0, [0, 1, 3]], wanted, rtol=1e-8)


def test_a_planted_circuit_needs_each_of_its_edges() -> None:
    setup, every, _ = planted()
    search, _ = setup.split(0.5, 0)
    effects = feature_effects(search, every, "paired", spans=("x", "y", "END"))
    nodes = effects.above(0.1)
    edges = feature_edges(search, every, nodes)
    chosen = edges.above(0.1)
    assert len(chosen) == len(edges.top(8)) == 8
    without = [EdgeSet(np.delete(chosen.up, i), np.delete(chosen.down, i), f"without {i}") for i in range(8)]
    told: list[float] = []
    found = evaluate_edges(
        setup,
        every,
        nodes,
        [chosen, *without],
        "mean",
        start_block=-1,
        n_random=4,
        progress=lambda a, b: told.append(a / b),
    )
    table = found.frame
    assert len(found.pairs) == 12 and not set(found.pairs) & set(effects.pairs)
    assert table["faithfulness"][0] == pytest.approx(1) and table["completeness"][0] == pytest.approx(0)
    assert table["node_faithfulness"][0] == pytest.approx(1)
    # AND: without one of two equal halves, or of the line behind them, nothing is left
    np.testing.assert_allclose(table["faithfulness"][1:], 0, atol=1e-6)
    assert table["edges"].tolist() == [8, *[7] * 8] and "8 edges between" in str(found)
    assert found.random_kept.shape == (9, 4, 12)
    assert told[-1] == 1 and told == sorted(told)


SMALL = family("gpt2")
EVERY = bases(SMALL, ["m0", "r1.post", "m2"])


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_random_sets_have_as_many_edges_between_every_two_places(seed: int, share: float) -> None:
    nodes = drawn(EVERY, 0.2, seed)
    every_edge, listed = all_edges(SMALL.model.shape, EVERY, nodes), list(nodes)
    one = some_of(every_edge, share, seed)
    other = one.random_like(every_edge, listed, np.random.default_rng(seed))

    def kinds(edges: EdgeSet) -> Counter[tuple[str, str]]:
        ends = zip(edges.up, edges.down, strict=True)
        return Counter((listed[u].place, listed[d].place if d >= 0 else "logits") for u, d in ends)

    assert kinds(one) == kinds(other)
    assert not (other.matrix(len(listed)) & ~every_edge.matrix(len(listed))).any()
    assert other.matrix(len(listed)).sum() == len(other) == len(one)


def test_costs_are_known_before_a_run() -> None:
    setup = SMALL
    every = bases(setup, PARALLEL)
    nodes = few(every, 0)
    every_edge = all_edges(setup.model.shape, every, nodes)
    whole = edge_passes(setup, every, nodes, every_edge, start_block=-1)
    own = edge_passes(setup, every, nodes, some_of(every_edge, 0.8, 0), start_block=-1)
    n_late = sum(node.place not in ("input", "r0.post") for node in nodes)
    assert whole < 10 and whole < own < 2 * (n_late + 10)
    found = evaluate_edges(setup, every, nodes, [every_edge], "zero", start_block=-1, held_out=0, n_random=0)
    assert found.about["forward_passes"] >= whole


def test_what_makes_no_sense_is_refused() -> None:
    setup = SMALL
    every = bases(setup, ["m0", "r1.post"])
    nodes = few(every, 0)
    edges = all_edges(setup.model.shape, every, nodes)

    def run(one: EdgeSet = edges, some: NodeSet = nodes, **about: object) -> None:
        evaluate_edges(setup, every, some, [one], "paired", **{"start_block": 0, "held_out": 0, **about})

    with pytest.raises(CircuitError, match="without passing another"):
        run(EdgeSet(edges.down[edges.down > 3][:1], np.array([0])))
    with pytest.raises(CircuitError, match="not there"):
        run(EdgeSet(np.array([99]), np.array([-1])))
    with pytest.raises(CircuitError, match="no place"):
        run(start_block=9)
    with pytest.raises(CircuitError, match="held_out"):
        run(held_out=1.0)
    with pytest.raises(CircuitError, match="at least one"):
        evaluate_edges(setup, every, nodes, [], "paired", start_block=0)
    with pytest.raises(CircuitError, match="other places"):
        run(some=nodes.at(["m0"]))
    with pytest.raises(CircuitError, match="several spans"):
        overlapping = few(every, 0, ("rest", "END"))
        run(all_edges(setup.model.shape, every, overlapping), overlapping)
    with pytest.raises(CircuitError, match="ends of shape"):
        EdgeSet(np.array([1, 2]), np.array([1]))
    with pytest.raises(CircuitError, match="-2 edges"):
        feature_edges(setup, every, nodes).top(-2)
