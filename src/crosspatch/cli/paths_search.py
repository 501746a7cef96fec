"""`crosspatch paths sweep` and `refine`: find the paths that a claim should name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosspatch.cli.console import Debug, Json, Quiet, bars, note, result, say, table
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
from crosspatch.cli.paths_inputs import Asked, one_hypothesis, pairs_of, patterns_of
from crosspatch.cli.paths_options import (
    FILE_HELP,
    Apart,
    Distance,
    Folder,
    Length,
    Mlps,
    Named,
    Norms,
    NormScale,
    Reference,
    Semantics,
    Side,
    Text,
)
from crosspatch.cli.paths_out import planned, records, say_intervals, say_report, take, write_folder
from crosspatch.cli.sweeping import Force, Overwrite, Resume
from crosspatch.report.paths_rows import between, share_range
from crosspatch.report.svg import percent, signed


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    again = "After Ctrl-C: the same with --resume."
    app.command(
        "sweep", epilog=f"Example: crosspatch paths sweep --senders 'a*.h*' --receivers a3.h0.q --out out/feed. {again}"
    )(sweep)
    app.command(
        "refine", epilog=f"Example: crosspatch paths refine --task ioi --max-steps 4 --out out/refined. {again}"
    )(refine)


def sweep(
    senders: Annotated[str, typer.Option(help="Nodes or patterns, joined by commas: 'a*.h*@S2, m*'.")] = "a*.h*",
    receivers: Annotated[
        list[str] | None,
        typer.Option("--receivers", help="logits, a9.h6.q, a9.h6.k@S1, m10 (repeat). Default: logits."),
    ] = None,
    mlps: Annotated[
        Mlps,
        typer.Option(
            help="MLPs on the way: direct (part of the route), or frozen (the sender must write straight in)."
        ),
    ] = Mlps.direct,
    semantics: Annotated[
        Semantics,
        typer.Option(help="Of several receivers: last (the last one on a path is fed), or union (any of them is)."),
    ] = Semantics.last,
    task: TaskName = "ioi",
    model: ModelName = "embedded",
    corruption: Corruption = None,
    n: Count = 48,
    dissimilarity: Apart = Distance.abs_logit_diff,
    norms: NormScale = Norms.recomputed,
    top: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 20,
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
    """Patch every sender into one set of receivers: what of its effect goes straight into them and on to the output."""
    take(out, overwrite, resume)
    loaded = load_model(model, dtype, device, threads)
    given = pairs_of(loaded, Asked(task, corruption, n, seed, "clean", None, 0, force))
    from crosspatch.paths.sender import NO_SHARES, path_patch

    with bars() as shown:
        swept = path_patch(
            loaded,
            given.pairs,
            senders,
            receivers or ["logits"],
            mlps=mlps.value,
            semantics=semantics.value,
            dissimilarity=dissimilarity.value,
            norms=norms.value,
            seed=seed,
            budget_mib=budget_mib,
            progress=shown.of("senders"),
            on_plan=planned(given.pairs),
            checkpoint=out,
        )
    frame, about, page = swept.frame(), swept.about, None
    into = ", ".join(about["receivers"])
    if out is not None:
        page = write_folder(out, [swept], {"senders": frame}, given, f"What feeds {into}?")
    result(
        {
            "ok": True,
            "out": str(out) if out else None,
            "report": page,
            "forced": given.forced,
            "senders": records(frame),
            "about": about,
        }
    )
    say(f"{len(swept.senders)} senders into {into}. MLPs on the way: {about['mlps']}. Receivers: {about['semantics']}.")
    say(f"Signed {about['quantity']} in {about['unit']}, {swept.effect.shape[1]} pairs: {about['pairs']}")
    say(f"{about['method'].capitalize()}.\n")
    cells = [
        [
            row["sender"],
            signed(row["effect"]),
            between(row["low"], row["high"]),
            percent(row["share"]),
            share_range(row["share_low"], row["share_high"]),
            f"{row['q']:.3f}",
        ]
        for row in records(swept.top(top))
    ]
    say(table(cells, ["sender", "effect", "interval", "share of total", "interval", "q"]))
    if frame["share"].isna().all():
        say(NO_SHARES)
    say_intervals(len(given.pairs))
    say_report(page)


def refine(
    file: Annotated[Path | None, typer.Argument(help=f"{FILE_HELP} None: start from no path.")] = None,
    name: Named = None,
    max_steps: Annotated[int, typer.Option(min=1, help="Steps, at most.")] = 8,
    min_gain: Annotated[
        float, typer.Option(min=0, max=1, help="Proportion explained that a step must add, for sure.")
    ] = 0.01,
    held_out: Annotated[
        float, typer.Option(min=0.05, max=0.9, help="Share of the pairs that only score the steps.")
    ] = 0.3,
    nodes: Annotated[str, typer.Option(help="Parts that may be added.")] = "a*.h*, m*",
    positions: Annotated[
        list[str] | None, typer.Option("--positions", help="Where added parts write (repeat). Default: anywhere.")
    ] = None,
    n_random: Annotated[int, typer.Option("--random", min=1, help="Random hypotheses to compare the end with.")] = 20,
    task: TaskName = "ioi",
    model: ModelName = "embedded",
    corruption: Corruption = None,
    n: Count = 48,
    text: Text = None,
    length: Length = 32,
    reference: Reference = Side.clean,
    dissimilarity: Apart = Distance.kl,
    norms: NormScale = Norms.recomputed,
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
    """Extend or shorten a hypothesis step by step, greedily; pairs that were held out score every step."""
    always = None
    patterns: list[str] = []
    if file is not None:
        from crosspatch.paths.files import read_hypotheses

        found = read_hypotheses(file)
        chosen, claim = one_hypothesis(found, name, file)
        always, patterns = found.always, patterns_of(claim, chosen)
    take(out, overwrite, resume)
    loaded = load_model(model, dtype, device, threads)
    given = pairs_of(loaded, Asked(task, corruption, n, seed, reference.value, text, length, force))
    from crosspatch.paths.candidates import steps
    from crosspatch.paths.refine import refine as run

    candidates = len(steps(patterns, loaded.shape, nodes=nodes, positions=positions or ()))
    note(f"Plan: at most {max_steps} steps, {candidates} candidates in the first, {len(given.pairs)} pairs")
    with bars() as shown:
        grown = run(
            loaded,
            patterns,
            given.pairs,
            max_steps=max_steps,
            min_gain=min_gain,
            held_out=held_out,
            nodes=nodes,
            positions=positions or (),
            n_random=n_random,
            dissimilarity=dissimilarity.value,
            norms=norms.value,
            always=always,
            seed=seed,
            budget_mib=budget_mib,
            progress=shown.of("steps"),
            checkpoint=out,
        )
    page, floor = None, float(grown.floor.mean())
    if out is not None:
        what = given.pairs.provenance.split(" (")[0]
        page = write_folder(out, [grown], {"steps": grown.log}, given, f"Which paths carry {what}?")
    result(
        {
            "ok": True,
            "out": str(out) if out else None,
            "report": page,
            "forced": given.forced,
            "patterns": grown.patterns,
            "steps": records(grown.log),
            "random": grown.random.tolist(),
            "floor": floor,
            "about": grown.about,
        }
    )
    cells = [
        [
            str(i),
            row["step"],
            row["pattern"] or "(no path)",
            percent(row["explained"]),
            percent(row["explained_held_out"]),
            share_range(row["held_out_low"], row["held_out_high"]),
        ]
        for i, row in enumerate(records(grown.log))
    ]
    say(table(cells, ["", "step", "pattern", "explained", "held out", "interval"]))
    say(f"\nNumerical floor (AUE at all paths, held-out pairs): {floor:.1e}.")
    if not grown.patterns:
        say("No step surely adds enough, so that no path is claimed. Lower --min-gain, or raise --n.")
    elif len(grown.random):
        most = percent(float(grown.random.max()))
        say(f"{len(grown.random)} random hypotheses of as many patterns explain {most} at most (held-out pairs).")
    say_report(page)
