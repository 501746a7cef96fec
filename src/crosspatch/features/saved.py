"""Effects and circuits of features as files: JSON that a person can read, and Parquet for the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crosspatch.errors import CrosspatchError, ResultError
from crosspatch.features.edge_scores import FeatureEdges
from crosspatch.features.found import FeatureEffects, Kept
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

EFFECTS, CIRCUIT, VERSION = "crosspatch-feature-effects", "crosspatch-feature-circuit", 1
CIRCUIT_FILE = "feature-circuit.json"


def save_effects(effects: FeatureEffects, folder: str | Path) -> Path:
    """Write `feature-effects.json` and its tables, atomically.

    Returns:
        The folder.
    """
    folder, kept = Path(folder), effects.kept
    index = np.nonzero(kept.dropped_abs)
    tables = {
        "kept": {name: getattr(kept, name) for name in ("example", "place", "span", "node", "value")},
        "dropped": {
            **dict(zip(("place", "example", "span"), index, strict=True)),
            "sum": kept.dropped[index],
            "abs": kept.dropped_abs[index],
        },
        "mean": {"value": np.concatenate([effects.mean[place].ravel() for place in effects.places])},
    }
    written = {name: write_table(folder, name, pa.table(columns)) for name, columns in tables.items()}
    write_json(
        folder / "feature-effects.json",
        {
            "format": EFFECTS,
            "version": VERSION,
            "places": [
                {
                    "place": place,
                    "nodes": effects.mean[place].shape[1],
                    "error": effects.has_error[place],
                    "block": effects.blocks[place],
                }
                for place in effects.places
            ],
            "spans": list(effects.spans),
            "clean": effects.clean.tolist(),
            "clusters": effects.clusters,
            "pairs": effects.pairs,
            "origin": effects.origin,
            "tables": written,
        },
    )
    drop_tables(folder, written, written.values())
    return folder


def load_effects(folder: str | Path) -> FeatureEffects:
    """Read what `save_effects` wrote.

    Raises:
        ResultError: a file that is missing, cut off, edited, or something else.
    """
    folder = Path(folder)
    data, where = _read(folder / "feature-effects.json", EFFECTS)
    try:
        kept, dropped, mean = (_columns(folder, data["tables"][name]) for name in ("kept", "dropped", "mean"))
        places = [str(entry["place"]) for entry in data["places"]]
        spans = tuple(map(str, data["spans"]))
        sizes = [len(spans) * int(entry["nodes"]) for entry in data["places"]]
        parts = np.split(mean["value"], np.cumsum(sizes)[:-1])
        shape = (len(places), len(data["clean"]), len(spans))
        made = Kept(**kept, dropped=np.zeros(shape), dropped_abs=np.zeros(shape))
        at = dropped["place"], dropped["example"], dropped["span"]
        made.dropped[at], made.dropped_abs[at] = dropped["sum"], dropped["abs"]
        return FeatureEffects(
            places=places,
            has_error={str(entry["place"]): bool(entry["error"]) for entry in data["places"]},
            blocks={str(entry["place"]): int(entry["block"]) for entry in data["places"]},
            spans=spans,
            mean={place: part.reshape(len(spans), -1) for place, part in zip(places, parts, strict=True)},
            kept=made,
            clean=np.asarray(data["clean"], dtype=np.float64),
            clusters=list(map(str, data["clusters"])),
            pairs=list(map(str, data["pairs"])),
            origin=dict(data["origin"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _broken(where, error) from error


def save_circuit(folder: str | Path, nodes: NodeSet, edges: FeatureEdges | None = None) -> Path:
    """Write `feature-circuit.json`, with the nodes, and the effects of its edges beside it, atomically. Those of a
    circuit that was there before are removed.

    Returns:
        The folder.

    Raises:
        ResultError: edges between other nodes.
    """
    folder = Path(folder)
    if edges is not None and edges.nodes != list(nodes):
        raise ResultError("the edges are between other nodes", where=str(folder), fix="give the set they were made for")
    places = {
        place: {
            "nodes": keep.shape[1],
            "error": nodes.has_error[place],
            "kept": [[int(span), int(column)] for span, column in zip(*np.nonzero(keep), strict=True)],
        }
        for place, keep in nodes.keep.items()
    }
    data: dict[str, Any] = {"format": CIRCUIT, "version": VERSION, "name": nodes.name, "spans": list(nodes.spans)}
    data |= {"places": places, "edges": None}
    if edges is not None:
        columns = {"up": edges.up, "down": edges.down, "values": rows_to_lists(edges.values.T)}
        data["edges"] = {
            "table": write_table(folder, "edges", pa.table(columns)),
            "clusters": edges.clusters,
            "pairs": edges.pairs,
            "origin": edges.origin,
        }
    write_json(folder / CIRCUIT_FILE, data)
    drop_tables(folder, ["edges"], [] if data["edges"] is None else [data["edges"]["table"]])
    return folder


def load_circuit(folder: str | Path) -> tuple[NodeSet, FeatureEdges | None]:
    """Read what `save_circuit` wrote.

    Raises:
        ResultError: a file that is missing, cut off, edited, or something else.
    """
    folder = Path(folder)
    data, where = _read(folder / CIRCUIT_FILE, CIRCUIT)
    try:
        spans = tuple(map(str, data["spans"]))
        keep = {}
        for place, entry in data["places"].items():
            keep[place] = marks = np.zeros((len(spans), int(entry["nodes"])), dtype=bool)
            for span, column in entry["kept"]:
                if span < 0 or column < 0:
                    raise ValueError(f"node {column} of span {span}")
                marks[span, column] = True
        has_error = {place: bool(entry["error"]) for place, entry in data["places"].items()}
        nodes = NodeSet(keep, has_error, spans, str(data["name"]))
        about = data["edges"]
        if about is None:
            return nodes, None
        table, clusters = read_table(folder, about["table"]), list(map(str, about["clusters"]))
        up, down = (table[name].to_numpy().astype(np.int64) for name in ("up", "down"))
        listed = list(nodes)
        if len(up) and not (0 <= up.min() <= up.max() < len(listed) and -1 <= down.min() <= down.max() < len(listed)):
            raise ValueError("an edge of a node that is not there")
        values = lists_to_rows(table, "values", len(clusters), where).T
        pairs = list(map(str, about["pairs"]))
        return nodes, FeatureEdges(listed, up, down, values, clusters, pairs, dict(about["origin"]))
    except ResultError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, CrosspatchError) as error:
        raise _broken(where, error) from error


def _read(path: Path, wanted: str) -> tuple[dict[str, Any], str]:
    data = read_json(path)
    if data.get("format") != wanted or data.get("version") != VERSION:
        raise ResultError(f"is not a file of the format {wanted} {VERSION}", where=str(path))
    return data, str(path)


def _columns(folder: Path, told: Mapping[str, str]) -> dict[str, np.ndarray]:
    table = read_table(folder, told)
    return {name: table[name].to_numpy().copy() for name in table.column_names}


def _broken(where: str, error: Exception) -> ResultError:
    return ResultError(f"cannot be read ({error})", where=where, fix="restore it from a copy")
