"""What a metric is: one number per patched row, read off the logits, with its needs and its failures stated.

A metric never averages over rows. Averages, intervals and effects are the results room's work, on per-example values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosspatch.errors import MetricError

if TYPE_CHECKING:
    from crosspatch.model.run import Readout
    from crosspatch.tasks.tokenize import TokenizedTask

PAD = -1
"""Fills rows of `Targets.answers` and `Targets.wrong` that have fewer tokens than the longest."""


@dataclass(frozen=True)
class Targets:
    """What the metrics compare the logits with, for every example of a task.

    Args:
        answers: token ids that count as right, padded with `PAD`.
        wrong: token ids that count as wrong, padded with `PAD`; may have no columns.
        clean_logits: logits of the clean run at the answer position, for KL and Jensen-Shannon to it.
        corrupt_logits: the same of the corrupt run.
        tokens: the clean prompts, for cross-entropy on text.
    """

    answers: Int[Tensor, "example k"]
    wrong: Int[Tensor, "example w"]
    clean_logits: Float[Tensor, "example vocab"] | None = None
    corrupt_logits: Float[Tensor, "example vocab"] | None = None
    tokens: Sequence[Sequence[int]] | None = None

    @classmethod
    def of(
        cls, tokenized: TokenizedTask, clean_logits: Tensor | None = None, corrupt_logits: Tensor | None = None
    ) -> Targets:
        """Targets of a tokenised task."""
        return cls(pad(tokenized.answers), pad(tokenized.wrong), clean_logits, corrupt_logits, tokenized.clean)


def pad(ids: Sequence[Sequence[int]]) -> Int[Tensor, "example k"]:
    """Lists of token ids as one matrix, filled up with `PAD`."""
    width = max((len(each) for each in ids), default=0)
    return torch.tensor([[*each, *[PAD] * (width - len(each))] for each in ids], dtype=torch.long).reshape(
        len(ids), width
    )


class View:
    """A readout with the answer position of each row picked out and the shared work (softmax) done once.

    Args:
        readout: logits of a chunk of rows.
        targets: what to compare with, for all examples.
    """

    def __init__(self, readout: Readout, targets: Targets) -> None:
        self.readout, self.targets = readout, targets
        self.rows, self.group, counts = torch.unique_consecutive(readout.row, return_inverse=True, return_counts=True)
        self.last = counts.cumsum(0) - 1  # the answer is read at the last position of each row
        self.example: Int[Tensor, " row"] = readout.example[self.last]

    @cached_property
    def logits(self) -> Float[Tensor, "row column"]:
        """Logits at the answer position, at least float32."""
        return _precise(self.readout.logits[self.last.to(self.readout.logits.device)])

    @cached_property
    def log_probs(self) -> Float[Tensor, "row vocab"]:
        """Log-probabilities at the answer position.

        Raises:
            MetricError: only some vocabulary columns were computed.
        """
        if self.readout.columns is not None:
            raise MetricError(
                f"log-probabilities need the whole vocabulary, {len(self.readout.columns)} columns were read",
                where="readout",
                fix="call replay with columns=needed_columns(metrics, targets)",
            )
        return self.logits.log_softmax(-1)

    def of(self, per_example: Tensor) -> Tensor:
        """Rows of a tensor that has one entry per example, on the logits' device."""
        return per_example.to(self.logits.device)[self.example.to(self.logits.device)]

    def gather(
        self, values: Float[Tensor, "row column"], ids: Int[Tensor, "row k"], fill: float
    ) -> Float[Tensor, "row k"]:
        """`values` at token ids, `fill` where an id is padding."""
        column = ids.clamp_min(0)
        if self.readout.columns is not None:
            columns = self.readout.columns.to(ids.device)
            column = torch.searchsorted(columns, column).clamp_max(len(columns) - 1)
        return values.gather(-1, column).masked_fill(ids == PAD, fill)

    @property
    def answers(self) -> Int[Tensor, "row k"]:
        return self.of(self.targets.answers)

    @property
    def wrong(self) -> Int[Tensor, "row w"]:
        return self.of(self.targets.wrong)


