"""`crosspatch features evaluate` and `edges`: nodes and edges of a folder, judged again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from crosspatch.cli.circuit_options import Rule
from crosspatch.cli.console import Debug, Json, Quiet, bars, result, say, table
from crosspatch.cli.features_circuit_options import (
    FOLDER_HELP,
    Baselines,
    EdgeThreshold,
    JudgedWith,
    Method,
    Neurons,
    Policies,
    Random,
    RankedBy,
    Replaced,
    Sizes,
    StartBlock,
)
from crosspatch.cli.features_circuit_out import SHARES, edges_table, evaluations, say_edges, shares_of, start_words
from crosspatch.cli.inputs import Budget, Threads, load_model
from crosspatch.cli.paths_out import records, say_report
from crosspatch.cli.sweeping import Force
from crosspatch.errors import CircuitError

if TYPE_CHECKING:
    from crosspatch.cli.features_circuit_run import Judge

Folder = Annotated[Path, typer.Argument(help=FOLDER_HELP)]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("evaluate", epilog="Example: crosspatch features evaluate out/rc --errors nodes --baseline hidden")(
        evaluate
    )
    app.command("edges", epilog="Example: crosspatch features edges out/rc --method relp --edge-threshold 0.05")(edges)


def evaluate(
    folder: Folder,
    errors: Policies = None,
    size: Sizes = None,
    baseline: Baselines = None,
    ranked_by: RankedBy = None,
    start_block: StartBlock = None,
    judged_with: JudgedWith = None,
    random: Random = 5,
    force: Force = False,
    budget_mib: Budget = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Faithfulness and completeness over size, of features under every policy for error terms and of neurons.

    Sets of the largest nodes are judged on the pairs that the folder's circuit was not found on. Every line replaces
    other places, so that the value with everything replaced stands beside it. Writes to the folder and rebuilds its
    report.
    """
    from crosspatch.cli import features_circuit_run as work
    from crosspatch.features import load_effects
    from crosspatch.features.curve import save_curves
    from crosspatch.features.curves import size_curves
    from crosspatch.features.nodes import Errors
    from crosspatch.report.features_curves import curve_rows
    from crosspatch.report.features_files import CURVES

    saved = work.saved_settings(folder)
    neurons = list(Neurons) if baseline is None else baseline
    if baseline is not None and Neurons.none in baseline and len(baseline) > 1:
        raise CircuitError("--baseline none and another", where="--baseline", fix="give none alone")
    effects = load_effects(folder)
    loaded = load_model(saved.pairs.model, saved.pairs.dtype, saved.pairs.device, threads)
    judge = _judge(saved.judge, start_block, judged_with, random)
    at, _ = work.ready(loaded, saved.pairs, saved.dictionaries, saved.search, judge, force, saved.digests)
    assert at.judge.start_block is not None
    with bars() as shown:
        curves = size_curves(
            at.setup,
            at.bases,
            effects,
            start_block=at.judge.start_block,
            sizes=size or (),
            errors=get_args(Errors) if errors is None else [policy.plain for policy in errors],  # type: ignore[misc]
            baselines=[one.plain for one in neurons if one is not Neurons.none],  # type: ignore[misc]
            methods=["ig", "relp"] if ranked_by is None else [one.value for one in ranked_by],
            replaced=at.judge.replacement,  # type: ignore[arg-type]
            n_random=random,
            held_out=saved.pairs.held_out,
            seed=saved.pairs.seed,
            budget_mib=budget_mib,
            progress=shown.stage,
        )
    save_curves(folder / CURVES, curves)
    work.change_run(folder)
    page = work.write_page(folder)
    result({"ok": True, "out": str(folder), "report": page, "curves": evaluations(curves)})
    for curve in curves:
        found = curve.evaluation
        say(f"{curve.name}: model {found.model.mean():.3g}, everything replaced {found.empty.mean():.3g}")
        cells = [[f"{row['nodes']:,}", *shares_of(row)] for row in curve_rows(curve)]
        say(table(cells, ["nodes", *SHARES]) + "\n")
    say(start_words(at.judge))
    say_report(page)


