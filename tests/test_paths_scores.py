"""Scores of path hypotheses: invariants of the method, networks whose scores are known by hand, pairs, attribution."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
import toys
from path_toys import SMALL, linear_model, random_pairs, small

from crosspatch.errors import MetricError, PathError, TaskError
from crosspatch.paths import (
    Dissimilarity,
    Pairs,
    PathTest,
    attribute,
    avoiding,
    evaluate,
    everything,
    fixed_reference,
    nothing,
    paths,
    save,
    task_pairs,
    test_paths,
    text_pairs,
    via,
)
from crosspatch.paths.dissimilarity import DISSIMILARITIES, logit_diff_loss, loss
from crosspatch.tasks.pairs import Pair, Task

CLAIMS = {"some": paths("input -> a0.* ~> a1.h0.k -> ** -> logits"), "avoiding": avoiding("a1.h1"), "m1": via("m1")}
FLIP = 2 * toys.SCALE  # the answer's logit difference goes from SCALE to -SCALE


def changed(pairs: Pairs, **fields) -> Pairs:
    return Pairs(**{**vars(pairs), **fields})


# -- invariants (spec 3.6) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("dissimilarity", DISSIMILARITIES)
def test_all_paths_leave_nothing_and_none_leave_everything(family, dissimilarity):
    found = test_paths(small(family, 2), {"all": everything(), "none": nothing(), **CLAIMS}, random_pairs(4, seed=1),
                       dissimilarity=dissimilarity)  # fmt: skip
    assert (found.total > 1e-3).any()
    assert (found.unexplained[0] == 0).all() and (found.unexplained[1] == found.total).all()
    assert (found.needed[0] == found.total).all() and (found.needed[1] == 0).all()
    assert 0 <= found.floor.max() < 1e-5
    frame = found.frame().set_index("hypothesis")
    assert frame.loc["all", "explained"] == frame.loc["none", "needed"] + 1 == 1
    assert frame.loc["none", "explained"] == 0 == frame.loc["all", "aue"]
    assert frame.loc["all", "loss_recovered"] == 1 and frame.loc["none", "loss_recovered"] == 0
    assert found.unexplained[2:].max() > 1e-4


def test_the_floor_is_that_of_a_computation_and_is_printed():
    """Where every node is computed anew in float32, rounding shows; the text says how much."""
    task = toys.random_task()
    model, _ = toys.random_network()
    found = test_paths(model, {"heads": via("a1.*")}, task_pairs(task.tokenize(model.tokenizer)))
    assert 0 < found.floor.max() < 1e-6
    assert f"numerical floor (AUE at all paths) {found.floor.mean():.1e}" in str(found)


@pytest.mark.parametrize("family", SMALL)
def test_equal_inputs_leave_nothing_unexplained(family):
    pairs = random_pairs(3, seed=2)
    found = test_paths(small(family, 2), CLAIMS, changed(pairs, counterfactual=pairs.reference))
    assert max(found.unexplained.max(), found.needed.max(), found.total.max()) < 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.frame()["explained"].isna().all()


def test_unexplained_and_needed_are_the_two_sides_of_one_set():
    model, pairs = small("gpt2", 2), random_pairs(4, seed=3)
    found = test_paths(model, {"a": CLAIMS["some"], "b": ~CLAIMS["some"]}, pairs)
    np.testing.assert_array_equal(found.unexplained[0], found.needed[1])
    np.testing.assert_array_equal(found.unexplained[1], found.needed[0])


def test_numbers_are_those_of_a_direct_computation():
    model, pairs = small("gpt2", 2), random_pairs(4, seed=4)
    logits = {}
    evaluate(model, [CLAIMS["some"]], pairs, lambda r: logits.setdefault(r.number, model.unembed(r.hidden)))
    p, q = logits[-1].log_softmax(-1), logits[0].log_softmax(-1)
    found = test_paths(model, {"some": CLAIMS["some"]}, pairs)
    np.testing.assert_allclose(found.unexplained[0], (p.exp() * (p - q)).sum(-1).numpy(), rtol=1e-9)
    target = torch.tensor(pairs.answers)
    delta = (p.gather(1, target) - q.gather(1, target))[:, 0].numpy()
    for name, expected in (("abs_loss", abs(delta)), ("sq_loss", delta**2)):
        found = test_paths(model, {"some": CLAIMS["some"]}, pairs, dissimilarity=name)
        np.testing.assert_allclose(found.unexplained[0], expected, rtol=1e-9)
    recovered = 1 - delta.mean() / (found.signed_null - found.signed_reference).mean()
    assert found.frame().loc[0, "loss_recovered"] == pytest.approx(recovered)


def test_chunks_and_company_change_nothing():
    """The same pairs for all hypotheses, one at a time or together, in one chunk or many."""
    model, pairs = small("llama", 2), random_pairs(5, seed=5)
    done = []
    together = test_paths(model, CLAIMS, pairs, budget_mib=0.001, progress=lambda n, of: done.append((n, of)))
    assert done == [(i, 5) for i in range(1, 6)]
    for i, (name, claim) in enumerate(CLAIMS.items()):
        alone = test_paths(model, {name: claim}, pairs)
        np.testing.assert_allclose(alone.unexplained[0], together.unexplained[i], rtol=1e-5)
        np.testing.assert_allclose(alone.total, together.total, rtol=1e-5)


# -- networks wired by hand (spec 4.5) ------------------------------------------------------------------------------

A, B = (paths(f"input -> a0.h{head} -> m1 -> logits") for head in (0, 1))


def scores(model, claims, always=None, pairs=None) -> dict[str, tuple[float, float]]:
    """Name -> (explained, needed), which every pair must tell alike."""
    pairs = pairs or task_pairs(toys.gate_task().tokenize(model.tokenizer))
    found = test_paths(model, claims, pairs, dissimilarity="abs_logit_diff", always=always)
    assert np.ptp(found.unexplained, axis=1).max() < 1e-4
    np.testing.assert_allclose(found.total, FLIP, atol=1e-4)
    table = found.frame().set_index("hypothesis").round(5)
    return {name: (table.loc[name, "explained"], table.loc[name, "needed"]) for name in claims}


def test_and():
    """Each input is needed, neither suffices."""
    found = scores(toys.and_network(), {"A": A, "B": B, "both": A | B})
    assert found == {"A": (0, 1), "B": (0, 1), "both": (1, 1)}


def test_or():
    """Each input suffices, neither is needed."""
    found = scores(toys.or_network(), {"A": A, "B": B, "both": A | B})
    assert found == {"A": (1, 0), "B": (1, 0), "both": (1, 1)}


def test_paths_that_always_stay_are_part_of_the_null():
    model = toys.and_network()
    assert scores(model, {"A": A, "B": B}, always=B) == {"A": (1, 1), "B": (0, 0)}
    pairs = task_pairs(toys.gate_task().tokenize(model.tokenizer))
    found = test_paths(model, {"A": A}, pairs, always=B)
    assert "all but input -> a0.h1 -> m1 -> logits on the counterfactual" in str(found)
    assert found.about["always"] == B.to_json()
    nothing_left = test_paths(toys.or_network(), {"A": A}, pairs, always=B)  # B alone holds the answer
    assert nothing_left.total.max() < 1e-6
    assert np.isnan(nothing_left.frame().loc[0, "explained"])


def majority_network():
    """Three heads copy one bit; `m1` says yes where two of them do: relu(s - 1) - relu(s - 2)."""
    model = toys.blank()
    third = toys.BIT_Y  # not in use at the question
    toys.copy_head(model, 0, 0, toys.IS_X, toys.BIT_X, toys.A)
    toys.copy_head(model, 0, 1, toys.IS_X, toys.BIT_X, toys.B)
    toys.copy_head(model, 1, 0, toys.IS_X, toys.BIT_X, third)
    votes = {toys.A: 1.0, toys.B: 1.0, third: 1.0}
    toys.hidden_unit(model, 1, 0, votes, -1.0, 1.0)
    toys.hidden_unit(model, 1, 1, votes, -2.0, -1.0)
    return toys.load(model, toys.tokenizer())


def test_two_voters_of_three_suffice_though_they_are_not_all():
    voters = {name: paths(f"input -> {name} -> m1 -> logits") for name in ("a0.h0", "a0.h1", "a1.h0")}
    one, two, three = voters.values()
    claims = {**voters, "12": one | two, "13": one | three, "23": two | three, "all": one | two | three}
    pairs = task_pairs(toys.gate_task(clean="x1 y0", corrupt="x0 y0").tokenize(toys.tokenizer()))
    found = scores(majority_network(), claims, pairs=pairs)
    assert found == {**dict.fromkeys(voters, (0, 0)), **dict.fromkeys(("12", "13", "23", "all"), (1, 1))}


def test_more_paths_can_explain_less():
    """Not monotone: a head that is cancelled by another one is worse than neither."""
    model = toys.blank()
    toys.copy_head(model, 0, 0, toys.IS_X, toys.BIT_X, toys.OUT, weight=2.0)
    toys.copy_head(model, 0, 1, toys.IS_X, toys.BIT_X, toys.OUT, weight=-1.0)
    model = toys.load(model, toys.tokenizer())
    up, down = paths("input -> a0.h0 -> logits"), paths("input -> a0.h1 -> logits")
    found = scores(model, {"down": down, "up": up, "both": up | down})
    assert found == {"down": (-1, 1), "up": (0, 2), "both": (1, 1)}


def test_attributions_of_disjoint_sets_add_up_in_a_linear_network():
    model = linear_model(2)
    rows = np.random.default_rng(0).integers(1, 97, (8, 5))
    pairs = changed(fixed_reference(rows, 3, 6), wrong=[[7]] * 6, answers=[[9]] * 6)
    one, two = via("a0.h1"), paths("input ~> logits", "input -> a1.h0.v -> ** -> logits")
    found = [attribute(model, s, pairs, dissimilarity="abs_logit_diff") for s in (one, two, one | two)]
    assert np.abs(found[0].effect).max() > 1e-3 and np.abs(found[1].effect).max() > 1e-3
    np.testing.assert_allclose(found[0].draws + found[1].draws, found[2].draws, atol=1e-9)


# -- what is measured -----------------------------------------------------------------------------------------------


def test_a_mask_chooses_reads():
    model = small("gpt2", 2)
    whole = random_pairs(4, seed=6, read=tuple(range(5)))
    only = [random_pairs(4, seed=6, read=(i,)) for i in (1, 3)]
    mask = [[False, True, False, True, False]] * 3 + [[False] * 5]
    found = test_paths(model, CLAIMS, whole, mask=mask)
    expected = np.mean([test_paths(model, CLAIMS, one).unexplained for one in only], axis=0)
    np.testing.assert_allclose(found.unexplained[:, :3], expected[:, :3], rtol=1e-9)
    assert np.isnan(found.unexplained[:, 3]).all() and np.isnan(found.total[3])
    assert found.frame()[["aue", "aue_low", "explained", "needed_high", "loss_recovered"]].notna().all().all()
    assert found.compare()[["difference", "low", "high", "p", "q"]].notna().all().all()
    for wrong in ([[True]] * 4, mask[:2]):
        with pytest.raises(PathError, match="mask does not fit"):
            test_paths(model, CLAIMS, whole, mask=wrong)
    with pytest.raises(PathError, match="leaves nothing"):
        test_paths(model, CLAIMS, whole, mask=[[False] * 5] * 4)


def test_ones_own_dissimilarity():
    other_top = Dissimilarity("other top token", lambda r, p, x: (r.argmax(-1) != p.argmax(-1)).double(), loss, "share")
    model, pairs = small("gpt2", 2), random_pairs(8, seed=7)
    found = test_paths(model, {"all": everything(), "none": nothing()}, pairs, dissimilarity=other_top)
    logits = {}
    evaluate(model, [], pairs, lambda r: logits.setdefault(r.number, model.unembed(r.hidden)))
    np.testing.assert_array_equal(found.total, (logits[-1].argmax(-1) != logits[-2].argmax(-1)).double().numpy())
    assert found.about["dissimilarity"] == "other top token" and found.about["unit"] == "share"


def test_signed_quantities_are_no_aue():
    model, pairs = small("gpt2", 2), random_pairs(8, seed=7)
    signed = Dissimilarity("loss change", lambda r, p, x: loss(p, x) - loss(r, x), loss, "nats")
    with pytest.raises(MetricError, match="never negative"):
        test_paths(model, CLAIMS, pairs, dissimilarity=signed)
    undefined = Dissimilarity("ratio", lambda r, p, x: loss(p, x) * torch.nan, loss, "")
    with pytest.raises(MetricError, match="undefined at 8 reads"):
        test_paths(model, CLAIMS, pairs, dissimilarity=undefined)


def test_refusals():
    model, pairs = small("gpt2", 2), random_pairs(2)
    with pytest.raises(MetricError, match="is no dissimilarity"):
        test_paths(model, CLAIMS, pairs, dissimilarity="accuracy")
    with pytest.raises(PathError, match="no hypothesis"):
        test_paths(model, {}, pairs)
    with pytest.raises(PathError, match="no path is left"):
        test_paths(model, {"none": via("m0") - via("m0")}, pairs)
    with pytest.raises(PathError, match="no node matches"):
        test_paths(model, {"unknown": paths("input -> a0.h9 -> logits")}, pairs)
    with pytest.raises(PathError, match="no pairs"):
        test_paths(model, {"all": everything()}, pairs.select([]))
    with pytest.raises(MetricError, match="which token comes next"):
        test_paths(model, CLAIMS, changed(pairs, targets=[(-1,)] * 2), dissimilarity="abs_loss")
    with pytest.raises(MetricError, match="right and a wrong answer"):
        test_paths(model, CLAIMS, changed(pairs, answers=[[], [3]]), dissimilarity="abs_logit_diff")


def test_kl_needs_no_targets():
    model, pairs = small("gpt2", 2), random_pairs(3)
    found = test_paths(model, CLAIMS, changed(pairs, targets=[(-1,)] * 3))
    np.testing.assert_array_equal(found.unexplained, test_paths(model, CLAIMS, pairs).unexplained)
    assert np.isnan(found.signed).all()


def test_kl_leaves_out_tokens_that_cannot_come():
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 1.0, -torch.inf]])
    kl = DISSIMILARITIES["kl"].compare(logits[:1], logits[1:], None)
    p, q = logits[:, :2].double().log_softmax(-1)
    assert kl.item() == pytest.approx(float((p.exp() * (p - q)).sum()))


def test_logit_difference_is_between_means_of_answers():
    reads = type("Reads", (), {"answers": torch.tensor([[0, 1], [2, -1]]), "wrong": torch.tensor([[3, -1], [0, 1]])})
    logits = torch.tensor([[1.0, 3.0, 5.0, 10.0], [1.0, 3.0, 5.0, 10.0]])
    assert logit_diff_loss(logits, reads).tolist() == [8.0, -3.0]


# -- tables ---------------------------------------------------------------------------------------------------------


def made_by_hand(unexplained, clusters, total=None) -> PathTest:
    values = np.asarray(unexplained, dtype=float)
    n = values.shape[1]
    total = np.full(n, 2.0) if total is None else np.asarray(total)
    about = {"seed": 0, "dissimilarity": "kl", "pairs": "by hand", "method": "none", "null": "nothing"}
    return PathTest([f"h{i}" for i in range(len(values))], values, values / 2, total, np.zeros(n), values, total,
                    np.zeros(n), clusters, about)  # fmt: skip


def test_intervals_resample_clusters():
    """Forty pairs of four templates are four observations, not forty."""
    draw = np.random.default_rng(1)
    values = np.repeat(draw.normal(1.0, 0.3, (1, 4)), 10, axis=1)
    clustered = made_by_hand(values, [f"T{i // 10}" for i in range(40)]).frame().loc[0]
    single = made_by_hand(values, [f"row {i}" for i in range(40)]).frame().loc[0]
    assert clustered["aue"] == single["aue"]
    assert clustered["aue_high"] - clustered["aue_low"] > 2.5 * (single["aue_high"] - single["aue_low"])
    assert clustered["explained_high"] - clustered["explained_low"] > 2.5 * (
        single["explained_high"] - single["explained_low"]
    )


def test_the_share_is_a_ratio_of_means_over_the_same_pairs():
    """Where what is left is a fixed share of every pair's total effect, resampling cannot move it."""
    total = np.random.default_rng(2).uniform(1, 3, 20)
    row = made_by_hand([0.25 * total], [str(i) for i in range(20)], total).frame().loc[0]
    assert [row[f"explained{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.75] * 3)
    assert [row[f"needed{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.125] * 3)
    assert row["aue_low"] < row["aue"] < row["aue_high"]


def test_comparison_of_hypotheses_is_paired():
    draw = np.random.default_rng(3)
    base = draw.uniform(1, 5, 30)
    found = made_by_hand([base, base + 0.1, base[::-1]], [str(i) for i in range(30)]).compare()
    assert list(zip(found["first"], found["second"], strict=True)) == [("h0", "h1"), ("h0", "h2"), ("h1", "h2")]
    near, far = found.iloc[0], found.iloc[1]
    assert near["difference"] == pytest.approx(-0.1) and near["low"] == pytest.approx(near["high"])
    assert near["p"] < 1e-4 < 0.05 < far["p"]
    assert (found["q"] >= found["p"]).all()
    assert far["low"] < 0 < far["high"]
    assert len(made_by_hand([base], ["a"] * 30).compare()) == 0


def test_many_hypotheses_are_compared_with_the_best_one():
    draw = np.random.default_rng(3)
    many = made_by_hand(list(draw.uniform(1, 2, (12, 30)) - np.eye(12)[7][:, None]), [str(i) for i in range(30)])
    best = many.names[7]
    assert many.yardstick == best
    every, found = many.compare(), many.compare(many.yardstick)
    assert (len(every), len(found)) == (66, 11)
    assert set(found["first"]) == {best} and set(found["second"]) == set(many.names) - {best}
    assert (found["high"] < 0).all()
    for _, row in every[every["second"] == best].iterrows():
        turned = found[found["second"] == row["first"]].iloc[0]
        np.testing.assert_allclose([turned["difference"], turned["p"]], [-row["difference"], row["p"]])
    with pytest.raises(PathError, match="no hypothesis 'x'"):
        many.compare("x")
    few = made_by_hand(list(draw.uniform(1, 2, (10, 30))), ["a"] * 30)
    assert few.yardstick is None and len(few.compare(few.yardstick)) == 45


def test_what_is_printed():
    found = test_paths(small("gpt2", 2), CLAIMS, random_pairs(4), dissimilarity="abs_loss")
    text = str(found)
    for part in ("abs_loss on 4 pairs (random prompts)", "copies of 6 nodes", "null: all paths on the counterfactual",
                 "ATE", "numerical floor", "some: explained", "loss recovered", "needed"):  # fmt: skip
        assert part in text


def test_every_number_printed_has_its_interval_or_says_that_it_has_none():
    many, one = (str(test_paths(small("gpt2", 2), CLAIMS, random_pairs(n))) for n in (6, 1))
    for line in many.splitlines()[2:]:
        assert line.count("[") == 4 and "no interval" not in line
    assert many.splitlines()[1].count("[") == 1
    assert one.count("(no interval)") == 1 + 4 * len(CLAIMS) and "nan" not in one


def test_a_total_effect_near_the_floor_is_called_noise():
    found = made_by_hand([np.full(4, 1e-9)], list("abcd"), total=np.full(4, 2e-9))
    found.floor = np.full(4, 1e-12)
    assert not found.is_noise and "noise" not in str(found)
    found.floor = np.full(4, 1e-10)
    assert found.is_noise and "proportions of it are noise" in str(found)


def test_loss_recovered_has_an_interval_of_paired_resamples():
    draw = np.random.default_rng(5)
    gap = draw.uniform(1, 3, 20)
    found = made_by_hand([gap], [str(i) for i in range(20)], total=gap)
    found.signed = np.stack([0.25 * gap])
    row = found.frame().loc[0]
    ends = [row[f"loss_recovered{end}"] for end in ("", "_low", "_high")]
    assert ends == pytest.approx([0.75] * 3)


def test_a_table_without_targets_has_no_loss_recovered():
    pairs = random_pairs(3)
    frame = test_paths(small("gpt2", 2), CLAIMS, changed(pairs, targets=[(-1,)] * 3)).frame()
    assert frame[["loss_recovered", "loss_recovered_low"]].isna().all().all() and frame["aue_low"].notna().all()


def test_what_is_no_hypothesis_is_refused():
    model, pairs = small("gpt2", 2), random_pairs(2)
    with pytest.raises(PathError, match="hypothesis 'a' is no set of paths"):
        test_paths(model, {"a": "** -> a0.h0 -> logits"}, pairs)
    with pytest.raises(PathError, match="have no names"):
        test_paths(model, via("m0"), pairs)


def test_saving_gives_standard_json(tmp_path):
    mask = [[True]] * 3 + [[False]]
    found = test_paths(small("gpt2", 2), CLAIMS, random_pairs(4), mask=mask, always=via("m0"))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = save(found, tmp_path / "deep" / "test.json").read_text()
    data = json.loads(text, parse_constant=refuse)
    assert data["names"] == list(CLAIMS) and data["clusters"] == found.clusters
    assert data["unexplained"][0][3] is None
    np.testing.assert_array_equal(np.array(data["unexplained"], dtype=float)[:, :3], found.unexplained[:, :3])
    assert data["about"]["hypotheses"]["some"] == CLAIMS["some"].to_json()
    assert data["about"]["pairs_hash"] == random_pairs(4).hash
    assert data["about"]["seed"] == 0 and data["about"]["node_evaluations"] > 0


# -- attribution ----------------------------------------------------------------------------------------------------


def test_attribution_is_the_mean_change_of_the_loss_at_every_token():
    model = small("gpt2", 2)
    rows = np.random.default_rng(1).integers(1, 97, (9, 6))
    pairs = fixed_reference(rows, 4, 5, seed=3)
    patched = via("a0.h1")
    found = attribute(model, patched, pairs)
    logits = {}
    evaluate(model, [~patched], pairs, lambda r: logits.setdefault(r.number, model.unembed(r.hidden)))
    target = torch.tensor(rows[4, 1:])
    losses = {n: -x.view(5, 5, -1).log_softmax(-1)[:, range(5), target] for n, x in logits.items()}
    np.testing.assert_allclose(found.draws, (losses[0] - losses[-1]).numpy(), atol=1e-9)
    np.testing.assert_allclose(found.effect, (losses[0] - losses[-1]).mean(0).numpy(), atol=1e-9)
    np.testing.assert_allclose(found.reference, losses[-1][0].numpy(), atol=1e-9)
    assert found.positions == (0, 1, 2, 3, 4) and found.unit == "nats"
    assert found.tokens == [str(i) for i in rows[4, :-1]]  # no tokenizer: the ids
    assert (found.low <= found.effect).all() and (found.effect <= found.high).all()
    assert (found.effect > 0).any() and (found.effect < 0).any()


def test_the_sign_says_whether_paths_were_helping():
    model = toys.and_network()
    pairs = task_pairs(toys.gate_task(n=1).tokenize(model.tokenizer))
    helping = attribute(model, A, pairs, dissimilarity="abs_logit_diff")
    assert (helping.reference[0], helping.effect[0]) == pytest.approx((-toys.SCALE, FLIP), abs=1e-4)
    swapped = changed(pairs, answers=pairs.wrong, wrong=pairs.answers)
    assert attribute(model, A, swapped, dissimilarity="abs_logit_diff").effect[0] == pytest.approx(-FLIP, abs=1e-4)
    assert (
        attribute(model, A, changed(pairs, targets=[(toys.ID["no"],)])).effect[0]
        < -1
        < 1
        < (attribute(model, A, pairs).effect[0])
    )
    assert helping.tokens == ["w0", "x1", "y1", "?"]
    stays = attribute(model, A, pairs, always=via("a0.h0"))
    assert stays.effect[0] == pytest.approx(0, abs=1e-6)


def test_an_attribution_says_what_it_is_about():
    rows = np.random.default_rng(1).integers(1, 97, (9, 6))
    plans = []
    model = small("gpt2", 2)
    found = attribute(model, via("a0.h1"), fixed_reference(rows, 4, 5), dissimilarity="sq_loss", on_plan=plans.append)
    assert found.unit == "nats" and found.about["quantity"] == "loss"
    assert found.about["method"] == plans[0].describe()
    assert found.about["pairs_hash"] == fixed_reference(rows, 4, 5).hash
    text = str(found)
    assert "a0.h1" in text and "5 counterfactuals" in text and "nats" in text
    frame = found.frame()
    assert frame["token"].tolist() == found.tokens and (frame["low"] <= frame["effect"]).all()


def test_attribution_wants_one_reference():
    with pytest.raises(PathError, match="have several"):
        attribute(small("gpt2", 2), via("m0"), random_pairs(2))


# -- pairs ----------------------------------------------------------------------------------------------------------


def test_pairs_of_a_text():
    rows = np.arange(60).reshape(6, 10)
    pairs = text_pairs(rows, 200, seed=1, provenance="numbers")
    assert pairs.hash == text_pairs(rows, 200, seed=1).hash != text_pairs(rows, 200, seed=2).hash
    drawn = {(a[0] // 10, b[0] // 10) for a, b in zip(pairs.reference, pairs.counterfactual, strict=True)}
    assert drawn == {(i, j) for i in range(6) for j in range(6) if i != j}
    assert pairs.reference[0] == list(range(pairs.reference[0][0], pairs.reference[0][0] + 9))
    assert pairs.targets[0] == tuple(t + 1 for t in pairs.reference[0])
    assert pairs.read[0] == tuple(range(9)) and pairs.spans[0] == {"END": (8, 9)}
    assert pairs.clusters == [f"row {ids[0] // 10}" for ids in pairs.reference]
    assert pairs.provenance == "numbers: 200 independent pairs of 6 rows, seed 1"
    for wrong in (rows[:1], rows[:, :1], rows[0]):
        with pytest.raises(PathError, match="rows of shape"):
            text_pairs(wrong, 3)


def test_one_reference_row_against_others():
    rows = np.arange(60).reshape(6, 10)
    pairs = fixed_reference(rows, 2, 50, seed=4)
    assert {tuple(ids) for ids in pairs.reference} == {tuple(range(20, 29))}
    assert {ids[0] // 10 for ids in pairs.counterfactual} == {0, 1, 3, 4, 5}
    assert pairs.targets == [tuple(range(21, 30))] * 50
    assert pairs.clusters == [f"row {ids[0] // 10}" for ids in pairs.counterfactual]
    with pytest.raises(PathError, match="no row 6"):
        fixed_reference(rows, 6, 3)


def test_pairs_of_a_task():
    tokenized = toys.gate_task(n=3).tokenize(toys.tokenizer())
    pairs, back = task_pairs(tokenized), task_pairs(tokenized, "corrupt")
    assert pairs.reference == back.counterfactual == tokenized.clean
    assert pairs.counterfactual == back.reference == tokenized.corrupt
    assert pairs.answers == back.wrong == [[toys.ID["yes"]]] * 3
    assert pairs.targets == [(toys.ID["yes"],)] * 3 and back.targets == [(toys.ID["no"],)] * 3
    assert pairs.read == [(3,)] * 3
    assert pairs.spans[0] == {"x": (1, 2), "y": (2, 3), "END": (3, 4)}
    assert pairs.clusters == ["T0", "T1", "T2"]
    assert "task gate" in pairs.provenance and "reference corrupt" in back.provenance


def test_spans_of_a_task_may_be_named():
    """What the AND network's first head carries comes from the token x."""
    claims = {"x": paths("input@x -> a0.h0.v@x -> m1@END -> logits"), "y": paths("input@y -> a0.h0 -> m1 -> logits")}
    assert scores(toys.and_network(), claims, always=B) == {"x": (1, 1), "y": (0, 0)}


def test_prompts_of_unequal_length_are_refused():
    pair = Pair("w1 x1 y1 ?", "x0 y0 ?", " yes", " no")
    tokenized = Task("uneven", [pair], varies="length", holds="").tokenize(toys.tokenizer())
    with pytest.raises(PathError, match=r"differ in length \(4 and 3 tokens\)") as caught:
        task_pairs(tokenized)
    assert "example 0 of task 'uneven'" in str(caught.value)
    pairs = random_pairs(2)
    with pytest.raises(PathError, match="pair 1: the two prompts have 5 and 2 tokens"):
        changed(pairs, counterfactual=[pairs.counterfactual[0], [1, 2]])
    with pytest.raises(PathError, match="2 references, but 1 of spans"):
        changed(pairs, spans=[{}])


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [("read", (5,), "the reads"), ("read", (-1,), "the reads"), ("read", (), "the reads"),
     ("targets", (1, 2), "2 targets for 1 reads"), ("spans", {"S": (3, 9)}, "span 'S' from 3 to 9"),
     ("spans", {"S": (3, 2)}, "span 'S'")],
)  # fmt: skip
def test_what_lies_outside_of_a_prompt_is_refused(field, value, what):
    pairs = random_pairs(2)
    with pytest.raises(PathError, match=what) as caught:
        changed(pairs, **{field: [getattr(pairs, field)[0], value]})
    assert "pair 1" in str(caught.value)


def test_splitting_keeps_equal_references_together():
    rows = np.arange(80).reshape(8, 10)
    pairs = text_pairs(rows, 100, seed=1)
    kept, held_out = pairs.split(0.3, seed=2)
    assert len(kept) + len(held_out) == 100 and len(held_out) >= 30
    assert not set(kept.clusters) & set(held_out.clusters)
    assert pairs.split(0.3, seed=2)[0].hash == kept.hash != pairs.split(0.3, seed=3)[0].hash
    for share in (0.0, 1.0):
        with pytest.raises(TaskError, match="cannot be split"):
            pairs.split(share, seed=0)


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [("answers", [[3], [99999], [4]], "answer 99999"), ("wrong", [[3], [4], [-1]], "wrong answer -1"),
     ("targets", [(3,), (99999,), (4,)], "target 99999")],
)  # fmt: skip
@pytest.mark.parametrize("dissimilarity", ["kl", "abs_logit_diff", "abs_loss"])
def test_answers_that_are_no_logits_are_named(name, rows, said, dissimilarity):
    pairs = dataclasses.replace(random_pairs(3), **{name: rows})
    with pytest.raises(PathError, match=said) as caught:
        test_paths(small("gpt2", 2), CLAIMS, pairs, dissimilarity=dissimilarity)
    assert caught.value.where == f"pair {2 if name == 'wrong' else 1}"