def _precise(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class Metric(ABC):
    """One number per row.

    Attributes:
        name: column name in results.
        needs_full: reads the whole distribution, not only answer and wrong tokens.
        needs_wrong: compares with wrong answers, which the task must give.
        reference: "clean" or "corrupt" when the metric compares with the logits of that unpatched run.
        reads: "answer" (the last position) or "all" positions of the prompt.
        linear: a linear function of the logits, on which `INT` has no curvature of the metric's own.
        better: whether "higher" or "lower" values mean that the behaviour is there.
        range: smallest and largest possible value.
        unit: for axes.
        known_failure: when not to trust it.
        companions: names of metrics that are reported beside it, because it hides what they show.
    """

    needs_full: ClassVar[bool] = False
    needs_wrong: ClassVar[bool] = False
    reads: ClassVar[Literal["answer", "all"]] = "answer"
    better: Literal["higher", "lower"] = "higher"
    range: ClassVar[tuple[float, float]] = (float("-inf"), float("inf"))
    unit: ClassVar[str] = "logits"
    known_failure: ClassVar[str]
    companions: ClassVar[tuple[str, ...]] = ()
    linear: bool = False
    reference: Literal["clean", "corrupt"] | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Column name in results."""

    @property
    def needs_base(self) -> bool:
        """Whether the logits of an unpatched run are needed to compare with."""
        return self.reference is not None

    @abstractmethod
    def values(self, view: View) -> Float[Tensor, " row"]:
        """The metric of each row of a view."""

    def __call__(self, readout: Readout, targets: Targets) -> Float[Tensor, " row"]:
        """The metric of each row of a readout (rows in their order of appearance).

        Raises:
            MetricError: the task lacks what the metric needs, or the readout was cut to other columns.
        """
        self.check(targets)
        return self.values(View(readout, targets))

    def check(self, targets: Targets) -> None:
        """Raise a `MetricError` when the task lacks what this metric needs."""
        for kind, ids, wanted in (("answers", targets.answers, True), ("wrong", targets.wrong, self.needs_wrong)):
            if wanted and (lacking := _empty_rows(ids)):
                few = ", ".join(map(str, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
                raise MetricError(
                    f"{len(lacking)} of {len(ids)} examples have no {kind} tokens (examples {few})",
                    where=f"metric {self.name!r}",
                    fix=f"give {kind}= in every Pair" + (", or use log_prob" if kind == "wrong" else ""),
                )
        if self.reference and getattr(targets, f"{self.reference}_logits") is None:
            raise MetricError(
                f"the logits of the {self.reference} run are needed to compare with",
                where=f"metric {self.name!r}",
                fix=f"pass Targets(..., {self.reference}_logits=...)",
            )


def _empty_rows(ids: Int[Tensor, "example k"]) -> list[int]:
    present: Bool[Tensor, " example"] = (
        (ids != PAD).any(-1) if ids.shape[-1] else torch.zeros(len(ids), dtype=torch.bool)
    )
    return (~present).nonzero().flatten().tolist()


def evaluate(
    metrics: Sequence[Metric], readout: Readout, targets: Targets
) -> tuple[Int[Tensor, " row"], dict[str, Float[Tensor, " row"]]]:
    """Several metrics in one pass over the same logits.

    Returns:
        The rows (in their order of appearance) and, for each metric's name, one value per row.
    """
    view = View(readout, targets)
    return view.rows, {metric.name: metric.values(view) for metric in metrics}


def needed_columns(metrics: Sequence[Metric], targets: Targets) -> Int[Tensor, " column"] | None:
    """Sorted vocabulary entries that the metrics read, or None when one of them needs all."""
    if any(metric.needs_full for metric in metrics):
        return None
    ids = torch.cat([targets.answers.flatten(), targets.wrong.flatten()]).unique()
    return ids[ids != PAD]


def needs_all_positions(metrics: Sequence[Metric]) -> bool:
    """Whether a metric reads more than the answer position."""
    return any(metric.reads == "all" for metric in metrics)
