"""`crosspatch localize`: gates, both-direction drill, diagnosis, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli.circuit_inputs import Settings
from crosspatch.cli.circuit_judge import say_verdict
from crosspatch.cli.circuit_localize import ablation_of, end_with_circuit
from crosspatch.cli.console import Debug, Json, Quiet, bars, mode, result, say
from crosspatch.cli.folders import open_folder
from crosspatch.cli.inputs import (
    Budget,
    Corruption,
    Count,
    Device,
    Dtype,
    ModelName,
    Seed,
    TaskName,
    Threads,
    load_model,
    load_task,
)
from crosspatch.cli.sweeping import Force, Metrics, Out, Overwrite, Resume, Sources, said_of, source_of, top_table

if TYPE_CHECKING:
    from crosspatch.patching import Localization

LEVELS = ("residual", "block", "head", "qkv", "neuron")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("localize", epilog="Example: crosspatch localize --model gpt2 --task ioi --out out/ioi")(localize)


def localize(
    out: Out,
    task: TaskName = "ioi",
    model: ModelName = "embedded",
    corruption: Corruption = None,
    n: Count = 48,
    metric: Metrics = None,
    source: Sources = "paired",
    level: Annotated[
        list[str] | None,
        typer.Option("--level", help=f"Levels to run (repeat): {', '.join(LEVELS)}. Default: all, under what matters."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Parents opened per level, at most.")] = 16,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the pairs kept back to confirm the top parts on.")
    ] = 0.25,
    circuit: Annotated[
        bool, typer.Option("--circuit/--no-circuit", help="End with a circuit of edges and its evaluation.")
    ] = True,
    seed: Seed = 0,
    force: Force = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    budget_mib: Budget = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find which parts of a model cause a behaviour, in both directions, and write a report.

    Checks that the experiment makes sense; patches the residual stream, then blocks, heads, queries, keys, values and
    neurons under what matters; removes the top parts to see what takes over; runs the top rows again on pairs that were
    held out; says what is wrong with the result; finds a circuit of edges and judges it on held-out pairs; and writes
    it all to one folder, with report.html to read first.
    """
    open_folder(out, resume=resume, overwrite=overwrite)
    mode.resumable = True
    loaded = load_model(model, dtype, device, threads)
    chosen = load_task(task, loaded.tokenizer, n, seed, corruption)
    from crosspatch.metrics import DEFAULT
    from crosspatch.patching import localize as run
    from crosspatch.report import write_report
    from crosspatch.report.levels import remarks_of

    with bars() as shown:
        found = run(
            loaded,
            chosen,
            out=out,
            plan=level or LEVELS,
            top=top,
            held_out=held_out,
            source=source_of(source, seed),
            metrics=metric or DEFAULT,
            seed=seed,
            budget_mib=budget_mib,
            progress=shown.stage,
            force=force,
        )
        ended = None
        if circuit:
            asked = Settings(
                task,
                model,
                corruption,
                n,
                (metric or DEFAULT)[0],
                ablation_of(source),
                seed=seed,
                dtype=dtype,
                device=device,
            )
            ended = end_with_circuit(out, loaded, asked, force, resume, budget_mib, shown)
    page = write_report(out)
    result(_as_json(found, str(page)) | {"circuit": None if ended is None else ended.to_json()})
    for name, swept in found.drill.levels.items():
        say(f"{name}\n{top_table(swept, 6)}\n")
    say(f"{said_of(remarks_of(found.drill.result, found.findings))}\n")
    if ended is not None:
        say_verdict(ended)
    say(f"Report: {page}")


def _as_json(found: Localization, page: str) -> dict[str, Any]:
    addresses = found.drill.result.rows["address"]
    findings = [
        {"code": f.code, "severity": f.severity, "title": f.title, "text": f.text, "fix": f.fix,
         "rows": list(dict.fromkeys(addresses.iloc[f.rows]))}
        for f in found.findings
    ]  # fmt: skip
    return {
        "ok": True,
        "report": page,
        "forced": bool(found.gates.get("forced")),
        "gates_ok": bool(found.gates.get("ok")),
        **found.about,
        "findings": findings,
    }
