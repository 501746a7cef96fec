"""Metrics against their definitions, on random logits and by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspatch.errors import MetricError
from crosspatch.metrics import (
    KL,
    METRICS,
    Accuracy,
    CrossEntropy,
    Entropy,
    FunctionMetric,
    JensenShannon,
    LogitDiff,
    LogProb,
    Prob,
    ProbDiff,
    Rank,
    RankGap,
    Targets,
    TopK,
    evaluate,
    needed_columns,
    needs_all_positions,
    pad,
    resolve_metrics,
)

VOCAB = 11


def readout(logits, columns=None, row=None, example=None, position=None):
    n = len(logits)
    row = torch.arange(n) if row is None else torch.tensor(row)
    return SimpleNamespace(
        logits=logits,
        columns=columns,
        row=row,
        position=torch.zeros(n, dtype=torch.long) if position is None else torch.tensor(position),
        example=row if example is None else torch.tensor(example),
    )


def targets(n=4, **kwargs):
    return Targets(pad([[1], [2, 3], [0], [10]][:n]), pad([[4, 5], [6], [7, 8, 9], [0]][:n]), **kwargs)


@pytest.fixture
def logits():
    return torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


def test_logit_diff_by_hand(logits):
    out = LogitDiff()(readout(logits), targets())
    assert out[0] == pytest.approx(float(logits[0, 1] - (logits[0, 4] + logits[0, 5]) / 2))
    assert out[1] == pytest.approx(float((logits[1, 2] + logits[1, 3]) / 2 - logits[1, 6]))
    assert LogitDiff("max")(readout(logits), targets())[2] == pytest.approx(float(logits[2, 0] - logits[2, 7:10].max()))
    soft = LogitDiff("logsumexp")(readout(logits), targets())[2]
    assert soft == pytest.approx(float(logits[2, 0] - logits[2, 7:10].exp().sum().log()))
    with pytest.raises(MetricError, match="'mean', 'max' or 'logsumexp'"):
        LogitDiff("median")


def test_probability_metrics_by_hand(logits):
    p = logits.softmax(-1)
    assert Prob()(readout(logits), targets())[1] == pytest.approx(float(p[1, 2] + p[1, 3]))
    assert LogProb()(readout(logits), targets())[1] == pytest.approx(math.log(float(p[1, 2] + p[1, 3])))
    assert ProbDiff()(readout(logits), targets())[2] == pytest.approx(float(p[2, 0] - p[2, 7:10].sum()))
    assert Entropy()(readout(logits), targets())[0] == pytest.approx(float(-(p[0] * p[0].log()).sum()))


def test_ranks_by_hand():
    logits = torch.arange(VOCAB, dtype=torch.float64).repeat(4, 1)  # token 10 is on top
    r = readout(logits)
    assert Rank()(r, targets()).tolist() == [9, 7, 10, 0]
    assert RankGap()(r, targets()).tolist() == [-9, -7, -10, 1]
    assert Accuracy()(r, targets()).tolist() == [0, 0, 0, 1]
    assert TopK(8)(r, targets()).tolist() == [0, 1, 0, 1]
    assert Accuracy(among="choices")(r, targets()).tolist() == [0, 0, 0, 1]


def test_a_tie_is_no_success():
    flat = readout(torch.zeros(4, VOCAB))
    assert Accuracy()(flat, targets()).sum() == 0
    assert Accuracy(among="choices")(flat, targets()).sum() == 0


def test_answers_do_not_compete_with_each_other(logits):
    logits[1, [2, 3]] = torch.tensor([50.0, 49.0], dtype=torch.float64)
    assert Rank()(readout(logits), targets())[1] == 0
    assert Accuracy()(readout(logits), targets())[1] == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_divergences(seed):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(4, VOCAB, generator=g, dtype=torch.float64) * 4 for _ in range(2))
    both, same = targets(clean_logits=a, corrupt_logits=b), targets(clean_logits=a, corrupt_logits=a)
    swapped = targets(clean_logits=b)
    p, q = a.softmax(-1), b.softmax(-1)
    assert torch.allclose(KL()(readout(b), both), (p * (p / q).log()).sum(-1))
    assert torch.allclose(KL("corrupt")(readout(a), both), (q * (q / p).log()).sum(-1))
    assert torch.allclose(JensenShannon()(readout(b), both), JensenShannon()(readout(a), swapped))
    assert bool((JensenShannon()(readout(b), both) <= math.log(2) + 1e-12).all())
    assert torch.allclose(KL()(readout(a), same), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    shifted = a + 7.0  # a softmax does not see a constant
    assert torch.allclose(KL()(readout(shifted), same), torch.zeros(4, dtype=torch.float64), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-3, 3))
def test_linear_metrics_are_linear_and_the_others_do_not_claim_it(seed, weight):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(4, VOCAB, generator=g, dtype=torch.float64) for _ in range(2))
    everything = targets(clean_logits=a, corrupt_logits=b, tokens=[[0]] * 4)
    for name, make in METRICS.items():
        metric = make()
        mixed, (at_a, at_b) = (
            metric(readout(a + weight * b), everything),
            (metric(readout(x), everything) for x in (a, b)),
        )
        if metric.linear:
            assert torch.allclose(mixed, at_a + weight * at_b), name


def test_values_stay_in_the_stated_range(logits):
    everything = targets(clean_logits=logits.flip(1), corrupt_logits=-logits, tokens=[[0]] * 4)
    for name, make in METRICS.items():
        metric = make()
        low, high = metric.range
        out = metric(readout(logits * 10), everything)
        assert out.shape == (4,), name
        assert bool(((out >= low - 1e-9) & (out <= high + 1e-9)).all()), name
        assert metric.name == name
        assert metric.known_failure
        assert metric.unit


def test_columns_give_the_same_numbers(logits):
    metrics = resolve_metrics("logit_diff, logit_diff_max, accuracy_choices", companions=False)
    columns = needed_columns(metrics, targets())
    assert columns.tolist() == list(range(11))
    few = Targets(pad([[3], [3]]), pad([[9], [5]]))
    columns = needed_columns(metrics, few)
    assert columns.tolist() == [3, 5, 9]
    cut = readout(logits[:2][:, columns], columns)
    for metric in metrics:
        assert torch.equal(metric(cut, few), metric(readout(logits[:2]), few))
    assert needed_columns(resolve_metrics("logit_diff,kl"), few) is None
    with pytest.raises(MetricError, match="whole vocabulary, 3 columns"):
        LogProb()(cut, few)
    with pytest.raises(MetricError, match="whole vocabulary, 3 columns"):
        Rank()(cut, few)


def test_answer_is_read_at_the_last_position_of_a_row(logits):
    r = readout(logits, row=[5, 5, 2, 2], example=[0, 0, 1, 1], position=[0, 1, 0, 1])
    rows, values = evaluate([LogitDiff()], r, targets(2))
    assert rows.tolist() == [5, 2]
    expected = LogitDiff()(readout(logits[[1, 3]]), targets(2))
    assert torch.equal(values["logit_diff"], expected)


def test_cross_entropy_is_the_loss_of_the_clean_text(logits):
    t = Targets(pad([[4], [6]]), pad([[1], [1]]), tokens=[[7, 8], [9, 2]])
    r = readout(logits, row=[0, 0, 1, 1], example=[0, 0, 1, 1], position=[0, 1, 0, 1])
    out = CrossEntropy()(r, t)
    logp = logits.log_softmax(-1)
    assert torch.allclose(out, -torch.stack([logp[0, 8] + logp[1, 4], logp[2, 2] + logp[3, 6]]) / 2)
    assert needs_all_positions([CrossEntropy()])
    assert not needs_all_positions([LogitDiff()])
    with pytest.raises(MetricError, match="longer than its clean text"):
        CrossEntropy()(readout(logits, row=[0] * 4, example=[0] * 4, position=[0, 1, 2, 3]), t)


def test_half_precision_is_computed_in_float32(logits):
    out = LogProb()(readout(logits.to(torch.bfloat16)), targets())
    assert out.dtype == torch.float32
    assert torch.allclose(out, LogProb()(readout(logits.to(torch.bfloat16).double()), targets()).float(), atol=1e-5)


def test_own_function(logits):
    metric = FunctionMetric(lambda logits, answers, wrong: logits.gather(-1, answers[:, :1])[:, 0], "first")
    assert torch.equal(metric(readout(logits), targets()), logits[range(4), [1, 2, 0, 10]])

    def my_metric(logits, answers, wrong):
        return logits.mean()

    with pytest.raises(
        MetricError, match=r"my_metric.*shape \[\].*\[4, 11\].*must be \[4\](?s:.*)Fix: do not average over rows"
    ):
        FunctionMetric(my_metric)(readout(logits), targets())
    with pytest.raises(MetricError, match=r"shape \[4, 2\]"):
        FunctionMetric(lambda logits, answers, wrong: logits[:, :2])(readout(logits), targets())
    with pytest.raises(MetricError, match="returned float for 4 rows"):
        FunctionMetric(lambda logits, answers, wrong: 1.0)(readout(logits), targets())
    with pytest.raises(MetricError, match=r"NaN for 1 of 4(?s:.*)padding"):
        FunctionMetric(lambda logits, answers, wrong: torch.tensor([1.0, math.nan, 0.0, 2.0]))(
            readout(logits), targets()
        )


def test_missing_needs_are_named(logits):
    with pytest.raises(MetricError, match=r"1 of 2 examples have no wrong tokens.*examples 1"):
        LogitDiff()(readout(logits[:2]), Targets(pad([[1], [2]]), pad([[3], []])))
    with pytest.raises(MetricError, match=r"logits of the clean run(?s:.*)clean_logits"):
        KL()(readout(logits), targets())
    with pytest.raises(MetricError, match="'base' run"):
        KL("base")
    assert LogProb()(readout(logits[:2]), Targets(pad([[1], [2]]), pad([[], []]))).shape == (2,)


def test_resolving_names():
    assert [m.name for m in resolve_metrics(["logit_diff", "kl"])] == [
        "logit_diff",
        "kl",
        "answer_logit",
        "wrong_logit",
        "entropy",
    ]
    assert [m.name for m in resolve_metrics("logit_diff")] == ["logit_diff", "answer_logit", "wrong_logit"]
    assert [m.name for m in resolve_metrics("top_5", companions=False)] == ["top5"]
    assert resolve_metrics("rank")[1].name == "rank_gap"
    assert resolve_metrics(lambda logits, answers, wrong: logits[:, 0])[0].name == "own_metric"
    with pytest.raises(MetricError, match="did you mean logit_diff"):
        resolve_metrics("logitdiff")
    with pytest.raises(MetricError, match="two metrics are called 'kl'"):
        resolve_metrics(["kl", KL()])
    with pytest.raises(MetricError, match="no metric"):
        resolve_metrics([])


def test_kl_is_lower_for_the_behaviour_only_against_the_clean_run():
    assert (KL().better, KL("corrupt").better) == ("lower", "higher")
    assert KL().needs_base
    assert not LogitDiff().needs_base
