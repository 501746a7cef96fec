"""Graph files of EAP-IG, which the MIB benchmark takes too: `.json`, and `.pt` with the same in tensors.

Their graph has a query, key and value input for every query head, on models with grouped queries as well, and an MLP in
every block. `EapGraph` holds a file as it is; `circuit` and `edge_scores` carry it over to a model of ours: where heads
share a key or value, their scores add up (the gradient at a shared key is the sum over its heads), and an edge must be
kept for all of them or for none, unless the caller says what else is meant.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.neurons import Neurons
from crosspatch.circuits.ranking import checked_scores
from crosspatch.errors import CircuitError
from crosspatch.graph import EdgeTable, ModelShape, edge_table

Mixed = Literal["refuse", "any", "all"]
ABOUT = "crosspatch"
"""Key of what our files say beyond theirs; their readers pass over it."""


@dataclass(frozen=True)
class EapGraph:
    """A graph of EAP-IG, its key and value inputs one for each query head.

    Attributes:
        shape: sizes, with as many key/value heads as query heads. What their file does not say (head width, MLP width,
            vocabulary) is made up; `circuit(shape)` takes the model's.
        in_graph: `[sender, receiver]`, numbered as in `edge_table(shape)`.
        scores: of edges; NaN where there is none.
        node_in_graph, node_scores: by sender; NaN is "not scored, always kept".
        neuron_in_graph, neuron_scores: of the dimensions of every sender's output; None where the file has none.
        about: what our own files add: the model's shape, the circuit's name and origin.
    """

    shape: ModelShape
    in_graph: Bool[np.ndarray, "sender receiver"]
    scores: Float[np.ndarray, "sender receiver"]
    node_in_graph: Bool[np.ndarray, " sender"]
    node_scores: Float[np.ndarray, " sender"] | None = None
    neuron_in_graph: Bool[np.ndarray, "sender d_model"] | None = None
    neuron_scores: Float[np.ndarray, "sender d_model"] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def cfg(self) -> dict[str, Any]:
        """The sizes as their files name them."""
        s = self.shape
        return {"n_layers": s.n_layers, "n_heads": s.n_heads, "parallel_attn_mlp": s.parallel, "d_model": s.d_model}

    def circuit(self, shape: ModelShape | None = None, mixed: Mixed = "refuse") -> Circuit:
        """The edges in the graph, as a circuit of a model.

        Args:
            shape: the model's; None: the one that the file gives.
            mixed: an edge into a shared key or value that is kept for some of its heads only cannot be written in our
                graph: `refuse` it, keep it if it is kept for `any` head, or only if for `all`.

        Raises:
            CircuitError: another model, or an edge that is kept for some heads of a group only.
        """
        shape = self._fitting(shape)
        groups = _grouped(self.in_graph, self.shape, shape)
        some, every = np.asarray(groups.any(-1)), np.asarray(groups.all(-1))
        if mixed == "refuse" and (some & ~every).any():
            u, v = np.argwhere(some & ~every)[0]
            name = edge_table(shape).name(int(u), int(v))
            raise CircuitError(
                f"is kept for some of the heads that share this input: {int((some & ~every).sum())} such edges",
                where=name,
                fix='pass mixed="any" to keep them or mixed="all" to leave them out',
            )
        keep = every if mixed == "all" else some
        neurons = {}
        if self.neuron_in_graph is not None:
            for site, kept in zip(edge_table(shape).senders, self.neuron_in_graph, strict=True):
                if not kept.all():
                    neurons[str(site)] = Neurons(tuple(int(i) for i in np.flatnonzero(kept)))
        return Circuit(
            shape, keep, neurons=neurons, name=str(self.about.get("name", "")), origin=self.about.get("origin", {})
        )

    def edge_scores(self, shape: ModelShape | None = None) -> Float[np.ndarray, " edge"]:
        """Scores by number of edge of a model; of heads that share an input, their sum. NaN: not scored.

        Raises:
            CircuitError: another model.
        """
        shape = self._fitting(shape)
        return edge_table(shape).flat(_grouped(self.scores, self.shape, shape).sum(-1))

    def _fitting(self, shape: ModelShape | None) -> ModelShape:
        shape = shape or self.about.get("shape") or self.shape
        theirs = dataclasses.replace(shape, n_kv_heads=shape.n_heads, d_head=self.shape.d_head, d_mlp=self.shape.d_mlp,
                                     vocab=self.shape.vocab, has_neurons=self.shape.has_neurons)  # fmt: skip
        if theirs != self.shape:
            raise CircuitError(
                f"the file is of a model with {self.cfg}", where=f"{shape}", fix="give the shape of the same model"
            )
        return shape


def to_eap(
    circuit: Circuit,
    scores: Float[np.ndarray, " edge"] | None = None,
    node_scores: Float[np.ndarray, " sender"] | None = None,
) -> EapGraph:
    """A circuit, with scores of all edges or nodes if there are any, as a graph of EAP-IG.

    A key or value input that several heads share becomes one for each; its score is divided equally among them, so that
    `edge_scores` adds it up again.

    Raises:
        CircuitError: spans, hidden neurons, or a model without MLPs, none of which their graph has.
    """
    hidden = next((name for name, part in circuit.neurons.items() if part.basis == "hidden"), None)
    if circuit.spans or hidden or not circuit.shape.has_mlp:
        what, fix = (
            ("edges by span", "use circuit.any_span()")
            if circuit.spans
            else (f"hidden neurons (of {hidden})", "use circuit.with_(neurons={})")
            if hidden
            else ("blocks without an MLP", "save it as crosspatch's own JSON, or as GraphML")
        )
        raise CircuitError(f"EAP-IG's graph cannot hold {what}", where=circuit.name or "circuit", fix=fix)
    shape = dataclasses.replace(circuit.shape, n_kv_heads=circuit.shape.n_heads)
    mine, theirs = edge_table(circuit.shape), edge_table(shape)
    column = _columns(mine, theirs)
    heads = np.bincount(column, minlength=len(mine.receivers))[column]
    values = np.full(theirs.exists.shape, np.nan)
    if scores is not None:
        values = mine.matrix(checked_scores(scores, circuit.shape), np.nan)[:, column] / heads
    neurons = None
    if circuit.neurons:
        neurons = np.ones((len(mine.senders), shape.d_model), dtype=bool)
        for name, part in circuit.neurons.items():
            row = [str(site) for site in mine.senders].index(name)
            neurons[row] = False
            neurons[row, list(part.kept)] = True
    about = {"shape": circuit.shape, "name": circuit.name, "origin": dict(circuit.origin)}
    nodes = None if node_scores is None else np.array(node_scores, np.float64)
    if nodes is not None and nodes.shape != (len(mine.senders),):
        raise CircuitError(f"{nodes.shape} node scores", where="to_eap", fix=f"give {len(mine.senders)}, by sender")
    return EapGraph(shape, circuit.keep[:, column], values, circuit.node_mask, nodes, neurons, None, about)


def _columns(mine: EdgeTable, theirs: EdgeTable) -> np.ndarray:
    """For each receiver of the ungrouped graph the one of ours that it is part of."""
    found = []
    for site in theirs.receivers:
        shared = site.kind in ("k", "v")
        index = mine.shape.group_of(site.index or 0) if shared else site.index
        found.append(mine.receiver_number[dataclasses.replace(site, index=index)])
    return np.array(found)


def _grouped(matrix: np.ndarray, theirs: ModelShape, mine: ModelShape) -> Float[np.ndarray, "sender receiver head"]:
    """Entries of the ungrouped graph by receiver of ours, one for each head; a receiver that is not shared repeats
    nothing: it has a neutral element (True for marks, 0 for numbers) in the other places."""
    table, size = edge_table(mine), mine.n_heads // mine.n_kv_heads
    column = _columns(table, edge_table(theirs))
    if matrix.dtype == bool:
        # A single head is repeated, so that any and all agree.
        first = np.array([int(np.flatnonzero(column == v)[0]) for v in range(len(table.receivers))])
        out = np.repeat(matrix[:, first][..., None], size, -1)
    else:
        out = np.zeros((*table.exists.shape, size))
    seen: dict[int, int] = {}
    for theirs_at, v in enumerate(column):
        place = seen.get(int(v), 0)
        out[:, v, place] = matrix[:, theirs_at]
        seen[int(v)] = place + 1
    return out


def read_eap(path: str | Path) -> EapGraph:
    """Read a graph file of EAP-IG or MIB, `.json` or `.pt`; no code in it is run.

    Raises:
        CircuitError: it cannot be read, or is no such graph; names the place.
    """
    from crosspatch.circuits.formats import eap_files

    path = Path(path)
    if path.suffix == ".pt":
        from crosspatch.circuits.formats import eap_tensors

        return eap_tensors.read(path)
    return eap_files.read(path)


def write_eap(path: str | Path, graph: EapGraph) -> None:
    """Write a graph for EAP-IG or MIB, `.json` or `.pt` by the name of the file; atomically.

    Scores that are missing are written as 0, as they are in a new graph of theirs; missing node scores are left out.

    Raises:
        CircuitError: it cannot be written.
    """
    from crosspatch.circuits.formats import eap_files

    path = Path(path)
    if path.suffix == ".pt":
        from crosspatch.circuits.formats import eap_tensors

        eap_tensors.write(path, graph)
    else:
        eap_files.write(path, graph)
