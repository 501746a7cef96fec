"""From the results of a feature circuit to the sections of its report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from crosspatch.features.curve import ERROR_WORDS, Curve
from crosspatch.features.edge_scores import FeatureEdges
from crosspatch.features.edge_sets import EdgeEvaluation
from crosspatch.features.found import FeatureEffects
from crosspatch.features.nodes import NodeSet
from crosspatch.report import paths_figures as figures
from crosspatch.report.circuits_figures import scatter
from crosspatch.report.feature_cards import context_line, density_words
from crosspatch.report.features import EdgesHeld, Feature, Held, Sized
from crosspatch.report.features_cards import TOKENS, FeatureCard
from crosspatch.report.features_curves import curve_rows, curves_chart
from crosspatch.report.features_graph import GraphEdge, GraphNode
from crosspatch.report.paths_rows import Row, between, share_range
from crosspatch.report.svg import Figure, percent, signed
from crosspatch.report.tokens import visible
from crosspatch.results.statistics import bootstrap_mean, resampler

CONTEXTS = 3
"""Contexts of a feature in the table."""
TOP_EDGES = 30
NOTHING = "On these pairs the model cannot be told from the model with everything replaced: no share means anything."


def graph_nodes(
    effects: FeatureEffects,
    nodes: NodeSet,
    exact: Mapping[str, Float[np.ndarray, " example"]],
    cards: Mapping[str, FeatureCard],
) -> list[GraphNode]:
    """The nodes of the circuit with their numbers, in the order in which the set lists them.

    Args:
        exact: name of a node -> its effect on every example.
    """
    values = effects.values_of(nodes)
    ends = bootstrap_mean(np.nan_to_num(values).T, resampler(len(values), effects.clusters))
    whole = ~np.isnan(values).any(0)
    at = {span: i for i, span in enumerate(effects.spans)}
    found = []
    for i, node in enumerate(nodes):
        mean = effects.mean[node.place][at[node.span], -1 if node.feature is None else node.feature]
        low, high = (float(side[i]) if whole[i] else math.nan for side in (ends.low, ends.high))
        measured = float(exact[str(node)].mean()) if str(node) in exact else math.nan
        card = cards.get(f"{node.place}/{node.feature}")
        found.append(GraphNode(node, float(mean), low, high, measured, card))
    return found


def graph_edges(edges: FeatureEdges, threshold: float) -> list[GraphEdge]:
    """The edges of the circuit, the largest first."""
    mean = edges.values.mean(0)
    kept = np.flatnonzero(np.abs(mean) > threshold)
    kept = kept[np.argsort(-np.abs(mean[kept]), kind="stable")]
    ends = bootstrap_mean(edges.values[:, kept].T, resampler(len(edges.values), edges.clusters))
    return [
        GraphEdge(int(edges.up[e]), int(edges.down[e]), float(mean[e]), float(ends.low[i]), float(ends.high[i]))
        for i, e in enumerate(kept)
    ]


def node_table(
    nodes: Sequence[GraphNode], exact: Mapping[str, Float[np.ndarray, " example"]], clusters: Sequence[str]
) -> tuple[tuple[Feature, ...], Markup]:
    """The nodes, the largest first, and the scale of their bars."""
    ranked = sorted(nodes, key=lambda one: -abs(one.effect))
    lanes = []
    for one in ranked:
        lane = [figures.Lane("estimate", one.effect, one.low, one.high, "d")]
        if (values := exact.get(str(one.node))) is not None:
            ends = bootstrap_mean(values[None], resampler(len(values), clusters))
            lane.append(figures.Lane("exact", one.exact, float(ends.low[0]), float(ends.high[0]), "n"))
        lanes.append(lane)
    axis = figures.axis_of([lane for its in lanes for lane in its])
    found = []
    for one, its in zip(ranked, lanes, strict=True):
        cells = [signed(one.effect), between(one.low, one.high)]
        cells += [signed(its[1].mean), between(its[1].low, its[1].high)] if len(its) > 1 else ["", ""]
        found.append(_feature(one, Row(str(one.node), tuple(cells), figures.bars(its, axis, share=False))))
    return tuple(found), figures.scale(axis, share=False)


def _feature(one: GraphNode, row: Row) -> Feature:
    card = one.card
    if one.node.feature is None:
        return Feature(row, "error term", "", (), (), ())
    if card is None:
        return Feature(row, "feature", "", (), (), ())
    density = f"active at {density_words(card.density)} of tokens" if card.contexts else "never active in the text"
    tokens = [tuple(visible(token.strip()) for token in some[:TOKENS]) for some in (card.raises, card.lowers)]
    lines = tuple(context_line(context, card.maximum) for context in card.contexts[:CONTEXTS])
    return Feature(row, "feature", density, tokens[0], tokens[1], lines)


def edge_table(edges: Sequence[GraphEdge], nodes: Sequence[GraphNode]) -> tuple[Row, ...]:
    """The largest edges; cells: receiver, effect, interval."""
    rows = []
    for edge in edges[:TOP_EDGES]:
        to = "logits" if edge.down < 0 else str(nodes[edge.down].node)
        rows.append(Row(str(nodes[edge.up].node), (to, signed(edge.effect), between(edge.low, edge.high))))
    return tuple(rows)


def held(curves: Sequence[Curve], unit: str) -> Held:
    """The circuit under every policy for error terms."""
    records = [curve_rows(curve)[0] for curve in curves]
    first, found = records[0], curves[0].evaluation
    about = found.about
    lanes = [[_lane(r, "faithfulness", "kept (faithfulness)", "d"), _lane(r, "completeness", "left without it", "n")]
             for r in records]  # fmt: skip
    axis = figures.axis_of([lane for both in lanes for lane in both], least=-0.5, most=1.5, ends=(0.0, 1.0))
    rows = tuple(
        Row(
            ERROR_WORDS[curve.errors],
            (signed(r["m_kept"]), signed(r["m_cut"]), *_share_cells(r)),
            figures.bars(both, axis, share=True, marks=(0.0, 1.0), bands=[_band(r, name) for name in _NAMES]),
        )
        for curve, r, both in zip(curves, records, lanes, strict=True)
    )
    size = f"{first['features']:,} features and {first['error_terms']:,} error terms"
    sentence = (
        f"{size} alone keep {percent(first['faithfulness'])} "
        f"{share_range(first['faithfulness_low'], first['faithfulness_high'])} of the behaviour on {len(found.model)} "
        f"held-out pairs: m(model) {signed(first['m_model'])}, m(circuit) {signed(first['m_kept'])}, m(nothing) "
        f"{signed(first['m_empty'])} {unit}. Without them {percent(first['completeness'])} "
        f"{share_range(first['completeness_low'], first['completeness_high'])} is left."
    )
    facts = {
        "judged on": f"{len(found.model)} pairs, none of them searched on",
        "nodes outside the set": f"replaced: {about['replacement']}",
        "error terms that are kept": f"{about['kept_error']} from the present activation",
        "random sets": f"{found.random_kept.shape[1]}, as many features at every place among those with any effect",
        "intervals": f"95 %, {about['n_boot']} resamples of templates",
    }
    warning = "" if found.has_gap else NOTHING
    return Held(sentence, warning, start_words(about), rows, figures.scale(axis, share=True), facts)


_NAMES = ("faithfulness", "completeness")


def _lane(row: Mapping[str, Any], name: str, words: str, tone: str) -> figures.Lane:
    return figures.Lane(words, row[name], row[f"{name}_low"], row[f"{name}_high"], tone)


def _band(row: Mapping[str, Any], name: str) -> tuple[float, float]:
    return row[f"random_{name}_low"], row[f"random_{name}_high"]


def _share_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """For faithfulness and completeness: share, interval, random sets."""
    cells: list[str] = []
    for name in _NAMES:
        low, high = _band(row, name)
        random = f"random {percent(low)} to {percent(high)}" if math.isfinite(low) else ""
        cells += [percent(row[name]), share_range(row[f"{name}_low"], row[f"{name}_high"]), random]
    return tuple(cells)


def start_words(about: Mapping[str, Any]) -> str:
    """What is replaced at all."""
    start = int(about["start_block"])
    if start < 0:
        return "Start: the input. Every place is replaced."
    return (
        f"Start block {start}: {'the input is' if start == 0 else f'the input and blocks before {start} are'} left to "
        "the model in every value below, and nodes there are not counted."
    )


def sized(curves: Sequence[Curve]) -> Sized:
    """Shares over size."""
    tables = tuple(
        (
            curve.name,
            tuple(
                Row(f"{r['nodes']:,}", (signed(r["m_kept"]), signed(r["m_cut"]), *_share_cells(r)))
                for r in curve_rows(curve)
            ),
        )
        for curve in curves
    )
    return Sized(curves_chart(curves), tables, start_words(curves[0].evaluation.about))


def edges_held(curve: Curve) -> EdgesHeld | None:
    """Sets of edges, each node reading along kept edges only."""
    found = curve.evaluation
    if not isinstance(found, EdgeEvaluation):
        return None
    records = [{str(name): value for name, value in r.items()} for r in found.frame.to_dict("records")]
    rows = tuple(
        Row(str(r["set"]), (f"{r['edges']:,}", signed(r["m_kept"]), signed(r["m_cut"]), *_share_cells(r)))
        for r in records
    )
    first = records[0]
    sentence = (
        f"Where nodes read along its {first['edges']:,} edges alone, {percent(first['faithfulness'])} "
        f"{share_range(first['faithfulness_low'], first['faithfulness_high'])} is kept; with every edge "
        f"between the nodes {percent(first['node_faithfulness'])}."
    )
    return EdgesHeld(sentence, "" if found.has_gap else NOTHING, start_words(found.about), rows)


def exact_chart(nodes: Sequence[GraphNode], unit: str) -> Figure | None:
    """Estimates against exact effects of single nodes; None where none was measured."""
    rows = [
        {
            "part": str(one.node), "drawn": "top", "estimate": one.effect, "exact": one.exact, "low": math.nan,
            "high": math.nan,
        }
        for one in nodes
        if math.isfinite(one.exact)
    ]  # fmt: skip
    if not rows:
        return None
    caption = Markup(
        "Each dot is one node, replaced alone at all of its tokens, everything after it as the model computes it. "
        '<b class="noi">Purple</b>: the estimate has the wrong sign. On the dashed line the two agree.'
    )
    return dataclasses.replace(scatter(rows, unit, 0.0), caption=caption)
