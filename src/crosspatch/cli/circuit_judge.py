"""`crosspatch circuit evaluate`: does a circuit hold on pairs that it was not found on?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspatch.cli import circuit_files
from crosspatch.cli.circuit_inputs import Given, Settings, circuit_of, pairs_of
from crosspatch.cli.circuit_options import CIRCUIT_HELP, Cut, Out, Random
from crosspatch.cli.console import Bars, Debug, Json, Quiet, bars, result, say, table
from crosspatch.cli.inputs import Budget, Device, Dtype, Threads, load_model
from crosspatch.cli.paths_out import say_report, take
from crosspatch.cli.sweeping import Force, Overwrite
from crosspatch.errors import CircuitError
from crosspatch.report.svg import interval, percent, signed

if TYPE_CHECKING:
    import pandas as pd

    from crosspatch.circuits import Circuit
    from crosspatch.circuits.specificity import Specificity
    from crosspatch.cli.circuit_run import Verdict

_SAVED = "Default: as the folder has it."


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("evaluate", epilog="Example: crosspatch circuit evaluate out/circuit --other out/greater-than")(
        evaluate
    )


def evaluate(
    circuit: Annotated[str, typer.Argument(help=CIRCUIT_HELP)],
    task: Annotated[str | None, typer.Option("--task", "-t", help=f"Task or file of pairs. {_SAVED}")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help=f"The model. {_SAVED}")] = None,
    corruption: Annotated[
        str | None, typer.Option("--corruption", "-c", help=f"How the corrupt prompt is made. {_SAVED}")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help=f"Number of prompt pairs. {_SAVED}")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help=f"The metric, by name. {_SAVED}")] = None,
    ablation: Annotated[Cut | None, typer.Option("--ablation", help=f"What a cut edge carries. {_SAVED}")] = None,
    held_out: Annotated[
        float | None, typer.Option(min=0.1, max=0.9, help=f"Share of the pairs that are judged. {_SAVED}")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=f"Seed of the pairs and of all draws. {_SAVED}")] = None,
    other: Annotated[
        list[Path] | None,
        typer.Option("--other", help="A folder of the same model on another task, for the specificity matrix; repeat."),
    ] = None,
    random: Random = 20,
    tests: Annotated[
        bool, typer.Option("--tests/--no-tests", help="The hypothesis tests of Shi et al., a few hundred runs.")
    ] = True,
    out: Out = None,
    force: Force = False,
    overwrite: Overwrite = False,
    budget_mib: Budget = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Judge a circuit: sufficiency, necessity, random circuits, size frontier, stability, hypothesis tests, verdict.

    A folder of `crosspatch circuit find` is judged on the pairs that it held out, and its report is rebuilt (or a new
    one is written with --out). Any other circuit is judged on a task, with --out for a report.
    """
    from crosspatch.cli import circuit_run as work
    from crosspatch.report.circuits_saved import is_circuit

    source = Path(circuit)
    ours = is_circuit(source)
    if not ours and out is None and overwrite:
        raise CircuitError("--overwrite without --out", where=circuit, fix="give --out a folder")
    before = work.saved_settings(source) if ours else Settings()
    asked = before.changed(
        task=task, model=model, corruption=corruption, n=n, metric=metric, held_out=held_out, seed=seed, dtype=dtype,
        device=device, ablation=None if ablation is None else ablation.value,
    )  # fmt: skip
    if ours and out is None and asked != dataclasses.replace(before, ablation=asked.ablation, device=asked.device):
        fix = "give --out a new folder, so that this one keeps saying what it was found on"
        raise CircuitError("asked for other pairs, metric or model than the folder's", where=circuit, fix=fix)
    take(out, overwrite)
    loaded = load_model(asked.model, asked.dtype, asked.device, threads)
    judged, scores = circuit_of(circuit, loaded.shape)
    found = work.saved_found(source, judged) if ours else work.found_from(judged, scores)
    place = out if out is not None else source if ours else None
    with bars() as shown:
        given = pairs_of(loaded, asked, force, shown.of("constants"))
        verdict = work.judge(
            given, judged, found, asked, n_random=random, tests=tests, budget_mib=budget_mib, shown=shown
        )
        matrix = _specificity(given, judged, asked, other or [], budget_mib, shown) if other else None
    if place is not None:
        if not ours or out is not None:
            work.copy_run(source, place, judged, given, asked, found)
        verdict.save(place)
        if matrix is not None:
            matrix.save(place / "specificity")
        if place == source:
            work.note_command(place)
    page = work.write_page(place)
    shown_matrix = None if matrix is None else work.records(matrix.frame)
    result(
        {"ok": True, "out": str(place) if place else None, "report": page, "forced": given.gates.forced}
        | verdict.to_json()
        | {"specificity": shown_matrix}
    )
    say_verdict(verdict)
    if matrix is not None:
        say(f"{matrix}\n")
    say_report(page)


