"""The main job end to end: gates, drill in both directions, backups, held-out confirmation, attention, diagnosis."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crosspatch.errors import TaskError
from crosspatch.graph import ALL, Site, parse_address
from crosspatch.metrics import DEFAULT, Metric, resolve_metrics
from crosspatch.model import Model
from crosspatch.patching.conditional import Conditional, run_conditional
from crosspatch.patching.drill import PLAN, Drill, check_plan, run_drill
from crosspatch.patching.experiment import Experiment
from crosspatch.patching.localization import Localization, merge_findings
from crosspatch.patching.plan import plan_cells
from crosspatch.patching.positions import END
from crosspatch.patching.sources import OtherRun, Source
from crosspatch.patching.sweep import CONFIRMATORY, Progress, Setup, set_up, sweep
from crosspatch.results import DIRECTIONS, Finding, SweepResult
from crosspatch.results.checkpoint import remove_parts
from crosspatch.results.evidence import ALPHA, MIN_EFFECT, matters
from crosspatch.tasks import Task

PRIMARIES = 3
"""Parts whose removal is studied, one by one and together."""
BROKEN = 0.95
"""Share of the gap from which on the removal of a part counts as having broken everything."""
CONFIRMED = 5
"""Rows per level that are run again on held-out pairs."""
SHOWN_HEADS, SHOWN_EXAMPLES = 6, 3
SMALLEST_HELD_OUT = 4
_NO_TAKEOVER = Finding(
    "no-takeover",
    "note",
    f"No part was removed to see what takes over: none matters, or removing it alone breaks {BROKEN:.0%} of the "
    "behaviour.",
    title="No conditional ablation",
)


@dataclass(frozen=True)
class Options:
    """What `localize` was asked; see there."""

    plan: tuple[str, ...]
    top: int
    alpha: float
    min_effect: float
    source: Source
    metrics: tuple[Metric, ...]
    k: float
    seed: int
    budget_mib: float | None
    progress: Progress | None
    force: bool
    random_control: bool

    def set_up(self, model: Model, task: Task, split: str, direction: str = "both") -> Setup:
        """The task on the model, gates passed."""
        setup = set_up(
            model,
            task,
            direction=direction,  # type: ignore[arg-type]
            source=self.source,
            metrics=self.metrics,
            k=self.k,
            force=self.force,
            budget_mib=self.budget_mib,
        )
        setup.split, setup.seed = split, self.seed
        setup.progress, setup.random_control = self.progress, self.random_control
        return setup


def localize(
    model: Model,
    task: Task,
    *,
    out: str | Path | None = None,
    plan: Sequence[str] = PLAN,
    top: int = 16,
    held_out: float = 0.25,
    alpha: float = ALPHA,
    min_effect: float = MIN_EFFECT,
    source: Source = OtherRun(),  # noqa: B008 (frozen and empty)
    metrics: str | Metric | Sequence[str | Metric] = DEFAULT,
    k: float = 2.0,
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    force: bool = False,
    random_control: bool = True,
) -> Localization:
    """Find which parts of a model cause a behaviour.

    1. gates; 2. split into train and held-out pairs; 3. drill on the train pairs, in both directions; 4. remove the top
    parts and see who takes over; 5. run the top rows again on the held-out pairs; 6. attention patterns of the top
    heads.

    Args:
        task: the behaviour; 32 pairs of several templates are a good number.
        out: folder for everything (see `patching.localization`); a stopped run goes on from there.
        held_out: share of the pairs that the drill does not see; 0 = none.
        plan, top, alpha, min_effect: see `drill`.
        budget_mib: MiB for the patched runs in flight together. On top come the weights, the recorded runs (two for
            the search, one while a part is removed, two for the held-out pairs; see `Run.nbytes`) and the result.
        model, source, metrics, k, seed, progress, force, random_control: see `patch`.

    Raises:
        GateError: the experiment would mislead; says which examples and how to fix it.
        AddressError, InterventionError, MetricError, TaskError, ModelError: input that does not fit.
    """
    started = time.monotonic()
    check_plan(plan)
    chosen = resolve_metrics(metrics)
    options = Options(
        tuple(plan), top, alpha, min_effect, source, chosen, k, seed, budget_mib, progress, force, random_control
    )
    train, rest, split_note = _split(task, held_out, seed)
    folder = None if out is None else Path(out)
    setup = options.set_up(model, train, "train" if rest else "all")
    levels = None if folder is None else folder / "levels"
    drilled = run_drill(setup, plan, top=top, alpha=alpha, min_effect=min_effect, out=levels)
    partial = None if folder is None else folder / "conditional"
    found = _remove_top(setup, drilled, partial)
    confirmation, confirmed, said = _confirm(options, model, rest, drilled, folder)
    backups = _placed(found, drilled) if found else [_NO_TAKEOVER]
    findings = merge_findings(drilled.levels, [*split_note, *backups, *said])
    assert setup.gates is not None  # set_up opened them
    result = Localization(
        drill=drilled,
        gates=setup.gates.to_dict(),
        examples=_examples(setup.experiment),
        attention=_attention(setup.experiment, drilled),
        conditional=found.frame if found else pd.DataFrame(),
        removed=found.removed if found else {},
        confirmation=confirmation,
        confirmed=confirmed,
        findings=findings,
        about=_about(model, task, train, rest, options, drilled, time.monotonic() - started),
    )
    if folder is not None:
        result.save_rest(folder)
    if partial is not None and partial.is_dir():
        remove_parts(partial)
        with contextlib.suppress(OSError):  # something of the user's is in it
            partial.rmdir()
    return result


def _split(task: Task, held_out: float, seed: int) -> tuple[Task, Task | None, list[Finding]]:
    """Train and held-out pairs, or everything with a note where there is too little to split."""
    if held_out <= 0:
        return task, None, []
    reason = f"{len(task)} pairs are too few to hold some out"
    try:
        train, rest = task.split(held_out, seed)
        if len(rest) >= SMALLEST_HELD_OUT and len(train) >= SMALLEST_HELD_OUT:
            return train, rest, []
    except TaskError as error:
        reason = error.what
    note = Finding(
        "not-held-out",
        "warning",
        f"Nothing was confirmed on held-out pairs: {reason}. The strongest of many rows look stronger than they are.",
        title="No held-out confirmation",
        fix="use at least 16 pairs that share no prompt",
    )
    return task, None, [note]


def _parts(drilled: Drill) -> list[str]:
    """Addresses of the parts (heads, MLP blocks) that matter and leave something to take over, strongest first."""
    found: list[tuple[float, str]] = []
    for name, kind in (("head", "z"), ("block", "mlp_out")):
        level = drilled.levels.get(name)
        if level is None:
            continue
        frame = level.frame()
        mattering = matters(level, frame)
        chosen = (mattering["denoise"] | mattering["noise"]) & (frame["kind"] == kind).to_numpy()
        chosen &= (frame["noise_norm"] < BROKEN).to_numpy()
        sizes = frame[["denoise_effect", "noise_effect"]].abs().max(axis=1)
        found += [(-float(sizes.iloc[i]), frame["address"].iloc[i]) for i in np.flatnonzero(chosen)]
    return list(dict.fromkeys(address for _, address in sorted(found)))


def _remove_top(setup: Setup, drilled: Drill, out: Path | None) -> Conditional | None:
    """Conditional ablation: the top parts, one by one and together, against all heads and MLPs at their positions."""
    parts = _parts(drilled)[:PRIMARIES]
    if not parts or "noise" not in setup.directions:
        return None
    positions = list(dict.fromkeys([*(str(parse_address(part).position) for part in parts), END]))
    others = ", ".join(f"{kind}@{position}" for position in positions for kind in ("a*.h*", "m*"))
    primaries: list[str | Sequence[str]] = [*parts]
    if len(parts) > 1:
        primaries.append(parts)
    return run_conditional(setup, primaries, others, near=True, out=out)


def _placed(found: Conditional, drilled: Drill) -> list[Finding]:
    """Findings of the conditional ablation with rows of the drill's table, where their parts are in it."""
    addresses = drilled.result.rows["address"]
    parts = [set(found.frame["part"].iloc[finding.rows]) for finding in found.findings]
    return [
        replace(finding, rows=np.flatnonzero(addresses.isin(named)).tolist())
        for finding, named in zip(found.findings, parts, strict=True)
    ]


