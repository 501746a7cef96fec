"""Names of sites and addresses: round trips, refusals that name what was meant, globs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.errors import AddressError, ModelError
from crosspatch.graph import INDEXED, KINDS, Address, ModelShape, Site, parse_address, parse_site, select, validate

GPT2 = ModelShape(12, 12, 12, 768, 64, 3072, 50257)
GROUPED = ModelShape(4, 6, 2, 48, 8, 96, 100)
PARALLEL = ModelShape(4, 2, 2, 16, 8, 32, 100, parallel=True)
MIXTURE = ModelShape(4, 2, 2, 16, 8, 32, 100, has_neurons=False)
ATTENTION_ONLY = ModelShape(4, 2, 2, 16, 8, 0, 100, has_neurons=False, has_mlp=False)

small = st.integers(0, 200)


@st.composite
def sites(draw, kinds=KINDS):
    kind = draw(st.sampled_from(kinds))
    layer = None if kind in ("input", "logits") else draw(small)
    index = draw(small) if kind in INDEXED else None
    return Site(kind, layer, index, grouped=kind in ("k", "v") and draw(st.booleans()))


span_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.+-]{0,8}", fullmatch=True)
positions = st.one_of(st.just("*"), st.integers(-50, 50), span_names)


@given(sites(), positions)
def test_print_and_parse_round_trip(site, position):
    address = Address(site, position)
    assert parse_site(str(site)) == site
    assert str(parse_site(str(site))) == str(site)
    assert parse_address(str(address)) == address
    assert str(parse_address(str(address))) == str(address)


@pytest.mark.parametrize(
    "text",
    [
        "input",
        "r7",
        "r7.mid",
        "r7.post",
        "a5",
        "a5.h3",
        "a5.h3.q",
        "a5.kv1.k",
        "a5.kv1.v",
        "a5.h3.k",
        "a5.h3.pattern",
        "m7",
        "m7.act",
        "m7.n120",
        "logits",
        "a5.h3@4",
        "r0@-1",
        "m3@subject",
        "a1@S1+1",
    ],
)
def test_every_spelling_of_the_table_prints_as_written(text):
    assert str(parse_address(text)) == text


def test_alternative_spellings_have_one_canonical_print():
    assert parse_site("a5.h3.z") == parse_site("a5.h3") == Site("z", 5, 3)
    assert str(parse_site("a5.h3.z")) == "a5.h3"
    assert str(parse_address("a5.h3@*")) == "a5.h3"


@given(st.text(max_size=12))
def test_any_text_is_a_site_or_a_clear_refusal(text):
    try:
        site = parse_site(text)
    except AddressError as error:
        assert error.fix
    else:
        assert parse_site(str(site)) == site


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("attn5.h3", "a5.h3"),
        ("a5h3", "a5.h3"),
        ("L5.H3", "a5.h3"),
        ("L5H3", "a5.h3"),
        ("9.6", "a9.h6"),
        ("A5.H3", "a5.h3"),
        ("a 5", "a5"),
        ("a05", "a5"),
        ("mlp7", "m7"),
        ("attn_5", "a5"),
        ("resid_5", "r5"),
        ("resid_mid5", "r5.mid"),
        ("blocks.5.attn.hook_z", "a5.h0"),
        ("blocks.5.hook_resid_pre", "r5"),
        ("blocks.5.hook_resid_mid", "r5.mid"),
        ("blocks.5.hook_resid_post", "r5.post"),
        ("blocks.5.hook_attn_out", "a5"),
        ("blocks.5.hook_mlp_out", "m5"),
        ("blocks.5.attn.hook_rot_q", "a5.h0.q"),
        ("blocks.5.attn.hook_v", "a5.h0.v"),
        ("blocks.5.mlp.hook_post", "m5.act"),
        ("blocks.5.attn.hook_pattern", "a5.h0.pattern"),
        ("hook_embed", "input"),
        ("lm_head", "logits"),
        ("model.layers.5.mlp", "m5"),
        ("transformer.h.5.attn", "a5"),
        ("model.layers.5.self_attn", "a5"),
        ("transformer.h.5", "r5.post"),
        ("R5", "r5"),
        ("m07.n12", "m7.n12"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_one(wrong, meant):
    with pytest.raises(AddressError) as caught:
        parse_site(wrong)
    assert caught.value.fix is not None
    assert caught.value.fix.removeprefix("did you mean ").split(" ")[0].rstrip("?") == meant
    parse_site(meant)


@pytest.mark.parametrize("text", ["a5.h3@", "a5.h3@4x", "a5.h3@two words", "a5@-0", "a5@01", "a5@S*", "@END", "a5@b@c"])
def test_a_wrong_position_is_refused(text):
    with pytest.raises(AddressError):
        parse_address(text)


def test_sites_and_addresses_that_make_no_sense_cannot_be_built():
    impossible = [("head", 1, 2), ("z", 1, None), ("attn_out", 1, 2), ("input", 0, None), ("mlp_out", -1, None)]
    for kind, layer, index in impossible:
        with pytest.raises(AddressError):
            Site(kind, layer, index)
    with pytest.raises(AddressError, match="not a position"):
        Address(Site("input"), "two words")


def test_spelling_is_not_identity():
    assert Site("k", 5, 1, grouped=True) == Site("k", 5, 1)
    assert hash(Site("k", 5, 1, grouped=True)) == hash(Site("k", 5, 1))


@pytest.mark.parametrize(
    ("text", "shape", "says"),
    [
        ("a12", GPT2, "12 layers, 0 to 11"),
        ("a0.h12", GPT2, "12 heads per layer, 0 to 11"),
        ("m0.n3072", GPT2, "3072 neurons per layer, 0 to 3071"),
        ("a1.kv1.k", GPT2, "use a1.h1.k"),
        ("a1.h5.k", GROUPED, "use a1.kv1.k, which heads 3 to 5 read"),
        ("a1.kv2.v", GROUPED, "2 key/value heads per layer, 0 to 1"),
        ("a1.h6.v", GROUPED, "6 heads per layer, 0 to 5"),
        ("r1.mid", PARALLEL, "in parallel"),
        ("m1.n0", MIXTURE, "mixture of experts"),
        ("m1.act", MIXTURE, "use m1"),
        ("m1", ATTENTION_ONLY, "they have no MLP"),
        ("m1.act", ATTENTION_ONLY, "attention only"),
        ("m1.n0", ATTENTION_ONLY, "they have no MLP"),
        ("r1.mid", ATTENTION_ONLY, "use r1.post, a1"),
    ],
)
def test_validate_says_what_there_is_instead(text, shape, says):
    with pytest.raises(AddressError) as caught:
        validate(parse_address(text + "@END"), shape)
    assert says in str(caught.value)
    assert text in str(caught.value)


def test_validate_returns_what_exists_and_checks_spans():
    address = parse_address("a1.h5.q@S2")
    assert validate(address, GROUPED) is address
    assert validate(address, GROUPED, spans=["S2"]) is address
    with pytest.raises(AddressError, match=r"no span 'S2'.*\n.*END, IO"):
        validate(address, GROUPED, spans=["IO", "END"])
    assert validate(Site("k", 1, 1, grouped=True), GROUPED).index == 1


def test_select_counts_orders_and_deduplicates():
    assert len(select("a*.h*", GPT2)) == 144
    assert [str(a) for a in select("r[3-5]@*, r4, m3@END", GPT2)] == ["r3", "m3@END", "r4", "r5"]
    assert [str(a) for a in select("a0.h[0,2]@[IO,END]", GPT2)] == ["a0.h0@IO", "a0.h0@END", "a0.h2@IO", "a0.h2@END"]
    assert [str(a) for a in select("m1.n[9-11]@-1", GPT2)] == ["m1.n9@-1", "m1.n10@-1", "m1.n11@-1"]
    assert [str(a) for a in select("a1?", GPT2)] == ["a10", "a11"]
    assert len(select("r*@[0-23]", GPT2)) == 12 * 24
    assert [str(a) for a in select("a0@[-2--1]", GPT2)] == ["a0@-2", "a0@-1"]
    assert len(select("m0.n*", GPT2)) == 3072
    assert [str(a) for a in select("logits, input", GPT2)] == ["input", "logits"]
    assert "logits" not in {str(a) for a in select("*", GPT2)}


def test_select_knows_grouped_and_parallel_models():
    assert [str(a) for a in select("a0.*.[k,v]", GROUPED)] == ["a0.kv0.k", "a0.kv1.k", "a0.kv0.v", "a0.kv1.v"]
    assert len(select("a*.*.[k,v]", GPT2)) == 288
    assert {a.site.kind for a in select("r*.*", PARALLEL)} == {"resid_post"}
    assert {a.site.kind for a in select("r*.*", GPT2)} == {"resid_mid", "resid_post"}
    with pytest.raises(AddressError, match=r"is nothing below"):
        select("m0.*", MIXTURE)


def test_a_model_without_mlps_has_none_to_select():
    assert select("m*", ATTENTION_ONLY) == []
    assert [str(a) for a in select("a*, m*", ATTENTION_ONLY)] == ["a0", "a1", "a2", "a3"]
    assert {a.site.kind for a in select("*, r*.*", ATTENTION_ONLY)} == {"input", "resid_pre", "resid_post", "attn_out"}
    with pytest.raises(AddressError, match="they have no MLP"):
        select("a*, m0", ATTENTION_ONLY)


def test_select_matches_span_names():
    assert [a.position for a in select("a0@S?", GPT2, spans=["S2", "IO", "S1", "END"])] == ["S2", "S1"]
    assert len(select("a0@?*", GPT2, spans=["S2", "IO"])) == 2
    with pytest.raises(AddressError, match="the spans are IO"):
        select("a0@S*", GPT2, spans=["IO"])
    with pytest.raises(AddressError, match="pass spans="):
        select("a0@S*", GPT2)
    with pytest.raises(AddressError, match="no span 'S1'"):
        select("a0@S1", GPT2, spans=["IO"])


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("q*", "input, r0 to r11, a0 to a11, m0 to m11"),
        ("a*.h12*", "h0 to h11"),
        ("a[12-14]", "a0 to a11"),
        ("a*.h0.w?", "z, q, k, v, pattern"),
        ("r3@[1", "brackets"),
        ("a1,,a2", "empty pattern"),
        ("a[3-1]", "runs backwards"),
        ("attn5.h3", "did you mean a5.h3"),
        ("a12.h3", "0 to 11"),
    ],
)
def test_a_pattern_that_matches_nothing_says_what_there_is(pattern, says):
    with pytest.raises(AddressError) as caught:
        select(pattern, GPT2)
    assert says in str(caught.value)


@given(sites(kinds=tuple(k for k in KINDS if k != "logits")))
def test_a_site_that_exists_is_selected_by_its_own_name(site):
    for shape in (GPT2, GROUPED, PARALLEL, MIXTURE, ATTENTION_ONLY):
        try:
            validate(site, shape)
        except AddressError:
            continue
        assert select(str(site), shape) == [Address(site)]


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(ModelError, match="do not divide"):
        ModelShape(2, 6, 4, 48, 8, 96, 100)
    with pytest.raises(ModelError, match="n_layers is 0"):
        ModelShape(0, 6, 6, 48, 8, 96, 100)
    with pytest.raises(ModelError, match="without MLPs"):
        ModelShape(2, 6, 6, 48, 8, 0, 100, has_mlp=False)
