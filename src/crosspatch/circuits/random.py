"""Random circuits of a given size, the yardstick for found ones: unions of random walks from the logits to the input.

A set of random edges would be unfair: nearly all of them lie on no path, so that such a "circuit" of a few hundred
edges does nothing. Shi et al. 2024 (arXiv 2410.13032) therefore draw whole paths; so does this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool

from crosspatch.circuits import flow
from crosspatch.circuits.circuit import Circuit
from crosspatch.errors import CircuitError
from crosspatch.graph import ALL, ModelShape, edge_table

Option = TypeVar("Option")
Edge = tuple[int, int, int]
"""Numbers of sender, receiver and span."""

WALKS = 2000
"""Most walks in one circuit. Large circuits are completed with single edges; walks alone would take for ever."""
_IDLE = 30  # walks in a row that add nothing, or too much, after which single edges complete the circuit
_TRIES = 20


def random_circuits(
    shape: ModelShape,
    n_edges: int,
    n: int = 1,
    *,
    seed: int = 0,
    spans: Sequence[str] = (),
    within: Circuit | None = None,
) -> list[Circuit]:
    """Connected random circuits of `n_edges` edges.

    A walk begins at the logits and goes to a sender, each that comes before with equal chance, then to one of its
    inputs (query, key, value; the MLP's), until it meets the input. Walks are united as long as they fit. What is then
    missing is filled with single edges, drawn evenly among those that join two parts which the circuit already
    connects. Very rarely no circuit of the exact size is met; then it has an edge less.

    Args:
        shape: the model's sizes.
        n_edges: edges of each circuit; with spans an edge at two spans counts twice.
        n: how many; circuit i is the same whatever `n` is.
        spans: names, for circuits that are kept by span; a walk changes its span at keys and values only.
        within: draw from the edges of this circuit only (those on a path); its spans must be `spans`.

    Raises:
        CircuitError: fewer edges than asked for are on a path within `within`.
    """
    walker = _Walker(shape, tuple(spans), within)
    total = int(walker.allowed.sum())
    if not 0 <= n_edges <= total:
        what = f"{n_edges} edges were asked for, {total} are on a path"
        raise CircuitError(what, where="random_circuits", fix="ask for fewer")
    found = []
    for i in range(n):
        keep = walker.circuit(n_edges, np.random.default_rng([seed, i]))
        origin = {"method": "random walks", "size": n_edges, "seed": [seed, i]}
        found.append(walker.as_circuit(keep, name=f"random {i}", origin=origin))
    return found


def random_like(circuit: Circuit, n: int, *, seed: int = 0) -> list[Circuit]:
    """Random circuits with as many edges as `circuit`, at its spans."""
    return random_circuits(circuit.shape, circuit.n_edges, n, seed=seed, spans=circuit.spans)


def random_inflations(circuit: Circuit, n: int, *, seed: int = 0) -> list[tuple[Circuit, Circuit]]:
    """A circuit with a random walk added that leaves it, and the same without one random edge that the walk added.

    Raises:
        CircuitError: the circuit has all edges already.
    """
    walker = _Walker(circuit.shape, circuit.spans, None)
    have = circuit.keep if circuit.spans else circuit.keep[..., None]
    if not (walker.allowed & ~have).any():
        raise CircuitError("the circuit has all edges", where="random_inflations", fix="use a smaller circuit")
    found = []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        new: list[Edge] = []
        while not new:
            new = [edge for edge in walker.walk(rng) if not have[edge]]
        larger = have.copy()
        larger[tuple(zip(*new, strict=True))] = True
        less = larger.copy()
        less[new[int(rng.integers(len(new)))]] = False
        found.append((walker.as_circuit(larger), walker.as_circuit(less)))
    return found


class _Walker:
    """Draws walks along allowed edges, every one of which lies on a path of allowed edges."""

    def __init__(self, shape: ModelShape, spans: tuple[str, ...], within: Circuit | None) -> None:
        self.shape, self.spans, self.table = shape, spans, edge_table(shape)
        self.share = flow.overlap(spans or (ALL,))
        allowed = np.repeat(self.table.exists[..., None], len(spans) or 1, -1)
        if within is not None:
            allowed = within.keep if spans else within.keep[..., None]
            allowed = flow.on_path(allowed, shape, spans or (ALL,))
        self.allowed: Bool[np.ndarray, "sender receiver span"] = allowed
        self.live = flow.fed(allowed, shape, self.share)
        self._before: dict[tuple[int, int], list[int]] = {}
        self._next: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self.inputs: list[list[int]] = [[] for _ in self.table.senders]
        for v, nodes in enumerate(self.table.node_of_receiver):
            for u in nodes:
                self.inputs[u].append(v)

    def as_circuit(self, keep: Bool[np.ndarray, "sender receiver span"], **about: Any) -> Circuit:
        return Circuit(self.shape, keep if self.spans else keep[..., 0], self.spans, **about)

    def walk(self, rng: np.random.Generator) -> list[Edge]:
        edges, receiver = [], len(self.table.receivers) - 1
        span = self._pick(rng, [s for s in range(len(self.share)) if len(self.before(receiver, s))])
        while True:
            sender = self._pick(rng, self.before(receiver, span))
            edges.append((sender, receiver, span))
            if sender == 0:
                return edges
            receiver, span = self._pick(rng, self.onward(sender, span))

    @staticmethod
    def _pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
        return options[int(rng.integers(len(options)))]

    def before(self, receiver: int, span: int) -> list[int]:
        """The senders that an allowed edge brings from, at a span."""
        at = (receiver, span)
        if at not in self._before:
            readable = (self.live & self.share[span]).any(1)
            self._before[at] = np.flatnonzero(self.allowed[:, receiver, span] & readable).tolist()
        return self._before[at]

    def onward(self, sender: int, span: int) -> list[tuple[int, int]]:
        """The (receiver, span) that a sender's output at a span may come from; each input of it has an equal chance
        where there are no spans."""
        at = (sender, span)
        if at not in self._next:
            written = [s for s in range(len(self.share)) if self.share[span, s] and self.live[sender, s]]
            found = []
            for v in self.inputs[sender]:
                moves = self.table.receivers[v].kind in ("k", "v")
                found += [(v, s) for s in (range(len(self.share)) if moves else written) if len(self.before(v, s))]
            self._next[at] = found
        return self._next[at]

    def circuit(self, n_edges: int, rng: np.random.Generator) -> Bool[np.ndarray, "sender receiver span"]:
        best = np.zeros_like(self.allowed)
        for _ in range(_TRIES):
            keep = self._union(n_edges, rng)
            if keep.sum() > best.sum():
                best = keep
            if best.sum() == n_edges:
                break
        return best

    def _union(self, n_edges: int, rng: np.random.Generator) -> Bool[np.ndarray, "sender receiver span"]:
        keep = np.zeros_like(self.allowed)
        size = idle = 0
        for _ in range(WALKS):
            if size == n_edges or idle == _IDLE:
                break
            new = [edge for edge in self.walk(rng) if not keep[edge]]
            fits = 0 < len(new) <= n_edges - size
            idle = 0 if fits else idle + 1
            if fits:
                keep[tuple(zip(*new, strict=True))] = True
                size += len(new)
        while size < n_edges:
            # Such an edge is on a path, and takes no other edge off one.
            readable = flow.fed(keep, self.shape, self.share) @ self.share
            used = flow.used(keep, self.shape, self.share)
            free = np.flatnonzero(self.allowed & ~keep & readable[:, None] & used)
            if not len(free):
                break
            chosen = rng.permutation(free)[: n_edges - size]
            keep.flat[chosen] = True
            size += len(chosen)
        return keep
