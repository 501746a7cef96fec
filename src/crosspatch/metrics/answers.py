"""Metrics on the answer's logits: linear ones, and the ones that need the distribution around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.errors import MetricError
from crosspatch.metrics.base import PAD, Metric, View

Against = Literal["mean", "max", "logsumexp"]


def _reduce(values: Float[Tensor, "row k"], how: Against) -> Float[Tensor, " row"]:
    """Many answers as one; padding is NaN."""
    if how == "mean":
        return values.nanmean(-1)
    filled = values.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    return filled.amax(-1) if how == "max" else filled.logsumexp(-1)


@dataclass(frozen=True)
class LogitDiff(Metric):
    """Logit of the right answer minus logit of the wrong one, in logits.

    Args:
        against: how several right (wrong) answers become one: `mean` (linear), `max` (the strongest competitor), or
            `logsumexp` (log-odds of the two sets of answers).
    """

    against: Against = "mean"
    needs_wrong = True
    known_failure = (
        "rises when the wrong answer falls: a patch that flattens the corrupt run's output looks like help; "
        "read it beside answer_logit, wrong_logit and entropy"
    )
    companions = ("answer_logit", "wrong_logit", "entropy")

    def __post_init__(self) -> None:
        if self.against not in ("mean", "max", "logsumexp"):
            raise MetricError(
                f"cannot take the logit difference against the {self.against!r} of the wrong answers",
                where="LogitDiff",
                fix="against is 'mean', 'max' or 'logsumexp'",
            )

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return self.against == "mean"

    @property
    def name(self) -> str:
        return "logit_diff" if self.against == "mean" else f"logit_diff_{self.against}"

    def values(self, view: View) -> Float[Tensor, " row"]:
        nan = float("nan")
        right = _reduce(view.gather(view.logits, view.answers, nan), self.against)
        return right - _reduce(view.gather(view.logits, view.wrong, nan), self.against)


@dataclass(frozen=True)
class AnswerLogit(Metric):
    """Mean logit of the right answers. Shows whether a logit difference moved because this rose."""

    linear = True
    known_failure = "no control for boosts that all tokens share"

    @property
    def name(self) -> str:
        return "answer_logit"

    def values(self, view: View) -> Float[Tensor, " row"]:
        return view.gather(view.logits, view.answers, float("nan")).nanmean(-1)


@dataclass(frozen=True)
class WrongLogit(Metric):
    """Mean logit of the wrong answers. Shows whether a logit difference moved because this fell."""

    linear = True
    needs_wrong = True
    better = "lower"
    known_failure = "no control for boosts that all tokens share"

    @property
    def name(self) -> str:
        return "wrong_logit"

    def values(self, view: View) -> Float[Tensor, " row"]:
        return view.gather(view.logits, view.wrong, float("nan")).nanmean(-1)


def _log_prob_of(view: View, ids: Int[Tensor, "row k"]) -> Float[Tensor, " row"]:
    """Log of the summed probability of a set of tokens."""
    return view.gather(view.log_probs, ids, float("-inf")).logsumexp(-1)


@dataclass(frozen=True)
class LogProb(Metric):
    """Log-probability of the set of right answers, in nats."""

    needs_full = True
    range = (float("-inf"), 0.0)
    unit = "nats"
    known_failure = "saturates once the answer is on top; cannot tell raising the answer from lowering the others"

    @property
    def name(self) -> str:
        return "log_prob"

    def values(self, view: View) -> Float[Tensor, " row"]:
        return _log_prob_of(view, view.answers)


@dataclass(frozen=True)
class Prob(Metric):
    """Summed probability of the right answers."""

    needs_full = True
    range = (0.0, 1.0)
    unit = "probability"
    known_failure = (
        "exponential in the logits: overstates near the threshold, hides elsewhere, and misses negative parts "
        "when the corrupt probability is near 0"
    )
    companions = ("log_prob",)

    @property
    def name(self) -> str:
        return "prob"

    def values(self, view: View) -> Float[Tensor, " row"]:
        return _log_prob_of(view, view.answers).exp()


@dataclass(frozen=True)
class ProbDiff(Metric):
    """Summed probability of the right answers minus that of the wrong ones.

    The greater-than measure of Hanna et al. 2023 (arXiv 2305.00586), when the answers are the years above and the wrong
    ones those below.
    """

    needs_full = True
    needs_wrong = True
    range = (-1.0, 1.0)
    unit = "probability"
    known_failure = "exponential in the logits: blind to changes among improbable tokens"

    @property
    def name(self) -> str:
        return "prob_diff"

    def values(self, view: View) -> Float[Tensor, " row"]:
        return _log_prob_of(view, view.answers).exp() - _log_prob_of(view, view.wrong).exp()


def _best_answer(view: View) -> Float[Tensor, " row"]:
    return view.gather(view.logits, view.answers, float("-inf")).amax(-1)


def _others(view: View) -> Float[Tensor, "row vocab"]:
    """Logits with the right answers taken out.

    Raises:
        MetricError: only some vocabulary columns were computed.
    """
    if view.readout.columns is not None:
        raise MetricError(
            f"a rank needs the whole vocabulary, {len(view.readout.columns)} columns were read",
            where="readout",
            fix="call replay with columns=needed_columns(metrics, targets)",
        )
    logits = torch.cat([view.logits, view.logits[:, :1]], -1)  # padding falls on the extra column
    spare = logits.shape[-1] - 1
    return logits.scatter(-1, view.answers.masked_fill(view.answers == PAD, spare), float("-inf"))[:, :spare]


@dataclass(frozen=True)
class Rank(Metric):
    """Number of tokens, right answers aside, with a higher logit than the best right answer; 0 is on top."""

    needs_full = True
    better = "lower"
    range = (0.0, float("inf"))
    unit = "tokens"
    known_failure = "discrete: a large effect can show 0, a small one can show 1; read it beside rank_gap"
    companions = ("rank_gap",)

    @property
    def name(self) -> str:
        return "rank"

    def values(self, view: View) -> Float[Tensor, " row"]:
        return (_others(view) > _best_answer(view)[:, None]).sum(-1).to(view.logits.dtype)


@dataclass(frozen=True)
class RankGap(Metric):
    """Logit of the best right answer minus that of its strongest competitor in the vocabulary, in logits."""

    needs_full = True
    known_failure = "the competitor may change from row to row"

    @property
    def name(self) -> str:
        return "rank_gap"

    def values(self, view: View) -> Float[Tensor, " row"]:
        return _best_answer(view) - _others(view).amax(-1)


@dataclass(frozen=True)
class Accuracy(Metric):
    """1 where a right answer is among the k most probable tokens, else 0.

    Args:
        k: how many count as top.
        among: "vocabulary", or "choices": only right and wrong answers compete (the minimal-pair accuracy).
    """

    k: int = 1
    among: Literal["vocabulary", "choices"] = "vocabulary"
    range = (0.0, 1.0)
    unit = "share of examples"
    known_failure = "a threshold: large effects can show 0 and small ones 1; for confirmation only"
    companions = ("rank_gap",)

    def __post_init__(self) -> None:
        if self.k < 1 or self.among not in ("vocabulary", "choices"):
            raise MetricError(
                f"Accuracy(k={self.k}, among={self.among!r})",
                where="Accuracy",
                fix="k is at least 1 and among is 'vocabulary' or 'choices'",
            )

    @property
    def needs_full(self) -> bool:  # type: ignore[override]
        return self.among == "vocabulary"

    @property
    def needs_wrong(self) -> bool:  # type: ignore[override]
        return self.among == "choices"

    @property
    def name(self) -> str:
        return ("accuracy" if self.k == 1 else f"top{self.k}") + ("" if self.among == "vocabulary" else "_choices")

    def values(self, view: View) -> Float[Tensor, " row"]:
        others = _others(view) if self.needs_full else view.gather(view.logits, view.wrong, float("-inf"))
        # a tie is not a success: a model that gives every token the same logit answers nothing
        return ((others >= _best_answer(view)[:, None]).sum(-1) < self.k).to(view.logits.dtype)


def TopK(k: int) -> Accuracy:
    """`Accuracy` that counts the k most probable tokens as right."""
    return Accuracy(k)
