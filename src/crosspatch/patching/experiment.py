"""A task on a model, ready to be patched: its two runs, its targets, and one way to measure rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float

from crosspatch.errors import MetricError
from crosspatch.graph import Site
from crosspatch.metrics import Metric, Targets, evaluate, needed_columns, needs_all_positions
from crosspatch.model import Cost, Edit, Model, Readout, Row, Run, record, replay
from crosspatch.model.plan import restart_keys
from crosspatch.model.replay import ensure
from crosspatch.model.run import store_key
from crosspatch.patching.plan import Cell
from crosspatch.patching.positions import SIDES, Side, Spots
from crosspatch.patching.sources import BASE, Bound, Direction, Setting
from crosspatch.tasks.align import PositionMap, align
from crosspatch.tasks.pairs import Task
from crosspatch.tasks.tokenize import TokenizedTask

Progress = Callable[[float, float], None]
Values = dict[str, Float[np.ndarray, "row example"]]


@dataclass
class Experiment:
    """What a sweep works on.

    Attributes:
        model, tokenized, metrics: what was asked.
        runs: the clean and the corrupt run.
        targets: what the metrics compare with.
        spots: where positions lie in each example.
        owner: for each example of the runs the example of the task that it belongs to. They differ only where an
            example is run several times, with several draws of noise.
        task: the task as it was asked for, each example once.
        budget_mib: memory for patched runs in flight; see `patch`.
    """

    model: Model
    tokenized: TokenizedTask
    metrics: tuple[Metric, ...]
    runs: dict[Side, Run]
    targets: Targets
    spots: Spots
    owner: list[int]
    task: Task
    budget_mib: float | None = None
    _baselines: dict[Side, dict[str, Float[np.ndarray, " example"]]] = field(default_factory=dict, repr=False)

    @property
    def n_examples(self) -> int:
        return max(self.owner) + 1

    @property
    def clusters(self) -> list[str]:
        """Template of each example of the task."""
        first = {owner: example for example, owner in reversed(list(enumerate(self.owner)))}
        return [self.tokenized.clusters[first[i]] for i in range(self.n_examples)]

    @property
    def setting(self) -> Setting:
        return Setting(self.model, self.tokenized, self.runs, self.budget_mib)

    def keep(self, sites: Iterable[Site]) -> None:
        """Record in one pass per run what patches at these sites need, so that nothing is recorded piece by piece."""
        shape = self.model.shape
        keys = set()
        for site in sites:
            layer, kind = store_key(site, shape.n_layers)
            keys |= {(layer, kind)} | restart_keys(layer, kind, shape.parallel)
            keys |= {(at, part) for at in range(layer, shape.n_layers) for part in ("k", "v")}
        for run in self.runs.values():
            states = run.hidden  # a second pass gives the same logits up to rounding; rows that change nothing must
            ensure(run, keys)  # have exactly those of the baseline
            run.hidden = states

    def baseline(self, side: Side) -> dict[str, Float[np.ndarray, " example"]]:
        """The metrics of an unpatched run, per example of the task; measured once."""
        if side not in self._baselines:
            tally = _Tally(self, 1)
            rows = [Row(example, ()) for example in range(len(self.owner))]
            tally.run(self.runs[side], rows, [0] * len(rows))
            self._baselines[side] = {name: values[0] for name, values in tally.means().items()}
        return self._baselines[side]

    def measure(
        self,
        direction: Direction,
        cells: Sequence[Cell],
        source: Bound,
        draws: int = 1,
        progress: Progress | None = None,
    ) -> tuple[Values, Cost]:
        """The metrics of the patched run for every cell and example; draws are averaged.

        Returns:
            for each metric `[cell, example]` in the metric's own unit, and what it cost.
        """
        plans = [
            (index, example, self.edits(direction, cell, example, source, draw))
            for index, cell in enumerate(cells)
            for example in range(len(self.owner))
            for draw in range(draws)
        ]
        return self.measure_edits(direction, plans, len(cells), progress)

    def measure_edits(
        self,
        direction: Direction,
        plans: Sequence[tuple[int, int, tuple[Edit, ...]]],
        n_cells: int,
        progress: Progress | None = None,
    ) -> tuple[Values, Cost]:
        """As `measure`, from (cell, example, edits)."""
        tally = _Tally(self, n_cells)
        rows = [Row(example, edits) for _, example, edits in plans]
        cost = tally.run(self.runs[BASE[direction]], rows, [cell for cell, _, _ in plans], progress)
        return tally.means(), cost

    def edits(self, direction: Direction, cell: Cell, example: int, source: Bound, draw: int = 0) -> tuple[Edit, ...]:
        """The edits of one cell in one example."""
        spot = self.spots.spot(BASE[direction], example, cell.position)
        made = (source.edit(direction, site, example, spot, draw) for site in cell.sites)
        return tuple(edit for edit in made if edit is not None)


def prepare(
    model: Model,
    tokenized: TokenizedTask,
    metrics: Sequence[Metric],
    sites: Iterable[Site] = (),
    *,
    alignment: PositionMap | None = None,
    corrupt_edits: Sequence[Sequence[Edit]] = (),
    owner: Sequence[int] | None = None,
    budget_mib: float | None = None,
) -> Experiment:
    """Run both prompts of every pair once, keeping what patches at `sites` need.

    Raises:
        MetricError: the task lacks what a metric needs.
    """
    sites = tuple(sites)
    _check_lengths(tokenized, metrics)
    every = needs_all_positions(metrics)
    runs: dict[Side, Run] = {}
    for side in SIDES:
        edits = corrupt_edits if side == "corrupt" else ()
        ids = tokenized.ids(side)
        read = [range(len(prompt)) for prompt in ids] if every else None
        runs[side] = record(model, ids, sites, read=read, edits=edits, restart_at=sites, budget_mib=budget_mib)
    targets = Targets.of(tokenized)
    wanted = {metric.reference for metric in metrics if metric.reference}
    if wanted:
        logits = {side: _answer_logits(runs[side]) if side in wanted else None for side in SIDES}
        targets = replace(targets, clean_logits=logits["clean"], corrupt_logits=logits["corrupt"])
    for metric in metrics:
        metric.check(targets)
    return Experiment(
        model,
        tokenized,
        tuple(metrics),
        runs,
        targets,
        Spots(tokenized, alignment or align(tokenized)),
        list(range(len(tokenized))) if owner is None else list(owner),
        tokenized.task,
        budget_mib,
    )


def _answer_logits(run: Run) -> torch.Tensor:
    """Logits at the last read position of each example, `[example, vocab]`."""
    last = torch.tensor(run.read_offset[1:]) - 1
    return run.model.unembed(run.hidden[last.to(run.hidden.device)])


def _check_lengths(tokenized: TokenizedTask, metrics: Sequence[Metric]) -> None:
    if not needs_all_positions(metrics):
        return
    pairs = enumerate(zip(tokenized.clean, tokenized.corrupt, strict=True))
    unequal = [i for i, (clean, corrupt) in pairs if len(clean) != len(corrupt)]
    if unequal:
        i = unequal[0]
        name = next(metric.name for metric in metrics if metric.reads == "all")
        raise MetricError(
            f"{len(unequal)} pairs differ in length (example {i}: {len(tokenized.clean[i])} and "
            f"{len(tokenized.corrupt[i])} tokens), so that positions of the text have no partner",
            where=f"metric {name!r}",
            fix="use pairs of equal length, or metrics that read the answer only",
        )


class _Tally:
    """Collects metric values chunk by chunk and averages them per cell and example of the task."""

    def __init__(self, experiment: Experiment, n_cells: int) -> None:
        self.experiment = experiment
        shape = (n_cells, experiment.n_examples)
        self.total = {metric.name: np.zeros(shape) for metric in experiment.metrics}
        self.count = np.zeros(shape)

    def run(self, base: Run, rows: Sequence[Row], cells: Sequence[int], progress: Progress | None = None) -> Cost:
        owner = np.array([self.experiment.owner[row.example] for row in rows], dtype=int)
        cell = np.array(cells, dtype=int)

        def on_read(readout: Readout) -> None:
            found, values = evaluate(self.experiment.metrics, readout, self.experiment.targets)
            at = (cell[found.cpu().numpy()], owner[found.cpu().numpy()])
            np.add.at(self.count, at, 1.0)
            for name, value in values.items():
                np.add.at(self.total[name], at, value.double().cpu().numpy())

        columns = needed_columns(self.experiment.metrics, self.experiment.targets)
        return replay(
            base,
            rows,
            on_read,
            columns=None if columns is None else columns.tolist(),
            budget_mib=self.experiment.budget_mib,
            progress=progress,
        )

    def means(self) -> Values:
        with np.errstate(invalid="ignore"):
            return {name: total / self.count for name, total in self.total.items()}
