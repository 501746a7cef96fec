"""EAP-IG's graph as JSON.

`cfg`, `nodes` {name: {in_graph, score?, neurons?, neurons_scores?}}, `edges` {"a0.h0->a1.h2<q>": {score?, in_graph}}.
Their own writer repeats, for every head, the neurons of all heads of its layer, and their reader expects it.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from crosspatch.circuits import files
from crosspatch.circuits.formats.eap import ABOUT, EapGraph
from crosspatch.circuits.reading import EDITED, entry, expect, read_json
from crosspatch.errors import CircuitError
from crosspatch.graph import ModelShape, Site, edge_table


def receiver_name(site: Site) -> str:
    """A receiver as EAP-IG spells it: `a1.h2<q>`, `m0`, `logits`."""
    return f"a{site.layer}.h{site.index}<{site.kind}>" if site.kind in ("q", "k", "v") else str(site)


def shape_of(cfg: dict[str, Any], where: str) -> ModelShape:
    """The shape that `cfg` says, with made-up head and MLP widths and vocabulary, which it does not.

    Raises:
        CircuitError: missing or impossible sizes.
    """
    sizes = {name: entry(cfg, name, int, where) for name in ("n_layers", "n_heads", "d_model")}
    values = {**sizes, "n_kv_heads": sizes["n_heads"], "d_head": max(sizes["d_model"] // max(sizes["n_heads"], 1), 1)}
    values |= {"d_mlp": 0, "vocab": 1, "has_neurons": False, "parallel": entry(cfg, "parallel_attn_mlp", bool, where)}
    return files.bounded({**values, "has_mlp": True}, where)


def about_from(data: dict[str, Any], where: str) -> dict[str, Any]:
    """What our own files add, if anything."""
    if ABOUT not in data:
        return {}
    here = f"{where}, {ABOUT}"
    about = entry(data, ABOUT, dict, where)
    return {
        "shape": files.shape_from_json(entry(about, "shape", dict, here), f"{here}, shape"),
        "name": entry(about, "name", str, here),
        "origin": entry(about, "origin", dict, here),
    }


def about_to(graph: EapGraph) -> dict[str, Any]:
    """What our own files add, as JSON; nothing where there is nothing."""
    if "shape" not in graph.about:
        return {}
    return {ABOUT: {**graph.about, "shape": dataclasses.asdict(graph.about["shape"])}}


def read(path: Path) -> EapGraph:
    """Read a JSON file.

    Raises:
        CircuitError: it cannot be read, or is no such graph; names the place.
    """
    where, data = str(path), read_json(path)
    shape = shape_of(entry(data, "cfg", dict, where), f"{where}, cfg")
    table = edge_table(shape)
    senders = {str(site): i for i, site in enumerate(table.senders)}
    receivers = {receiver_name(site): i for i, site in enumerate(table.receivers)}
    in_graph, scores = np.zeros(table.exists.shape, dtype=bool), np.full(table.exists.shape, np.nan)
    for name, info in entry(data, "edges", dict, where).items():
        here = f"{where}, edges, {name:.60}"
        left, _, right = name.partition("->")
        u, v = senders.get(left, -1), receivers.get(right, -1)
        if min(u, v) < 0 or not table.exists[u, v]:
            raise CircuitError("no edge of a model with this cfg", where=here, fix=EDITED)
        info = expect(info, dict, here)
        in_graph[u, v] = _mark(info.get("in_graph"), here)
        if "score" in info:
            scores[u, v] = _score(info["score"], f"{here}, score")
    n, d = len(table.senders), shape.d_model
    nodes = np.zeros(n, dtype=bool)
    node_scores, neurons, neuron_scores = np.full(n, np.nan), np.ones((n, d), dtype=bool), np.full((n, d), np.nan)
    found: set[str] = set()
    for name, info in entry(data, "nodes", dict, where).items():
        here = f"{where}, nodes, {name:.60}"
        if name == "logits":
            continue
        if name not in senders:
            raise CircuitError("no node of a model with this cfg", where=here, fix=EDITED)
        i, info = senders[name], expect(info, dict, here)
        nodes[i] = _mark(info.get("in_graph"), here)
        if "score" in info:
            node_scores[i] = _score(info["score"], f"{here}, score")
        if "neurons" in info:
            row = _row(info["neurons"], table.senders[i], shape, f"{here}, neurons")
            neurons[i] = [_mark(value, f"{here}, neurons") for value in row]
        if "neurons_scores" in info:
            row = _row(info["neurons_scores"], table.senders[i], shape, f"{here}, neurons_scores")
            neuron_scores[i] = [_score(value, f"{here}, neurons_scores") for value in row]
        found |= info.keys()
    return EapGraph(
        shape,
        in_graph,
        scores,
        nodes,
        node_scores if "score" in found else None,
        neurons if "neurons" in found else None,
        neuron_scores if "neurons_scores" in found else None,
        about_from(data, where),
    )


def _mark(value: object, where: str) -> bool:
    """A truth value, which some writers give as a number."""
    if value in (0, 1) and isinstance(value, (bool, int, float)):
        return bool(value)
    raise CircuitError(f"{value!r:.40} does not say whether it is in the graph", where=where, fix=EDITED)


def _score(value: object, where: str) -> float:
    """A number or NaN (JSON's null, or the NaN that Python writes)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    return expect(value, float, where)


def _row(value: object, site: Site, shape: ModelShape, where: str) -> list[Any]:
    """One entry for every dimension, also out of the rows of all heads of the layer."""
    rows = expect(value, list, where)
    if site.kind == "z" and len(rows) == shape.n_heads and all(isinstance(row, list) for row in rows):
        rows = rows[site.index or 0]
    if len(rows) != shape.d_model:
        raise CircuitError(f"{len(rows)} values, expected {shape.d_model}", where=where, fix=EDITED)
    return rows


def write(path: Path, graph: EapGraph) -> None:
    """Write a JSON file.

    Raises:
        CircuitError: it cannot be written.
    """
    table = edge_table(graph.shape)
    names = [receiver_name(site) for site in table.receivers]
    edges = {
        f"{site}->{names[v]}": {"score": 0.0 if np.isnan(s := graph.scores[u, v]) else float(s),
                                "in_graph": bool(graph.in_graph[u, v])}
        for u, site in enumerate(table.senders) for v in np.flatnonzero(table.exists[u])
    }  # fmt: skip
    nodes: dict[str, Any] = {}
    for i, site in enumerate(table.senders):
        nodes[str(site)] = {"in_graph": bool(graph.node_in_graph[i])}
        if graph.node_scores is not None and not np.isnan(graph.node_scores[i]):
            nodes[str(site)]["score"] = float(graph.node_scores[i])
        rows = slice(i - (site.index or 0), i - (site.index or 0) + graph.shape.n_heads) if site.kind == "z" else i
        if graph.neuron_in_graph is not None:
            nodes[str(site)]["neurons"] = graph.neuron_in_graph[rows].tolist()
        if graph.neuron_scores is not None and not np.isnan(graph.neuron_scores[rows]).any():
            nodes[str(site)]["neurons_scores"] = graph.neuron_scores[rows].tolist()
    nodes["logits"] = {"in_graph": True}
    files.write(path, {"cfg": graph.cfg, "nodes": nodes, "edges": edges, **about_to(graph)})