def _confirm(
    options: Options, model: Model, rest: Task | None, drilled: Drill, folder: Path | None
) -> tuple[SweepResult | None, pd.DataFrame, list[Finding]]:
    """The strongest rows that mattered, on pairs that the drill did not see, with every metric."""
    wanted: dict[str, tuple[SweepResult, int]] = {}
    for level in drilled.levels.values():
        mattering = matters(level, level.frame(), options.alpha, options.min_effect)
        strongest = [i for i in level.top(len(level.rows)).index if mattering["denoise"][i] or mattering["noise"][i]]
        for row in strongest[:CONFIRMED]:
            wanted.setdefault(level.rows["address"].iloc[row], (level, int(row)))
    if rest is None or not wanted:
        return None, pd.DataFrame(), []
    extra = [m for m in resolve_metrics(CONFIRMATORY) if m.name not in {x.name for x in options.metrics}]
    frozen = replace(options, metrics=(*options.metrics, *extra), random_control=False)
    setup = frozen.set_up(model, rest, "held-out")
    setup.mode = "confirmatory"
    cells = plan_cells(model.shape, setup.experiment.tokenized, list(wanted), [ALL])
    result = sweep(setup, cells, stage="held-out", out=None if folder is None else folder / "confirmation")
    table = _compare(wanted, result, options)
    failed = table.loc[~table["held_up"], "address"].tolist()
    text = f"{len(table) - len(failed)} of {len(table)} top rows have the same effects on {len(rest)} held-out pairs"
    note = Finding(
        "held-up" if not failed else "not-held-up",
        "warning" if failed else "note",
        text + (f"; not so {', '.join(failed[:5])}{', ...' if len(failed) > 5 else ''}." if failed else "."),
        title=f"{len(failed)} of {len(table)} rows not confirmed" if failed else "Confirmed on held-out pairs",
        fix="do not claim these rows" if failed else "",
    )
    # The confirmation's own errors count; its other findings repeat what the levels say.
    return result, table, [note, *(replace(f, rows=[]) for f in result.findings if f.severity == "error")]


