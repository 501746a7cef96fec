"""Circuits as GraphML (Gephi, yEd, Cytoscape, networkx), both ways.

Nodes are the parts of the model; an edge says in `port` which input of its target it enters, so that one part may send
several edges to another. What GraphML has no word for (the model's sizes, spans, origin) is an attribute of the graph.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.ranking import checked_scores
from crosspatch.circuits.reading import EDITED, expect, read_bytes
from crosspatch.errors import AddressError, CircuitError
from crosspatch.results.files import write_atomic

SPACE = "http://graphml.graphdrawing.org/xmlns"
_KEYS = {"circuit": ("graph", "string"), "kind": ("node", "string"), "layer": ("node", "int"),
         "index": ("node", "int"), "port": ("edge", "string"), "spans": ("edge", "string"),
         "score": ("edge", "double")}  # fmt: skip


def write_graphml(path: str | Path, circuit: Circuit, scores: Float[np.ndarray, " edge"] | None = None) -> None:
    """Write a circuit, with the scores of its edges if there are any; atomically.

    An edge into a key or value that several heads share is written once for each of these heads that is in the circuit.

    Raises:
        CircuitError: the file cannot be written, or scores that do not fit.
    """
    table = circuit.table
    root = ElementTree.Element("graphml", xmlns=SPACE)
    for name, (of, kind) in _KEYS.items():
        ElementTree.SubElement(root, "key", {"id": name, "for": of, "attr.name": name, "attr.type": kind})
    graph = ElementTree.SubElement(root, "graph", id=circuit.name or "circuit", edgedefault="directed")
    bare = circuit.with_(keep=np.zeros_like(circuit.keep)).to_json()
    _data(graph, "circuit", json.dumps({**bare, "scored": scores is not None}))
    values = None if scores is None else table.matrix(checked_scores(scores, circuit.shape))
    some = np.asarray(circuit.cube.any(-1))
    shown = {str(table.senders[u]) for u in np.flatnonzero(some.any(1))}
    for v in np.flatnonzero(some.any(0)):
        shown.update(circuit.readers(int(v)))
    for site in (*table.senders, table.receivers[-1]):
        if str(site) in shown:
            node = ElementTree.SubElement(graph, "node", id=str(site))
            kind = {"z": "head", "mlp_out": "mlp"}.get(site.kind, site.kind)
            _data(node, "kind", kind)
            for key, number in (("layer", site.layer), ("index", site.index)):
                if number is not None:
                    _data(node, key, str(number))
    for v, u in np.argwhere(some.T):
        for target in circuit.readers(int(v)):
            edge = ElementTree.SubElement(graph, "edge", source=str(table.senders[u]), target=target)
            _data(edge, "port", str(table.receivers[v]))
            if circuit.spans:
                kept = [span for span, here in zip(circuit.spans, circuit.cube[u, v], strict=True) if here]
                _data(edge, "spans", json.dumps(kept))
            if values is not None and not np.isnan(values[u, v]):
                _data(edge, "score", repr(float(values[u, v])))
    ElementTree.indent(root)
    try:
        write_atomic(Path(path), ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
    except OSError as error:
        raise CircuitError(f"cannot be written ({error.strerror})", where=str(path), fix="check the folder") from error


def _data(parent: ElementTree.Element, key: str, text: str) -> None:
    ElementTree.SubElement(parent, "data", key=key).text = text


def read_graphml(path: str | Path) -> tuple[Circuit, Float[np.ndarray, " edge"] | None]:
    """Read what `write_graphml` wrote: the circuit, and its scores (NaN for other edges) if it had any.

    Files that other programs saved again are read as long as they keep the attributes.

    Raises:
        CircuitError: it cannot be read, declares entities, or is no such graph; names the place.
    """
    where, data = str(path), read_bytes(Path(path))
    if b"\x00" in data or b"<!" in data.replace(b"<!--", b""):
        what = "has a document type or is not UTF-8; such a file can be made to expand without end"
        raise CircuitError(what, where=where, fix="save it without a DOCTYPE, in UTF-8")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise CircuitError(f"is not XML ({error})", where=where, fix=EDITED) from error
    names = {key.get("id", ""): key.get("attr.name", "") for key in root.iter(f"{{{SPACE}}}key")}
    graph = root.find(f"{{{SPACE}}}graph")
    about = {} if graph is None else _attributes(graph, names)
    if graph is None or "circuit" not in about:
        raise CircuitError("is no circuit in GraphML", where=where, fix="only files that crosspatch wrote have one")
    try:
        bare = expect(json.loads(about["circuit"]), dict, f"{where}, circuit")
    except (ValueError, RecursionError) as error:
        raise CircuitError(f"is not JSON ({error})", where=f"{where}, circuit", fix=EDITED) from error
    scored = expect(bare.pop("scored", False), bool, f"{where}, circuit, scored")
    circuit = Circuit.from_json(bare, f"{where}, circuit")
    table, keep = circuit.table, circuit.cube.copy()
    scores = np.full(table.exists.shape, np.nan)
    for i, edge in enumerate(graph.findall(f"{{{SPACE}}}edge")):
        here, found = f"{where}, edge {i}", _attributes(edge, names)
        try:
            u, v = table.parse(f"{edge.get('source')}->{found.get('port')}")
            spans = json.loads(found["spans"]) if circuit.spans else ["*"]
            keep[u, v, [circuit.spans.index(span) if circuit.spans else 0 for span in spans]] = True
            scores[u, v] = float(found.get("score", "nan"))
        except (AddressError, KeyError, ValueError, TypeError) as error:
            raise CircuitError(f"is no edge of this model ({error})", where=here, fix=EDITED) from error
        if math.isinf(scores[u, v]):
            raise CircuitError("an infinite score", where=here, fix=EDITED)
    circuit = circuit.with_(keep=keep if circuit.spans else keep[..., 0])
    return circuit, table.flat(scores) if scored else None


def _attributes(element: ElementTree.Element, names: dict[str, str]) -> dict[str, str]:
    found = element.findall(f"{{{SPACE}}}data")
    return {names.get(data.get("key", ""), ""): data.text or "" for data in found}
