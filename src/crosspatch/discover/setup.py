"""Samples as what attribution works on: every context is its own pair, the metric the answer's log-probability."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crosspatch.attribution.setup import Setup
from crosspatch.discover.samples import Samples
from crosspatch.errors import TaskError
from crosspatch.metrics import LogProb, Targets
from crosspatch.model import Model

METRIC = LogProb()


def last(n: int) -> tuple[str, ...]:
    """Names of the last n positions, as spans: `last-1` is the one that predicts the answer."""
    return tuple(f"last-{i}" for i in range(1, n + 1))


def setup_of_samples(model: Model, samples: Samples, chosen: Sequence[int] | None = None, positions: int = 1) -> Setup:
    """Samples on a model, with the metric log p(answer).

    There are no corrupt prompts: a context stands for its own, so that `paired` replaces nothing. Use zero or means.

    Args:
        chosen: numbers of samples; None: all.
        positions: how many positions from the end have a span of their own (see `last`). Where a context is shorter
            the span is empty.

    Raises:
        TaskError: token ids that the model does not have.
    """
    index = range(len(samples)) if chosen is None else chosen
    contexts = [list(samples.contexts[i]) for i in index]
    answers = [int(samples.answers[i]) for i in index]
    biggest = max(max(map(max, contexts), default=0), max(answers, default=0))
    if biggest >= model.n_tokens:
        raise TaskError(f"token {biggest} of {model.n_tokens}", where=model.name, fix="use the samples' own model")
    spans = []
    for ids in contexts:
        n = len(ids)
        own = {name: (n - i, n - i + 1) if i <= n else (0, 0) for i, name in enumerate(last(positions), 1)}
        spans.append({"END": (n - 1, n), **own})
    return Setup(
        model,
        contexts,
        contexts,
        [(len(ids) - 1,) for ids in contexts],
        [tuple(range(len(ids))) for ids in contexts],
        METRIC,
        Targets(torch.tensor(answers)[:, None], torch.zeros(len(answers), 0, dtype=torch.long)),
        spans,
        [str(samples.documents[i]) for i in index],
        {"task": "discover", "samples": samples.hash, "metric": METRIC.name, "model": model.name},
    )