def edges(
    folder: Folder,
    method: Annotated[Method | None, typer.Option("--method", help="ig, atp, relp. Default: the folder's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the integral. Default: the folder's.")] = None,
    rule: Annotated[Rule | None, typer.Option("--rule", help="Where it is sampled. Default: the folder's.")] = None,
    edge_threshold: EdgeThreshold = None,
    do_evaluate: Annotated[
        bool,
        typer.Option("--evaluate/--no-evaluate", help="Judge sets of edges: each node reads along kept edges only."),
    ] = True,
    size: Annotated[
        list[int] | None, typer.Option("--size", min=1, help="Judge the so many largest edges as well; repeat.")
    ] = None,
    start_block: StartBlock = None,
    judged_with: JudgedWith = None,
    random: Random = 3,
    force: Force = False,
    budget_mib: Budget = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Edges between the nodes of a folder again, with other settings, and whether the edges, not only the nodes, are
    enough.

    Faithfulness of nodes says nothing about the edges that are drawn between them. Here a node reads another one only
    where the edge between the two is kept. Writes to the folder and rebuilds its report.
    """
    from crosspatch.cli import features_circuit_run as work
    from crosspatch.features import feature_edges, load_circuit, load_effects, save_circuit
    from crosspatch.features.curve import save_curves
    from crosspatch.features.search import edge_limit
    from crosspatch.report.features_files import EDGES

    saved = work.saved_settings(folder)
    nodes, _ = load_circuit(folder)
    effects = load_effects(folder)
    search = dataclasses.replace(
        saved.search,
        method=saved.search.method if method is None else method.value,
        steps=steps or saved.search.steps,
        rule=saved.search.rule if rule is None else rule.value,
        edge_threshold=edge_threshold,
    )
    loaded = load_model(saved.pairs.model, saved.pairs.dtype, saved.pairs.device, threads)
    judge = _judge(saved.judge, start_block, judged_with, random)
    at, search = work.ready(loaded, saved.pairs, saved.dictionaries, search, judge, force, saved.digests)
    curve = None
    limit = edge_limit(search, effects, nodes)
    with bars() as shown:
        searched = at.setup.split(saved.pairs.held_out, saved.pairs.seed)[0]
        found = feature_edges(
            searched, at.bases, nodes, search.replaced, method=search.method, steps=search.steps, rule=search.rule,
            budget_mib=budget_mib, progress=shown.of("edges"),
        )  # fmt: skip
        if do_evaluate:
            curve = work.judged_edges(at, nodes, found, limit, size or (), saved.pairs, random, shown, budget_mib)
    save_circuit(folder, nodes, found)
    if curve is not None:
        save_curves(folder / EDGES, [curve])
    else:
        rmtree(folder / EDGES, ignore_errors=True)  # it was of the edges that are gone
    work.change_run(folder, edge_threshold=limit)
    page = work.write_page(folder)
    strong = found.frame(limit)
    result(
        {
            "ok": True,
            "out": str(folder),
            "report": page,
            "edge_threshold": limit,
            "edges": records(strong),
            "evaluation": evaluations([] if curve is None else [curve]),
        }
    )
    say(f"{len(strong)} of {len(found)} edges are larger than {limit:.3g}; the largest:\n")
    say(edges_table(strong.to_dict("records")))
    say_edges([] if curve is None else [curve])
    if curve is not None:
        say(start_words(at.judge))
    say_report(page)


def _judge(before: Judge, start_block: int | None, judged_with: Replaced | None, random: int) -> Judge:
    return dataclasses.replace(
        before,
        start_block=before.start_block if start_block is None else start_block,
        replacement=before.replacement if judged_with is None else judged_with.value,
        random=random,
    )