def _specificity(
    given: Given, circuit: Circuit, asked: Settings, others: list[Path], budget_mib: float | None, shown: Bars
) -> Specificity:
    """The circuit and those of other tasks, each on all tasks."""
    from crosspatch.circuits.specificity import specificity
    from crosspatch.cli import circuit_run as work

    if asked.ablation == "optimal":
        raise CircuitError("learned constants belong to one task", where="--other", fix="use another --ablation")
    claims = {asked.task: (given.setup, circuit)}
    for folder in others:
        own = work.saved_settings(folder)
        if own.task in claims:
            raise CircuitError(f"task {own.task!r} twice", where=str(folder), fix="give folders of different tasks")
        if own.model != asked.model:
            raise CircuitError(f"of another model, {own.model}", where=str(folder), fix=f"find it on {asked.model}")
        if (own.held_out, own.seed) != (asked.held_out, asked.seed):
            what = f"its pairs were divided otherwise (held out {own.held_out:g}, seed {own.seed})"
            fix = f"find it with --held-out {asked.held_out:g} --seed {asked.seed}"
            raise CircuitError(what, where=str(folder), fix=fix)
        claims[own.task] = (
            pairs_of(given.setup.model, own.changed(ablation=asked.ablation), force=True).setup,
            circuit_files.saved_circuit(folder),
        )
    return specificity(
        claims, ablation=asked.ablation, held_out=asked.held_out, seed=asked.seed, budget_mib=budget_mib,  # type: ignore[arg-type]
        progress=shown.of("other tasks"),
    )  # fmt: skip


def say_verdict(verdict: Verdict) -> None:
    """What was found, for a person."""
    row = verdict.evaluation.frame.to_dict("records")[0]
    about = verdict.evaluation.methodology
    say(f"Judged on {len(verdict.evaluation.clean)} pairs ({about['pairs']}), {about['ablation']} ablation")
    cells = []
    for name, of in (("kept by the circuit alone", "faithfulness"), ("lost without the circuit", "necessity")):
        ends = f"[{percent(row[f'{of}_low'])}, {percent(row[f'{of}_high'])}]"
        drawn = f"{percent(row[f'random_{of}_low'])} to {percent(row[f'random_{of}_high'])}"
        cells.append([name, percent(row[of]), ends, drawn, f"{row[f'q_{of}']:.2g}"])
    say(table(cells, ["", "share of the gap", "interval", "random circuits", "q"]))
    if verdict.frontier is not None:
        say("")
        areas = [
            [r["area"], f"{r['value']:.3f}", f"[{r['low']:.3f}, {r['high']:.3f}]",
             f"{r['random_low']:.2f} to {r['random_high']:.2f}"]
            for r in verdict.frontier.areas.to_dict("records")
        ]  # fmt: skip
        say(table(areas, ["area of the size frontier", "value", "interval", "random circuits"]))
    for part in (verdict.stability, verdict.tests):
        if part is not None:
            say(f"\n{part}")
    worst = verdict.worst.to_dict("records")
    if worst:
        first = worst[0]
        say(
            f"\nWorst pair: model {signed(first['clean'])}, circuit {signed(first['circuit'])}: {first['clean_prompt']}"
        )
    say("\nVerdict")
    for finding in (*verdict.evaluation.findings, *verdict.evaluation.verdict()):
        say(str(finding))
    say("")


def measured_table(frame: pd.DataFrame, most: int = 12) -> str:
    """The edges with the largest exact effects."""
    rows = frame.reindex(frame["exact"].abs().sort_values(ascending=False).index).head(most)
    cells = [
        [r["part"], r["drawn"], signed(r["estimate"]), signed(r["exact"]), interval(r["low"], r["high"])]
        for r in rows.to_dict("records")
    ]
    return table(cells, ["edge", "drawn", "estimate", "exact", "interval"])
