"""Conditional ablation: what is a part worth once another part is gone?

A part with a backup looks idle when it is ablated alone. Ablating the primary part first and then the others shows who
takes over: the growth of a part's effect is the (negative) interaction between the two, and the score by which
CoAx (arXiv 2607.01940) finds backups. Hydra-like repair (McGrath et al. 2023, arXiv 2307.15771) is an OR.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.errors import InterventionError
from crosspatch.graph import ALL
from crosspatch.metrics import DEFAULT, Metric
from crosspatch.model import Edit, FromRun, Model, record
from crosspatch.patching.experiment import Experiment
from crosspatch.patching.plan import Cell, plan_cells
from crosspatch.patching.positions import END
from crosspatch.patching.sources import Bound, OtherRun, Source
from crosspatch.patching.sweep import ROWS_PER_BLOCK, Progress, Setup, set_up
from crosspatch.results import Checkpoint, Finding, statistics
from crosspatch.results.evidence import ALPHA, MIN_EFFECT
from crosspatch.tasks import Task
from crosspatch.tasks.tokenize import TokenizedTask


@dataclass
class Conditional:
    """Effects of parts before and after others were ablated (noising: the ablated value goes into the clean run).

    Attributes:
        frame: one row per removed set and part. `removed` and `part` name them; `alone`, `after`, `growth` are mean
            effects
            in the metric's unit with `_low` and `_high`; `p`, `q` test the growth; `repair` is the share of the removed
            set's full effect that this part makes up for; `joint` is the effect of removing both, `joint_over_sum` that
            effect over the sum of the two single ones; `backup` says that the growth is significant and not small.
        alone, after: per-example effects `[row, example]`.
        removed: mean effect of each removed set by itself.
        metric: name of the metric.
        findings: in plain words.
    """

    frame: pd.DataFrame
    alone: Float[np.ndarray, "row example"]
    after: Float[np.ndarray, "row example"]
    removed: dict[str, float]
    metric: str
    findings: list[Finding]

    @property
    def backups(self) -> pd.DataFrame:
        """Rows that are backups, the largest growth first."""
        found = self.frame[self.frame["backup"]]
        return found.loc[found["growth"].abs().sort_values(ascending=False, kind="stable").index]


def conditional(
    model: Model,
    task: Task | TokenizedTask,
    primaries: Sequence[str | Sequence[str]],
    others: str | Sequence[str] = "a*.h*@END, m*@END",
    *,
    source: Source = OtherRun(),  # noqa: B008 (frozen and empty)
    metrics: str | Metric | Sequence[str | Metric] = DEFAULT,
    k: float = 2.0,
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Conditional:
    """Ablate each part with and without the primary parts ablated first.

    Args:
        primaries: addresses, or sets of addresses that are removed together.
        others: patterns or addresses of the parts whose effects may grow.
        model, task, source, metrics, k, seed, budget_mib, progress, force: see `patch`. The first metric is used.

    Raises:
        AddressError, InterventionError: a part that does not exist, or no primaries.
    """
    setup = set_up(
        model, task, direction="noise", source=source, metrics=metrics, k=k, force=force, budget_mib=budget_mib
    )
    setup.seed, setup.progress = seed, progress
    return run_conditional(setup, primaries, others)


def run_conditional(
    setup: Setup,
    primaries: Sequence[str | Sequence[str]],
    others: str | Sequence[str],
    stage: str = "conditional",
    *,
    near: bool = False,
    out: str | Path | None = None,
) -> Conditional:
    """`conditional` on a setup that exists.

    Args:
        near: try with each set only the parts at its own positions and at the end, where its work is done or read.
        out: folder for what is finished, from which a stopped run goes on; `remove_parts` clears it.
    """
    experiment = setup.experiment
    sets = [_cells(setup, [group] if isinstance(group, str) else list(group)) for group in primaries]
    if not sets:
        raise InterventionError("no primary parts", where="conditional", fix="name at least one, e.g. ['a9.h6@END']")
    parts = plan_cells(experiment.model.shape, experiment.tokenized, others, [ALL])
    sites = dict.fromkeys(site for cell in itertools.chain(*sets, parts) for site in cell.sites)
    bound = setup.source.bind(experiment.setting, list(sites))
    tried = [_tried(group, parts, near) for group in sets]
    made_by = replace(setup.methodology(parts), direction=("noise",), given=tuple(_label(group) for group in sets))
    store = None if out is None else Checkpoint(out, made_by)
    total = len(parts) + sum(1 + len(some) for some in tried)
    work = _Work(setup, bound, stage, total, store, store.finished() if store else {})
    clean = experiment.baseline("clean")[experiment.metrics[0].name]
    values = work.measure([], [[part] for part in parts])
    alone = {_spot(part): statistics.minus(clean, value) for part, value in zip(parts, values, strict=True)}
    names: list[tuple[str, str]] = []
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for group, some in zip(sets, tried, strict=True):
        effects = statistics.minus(clean, work.measure(group, [group, *([*group, part] for part in some)]))
        for part, joint in zip(some, effects[1:], strict=True):
            names.append((_label(group), part.address))
            rows.append((alone[_spot(part)], statistics.minus(joint, effects[0]), effects[0]))
    stacked = np.array(rows).reshape(len(rows), 3, len(clean))
    return _summarise(setup, names, stacked[:, 0], stacked[:, 1], stacked[:, 2])


def _tried(group: Sequence[Cell], parts: Sequence[Cell], near: bool) -> list[Cell]:
    """The parts that a set is tried with: all that are not in it."""
    taken = {_spot(cell) for cell in group}
    places = {*(cell.position for cell in group), END}
    return [part for part in parts if _spot(part) not in taken and (not near or part.position in places)]


def _cells(setup: Setup, addresses: Sequence[str]) -> list[Cell]:
    return plan_cells(setup.experiment.model.shape, setup.experiment.tokenized, addresses, [ALL])


def _spot(cell: Cell) -> tuple[Any, ...]:
    return (cell.sites, cell.position)


def _label(group: Sequence[Cell]) -> str:
    return " + ".join(cell.address for cell in group)


@dataclass
class _Work:
    """Ablates sets of cells block by block, keeping what is finished."""

    setup: Setup
    bound: Bound
    stage: str
    total: int
    store: Checkpoint | None
    finished: dict[str, dict[str, Float[np.ndarray, " example"]]]
    done: int = 0

    def measure(self, removed: Sequence[Cell], jobs: Sequence[Sequence[Cell]]) -> Float[np.ndarray, "job example"]:
        """The first metric when all cells of a job are ablated together; every job begins with those of `removed`."""
        experiment = self.setup.experiment
        metric = experiment.metrics[0].name
        keys = [f"{self.stage} {_label(removed)} | {_label(job[len(removed) :])}" for job in jobs]
        values = np.full((len(jobs), experiment.n_examples), np.nan)
        todo = [i for i, key in enumerate(keys) if key not in self.finished]
        for i, key in enumerate(keys):
            if key in self.finished:
                values[i] = self.finished[key][metric]
        self.done += len(jobs) - len(todo)
        if removed and todo:
            experiment = self._without(removed, [job[-1] for job in jobs])
        size = max(1, ROWS_PER_BLOCK // (len(experiment.owner) * self.setup.source.draws)) if self.store else len(jobs)
        for start in range(0, len(todo), max(size, 1)):
            block = todo[start : start + size]
            plans = [
                (number, example, self._edits(jobs[i], example, draw))
                for number, i in enumerate(block)
                for example in range(len(experiment.owner))
                for draw in range(self.setup.source.draws)
            ]
            measured, _ = experiment.measure_edits("noise", plans, len(block), self._report(len(block)))
            values[block] = measured[metric]
            self.done += len(block)
            if self.store is not None:
                self.store.append([keys[i] for i in block], measured)
        return values

    def _report(self, count: int) -> Callable[[float, float], None]:
        before = self.done

        def report(done: float, total: float) -> None:
            if self.setup.progress is not None:
                self.setup.progress(self.stage, before + count * done / max(total, 1e-9), self.total)

        return report

    def _edits(self, cells: Sequence[Cell], example: int, draw: int) -> tuple[Edit, ...]:
        experiment = self.setup.experiment
        return _merged([e for cell in cells for e in experiment.edits("noise", cell, example, self.bound, draw)])

    def _without(self, removed: Sequence[Cell], parts: Sequence[Cell]) -> Experiment:
        """The experiment with `removed` ablated in its clean run already, so that a patched run begins at its part.

        The edits of `removed` stay in every job: the executor drops those whose value is there, and makes those again
        that come after the part. It sees that only of values from a run; the same edit must also be there in every
        draw.
        """
        experiment = self.setup.experiment
        clean = experiment.runs["clean"]
        edits = [self._edits(removed, example, 0) for example in range(len(clean))]
        if self.setup.source.draws > 1 or not all(isinstance(e.value, FromRun) for made in edits for e in made):
            return experiment
        base = record(
            experiment.model,
            clean.tokens,
            read=clean.read,
            edits=edits,
            restart_at=dict.fromkeys(site for cell in (*removed, *parts) for site in cell.sites),
            budget_mib=experiment.budget_mib,
        )
        return replace(experiment, runs={**experiment.runs, "clean": base})


def _merged(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Of edits of one site at overlapping positions (`a5.h3` and `a5.h3@END`), which are refused, only the first."""
    seen: set[tuple[Any, int]] = set()
    kept = []
    for edit in edits:
        spots = {(edit.site, p) for p in edit.positions}
        if not spots & seen:
            kept.append(edit)
            seen |= spots
    return tuple(kept)


