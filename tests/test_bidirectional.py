"""Attention that sees later tokens: what causality saves elsewhere must not be saved here."""

from __future__ import annotations

import random
from functools import lru_cache

import families
import oracle
import pytest
import torch
from families import BIDIRECTIONAL, FAMILIES
from path_toys import enlarge
from test_executor import model_of, oracle_edits, prompts, run_rows
from test_paths_exact import pairs_of, run
from treeify import Treeified, as_regex

import crosspatch as cp
from crosspatch.errors import PathError
from crosspatch.graph import Site
from crosspatch.model import Edit, FromRun, Row, load, record, replay
from crosspatch.model.check import relative_error
from crosspatch.paths import avoiding, contains, count, everything, from_edges, nothing, paths, via


@pytest.mark.parametrize("family", [*FAMILIES, *BIDIRECTIONAL])
def test_whether_attention_is_causal_is_read_off_the_model(family: str) -> None:
    """And is true: the first position's logits follow the second token in bidirectional models only."""
    model = model_of(family)
    ids = prompts(1)[0][0]
    other = [ids[0], (ids[1] + 1) % families.VOCAB, *ids[2:]]
    with torch.no_grad():
        first = [model.hf(torch.tensor([x]), use_cache=False).logits[0, 0] for x in (ids, other)]
    assert model.shape.causal == torch.allclose(*first, rtol=1e-4, atol=1e-4) == (family in FAMILIES)


@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_edits_after_the_last_read_and_before_the_first_difference_matter(family: str) -> None:
    """Reads in the middle of the prompt; edits of one position on either side of it, at every stage."""
    model = model_of(family)
    clean, corrupt = prompts(14)
    read = [(2, 5), (6,), (0,)]
    base, source = record(model, corrupt, read=read), record(model, clean)
    spots = [
        (Site("resid_pre", 1), 8), (Site("resid_pre", 1), 0), (Site("attn_out", 0), 1), (Site("mlp_out", 1), 7),
        (Site("k", 2, 1, grouped=model.shape.grouped), 8), (Site("v", 2, 0, grouped=model.shape.grouped), 1),
        (Site("q", 2, 1), 5), (Site("pattern", 1, 0), 8), (Site("neuron", 0, 3), 8), (Site("resid_post", 2), 2),
    ]  # fmt: skip
    for example in range(3):
        rows = [Row(example, (Edit(site, (p,), FromRun(source, example)),)) for site, p in spots]
        got: dict[int, torch.Tensor] = {}
        replay(base, rows, lambda r: got.update({i: r.logits[r.row == i] for i in set(r.row.tolist())}))  # noqa: B023
        for number, row in enumerate(rows):
            want, _ = oracle.forward(model, corrupt[example], oracle_edits(model, row, clean))
            assert relative_error(got[number], want[list(read[example])]) < 1e-5, (family, row)


def test_a_value_put_back_behind_an_earlier_change_is_an_edit() -> None:
    """r1@0 of the base run itself is no edit alone, but holds position 0 where r0@8 has changed it."""
    model = model_of("compiled")
    _, corrupt = prompts(15)
    base = record(model, corrupt)
    back = Edit(Site("resid_pre", 1), (0,), FromRun(base, 0))
    assert replay(base, [Row(0, (back,))], lambda _: None).unchanged_rows == 1
    row = Row(0, (Edit(Site("resid_pre", 0), (8,), torch.ones(model.shape.d_model)), back))
    _, seen = oracle.forward(model, corrupt[0])
    edits = [(Site("resid_pre", 0), (8,), torch.ones(1, model.shape.d_model)),
             (Site("resid_pre", 1), (0,), seen["resid_pre"][1][[0]])]  # fmt: skip
    want, _ = oracle.forward(model, corrupt[0], edits)
    without, _ = oracle.forward(model, corrupt[0], edits[:1])
    assert relative_error(run_rows(base, [row])[0], want[-1:]) < 1e-5
    assert relative_error(without[-1:], want[-1:]) > 1e-3


def test_a_changed_token_changes_every_position() -> None:
    """Nothing before the first difference counts as equal, and every position is computed."""
    model = model_of("llama_both_ways")
    clean, corrupt = prompts(12)
    base, source = record(model, corrupt), record(model, clean)
    layers, length = model.shape.n_layers, len(clean[0])
    rows = [Row(0, (Edit(Site("resid_pre", 1), (p,), FromRun(source, 0)),)) for p in range(length)]
    cost = replay(base, rows, lambda _: None)
    assert cost.unchanged_rows == 0
    assert cost.token_layers == length * (length * (layers - 2) + 1)


