"""What is measured on the logits, and what each measure needs and hides."""

from crosspatch.metrics.answers import (
    Accuracy,
    AnswerLogit,
    LogitDiff,
    LogProb,
    Prob,
    ProbDiff,
    Rank,
    RankGap,
    TopK,
    WrongLogit,
)
from crosspatch.metrics.base import PAD, Metric, Targets, View, evaluate, needed_columns, needs_all_positions, pad
from crosspatch.metrics.distribution import KL, CrossEntropy, Entropy, FunctionMetric, JensenShannon, LogitDistance
from crosspatch.metrics.resolve import DEFAULT, METRICS, resolve_metrics

__all__ = [
    "DEFAULT",
    "KL",
    "METRICS",
    "PAD",
    "Accuracy",
    "AnswerLogit",
    "CrossEntropy",
    "Entropy",
    "FunctionMetric",
    "JensenShannon",
    "LogProb",
    "LogitDiff",
    "LogitDistance",
    "Metric",
    "Prob",
    "ProbDiff",
    "Rank",
    "RankGap",
    "Targets",
    "TopK",
    "View",
    "WrongLogit",
    "evaluate",
    "needed_columns",
    "needs_all_positions",
    "pad",
    "resolve_metrics",
]
