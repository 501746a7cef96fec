"""Whole paths through a circuit, best first, without writing out all of them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice, pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.ranking import checked_scores
from crosspatch.errors import CircuitError

By = Literal["min", "product", "sum"]


@dataclass(frozen=True)
class ScoredPath:
    """A path from the input to the logits.

    Attributes:
        text: `input -> a0.h1.v -> a1.h5.k -> logits`, as `crosspatch.paths` writes it: `paths(text)` is just this path.
            On models with grouped queries a key or value is named by the head that the path goes through.
        edges: numbers of its edges in `edge_table(shape)`, from the input on.
        score: of the path.
    """

    text: str
    edges: tuple[int, ...]
    score: float


def enumerate_paths(
    circuit: Circuit,
    scores: Float[np.ndarray, " edge"],
    limit: int | None = 20,
    *,
    by: By = "min",
    absolute: bool = False,
) -> Iterator[ScoredPath]:
    """The paths of a circuit, the best first; they are found one by one as they are asked for.

    A best-first search from the logits: what a beginning can still become is known exactly (dynamic programming), so
    that no path is looked at that is worse than those returned. Memory grows with what was returned, not with the
    number of paths. Paths of one score come in a fixed order.

    Args:
        scores: of all edges, by number; those of kept edges must be numbers.
        limit: how many; None for all.
        by: a path scores as its weakest edge, as the product or the sum of its edges.
        absolute: take sizes of the edges' scores.

    Raises:
        CircuitError: a circuit with spans, an unknown `by`, or a kept edge without a score.
    """
    if circuit.spans:
        raise CircuitError("paths of a circuit with spans", where="enumerate_paths", fix="use circuit.any_span()")
    if by not in ("min", "product", "sum"):
        raise CircuitError(f"by={by!r}", where="enumerate_paths", fix="use min, product or sum")
    values = checked_scores(scores, circuit.shape)
    pruned = circuit.pruned()
    missing = np.flatnonzero(pruned.flat & np.isnan(values))
    if missing.size:
        name = circuit.table.names()[int(missing[0])]
        raise CircuitError("a kept edge has no score", where=name, fix="score every edge of the circuit")
    return islice(_Search(pruned, np.abs(values) if absolute else values, by).run(), limit)


class _Search:
    """Best-first search; `most[v]` and `least[v]` bound what can still come before receiver v, exactly."""

    def __init__(self, circuit: Circuit, values: Float[np.ndarray, " edge"], by: By) -> None:
        self.table, self.by = circuit.table, by
        self.value = self.table.matrix(values)
        self.start = np.concatenate([[0], np.cumsum(self.table.reach)])
        self.senders = [[int(u) for u in np.flatnonzero(circuit.keep[:, v])] for v in range(len(self.table.receivers))]
        self.ports: dict[int, list[int]] = {u: [] for u in range(len(self.table.senders))}
        for v, nodes in enumerate(self.table.node_of_receiver):
            for node in nodes if self.senders[v] else ():
                self.ports[node].append(v)
        # Receivers come in the order of computation, so that what precedes one is known when it is its turn.
        self.most, self.least = {}, {}
        for v, senders in enumerate(self.senders):
            ends = [self._ends(u, v) for u in senders]
            if ends:
                self.most[v], self.least[v] = max(e[0] for e in ends), min(e[1] for e in ends)

    def _ends(self, u: int, v: int) -> tuple[float, float]:
        """The greatest and the least score of ways from the input over this edge."""
        edge = float(self.value[u, v])
        if u == 0:
            return edge, edge
        rest = [bound for port in self.ports[u] if port in self.most for bound in (self.most[port], self.least[port])]
        found = [self._join(edge, bound) for bound in rest]
        return max(found), min(found)

    def _join(self, a: float, b: float) -> float:
        return min(a, b) if self.by == "min" else a * b if self.by == "product" else a + b

    def _bound(self, so_far: float | None, v: int) -> float:
        if so_far is None:
            return self.most[v]
        return max(self._join(so_far, self.most[v]), self._join(so_far, self.least[v]))

    def run(self) -> Iterator[ScoredPath]:
        last = len(self.senders) - 1
        if last not in self.most:
            return
        ticket = count()
        # Minus what it can become, newest first, receiver (-1: complete), score so far, edges from the logits back.
        heap: list[tuple[float, int, int, float | None, tuple[tuple[int, int], ...]]] = []
        heapq.heappush(heap, (-self.most[last], -next(ticket), last, None, ()))
        while heap:
            bound, _, v, so_far, taken = heapq.heappop(heap)
            if v < 0:
                yield self._path(taken, -bound)
                continue
            for u in reversed(self.senders[v]):
                edge = float(self.value[u, v])
                score = edge if so_far is None else self._join(so_far, edge)
                way = (*taken, (u, v))
                if u == 0:
                    heapq.heappush(heap, (-score, -next(ticket), -1, score, way))
                for port in self.ports[u]:
                    if port in self.most:
                        heapq.heappush(heap, (-self._bound(score, port), -next(ticket), port, score, way))

    def _path(self, taken: tuple[tuple[int, int], ...], score: float) -> ScoredPath:
        edges = tuple(int(self.start[v]) + u for u, v in reversed(taken))
        parts = ["logits"]
        for (u, _), (_, port) in pairwise(taken):
            site, kind = self.table.senders[u], self.table.receivers[port].kind
            parts.append(f"{site}.{kind}" if site.kind == "z" else str(site))
        return ScoredPath(" -> ".join(("input", *reversed(parts))), edges, score)
