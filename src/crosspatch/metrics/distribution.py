"""Metrics on whole distributions: distance to an unpatched run, entropy, loss on text, and the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.errors import MetricError
from crosspatch.metrics.base import PAD, Metric, Targets, View

Reference = Literal["clean", "corrupt"]


def _check_reference(metric: str, reference: str) -> None:
    if reference not in ("clean", "corrupt"):
        raise MetricError(
            f"there is no {reference!r} run to compare with",
            where=metric,
            fix="reference is 'clean' (the model's own behaviour) or 'corrupt'",
        )


@dataclass(frozen=True)
class _Divergence(Metric):
    """Shared by the distances to an unpatched run. `reference`: which run."""

    reference: Reference = "clean"
    needs_full = True
    unit = "nats"

    def __post_init__(self) -> None:
        _check_reference(type(self).__name__, self.reference)

    @property
    def better(self) -> Literal["higher", "lower"]:  # type: ignore[override]
        return "lower" if self.reference == "clean" else "higher"

    def _reference_log_probs(self, view: View) -> Float[Tensor, "row vocab"]:
        logits = view.targets.clean_logits if self.reference == "clean" else view.targets.corrupt_logits
        assert logits is not None  # Metric.check
        return view.of(logits).to(view.logits.dtype).log_softmax(-1)


class KL(_Divergence):
    """Kullback-Leibler divergence KL(reference run || patched run), in nats; 0 when nothing changed.

    The reference stays the same in both directions, so that `INT` is defined: `clean` is the base run when noising and
    the source run when denoising. `KL("corrupt")` is the divergence from the base run when denoising.
    """

    range = (0.0, float("inf"))
    known_failure = (
        "punishes every deviation, wanted or not, and is flat at its own reference: useless as a gradient metric there"
    )

    @property
    def name(self) -> str:
        return "kl" if self.reference == "clean" else "kl_corrupt"

    def values(self, view: View) -> Float[Tensor, " row"]:
        p = self._reference_log_probs(view)
        return torch.nn.functional.kl_div(view.log_probs, p, log_target=True, reduction="none").sum(-1).clamp_min(0)


class JensenShannon(_Divergence):
    """Jensen-Shannon divergence between the reference run and the patched run, in nats: symmetric, at most ln 2."""

    range = (0.0, math.log(2))
    known_failure = "bounded: saturates at ln 2 once the two distributions have little in common"

    @property
    def name(self) -> str:
        return "js" if self.reference == "clean" else "js_corrupt"

    def values(self, view: View) -> Float[Tensor, " row"]:
        p, q = self._reference_log_probs(view), view.log_probs
        middle = torch.logaddexp(p, q) - math.log(2)
        halves = [(side.exp() * (side - middle)).sum(-1) for side in (p, q)]
        return (0.5 * (halves[0] + halves[1])).clamp_min(0)


class LogitDistance(_Divergence):
    """Mean absolute difference of all outputs from those of the reference run.

    For models whose outputs are no distribution (compiled programs, regressors), and as a distance that adds up.
    """

    unit = "logits"
    range = (0.0, float("inf"))
    known_failure = "counts every output alike, and a shift of all logits that no softmax sees"

    @property
    def name(self) -> str:
        return "logit_distance" if self.reference == "clean" else "logit_distance_corrupt"

    def values(self, view: View) -> Float[Tensor, " row"]:
        logits = view.targets.clean_logits if self.reference == "clean" else view.targets.corrupt_logits
        assert logits is not None  # Metric.check
        return (view.logits - view.of(logits).to(view.logits)).abs().mean(-1)


@dataclass(frozen=True)
class Entropy(Metric):
    """Entropy of the next-token distribution, in nats. Its rise is damage: the patch made the model unsure."""

    needs_full = True
    better = "lower"
    range = (0.0, float("inf"))
    unit = "nats"
    known_failure = "says nothing about which token is right"

    @property
    def name(self) -> str:
        return "entropy"

    def values(self, view: View) -> Float[Tensor, " row"]:
        return -(view.log_probs.exp() * view.log_probs.clamp_min(-1e4)).sum(-1)


@dataclass(frozen=True)
class CrossEntropy(Metric):
    """Mean of -log p(next token) over the clean text, the first right answer as its last token; nats per token.

    The text is the clean prompt in both directions, so that `INT` is defined; the prompts of a pair must be equally
    long.
    """

    needs_full = True
    reads = "all"
    better = "lower"
    range = (0.0, float("inf"))
    unit = "nats per token"
    known_failure = "broad: every token of the text counts, so the task is diluted"

    @property
    def name(self) -> str:
        return "cross_entropy"

    def check(self, targets: Targets) -> None:
        super().check(targets)
        if targets.tokens is None:
            raise MetricError(
                "the prompts' tokens are needed", where="metric 'cross_entropy'", fix="pass Targets(..., tokens=...)"
            )

    def values(self, view: View) -> Float[Tensor, " row"]:
        readout = view.readout
        following = self._next_tokens(view).to(readout.logits.device)
        picked = readout.logits.gather(-1, following[:, None])[:, 0].to(view.logits.dtype)
        loss = _logsumexp(readout.logits).to(view.logits.dtype) - picked
        total = torch.zeros(len(view.rows), dtype=loss.dtype, device=loss.device)
        group = view.group.to(loss.device)
        return total.index_add(0, group, loss) / torch.bincount(group, minlength=len(view.rows))

    def _next_tokens(self, view: View) -> Int[Tensor, " read"]:
        tokens, answers = view.targets.tokens, view.targets.answers
        assert tokens is not None  # Metric.check
        following = []
        for example, position in zip(view.readout.example.tolist(), view.readout.position.tolist(), strict=True):
            text = tokens[example]
            if position >= len(text):
                raise MetricError(
                    f"the patched prompt of example {example} is longer than its clean text ({len(text)} tokens)",
                    where=f"metric 'cross_entropy', position {position}",
                    fix="use pairs of equal length, or leave cross_entropy out",
                )
            following.append(text[position + 1] if position + 1 < len(text) else int(answers[example, 0]))
        return torch.tensor(following)


def _logsumexp(logits: Float[Tensor, "read vocab"], block: int = 256) -> Float[Tensor, " read"]:
    """In blocks: all positions of all rows times the vocabulary in float32 would be large."""
    return torch.cat(
        [part.float().logsumexp(-1) if part.dtype.itemsize < 4 else part.logsumexp(-1) for part in logits.split(block)]
    )


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """Your own metric.

    Args:
        fn: called as `fn(logits, answers, wrong)` with logits `[row, vocab]` at the answer position and token ids
            `[row, k]`, `[row, w]` (padded with -1); returns one number per row, `[row]`.
        name: column name in results; the function's own name by default.
        better: "higher" or "lower" when the behaviour is there.
        linear: whether it is a linear function of the logits.
    """

    fn: Callable[[Tensor, Tensor, Tensor], Tensor]
    label: str | None = None
    better: Literal["higher", "lower"] = "higher"
    linear: bool = False
    needs_full = True
    unit = ""
    known_failure = "not known: this is your own function"

    @property
    def name(self) -> str:
        return self.label or getattr(self.fn, "__name__", "own_metric").replace("<lambda>", "own_metric")

    def values(self, view: View) -> Float[Tensor, " row"]:
        rows = len(view.rows)
        result = self.fn(view.logits, view.answers, view.wrong)
        where = f"metric {self.name!r}"
        if not isinstance(result, Tensor):
            raise MetricError(
                f"returned {type(result).__name__} for {rows} rows; it must return a tensor of shape [{rows}]",
                where=where,
                fix="return a torch tensor with one number per row, for example "
                "`logits.gather(-1, answers[:, :1])[:, 0]`",
            )
        if result.shape != (rows,):
            raise MetricError(
                f"returned shape {list(result.shape)} for logits of shape {list(view.logits.shape)}; it must be "
                f"[{rows}], one number per row",
                where=where,
                fix="do not average over rows (Crosspatch does, and needs the spread); reduce over answers only, e.g. "
                "`logits.gather(-1, answers[:, :1])[:, 0]` rather than `.mean()`",
            )
        if not result.is_floating_point():
            result = result.to(view.logits.dtype)
        if bad := int(result.isnan().sum()):
            raise MetricError(
                f"returned NaN for {bad} of {rows} rows",
                where=where,
                fix=f"check the padding: token id {PAD} in answers or wrong stands for 'no token'",
            )
        return result.detach()
