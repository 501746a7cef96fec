"""What attribution and circuit evaluation work on: pairs of prompts, where they are read, what is measured there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.errors import MetricError, TaskError
from crosspatch.metrics import Metric, Targets, evaluate, needed_columns, needs_all_positions, resolve_metrics
from crosspatch.model import Model, Run, record
from crosspatch.model.run import Key, Readout
from crosspatch.tasks.align import FIX, align
from crosspatch.tasks.pairs import Task
from crosspatch.tasks.tokenize import TokenizedTask, tokenize

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Setup:
    """Pairs of prompts on a model, with one metric.

    Make it with `setup_of` from a task, or directly from token ids (a model without a tokenizer, say).

    Attributes:
        model: the model.
        clean, corrupt: token ids. The clean run is what is explained; the corrupt one supplies replacements.
        read: positions of the clean prompt whose logits the metric sees. Of a corrupt prompt of another length the
            same positions from its end are read.
        partner: for each position of the clean prompt that of the corrupt one, or None for a token without a partner.
        metric: one number per row. Its gradient is taken, so that it must be a torch function of the logits.
        targets: what the metric compares with.
        spans: named positions of the clean prompt, half open.
        clusters: what intervals resample, as a rule the template.
        provenance: JSON values that say where the pairs come from.
    """

    model: Model
    clean: list[list[int]]
    corrupt: list[list[int]]
    read: list[tuple[int, ...]]
    partner: list[tuple[int | None, ...]]
    metric: Metric
    targets: Targets
    spans: list[dict[str, Span]]
    clusters: list[str]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.clean)
        for name in ("corrupt", "read", "partner", "spans", "clusters"):
            if len(getattr(self, name)) != n:
                raise TaskError(
                    f"{n} clean prompts, but {len(getattr(self, name))} of {name}",
                    where="Setup",
                    fix="give one of each per pair",
                )
        if not n:
            raise TaskError("no pairs", where="Setup", fix="give at least one")
        self.metric.check(self.targets)

    def __len__(self) -> int:
        return len(self.clean)

    @cached_property
    def columns(self) -> list[int] | None:
        """Vocabulary entries that the metric reads; None = all."""
        found = needed_columns([self.metric], self.targets)
        return None if found is None else found.tolist()

    @cached_property
    def digests(self) -> list[str]:
        """A short name for every pair, from its tokens and where it is read: which were searched on, or judged on."""
        pairs = zip(self.clean, self.corrupt, self.read, strict=True)
        return [hashlib.sha256(repr((list(a), list(b), list(at))).encode()).hexdigest()[:16] for a, b, at in pairs]

    @property
    def aligned(self) -> bool:
        """Whether every position has the same position of a corrupt prompt of the same length for its partner."""
        pairs = zip(self.clean, self.corrupt, self.partner, strict=True)
        return all(len(a) == len(b) and partner == tuple(range(len(a))) for a, b, partner in pairs)

    def select(self, examples: Sequence[int]) -> Setup:
        """These pairs only, in this order."""
        index = torch.as_tensor(list(examples), dtype=torch.long)
        targets = Targets(
            self.targets.answers[index],
            self.targets.wrong[index],
            _rows(self.targets.clean_logits, index),
            _rows(self.targets.corrupt_logits, index),
            None if self.targets.tokens is None else [self.targets.tokens[i] for i in examples],
        )
        names = ("clean", "corrupt", "read", "partner", "spans", "clusters")
        lists: dict[str, Any] = {name: [getattr(self, name)[i] for i in examples] for name in names}
        return replace(self, targets=targets, **lists)

    def split(self, held_out: float, seed: int = 0) -> tuple[Setup, Setup]:
        """(to search on, to judge on); examples of one cluster are divided in the same proportion.

        Which pair goes where depends on its tokens and the seed, not on its place among the others.

        Raises:
            TaskError: too few pairs.
        """
        draw = np.random.default_rng(seed)
        by_name = sorted(range(len(self)), key=self.digests.__getitem__)
        line: list[int] = []  # cluster after cluster; equal steps along it divide all of them alike
        for cluster in draw.permutation(sorted(set(self.clusters))):
            line += draw.permutation([i for i in by_name if self.clusters[i] == cluster]).tolist()
        steps = np.floor(held_out * np.arange(len(line) + 1) + draw.random())
        rest = [line[i] for i in np.flatnonzero(np.diff(steps))]
        kept = sorted(set(range(len(self))) - set(rest))
        if not kept or not rest:
            raise TaskError(f"{len(self)} pairs cannot be split", where="pairs", fix="use more pairs, or held_out=0")
        return self.select(kept), self.select(sorted(rest))

    def chunks(self, size: int) -> Iterator[list[int]]:
        """Numbers of examples, at most `size` at a time, prompts of equal length together."""
        order = sorted(range(len(self)), key=lambda i: (len(self.clean[i]), len(self.corrupt[i]), i))
        for at in range(0, len(order), max(1, size)):
            yield order[at : at + max(1, size)]

    def record_clean(self, keys: Sequence[Key] = (), budget_mib: float | None = None) -> Run:
        """The clean run, with some activations kept."""
        return record(self.model, self.clean, read=self.read, keys=keys, budget_mib=budget_mib)

    def record_corrupt(self, keys: Sequence[Key] = (), budget_mib: float | None = None) -> Run:
        """The corrupt run, read at the same places from the end."""
        pairs = zip(self.clean, self.corrupt, self.read, strict=True)
        read = [tuple(p - len(a) + len(b) for p in at) for a, b, at in pairs]
        return record(self.model, self.corrupt, read=read, keys=keys, budget_mib=budget_mib)

    def measure(
        self, hidden: Float[Tensor, "read d_model"], examples: Sequence[int] | None = None
    ) -> Float[Tensor, " row"]:
        """The metric of some rows; it has a gradient where `hidden` has one.

        Args:
            hidden: final-norm outputs at the reads of each row, row after row (`Run.hidden`).
            examples: the example that each row belongs to; None = every example once.
        """
        rows = range(len(self)) if examples is None else examples
        counts = torch.tensor([len(self.read[i]) for i in rows])
        columns = self.columns
        readout = Readout(
            self.model.unembed(hidden, columns),
            None if columns is None else torch.tensor(columns),
            torch.repeat_interleave(torch.arange(len(counts)), counts),
            torch.repeat_interleave(torch.tensor(list(rows)), counts),
            torch.tensor([p for i in rows for p in self.read[i]]),
        )
        return evaluate([self.metric], readout, self.targets)[1][self.metric.name]

    def corrupt_metric(self, corrupt: Run) -> Float[Tensor, " example"]:
        """The metric of the corrupt run, against the clean answers."""
        return self.measure(corrupt.hidden)

    def swapped(self) -> Setup:
        """Clean and corrupt prompts exchanged, for attribution in the other direction (denoising).

        Raises:
            TaskError: prompts that differ in length.
        """
        if not self.aligned:
            raise TaskError("prompts of unequal length cannot be exchanged", where="Setup.swapped", fix=FIX)
        return replace(self, clean=self.corrupt, corrupt=self.clean)


def _rows(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index.to(values.device)]


def setup_of(model: Model, task: Task | TokenizedTask, metric: Metric | str = "logit_diff") -> Setup:
    """A task, ready for attribution and circuits.

    Raises:
        TaskError: pairs that do not align.
        MetricError: a metric that the task lacks something for, or that reads every position of unaligned prompts.
    """
    tokenized = task if isinstance(task, TokenizedTask) else tokenize(task, model.tokenizer)
    chosen = resolve_metrics(metric, companions=False)[0]
    maps = align(tokenized)
    if maps.failing:
        i = maps.failing[0]
        raise TaskError(
            f"{len(maps.failing)} pairs do not align: {maps[i].problem}",
            where=f"example {i} of task {tokenized.task.name!r}",
            fix=FIX,
        )
    every = needs_all_positions([chosen])
    unequal = any(len(a) != len(b) for a, b in zip(tokenized.clean, tokenized.corrupt, strict=True))
    if every and unequal:
        raise MetricError(
            "prompts of a pair differ in length", where=f"metric {chosen.name!r}", fix="use a metric of the answer"
        )
    read = [tuple(range(len(ids))) if every else (len(ids) - 1,) for ids in tokenized.clean]
    targets = Targets.of(tokenized)
    if chosen.reference:
        ids = tokenized.ids(chosen.reference)
        logits = record(model, ids).logits()
        targets = Targets.of(tokenized, *((logits, None) if chosen.reference == "clean" else (None, logits)))
    return Setup(
        model,
        tokenized.clean,
        tokenized.corrupt,
        read,
        [maps[i].to_corrupt for i in range(len(tokenized))],
        chosen,
        targets,
        list(tokenized.spans),
        tokenized.clusters,
        {
            "task": tokenized.task.name,
            "task_hash": tokenized.task.hash,
            "varies": tokenized.task.varies,
            "metric": chosen.name,
            "model": model.name,
        },
    )
