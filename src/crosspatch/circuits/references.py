"""Circuits that others have published, as data with their source: what to compare a found circuit with.

Each file in `reference/` says where every fact comes from and how sure it is. None of them is ground truth: they were
found by hand, under one ablation, and hold at certain positions of certain templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.files import shape_from_json
from crosspatch.circuits.reading import read_json
from crosspatch.errors import CircuitError
from crosspatch.graph import EdgeTable, ModelShape, Site, comes_before, edge_table, parse_site

NAMES = ("docstring", "greater-than", "ioi")
COMPARED = ("n_layers", "n_heads", "n_kv_heads", "parallel", "has_mlp", "causal")
"""What two shapes must share to have the same graph."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A published circuit.

    Attributes:
        circuit: its edges, on the model's shape.
        classes: what the authors call a group of parts -> names of these parts.
        about: title, model, task, citation, where each fact comes from (`facts`), `notes`.
    """

    circuit: Circuit
    classes: dict[str, tuple[str, ...]]
    about: dict[str, Any]

    @property
    def labels(self) -> dict[str, str]:
        """Name of a part -> its class, for figures and exports."""
        return {name: label for label, names in self.classes.items() for name in names}

    def __str__(self) -> str:
        cited = self.about["citation"]
        where = f"arXiv {cited['arxiv']}" if "arxiv" in cited else cited["url"]
        return f"{self.about['title']} ({cited['authors']} {cited['year']}, {where}): {self.circuit}"


@cache
def reference(name: str, shape: ModelShape | None = None) -> Reference:
    """A published circuit by name: `ioi`, `greater-than` or `docstring`.

    Where the authors let signals pass through MLPs on the way from one part to the next (`ioi`), the circuit holds
    these MLPs and the edges that such ways take.

    Args:
        shape: of the model that it is compared on, if it differs in its vocabulary or widths; its layers and heads must
            be those of the published model.

    Raises:
        CircuitError: another name, or a model with other layers or heads.
    """
    if name not in NAMES:
        raise CircuitError(f"no reference circuit {name!r}", where="reference", fix=f"use one of {', '.join(NAMES)}")
    path = files("crosspatch.circuits") / "reference" / f"{name.replace('-', '_')}.json"
    data = read_json(path)  # type: ignore[arg-type]  # a package is a folder on disk
    published = shape_from_json(data["shape"], name)
    shape = shape or published
    if any(getattr(shape, size) != getattr(published, size) for size in COMPARED):
        what = f"was found in {data['model']}, of {published.n_layers} layers of {published.n_heads} heads"
        raise CircuitError(what, where=f"reference {name}", fix=f"compare it on that model, not on {shape}")
    table = edge_table(shape)
    keep = np.zeros(table.exists.shape, dtype=bool)
    classes = {label: tuple(names) for label, names in data["classes"].items()}
    for connection in data["connections"]:
        for sender in classes.get(connection["from"], (connection["from"],)):
            for part in classes.get(connection["to"], (connection["to"],)):
                for receiver in [f"{part}.{port}" for port in connection["ports"]] or [part]:
                    u, v = parse_site(sender), parse_site(receiver)
                    if comes_before(u, v, shape):
                        _connect(keep, table, u, v, data["through_mlps"])
    about = {key: value for key, value in data.items() if key not in ("name", "shape", "classes", "connections")}
    origin = {"reference": name, "citation": data["citation"], "model": data["model"], "ablation": data["ablation"]}
    return Reference(Circuit(shape, keep, name=name, origin=origin), classes, about)


def _connect(keep: np.ndarray, table: EdgeTable, sender: Site, receiver: Site, through_mlps: bool) -> None:
    """Keep the edge, and with `through_mlps` all edges of ways from one to the other through MLPs only; in place."""
    mlps = [site for site in table.senders if site.kind == "mlp_out"] if through_mlps else []
    between = [m for m in mlps if comes_before(sender, m, table.shape) and comes_before(m, receiver, table.shape)]
    for u in (sender, *between):
        for v in (*between, receiver):
            if comes_before(u, v, table.shape):
                keep[table.sender_number[u], table.receiver_number[v]] = True
