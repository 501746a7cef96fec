"""`crosspatch features circuit`: find a circuit of features, and judge its nodes and edges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crosspatch.cli import features_circuit_judge
from crosspatch.cli.circuit_inputs import Settings
from crosspatch.cli.circuit_options import HeldOut, MetricName, Rule, Rules, Steps
from crosspatch.cli.console import Bars, Debug, Json, Quiet, bars, note, result, say, table
from crosspatch.cli.features_circuit_options import (
    CardTokens,
    EdgeThreshold,
    Exact,
    JudgedWith,
    Method,
    Methods,
    Nodes,
    Out,
    Positions,
    Random,
    Replaced,
    Replacements,
    Spans,
    StartBlock,
    Threshold,
    Where,
)
from crosspatch.cli.features_circuit_out import (
    SHOWN,
    edges_table,
    evaluations,
    say_edges,
    say_evaluation,
    tokens_of,
)
from crosspatch.cli.features_inputs import Dictionaries
from crosspatch.cli.features_options import TextSource
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
from crosspatch.cli.paths_out import records, say_report, take
from crosspatch.cli.sweeping import Force, Overwrite
from crosspatch.errors import CircuitError
from crosspatch.report.svg import signed

if TYPE_CHECKING:
    from crosspatch.cli.features_circuit_run import Ready
    from crosspatch.features.curve import Curve
    from crosspatch.features.search import FoundFeatures


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("circuit", epilog="Example: crosspatch features circuit --task agreement-rc --out out/rc")(circuit)
    features_circuit_judge.add_to(app)


def circuit(
    task: TaskName = "agreement-rc",
    model: ModelName = "embedded",
    corruption: Corruption = None,
    n: Count = 96,
    metric: MetricName = "logit_diff",
    dictionaries: Dictionaries = None,
    method: Methods = Method.ig,
    steps: Steps = 10,
    rule: Rules = Rule.midpoint,
    replacement: Replacements = Replaced.paired,
    nodes: Nodes = None,
    threshold: Threshold = None,
    edge_threshold: EdgeThreshold = None,
    positions: Positions = Where.aggregate,
    span: Spans = None,
    exact: Exact = 50,
    held_out: HeldOut = 0.5,
    start_block: StartBlock = None,
    judged_with: JudgedWith = None,
    random: Random = 10,
    do_evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Judge the circuit on the pairs held out.")
    ] = True,
    text: TextSource = None,
    card_tokens: CardTokens = 10_000,
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
    """Find the features and error terms that carry a behaviour, what passes between them, and whether they are enough.

    Two passes on half of the pairs: the effect of every feature and error term, then the edges between the nodes that
    were chosen. The largest nodes are measured exactly. The circuit is judged on the other half, under every policy for
    error terms, with the raw values beside every share. Everything goes to one folder, with report.html to read first.
    """
    take(out, overwrite)
    if nodes is not None and threshold is not None:
        raise CircuitError("--nodes and --threshold", where="nodes", fix="give one of them")
    if span and positions is not Where.spans:
        raise CircuitError("--span without --positions spans", where="--span", fix="add --positions spans")
    loaded = load_model(model, dtype, device, threads)
    from crosspatch.cli import features_circuit_run as work
    from crosspatch.features.search import FeatureSearch, find_features

    asked = Settings(task, model, corruption, n, metric, "paired", held_out, seed, dtype, device)
    wanted = FeatureSearch(
        method=method.value, steps=steps, rule=rule.value, replaced=replacement.value,
        nodes=FeatureSearch.nodes if nodes is None else nodes, threshold=threshold, edge_threshold=edge_threshold,
        positions=positions.value, spans=tuple(span or ()), exact=exact,
    )  # fmt: skip
    judge = work.Judge(start_block, None if judged_with is None else judged_with.value, random)
    at, wanted = work.ready(loaded, asked, dictionaries, wanted, judge, force)
    with bars() as shown:
        found = find_features(at.given.search, at.bases, wanted, budget_mib=budget_mib, progress=shown.stage)
        cards = work.cards_of(at, list(found.circuit), text, card_tokens, asked, shown)
        curves = work.judged(at, found.circuit, found.effects, asked, shown, budget_mib) if do_evaluate else []
        by_edge = _by_edge(at, found, asked, random, shown, budget_mib) if do_evaluate else []
    if out is not None:
        from crosspatch.features.curve import save_curves
        from crosspatch.report.features_files import EDGES, EVALUATION

        work.save_run(out, at, found, asked, dictionaries)
        work.save_cards(out, cards, found)
        for name, some in ((EVALUATION, curves), (EDGES, by_edge)):
            if some:
                save_curves(out / name, some)
    page = work.write_page(out)
    rows = work.node_rows(found)
    strong = found.edges.frame(found.edge_threshold)
    result(
        {
            "ok": True,
            "out": str(out) if out else None,
            "report": page,
            "forced": at.given.gates.forced,
            "start_block": at.judge.start_block,
            "judged_with": at.judge.replacement,
            "edge_threshold": found.edge_threshold,
            "nodes": rows,
            "edges": records(strong),
            "cards": [card.plain() for card in cards],
            "evaluation": evaluations(curves),
            "edge_evaluation": evaluations(by_edge),
        }
    )
    said = {f"{' '.join(card.reads)}/{card.feature}": card for card in cards}
    cells = [
        [r["node"], signed(r["effect"]), signed(r["exact"]), tokens_of(said.get(f"{r['place']}/{r['feature']}"))]
        for r in rows[:SHOWN]
    ]
    size = f"{found.circuit.n_features} features and {found.circuit.n_errors} error terms"
    say(f"{size}, on {len(at.given.search)} pairs\n")
    say(table(cells, ["node", "effect", "exact", "active at, and raises"]))
    say(f"\n{len(strong)} of {len(found.edges)} edges are larger than {found.edge_threshold:.3g}; the largest:\n")
    say(edges_table(strong.to_dict("records")))
    say_evaluation(curves, at.judge)
    say_edges(by_edge)
    say_report(page)


def _by_edge(
    at: Ready, found: FoundFeatures, asked: Settings, random: int, shown: Bars, budget_mib: float | None
) -> list[Curve]:
    """The circuit's edges on held-out pairs; nothing where that cannot be done, with the reason."""
    from crosspatch.cli import features_circuit_run as work

    try:
        curve = work.judged_edges(
            at, found.circuit, found.edges, found.edge_threshold, (), asked, min(random, 3), shown, budget_mib
        )
    except CircuitError as error:
        note(f"Edges were not judged: {error.what}")
        return []
    return [] if curve is None else [curve]
