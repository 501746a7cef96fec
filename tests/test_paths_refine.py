"""The discovery loop: which steps there are, what they are worth, and that a run measures no more than it has to."""

from __future__ import annotations

import numpy as np
import pytest
from path_toys import random_pairs, small

from crosspatch.errors import PathError
from crosspatch.paths import paths, refine, steps, sweep_steps, test_paths
from crosspatch.paths import refine as module  # the function, through whose module `measure_kept` is reached
from crosspatch.paths.candidates import Step, hypothesis, random_hypotheses


def added(patterns, **options) -> set[str]:
    return {step.pattern for step in steps(patterns, small("gpt2").shape, **options) if step.kind == "add"}


def test_steps_extend_every_suffix_of_a_pattern():
    found = steps(["** -> a1.h0.k -> ** -> a2.h1.q -> logits"], small("gpt2").shape, nodes="a0.h0, m1")
    assert found[0] == Step("remove", "** -> a1.h0.k -> ** -> a2.h1.q -> logits")
    assert {s.pattern for s in found[1:]} == {
        "** -> a0.h0 -> logits", "** -> m1 -> logits", "** -> a0.h0 -> a1.h0.k -> ** -> a2.h1.q -> logits",
        "** -> a0.h0 -> a2.h1.q -> logits", "** -> m1 -> a2.h1.q -> logits",
    }  # fmt: skip


def test_steps_keep_links_through_mlps():
    found = added(["** -> a1.h0 ~> a2.h1.q ~> logits"], nodes="a0.h0, m1")
    assert "** -> a0.h0 -> a1.h0.k ~> a2.h1.q ~> logits" in found
    assert "** -> m1 -> a2.h1.q ~> logits" in found
    assert not any("a1.h0.k -> a2.h1.q" in pattern for pattern in found)


def test_a_position_of_an_extended_head_is_that_of_its_query():
    found = added(["** -> a1.h0@S -> logits"], nodes="a0.h1", positions=["END"])
    assert found == {
        "** -> a0.h1@END -> logits", "** -> a0.h1@END -> a1.h0.q@S -> logits", "** -> a0.h1@END -> a1.h0.k -> logits",
        "** -> a0.h1@END -> a1.h0.v -> logits",
    }  # fmt: skip
    with pytest.raises(PathError, match="does not begin with"):
        added(["input -> a0.h0 -> logits"])


def test_the_gain_of_a_step_is_that_of_scoring_both_hypotheses():
    model, pairs = small("gpt2", 2), random_pairs(6, seed=2)
    begin = ["** -> a1.h0 ~> logits"]
    some = [Step("add", "** -> a1.h1 -> logits"), Step("remove", begin[0])]
    for norms in ("recomputed", "frozen"):
        table = sweep_steps(model, begin, pairs, some, norms=norms)
        claims = {"before": paths(*begin), "added": paths(*some[0].taken(begin))}
        scored = test_paths(model, claims, pairs, norms=norms).frame().set_index("hypothesis")["explained"]
        assert str(table).startswith(f"explained {scored['before']:.1%} before any of 2 steps, on 6 pairs")
        frame = table.frame().set_index("step")
        assert frame.loc["add", "gain"] == pytest.approx(scored["added"] - scored["before"])
        assert frame.loc["remove", "gain"] == pytest.approx(-scored["before"])
        assert table.explained() == pytest.approx(scored["before"])
        assert table.explained(some[0]) == pytest.approx(scored["added"])
        assert table.explained(some[1]) == pytest.approx(0)


def test_searched_pairs_are_measured_once_a_step_and_held_out_pairs_once(monkeypatch):
    model, pairs = small("gpt2", 2), random_pairs(12, seed=3)
    seen = []
    measure = module.__globals__["measure_kept"]

    def counting(kept, model_, sets, pairs_, *args, **kwargs):
        seen.append((len(sets), pairs_.hash))
        return measure(kept, model_, sets, pairs_, *args, **kwargs)

    monkeypatch.setitem(module.__globals__, "measure_kept", counting)
    found = refine(model, ["** -> a1.h0 ~> logits"], pairs, max_steps=2, min_gain=0, n_random=3, nodes="a*.h*")
    searched, rest = pairs.split(0.3, 0)
    taken = len(found.log) - 1
    assert [h for _, h in seen] == [searched.hash] * min(2, taken + 1) + [rest.hash]
    assert seen[-1][0] == 2 + len(found.log) + len(found.random)  # the null before, the floor after
    monkeypatch.undo()
    for part, column in ((searched, "explained"), (rest, "explained_held_out")):
        start = test_paths(model, {"x": paths("** -> a1.h0 ~> logits")}, part).frame()["explained"][0]
        assert found.log[column].iloc[0] == pytest.approx(start)
        if found.patterns:
            end = test_paths(model, {"x": hypothesis(found.patterns)}, part).frame()["explained"][0]
            assert found.log[column].iloc[-1] == pytest.approx(end)


def test_random_hypotheses_have_as_many_patterns_that_fit_and_differ():
    shape = small("gpt2").shape
    drawn = random_hypotheses(shape, 3, "a*.h*, m*", (), 12, seed=0)
    assert [len(patterns) for patterns in drawn] == [3] * 12
    assert len({tuple(patterns) for patterns in drawn}) == 12
    assert drawn == random_hypotheses(shape, 3, "a*.h*, m*", (), 12, seed=0)
    for patterns in drawn:
        assert not set(patterns) - {s.pattern for s in steps(patterns[:-1], shape)} - set(patterns[:-1])
    sizes = np.bincount([p.count("->") for patterns in drawn for p in patterns])
    assert sizes[2] > 0 and sizes[3:].sum() > 0, "first steps and extensions both occur"


def test_the_log_says_where_a_search_began_and_how_sure_held_out_scores_are():
    model, pairs = small("gpt2", 2), random_pairs(12, seed=3)
    begin = ["** -> a1.h0 ~> logits", "** -> m1 -> logits"]
    found = refine(model, [*begin, begin[0]], pairs, max_steps=1, min_gain=1, n_random=1, nodes="a1.h*")
    assert found.log["pattern"].iloc[0] == "; ".join(begin)
    floor = found.floor.mean()
    assert 0 <= floor < 1e-9 and f"floor (AUE at all paths, held-out pairs) {floor:.1e}" in str(found)
    frame = found.log
    assert (frame["held_out_low"] <= frame["explained_held_out"]).all()
    assert (frame["explained_held_out"] <= frame["held_out_high"]).all()
    score = test_paths(model, {"x": paths(*begin)}, pairs.split(0.3, 0)[1]).frame().loc[0]
    assert frame["held_out_low"].iloc[0] == pytest.approx(score["explained_low"])
    one = refine(model, begin[1], pairs, max_steps=1, min_gain=1, n_random=1, nodes="a1.h*")
    assert one.log["pattern"].iloc[0] == begin[1]
    with pytest.raises(PathError, match="0 steps"):
        refine(model, [], pairs, max_steps=0)