def _summarise(
    setup: Setup,
    names: Sequence[tuple[str, str]],
    alone: Float[np.ndarray, "row example"],
    after: Float[np.ndarray, "row example"],
    primary: Float[np.ndarray, "row example"],
) -> Conditional:
    experiment = setup.experiment
    metric = experiment.metrics[0].name
    clusters = experiment.clusters
    gap = experiment.baseline("clean")[metric] - experiment.baseline("corrupt")[metric]
    scale = abs(float(np.nanmean(gap)))
    sampler = statistics.resampler(experiment.n_examples, clusters, seed=setup.seed)
    growth = statistics.minus(after, alone)
    frame = pd.DataFrame(names, columns=["removed", "part"])
    for name, values in (("alone", alone), ("after", after), ("growth", growth)):
        interval = statistics.bootstrap_mean(values, sampler)
        frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = values.mean(axis=1), interval.low, interval.high
    frame["p"] = statistics.sign_flip_p(growth, clusters, seed=setup.seed)
    frame["q"] = statistics.benjamini_hochberg(frame["p"].to_numpy())
    removed = primary.mean(axis=1)
    full = removed + frame["growth"].to_numpy()
    frame["joint"] = removed + frame["after"].to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        total = removed + frame["alone"].to_numpy()
        floor = MIN_EFFECT * scale
        frame["repair"] = np.where(
            (frame["growth"] * np.sign(full) > 0) & (np.abs(full) > floor), frame["growth"] / full, np.nan
        )
        frame["joint_over_sum"] = np.where(np.abs(total) > floor, frame["joint"] / total, np.inf)
    reach = statistics.smallest_p(_units(experiment.n_examples, clusters)) * max(len(frame), 1) <= ALPHA
    sure = frame["q"] <= ALPHA if reach else (frame["growth_low"] > 0) | (frame["growth_high"] < 0)
    same_way = frame["growth"] * np.sign(np.nanmean(gap)) > MIN_EFFECT * scale
    frame["backup"] = sure & same_way
    effects = dict(zip(frame["removed"], removed.tolist(), strict=True))
    return Conditional(frame, alone, after, effects, metric, _findings(frame, metric))