def _compare(wanted: dict[str, tuple[SweepResult, int]], held: SweepResult, options: Options) -> pd.DataFrame:
    """Train against held-out pairs. `held_up`: every direction that mattered still does, with the same sign."""
    frame = held.frame()
    again = matters(held, frame, options.alpha, options.min_effect)
    rows = []
    for i, address in enumerate(frame["address"]):
        level, row = wanted[address]
        before = level.frame()
        mattered = matters(level, before, options.alpha, options.min_effect)
        line: dict[str, Any] = {"address": address, "granularity": frame["granularity"].iloc[i]}
        kept = []
        for direction in DIRECTIONS:
            was, now = before[f"{direction}_norm"].iloc[row], frame[f"{direction}_norm"].iloc[i]
            line |= {f"{direction}_train": float(was), f"{direction}_held_out": float(now)}
            line |= {f"{direction}_{end}": float(frame[f"{direction}_norm_{end}"].iloc[i]) for end in ("low", "high")}
            if mattered[direction][row]:
                kept.append(bool(again[direction][i]) and np.sign(was) == np.sign(now))
        rows.append(line | {"held_up": all(kept)})
    return pd.DataFrame(rows)


def _examples(experiment: Experiment) -> list[dict[str, Any]]:
    """Every pair in tokens, with the primary metric of both unpatched runs."""
    tokenized, pairs = experiment.tokenized, experiment.task.pairs
    name = experiment.metrics[0].name
    values = {side: experiment.baseline(side)[name] for side in ("clean", "corrupt")}
    return [
        {
            "clean": tokenized.strings(i, "clean"),
            "corrupt": tokenized.strings(i, "corrupt"),
            "spans": {span: list(at) for span, at in tokenized.spans[i].items()},
            "corrupt_spans": {span: list(at) for span, at in tokenized.corrupt_spans[i].items()},
            "answers": list(pair.answers),
            "wrong": list(pair.wrong),
            "template": pair.template,
            "corruption": pair.corruption,
            "clean_value": float(values["clean"][i]),
            "corrupt_value": float(values["corrupt"][i]),
        }
        for i, pair in enumerate(pairs)
    ]


def _attention(experiment: Experiment, drilled: Drill) -> list[dict[str, Any]]:
    """Patterns of the strongest heads on the first examples, both runs; causal rows end at the diagonal."""
    level = drilled.levels.get("head")
    if level is None:
        return []
    sites = dict.fromkeys(parse_address(address).site for address in level.top(4 * SHOWN_HEADS)["address"])
    tokenized, views = experiment.tokenized, []
    for site in list(sites)[:SHOWN_HEADS]:
        pattern = Site("pattern", site.layer, site.index)
        for example in range(min(SHOWN_EXAMPLES, len(tokenized))):
            view: dict[str, Any] = {"head": str(site), "example": example}
            for side, prefix in (("clean", ""), ("corrupt", "corrupt_")):
                rows = experiment.runs[side].value(pattern, example).double().cpu()  # type: ignore[index]
                view[f"{prefix}tokens"] = tokenized.strings(example, side)  # type: ignore[arg-type]
                ends = [i + 1 if experiment.model.shape.causal else len(rows) for i in range(len(rows))]
                seen = [row[:end].tolist() for row, end in zip(rows, ends, strict=True)]
                view[f"{prefix}pattern"] = [[round(x, 4) for x in row] for row in seen]
            view["spans"] = {span: list(at) for span, at in tokenized.spans[example].items()}
            views.append(view)
    return views


def _about(
    model: Model, task: Task, train: Task, rest: Task | None, options: Options, drilled: Drill, seconds: float
) -> dict[str, Any]:
    """Task, model and settings as JSON values."""
    shape = model.shape
    sizes = {name: getattr(shape, name) for name in ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_mlp", "vocab")}
    parameters = sum(parameter.numel() for parameter in model.hf.parameters())
    strongest = []
    for granularity in drilled.levels:
        rows = drilled.top(CONFIRMED, granularity)
        columns = ["address", "granularity", "denoise_norm", "noise_norm", "int", "gate", "q_denoise", "q_noise"]
        strongest += rows[columns].to_dict("records")
    return {
        "metric": options.metrics[0].name,
        "task": {name: getattr(task, name) for name in ("name", "description", "varies", "holds", "provenance", "hash")}
        | {"corruptions": list(task.corruptions), "n_train": len(train), "n_held_out": len(rest) if rest else 0},
        "model": {"name": model.name, "class": type(model.hf).__name__, "parameters": parameters, **sizes},
        "settings": {name: getattr(options, name) for name in ("top", "alpha", "min_effect", "k", "seed", "force")}
        | {
            "plan": list(options.plan),
            "source": options.source.describe(),
            "metrics": [m.name for m in options.metrics],
        },
        "top": strongest,
        "seconds": seconds,
    }
