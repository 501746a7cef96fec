"""Path sets on real model classes: the executor of path sets against literal treeify."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import pairwise

import families
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from path_toys import enlarge
from treeify import Treeified, as_regex

import crosspatch as cp
from crosspatch.graph import edges
from crosspatch.paths import Pairs, avoiding, evaluate, everything, from_edges, make_plan, nothing, paths, via

SMALL = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "num_key_value_heads": 2},
    "gemma2": {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 2, "query_pre_attn_scalar": 8},
    "olmo2": {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 2},
    "qwen3": {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1, "head_dim": 8},
}  # fmt: skip


@lru_cache
def tiny(family: str) -> cp.Model:
    """Two layers of two heads, in float64, with weights large enough for every path to matter."""
    cls, config = families.FAMILIES[family]()
    for name, value in SMALL[family].items():
        setattr(config, name, value)
    if family == "gemma2":
        config.layer_types = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    hf = cls(config).double().eval()
    enlarge(hf)
    return cp.load(hf, name=family)


def pairs_of(length: int, seed: int, same_prefix: int = 0, reads: tuple[int, ...] | None = None) -> Pairs:
    rng = random.Random(seed)
    reference = [rng.randrange(1, families.VOCAB) for _ in range(length)]
    counter = [*reference[:same_prefix], *(rng.randrange(1, families.VOCAB) for _ in range(length - same_prefix))]
    reads = reads or (length - 1,)
    spans = {"S": (1, 2), "END": (length - 1, length)}
    return Pairs([reference], [counter], [reads], [(-1,) * len(reads)], [[]], [[]], [spans], ["t"], "test")


def run(model: cp.Model, sets, pairs: Pairs, norms="recomputed") -> dict[int, torch.Tensor]:
    found: dict[int, list[torch.Tensor]] = {}
    evaluate(model, sets, pairs, lambda r: found.setdefault(r.number, []).append(model.unembed(r.hidden)),
             norms=norms)  # fmt: skip
    return {number: torch.cat(parts) for number, parts in found.items()}


HOPS = ["a0.h0", "a0.h1", "a0.*", "a0.h0.q", "a0.h1.k", "a0.*.v", "m0", "a0.h0.k@S", "a0.*@END", "m0@S"]
LATE = ["a1.h0", "a1.*", "a1.h0.q", "a1.h1.k", "a1.*.v", "m1", "a1.h1.k@S", "a1.h0.v@0", "*"]


@st.composite
def patterns(draw) -> str:
    arrow = st.sampled_from(["->", "~>", "-> ** ->"])
    hops = [draw(st.sampled_from(["input", "input", "input@S"]))]
    if draw(st.booleans()):
        hops.append(draw(st.sampled_from(HOPS)))
    if draw(st.booleans()):
        hops.append(draw(st.sampled_from(LATE)))
    hops.append("logits")
    text = hops[0]
    for hop in hops[1:]:
        text += f" {draw(arrow)} {hop}"
    return text


@pytest.mark.parametrize("family", SMALL)
@settings(
    max_examples=36, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(data=st.data())
def test_random_path_sets_equal_literal_treeify(family, data):
    model = tiny(family)
    first, second = data.draw(patterns()), data.draw(patterns())
    how = data.draw(st.sampled_from(["one", "or", "and", "minus", "not"]))
    pairs = pairs_of(3, data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0, 1])))
    sets = {"one": paths(first), "or": paths(first) | paths(second), "and": paths(first) & paths(second),
            "minus": paths(first) - paths(second), "not": ~paths(first)}  # fmt: skip
    names = {"S": [1], "END": [2]}
    a, b = as_regex(first, model.shape, names), as_regex(second, model.shape, names)
    member = {"one": a, "or": lambda p: a(p) or b(p), "and": lambda p: a(p) and b(p),
              "minus": lambda p: a(p) and not b(p), "not": lambda p: not a(p)}[how]  # fmt: skip
    tree = Treeified(model, pairs.reference[0], pairs.counterfactual[0], member)
    expected = tree.logits(2)
    found = run(model, [sets[how]], pairs)[0][0]
    # RMS norms of transformers compute in float32 whatever the model's dtype is.
    tolerance = 1e-9 if family in ("gpt2", "gpt_neox") else 2e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def edge_member(chosen: set[tuple[str, str]]):
    def member(path: str) -> bool:
        stops = path.strip(";").split(";")
        names = [stop.split("@")[0] for stop in stops]
        for writer, reader in pairwise(names):
            if (writer.removesuffix(".x").rsplit(".", 1)[0] if writer[0] == "a" else writer.removesuffix(".x"),
                    reader.removesuffix(".x")) not in chosen:  # fmt: skip
                return False
        return True

    return member


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_edge_sets_equal_literal_treeify_and_need_one_copy_of_a_node(family, share):
    model = tiny(family)
    rng = random.Random(share)
    shape = model.shape
    every = [
        (str(u), f"a{v.layer}.h{h}.{v.kind}")
        for u, v in edges(shape)
        if v.kind in ("q", "k", "v")
        for h in ([v.index] if v.kind == "q" else shape.heads_of(v.index))
    ]
    every += [(str(u), str(v)) for u, v in edges(shape) if v.kind in ("mlp_out", "logits")]
    chosen = {edge for edge in every if rng.random() < share}
    pairs = pairs_of(3, 5)
    sets = [from_edges(chosen)]
    plan, _ = make_plan(model, sets, pairs)
    assert plan.method == "two streams"
    assert len({variant.node for variant in plan.variants}) == len(plan.variants)
    # The walk up the nodes that edge sets take finds the very copies that reading all states of paths finds.
    sets += [~sets[0], sets[0] & everything(), ~(sets[0] & everything())]
    for shortcut, whole in ((0, 2), (1, 3)):
        alone, both = (make_plan(model, some, pairs)[0] for some in ([sets[shortcut]], [sets[shortcut], sets[whole]]))
        assert both.variants == alone.variants and both.final[0] == both.final[1]
    expected = Treeified(model, pairs.reference[0], pairs.counterfactual[0], edge_member(chosen)).logits(2)
    found = run(model, sets, pairs)
    torch.testing.assert_close(found[0][0], expected, rtol=2e-5, atol=2e-5)
    expected = Treeified(model, pairs.reference[0], pairs.counterfactual[0],
                         lambda path: not edge_member(chosen)(path)).logits(2)  # fmt: skip
    torch.testing.assert_close(found[1][0], expected, rtol=2e-5, atol=2e-5)


FROZEN = ["input -> a0.h1 ~> a1.h0.q -> logits", "input ~> a1.h1.k@S -> logits", "input@S -> ** -> m1 -> logits",
          "input -> a0.*[-1..0] -> a1.h0.k -> logits", "input -> a0.h1[-1..-1] -> a1.*.v[-1..0] -> logits",
          "input -> a0.h0 -> ** -> logits"]  # fmt: skip


@pytest.mark.parametrize("family", SMALL)
def test_frozen_norms_equal_literal_treeify_with_frozen_norms(family):
    model, pairs = tiny(family), pairs_of(3, 7)
    apart = 0.0
    for pattern in FROZEN:
        for negate in (False, True):
            one = ~paths(pattern) if negate else paths(pattern)
            member = as_regex(pattern, model.shape, {"S": [1], "END": [2]})
            tree = Treeified(model, pairs.reference[0], pairs.counterfactual[0], lambda p: member(p) != negate, True)  # noqa: B023
            found = run(model, [one], pairs, "frozen")[0][0]
            torch.testing.assert_close(found, tree.logits(2), rtol=2e-5, atol=2e-5)
            apart = max(apart, float((found - run(model, [one], pairs)[0][0]).abs().max()))
    assert apart > 0.01, "freezing must matter here"


@pytest.mark.parametrize("family", SMALL)
def test_frozen_norms_keep_the_plain_runs(family):
    model, pairs = tiny(family), pairs_of(5, 1, 2)
    sets = [everything(), nothing(), via("a0.h0") | avoiding("a0.h0")]
    frozen, plain = run(model, sets, pairs, "frozen"), run(model, sets, pairs)
    for number in (-2, -1, 0, 1, 2):
        torch.testing.assert_close(frozen[number], plain[number])


WINDOWS = ["input -> a0.*[-1..0] -> a1.h0.k -> logits", "input -> a0.h1[-1..-1] -> a1.*.v[-1..0] -> logits",
           "input -> a1.h1[-2..-1] -> logits", "input -> a0.h0.k[-1..0] -> m1 -> logits"]  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("pattern", WINDOWS)
def test_windows_equal_literal_treeify(family, pattern):
    model, pairs = tiny(family), pairs_of(4, 7)
    plan, _ = make_plan(model, [paths(pattern)], pairs)
    assert plan.method == "windows in closed form"
    for sets, negate in ((paths(pattern), False), (~paths(pattern), True)):
        member = as_regex(pattern, model.shape, {})
        tree = Treeified(model, pairs.reference[0], pairs.counterfactual[0], lambda p, n=negate, m=member: m(p) != n)
        torch.testing.assert_close(run(model, [sets], pairs)[0][0], tree.logits(3), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", SMALL)
def test_all_paths_is_the_reference_run_and_none_the_counterfactual(family):
    model, pairs = tiny(family), pairs_of(5, 1, 2)
    found = run(model, [everything(), nothing(), via("a0.h0") | avoiding("a0.h0")], pairs)
    assert torch.equal(found[0], found[-1])
    assert torch.equal(found[1], found[-2])
    torch.testing.assert_close(found[2], found[-1])
    expected = model.hf(torch.tensor(pairs.reference)).logits[0, -1]
    torch.testing.assert_close(found[-1][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", SMALL)
def test_equal_inputs_leave_nothing_to_patch(family):
    model, pairs = tiny(family), pairs_of(5, 3, 5)
    found = run(model, [paths("input -> a0.h1 ~> a1.h0.q -> logits"), via("m0")], pairs)
    torch.testing.assert_close(found[0], found[-1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], found[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reads", [(4,), (0, 2, 4), (1, 2), (0,)])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_shortcuts_for_equal_prefixes_and_few_reads_change_nothing(family, reads):
    """Several pairs at once, common prefixes of different lengths, many sets at once: numbers as one by one."""
    model = tiny(family)
    sets = [via("a0.h0"), avoiding("a1.h1"), paths("input -> a0.*.v -> ** -> logits", "input ~> logits"),
            from_edges({("input", "a0.h0.v"), ("a0.h0", "m1"), ("m1", "logits"), ("input", "logits")}),
            paths("** -> a1.h0.k@S -> logits@END")]  # fmt: skip
    singles = [pairs_of(5, seed, prefix, reads) for seed, prefix in ((1, 0), (2, 3), (3, 1), (4, 4))]
    joined = Pairs(*[[x for one in singles for x in getattr(one, name)] for name in
                     ("reference", "counterfactual", "read", "targets", "answers", "wrong", "spans", "clusters")],
                   "test")  # fmt: skip
    together = run(model, sets, joined)
    for number, one in enumerate(sets):
        alone = torch.cat([run(model, [one], single)[0] for single in singles])
        torch.testing.assert_close(together[number], alone, rtol=1e-5, atol=1e-6)
    whole = [Pairs([p.reference[0]], [p.counterfactual[0]], [tuple(range(5))], [(-1,) * 5], [[]], [[]], p.spans, ["t"],
                   "test") for p in singles]  # fmt: skip
    for number, one in enumerate(sets[:4]):
        every = torch.stack([run(model, [one], single)[0][list(reads)] for single in whole]).flatten(0, 1)
        torch.testing.assert_close(together[number], every, rtol=1e-5, atol=1e-6)
