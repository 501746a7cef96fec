"""Hypotheses whose unimportant paths do not share a counterfactual, against literal treeify with several inputs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from path_toys import linear_model, random_pairs, small
from test_paths_exact import pairs_of, tiny
from treeify import Treeified, as_regex

from crosspatch.errors import PathError, TaskError
from crosspatch.paths import Decohered, Pairs, decohere, evaluate, everything, nothing, paths, test_paths

KEPT = ["input -> a0.h1 ~> a1.h0.q -> logits", "input -> a1.h1.k@S -> logits"]
GROUPS = [("** -> a1.h0.v -> logits", "** -> a1.*.k -> ** -> logits"),
          ("input -> a0.*.v -> ** -> logits", "** -> m0 -> ** -> logits")]  # fmt: skip


@pytest.mark.parametrize("norms", ["recomputed", "frozen"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_several_counterfactuals_equal_literal_treeify(family, norms):
    model = tiny(family)
    one, second, third = (pairs_of(3, seed) for seed in (11, 12, 13))
    pairs = dataclasses.replace(one, others=[second.counterfactual, third.counterfactual])
    for kept in KEPT:
        for first, other in GROUPS[: 1 if norms == "frozen" else 2]:
            asked = Decohered(paths(kept), (paths(first), paths(other)))
            names = {"S": [1], "END": [2]}
            inside = [as_regex(text, model.shape, names) for text in (kept, first, other)]
            tree = Treeified(model, pairs.reference[0], pairs.counterfactual[0], lambda path: source(path, inside),  # noqa: B023
                            norms == "frozen")  # fmt: skip
            tree.x = {0: tree.x[True], 1: model.embed(second.counterfactual), 2: model.embed(third.counterfactual),
                      3: tree.x[False]}  # fmt: skip
            found = {}
            evaluate(model, [asked, paths(kept)], pairs, lambda r: found.update({r.number: model.unembed(r.hidden)[0]}),  # noqa: B023
                     norms=norms)  # fmt: skip
            torch.testing.assert_close(found[0], tree.logits(2), rtol=2e-5, atol=2e-5)
            assert (found[0] - found[1]).abs().max() > 1e-4


def source(path: str, inside: list) -> int:
    return next((i for i, member in enumerate(inside) if member(path)), 3)


def test_groups_that_agree_are_the_hypothesis_itself():
    model, pairs = small("gpt2", 2), random_pairs(4, seed=1)
    same = dataclasses.replace(pairs, others=[pairs.counterfactual, pairs.counterfactual])
    groups = {c: paths(f"** -> a1.h0.{c} -> logits") for c in "qk"}
    claim = {"x": paths("input -> a0.* ~> a1.*.v -> logits")}
    for norms in ("recomputed", "frozen"):
        found = decohere(model, claim, groups, same, norms=norms)
        expected = test_paths(model, claim, same, norms=norms)
        np.testing.assert_allclose(found.shared, expected.unexplained, rtol=1e-9)
        if norms == "recomputed":  # frozen, a stream of two counterfactuals is mixed even if they are equal
            np.testing.assert_allclose(found.apart, expected.unexplained, rtol=1e-9)
            np.testing.assert_allclose(found.total_apart, expected.total, rtol=1e-9)


def test_in_a_linear_network_groups_add_up():
    model, pairs = linear_model(), random_pairs(4, seed=2).with_others(2)
    first, second = paths("input -> a0.* -> ** -> logits"), paths("input -> m0 -> ** -> logits")
    found: dict[int, torch.Tensor] = {}
    asked = Decohered(~(first | second), (first, second))
    evaluate(model, [asked], pairs, lambda r: found.setdefault(r.number, model.unembed(r.hidden)))
    change = 0
    for group, other in zip((first, second), pairs.others, strict=True):
        alone: dict[int, torch.Tensor] = {}
        moved = dataclasses.replace(pairs, counterfactual=other, others=[])
        evaluate(model, [~group], moved, lambda r: alone.setdefault(r.number, model.unembed(r.hidden)))  # noqa: B023
        change = change + alone[0] - alone[-1]
    torch.testing.assert_close(found[0] - found[-1], change, rtol=1e-9, atol=1e-9)


def test_further_counterfactuals_are_other_pairs_prompts():
    pairs = random_pairs(6, seed=3)
    found = pairs.with_others(3, seed=1)
    for i in range(len(pairs)):
        chosen = [tuple(side[i]) for side in found.others]
        assert len({*chosen, tuple(pairs.counterfactual[i])}) == 4
        assert {*chosen} <= {*map(tuple, pairs.counterfactual)}
    assert found.hash != pairs.hash == dataclasses.replace(found, others=[]).hash
    assert found.select([2, 4]).others == [[side[2], side[4]] for side in found.others]
    assert pairs.with_others(3, seed=1).others == found.others != pairs.with_others(3, seed=2).others
    with pytest.raises(TaskError, match="no pair has 2 other counterfactual prompts"):
        random_pairs(2).with_others(2)
    longer = random_pairs(1, length=7)
    fields = ("reference", "counterfactual", "read", "targets", "answers", "wrong", "spans", "clusters")
    joined = Pairs(*(getattr(pairs, f) + getattr(longer, f) for f in fields), "joined").with_others(1)
    assert len(joined) == 6
    assert joined.provenance == "joined, 1 pairs without 1 others of their length left out"
    with pytest.raises(PathError, match="others has another length"):
        dataclasses.replace(pairs, others=[pairs.counterfactual[:2]])


def test_decohere_prints_its_groups_and_refuses_none():
    model, pairs = small("gpt2", 2), random_pairs(6, seed=4)
    groups = {"queries": paths("** -> a1.*.q -> ** -> logits"), "keys": paths("** -> a1.*.k -> ** -> logits")}
    claims = {"all": everything(), "none": nothing(), "heads": paths("** -> a1.* -> logits")}
    found = decohere(model, claims, groups, pairs, always=paths("** -> a1.h1 -> logits"))
    assert (found.apart[0] == 0).all() and (found.apart[1] == found.total_apart).all()
    assert (found.floor < 1e-12).all()  # these models compute in float64
    text = str(found)
    assert f"numerical floor (AUE at all paths) {found.floor.mean():.1e}" in text
    for word in ("queries, keys", "6 pairs", "heads: explained", "AUE changes by", "ATE"):
        assert word in text
    assert all(line.count("[") >= 2 for line in text.splitlines()[1:])  # every number with its interval
    frame = found.frame().set_index("hypothesis")
    assert frame.loc["all", "explained_apart"] == 1 and frame.loc["none", "explained_apart"] == 0
    assert frame.loc["heads", "aue_change"] == pytest.approx((found.apart[2] - found.shared[2]).mean())
    for empty in ({}, groups):
        with pytest.raises(PathError, match=r"no (hypothesis|group) was given"):
            decohere(model, claims if not empty else {}, empty, pairs)
    with pytest.raises(PathError, match="2 groups need as many further counterfactuals"):
        evaluate(model, [Decohered(nothing(), tuple(groups.values()))], pairs, lambda r: None)
