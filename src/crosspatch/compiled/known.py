"""The circuit that a compiled transformer is known to have, with the measured effect of cutting each edge.

Names are Crosspatch's: `a0.h1->a2.h0.q`, `m3->logits`. Its graph has one input, so that an edge out of `input` stands
for the two edges out of the token and the position embedding, cut together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.compiled.program import Answer, Program, read_object, read_program
from crosspatch.errors import AddressError, ModelError
from crosspatch.graph.edges import edge_table

ABLATIONS = ("resample", "zero", "mean")
_EMBEDDINGS = ("tok_embed", "pos_embed")
_JOINED = "edges_single_input"
_PORT = re.compile(r"<([qkv])>$")
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One input with what the program returns and what the compiled model puts out.

    Attributes:
        ids: token ids, BOS first.
        target: the program's answer for every token after BOS.
        output: the model's output at every position; that at BOS has no meaning.
    """

    ids: tuple[int, ...]
    target: tuple[Answer, ...]
    output: Float[np.ndarray, "token column"]


@dataclass(frozen=True)
class KnownNode:
    """A node that the program uses; `tok_embed` and `pos_embed` are the two parts of `input`.

    Attributes:
        effects: as in `KnownEdge`, of replacing the node's whole output.
    """

    name: str
    effects: dict[str, float]


@dataclass(frozen=True)
class KnownEdge:
    """An edge that the weights wire: the sender writes something that the receiver's weights read.

    Attributes:
        name: `a0.h1->a2.h0.q`.
        necessary: by ablation, whether cutting this edge alone changes some output by more than the threshold. Under
            `resample` with any of three pairings; `zero_any_length` also looks at the short examples.
        in_minimal: by ablation, whether the edge is part of one circuit that is enough and has no spare edge. Out of
            `input`: whether either embedding's edge is, so that the circuit is enough still.
        effects: change of the output when the edge is cut, over positions after BOS and all columns:
            `{ablation}_mean_abs`, `{ablation}_max_abs`, and the signed `resample_mean`.
    """

    name: str
    necessary: dict[str, bool]
    in_minimal: dict[str, bool]
    effects: dict[str, float]


@dataclass(frozen=True)
class KnownCircuit:
    """What is known of a compiled transformer.

    Attributes:
        program: what it computes, and its sizes.
        threshold: a change of the output above this one counts.
        nodes, edges: by name, those that the weights wire; every other edge has an effect of exactly zero.
        examples: of one length. Resampling gives example i the activations of example i + 1 (the last: of the first).
        short_examples: of lesser lengths.
    """

    program: Program
    threshold: float
    nodes: dict[str, KnownNode]
    edges: dict[str, KnownEdge]
    examples: tuple[Example, ...]
    short_examples: tuple[Example, ...]

    def necessary(self, ablation: str) -> frozenset[str]:
        """Edges that matter one at a time under `resample`, `zero`, `mean` or `zero_any_length`."""
        return frozenset(name for name, edge in self.edges.items() if edge.necessary[ablation])

    def minimal(self, ablation: str) -> frozenset[str]:
        """Edges of a circuit that is enough under `resample`, `zero` or `mean`."""
        return frozenset(name for name, edge in self.edges.items() if edge.in_minimal[ablation])

    def mask(self, names: frozenset[str]) -> Bool[np.ndarray, " edge"]:
        """Which of all edges of the model these are, by their numbers in `edge_table`."""
        return np.array([name in names for name in edge_table(self.program.shape).names()])

    def effects(self, measure: str) -> Float[np.ndarray, " edge"]:
        """One measure (`resample_mean_abs`) of all edges of the model, by their numbers in `edge_table`."""
        known = {name: edge.effects[measure] for name, edge in self.edges.items()}
        return np.array([known.get(name, 0.0) for name in edge_table(self.program.shape).names()])

    def tokens(self, shift: int = 0) -> list[list[int]]:
        """Token ids of the examples, or of those that they are resampled from (`shift=1`)."""
        n = len(self.examples)
        return [list(self.examples[(i + shift) % n].ids) for i in range(n)]


