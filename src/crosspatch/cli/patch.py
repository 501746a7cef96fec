"""`crosspatch patch`: one sweep over sites of the user's choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
from crosspatch.cli.sweeping import (
    Directions,
    Force,
    Metrics,
    Overwrite,
    Resume,
    Sources,
    Way,
    as_records,
    said_of,
    source_of,
    top_table,
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("patch", epilog="Example: crosspatch patch --task ioi --sites 'a*.h*@END' --out out/heads")(patch)


def patch(
    sites: Annotated[
        str, typer.Option(help="What to patch: r*, 'a*.h*@END', 'm[3-7]@subject', a9.h6.q; commas join.")
    ] = "r*",
    positions: Annotated[
        list[str] | None,
        typer.Option(
            "--position", help="Where, for sites without @: roles, tokens, all, or spans and indices (repeat)."
        ),
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="Consecutive layers patched together.")] = 1,
    task: TaskName = "ioi",
    model: ModelName = "embedded",
    corruption: Corruption = None,
    n: Count = 32,
    metric: Metrics = None,
    direction: Directions = Way.both,
    source: Sources = "paired",
    top: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the result and its report.")] = None,
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
    """Patch every site at every position, one at a time, in both directions, and print the strongest."""
    if out is not None:
        open_folder(out, resume=resume, overwrite=overwrite)
        mode.resumable = True
    loaded = load_model(model, dtype, device, threads)
    chosen = load_task(task, loaded.tokenizer, n, seed, corruption)
    from crosspatch.metrics import DEFAULT
    from crosspatch.patching.sweep import patch as run
    from crosspatch.report.levels import remarks_of

    with bars() as shown:
        swept = run(
            loaded,
            chosen,
            sites,
            positions=_positions(positions),
            direction=direction.value,
            source=source_of(source, seed),
            metrics=metric or DEFAULT,
            window=window,
            seed=seed,
            budget_mib=budget_mib,
            progress=shown.stage,
            out=out,
            force=force,
        )
    page = None
    if out is not None:
        from crosspatch.report import write_report

        page = str(write_report(out))
    result(
        {
            "ok": True,
            "metric": swept.metrics[0],
            "out": str(out) if out else None,
            "report": page,
            "rows": as_records(swept),
        }
    )
    say(top_table(swept, top))
    if swept.findings:
        say(f"\n{said_of(remarks_of(swept))}")
    if page:
        say(f"Report: {page}")


def _positions(given: list[str] | None) -> str | list[int | str] | None:
    """One of the words that `patch` knows, or a list of spans and token indices."""
    if not given:
        return None
    if len(given) == 1 and given[0] in ("roles", "tokens", "all"):
        return given[0]
    return [int(g) if g.lstrip("-").isdigit() else g for g in given]
