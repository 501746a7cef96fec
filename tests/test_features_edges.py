"""Edges between features and error terms: finite differences with everything between held, and the sum rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from feature_cases import FAMILIES, bases, family, random_dictionary

from crosspatch.attribution.forward import trace
from crosspatch.dictionaries.places import read_place, write_place
from crosspatch.errors import CircuitError
from crosspatch.features import NodeSet, bases_of, feature_edges, feature_effects, replacement, templatic
from crosspatch.features.gradients import clean_keys
from crosspatch.features.replaced import values_of
from crosspatch.features.structure import LOGITS, Way, direct_ways
from crosspatch.graph import ModelShape
from crosspatch.model import record

SEQUENTIAL = ["input", "a0", "m0", "r0.post", "a1", "r1.mid", "m1", "r1.post"]
PARALLEL = ["input", "a0", "m0", "r0.post", "a1", "m1", "r1.post"]
INSIDE = ["r0.post", "a1.z", "m1.act", "r2.post"]
"""Heads before their output projection and hidden neurons; attention and MLP outputs are not held."""


def chosen(every, spans=("*",), features=(1, 2), errors=True) -> NodeSet:
    """The same few nodes at every place."""
    keep = {}
    for basis in every:
        keep[basis.place] = marks = np.zeros((len(spans), basis.n_nodes), dtype=bool)
        marks[:, list(features)] = True
        if basis.has_error:
            marks[:, -1] = errors
    return NodeSet(keep, {basis.place: basis.has_error for basis in every}, tuple(spans))


def ready(setup, every, replaced="paired"):
    run = setup.record_clean(clean_keys(every))
    table = replacement(setup, every, replaced)
    return values_of(setup, every, table, {basis.key: run.packed(basis.key) for basis in every}, run.hidden)


def moved(values, basis, column, mask):
    """Clean minus replaced value of one node, as a change of the activation, at the tokens of a mask."""
    x, new = values.at[basis.place], values.whole(basis)
    f, f_new = basis.features(x), basis.features(new)
    if column == basis.width:
        return mask[:, None] * (basis.error(x) - basis.error(new))
    one = torch.tensor([column])
    return mask[:, None] * basis.written((f - f_new)[:, one], one)


def with_held(setup, values, every, up, down, changes):
    """What the model computes at `down` with one place moved, in several ways, and all others held clean."""
    edits = []
    n, length = values.n, values.length
    for change in changes:
        for i in range(n):
            own = []
            for basis in every:
                if basis is down:
                    continue
                x = values.at[basis.place] + (change if basis is up else 0)
                own += write_place(setup.model, basis.place, range(length), x.unflatten(0, (n, length))[i])
            edits.append(tuple(own))
    run = record(setup.model, setup.clean * len(changes), read=setup.read * len(changes), edits=edits)
    return (read_place(run, (down.place,)) if down is not None else run.hidden).chunk(len(changes))


def masks_of(setup, span, length=5):
    if span == "*":
        return torch.ones(len(setup) * length, dtype=torch.float64)
    out = torch.zeros(len(setup), length, dtype=torch.float64)
    for i, spans in enumerate(setup.spans):
        out[i, slice(*spans[span])] = 1
    return out.flatten()


def gradients(setup, every):
    run = trace(setup.model, setup.model.embed(setup.clean), [5] * len(setup), setup.read, neurons=True)
    found = run.gradients(setup.measure(run.hidden).sum(), [basis.key for basis in every])
    return {basis.place: found[basis.key].flatten(1) for basis in every}


CASES = [(name, PARALLEL if name == "gpt_neox" else SEQUENTIAL) for name in FAMILIES]
CASES += [("llama", INSIDE), ("gemma2", INSIDE), ("gpt_neox", INSIDE)]


@pytest.mark.parametrize(("name", "places"), CASES)
def test_every_edge_against_finite_differences(name: str, places: list[str]) -> None:
    n = 2 if name == "gpt2" else 1
    setup = family(name, lengths=(5,) * n)
    every = bases(setup, places)
    nodes = chosen(every, features=(1,))
    edges = feature_edges(setup, every, nodes)
    values, g = ready(setup, every), gradients(setup, every)
    found = {(edges.nodes[u], None if d < 0 else edges.nodes[d]): edges.values[:, i]
             for i, (u, d) in enumerate(zip(edges.up, edges.down, strict=True))}  # fmt: skip
    assert any(u.feature is None and d is not None and d.feature is None for u, d in found)
    # small, so that no feature of the dictionaries begins or ends on the way
    step, everywhere, sizes = 1e-7, masks_of(setup, "*"), {}
    for a, up in enumerate(every):
        senders = [n for n in nodes if n.place == up.place]
        changes = [moved(values, up, up.width if n.feature is None else n.feature, everywhere) for n in senders]
        steps = [sign * step * change for change in changes for sign in (1, -1)]
        for down in [*every[a + 1 :], None]:
            both = with_held(setup, values, every, up, down, steps)
            for node, ends in zip(senders, (both[:2], both[2:]), strict=True):
                if down is None:
                    wanted = (setup.measure(ends[0]) - setup.measure(ends[1])) / (2 * step)
                    np.testing.assert_allclose(found.get((node, None), 0), wanted, rtol=1e-4, atol=1e-6)
                    continue
                f = [down.features(x)[:, 1] for x in ends]
                e = [down.error(x) for x in ends]
                per_token = {
                    1: (f[0] - f[1]) * (g[down.place] @ down.dictionary.decoder[1]),
                    None: ((e[0] - e[1]) * g[down.place]).sum(-1),
                }
                for target in [n for n in nodes if n.place == down.place]:
                    wanted = per_token[target.feature].unflatten(0, (n, 5)).sum(1) / (2 * step)
                    got = found.get((node, target), np.zeros(n))
                    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-6, err_msg=f"{node} {target}")
                    sizes[up.key, down.key] = sizes.get((up.key, down.key), 0) + np.abs(got).sum()
    ways = direct_ways(setup.model.shape, [basis.key for basis in every])
    for (up, down), size in sizes.items():
        assert (size > 1e-3) == (up in ways[down])  # every edge that may be there was there to be tested


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["atp", "ig"])
def test_edges_into_a_residual_feature_add_up_to_its_pre_activation(name: str, method: str) -> None:
    setup, positions = templatic(family(name, lengths=(5, 5)))
    every = bases(setup, ["r0.post", "a1", "m1", "r1.post"])
    nodes = chosen(every, positions, features=range(24))
    edges = feature_edges(setup, every, nodes, method=method, steps=3)
    effects = feature_effects(setup, every, method=method, steps=3, spans=positions, keep=None).values_of(nodes)
    values, down = ready(setup, every), every[-1]
    x, new = values.at["r1.post"], values.whole(down)
    f, change = down.features(x), down.features(x) - down.features(new)
    checked = 0
    for number, node in enumerate(edges.nodes):
        if node.place != "r1.post" or node.feature is None:
            continue
        total = edges.values[:, edges.down == number].sum(1)
        for i in range(2):
            token, j = 5 * i + positions.index(node.span), node.feature
            if f[token, j] == 0:
                assert total[i] == 0  # a silent feature has no gradient
            elif change[token, j] != 0:
                g = effects[i, number] / change[token, j].item()
                wanted = g * ((x - new)[token] @ down.dictionary.encoder[j]).item()
                assert total[i] == pytest.approx(wanted, rel=1e-8, abs=1e-12)
                checked += wanted != 0
    assert checked > 8


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma2"])
def test_edges_into_the_logits_are_the_nodes_own_effects(name: str) -> None:
    setup = family(name)
    every = bases(setup, ["r1.post", "m2", "r2.post"])
    nodes = chosen(every)
    for method in ("atp", "ig", "relp"):
        effects = feature_effects(setup, every, method=method, steps=3, keep=None).values_of(nodes)
        edges = feature_edges(setup, every, nodes, method=method, steps=3)
        into = edges.down == -1
        assert {edges.nodes[u].place for u in edges.up[into]} == {"r2.post"}
        np.testing.assert_allclose(edges.values[:, into], effects[:, edges.up[into]], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("places", [SEQUENTIAL, INSIDE])
def test_edges_at_spans_add_up_to_edges_over_all_tokens(places: list[str]) -> None:
    setup = family("llama")
    every = bases(setup, places)
    whole = feature_edges(setup, every, chosen(every))
    parts = feature_edges(setup, every, chosen(every, ("first", "rest")), budget_mib=0.02)
    total, mixed = {}, 0.0
    for i, (u, d) in enumerate(zip(parts.up, parts.down, strict=True)):
        ends = [parts.nodes[u]._replace(span="*"), None if d < 0 else parts.nodes[d]._replace(span="*")]
        total[tuple(ends)] = total.get(tuple(ends), 0) + parts.values[:, i]
        within = d >= 0 and parts.nodes[d].place in ("m0", "r0.post", "r1.mid", "m1", "m1.act", "r1.post")
        if within and parts.nodes[u].span != parts.nodes[d].span:
            mixed += np.abs(parts.values[:, i]).sum()
    assert mixed == 0  # attention is held, so that nothing leads from one span to the other
    assert len(total) == len(whole)
    for i, (u, d) in enumerate(zip(whole.up, whole.down, strict=True)):
        ends = (whole.nodes[u], None if d < 0 else whole.nodes[d])
        np.testing.assert_allclose(total[ends], whole.values[:, i], rtol=1e-8, atol=1e-11)


def test_places_between_are_held_even_without_chosen_nodes_there() -> None:
    setup = family("gpt2")
    every = bases(setup, ["r0.post", "a1", "m1", "r1.post"])
    nodes = chosen(every)
    nodes.keep["a1"][:] = nodes.keep["m1"][:] = False
    held = feature_edges(setup, every, nodes)
    full = feature_edges(setup, every, chosen(every))
    wanted = {(full.nodes[u], full.nodes[d] if d >= 0 else None): i
              for i, (u, d) in enumerate(zip(full.up, full.down, strict=True))}  # fmt: skip
    for i, (u, d) in enumerate(zip(held.up, held.down, strict=True)):
        at = wanted[held.nodes[u], held.nodes[d] if d >= 0 else None]
        np.testing.assert_allclose(held.values[:, i], full.values[:, at], rtol=1e-9)
    # and where attention and MLP are no places, the same edge also runs through them
    loose = bases(setup, ["r0.post", "r1.post"])
    assert not np.allclose(feature_edges(setup, loose, chosen(loose)).values[:, :4], held.values[:, :4])


def test_sets_without_nodes_and_nodes_of_other_places() -> None:
    setup = family("gpt2")
    every = bases(setup, ["r0.post", "m1"])
    nodes = chosen(every)
    none = feature_edges(setup, every, nodes.emptied())
    assert len(none) == 0 and none.frame().empty and list(none) == []
    with pytest.raises(CircuitError, match="no such nodes at m1"):
        feature_edges(setup, every[:1], nodes)


def test_neurons_have_edges_too() -> None:
    setup = family("olmo2")
    every = bases_of(setup.model, (), ["a1", "m1", "r1.post"])
    edges = feature_edges(setup, every, chosen(every, features=range(4)))
    g, values = gradients(setup, every), ready(setup, every)
    change = values.at["a1"] - values.whole(every[0])
    wanted = (g["r1.post"] * change).unflatten(0, (3, 5)).sum(1)
    for i, (u, d) in enumerate(zip(edges.up, edges.down, strict=True)):
        if d >= 0 and (edges.nodes[u].place, edges.nodes[d].place) == ("a1", "r1.post"):
            j, k = edges.nodes[u].feature, edges.nodes[d].feature
            np.testing.assert_allclose(edges.values[:, i], wanted[:, j] if j == k else 0, atol=1e-12)


@pytest.mark.parametrize("kind", ["standard", "topk", "groupmax", "jumprelu", "constant_norm", "layer_norm"])
def test_seeds_are_derivatives_of_features_and_error_terms(kind: str) -> None:
    setup = family("gpt2", lengths=(5, 5))
    about = {"selection": kind, "k": 6} if kind in ("topk", "groupmax") else {}
    about |= {"normalise": kind} if kind.endswith("norm") else {}
    dictionary = random_dictionary(setup.model, "m1", **about)
    if kind == "jumprelu":
        dictionary = replace(dictionary, threshold=dictionary.threshold + 0.2)
    (basis,) = bases_of(setup.model, [dictionary])
    g = torch.Generator().manual_seed(1)
    x = read_place(record(setup.model, setup.clean), ("m1",))
    step = 1e-6 * torch.randn(x.shape, generator=g, dtype=x.dtype)
    index, weights = torch.tensor([0, 3, 7, 11]), torch.randn(4, len(x), generator=g, dtype=x.dtype)
    f = [basis.only(x + sign * step, index).T for sign in (1, -1)]
    torch.testing.assert_close(f[0], basis.features(x + step)[:, index].T)
    got = (basis.pull(x, index, weights) * step).sum(-1)
    torch.testing.assert_close(got, (f[0] - f[1]) * weights / 2, rtol=1e-4, atol=1e-11)
    assert (got != 0).any()
    into = torch.randn(3, *x.shape, generator=g, dtype=x.dtype)
    e = [basis.error(x + sign * step) for sign in (1, -1)]
    wanted = ((e[0] - e[1]) * into).sum(-1) / 2
    torch.testing.assert_close((basis.pull_error(x, into) * step).sum(-1), wanted, rtol=1e-4, atol=1e-11)


def _shape(**about) -> ModelShape:
    sizes = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 16, "vocab": 10}
    return ModelShape(**{**sizes, "parallel": False, "has_neurons": True, "has_mlp": True, "causal": True, **about})


def test_the_papers_edges_are_the_ones_found() -> None:
    x, a, m, y = (0, "resid_pre"), (0, "attn_out"), (0, "mlp_out"), (1, "resid_pre")
    last = (1, "resid_post")
    both = (x, a, m, y, last)
    sequential, parallel = direct_ways(_shape(), both), direct_ways(_shape(parallel=True), both)
    assert sequential[m] == {x: Way.TOKEN, a: Way.TOKEN} and parallel[m] == {x: Way.TOKEN}
    for ways in (sequential, parallel):
        assert ways[a] == {x: Way.ACROSS}
        assert ways[y] == {x: Way.SAME, a: Way.SAME, m: Way.SAME}
        assert ways[last] == {y: Way.ACROSS} and ways[LOGITS] == {last: Way.TOKEN}
        assert ways[x] == {}
    alone = direct_ways(_shape(has_mlp=False, has_neurons=False, d_mlp=0), (x, a, y))
    assert alone[y] == {x: Way.SAME, a: Way.SAME} and alone[LOGITS] == {y: Way.ACROSS}