def read_known_circuit(folder: str | Path) -> KnownCircuit:
    """Read `config.json`, `circuit.json` and `examples.json` of a ground-truth folder.

    Raises:
        ModelError: a file that cannot be read, an edge that the model does not have, or examples that do not fit it.
    """
    program = read_program(folder)
    path = Path(folder) / "circuit.json"
    circuit, where = read_object(path), str(path)
    nodes = [node for node in _list(circuit, "nodes", where) if isinstance(node, dict) and "effects" in node]
    path = Path(folder) / "examples.json"
    listed = read_object(path)
    examples, short = (
        tuple(_entry(e, str(path), lambda e: _example(e, program)) for e in _list(listed, name, str(path)))
        for name in ("examples", "short_examples")
    )
    return KnownCircuit(
        program,
        _entry(circuit, where, lambda c: _number(c["threshold"])),
        {node.name: node for node in (_entry(node, where, _node) for node in nodes)},
        _edges(circuit, program, where),
        examples,
        short,
    )


def _edges(circuit: Mapping[str, Any], program: Program, where: str) -> dict[str, KnownEdge]:
    """Edges by name in the order of `edge_table`; those out of the two embeddings as one."""
    table = edge_table(program.shape)
    alone = (_entry(e, where, lambda e: _edge({**e, "in_minimal": {}})) for e in _list(circuit, _JOINED, where))
    joined = {edge.name: edge for edge in alone}
    edges: dict[str, KnownEdge] = {}
    for edge in (_entry(e, where, _edge) for e in _list(circuit, "edges", where)):
        sender, _, receiver = edge.name.partition("->")
        name = f"input->{receiver}" if sender in _EMBEDDINGS else edge.name
        try:
            table.parse(name)
        except AddressError as error:
            raise ModelError(f"{name!r:.60} is no edge of this model: {error.what}", where=where) from error
        if name == edge.name:
            edges[name] = edge
        elif name not in joined:
            raise ModelError(f"{_JOINED} lacks {name!r:.60}", where=where, fix="restore the file from a copy")
        else:
            minimal = edges.setdefault(name, joined[name]).in_minimal
            minimal.update({kind: minimal.get(kind, False) or edge.in_minimal[kind] for kind in ABLATIONS})
    return {name: edges[name] for name in table.names() if name in edges}


def _list(data: Mapping[str, Any], name: str, where: str) -> list[Any]:
    found = data.get(name)
    if not isinstance(found, list) or not found:
        raise ModelError(f"{name} is no list with something in it", where=where)
    return found


def _entry(value: Any, where: str, read: Callable[[Any], T]) -> T:
    try:
        return read(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{value!r:.60} cannot be read ({error})", where=where, fix="restore the file") from error


def _edge(value: Any) -> KnownEdge:
    kinds = [*ABLATIONS, "zero_any_length"]
    return KnownEdge(
        _PORT.sub(r".\1", str(value["name"])),
        {kind: bool(value["necessary"][kind]) for kind in kinds},
        {kind: bool(value["in_minimal"][kind]) for kind in ABLATIONS} if value["in_minimal"] else {},
        _numbers(value["effects"]),
    )


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no finite number")
    return float(value)


def _numbers(value: Any) -> dict[str, float]:
    return {str(name): _number(x) for name, x in value.items()}


def _node(value: Any) -> KnownNode:
    return KnownNode(str(value["name"]), _numbers(value["effects"]))


def _example(value: Any, program: Program) -> Example:
    ids = tuple(int(i) for i in value["token_ids"])
    output = np.array([[_number(x) for x in row] for row in value["output"]], dtype=np.float64)
    fits = 1 < len(ids) <= program.context and all(0 <= i < len(program.vocab) for i in ids)
    if not fits or output.shape != (len(ids), program.shape.vocab) or len(value["target"]) != len(ids) - 1:
        raise ValueError("ids, target and output do not fit each other and the model")
    return Example(ids, tuple(value["target"]), output)
