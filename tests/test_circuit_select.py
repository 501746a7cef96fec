"""From scores to circuits: how many edges are left, that they are connected, and whole paths in order."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from circuit_cases import GPT2, LLAMA_8B, PLAIN, QUICK, SHAPES, random_circuit, random_scores, seeds, shapes
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.circuits import (
    Circuit,
    Neurons,
    budget,
    by_span,
    consistent,
    enumerate_paths,
    from_node_scores,
    greedy,
    largest_within,
    nested,
    path_aware,
    threshold,
    top_n,
)
from crosspatch.circuits.ranking import ranking
from crosspatch.circuits.select import Method
from crosspatch.errors import CircuitError
from crosspatch.graph import ModelShape, edge_table
from crosspatch.paths import listed, paths

TINY = ModelShape(1, 1, 1, 4, 4, 4, 10)
METHODS: tuple[Method, ...] = ("path_aware", "top_n", "greedy")


def number(shape: ModelShape, name: str) -> int:
    return edge_table(shape).number(*edge_table(shape).parse(name))


def scored(shape: ModelShape, **scores: float) -> np.ndarray:
    """Scores by name, 0 elsewhere."""
    values = np.zeros(len(edge_table(shape)))
    for name, value in scores.items():
        values[number(shape, name)] = value
    return values


def weakest(circuit: Circuit, scores: np.ndarray) -> float:
    return float(scores[circuit.flat].min()) if circuit.n_edges else np.inf


# -- order ------------------------------------------------------------------------------------------------------------


def test_ranking_is_stable_and_leaves_out_what_has_no_score():
    scores = np.array([1.0, -3.0, np.nan, 1.0, 2.0])
    assert ranking(scores).tolist() == [4, 0, 3, 1]
    assert ranking(scores, absolute=True).tolist() == [1, 4, 0, 3]
    assert ranking(scores, positive_share=0.0).tolist() == [1, 4, 0, 3]
    assert ranking(scores, positive_share=1.0).tolist() == [4, 0, 3, 1]


@given(seeds, st.floats(0, 1))
@QUICK
def test_every_beginning_of_the_ranking_has_its_share_of_positive_edges(seed, share):
    scores = random_scores(PLAIN, seed, 0.2) - 1
    order = ranking(scores, positive_share=share)
    assert sorted(order.tolist()) == np.flatnonzero(~np.isnan(scores)).tolist()
    positive = scores[order] > 0
    for n in range(1, order.size + 1):
        there = positive[:n].sum()
        assert there >= min(share * n - 1e-6, positive.sum()), (n, there)
    for sign in (positive, ~positive):  # either kind comes in the order of size
        assert (np.diff(np.abs(scores[order][sign])) <= 0).all()


def test_edges_whose_sign_changes_between_samples_are_not_scored():
    samples = np.array([[1.0, 1.0, -1.0, 0.0]] * 9 + [[2.0, -1.0, -1.0, 0.0]])
    assert consistent(samples, 0.95)[[0, 2]].tolist() == pytest.approx([1.1, -1.0])
    assert np.isnan(consistent(samples, 0.95)[[1, 3]]).all()
    assert consistent(samples, 0.9)[1] == pytest.approx(0.8)
    with pytest.raises(CircuitError, match="share 0"):
        consistent(samples, 0.3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: top_n(s[:-1], PLAIN, 3), "this model has 46 edges"),
        (lambda s: top_n(s, PLAIN, 47), "n is 47"),
        (lambda s: greedy(s, PLAIN, -1), "n is -1"),
        (lambda s: path_aware(s, PLAIN, 2.5), "n is 2.5"),
        (lambda s: top_n(np.append(s[1:], np.inf), PLAIN, 3), "m1->logits: an infinite score"),
        (lambda s: top_n(s, PLAIN, 3, positive_share=1.1), "positive_share is 1.1"),
        (lambda s: top_n(s, PLAIN, 3, positive_share=0.5, absolute=True), "exclude each other"),
        (lambda s: nested(s, PLAIN, [3], method="best"), "method 'best'"),
        (lambda s: from_node_scores(s, PLAIN, 3), "7 senders"),
        (lambda s: from_node_scores(s[:7], PLAIN, 7), "use 0 to 6"),
    ],
)
def test_what_is_refused(call, says):
    with pytest.raises(CircuitError) as error:
        call(random_scores(PLAIN, 0))
    assert says in str(error.value)


# -- top n, threshold, greedy -----------------------------------------------------------------------------------------


def test_top_n_loses_what_leads_nowhere():
    scores = scored(PLAIN, **{"a0.h1->m1": 3, "input->a0.h1.v": 2, "a0.h1->logits": 1})
    assert top_n(scores, PLAIN, 2).n_edges == 0
    circuit = top_n(scores, PLAIN, 3, origin={"method": "eap"})
    assert sorted(circuit.edge_names()) == ["a0.h1->logits", "input->a0.h1.v"]
    assert circuit.origin["method"] == "eap"
    assert circuit.origin["selection"] == {"by": "top_n", "asked": 3, "chosen": 3, "got": 2, "absolute": False}


@given(shapes, seeds, st.integers(0, 40), st.booleans(), st.booleans())
@QUICK
def test_top_n_is_the_n_best_edges_pruned(shape, seed, n, absolute, ties):
    scores = random_scores(shape, seed, 0.1, ties)
    order = np.argsort(-np.nan_to_num(np.abs(scores) if absolute else scores, nan=-np.inf), kind="stable")
    best = np.zeros(scores.size, dtype=bool)
    best[[e for e in order[:n] if not np.isnan(scores[e])]] = True
    assert top_n(scores, shape, n, absolute=absolute) == Circuit.from_mask(shape, best).pruned()


@given(shapes, seeds, st.floats(-1, 1), st.booleans())
@QUICK
def test_threshold_keeps_what_reaches_it(shape, seed, least, absolute):
    scores = random_scores(shape, seed, 0.1)
    above = np.nan_to_num(np.abs(scores) if absolute else scores, nan=-np.inf) >= least
    assert threshold(scores, shape, least, absolute=absolute) == Circuit.from_mask(shape, above).pruned()


@given(shapes, seeds, st.integers(0, 30), st.booleans())
@QUICK
def test_greedy_takes_the_best_edge_into_what_leads_to_the_logits(shape, seed, n, ties):
    scores = random_scores(shape, seed, 0.1, ties)
    table = edge_table(shape)
    taken: list[tuple[int, int]] = []
    for _ in range(n):
        reached = {u for u, _ in taken}
        open_ = [v for v, nodes in enumerate(table.node_of_receiver) if not nodes or reached & set(nodes)]
        candidates = [
            (-scores[table.number(u, v)], table.number(u, v), u, v)
            for v in open_
            for u in range(table.reach[v])
            if (u, v) not in taken and not np.isnan(scores[table.number(u, v)])
        ]
        if not candidates:
            break
        taken.append(min(candidates)[2:])
    keep = np.zeros_like(table.exists)
    for edge in taken:
        keep[edge] = True
    found = greedy(scores, shape, n)
    assert found == Circuit(shape, keep).pruned()
    assert found.origin["selection"]["chosen"] == len(taken)


# -- path-aware -------------------------------------------------------------------------------------------------------


@given(shapes, seeds, st.integers(1, 42), st.booleans(), st.sampled_from([None, 0.5]))
@QUICK
def test_path_aware_gives_n_connected_edges(shape, seed, n, ties, positive_share):
    scores = random_scores(shape, seed, ties=ties)
    circuit = path_aware(scores, shape, n, positive_share=positive_share)
    assert circuit.n_edges == n and circuit.is_connected
    assert circuit.origin["selection"]["got"] == circuit.origin["selection"]["asked"] == n


@given(shapes, seeds, st.integers(1, 42), st.floats(0.3, 0.8))
@QUICK
def test_path_aware_uses_scored_edges_only_and_all_of_them_where_it_must(shape, seed, n, missing):
    scores = random_scores(shape, seed, missing)
    circuit = path_aware(scores, shape, n)
    usable = Circuit.from_mask(shape, ~np.isnan(scores)).pruned()
    assert circuit <= usable and circuit.is_connected and circuit.n_edges <= n
    if n >= usable.n_edges:
        assert circuit == usable


def connected_sizes(usable: Circuit) -> set[int]:
    """All sizes of connected circuits of some edges, by trying every subset."""
    edges = np.flatnonzero(usable.flat)
    sizes = set()
    for size in range(1, len(edges) + 1):
        for chosen in combinations(edges, size):
            mask = np.zeros(usable.flat.size, dtype=bool)
            mask[list(chosen)] = True
            if Circuit.from_mask(usable.shape, mask).is_connected:
                sizes.add(size)
                break
    return sizes


@pytest.mark.parametrize("seed", range(6))
def test_a_size_that_path_aware_misses_does_not_exist(seed):
    """On a model of one head and one MLP, with all edges scored and with some."""
    scores = random_scores(TINY, seed, 0.0 if seed < 2 else 0.3)
    usable = Circuit.from_mask(TINY, ~np.isnan(scores)).pruned()
    possible = connected_sizes(usable)
    found = {n for n in range(1, usable.n_edges + 1) if path_aware(scores, TINY, n).n_edges == n}
    assert found == possible


@given(shapes, seeds, st.integers(1, 42))
@QUICK
def test_path_aware_agrees_with_top_n_where_nothing_is_lost(shape, seed, n):
    """Where the best m edges leave exactly n after pruning, these are the circuit."""
    scores = random_scores(shape, seed)
    for m in range(len(edge_table(shape)) + 1):
        circuit = top_n(scores, shape, m)
        if circuit.n_edges == n:
            assert path_aware(scores, shape, n) == circuit
            return


@given(seeds, st.integers(1, 40))
@QUICK
def test_path_aware_is_no_worse_than_top_n_at_its_weakest_edge(seed, n):
    scores = random_scores(SHAPES["deep"], seed)
    best = top_n(scores, SHAPES["deep"], n)
    if best.n_edges:
        assert weakest(path_aware(scores, SHAPES["deep"], best.n_edges), scores) >= weakest(best, scores)


def test_small_sizes_on_real_sizes_of_models():
    for shape, sizes in ((GPT2, (1, 2, 3, 10, 200)), (LLAMA_8B, (3, 200))):
        scores = random_scores(shape, 0)
        for n in sizes:
            circuit = path_aware(scores, shape, n, absolute=True)
            assert circuit.n_edges == n and circuit.is_connected


@given(shapes, seeds, st.sampled_from(METHODS), st.sampled_from([0.0, 0.3]))
@QUICK
def test_nested_circuits_hold_one_another(shape, seed, method, missing):
    scores = random_scores(shape, seed, missing)
    total = len(edge_table(shape))
    sizes = [total // 2, 3, total // 5, total, 0]
    found = dict(zip(sizes, nested(scores, shape, sizes, method=method), strict=True))
    ordered = [found[n] for n in sorted(sizes)]
    assert all(small <= large for small, large in pairwise(ordered))
    assert all(circuit.is_connected for circuit in ordered)
    one = {"top_n": top_n, "greedy": greedy}
    usable = Circuit.from_mask(shape, ~np.isnan(scores)).pruned().n_edges
    for n, circuit in found.items():
        assert circuit.origin["selection"]["asked"] == n
        if method in one:
            assert circuit == one[method](scores, shape, n)
        elif not missing:
            assert n - 1 <= circuit.n_edges <= n
        else:
            assert circuit.n_edges <= min(n, usable)


@given(seeds, st.integers(0, 60), st.sampled_from([("S1", "END"), ("S1", "S2", "*")]))
@QUICK
def test_circuits_by_span_are_connected_and_as_large_as_fits(seed, n, spans):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((len(edge_table(PLAIN)), len(spans)))
    scores[rng.random(scores.shape) < 0.1] = np.nan
    circuit = by_span(scores, PLAIN, spans, n)
    assert circuit.spans == spans and circuit.is_connected and circuit.n_edges <= n
    chosen = circuit.origin["selection"]["chosen"]
    order = np.argsort(-np.nan_to_num(scores.ravel(), nan=-np.inf), kind="stable")[: chosen + 1]
    if not np.isnan(scores.ravel()[order[-1]]) and order.size == chosen + 1:
        more = np.isin(np.arange(scores.size), order).reshape(scores.shape)
        assert Circuit.from_mask(PLAIN, more, spans=spans).pruned().n_edges > n, "one edge more is too many"
    with pytest.raises(CircuitError, match="for 1 spans"):
        by_span(scores, PLAIN, ("END",), n)


# -- nodes and budgets ------------------------------------------------------------------------------------------------


def test_node_scores_keep_edges_between_the_best_nodes():
    scores = np.array([0, 5, 1, 4, 3, 2, 6.0])  # input, a0.h0, a0.h1, m0, a1.h0, a1.h1, m1
    circuit = from_node_scores(scores, PLAIN, 2)
    assert circuit.nodes() == ["input", "a0.h0", "m1"]
    assert circuit == Circuit.from_nodes(PLAIN, ["a0.h0", "m1"]).pruned()
    assert circuit.origin["selection"]["got_nodes"] == 3
    assert from_node_scores(-scores, PLAIN, 2, absolute=True) == circuit
    unscored = np.where(np.arange(7) == 3, np.nan, scores)
    assert from_node_scores(unscored, PLAIN, 2).nodes() == ["input", "a0.h0", "m0", "m1"]
    assert from_node_scores(scores, PLAIN, 2, input_competes=True).n_edges == 0, "without an input all is cut off"
    assert "input" in from_node_scores(scores + 10 * (np.arange(7) == 0), PLAIN, 2, input_competes=True).nodes()


def test_sizes_are_counted_as_mib_counts_them():
    assert budget.total(GPT2) == budget.total(GPT2, "ungrouped edges") == 32_491
    assert budget.total(LLAMA_8B, "ungrouped edges") == 1_592_881, "MIB's figure for Llama-3.1-8B"
    assert budget.total(GPT2, "nodes") == 157
    names = ["input->a0.h0.q", "input->a0.kv0.k", "a0.h0->logits"]
    circuit = Circuit.from_edges(SHAPES["grouped"], names, neurons={"a0.h0": Neurons((0, 1))})
    assert budget.count(circuit) == circuit.weighted_edge_count == 2.25
    assert budget.count(circuit, "ungrouped edges") == 3.25, "two heads read the key"
    assert budget.count(circuit, "nodes") == 1.25
    with pytest.raises(CircuitError, match="counted='neurons'"):
        budget.count(circuit, "neurons")


@given(seeds, st.integers(0, 60))
@QUICK
def test_the_largest_circuit_within_a_budget(seed, limit):
    shape = SHAPES["grouped"]
    scores = random_scores(shape, seed)
    total = len(edge_table(shape))
    best = largest_within(lambda n: top_n(scores, shape, n), limit, total, "ungrouped edges")
    assert budget.count(best, "ungrouped edges") <= limit
    larger = [top_n(scores, shape, n) for n in range(0, total + 1, 3)]
    counts = [budget.count(circuit, "ungrouped edges") for circuit in larger]
    assert budget.count(best, "ungrouped edges") >= max(count for count in counts if count <= limit)


# -- whole paths ------------------------------------------------------------------------------------------------------

JOIN = {"min": min, "product": np.prod, "sum": sum}


@given(shapes, seeds, st.sampled_from(sorted(JOIN)), st.booleans(), st.booleans())
@QUICK
def test_all_paths_come_once_and_in_order(shape, seed, by, absolute, ties):
    circuit = random_circuit(shape, seed, 0.3)
    scores = random_scores(shape, seed, ties=ties)
    found = list(enumerate_paths(circuit, scores, None, by=by, absolute=absolute))
    assert sorted(path.text for path in found) == sorted(listed(circuit.to_paths(), shape, 10**6))
    values = np.abs(scores) if absolute else scores
    for path in found:
        assert path.score == pytest.approx(JOIN[by]([values[edge] for edge in path.edges]))
        assert circuit.flat[list(path.edges)].all()
    given_scores = [path.score for path in found]
    assert given_scores == sorted(given_scores, reverse=True) or np.diff(given_scores).max() < 1e-12


def test_a_path_is_a_pattern_of_the_path_language():
    shape = SHAPES["grouped"]
    circuit = Circuit.from_edges(shape, ["input->a0.h1.q", "a0.h1->a1.kv1.v", "a1.h2->m1", "m1->logits"])
    path = next(enumerate_paths(circuit, np.ones(len(edge_table(shape)))))
    assert path.text == "input -> a0.h1.q -> a1.h2.v -> m1 -> logits"
    assert listed(paths(path.text), shape) == [path.text]
    assert [edge_table(shape).names()[edge] for edge in path.edges] == circuit.edge_names()


def test_the_best_paths_of_a_large_model_are_found_without_listing_all():
    scores = random_scores(GPT2, 0)
    found = list(enumerate_paths(Circuit.full(GPT2), scores, 50, by="sum"))
    assert len(found) == 50 and len({path.text for path in found}) == 50
    assert all(a.score >= b.score - 1e-9 for a, b in pairwise(found))


def test_paths_that_are_refused():
    scores = random_scores(PLAIN, 0)
    full = Circuit.full(PLAIN)
    for call, says in (
        (lambda: enumerate_paths(full.restrict(["END"]), scores), "with spans"),
        (lambda: enumerate_paths(full, scores, by="max"), "by='max'"),
        (lambda: enumerate_paths(full, np.append(scores[1:], np.nan)), "m1->logits: a kept edge has no score"),
    ):
        with pytest.raises(CircuitError) as error:
            call()
        assert says in str(error.value)
    assert list(enumerate_paths(Circuit.empty(PLAIN), scores)) == []
