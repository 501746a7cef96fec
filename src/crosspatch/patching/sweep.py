"""Exact activation patching: one number per site, position, direction, metric and example.

`denoise` puts the clean run's value into the corrupt run (does it restore the behaviour?); `noise` puts the corrupt
run's value into the clean run (does it break it?). Heimersheim & Nanda 2024 (arXiv 2404.15255) say why both are needed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from crosspatch.errors import InterventionError, TaskError
from crosspatch.graph import Address, Site
from crosspatch.metrics import DEFAULT, Metric, resolve_metrics
from crosspatch.model import Cost, Model
from crosspatch.patching import describe
from crosspatch.patching.controls import RANDOM_DIRECTION, RandomDirection, random_directions, random_sites
from crosspatch.patching.diagnose import diagnose
from crosspatch.patching.experiment import Experiment, Values, prepare
from crosspatch.patching.plan import Cell, Positions, plan_cells
from crosspatch.patching.sources import DIRECTIONS, Bound, Direction, OtherRun, Source, as_source
from crosspatch.results import Checkpoint, Methodology, SweepResult, load_result
from crosspatch.results.methodology import Mode
from crosspatch.tasks import GateReport, Task, gates
from crosspatch.tasks.tokenize import TokenizedTask

Progress = Callable[[str, float, float], None]
"""Called with (stage, work done, work in all)."""

CONFIRMATORY = ("logit_diff", "log_prob", "prob", "kl", "accuracy", "rank")
"""Metrics that a confirmatory run always computes: about a true claim they agree (rule A1 of the method)."""
ROWS_PER_BLOCK = 4096
"""Patched forwards between two writes of a checkpoint."""


@dataclass
class Setup:
    """Everything about sweeps on one task but their cells; shared by the levels of a drill.

    Attributes:
        experiment: the two runs, ready to be patched.
        source: where inserted values come from.
        directions: which directions to run.
        gates: what the gates said; None where they do not apply.
        mode, split, seed, random_control, window: see `patch`.
        overruled: a gate of another kind failed, and the user went on.
        progress: see `Progress`.
    """

    experiment: Experiment
    source: Source
    directions: tuple[Direction, ...]
    gates: GateReport | None = None
    mode: Mode = "exploratory"
    split: str = "all"
    seed: int = 0
    random_control: bool = True
    window: int = 1
    progress: Progress | None = None
    overruled: bool = False

    def methodology(self, cells: Sequence[Cell]) -> Methodology:
        """How a sweep over these cells is made."""
        return describe.methodology(
            self.experiment.model,
            self.experiment.task,
            self.experiment.metrics,
            cells,
            self.source,
            self.directions,
            n_examples=self.experiment.n_examples,
            seed=self.seed,
            window=self.window,
            split=self.split,
            mode=self.mode,
            forced=self.overruled or (self.gates is not None and self.gates.forced),
        )


def patch(
    model: Model,
    task: Task | TokenizedTask,
    sites: str | Iterable[str | Site | Address] = "r*",
    *,
    positions: Positions = None,
    direction: Literal["both", "denoise", "noise"] = "both",
    source: Source = OtherRun(),  # noqa: B008 (frozen and empty)
    metrics: str | Metric | Iterable[str | Metric] = DEFAULT,
    window: int = 1,
    mode: Mode = "exploratory",
    split: str = "all",
    k: float = 2.0,
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    out: str | Path | None = None,
    force: bool = False,
    random_control: bool = True,
) -> SweepResult:
    """Patch every site at every position, one at a time, in both directions.

    >>> result = patch(model, task, "a*.h*@END")          # doctest: +SKIP
    >>> result.top(10)                                     # doctest: +SKIP

    Args:
        model: from `crosspatch.load`.
        task: prompt pairs.
        sites: patterns such as `"r*"`, `"a*.h*@END, m*@subject"`, or addresses. A name without `@` is patched at each
            of
            `positions`; `@*` means all tokens at once.
        positions: "roles", "tokens", "all", or a list; default: the task's roles, or tokens where it has none.
        direction: "both" runs every direction that makes sense for the source (two for the paired prompt, noise for
            ablations).
        source: where inserted values come from; see `patching.sources`.
        metrics: names, metrics or functions; the first one ranks the rows. Several cost no more than one.
        window: number of consecutive layers patched together.
        mode: "exploratory" looks for candidates; "confirmatory" tests a fixed list of addresses on many metrics.
        split: which part of the task this is, for the record ("train", "held-out").
        k: the gate asks that clean beats corrupt by `k` standard errors.
        seed: of random controls and resampling.
        budget_mib: MiB for the patched runs in flight together: their activations, keys, values and logits. The
            model's weights and the two recorded runs (`Run.nbytes`: the patched activations, and keys and values from
            the first patched layer on) come on top. Default: half of what is free on a GPU, 64 on a CPU.
        progress: called with (stage, done, total).
        out: folder for the result. What is finished is kept there, and a stopped sweep goes on from it.
        force: go on when a gate fails; the result is marked.
        random_control: add rows of random controls (see `patching.controls`).

    Returns:
        raw metric values per row and example, with effects, intervals and labels in `.frame()`, and findings.

    Raises:
        GateError: the experiment would mislead; says which examples and how to fix it.
        AddressError, InterventionError, MetricError, TaskError, ModelError: input that does not fit.
    """
    tokenized = as_tokenized(model, task)
    if mode == "confirmatory":
        metrics = _confirmatory(sites, metrics)
    model.require_eval()
    report = gates(model, tokenized, resolve_metrics(metrics)[0], k).require(force)
    cells = plan_cells(model.shape, tokenized, sites, positions, window)
    setup = set_up(
        model,
        tokenized,
        sites=dict.fromkeys(site for cell in cells for site in cell.sites),
        direction=direction,
        source=source,
        metrics=metrics,
        report=report,
        budget_mib=budget_mib,
    )
    setup.mode, setup.split, setup.seed, setup.window = mode, split, seed, window
    setup.random_control, setup.progress = random_control, progress
    return sweep(setup, cells, out=out)


def set_up(
    model: Model,
    task: Task | TokenizedTask,
    *,
    sites: Iterable[Site] = (),
    direction: Literal["both", "denoise", "noise"] = "both",
    source: Source = OtherRun(),  # noqa: B008 (frozen and empty)
    metrics: str | Metric | Iterable[str | Metric] = DEFAULT,
    k: float = 2.0,
    force: bool = False,
    report: GateReport | None = None,
    budget_mib: float | None = None,
) -> Setup:
    """Check everything, open the gates, and run both prompts of every pair: what sweeps on one task share.

    Args:
        sites: what is going to be patched, where that is known; everything else is recorded when it is asked for.
        report: of the gates, where they have been passed already.
        direction, source, metrics, k, force, budget_mib: see `patch`.

    Raises:
        GateError: the experiment would mislead.
        InterventionError, MetricError, TaskError, ModelError: input that does not fit.
    """
    model.require_eval()
    tokenized = as_tokenized(model, task)
    source = as_source(source)
    directions = as_directions(direction, source)
    chosen = resolve_metrics(metrics)
    if report is None:
        report = gates(model, tokenized, chosen[0], k).require(force)
    experiment = prepare(model, tokenized, chosen, sites, alignment=report.positions, budget_mib=budget_mib)
    return Setup(experiment, source, directions, report)


def sweep(setup: Setup, cells: Sequence[Cell], *, stage: str = "", out: str | Path | None = None) -> SweepResult:
    """Measure cells, add random controls, diagnose, and save where asked.

    Args:
        setup: what they are measured on.
        cells: the rows.
        stage: what progress is reported as.
        out: folder; a finished result of the same methodology and rows is read from there, an unfinished one goes on.
    """
    started = time.monotonic()
    controls = random_sites(cells, setup.experiment.model.shape, setup.seed) if setup.random_control else []
    cells = [*cells, *controls]
    made_by = setup.methodology(cells)
    if out is not None and (saved := _saved(Path(out), made_by, cells)) is not None:
        return saved
    work = _Work(setup, Checkpoint(out, made_by) if out is not None else None, stage)
    sites = list(dict.fromkeys(site for cell in cells for site in cell.sites))
    setup.experiment.keep(sites)
    bound = setup.source.bind(setup.experiment.setting, sites)
    values = {direction: work.measure(direction, cells, bound) for direction in setup.directions}
    baselines = {side: setup.experiment.baseline(side) for side in ("clean", "corrupt")}
    if setup.random_control:
        strength = _strength(values, baselines, setup.experiment.metrics[0].name)
        pushed = random_directions(cells, strength)
        cells += pushed
        for direction in setup.directions:
            extra = work.measure(direction, pushed, RandomDirection(bound, setup.experiment.setting, setup.seed))
            values[direction] = {name: np.concatenate([v, extra[name]]) for name, v in values[direction].items()}
    rows, values = _by_corruption(setup.experiment, cells, values)
    result = SweepResult(
        rows=rows,
        denoise=values.get("denoise", {}),
        noise=values.get("noise", {}),
        clean=baselines["clean"],
        corrupt=baselines["corrupt"],
        clusters=setup.experiment.clusters,
        methodology=made_by,
        cost=work.summary(time.monotonic() - started),
    )
    result.findings = diagnose(
        result,
        metrics=setup.experiment.metrics,
        task=setup.experiment.task,
        gates=setup.gates,
        source=setup.source,
    )
    if out is not None:
        result.save(out)
        if work.store is not None:
            work.store.clear()
    return result


@dataclass
class _Work:
    """Runs cells block by block, keeping what is finished."""

    setup: Setup
    store: Checkpoint | None
    stage: str
    cost: Cost = field(default_factory=Cost)
    resumed: int = 0

    def measure(self, direction: Direction, cells: Sequence[Cell], bound: Bound) -> Values:
        """`[cell, example]` for every metric."""
        experiment, draws = self.setup.experiment, self.setup.source.draws
        names = [metric.name for metric in experiment.metrics]
        keys = [f"{direction} {cell.address} {cell.control}".strip() for cell in cells]
        values = {name: np.full((len(cells), experiment.n_examples), np.nan) for name in names}
        finished = self.store.finished() if self.store else {}
        todo = [i for i, key in enumerate(keys) if key not in finished]
        for i, key in enumerate(keys):
            for name in names if key in finished else ():
                values[name][i] = finished[key][name]
        self.resumed += len(cells) - len(todo)
        stage = f"{self.stage} {direction}".strip() + (
            " controls" if cells and cells[0].control == RANDOM_DIRECTION else ""
        )
        size = max(1, ROWS_PER_BLOCK // (len(experiment.owner) * draws)) if self.store else max(1, len(todo))
        for start in range(0, len(todo), size):
            block = todo[start : start + size]

            def report(done: float, total: float, start: int = start, count: int = len(block)) -> None:
                if self.setup.progress is not None:
                    self.setup.progress(stage, start + count * done / max(total, 1e-9), len(todo))

            measured, cost = experiment.measure(direction, [cells[i] for i in block], bound, draws, report)
            self.cost = self.cost + cost
            for name, value in measured.items():
                values[name][block] = value
            if self.store is not None:
                self.store.append([keys[i] for i in block], measured)
        return values

    def summary(self, seconds: float) -> dict[str, float]:
        """What the sweep took. A forward-equivalent is one full forward pass of an average prompt."""
        model, tokenized = self.setup.experiment.model, self.setup.experiment.tokenized
        one = model.shape.n_layers * float(np.mean([len(ids) for ids in tokenized.clean]))
        return {
            "seconds": seconds,
            "patched_forwards": float(self.cost.rows),
            "unchanged_forwards": float(self.cost.unchanged_rows),
            "forward_equivalents": self.cost.token_layers / one,
            "resumed_rows": float(self.resumed),
        }


def as_tokenized(model: Model, task: Task | TokenizedTask) -> TokenizedTask:
    """The task in this model's tokens.

    Raises:
        TaskError: not a task, or sides of different numbers of prompts.
    """
    if isinstance(task, Task):
        return task.tokenize(model.tokenizer)
    if not isinstance(task, TokenizedTask):
        raise TaskError(
            f"{type(task).__name__} is not a task",
            where="patch",
            fix="make one with crosspatch.tasks.make_task('ioi', tokenizer=model.tokenizer), read_task(file), or "
            "Task(...)",
        )
    sizes = {name: len(getattr(task, name)) for name in ("clean", "corrupt", "answers", "wrong")}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in sizes.items())
        raise TaskError(
            f"the sides do not match: {listed}", where=f"task {task.task.name!r}", fix="give one of each per pair"
        )
    return task


def as_directions(direction: str, source: Source) -> tuple[Direction, ...]:
    """The directions to run.

    Raises:
        InterventionError: unknown, or without a meaning for the source.
    """
    if direction == "both":
        return source.directions
    if direction not in DIRECTIONS:
        raise InterventionError(f"direction={direction!r}", where="patch", fix="use 'both', 'denoise' or 'noise'")
    one: Direction = "denoise" if direction == "denoise" else "noise"
    if not source.allows(one):
        raise InterventionError(
            f"denoising inserts a clean value, and {source.describe()['source']} is none",
            where="direction='denoise'",
            fix="use direction='noise', or a source that is clean: OtherRun(), Mean(over='clean'), "
            "Resample(over='clean')",
        )
    return (one,)


def _confirmatory(sites: object, metrics: object) -> list[str | Metric]:
    """Metrics of a confirmatory run; refuses to search.

    Raises:
        InterventionError: patterns instead of a fixed list of addresses.
    """
    texts = [sites] if isinstance(sites, str) else [s for s in sites if isinstance(s, str)]  # type: ignore[attr-defined]
    globs = [text for text in texts if re.search(r"[*?\[]", text.replace("@*", ""))]
    if globs:
        raise InterventionError(
            f"{globs[0]!r} is a pattern, and a confirmatory run tests a list that was fixed before",
            where="mode='confirmatory'",
            fix="name the addresses that an exploratory run on other pairs found, or use mode='exploratory'",
        )
    asked = resolve_metrics(metrics, companions=False)  # type: ignore[arg-type]
    return [*asked, *(name for name in CONFIRMATORY if name not in {metric.name for metric in asked})]


def _strength(values: dict[Direction, Values], baselines: dict[str, dict[str, np.ndarray]], metric: str) -> list[float]:
    """Largest absolute mean effect of each cell."""
    base = {"denoise": baselines["corrupt"][metric], "noise": baselines["clean"][metric]}
    means = [np.abs((value[metric] - base[direction]).mean(axis=1)) for direction, value in values.items()]
    return np.max(means, axis=0).tolist()


def _by_corruption(
    experiment: Experiment, cells: Sequence[Cell], values: dict[Direction, Values]
) -> tuple[pd.DataFrame, dict[Direction, Values]]:
    """One row per cell and corruption; in a row of one corruption the examples of the others count as not run."""
    pairs = experiment.tokenized.task.pairs
    corruption = {owner: pairs[i].corruption for i, owner in enumerate(experiment.owner)}
    names = list(dict.fromkeys(corruption.values()))
    if len(names) == 1:
        return describe.table(cells, names[0]), values
    rows = pd.concat([describe.table(cells, name) for name in names], ignore_index=True)
    masks = [np.array([corruption[i] == name for i in range(experiment.n_examples)]) for name in names]
    split: dict[Direction, Values] = {
        direction: {m: np.concatenate([np.where(mask, v, np.nan) for mask in masks]) for m, v in metrics.items()}
        for direction, metrics in values.items()
    }
    return rows, split


def _saved(folder: Path, made_by: Methodology, cells: Sequence[Cell]) -> SweepResult | None:
    """A finished result of the same methodology and rows, if the folder holds one."""
    if not (folder / "result.json").exists():
        return None
    result = load_result(folder)
    wanted = {(cell.address, cell.control) for cell in cells}
    found = set(zip(result.rows["address"], result.rows["control"], strict=True))
    found = {(address, control) for address, control in found if control != RANDOM_DIRECTION}
    return result if result.methodology.hash() == made_by.hash() and wanted == found else None
