"""Checks before anything runs: does this experiment mean something?

A sweep on prompts that do not align, or on a behaviour that the model does not show, gives numbers all the same. The
gates refuse it and say which examples are at fault. (Rules A4 and A5 of Heimersheim & Nanda, arXiv 2404.15255: the
clean prompt succeeds, the corrupt one fails, and both have the same roles at the same positions.)

The single checks are in `checks`; `gates` puts them to work on a model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.errors import GateError
from crosspatch.tasks.align import PositionMap, align
from crosspatch.tasks.checks import behaviour, preference, static_gates
from crosspatch.tasks.findings import GateFinding
from crosspatch.tasks.tokenize import TokenizedTask

if TYPE_CHECKING:
    from crosspatch.metrics import Metric
    from crosspatch.model.model import Model

BATCH = 64  # prompts whose logits are held at once


@dataclass(frozen=True)
class GateReport:
    """What the gates found.

    Args:
        findings: all statements; failures stop a run.
        positions: which corrupt token stands for which clean token.
        metric: name of the metric of the behaviour gate.
        k: how many standard errors the gap had to exceed.
        clean, corrupt: the metric per example (empty where the model was not run).
        prefers: whether the model prefers the right answer on the clean prompt, per example.
        flips: whether it prefers the wrong one on the corrupt prompt.
        forced: True if the run went on in spite of failures.
    """

    findings: tuple[GateFinding, ...]
    positions: PositionMap
    metric: str
    k: float
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]
    prefers: Bool[np.ndarray, " example"]
    flips: Bool[np.ndarray, " example"]
    forced: bool = False

    @property
    def failures(self) -> tuple[GateFinding, ...]:
        return tuple(f for f in self.findings if f.level == "failure")

    @property
    def ok(self) -> bool:
        return not self.failures

    @property
    def accuracy(self) -> float | None:
        """Share of clean prompts on which the model prefers the right answer."""
        return float(self.prefers.mean()) if len(self.prefers) else None

    @property
    def passing(self) -> list[int]:
        """Examples that no failure names: `tokenized.select(report.passing)` goes on with these."""
        named = {i for f in self.failures for i in f.examples}
        return [i for i in range(len(self.positions)) if i not in named]

    def require(self, force: bool = False) -> GateReport:
        """This report if nothing failed; with `force=True` in any case, marked as forced.

        Raises:
            GateError: a gate failed; names the examples, shows their tokens, says how to fix it.
        """
        if self.ok:
            return self
        if force:
            return dataclasses.replace(self, forced=True)
        codes = ", ".join(f.code for f in self.failures)
        raise GateError(
            f"the experiment would mislead ({codes})\n" + "\n".join(map(str, self.failures)),
            where=f"task {self.positions.tokenized.task.name!r}",
            fix="see above for each; or go on with force=True, which marks the result",
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        numbers = {name: getattr(self, name).tolist() for name in ("clean", "corrupt", "prefers", "flips")}
        numbers |= {key: [x if np.isfinite(x) else None for x in numbers[key]] for key in ("clean", "corrupt")}
        findings = [f.to_dict() for f in self.findings]
        return {
            "metric": self.metric,
            "k": self.k,
            "forced": self.forced,
            "ok": self.ok,
            "findings": findings,
            **numbers,
        }

    def __str__(self) -> str:
        verdict = "passed" if self.ok else "forced" if self.forced else "failed"
        return "\n".join([f"gates {verdict} ({self.metric}, {len(self.positions)} pairs)", *map(str, self.findings)])


def gates(model: Model, tokenized: TokenizedTask, metric: Metric | str = "logit_diff", k: float = 2.0) -> GateReport:
    """All gates on one model. Nothing is raised here; `GateReport.require()` does.

    Args:
        model: the model that the sweep would run on.
        tokenized: the task, tokenized with that model's tokenizer.
        metric: of the behaviour gate; a metric or its name.
        k: standard errors by which clean must beat corrupt.
    """
    from crosspatch.metrics import resolve_metrics

    one = resolve_metrics(metric, companions=False)[0]
    positions = align(tokenized)
    matter = one.reads == "answer" and not one.needs_base
    found = static_gates(
        tokenized, positions, context=model.context, vocab=model.shape.vocab, answer_tokens_matter=matter
    )
    none = np.zeros(0)
    if any(f.code in ("context", "vocabulary") and f.level == "failure" for f in found):
        note = GateFinding("behaviour", "warning", "the model was not run, because it cannot take these prompts")
        return GateReport((*found, note), positions, one.name, k, none, none, none.astype(bool), none.astype(bool))
    clean, corrupt, prefers, flips = _measure(model, tokenized, one)
    shown = [tokenized.display(i) for i in range(len(tokenized))]
    found += behaviour(clean, corrupt, k, one.better, one.name, shown)
    has_wrong = all(tokenized.wrong)
    rows = zip(tokenized.answers, tokenized.wrong, strict=True)
    chance = float(np.mean([len(a) / (len(a) + len(w)) for a, w in rows])) if has_wrong else None
    if matter:
        found += preference(prefers, chance, flips, shown)
    return GateReport(tuple(found), positions, one.name, k, clean, corrupt, prefers, flips)


def _measure(model: Model, tokenized: TokenizedTask, metric: Metric) -> tuple[np.ndarray, ...]:
    """Metric on both sides and the model's preferences, example by example."""
    import torch

    from crosspatch.metrics import PAD, Targets
    from crosspatch.model.replay import record
    from crosspatch.model.run import Readout

    parts: list[tuple[np.ndarray, ...]] = []
    whole = metric.reads == "all"
    targets = Targets.of(tokenized)
    for low in range(0, len(tokenized), BATCH):
        rows = range(low, min(low + BATCH, len(tokenized)))
        local = torch.arange(len(rows))
        readouts, last = {}, {}
        for side in ("clean", "corrupt"):
            ids = [tokenized.ids(side)[i] for i in rows]
            read = [list(range(len(t))) if whole else [len(t) - 1] for t in ids]
            counts = torch.tensor([len(r) for r in read])
            row = local.repeat_interleave(counts)
            logits = record(model, ids, read=read).logits()
            readouts[side] = Readout(logits, None, row, row, torch.tensor([p for r in read for p in r]))
            last[side] = logits[counts.cumsum(0).to(logits.device) - 1].float()
        here = Targets(
            targets.answers[low : rows.stop], targets.wrong[low : rows.stop], last["clean"], last["corrupt"],
            [tokenized.clean[i] for i in rows],
        )  # fmt: skip
        values = [metric(readouts[side], here).double().cpu().numpy() for side in ("clean", "corrupt")]

        def best(ids: torch.Tensor, side: str) -> torch.Tensor:
            picked = last[side].gather(1, ids.clamp_min(0).to(last[side].device))  # noqa: B023
            return picked.masked_fill((ids == PAD).to(picked.device), -torch.inf).amax(1)

        if targets.wrong.shape[1]:
            choices = [best(here.answers, side) - best(here.wrong, side) for side in ("clean", "corrupt")]
        else:
            choices = [best(here.answers, side) - last[side].amax(1) for side in ("clean", "corrupt")]
        prefers = choices[0] > 0 if targets.wrong.shape[1] else choices[0] >= 0
        parts.append((*values, prefers.cpu().numpy(), (choices[1] < 0).cpu().numpy()))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
