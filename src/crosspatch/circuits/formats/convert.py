"""One call to read a circuit of any known format, and one to write it, by the name of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from crosspatch.circuits import files
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.formats.attribution_graph import from_json as graph_from_json
from crosspatch.circuits.formats.components import component_circuit
from crosspatch.circuits.formats.dot import write_dot
from crosspatch.circuits.formats.eap import Mixed, read_eap, to_eap, write_eap
from crosspatch.circuits.formats.graphml import read_graphml, write_graphml
from crosspatch.circuits.reading import read_json
from crosspatch.errors import CircuitError
from crosspatch.graph import ModelShape

Scores = Float[np.ndarray, " edge"] | None
FORMATS = {"crosspatch": ".json", "eap": ".json", "eap-pt": ".pt", "graphml": ".graphml", "dot": ".dot"}
"""Names of the formats that `write_circuit` writes, and how their files end."""


def read_circuit(path: str | Path, shape: ModelShape | None = None, mixed: Mixed = "refuse") -> tuple[Circuit, Scores]:
    """Read a circuit from a file of crosspatch, EAP-IG or MIB, GraphML, or a graph of parts for Neuronpedia.

    Args:
        shape: the model's sizes, for files that do not say them all (EAP-IG); None: as the file has it.
        mixed: what an edge means that EAP-IG keeps for some heads of a group, see `EapGraph.circuit`.

    Returns:
        The circuit, and the scores of its edges by number if the file has any (NaN: not scored).

    Raises:
        CircuitError: no such file, or of no known format; names the place.
    """
    path = Path(path)
    if path.suffix == ".graphml":
        circuit, scores = read_graphml(path)
    elif path.suffix == ".pt":
        circuit, scores = _eap(path, shape, mixed)
    else:
        data = read_json(path)
        if data.get("schema") == files.SCHEMA:
            circuit, scores = files.from_json(data, str(path)), None
        elif "cfg" in data and "edges" in data:
            circuit, scores = _eap(path, shape, mixed)
        elif "links" in data and "metadata" in data:
            circuit, scores = component_circuit(graph_from_json(data, str(path)), str(path))
        else:
            raise CircuitError(
                "is of no known format",
                where=str(path),
                fix="give a circuit of crosspatch, a graph of EAP-IG or MIB, GraphML, or a graph of parts",
            )
    if shape is not None and circuit.shape != shape:
        raise CircuitError(f"is of another model, {circuit.shape}", where=str(path), fix=f"this one is {shape}")
    return circuit, scores


def _eap(path: Path, shape: ModelShape | None, mixed: Mixed) -> tuple[Circuit, Scores]:
    graph = read_eap(path)
    try:
        circuit, scores = graph.circuit(shape, mixed), graph.edge_scores(shape)
    except CircuitError as error:
        raise CircuitError(str(error), where=str(path)) from error
    return circuit, None if np.isnan(scores).all() else scores


def write_circuit(path: str | Path, circuit: Circuit, scores: Scores = None, kind: str | None = None) -> None:
    """Write a circuit; the format by the end of the file's name, or as named (`eap` for EAP-IG's JSON).

    Raises:
        CircuitError: an unknown format, or the circuit cannot be written in it.
    """
    path = Path(path)
    kind = kind or next((name for name, suffix in FORMATS.items() if suffix == path.suffix), None)
    if kind not in FORMATS or FORMATS[kind] != path.suffix:
        names = ", ".join(f"{name} ({suffix})" for name, suffix in FORMATS.items())
        raise CircuitError(f"no format {kind or ''} for files that end in {path.suffix!r}", where=str(path), fix=names)
    if kind == "crosspatch":
        circuit.save(path)
    elif kind == "graphml":
        write_graphml(path, circuit, scores)
    elif kind == "dot":
        write_dot(path, circuit, scores)
    else:
        write_eap(path, to_eap(circuit, scores))