SMALL = {
    "llama_both_ways": {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
                        "num_key_value_heads": 1},
    "mistral_both_ways": {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
                          "num_key_value_heads": 2, "sliding_window": 1},
    "gpt_neox_both_ways": {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
                           "num_key_value_heads": 2},
    "compiled": {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2},
}  # fmt: skip


@lru_cache
def tiny(family: str) -> cp.Model:
    cls, config = BIDIRECTIONAL[family]()
    for name, value in SMALL[family].items():
        setattr(config, name, value)
    torch.manual_seed(0)
    hf = cls(config).double().eval()
    enlarge(hf)
    return load(hf, name=family)


PATTERNS = ["input -> a0.h0 -> a1.h1.k -> logits", "input -> a0.h1.v@S -> m1 -> logits",
            "** -> a1.h0.k@END -> logits", "input ~> a1.*.q -> logits", "input -> m0 -> a1.h0.v@END -> logits",
            "input -> a0.*[-1..1] -> a1.h0.k -> logits", "input -> a0.h1[1..2] -> a1.h0 -> logits",
            "input -> a0.h0.k[-1..0] -> a1.*.v[0..1] -> logits"]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "pattern"),
    [*(("compiled", one) for one in PATTERNS), *(("mistral_both_ways", one) for one in PATTERNS[-3:]),
     *(("llama_both_ways", one) for one in PATTERNS[::3]), ("gpt_neox_both_ways", PATTERNS[0])],
)  # fmt: skip
def test_path_sets_equal_literal_treeify(family: str, pattern: str) -> None:
    """Read at the first token, which the prompts share, or in the middle."""
    model, reads = tiny(family), (PATTERNS.index(pattern) % 2,)
    pairs = pairs_of(3, 7, 1, reads)
    names = {"S": [1], "END": [2]}
    for sets, negate in ((paths(pattern), False), (~paths(pattern), True)):
        member = as_regex(pattern, model.shape, names)
        tree = Treeified(model, pairs.reference[0], pairs.counterfactual[0], lambda p, n=negate, m=member: m(p) != n)
        torch.testing.assert_close(run(model, [sets], pairs)[0][0], tree.logits(reads[0]), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", SMALL)
def test_edge_sets_and_the_two_ends(family: str) -> None:
    model, pairs = tiny(family), pairs_of(5, 3, 2, (0, 3))
    edges = {("input", "a0.h0.v"), ("a0.h0", "m1"), ("m1", "logits"), ("input", "logits")}
    found = run(model, [everything(), nothing(), via("a0.h0") | avoiding("a0.h0"), from_edges(edges)], pairs)
    assert torch.equal(found[0], found[-1])
    assert torch.equal(found[1], found[-2])
    torch.testing.assert_close(found[2], found[-1])
    ids = torch.tensor(pairs.reference)
    with torch.no_grad():
        want = model.hf(ids, use_cache=False).logits[0, [0, 3]]
    torch.testing.assert_close(found[-1], want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[-1][0], found[-2][0])  # the first token knows what differs after it


def test_paths_may_come_from_later_tokens() -> None:
    model = tiny("compiled")
    pairs = pairs_of(3, 1, 0, (0,))
    late = "input@2 -> a0.h0.v@2 -> logits@0"
    assert contains(everything(), late, model.shape, pairs)
    assert contains(paths("input -> a0.h0[0..2] -> logits"), late, model.shape, pairs)
    assert not contains(paths("input -> a0.h0[-1..1] -> logits"), late, model.shape, pairs)
    assert count(paths("input -> a0.h0.v -> logits"), model.shape, pairs) == 3
    assert count(paths("input -> a0.h0.v[0..1] -> logits"), model.shape, pairs) == 2
    causal = model_of("gpt2").shape
    assert count(paths("input -> a0.h0.v -> logits"), causal, pairs) == 1
    with pytest.raises(PathError, match="no token sees later ones"):
        count(paths("input -> a0.h0.v[0..1] -> logits"), causal, pairs)


def test_random_paths_are_counted_as_listed() -> None:
    model, rng = tiny("compiled"), random.Random(0)
    pairs = pairs_of(3, 1, 0, (0, 2))
    for _ in range(5):
        hop = rng.choice(["a0.*", "a0.h1.k[-1..1]", "m0", "a1.h0.v@END", "a1.*.q"])
        one = via(hop) if "[" not in hop else paths(f"input -> {hop} -> ** -> logits")
        listed = cp.paths.listed(one, model.shape, 10**6, pairs)
        assert len(listed) == len(set(listed)) == count(one, model.shape, pairs)
        assert all(contains(one, path, model.shape, pairs) for path in rng.sample(listed, 5))
