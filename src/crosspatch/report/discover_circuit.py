"""The circuit of a discovered cluster on its page: drawn, judged, node by node. Read from what was saved; no model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crosspatch.discover.clusters import CARDS_FILE, CLUSTER_FILE
from crosspatch.features.nodes import Node
from crosspatch.report.features import Feature
from crosspatch.report.features_cards import FeatureCard, cards_from
from crosspatch.report.features_graph import GraphEdge, GraphNode, feature_graph, fitting
from crosspatch.report.features_sections import NOTHING, edge_table, node_table
from crosspatch.report.paths_rows import Row, share_range
from crosspatch.report.runs import written_by
from crosspatch.report.svg import Figure, percent, signed
from crosspatch.results.files import read_json

WIDE, NARROW = 780.0, 250.0
"""Pixels for the nodes of one place, on a page and on a small screen: the graph fits."""
ROWS, LISTED = 12, 60
"""Rows of a table that are seen at once, and nodes that are listed at all (`cluster.json` has every one)."""


@dataclass(frozen=True)
class ClusterCircuit:
    """What the page of a cluster says of its circuit.

    Attributes:
        graph, small: the circuit, drawn for a page and for a small screen.
        headline: whether it is enough.
        compared: what it is to be compared with.
        how: how it was found.
        warning: why the circuit is not to be believed, if so.
        nodes, scale: the largest nodes with the scale of their bars; the first `seen` are seen at once.
        edges: the strongest.
        n_nodes: how many there are.
    """

    graph: Figure
    small: Figure
    headline: str
    compared: str
    how: str
    warning: str
    nodes: tuple[Feature, ...]
    scale: Markup
    edges: tuple[Row, ...]
    n_nodes: int
    seen: int = ROWS


def cluster_circuit(data: Mapping[str, Any], folder: Path) -> ClusterCircuit:
    """The circuit of a `cluster.json`.

    Args:
        folder: of the cluster: its cards lie beside.

    Raises:
        ResultError: the cards are damaged.
        KeyError, TypeError, ValueError: a file that is none of ours.
    """
    path = folder / CARDS_FILE
    cards: Mapping[str, FeatureCard] = {}
    if path.is_file():
        saved = read_json(path)
        fix = f"delete it and {CLUSTER_FILE}, and run the command again with --resume"
        with written_by("crosspatch discover", path, fix):
            cards = cards_from(saved)
    nodes = [_node(one, cards) for one in data["nodes"]]
    number = {str(one.node): i for i, one in enumerate(nodes)} | {"logits": -1}
    edges = [
        GraphEdge(number[one["from"]], number[one["to"]], float(one["effect"]), *_ends(one)) for one in data["edges"]
    ]
    table, scale = node_table(nodes[:LISTED], {}, ())
    judged = data["evaluation"]
    places = [str(place) for place in data["key"]["places"]]
    return ClusterCircuit(
        _graph(nodes, edges, places, WIDE),
        _graph(nodes, edges, places, NARROW),
        _headline(judged, len(nodes), int(data["judged"])),
        _compared(judged),
        _how(data),
        _warning(judged),
        table,
        scale,
        edge_table(edges, nodes),
        len(nodes),
    )


def _node(one: Mapping[str, Any], cards: Mapping[str, FeatureCard]) -> GraphNode:
    feature = None if one["feature"] is None else int(one["feature"])
    node = Node(str(one["place"]), feature)
    return GraphNode(node, float(one["effect"]), *_ends(one), math.nan, cards.get(f"{node.place}/{feature}"))


def _ends(one: Mapping[str, Any]) -> tuple[float, float]:
    """The interval; NaN where there is none."""
    return _number(one["low"]), _number(one["high"])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _graph(nodes: Sequence[GraphNode], edges: Sequence[GraphEdge], places: Sequence[str], room: float) -> Figure:
    """The largest nodes of every place, and the edges between them."""
    chosen = fitting(nodes, room, bars=not edges)
    at = {i: n for n, i in enumerate(chosen)} | {-1: -1}
    lines = [dataclasses.replace(e, up=at[e.up], down=at[e.down]) for e in edges if e.up in at and e.down in at]
    figure = feature_graph([nodes[i] for i in chosen], lines, places, narrow=room <= NARROW)
    left_out = []
    if len(chosen) < len(nodes):
        left_out.append(f"{len(chosen)} of {len(nodes)} nodes are drawn, the largest of every place.")
    if len(lines) < len(edges):
        left_out.append(f"{len(lines)} of the {len(edges)} strongest edges are between them.")
    return dataclasses.replace(figure, caption=Markup(" ").join([figure.caption, *left_out]))


def _headline(judged: Mapping[str, Any], nodes: int, contexts: int) -> str:
    size = f"{nodes} node{'' if nodes == 1 else 's'}"
    share = judged["faithfulness"]
    said = f"log p(answer) {signed(_number(judged['m_kept']))} nats"
    where = f"on {contexts} context{'' if contexts == 1 else 's'} of other documents"
    if share is None:
        return f"{size} alone give {said} {where}."
    ends = share_range(_number(judged["faithfulness_low"]), _number(judged["faithfulness_high"]))
    return f"{size} alone keep {percent(share)} {ends} of the behaviour {where}.".replace("  ", " ")


def _warning(judged: Mapping[str, Any]) -> str:
    """Why the circuit is not to be believed; empty where it may be."""
    if not judged["has_gap"]:
        return NOTHING
    low, random = judged["faithfulness_low"], judged["random_faithfulness_median"]
    if low is None or random is None or low > random:
        return ""
    return (
        "Not enough: these nodes together cannot be told from random ones. Each matters where it is replaced alone, "
        "which is what the graph shows; a mechanism that suffices it is not."
    )


def _compared(judged: Mapping[str, Any]) -> str:
    model, kept, empty = (signed(_number(judged[name])) for name in ("m_model", "m_kept", "m_empty"))
    said = [f"Mean log p(answer) in nats: the model {model}, the circuit alone {kept}, every node replaced {empty}."]
    if judged["random_faithfulness_median"] is not None:
        random = percent(judged["random_faithfulness_median"])
        said.append(f"As many random features at every place, with the same error terms, keep {random} (median).")
    if judged["completeness"] is not None:
        said.append(f"Without the circuit, all other nodes keep {percent(judged['completeness'])}.")
    return " ".join(said)


def _how(data: Mapping[str, Any]) -> str:
    settings, start = data["key"]["settings"], int(data["key"]["start_block"])
    method = {"ig": f"integrated gradients, {settings['steps']} steps"}.get(settings["method"], settings["method"])
    replaced = {"zero": "zero", "mean-all": "means over contexts of all clusters"}[settings["replaced"]]
    before = f"; blocks before {start} are left to the model" if start > 0 else ""
    return (
        f"Found on {data['searched']} contexts by {method}: the effect on log p(answer), in nats, of replacing a node "
        f"by {replaced}{before}. Intervals: 95 %, documents resampled."
    )
