"""Evaluations with a label, and their files: lines of a figure over size, or one set under several policies. Plain
data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crosspatch.errors import CrosspatchError, ResultError
from crosspatch.features.edge_sets import EdgeEvaluation, EdgeSet
from crosspatch.features.evaluation import FeatureEvaluation
from crosspatch.features.nodes import NodeSet
from crosspatch.results.files import (
    drop_tables,
    lists_to_rows,
    read_json,
    read_table,
    rows_to_lists,
    write_json,
    write_table,
)

FORMAT, VERSION, FILE = "crosspatch-feature-evaluations", 1, "evaluations.json"
ERROR_WORDS = {
    "nodes": "error terms are nodes",
    "kept": "all error terms kept",
    "removed": "no error terms",
    "stream kept": "error terms of the stream kept",
}


@dataclass(eq=False)
class Curve:
    """An evaluation with what it is of.

    Attributes:
        kind: `features`, `edges`, or which neurons.
        method: what nodes were ranked by.
        errors: policy for error terms; "" where there are none.
        evaluation: of sets of growing size.
    """

    kind: str
    method: str
    errors: str
    evaluation: FeatureEvaluation

    @property
    def name(self) -> str:
        """For a legend."""
        return f"{self.kind} ({self.method})" + (f", {ERROR_WORDS[self.errors]}" if self.errors else "")


def save_curves(folder: str | Path, curves: Sequence[Curve]) -> Path:
    """Write `evaluations.json` and its tables, atomically. Tables of evaluations that were there before are removed.

    Returns:
        The folder.
    """
    folder = Path(folder)
    saved = [_saved(folder, curve) for curve in curves]
    write_json(folder / FILE, {"format": FORMAT, "version": VERSION, "evaluations": saved})
    named = [told for one in saved for told in (*one["tables"].values(), one["edges"]) if told is not None]
    drop_tables(folder, ["values", "nodes", "ends"], named)
    return folder


def load_curves(folder: str | Path) -> list[Curve]:
    """Read what `save_curves` wrote.

    Raises:
        ResultError: a file that is missing, cut off, edited, or something else.
    """
    folder = Path(folder)
    data, where = read_json(folder / FILE), str(folder / FILE)
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise ResultError(f"is not a file of the format {FORMAT} {VERSION}", where=where)
    try:
        return [_loaded(folder, entry) for entry in data["evaluations"]]
    except ResultError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, CrosspatchError) as error:
        raise ResultError(f"cannot be read ({error})", where=where, fix="restore it from a copy") from error


def _saved(folder: Path, curve: Curve) -> dict[str, Any]:
    found = curve.evaluation
    first = found.sets[0]
    places = list(first.keep)
    nodes = [
        (i, p, int(span), int(column))
        for i, one in enumerate(found.sets)
        for p, place in enumerate(places)
        for span, column in zip(*np.nonzero(one.keep[place]), strict=True)
    ]
    n = len(found.model)
    rows = [found.model[None], found.empty[None], found.kept, found.cut]
    rows += [found.random_kept.reshape(-1, n), found.random_cut.reshape(-1, n)]
    data: dict[str, Any] = {
        "kind": curve.kind,
        "method": curve.method,
        "errors": curve.errors,
        "sets": [one.name for one in found.sets],
        "places": {place: {"nodes": first.keep[place].shape[1], "error": first.has_error[place]} for place in places},
        "spans": list(first.spans),
        "n_random": found.random_kept.shape[1],
        "pairs": found.pairs,
        "clusters": found.clusters,
        "about": found.about,
        "edges": None,
    }
    if isinstance(found, EdgeEvaluation):
        rows.append(found.nodes_kept[None])
        ends = [(i, int(u), int(d)) for i, one in enumerate(found.edges) for u, d in zip(one.up, one.down, strict=True)]
        table = pa.table(dict(zip(("set", "up", "down"), _columns(ends, 3), strict=True)))
        data["edges"] = {"names": [one.name for one in found.edges], **write_table(folder, "ends", table)}
    members = pa.table(dict(zip(("set", "place", "span", "node"), _columns(nodes, 4), strict=True)))
    values = pa.table({"values": rows_to_lists(np.concatenate(rows))})
    tables = {"values": write_table(folder, "values", values), "nodes": write_table(folder, "nodes", members)}
    return data | {"tables": tables}


def _loaded(folder: Path, data: Mapping[str, Any]) -> Curve:
    spans, clusters = tuple(map(str, data["spans"])), list(map(str, data["clusters"]))
    names, places, n_random = [str(name) for name in data["sets"]], data["places"], int(data["n_random"])
    has_error = {place: bool(told["error"]) for place, told in places.items()}
    keeps = [{p: np.zeros((len(spans), int(told["nodes"])), bool) for p, told in places.items()} for _ in names]
    listed = list(places)
    members = read_table(folder, data["tables"]["nodes"])
    for i, place, span, node in zip(*(members[c].to_pylist() for c in ("set", "place", "span", "node")), strict=True):
        if min(i, place, span, node) < 0:
            raise ValueError(f"node {node} of set {i}")
        keeps[i][listed[place]][span, node] = True
    sets = [NodeSet(keep, has_error, spans, name) for keep, name in zip(keeps, names, strict=True)]
    rows = lists_to_rows(read_table(folder, data["tables"]["values"]), "values", len(clusters), str(folder / FILE))
    k, edges = len(sets), data["edges"]
    sizes = [1, 1, k, k, k * n_random, k * n_random] + ([1] if edges else [])
    if len(rows) != sum(sizes):
        raise ValueError(f"{len(rows)} rows of values, expected {sum(sizes)}")
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    shape = (k, n_random, len(clusters))
    fields: dict[str, Any] = {
        "sets": sets, "pairs": list(map(str, data["pairs"])), "clusters": clusters, "model": parts[0][0],
        "empty": parts[1][0], "kept": parts[2], "cut": parts[3], "random_kept": parts[4].reshape(shape),
        "random_cut": parts[5].reshape(shape), "about": dict(data["about"]),
    }  # fmt: skip
    found = FeatureEvaluation(**fields)
    if edges:
        table = read_table(folder, edges)
        number, up, down = (table[c].to_numpy().astype(np.int64) for c in ("set", "up", "down"))
        own = [EdgeSet(up[number == i], down[number == i], str(name)) for i, name in enumerate(edges["names"])]
        found = EdgeEvaluation(**fields, edges=own, nodes_kept=parts[6][0])
    return Curve(str(data["kind"]), str(data["method"]), str(data["errors"]), found)


def _columns(rows: Sequence[tuple[int, ...]], width: int) -> list[np.ndarray]:
    return list(np.array(rows, dtype=np.int64).reshape(-1, width).T)
