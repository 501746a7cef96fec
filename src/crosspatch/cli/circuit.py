"""`crosspatch circuit`: find a circuit, check its ranking exactly, judge it, compare it, export it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import circuit_files, circuit_judge
from crosspatch.cli.circuit_inputs import Settings, pairs_of, spans_of
from crosspatch.cli.circuit_options import (
    Ablations,
    Cut,
    Exact,
    HeldOut,
    Method,
    Methods,
    MetricName,
    Out,
    Random,
    Rule,
    Rules,
    Selection,
    Selections,
    Signed,
    Sizes,
    Spans,
    Steps,
    Target,
    Threshold,
)
from crosspatch.cli.console import Debug, Json, Quiet, bars, note, result, say
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
from crosspatch.cli.paths_out import say_report, take
from crosspatch.cli.sweeping import Force, Overwrite

if TYPE_CHECKING:
    from crosspatch.circuits.search import Found, Search

app = typer.Typer(
    help="Circuits: find one fast, check it against exact patching, and judge it on pairs that were held out.",
    epilog="Example: crosspatch circuit find --task ioi --out out/circuit",
    no_args_is_help=True,
)


@app.command("find", epilog="Example: crosspatch circuit find --model gpt2 --task ioi --method eap-ig --out out/ioi")
def find(
    task: TaskName = "ioi",
    model: ModelName = "embedded",
    corruption: Corruption = None,
    n: Count = 64,
    metric: MetricName = "logit_diff",
    method: Methods = Method.eap_ig,
    ablation: Ablations = Cut.paired,
    steps: Steps = 5,
    rule: Rules = Rule.midpoint,
    span: Spans = None,
    selection: Selections = Selection.path_aware,
    size: Sizes = None,
    target: Target = 0.9,
    signed: Signed = False,
    threshold: Threshold = 0.003,
    held_out: HeldOut = 0.5,
    exact: Exact = 50,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Judge the circuit on the pairs held out.")
    ] = True,
    random: Random = 20,
    tests: Annotated[
        bool, typer.Option("--tests", help="The hypothesis tests too; they take a few hundred runs.")
    ] = False,
    out: Out = None,
    seed: Seed = 0,
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
    """Find the smallest circuit that is faithful on half of the pairs, and judge it on the other half.

    Ranks the edges; takes the smallest circuit of whole paths that keeps --target of the behaviour; measures the
    strongest edges and a random sample of the others exactly; then sufficiency, necessity, random circuits, the size
    frontier and stability. All of it goes to one folder, with report.html to read first.
    """
    take(out, overwrite)
    loaded = load_model(model, dtype, device, threads)
    asked = Settings(task, model, corruption, n, metric, ablation.value, held_out, seed, dtype, device)
    from crosspatch.circuits.search import Search
    from crosspatch.cli import circuit_run as work

    with bars() as shown:
        given = pairs_of(loaded, asked, force, shown.of("constants"))
        wanted = Search(
            method=method.value,
            steps=steps,
            rule=rule.value,
            spans=spans_of(given, span or ()),
            selection=selection.value.replace("-", "_"),  # type: ignore[arg-type]
            absolute=not signed,
            sizes=tuple(size or ()),
            target=target,
            threshold=threshold,
            seed=seed,
        )
        found = work.find(given, wanted, budget_mib, shown)
        checked = work.verification(given, found, exact, seed, budget_mib, shown)
        if out is not None:
            work.save_run(out, found.circuit, given, asked, facts_of(found), wanted)
            if found.scores is not None:
                found.scores.save(out / "scores")
            else:
                work.save_ranking(out, found.circuit, found.ranking)
            if checked is not None:
                work.save_verification(out, checked)
        verdict = None
        if evaluate:
            verdict = work.judge(
                given, found.circuit, found, asked, n_random=random, tests=tests, budget_mib=budget_mib, shown=shown
            )
            if out is not None:
                verdict.save(out)
    page = work.write_page(out)
    result(
        {
            "ok": True,
            "out": str(out) if out else None,
            "report": page,
            "forced": given.gates.forced,
            "circuit": found.circuit.to_json(),
            "target_reached": found.reached,
            "tried": work.records(found.tried),
            "verification": None if checked is None else checked.summary(),
            "evaluation": None if verdict is None else verdict.to_json(),
        }
    )
    note(f"Searched {len(given.search)} pairs; sizes tried: {work.tried_words(work.records(found.tried))}")
    say(summary_of(found))
    say(f"\n{found.circuit.describe()}\n")
    if checked is not None:
        say(f"{checked.describe()}\n")
    if verdict is not None:
        circuit_judge.say_verdict(verdict)
    say_report(page)


def facts_of(found: Found) -> dict[str, Any]:
    """How the circuit was found, for the report."""
    asked = found.search
    facts = {"method": method_words(asked)}
    if asked.method != "acdc":
        by = "the size of the scores" if asked.absolute else "the most positive scores"
        facts["selection"] = f"{asked.selection.replace('_', '-')}, by {by}"
        facts["size"] = summary_of(found)
    return facts


def method_words(asked: Search) -> str:
    """The method with its settings."""
    if asked.method in ("eap-ig", "eap-ig-activations"):
        return f"{asked.method}, {asked.steps} steps, {asked.rule} rule"
    return f"{asked.method}, threshold {asked.threshold:g} of the gap" if asked.method == "acdc" else asked.method


def summary_of(found: Found) -> str:
    """The size that was taken, and why."""
    chosen = found.tried.loc[found.tried["edges"] == found.circuit.n_edges].iloc[0]
    total = len(found.circuit.table) * max(1, len(found.circuit.spans))
    kept = f"{found.circuit.n_edges:,} of {total:,} edges keep {chosen['kept']:.0%} of the gap on the pairs searched on"
    if len(found.tried) == 1:
        return f"{kept}."
    if found.reached:
        return f"{kept}: the smallest size tried that is within {1 - found.search.target:.0%} of the whole model."
    return f"{kept}. No size came within {1 - found.search.target:.0%} of the whole model; this one is nearest."


@app.command("verify", epilog="Example: crosspatch circuit verify out/circuit --exact 200")
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder of `crosspatch circuit find`.")],
    exact: Exact = 100,
    seed: Annotated[int, typer.Option(help="Seed of the random sample.")] = 0,
    force: Force = False,
    budget_mib: Budget = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure the strongest edges and a random sample of the others exactly: what is the ranking worth?

    Prints the correlation with exact patching, how much of the top matters, and a bound on how many edges that matter
    were left out; writes both to the folder and rebuilds its report.
    """
    from crosspatch.cli import circuit_run as work
    from crosspatch.report import circuits_files as files

    asked = work.saved_settings(folder).changed(dtype=dtype, device=device)
    found = work.saved_found(folder, circuit_files.saved_circuit(folder))
    if found is None or found.scores is None:
        from crosspatch.errors import CircuitError

        raise CircuitError(
            "the folder holds no scores per pair", where=str(folder),
            fix="find the circuit with eap, eap-ig, relp or exact; acdc and edge-pruning give none",
        )  # fmt: skip
    loaded = load_model(asked.model, asked.dtype, asked.device, threads)
    with bars() as shown:
        given = pairs_of(loaded, asked, force, shown.of("constants"))
        checked = work.verification(given, found, max(exact, 1), seed, budget_mib, shown)
    assert checked is not None  # there are scores
    work.save_verification(folder, checked)
    work.note_command(folder)
    page = work.write_page(folder)
    frame = checked.frame()
    result(
        {
            "ok": True,
            "out": str(folder),
            "report": page,
            "table": str(folder / files.VERIFICATION),
            **checked.summary(),
            "edges": work.records(frame),
        }
    )
    say(checked.describe())
    say(f"At least {checked.recall_bound:.0%} of the edges that matter are in the top (a lower bound).\n")
    say(circuit_judge.measured_table(frame))
    say_report(page)


circuit_judge.add_to(app)
circuit_files.add_to(app)
