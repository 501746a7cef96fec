"""Attribution graphs as circuit-tracer writes them and Anthropic's and Neuronpedia's pages show them.

`AttributionGraph` holds such a file without loss; `components` writes a circuit of heads and MLPs as one.

Identifiers: feature `layer_feature_position`, token `E_token_position`, logit `layer_token_position` with the layer one
above the number of layers; an error node is `layer_-1_position`, in released files before that was mended
(circuit-tracer issue 78) `0_layer_position`, which a feature of layer 0 may have too.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path
from typing import Any, Literal

from crosspatch.circuits import files
from crosspatch.circuits.reading import EDITED, entry, expect, read_json
from crosspatch.errors import CircuitError

FEATURE, TOKEN, LOGIT, ERROR = "cross layer transcoder", "embedding", "logit", "mlp reconstruction error"
_OLD_ERROR = re.compile(r"0_(\d+)_(\d+)")
LISTED = "graph-metadata.json"
"""The list of graphs that lies beside them."""


def cantor(x: int, y: int) -> int:
    """One number for a pair of numbers, as the files number a feature by layer and index."""
    return (x + y) * (x + y + 1) // 2 + y


def uncantor(n: int) -> tuple[int, int]:
    """The pair that `cantor` numbered.

    Raises:
        CircuitError: a negative number.
    """
    if n < 0:
        raise CircuitError(f"{n} numbers no pair", where="feature", fix=EDITED)
    diagonal = (isqrt(8 * n + 1) - 1) // 2
    y = n - diagonal * (diagonal + 1) // 2
    return diagonal - y, y


@dataclass(frozen=True)
class GraphNode:
    """One node of an attribution graph; the fields are the file's, `extra` those that have no place here."""

    node_id: str
    layer: str
    ctx_idx: int
    feature_type: str
    feature: int | None = None
    js_node_id: str = ""
    clerp: str = ""
    token_prob: float = 0.0
    is_target_logit: bool = False
    run_idx: int = 0
    reverse_ctx_idx: int = 0
    influence: float | None = None
    activation: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Literal["feature", "token", "logit", "error"]:
        """What the front end takes it for: any type with the word error is an error node."""
        if "error" in self.feature_type:
            return "error"
        return "token" if self.feature_type == TOKEN else "logit" if self.feature_type == LOGIT else "feature"


@dataclass(frozen=True)
class Link:
    """One weighted link, from `source` to `target`."""

    source: str
    target: str
    weight: float
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AttributionGraph:
    """A file of circuit-tracer or Neuronpedia.

    Attributes:
        metadata: `slug`, `scan`, `prompt`, `prompt_tokens`, ...
        nodes, links: in the file's order.
        q_params: what the page shows at first: pinned nodes, supernodes, ...
        extra: other entries of the file.
        notes: what was unclear in the file, in words.
    """

    metadata: dict[str, Any]
    nodes: tuple[GraphNode, ...]
    links: tuple[Link, ...]
    q_params: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


_TYPES: dict[str, type] = {"node_id": str, "layer": str, "ctx_idx": int, "feature_type": str, "feature": int,
                           "jsNodeId": str, "clerp": str, "token_prob": float, "is_target_logit": bool, "run_idx": int,
                           "reverse_ctx_idx": int, "influence": float, "activation": float}  # fmt: skip
_NEEDED = ("node_id", "layer", "feature_type", "ctx_idx")
_EMPTY = ("feature", "influence", "activation")  # may be null


def read_attribution_graph(path: str | Path) -> AttributionGraph:
    """Read a graph file.

    Error nodes with the old identifier get the new one. Where a feature has the same identifier the links of both
    cannot be told apart; they are left with the feature, and `notes` says so.

    Raises:
        CircuitError: it cannot be read, or is no such graph; names the place.
    """
    return from_json(read_json(Path(path)), str(path))


