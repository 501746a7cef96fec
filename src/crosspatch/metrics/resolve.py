"""Metrics by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from crosspatch.errors import MetricError
from crosspatch.metrics.answers import (
    Accuracy,
    AnswerLogit,
    LogitDiff,
    LogProb,
    Prob,
    ProbDiff,
    Rank,
    RankGap,
    WrongLogit,
)
from crosspatch.metrics.base import Metric
from crosspatch.metrics.distribution import KL, CrossEntropy, Entropy, FunctionMetric, JensenShannon, LogitDistance

METRICS: dict[str, Callable[[], Metric]] = {
    "logit_diff": LogitDiff,
    "logit_diff_max": lambda: LogitDiff("max"),
    "logit_diff_logsumexp": lambda: LogitDiff("logsumexp"),
    "answer_logit": AnswerLogit,
    "wrong_logit": WrongLogit,
    "log_prob": LogProb,
    "prob": Prob,
    "prob_diff": ProbDiff,
    "accuracy": Accuracy,
    "accuracy_choices": lambda: Accuracy(among="choices"),
    "rank": Rank,
    "rank_gap": RankGap,
    "kl": KL,
    "kl_corrupt": lambda: KL("corrupt"),
    "js": JensenShannon,
    "js_corrupt": lambda: JensenShannon("corrupt"),
    "logit_distance": LogitDistance,
    "logit_distance_corrupt": lambda: LogitDistance("corrupt"),
    "entropy": Entropy,
    "cross_entropy": CrossEntropy,
}
"""Every named metric; `top5`, `top10`, ... work too."""

DEFAULT = ("logit_diff", "log_prob", "prob", "kl")
"""One that is linear in the logits, and the ones that fail in other ways; all are read off the same logits."""


def resolve_metrics(
    metrics: Metric | str | Callable | Iterable[Metric | str | Callable] = DEFAULT, companions: bool = True
) -> tuple[Metric, ...]:
    """Metrics from names, metrics, or functions (see `FunctionMetric`).

    Args:
        metrics: one or several; the first is the one that rows are ranked by. A comma-separated string is several.
        companions: add the metrics that show what those asked for hide (answer and wrong logit, entropy, rank gap).
            Entropy is left out when nothing else needs the whole distribution.

    Raises:
        MetricError: an unknown name (with the nearest ones), or two metrics of one name.
    """
    if isinstance(metrics, str):
        metrics = [name.strip() for name in metrics.split(",")]
    elif isinstance(metrics, Metric) or callable(metrics):
        metrics = [metrics]
    chosen = [_one(metric) for metric in metrics]
    if not chosen:
        raise MetricError("no metric given", fix=f"use for example metrics={DEFAULT}")
    names = [metric.name for metric in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MetricError(
            f"two metrics are called {twice[0]!r}", fix="give one of them another name, FunctionMetric(fn, label=...)"
        )
    if companions:
        full = any(metric.needs_full for metric in chosen)
        wanted = dict.fromkeys(name for metric in chosen for name in metric.companions if name not in names)
        chosen += [metric for metric in map(_one, wanted) if full or not metric.needs_full]
    return tuple(chosen)


def _one(metric: Metric | str | Callable) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str):
        return FunctionMetric(metric)
    name = metric.lower().replace("-", "_")
    if name in METRICS:
        return METRICS[name]()
    if top := re.fullmatch(r"top_?(\d+)", name):
        return Accuracy(int(top[1]))
    close = get_close_matches(name, [*METRICS, "top5"], n=3, cutoff=0.5)
    raise MetricError(
        f"unknown metric {metric!r}",
        fix=f"{'did you mean ' + ' or '.join(close) + '? ' if close else ''}Known: {', '.join(METRICS)}, top5, ...; "
        "or pass a function",
    )
