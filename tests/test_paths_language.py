"""Path sets as text and as algebra: what is written, what is refused and where, and which paths a set holds.

Membership is decided a second time by brute force: every path of a tiny network is written out, and a regular
expression made from the pattern (tests/treeify.py) says whether it belongs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from path_toys import small
from treeify import as_regex

from crosspatch.errors import AddressError, PathError
from crosspatch.graph import ModelShape, Site, comes_before, nodes
from crosspatch.paths import (
    Pairs,
    PathSet,
    avoiding,
    canonical,
    contains,
    count,
    equal,
    everything,
    explain,
    from_edges,
    from_json,
    has_path,
    intersection,
    listed,
    nothing,
    parse_hypotheses,
    paths,
    require_some,
    union,
    via,
)
from crosspatch.paths.language import parse_route
from crosspatch.paths.pathset import MAX_DEPTH

TINY = ModelShape(2, 2, 2, 8, 4, 8, 50)
PARALLEL = ModelShape(2, 2, 1, 8, 4, 8, 50, parallel=True)
BARE = ModelShape(2, 2, 2, 8, 4, 0, 50, has_neurons=False, has_mlp=False)
GPT2 = ModelShape(12, 12, 12, 768, 64, 3072, 50257)
SPANS = {"S": [1], "END": [2], "BOTH": [0, 1]}
PROMPT = Pairs([[5, 6, 7]], [[8, 9, 7]], [(2,)], [(-1,)], [[]], [[]],
               [{"S": (1, 2), "END": (2, 3), "BOTH": (0, 2)}], ["t"], "three tokens")  # fmt: skip
QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


# -- brute force ----------------------------------------------------------------------------------------------------


@lru_cache
def every_path(shape: ModelShape, tokens: int) -> tuple[str, ...]:
    """All paths to the last token, as ``input@0;a0.h1.v@0>2;m1.x@2>2;logits@2;``."""

    def back(reader: Site, at: int, suffix: str) -> list[str]:
        found = [f"input@{at};{suffix}"]
        for node in nodes(shape)[1:]:
            if comes_before(node, reader, shape):
                head = node.kind == "z"
                for channel in "qkv" if head else "x":
                    for read in range(at + 1) if channel in "kv" else [at]:
                        found += back(node, read, f"{node}.{channel}@{read}>{at};{suffix}")
        return found

    return tuple(back(Site("logits"), tokens - 1, f"logits@{tokens - 1};"))


def as_text(path: str, positions: bool) -> str:
    """The same path as `listed` writes it."""
    hops = [re.sub(r"\.x@", "@", re.sub(r">\d+$", "", hop)) for hop in path.strip(";").split(";")]
    return " -> ".join(hop if positions else hop.split("@")[0] for hop in hops)


def written_as(made: PathSet, shape: ModelShape, pairs: Pairs | None) -> list[str]:
    return listed(made, shape, 10**6, pairs)


LEAVES = ["input -> logits", "input ~> logits", "** -> a0.h1 -> logits", "input -> a0.*.v -> a1.h0.k -> logits",
          "input -> a0.h0 ~> a1.*.q -> ** -> logits", "** -> m0 -> ** -> logits", "input -> * -> logits",
          "input -> a0.h1.q -> ** -> logits", "** -> * -> a1.h1.v ~> logits", "** -> a1.h0 -> logits",
          "input ~> a1.h1 -> ** -> m1 -> logits"]  # fmt: skip
PLACED = ["input@S -> ** -> logits", "** -> a0.h0.v@S -> ** -> logits", "input -> a0.*@S -> ** -> logits@END",
          "** -> a1.h1.k@BOTH -> logits", "input@0 -> a0.h1 ~> a1.h0@END ~> logits", "** -> m0@BOTH -> ** -> logits",
          "input -> a0.*[-1..0] -> a1.h0.k -> logits", "input -> a0.h1.v[-1..-1] -> a1.*.v[-2..0] -> logits",
          "** -> a0.h0@S -> a1.h0.v@0 -> logits", "input -> a1.h1[-2..-1] -> logits"]  # fmt: skip
Both = tuple[PathSet, Callable[[str], bool]]


def expressions(leaves: list[str], shape: ModelShape) -> st.SearchStrategy[Both]:
    """Random algebra, as a path set and as a function of written-out paths."""

    def leaf(text: str) -> Both:
        return paths(text), as_regex(text, shape, SPANS)

    def compound(inner: st.SearchStrategy[Both]) -> st.SearchStrategy[Both]:
        two = st.tuples(inner, inner)
        return (
            two.map(lambda x: (x[0][0] | x[1][0], lambda p: x[0][1](p) or x[1][1](p)))
            | two.map(lambda x: (x[0][0] & x[1][0], lambda p: x[0][1](p) and x[1][1](p)))
            | two.map(lambda x: (x[0][0] - x[1][0], lambda p: x[0][1](p) and not x[1][1](p)))
            | inner.map(lambda x: (~x[0], lambda p: not x[1](p)))
        )

    return st.recursive(st.sampled_from(leaves).map(leaf), compound, max_leaves=5)


def check_against_brute_force(both: Both, shape: ModelShape, pairs: Pairs | None, tokens: int) -> None:
    made, member = both
    all_paths = every_path(shape, tokens)
    inside = [path for path in all_paths if member(path)]
    expected = {as_text(path, pairs is not None) for path in inside}
    found = written_as(made, shape, pairs)
    assert len(found) == len(set(found)) == count(made, shape, pairs)
    assert set(found) == expected
    assert has_path(made, shape, pairs) == bool(expected)
    for path in all_paths[:: max(1, len(all_paths) // 12)]:
        assert contains(made, as_text(path, pairs is not None), shape, pairs) == member(path)


@QUICK
@given(both=expressions(LEAVES, TINY))
def test_sets_of_paths_through_nodes(both):
    check_against_brute_force(both, TINY, None, 1)


@QUICK
@given(both=expressions(LEAVES[:-1], PARALLEL))  # in the last one m1 reads a1.h1
def test_sets_of_paths_in_parallel_blocks_with_grouped_queries(both):
    check_against_brute_force(both, PARALLEL, None, 1)


@settings(QUICK, max_examples=40)
@given(both=expressions(LEAVES + PLACED, TINY))
def test_sets_of_paths_from_token_to_token(both):
    check_against_brute_force(both, TINY, PROMPT, 3)


@QUICK
@given(a=expressions(LEAVES, TINY), b=expressions(LEAVES, TINY))
def test_equal_sets_and_only_they_share_a_canonical_form(a, b):
    same = all(a[1](path) == b[1](path) for path in every_path(TINY, 1))
    assert equal(a[0], b[0], TINY) == same
    assert (canonical(a[0], TINY) == canonical(b[0], TINY)) == same


@settings(QUICK, max_examples=15)
@given(a=expressions(LEAVES + PLACED, TINY), b=expressions(LEAVES + PLACED, TINY))
def test_laws_of_the_algebra(a, b):
    x, y = a[0], b[0]
    laws = [(~(x | y), ~x & ~y), (~(x & y), ~x | ~y), (x - y, x & ~y), (x | (x & y), x), (x & (x | y), x),
            ((x - y) | (x & y), x), (x | ~x, everything()), (x & ~x, nothing()), (x | y, y | x)]  # fmt: skip
    for left, right in laws:
        assert equal(left, right, TINY, PROMPT)
        assert canonical(left, TINY, PROMPT) == canonical(right, TINY, PROMPT)
    assert ~~x == x
    assert count(x | y, TINY, PROMPT) == count(x, TINY, PROMPT) + count(y - x, TINY, PROMPT)


@QUICK
@given(both=expressions(LEAVES, TINY))
def test_words_about_a_set(both):
    """`explain` agrees with counting the paths through every node by hand."""
    made, member = both
    inside = [p for p in every_path(TINY, 1) if member(p)]
    text = explain(made, TINY)
    n = len(every_path(TINY, 1))
    if len(inside) in (0, n):
        assert text == f"{'Every one' if inside else 'None'} of the {n} paths."
        return
    assert text.startswith(f"{len(inside)} of {n} paths (")
    told = dict.fromkeys(("Every path goes", "Some go", "None goes"), "")
    for line in text.splitlines()[1:]:
        start, names = line.split(" through ", 1)
        told[start] = names.rstrip(".")
    for node in nodes(TINY)[1:]:
        through = [p for p in inside if f";{node}." in p]
        kind = "Every path goes" if len(through) == len(inside) else "Some go" if through else "None goes"
        entered = {re.search(rf";{node}\.(.)@", p)[1] for p in through}
        found = [name for name in _named(told[kind]) if name.split(".[")[0] in _spellings(node)]
        assert len(found) == 1, (told, str(node))
        shown = re.search(r"\.\[?([qkv](?:,[qkv])*)\]?$", found[0])
        assert (set(shown[1].split(",")) if shown else set(entered)) == entered
        assert shown or entered in (set(), {"x"}, {"q", "k", "v"})


def _named(text: str) -> list[str]:
    return re.split(r", (?![^\[]*\])", text) if text else []


def _spellings(node: Site) -> set[str]:
    """Ways in which `explain` may name a node of the tiny model, without and with one input."""
    letter = str(node)[0]
    layers = [str(node.layer), "*"]
    heads = [f".h{node.index}", ".*"] if letter == "a" else [""]
    return {f"{letter}{n}{h}{c}" for n in layers for h in heads for c in ("", ".q", ".k", ".v")}


def test_counts_known_in_closed_form():
    """Without MLPs a layer multiplies the ways by 1 + 3 heads; with sequential MLPs by (1 + 3 heads) * 2."""
    assert count(everything(), BARE) == 7**2
    assert count(everything(), TINY) == (7 * 2) ** 2
    assert count(everything(), PARALLEL) == 8**2
    assert count(everything(), GPT2) == (37 * 2) ** 12
    assert count(paths("input -> a0.* -> a1.h5.k -> logits"), GPT2) == 36
    assert count(paths("input ~> logits"), GPT2) == 2**12
    assert count(via("a5.h3"), GPT2) + count(avoiding("a5.h3"), GPT2) == 74**12
    assert count(nothing(), GPT2) == 0


def test_edges_hold_what_they_join():
    circuit = from_edges([("input", "a0.h1.v"), ("a0.h1", "a1.h0.k"), ("a1.h0", "logits"), ("input", "m1"),
                          ("m1", "logits"), ("a0.h1", "m1")])  # fmt: skip
    assert set(listed(circuit, TINY)) == {
        "input -> a0.h1.v -> a1.h0.k -> logits", "input -> m1 -> logits", "input -> a0.h1.v -> m1 -> logits",
    }  # fmt: skip
    grouped = from_edges([("input", "a1.kv0.k"), ("a1.h0", "logits"), ("a1.h1", "logits")])
    assert listed(grouped, PARALLEL) == ["input -> a1.h0.k -> logits", "input -> a1.h1.k -> logits"]


def test_first_paths_and_where_they_stop():
    assert listed(everything(), BARE, 3) == [
        "input -> logits",
        "input -> a0.h0.q -> logits",
        "input -> a0.h0.k -> logits",
    ]
    assert len(listed(everything(), GPT2, 5)) == 5
    assert listed(nothing(), GPT2) == []


def test_long_names_are_shortened():
    assert explain(paths("input -> a[0-3].* -> a5.h[1,3].[k,v] -> logits"), GPT2).splitlines()[1:] == [
        "Some go through a[0-3].*, a5.h[1,3].[k,v].",
        "None goes through m*, a[4,6-11].*, a5.h[0,2,4-11].",
    ]
    assert explain(everything(), GPT2) == "Every one of the 2.7e+22 paths.".replace("2.7", f"{74**12 / 1e22:.2f}")


def test_words_about_tokens():
    text = explain(paths("input@S -> a0.h1.v -> a1.h0.k@END -> logits"), TINY, PROMPT)
    assert text.splitlines()[-2:] == ["They start at token 1.", "They are read at token 2."]
    assert "from token to token in example 0" in text
    text = explain(paths("** -> a0.h1 -> logits"), TINY, PROMPT)
    assert "They start at tokens 0-2." in text


def test_a_listed_path_is_a_pattern_that_matches_only_itself():
    for pairs in (None, PROMPT):
        for text in listed(everything(), TINY, 400, pairs)[::37]:
            assert listed(paths(text), TINY, 5, pairs) == [text]
            assert contains(paths(text), text, TINY, pairs)


# -- text -----------------------------------------------------------------------------------------------------------


names = st.sampled_from(["a0.h1", "a1.*", "m0", "m*", "*", "a[0-1].h0", "a*.h[0,1]", "a0"])
heads = st.sampled_from(["a0.h1", "a1.*", "a[0,1].h1", "a*.h*"])
places = st.sampled_from(["", "@S", "@-1", "@2", "@*"])
channels = st.sampled_from(["", ".q", ".k", ".v", ".[q,k]", ".[k, v]"])
windows = st.sampled_from(["", "[-2..0]", "[-3..-1]", "[ -1 .. 0 ]"])


@st.composite
def routes(draw) -> str:
    def step() -> str:
        if draw(st.booleans()):
            return draw(names) + draw(places)
        return draw(heads) + draw(channels) + draw(places) + draw(windows)

    text = "input" + draw(places)
    for _ in range(draw(st.integers(0, 3))):
        hop = step() if draw(st.booleans()) else f"{{{step()}, {step()}}}"
        text += draw(st.sampled_from([" -> ", "->", " ~> ", " -> ** -> ", "  ->  **->"])) + hop
    return f"{text} -> logits{draw(places)}"


def meaning(text: str) -> object:
    route = parse_route(text)
    return route.links, [[(s.name, s.channels, s.at, s.window) for s in hop.steps] for hop in route.hops]


@settings(QUICK, max_examples=200)
@given(text=routes())
def test_what_is_printed_is_read_as_the_same(text):
    printed = str(parse_route(text))
    assert meaning(printed) == meaning(text)
    assert str(parse_route(printed)) == printed


@QUICK
@given(both=expressions(LEAVES + PLACED, TINY))
def test_json_round_trip(both):
    made = both[0]
    again = from_json(json.loads(json.dumps(made.to_json())))
    assert again.to_json() == made.to_json()
    assert str(again) == str(made)
    assert equal(again, made, TINY, PROMPT)


def test_json_of_edges_and_of_several_parts():
    made = union([from_edges([("input", "logits")]), via("m0"), avoiding("a0.h1")])
    assert from_json(json.loads(json.dumps(made.to_json()))).to_json() == made.to_json()
    assert from_json({"or": ["input -> logits", "input ~> logits", {"not": "** -> m1 -> logits"}]}).leaves()


@pytest.mark.parametrize("value", [7, None, [], {}, {"or": []}, {"or": "x"}, {"xor": ["input -> logits"]},
                                   {"edges": [["input"]]}, {"edges": [["input", 3]]}, {"edges": []},
                                   {"not": 3}, {"or": ["input -> logits"], "and": []}, {1, 2}])  # fmt: skip
def test_other_json_is_refused(value):
    with pytest.raises(PathError):
        from_json(value)


def test_shorthands():
    assert str(paths("** -> a0.h1 -> logits")) == "input -> ** -> a0.h1 -> logits"
    assert str(via("a0.h1", "m1")) == "input -> ** -> a0.h1 -> ** -> m1 -> ** -> logits"
    assert equal(intersection([]), everything(), TINY)
    assert equal(union([]), nothing(), TINY)
    assert equal(intersection([via("m0"), via("m1")]), via("m0", "m1"), TINY)
    assert equal(avoiding("m0", "m1"), ~(via("m0") | via("m1")), TINY)
    assert equal(
        paths("input -> {a0.h0, m0} -> logits"), paths("input -> a0.h0 -> logits", "input -> m0 -> logits"), TINY
    )
    assert equal(via("a0.kv0"), via("a0.*"), PARALLEL)
    assert equal(via("a0"), via("a0.*"), TINY)


# -- refusals -------------------------------------------------------------------------------------------------------


def pointed_at(error: Exception) -> str:
    """What stands above the carets of a message."""
    lines = str(error).split("\n")
    at = next(i for i, line in enumerate(lines) if set(line.strip()) == {"^"})
    start = lines[at].index("^")
    return lines[at - 1][start : len(lines[at])]


UNREADABLE = [
    ("", "", "no path"),
    ("   ", "", "no path"),
    ("input", "t", "does not end"),
    ("input ->", ">", "does not end"),
    ("input -> **", "*", "does not end"),
    ("-> logits", "->", "an arrow without a node"),
    ("input -> -> logits", "->", "an arrow without a node"),
    ("input -> a0.h1 a1.h2 -> logits", "a0.h1 a1.h2", "two nodes without an arrow"),
    ("input -> a0.h1@S a1.h2 -> logits", "a0.h1@S a1.h2", "two nodes without an arrow"),
    ("input a0.h1 -> logits", "input a0.h1", "two nodes without an arrow"),
    ("a0.h1 -> logits", "a0.h1", "starts at 'input'"),
    ("logits -> input", "logits", "starts at 'input'"),
    ("input -> a0.h1", "a0.h1", "ends at 'logits'"),
    ("input -> {a0.h1, a0.h2 -> logits", "{a0.h1, a0.h2", "brace"),
    ("input -> a0.h1} -> logits", "a0.h1}", "is no node"),
    ("input -> {} -> logits", "{}", "missing in the braces"),
    ("input -> {a0.h1, } -> logits", "{a0.h1, }", "missing in the braces"),
    ("input -> a0.h1[0..-2] -> logits", "a0.h1[0..-2]", "window"),
    ("input -> a0.h1@ -> logits", "a0.h1@", "position"),
    ("input -> a0.h1@1x -> logits", "a0.h1@1x", "position"),
    ("input.q -> logits", "input.q", "no q, k, v"),
    ("input -> logits[-1..0]", "logits[-1..0]", "no window"),
    ("input -> input -> logits", "input", "inside a path"),
    ("input -> a[3-1].h0 -> logits", "a[3-1].h0", "runs backwards"),
    ("input -> a0.h1 > logits", ">", "cannot read"),
    ("input -> a0**.h1 -> logits", "a0**.h1", "is no node"),
    ("input => a0.h1 -> logits", ">", "cannot read"),
    ("input -> a[0-99999999].h1 -> logits", "a[0-99999999].h1", "too long"),
    ("input -> a0.h1[..0] -> logits", "a0.h1[..0]", "two whole numbers"),
    ("input -> a0.h1[-2] -> logits", "a0.h1[-2]", "two whole numbers"),
    ("input -> a0.h1[\N{MINUS SIGN}2..0] -> logits", "a0.h1[\N{MINUS SIGN}2..0]", "two whole numbers"),
    (f"input -> a0.h1[-{'9' * 5000}..0] -> logits", f"a0.h1[-{'9' * 5000}..0]", "two whole numbers"),
]


@pytest.mark.parametrize(("text", "where", "what"), UNREADABLE)
def test_unreadable_patterns_are_pointed_at(text, where, what):
    with pytest.raises(PathError, match=re.escape(what)) as caught:
        parse_route(text)
    assert pointed_at(caught.value).strip() == where
    assert caught.value.fix


UNFIT = [
    (TINY, "input -> a0.h7 -> logits", "a0.h7", "a0.h0 to a1.h1"),
    (TINY, "input -> a9.* -> logits", "a9.*", "a0.h0 to a1.h1"),
    (TINY, "input -> a0.h1[-2..1] -> logits", "a0.h1[-2..1]", "no token sees later ones"),
    (TINY, "input -> {a0.h0, b2} -> logits", "b2", "no node matches"),
    (TINY, "input -> r1 -> logits", "r1", "residual stream is no node"),
    (TINY, "input -> a1.h0 -> a0.h0 -> logits", "a0.h0", "a1.h0 cannot feed a0.h0"),
    (TINY, "input -> a0.h0 -> a0.h1.q -> logits", "a0.h1.q", "cannot feed"),
    (TINY, "input -> m1 -> ** -> a1.h0.k@S -> logits", "a1.h0.k@S", "cannot feed"),
    (TINY, "input -> a*.* -> a*.* -> a*.* -> logits", "a*.*", "cannot feed"),
    (TINY, "input -> m0.q -> logits", "m0.q", "an MLP has no q"),
    (TINY, "input -> m0[-1..0] -> logits", "m0[-1..0]", "no window"),
    (PARALLEL, "input -> a0.h0 -> m0 -> logits", "m0", "cannot feed"),
    (TINY, "input -> {a0.h0, a1.h1} -> a1.h0.k -> logits", "a1.h1", "a1.h1 cannot feed a1.h0"),
    (TINY, "input -> m0 -> {a0.h0, a1.h1} -> logits", "a0.h0", "m0 cannot feed a0.h0"),
    (BARE, "input -> m0 -> logits", "m0", "no MLPs"),
    (TINY, "input -> a0.h0.z -> logits", "a0.h0.z", "no node matches"),
    (TINY, "input -> m0.n3 -> logits", "m0.n3", "the parts of an MLP are no nodes of paths"),
    (TINY, "input -> {m0, m1.act} -> logits", "m1.act", "crosspatch patch --sites 'm1.n*'"),
]


@pytest.mark.parametrize(("shape", "text", "where", "what"), UNFIT)
def test_patterns_that_do_not_fit_the_model_are_pointed_at(shape, text, where, what):
    with pytest.raises(PathError, match=re.escape(what)) as caught:
        count(paths(text), shape, PROMPT)
    assert pointed_at(caught.value) == where
    assert caught.value.fix


def test_the_hop_pointed_at_is_the_one_that_nothing_reaches():
    """Neighbours fit in pairs here; three layers of heads in a row do not exist."""
    with pytest.raises(PathError) as caught:
        count(paths("input -> a*.h0 -> a*.h1 -> a*.h[0-1] -> logits"), TINY)
    assert pointed_at(caught.value) == "a*.h[0-1]"


@pytest.mark.parametrize(
    ("edge", "where"),
    [(("a0.h9", "logits"), "a0.h9"), (("a1.h0", "a0.h1.q"), "a0.h1.q"), (("input", "a1.h0"), "a1.h0"),
     (("m0", "m0"), "m0"), (("a0.h0", "nowhere"), "nowhere"), (("a0.h0.z", "logits"), "a0.h0.z")],
)  # fmt: skip
def test_impossible_edges_are_pointed_at(edge, where):
    with pytest.raises(PathError) as caught:
        count(from_edges([edge]), TINY)
    assert pointed_at(caught.value) == where


def test_long_files_are_no_deep_sets():
    """Unions and differences of thousands of lines are flat."""
    lines = [f"** -> a{i % 2}.h{i // 2 % 2} -> logits@{i % 3}" for i in range(3000)]
    made = parse_hypotheses("[a]\n" + "\n".join(lines)).named["a"]
    assert equal(made, paths(*lines), TINY, PROMPT)
    less = parse_hypotheses("[a]\n** -> logits\n" + "\n".join(f"- {line}" for line in lines)).named["a"]
    assert equal(less, ~paths(*lines), TINY, PROMPT)
    turning = "[a]\n" + "\n".join(f"{'+-'[i % 2]} {line}" for i, line in enumerate(lines))
    with pytest.raises(PathError, match="more than 100 times") as caught:
        parse_hypotheses(turning, "claims.txt")
    assert "claims.txt, line 103" in str(caught.value)


def test_files_of_other_editors():
    text = "\ufeff[h\u00e9ads \u2028 <b>]\r\n** -> a0.h1 -> logits  # \u2028 more\r\n"
    assert list(parse_hypotheses(text).named) == ["h\u00e9ads \u2028 <b>"]
    with pytest.raises(PathError, match="is no name"):
        parse_hypotheses("[ ]\n** -> a0.h1 -> logits")


def test_algebra_and_edges_take_nothing_else():
    with pytest.raises(TypeError):
        via("m0") | "** -> logits"
    for wrong in ("ab", [("a0.h0", "m0", "m1")]):
        with pytest.raises(PathError, match="is no edge"):
            from_edges(wrong)


def test_empty_requests():
    with pytest.raises(PathError, match="no pattern"):
        paths()
    with pytest.raises(PathError, match="no edges"):
        from_edges([])


def test_positions_need_a_prompt():
    for ask in (count, explain, canonical, listed):
        with pytest.raises(PathError, match="names positions"):
            ask(paths("input@S -> logits"), TINY)
        with pytest.raises(PathError, match=re.escape("[-2..0]")):
            ask(paths("input -> a0.h0[-2..0] -> logits"), TINY)
    with pytest.raises(AddressError, match="there is no span 'T'"):
        count(paths("input@T -> logits"), TINY, PROMPT)
    with pytest.raises(AddressError, match="does not exist"):
        count(paths("input@7 -> logits"), TINY, PROMPT)
    with pytest.raises(PathError, match="there is no example 3"):
        count(paths("input@S -> logits"), TINY, PROMPT, 3)


def test_no_path_left():
    require_some(nothing(), TINY)
    require_some(paths("input -> logits"), TINY)
    for empty in (via("m0") - via("m0"), via("m0") & avoiding("m0"), ~everything() | ~everything()):
        with pytest.raises(PathError, match="no path is left"):
            require_some(empty, TINY)
    later = paths("input@END -> a0.h0.v -> a1.h0.k@S -> logits")
    with pytest.raises(PathError, match="no path is left"):
        require_some(later, TINY, PROMPT)
    behind = paths("input -> a0.h0.q[-2..-1] -> logits")  # a query is read where it is written
    with pytest.raises(PathError, match="no path is left"):
        require_some(behind, TINY, PROMPT)


def test_one_pair_with_a_path_is_enough():
    swapped = Pairs([*PROMPT.reference, [5, 6, 7]], [*PROMPT.counterfactual, [8, 9, 7]], PROMPT.read * 2,
                    PROMPT.targets * 2, [[], []], [[], []], [*PROMPT.spans, {"S": (2, 3), "END": (1, 2)}],
                    ["t", "t"], "the other way round")  # fmt: skip
    later = paths("input@END -> a0.h0.v -> a1.h0.k@S -> logits")
    require_some(later, TINY, swapped)
    assert not has_path(later, TINY, swapped, 0)
    assert has_path(later, TINY, swapped, 1)


@pytest.mark.parametrize(
    ("text", "pairs", "where", "what"),
    [("input -> a0.h0 -> logits", None, "a0.h0", "which input of the head"),
     ("input -> a0.*.q -> logits", None, "a0.*.q", "not one node"),
     ("input -> {m0, m1} -> logits", None, "m0, m1", "not one node"),
     ("input ~> logits", None, "logits", "direct edges only"),
     ("input -> m0@1 -> logits", None, "m0@1", "no tokens here"),
     ("input@2 -> m0 -> logits@2", PROMPT, "m0", "names the token at every step"),
     ("input@1 -> m0@1 -> logits@2", PROMPT, "m0@1", "stay at the token"),
     ("input@2 -> a0.h0.v@2 -> m0@1 -> a1.h0.k@1 -> logits@0", PROMPT, "a1.h0.k@1", "before it is there"),
     ("input@1 -> m0@2 -> logits@2", PROMPT, "input@1", "reads token 2"),
     ("input@BOTH -> logits@2", PROMPT, "input@BOTH", "2 tokens")],
)  # fmt: skip
def test_what_is_no_single_path_is_pointed_at(text, pairs, where, what):
    with pytest.raises(PathError, match=re.escape(what)) as caught:
        contains(everything(), text, TINY, pairs)
    assert pointed_at(caught.value) == where


def test_a_single_path_may_name_tokens_by_span_or_from_the_end():
    assert contains(via("a0.h1"), "input@S -> a0.h1.v@1 -> logits@-1", TINY, PROMPT)
    assert not contains(via("a0.h1.k"), "input@S -> a0.h1.v@1 -> logits@END", TINY, PROMPT)


@pytest.mark.parametrize("how", ["or", "and", "not"])
def test_sets_within_sets_have_a_limit(how):
    def nested(depth: int) -> object:
        value: object = "input -> a0.h0 -> logits"
        for _ in range(depth):
            value = {how: value} if how == "not" else {how: [value, "input -> m0 -> logits"]}
        return value

    model = small("gpt2", 2)
    at_most = from_json(nested(MAX_DEPTH))
    assert from_json(at_most.to_json()) == at_most
    assert has_path(at_most, model.shape) == (how != "and")
    for depth in (MAX_DEPTH + 1, 5000):
        with pytest.raises(PathError, match=f"more than {MAX_DEPTH} deep") as caught:
            from_json(nested(depth), "claims.json")
        assert caught.value.where == "claims.json"