def from_json(data: dict[str, Any], where: str = "graph") -> AttributionGraph:
    """Read what the file holds; else as `read_attribution_graph`."""
    nodes = [_node(expect(raw, dict, f"{where}, nodes, {i}"), f"{where}, nodes, {i}")
             for i, raw in enumerate(entry(data, "nodes", list, where))]  # fmt: skip
    links = [_link(expect(raw, dict, f"{where}, links, {i}"), f"{where}, links, {i}")
             for i, raw in enumerate(entry(data, "links", list, where))]  # fmt: skip
    nodes, links, notes = _with_new_error_ids(nodes, links)
    often = Counter(node.node_id for node in nodes)
    twice = [name for name, n in often.items() if n > 1]
    if twice:
        raise CircuitError(f"{often[twice[0]]} nodes named {twice[0]!r:.60}", where=f"{where}, nodes", fix=EDITED)
    for i, link in enumerate(links):
        for end in (link.source, link.target):
            if end not in often:
                raise CircuitError(f"no node {end!r:.60}", where=f"{where}, links, {i}", fix=EDITED)
    q_params = expect(data.get("qParams", {}), dict, f"{where}, qParams")
    extra = {key: value for key, value in data.items() if key not in ("metadata", "nodes", "links", "qParams")}
    return AttributionGraph(entry(data, "metadata", dict, where), tuple(nodes), tuple(links), q_params, extra, notes)


def _node(raw: dict[str, Any], where: str) -> GraphNode:
    for key in _NEEDED:
        if key not in raw:
            raise CircuitError(f"{key!r} is missing", where=where, fix=EDITED)
    values: dict[str, Any] = {}
    for key, kind in _TYPES.items():
        if key not in raw or (raw[key] is None and key in _EMPTY):
            continue
        value = str(raw[key]) if key == "layer" and type(raw[key]) is int else raw[key]
        values["js_node_id" if key == "jsNodeId" else key] = expect(value, kind, f"{where}, {key}")
    return GraphNode(**values, extra={key: value for key, value in raw.items() if key not in _TYPES})


def _link(raw: dict[str, Any], where: str) -> Link:
    ends = {key: entry(raw, key, str, where) for key in ("source", "target")}
    extra = {key: value for key, value in raw.items() if key not in ("source", "target", "weight")}
    return Link(**ends, weight=entry(raw, "weight", float, where), extra=extra)


def _with_new_error_ids(
    nodes: list[GraphNode], links: list[Link]
) -> tuple[list[GraphNode], list[Link], tuple[str, ...]]:
    """Error nodes by their new identifier, the links to them too where it is clear that they mean the error node."""
    often = Counter(node.node_id for node in nodes)
    renamed: dict[str, str] = {}
    found, notes = [], []
    for node in nodes:
        old = _OLD_ERROR.fullmatch(node.node_id) if node.kind == "error" else None
        if old and (old[1], old[2]) == (node.layer, str(node.ctx_idx)):
            new = f"{old[1]}_-1_{old[2]}"
            if often[node.node_id] > 1:
                notes.append(f"{node.node_id} names a feature and an error node: its links are taken for the feature's")
            else:
                renamed[node.node_id] = new
            node = replace(node, node_id=new)
        found.append(node)
    moved = [replace(x, source=renamed.get(x.source, x.source), target=renamed.get(x.target, x.target)) for x in links]
    return found, moved, tuple(notes)


def to_json(graph: AttributionGraph) -> dict[str, Any]:
    """The graph as the file holds it."""
    nodes = []
    for node in graph.nodes:
        raw = {key: getattr(node, "js_node_id" if key == "jsNodeId" else key) for key in _TYPES}
        nodes.append({**raw, "jsNodeId": node.js_node_id or node.node_id, **node.extra})
    links = [{"source": x.source, "target": x.target, "weight": x.weight, **x.extra} for x in graph.links]
    return {"metadata": graph.metadata, "qParams": graph.q_params, "nodes": nodes, "links": links, **graph.extra}


def write_attribution_graph(path: str | Path, graph: AttributionGraph, listed: bool = False) -> None:
    """Write a graph file, atomically.

    Args:
        listed: also enter it in the list `graph-metadata.json` of its folder, from which the page offers graphs; the
            file must then be named after the slug.

    Raises:
        CircuitError: it cannot be written, or the list is none.
    """
    path = Path(path)
    slug = graph.metadata.get("slug")
    if listed and path.name != f"{slug}.json":
        raise CircuitError(f"a graph named {slug!r}", where=str(path), fix=f"name the file {slug}.json")
    files.write(path, to_json(graph))
    if listed:
        index = path.parent / LISTED
        known = entry(read_json(index), "graphs", list, str(index)) if index.exists() else []
        others = [one for one in known if expect(one, dict, str(index)).get("slug") != slug]
        files.write(index, {"graphs": [*others, graph.metadata]})
