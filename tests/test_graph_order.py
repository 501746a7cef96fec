"""Which site feeds which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.graph import (
    ModelShape,
    Site,
    children,
    comes_before,
    edges,
    nodes,
    parse_site,
    receivers,
    select,
    validate,
)

GPT2 = ModelShape(12, 12, 12, 768, 64, 3072, 50257)
GROUPED = ModelShape(3, 6, 2, 48, 8, 5, 100)
PARALLEL = ModelShape(3, 2, 2, 16, 8, 5, 100, parallel=True)
ATTENTION_ONLY = ModelShape(3, 2, 2, 16, 8, 0, 100, has_neurons=False, has_mlp=False)


def all_sites(shape):
    pattern = "*, r*.*, m*.*, a*.h*, a*.h*.[q,pattern], a*.*.[k,v], logits"
    return [address.site for address in select(pattern, shape)]


def before(a, b, shape):
    return comes_before(parse_site(a), parse_site(b), shape)


def test_gpt2_small_has_the_edges_of_the_literature():
    """32,491 in the graph with q, k and v split (EAP-IG, and TransformerLens' enumeration)."""
    assert len(nodes(GPT2)) == 1 + 144 + 12
    assert len(receivers(GPT2)) == 3 * 144 + 12 + 1
    by_formula = sum(36 * (1 + 13 * layer) + (13 + 13 * layer) for layer in range(12)) + 157
    assert len(list(edges(GPT2))) == by_formula == 32_491


def test_grouped_and_parallel_edges_match_their_formulas():
    heads, groups = 6, 2
    per_layer = [(heads + 2 * groups) * (1 + 7 * layer) + 1 + 7 * layer + heads for layer in range(3)]
    assert len(list(edges(GROUPED))) == sum(per_layer) + 1 + 3 * 7
    parallel = [(3 * 2 + 1) * (1 + 3 * layer) for layer in range(3)]
    assert len(list(edges(PARALLEL))) == sum(parallel) + 1 + 3 * 3


def test_attention_only_blocks_have_no_mlp_among_nodes_receivers_and_children():
    """Elhage et al. 2021: every head of a layer reads the embedding and all heads of the layers before."""
    assert [str(site) for site in nodes(ATTENTION_ONLY)] == ["input", *(f"a{i}.h{h}" for i in range(3) for h in (0, 1))]
    assert {site.kind for site in receivers(ATTENTION_ONLY)} == {"q", "k", "v", "logits"}
    assert len(list(edges(ATTENTION_ONLY))) == sum(3 * 2 * (1 + 2 * layer) for layer in range(3)) + 1 + 3 * 2
    assert [str(site) for site in children(parse_site("r2"), ATTENTION_ONLY)] == ["a1"]
    assert [str(site) for site in children(parse_site("r2.post"), ATTENTION_ONLY)] == ["a2"]


def test_sequential_and_parallel_blocks_differ_in_one_place():
    assert before("a5.h3", "m5", GPT2)
    assert not comes_before(Site("z", 1, 0), Site("mlp_out", 1), PARALLEL)
    for shape in (GPT2, PARALLEL):
        assert comes_before(Site("mlp_out", 1), Site("q", 2, 0), shape)
        assert not comes_before(Site("mlp_out", 1), Site("q", 1, 0), shape)
        assert not comes_before(Site("z", 1, 0), Site("q", 1, 1), shape)
        assert comes_before(Site("z", 1, 0), Site("resid_post", 1), shape)
        assert comes_before(Site("resid_pre", 1), Site("q", 1, 0), shape)
    assert before("a5", "r5.mid", GPT2)
    assert not before("m5", "r5.mid", GPT2)


@pytest.mark.parametrize("shape", [GROUPED, PARALLEL, ATTENTION_ONLY], ids=["sequential", "parallel", "attention only"])
def test_input_precedes_all_and_all_precede_the_logits(shape):
    for site in all_sites(shape):
        assert comes_before(Site("input"), site, shape) == (site.kind != "input")
        assert comes_before(site, Site("logits"), shape) == (site.kind != "logits")


@pytest.mark.parametrize("shape", [GROUPED, PARALLEL, ATTENTION_ONLY], ids=["sequential", "parallel", "attention only"])
@given(data=st.data())
def test_the_order_is_a_strict_partial_order(shape, data):
    a, b, c = (data.draw(st.sampled_from(all_sites(shape))) for _ in range(3))
    assert not comes_before(a, a, shape)
    if comes_before(a, b, shape):
        assert not comes_before(b, a, shape)
        if comes_before(b, c, shape):
            assert comes_before(a, c, shape)


@given(st.data())
def test_sorting_respects_the_order(data):
    a, b = (data.draw(st.sampled_from(all_sites(GROUPED))) for _ in range(2))
    if comes_before(a, b, GROUPED):
        assert a < b or (a.kind, b.kind) == ("resid_post", "resid_pre")  # two names of one activation


@pytest.mark.parametrize("shape", [GROUPED, PARALLEL, ATTENTION_ONLY], ids=["sequential", "parallel", "attention only"])
def test_children_are_finer_and_exist(shape):
    for site in all_sites(shape):
        for child in children(site, shape):
            validate(child, shape)
            assert not comes_before(site, child, shape), (str(site), str(child))


def test_children_go_from_stream_to_blocks_to_heads_to_parts():
    def names(text, shape):
        return [str(child) for child in children(parse_site(text), shape)]

    assert names("r0", GPT2) == ["input"]
    assert names("r7", GPT2) == ["a6", "m6"]
    assert names("r7.mid", GPT2) == ["a7"]
    assert names("r7.post", GPT2) == ["a7", "m7"]
    assert names("a2", GROUPED) == [f"a2.h{head}" for head in range(6)]
    assert names("a2.h4", GROUPED) == ["a2.h4.q", "a2.kv1.k", "a2.kv1.v", "a2.h4.pattern"]
    assert names("a2.h4", GPT2) == ["a2.h4.q", "a2.h4.k", "a2.h4.v", "a2.h4.pattern"]
    assert names("m2", GROUPED) == [f"m2.n{n}" for n in range(5)]
    assert names("m2", ModelShape(3, 2, 2, 16, 8, 5, 100, has_neurons=False)) == []
    assert names("m2.n1", GROUPED) == names("a2.h1.q", GROUPED) == names("logits", GROUPED) == []
