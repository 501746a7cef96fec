"""EAP-IG's graph as a `.pt` file: `cfg`, `src_nodes`, `dst_nodes` and tensors. Read without running code in it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosspatch.circuits.formats.eap import EapGraph
from crosspatch.circuits.formats.eap_files import about_from, about_to, receiver_name, shape_of
from crosspatch.circuits.reading import EDITED, entry, expect, read_bytes
from crosspatch.errors import CircuitError
from crosspatch.graph import edge_table
from crosspatch.results.files import write_atomic


def read(path: Path) -> EapGraph:
    """Read a `.pt` file.

    Raises:
        CircuitError: it cannot be read, holds more than tensors and plain data, or is no such graph; names the place.
    """
    where, content = str(path), read_bytes(path)
    try:
        data = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise almost anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        what = f"is no file of tensors and plain data ({reason:.100})"
        raise CircuitError(what, where=where, fix="nothing else is read, because it could run code") from error
    data = expect(data, dict, where)
    shape = shape_of(entry(data, "cfg", dict, where), f"{where}, cfg")
    table = edge_table(shape)
    for key, names in (
        ("src_nodes", [str(site) for site in table.senders]),
        ("dst_nodes", [receiver_name(site) for site in table.receivers]),
    ):
        if entry(data, key, list, where) != names:
            raise CircuitError("not the nodes of a model with this cfg, in order", where=f"{where}, {key}", fix=EDITED)
    n, edges, neurons = len(table.senders), table.exists.shape, (len(table.senders), shape.d_model)
    in_graph = _array(data, "edges_in_graph", edges, where)
    if in_graph is None:
        raise CircuitError("'edges_in_graph' is missing", where=where, fix=EDITED)
    scores, nodes = _array(data, "edges_scores", edges, where), _array(data, "nodes_in_graph", (n,), where)
    neuron_marks = _array(data, "neurons_in_graph", neurons, where)
    return EapGraph(
        shape,
        in_graph.astype(bool) & table.exists,
        np.full(edges, np.nan) if scores is None else np.where(table.exists, scores, np.nan),
        np.asarray(in_graph.astype(bool).any(1)) if nodes is None else nodes.astype(bool),
        _array(data, "nodes_scores", (n,), where),
        None if neuron_marks is None else neuron_marks.astype(bool),
        _array(data, "neurons_scores", neurons, where),
        about_from(data, where),
    )


def _array(data: dict[str, Any], key: str, shape: tuple[int, ...], where: str) -> np.ndarray | None:
    """A tensor of this shape as float64, or None where there is none."""
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape or value.is_complex():
        what = f"tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise CircuitError(f"{what}, expected real numbers of shape {shape}", where=f"{where}, {key}", fix=EDITED)
    array = value.to_dense().to(torch.float64).numpy()
    if np.isinf(array).any():
        raise CircuitError("an infinite value", where=f"{where}, {key}", fix=EDITED)
    return array


def write(path: Path, graph: EapGraph) -> None:
    """Write a `.pt` file, atomically.

    Raises:
        CircuitError: it cannot be written.
    """
    table = edge_table(graph.shape)
    data: dict[str, Any] = {
        "cfg": graph.cfg,
        "src_nodes": [str(site) for site in table.senders],
        "dst_nodes": [receiver_name(site) for site in table.receivers],
        "edges_scores": torch.from_numpy(np.nan_to_num(graph.scores, nan=0.0)),
        "edges_in_graph": torch.from_numpy(graph.in_graph.copy()),
        "nodes_in_graph": torch.from_numpy(graph.node_in_graph.copy()),
    }
    for key, value in (
        ("nodes_scores", graph.node_scores),
        ("neurons_in_graph", graph.neuron_in_graph),
        ("neurons_scores", graph.neuron_scores),
    ):
        if value is not None:
            data[key] = torch.from_numpy(value.copy())
    buffer = io.BytesIO()
    torch.save({**data, **about_to(graph)}, buffer)
    try:
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise CircuitError(f"cannot be written ({error.strerror})", where=str(path), fix="check the folder") from error
