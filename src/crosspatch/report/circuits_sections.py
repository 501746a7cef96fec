"""From the results of circuits to the sections of their report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from crosspatch.circuits import Circuit
from crosspatch.report import circuits_figures as charts
from crosspatch.report import paths_figures as figures
from crosspatch.report.circuits import Drawn, Grown, Judged, Ranked, Specific, Steady, Tested, Verified
from crosspatch.report.circuits_graph import circuit_graph
from crosspatch.report.data import Gate
from crosspatch.report.paths_rows import Row, between, share_range
from crosspatch.report.svg import percent, signed
from crosspatch.results.statistics import bootstrap_mean, resampler

if TYPE_CHECKING:
    from crosspatch.attribution.scores import Scores
    from crosspatch.circuits.evaluation import CircuitEvaluation
    from crosspatch.circuits.frontier import Frontier
    from crosspatch.circuits.hypotheses import HypothesisTests
    from crosspatch.circuits.specificity import Specificity
    from crosspatch.circuits.stability import Stability
    from crosspatch.tasks.findings import GateFinding

TOP = 25
"""Edges in the table."""
CODES = {
    "gap": "There is a behaviour to explain",
    "accuracy": "The model prefers the right answer",
    "examples": "Enough pairs are judged",
    "control": "Permuted weights show no such behaviour",
    "held-out": "Judged on pairs that were not searched on",
    "gates": "A gate failed",
    "sufficiency": "The circuit is sufficient",
    "necessity": "The circuit is necessary",
    "faithfulness-random": "It keeps more than random circuits of its size",
    "necessity-random": "More is lost without it than without random circuits of its size",
    "above-one": "Above the whole model",
    "orders": "The two ways of averaging agree",
    "pruned": "Sizes asked for and sizes that are left",
    "areas": "How to read CPR and CMD",
    "claim": "The circuit may be claimed",
}
STATES = {"info": "passed", "warning": "warning", "failure": "failed"}


def drawn(
    circuit: Circuit,
    scores: Scores | None = None,
    ranking: Float[np.ndarray, " edge"] | None = None,
    often: Float[np.ndarray, " edge"] | None = None,
    order: Sequence[str] = (),
) -> Drawn:
    """The circuit as a graph, coloured by the scores that it was found with, or by another ranking of its edges."""
    values = ranking
    if scores is not None and scores.level == "edge":
        by_span = scores.values.mean(0).T
        known = all(span in scores.spans for span in circuit.spans)
        values = by_span[:, [scores.spans.index(s) for s in circuit.spans]] if circuit.spans and known else scores.mean
    gap = scores.gap if scores is not None else math.nan
    n, total = circuit.n_edges, len(circuit.table) * max(len(circuit.spans), 1)
    return Drawn(
        circuit_graph(circuit, values, often, gap=gap, order=order),
        circuit.describe(),
        {"edges": f"{n:,}", f"of all {total:,} edges": _share(n / total), "parts": f"{circuit.n_nodes:,}"},
    )


def _share(share: float) -> str:
    """A share as a percentage that is not 0 for a small one."""
    return percent(share) if share >= 0.095 or share == 0 else f"{100 * share:.2g} %"


def judged(evaluation: CircuitEvaluation) -> Judged:
    """What `evaluate` found; the first circuit is the one that the page is about."""
    records = evaluation.frame.to_dict("records")
    verdict = evaluation.verdict()
    lanes, bands = [], []
    for r in records:
        lanes.append(
            [
                figures.Lane(
                    "kept (sufficient)", r["faithfulness"], r["faithfulness_low"], r["faithfulness_high"], "d"
                ),
                figures.Lane("lost (necessary)", r["necessity"], r["necessity_low"], r["necessity_high"], "n"),
            ]
        )
        bands.append(
            [
                (r["random_faithfulness_low"], r["random_faithfulness_high"]),
                (r["random_necessity_low"], r["random_necessity_high"]),
            ]
        )
    axis = figures.axis_of([lane for both in lanes for lane in both], least=-0.5, most=1.5, ends=(0.0, 1.0))
    rows = tuple(
        Row(
            str(r["circuit"]),
            (
                f"{r['edges']:,}",
                percent(r["faithfulness"]),
                share_range(r["faithfulness_low"], r["faithfulness_high"]),
                _random(r, "faithfulness"),
                percent(r["necessity"]),
                share_range(r["necessity_low"], r["necessity_high"]),
                _random(r, "necessity"),
            ),
            figures.bars(both, axis, share=True, marks=(0.0, 1.0), bands=behind),
        )
        for r, both, behind in zip(records, lanes, bands, strict=True)
    )
    about = evaluation.methodology
    facts = {
        "judged on": f"{len(evaluation.clean)} pairs ({about['pairs']})",
        "metric": str(about["metric"]),
        "cut edges carry": f"the {about['ablation']} value of their sender",
        "random circuits": f"{about['n_random']} of the same size: {about['random_circuits']}",
        "intervals": f"95 %, {about['n_boot']} resamples of templates",
        "masks run": f"{about['runs']:,}",
    }
    return Judged(
        _verdict_words(records[0], evaluation), gates_from([*evaluation.findings, *verdict]), rows,
        figures.scale(axis, share=True), facts,
    )  # fmt: skip


def _random(row: Mapping[str, Any], of: str) -> str:
    if not math.isfinite(row[f"random_{of}_low"]):
        return ""
    return f"{percent(row[f'random_{of}_low'])} to {percent(row[f'random_{of}_high'])}, q = {row[f'q_{of}']:.2g}"


def _verdict_words(row: Mapping[str, Any], evaluation: CircuitEvaluation) -> tuple[str, ...]:
    """The first sentences of the page."""
    circuit = evaluation.circuits[0]
    share = circuit.n_edges / (len(circuit.table) * max(len(circuit.spans), 1))
    at = " and spans" if circuit.spans else ""
    said = [
        f"{row['edges']:,} edges, {_share(share)} of the model's{at}, alone keep "
        f"{percent(row['faithfulness'])} {share_range(row['faithfulness_low'], row['faithfulness_high'])} of the "
        f"behaviour on {len(evaluation.clean)} pairs; without them {percent(row['necessity'])} "
        f"{share_range(row['necessity_low'], row['necessity_high'])} of it is lost."
    ]
    if evaluation.failures:
        failed = ", ".join(CODES.get(f.code, f.code).lower() for f in evaluation.failures)
        said.append(f"These numbers support no claim, because a gate failed ({failed}).")
        return tuple(said)
    every = [*evaluation.findings, *evaluation.verdict()]
    failing = [f for f in every if f.level == "failure"]
    warned = sum(f.level == "warning" for f in every)
    caveat = f", with {warned} warning{'' if warned == 1 else 's'}" if warned else ""
    said.append(
        f"Every gate and every test of the verdict passed{caveat}."
        if not failing
        else "Not shown: " + "; ".join(f.message.split(": ", 1)[-1] for f in failing) + "."
    )
    return tuple(said)


def gates_from(findings: Sequence[GateFinding]) -> tuple[Gate, ...]:
    """Findings as the page lists them, what fails first."""
    order = ("failure", "warning", "info")
    return tuple(
        Gate(CODES.get(f.code, f.code.replace("-", " ").capitalize()), STATES[f.level], f.message, f.fix or "", f.shown)
        for f in sorted(findings, key=lambda f: order.index(f.level))
    )


def tested(tests: HypothesisTests) -> Tested:
    """What `hypothesis_tests` found."""
    rows = []
    for r in tests.frame.to_dict("records"):
        word = "not made"
        if r["passes"] is not None:
            word = "stands" if r["passes"] else "fails"
        cells = (r["null"], f"{r['meaning']} {r['statistic']:.3g}", str(r["n"]), f"{r['p']:.2g}", f"{r['q']:.2g}", word)
        rows.append(Row(r["name"], cells if r["passes"] is not None else (*cells[:3], "", "", word)))
    frame = tests.edge_frame
    return Tested(tuple(rows), tuple(frame.loc[frame["redundant"], "edge"]))


def worst_rows(pairs: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """The pairs on which circuit and model differ most, from `worst_pairs`."""
    return tuple(
        Row(
            str(r["clean_prompt"]),
            (str(r["corrupt_prompt"]), f"{r['answers']} / {r['wrong']}", signed(r["clean"]), signed(r["circuit"])),
        )
        for r in pairs
    )


def grown(found: Frontier, evaluation: CircuitEvaluation | None = None) -> Grown:
    """What `frontier` found, with the circuit that was evaluated marked."""
    rows = found.frame.to_dict("records")
    chosen = evaluation.frame.to_dict("records")[0] if evaluation is not None else None
    words = {
        "cpr": "CPR (MIB)",
        "cmd": "CMD (MIB)",
        "log_cpr": "CPR, log axis",
        "log_cmd": "CMD, log axis",
    }
    areas = tuple(
        Row(
            words[r["area"]],
            (
                f"{r['value']:.3f}",
                f"[{r['low']:.3f}, {r['high']:.3f}]",
                f"{r['random_low']:.2f} to {r['random_high']:.2f}",
            ),
        )
        for r in found.areas.to_dict("records")
    )
    sizes = tuple(
        Row(
            f"{100 * r['nominal']:g} %",
            (
                f"{r['edges']:,}",
                percent(r["faithfulness"]),
                share_range(r["faithfulness_low"], r["faithfulness_high"]),
                share_range(r["random_low"], r["random_high"]),
            ),
        )
        for r in rows
    )
    return Grown(charts.frontier_chart(rows, found.n_total, chosen), areas, sizes, gates_from(found.findings))


def steady(found: Stability) -> Steady:
    """What `stability` found."""
    nulls = {"signs of pairs flipped": found.null_edges[0], "scores permuted": found.null_edges[1]}
    row = found.frame.to_dict("records")[0]
    core = found.core
    return Steady(
        f"Selected again on resampled pairs, two circuits share {percent(row['jaccard'])} of their edges (Jaccard), "
        f"{'more than' if found.stable else 'not surely more than'} scores without a signal would; {core.n_edges:,} of "
        f"{found.circuit.n_edges:,} edges are in at least 95 % of the resamples.",
        charts.stability_chart(found.edges, nulls, found.random_edges),
        tuple(core.edge_names()),
        found.circuit.n_edges,
    )


def specific(found: Specificity) -> Specific:
    """What `specificity` found."""
    records = found.frame.to_dict("records")
    rows = tuple(
        Row(
            f"{r['circuit']} on {r['task']}",
            (
                percent(r["faithfulness"]),
                share_range(r["faithfulness_low"], r["faithfulness_high"]),
                percent(r["necessity"]),
                share_range(r["necessity_low"], r["necessity_high"]),
                percent(r["edges_shared"]),
            ),
        )
        for r in records
    )
    return Specific(charts.specificity_map(records, found.tasks), rows, gates_from(found.findings))


def verified(words: str, rows: Sequence[Mapping[str, Any]], theta: float, unit: str) -> Verified:
    """What `verify` found: `Verification.describe`, the rows of its frame, and the effect from which an edge counts."""
    return Verified(words, charts.scatter(rows, unit, theta))


def ranked(
    scores: Scores,
    circuit: Circuit,
    unit: str,
    exact: Mapping[str, Mapping[str, Any]],
    often: Float[np.ndarray, " edge"] | None,
) -> Ranked:
    """The circuit's strongest edges.

    Args:
        unit: of the scores.
        exact: rows of `Verification.frame` by name of the edge.
        often: share of resamples that select each edge.
    """
    inside = circuit.any_span().flat
    spans, parts = np.nonzero(np.repeat(inside[None], len(scores.spans), 0))
    size = np.abs(np.nan_to_num(scores.values.mean(0)))[spans, parts]
    order = np.argsort(-size, kind="stable")[:TOP]
    span, part = spans[order], parts[order]
    band = bootstrap_mean(scores.values[:, span, part].T, resampler(len(scores.values), scores.clusters))
    rows, lanes = [], []
    for i, (s, e) in enumerate(zip(span.tolist(), part.tolist(), strict=True)):
        mean = float(scores.values[:, s, e].mean())
        r = {"part": scores.parts[e], "span": scores.spans[s], "score": mean, "number": e}
        r |= {"low": float(band.low[i]), "high": float(band.high[i])}
        r["share"] = mean / scores.gap if scores.gap else math.nan
        lane = [figures.Lane("estimate", r["score"], r["low"], r["high"], "d")]
        true = exact.get(r["part"])
        if true is not None:
            lane.append(figures.Lane("exact", true["exact"], true["low"], true["high"], "n"))
        lanes.append(lane)
        rows.append((r, true))
    axis = figures.axis_of([lane for its in lanes for lane in its])
    found = []
    for (r, true), its in zip(rows, lanes, strict=True):
        name = r["part"] if r["span"] == "*" else f"{r['part']}@{r['span']}"
        cells = (
            signed(r["score"]), between(r["low"], r["high"]), percent(r["share"]),
            signed(true["exact"]) if true is not None else "", between(true["low"], true["high"]) if true else "",
            "" if often is None else percent(float(often[r["number"]])),
        )  # fmt: skip
        found.append(Row(name, cells, figures.bars(its, axis, share=False)))
    origin = {k.replace("_", " "): str(v) for k, v in scores.origin.items() if not isinstance(v, (list, dict))}
    return Ranked(
        tuple(found), figures.scale(axis, share=False), int(inside.sum()), unit, bool(exact), often is not None, origin
    )