def _units(n_examples: int, clusters: Sequence[str]) -> int:
    return int(statistics.flip_units(n_examples, clusters).max(initial=-1)) + 1


def _findings(frame: pd.DataFrame, metric: str) -> list[Finding]:
    found = []
    for removed, rows in frame[frame["backup"]].groupby("removed", sort=False):
        first = rows.sort_values("growth", key=abs, ascending=False)
        names = ", ".join(f"{r.part} ({r.alone:+.2f} to {r.after:+.2f})" for r in first.head(4).itertuples())
        best = first.iloc[0]
        repair = (
            f" {best['part']} alone makes up for {best['repair']:.0%} of it." if np.isfinite(best["repair"]) else ""
        )
        found.append(
            Finding(
                "backup",
                "note",
                f"With {removed} removed, {len(rows)} part{'s' if len(rows) != 1 else ''} matter more in {metric}: "
                f"{names}."
                f"{repair} The effect of {removed} alone is smaller than what it does.",
                [int(row) for row in first.index],
                "Backups take over",
                "count primary and backups together",
            )
        )
    if not found:
        found.append(
            Finding(
                "no-backup",
                "note",
                f"No part that was tried gains a significant effect in {metric} when the primary parts are removed.",
                title="No backup was found",
                fix="backups at other positions or of other kinds were not tried",
            )
        )
    return found
