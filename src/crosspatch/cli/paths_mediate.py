"""`crosspatch paths mediate`: what one sender does directly, and through whom it does the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from crosspatch.cli.console import Debug, Json, Quiet, bars, result, say, table
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
)
from crosspatch.cli.paths_inputs import Asked, pairs_of
from crosspatch.cli.paths_options import Apart, Distance, Folder, Mlps, Norms, NormScale
from crosspatch.cli.paths_out import planned, records, say_intervals, say_report, take, write_folder
from crosspatch.cli.sweeping import Force, Overwrite, Resume
from crosspatch.report.paths_rows import between, share_range
from crosspatch.report.svg import percent, signed


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("mediate", epilog="Example: crosspatch paths mediate a1.h0 --task ioi --out out/mediated")(mediate)


def mediate(
    sender: Annotated[str, typer.Argument(help="One head or MLP, or input: a5.h1, m3, a5.h1@S2.")],
    mediators: Annotated[
        str, typer.Option(help="Parts that may pass its effect on, joined by commas: 'a*.h*, m*'.")
    ] = "a*.h*, m*",
    mlps: Annotated[
        Mlps,
        typer.Option(help="MLPs between the sender and the logits: frozen (others, that mediate), or direct."),
    ] = Mlps.frozen,
    task: TaskName = "ioi",
    model: ModelName = "embedded",
    corruption: Corruption = None,
    n: Count = 48,
    dissimilarity: Apart = Distance.abs_logit_diff,
    norms: NormScale = Norms.recomputed,
    top: Annotated[int, typer.Option(min=1, help="Mediators to print.")] = 20,
    out: Folder = None,
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
    """Split one part's effect: total, straight to the logits, and through which parts the rest goes first."""
    take(out, overwrite, resume)
    loaded = load_model(model, dtype, device, threads)
    given = pairs_of(loaded, Asked(task, corruption, n, seed, "clean", None, 0, force))
    from crosspatch.paths.mediate import mediation
    from crosspatch.paths.sender import NO_SHARES

    with bars() as shown:
        found = mediation(
            loaded,
            given.pairs,
            sender,
            mlps=mlps.value,
            mediators=mediators,
            dissimilarity=dissimilarity.value,
            norms=norms.value,
            seed=seed,
            budget_mib=budget_mib,
            progress=shown.of("mediators"),
            on_plan=planned(given.pairs),
            checkpoint=out,
        )
    split, about, page = found.frame(), found.mediators.about, None
    passing = found.mediators.frame()
    if out is not None:
        tables = {"mediation": split, "mediators": passing}
        page = write_folder(out, [found], tables, given, f"What does {sender} do, and through whom?")
    result(
        {
            "ok": True,
            "out": str(out) if out else None,
            "report": page,
            "forced": given.forced,
            "sender": sender,
            "parts": records(split),
            "mediators": records(passing),
            "about": about,
        }
    )
    say(f"{sender}: signed {about['quantity']} in {about['unit']}, {len(found.total)} pairs: {about['pairs']}")
    say(f"MLPs on the direct way: {about['mlps']}. {about['method'].capitalize()}.\n")
    cells = [
        [
            row["part"],
            signed(row["effect"]),
            between(row["low"], row["high"]),
            percent(row["share"]),
            share_range(row["share_low"], row["share_high"]),
        ]
        for row in records(split)
    ]
    say(table(cells, ["part", "effect", "interval", "share of its total", "interval"]))
    if split["share"].isna().all():
        say(NO_SHARES)
    say_intervals(len(given.pairs))
    if found.mediators.senders:
        cells = [
            [row["sender"], signed(row["effect"]), between(row["low"], row["high"]), f"{row['q']:.3f}"]
            for row in records(found.mediators.top(top))
        ]
        say(f"\nThe first part after {sender}\n{table(cells, ['mediator', 'effect', 'interval', 'q'])}")
    say_report(page)
