"""Circuits as JSON files, with a version of their schema."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspatch.circuits.reading import EDITED, MOST_CELLS, entry, expect, read_json
from crosspatch.errors import AddressError, CircuitError, CrosspatchError, ResultError
from crosspatch.graph import ModelShape, edge_table
from crosspatch.results.files import write_json

if TYPE_CHECKING:
    from crosspatch.circuits.circuit import Circuit

SCHEMA = "crosspatch.circuit"
VERSION = 1


def to_json(circuit: Circuit) -> dict[str, Any]:
    """A circuit as JSON values.

    `edges`: receiver -> senders, or span -> receiver -> senders; only receivers that read something.
    """
    layers = [_by_receiver(circuit, circuit.cube[..., i]) for i in range(circuit.cube.shape[2])]
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "name": circuit.name,
        "shape": dataclasses.asdict(circuit.shape),
        "spans": list(circuit.spans),
        "edges": dict(zip(circuit.spans, layers, strict=True)) if circuit.spans else layers[0],
        "neurons": {name: {"basis": n.basis, "kept": list(n.kept)} for name, n in circuit.neurons.items()},
        "origin": dict(circuit.origin),
    }


def _by_receiver(circuit: Circuit, keep: np.ndarray) -> dict[str, list[str]]:
    table = circuit.table
    senders = [str(site) for site in table.senders]
    return {
        str(table.receivers[v]): [senders[u] for u in np.flatnonzero(keep[:, v])] for v in np.flatnonzero(keep.any(0))
    }


def from_json(data: object, where: str = "circuit") -> Circuit:
    """Read what `to_json` gave.

    Raises:
        CircuitError: anything else; names the place.
    """
    from crosspatch.circuits.circuit import Circuit
    from crosspatch.circuits.neurons import Neurons

    data = expect(data, dict, where)
    if data.get("schema") != SCHEMA:
        fix = "formats.read_circuit reads files of other programs"
        raise CircuitError(f"schema {data.get('schema')!r:.40}, expected {SCHEMA!r}", where=where, fix=fix)
    if entry(data, "version", int, where) != VERSION:
        fix = "update crosspatch" if data["version"] > VERSION else "write it again"
        raise CircuitError(f"version {data['version']}, this crosspatch reads {VERSION}", where=where, fix=fix)
    shape = shape_from_json(entry(data, "shape", dict, where), f"{where}, shape")
    spans = tuple(expect(span, str, f"{where}, spans") for span in entry(data, "spans", list, where))
    edges, table = entry(data, "edges", dict, where), edge_table(shape)
    if spans and set(edges) != set(spans):
        raise CircuitError("edges are not listed for just the spans", where=f"{where}, edges", fix=EDITED)
    keep = np.zeros((*table.exists.shape, max(len(spans), 1)), dtype=bool)
    senders, receivers = ({str(site): i for i, site in enumerate(s)} for s in (table.senders, table.receivers))
    for i, part in enumerate([entry(edges, span, dict, f"{where}, edges") for span in spans] or [edges]):
        for name, reads in part.items():
            here = f"{where}, edges, {name:.40}"
            v = _number(receivers, name, "receives", here)
            keep[[_number(senders, u, "sends", here) for u in expect(reads, list, here)], v, i] = True
    neurons = {}
    for name, part in entry(data, "neurons", dict, where).items():
        here = f"{where}, neurons, {name:.40}"
        kept = [expect(n, int, here) for n in entry(expect(part, dict, here), "kept", list, here)]
        neurons[name] = Neurons(tuple(kept), entry(part, "basis", str, here))  # type: ignore[arg-type]
    name, origin = entry(data, "name", str, where), entry(data, "origin", dict, where)
    try:
        return Circuit(shape, keep if spans else keep[..., 0], spans, neurons, name, origin)
    except (AddressError, CircuitError) as error:
        raise CircuitError(str(error), where=where) from error


def _number(numbers: dict[str, int], name: object, what: str, where: str) -> int:
    if not isinstance(name, str) or name not in numbers:
        raise CircuitError(f"nothing named {name!r:.40} {what} in a model of this shape", where=where, fix=EDITED)
    return numbers[name]


def shape_from_json(data: dict[str, Any], where: str) -> ModelShape:
    """The sizes of a model, refused where they would need more memory than any model that people use.

    Fields that have a default may be missing, so that files from before such a field was there stay readable.

    Raises:
        CircuitError: a field that is missing, unknown or of another type, or too large.
    """
    fields = {
        f.name: {"int": int, "bool": bool}[str(f.type)]
        for f in dataclasses.fields(ModelShape)
        if f.name in data or f.default is dataclasses.MISSING
    }
    unknown = sorted(data.keys() - fields.keys())
    if unknown:
        raise CircuitError(f"unknown field {unknown[0]!r:.40}", where=where, fix=EDITED)
    values: dict[str, Any] = {name: entry(data, name, kind, where) for name, kind in fields.items()}
    return bounded(values, where)


def bounded(values: dict[str, Any], where: str) -> ModelShape:
    """A shape from a file's numbers.

    Raises:
        CircuitError: sizes that are no model's, or beyond `MOST_CELLS`.
    """
    senders = 1 + values["n_layers"] * (values["n_heads"] + 1)
    receivers = 1 + values["n_layers"] * (values["n_heads"] + 2 * values["n_kv_heads"] + 1)
    if min(values["n_layers"], values["n_heads"], values["n_kv_heads"]) > 0 and senders * receivers > MOST_CELLS:
        what = f"{values['n_layers']} layers of {values['n_heads']} heads are more than this reads"
        raise CircuitError(what, where=where, fix=EDITED)
    try:
        return ModelShape(**values)
    except CrosspatchError as error:
        raise CircuitError(error.what, where=where, fix=error.fix or EDITED) from error


def save(circuit: Circuit, path: Path) -> None:
    """Write a circuit as JSON, atomically.

    Raises:
        CircuitError: the place cannot be written to.
    """
    write(path, to_json(circuit))


def write(path: Path, data: object) -> None:
    """Write JSON atomically.

    Raises:
        CircuitError: the place cannot be written to, or the data hold a number that JSON has no word for.
    """
    try:
        write_json(path, data)
    except OSError as error:
        raise CircuitError(f"cannot be written ({error.strerror})", where=str(path), fix="check the folder") from error
    except ResultError as error:
        raise CircuitError(error.what, where=str(path), fix="give finite numbers") from error


def load(path: Path) -> Circuit:
    """Read what `save` wrote.

    Raises:
        CircuitError: it cannot be read or is no circuit.
    """
    return from_json(read_json(path), str(path))
