"""From scores of edges or nodes to circuits. Every circuit comes pruned and says in `origin` what was asked and got."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from crosspatch.circuits import ears, flow
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.ranking import checked_scores, ranking
from crosspatch.errors import CircuitError
from crosspatch.graph import EdgeTable, ModelShape, edge_table

Method = Literal["path_aware", "top_n", "greedy"]


def top_n(
    scores: Float[np.ndarray, " edge"],
    shape: ModelShape,
    n: int,
    *,
    absolute: bool = False,
    positive_share: float | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Circuit:
    """The n best edges, without those that are then on no path: often far fewer than n (see `path_aware`).

    Args:
        scores: by number of edge (`edge_table(shape)`), higher is better; NaN (not scored) is never taken.
        absolute, positive_share: what is better, see `ranking`.
        origin: where the scores came from; is kept in the circuit's origin.

    Raises:
        CircuitError: n below zero or above the number of edges, or scores that do not fit.
    """
    order = _order(scores, shape, absolute, positive_share)
    return _cut("top_n", order[: _asked(n, shape)], shape, n, absolute, positive_share, origin)


def threshold(
    scores: Float[np.ndarray, " edge"],
    shape: ModelShape,
    least: float,
    *,
    absolute: bool = False,
    origin: Mapping[str, Any] | None = None,
) -> Circuit:
    """The edges whose score (its size, with `absolute`) is at least `least`, pruned. Else as `top_n`."""
    values = checked_scores(scores, shape)
    with np.errstate(invalid="ignore"):
        chosen = np.flatnonzero((np.abs(values) if absolute else values) >= least)
    return _cut("threshold", chosen, shape, float(least), absolute, None, origin)


def greedy(
    scores: Float[np.ndarray, " edge"],
    shape: ModelShape,
    n: int,
    *,
    absolute: bool = False,
    positive_share: float | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Circuit:
    """Grow from the logits: n times the best edge into a part that already leads there; pruned.

    What EAP-IG calls greedy. Parts that the input does not reach are lost to pruning, so that fewer than n edges may be
    left. Arguments and errors as `top_n`.
    """
    order = _order(scores, shape, absolute, positive_share)
    chosen = _grown(order, edge_table(shape), _asked(n, shape))
    return _cut("greedy", chosen, shape, n, absolute, positive_share, origin)


def path_aware(
    scores: Float[np.ndarray, " edge"],
    shape: ModelShape,
    n: int,
    *,
    absolute: bool = False,
    positive_share: float | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Circuit:
    """A connected circuit of exactly n edges: an edge is taken when its best path is complete.

    An edge counts as much as the weakest edge of the best whole path through it, input to logits. Where the next
    path does not fit any more, the best paths that do are taken instead (`ears`). Fewer than n edges come back only
    where the scored edges hold no more, or no such circuit was found. Arguments and errors as `top_n`.
    """
    order = _order(scores, shape, absolute, positive_share)
    keep = ears.grow(np.zeros(len(edge_table(shape)), dtype=bool), order, shape, _asked(n, shape), exchange=True)
    return _circuit("path_aware", keep, shape, n, n, absolute, positive_share, origin)


def nested(
    scores: Float[np.ndarray, " edge"],
    shape: ModelShape,
    sizes: Sequence[int],
    *,
    method: Method = "path_aware",
    absolute: bool = False,
    positive_share: float | None = None,
    origin: Mapping[str, Any] | None = None,
) -> list[Circuit]:
    """Nested circuits of several sizes, in the order asked for: each holds all smaller ones.

    `path_aware` may fall one edge short of a size, because no edge that is in a smaller circuit may be given up.

    Args:
        sizes: numbers of edges; `budget.sizes` gives those of the MIB benchmark.
        method: how edges are chosen. Else as `top_n`.
    """
    order, table = _order(scores, shape, absolute, positive_share), edge_table(shape)
    if method not in ("path_aware", "top_n", "greedy"):
        raise CircuitError(f"method {method!r}", where="nested", fix="use path_aware, top_n or greedy")
    found: dict[int, Circuit] = {}
    keep = np.zeros(len(table), dtype=bool)
    grown = _grown(order, table, max(map(int, sizes), default=0)) if method == "greedy" else order
    for n in sorted({_asked(n, shape) for n in sizes}):
        if method == "path_aware":
            keep = ears.grow(keep, order, shape, n, exchange=False)
            found[n] = _circuit(method, keep, shape, n, n, absolute, positive_share, origin)
        else:
            found[n] = _cut(method, grown[:n], shape, n, absolute, positive_share, origin)
    return [found[int(n)] for n in sizes]


def by_span(
    scores: Float[np.ndarray, "edge span"],
    shape: ModelShape,
    spans: Sequence[str],
    n: int,
    *,
    absolute: bool = False,
    origin: Mapping[str, Any] | None = None,
) -> Circuit:
    """The largest connected circuit of at most n edges by span that the best scores give (an edge at two spans is two).

    As many of the best edges are taken as leave n or fewer after pruning; which edges of one span meet those of another
    is as in `flow`.

    Args:
        scores: by number of edge and by span; NaN (not scored) is never taken.
        spans: their names. Else as `top_n`.

    Raises:
        CircuitError: scores that do not fit the model and the spans, or n below zero.
    """
    table = edge_table(shape)
    values = np.asarray(scores, np.float64)
    if values.shape != (len(table), len(spans)) or not spans or np.isinf(values).any() or n < 0:
        what = f"scores of shape {values.shape} for {len(spans)} spans, n = {n}"
        raise CircuitError(what, where="by_span", fix=f"finite scores [{len(table)} edges, span], NaN for missing ones")
    order = ranking(values.ravel(), absolute=absolute)

    def best(m: int) -> Circuit:
        mask = np.zeros(values.size, dtype=bool)
        mask[order[:m]] = True
        return Circuit.from_mask(shape, mask.reshape(values.shape), spans=tuple(spans)).pruned()

    low, high = 0, order.size  # pruning never gives fewer edges for more
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if best(middle).n_edges <= n else (low, middle - 1)
    circuit = best(low)
    selection = {"by": "by_span", "asked": n, "chosen": low, "got": circuit.n_edges, "absolute": absolute}
    return circuit.with_(name=f"by_span {n}", origin={**(origin or {}), "selection": selection})


def from_node_scores(
    scores: Float[np.ndarray, " sender"],
    shape: ModelShape,
    n: int,
    *,
    absolute: bool = False,
    input_competes: bool = False,
    origin: Mapping[str, Any] | None = None,
) -> Circuit:
    """All edges between the n best nodes, the input and the logits; pruned.

    Args:
        scores: by number of sender (`edge_table(shape).senders`); NaN = not scored: always kept and not counted in n,
            as EAP-IG and the MIB benchmark do.
        input_competes: the input is a node like others and counts in n, as in the benchmark. Without it everything is
            cut off; it is kept by default.

    Raises:
        CircuitError: n below zero or above the number of scored nodes, or scores that do not fit.
    """
    values, table = np.array(scores, np.float64), edge_table(shape)
    if values.shape != (len(table.senders),):
        what = f"scores have shape {values.shape}, this model has {len(table.senders)} senders"
        raise CircuitError(
            what, where="scores", fix="one for each of edge_table(shape).senders, NaN where there is none"
        )
    if not input_competes:
        values[0] = np.nan
    order = ranking(values, absolute=absolute)
    if not 0 <= n <= order.size:
        raise CircuitError(f"n is {n}", where="from_node_scores", fix=f"use 0 to {order.size}, the scored nodes")
    inside = np.isnan(values)
    inside[order[:n]] = True
    ports = np.array([not nodes or bool(inside[list(nodes)].any()) for nodes in table.node_of_receiver])
    keep = table.flat(inside[:, None] & ports)
    circuit = _circuit("nodes", keep, shape, n, int(keep.sum()), absolute, None, origin)
    got = {**circuit.origin["selection"], "got_nodes": circuit.n_nodes}
    return circuit.with_(origin={**circuit.origin, "selection": got})


def _asked(n: int, shape: ModelShape) -> int:
    total = len(edge_table(shape))
    if int(n) != n or not 0 <= n <= total:
        raise CircuitError(f"n is {n}", where="selection", fix=f"use 0 to {total:,}, the edges of this model")
    return int(n)


def _order(
    scores: np.ndarray, shape: ModelShape, absolute: bool, positive_share: float | None
) -> Int[np.ndarray, " rank"]:
    return ranking(checked_scores(scores, shape), absolute=absolute, positive_share=positive_share)


def _grown(order: Int[np.ndarray, " rank"], table: EdgeTable, n: int) -> Int[np.ndarray, " chosen"]:
    """The first n edges of the growth from the logits, in the order in which they were taken."""
    rank = np.full(len(table), order.size, dtype=np.int64)
    rank[order] = np.arange(order.size)
    starts = np.concatenate([[0], np.cumsum(table.reach)])
    ports: dict[int, list[int]] = {}
    for v, nodes in enumerate(table.node_of_receiver):
        for node in nodes:
            ports.setdefault(node, []).append(v)
    queues: dict[int, Int[np.ndarray, " sender"]] = {}  # of each receiver: its senders, best first
    heap: list[tuple[int, int, int]] = []  # rank, receiver, place in its queue

    def offer(v: int, place: int) -> None:
        if place < queues[v].size and (at := int(rank[starts[v] + queues[v][place]])) < order.size:
            heapq.heappush(heap, (at, v, place))

    def join(v: int) -> None:
        if v not in queues:
            queues[v] = np.argsort(rank[starts[v] : starts[v + 1]], kind="stable")
            offer(v, 0)

    join(len(table.receivers) - 1)
    chosen: list[int] = []
    while heap and len(chosen) < n:
        _, v, place = heapq.heappop(heap)
        sender = int(queues[v][place])
        chosen.append(int(starts[v]) + sender)
        offer(v, place + 1)
        for port in ports.get(sender, ()):
            join(port)
    return np.array(chosen, dtype=np.int64)


def _cut(
    method: str,
    chosen: Int[np.ndarray, " chosen"],
    shape: ModelShape,
    asked: float,
    absolute: bool,
    positive_share: float | None,
    origin: Mapping[str, Any] | None,
) -> Circuit:
    """A circuit of the chosen edges, pruned."""
    keep = np.zeros(len(edge_table(shape)), dtype=bool)
    keep[chosen] = True
    return _circuit(method, keep, shape, asked, len(chosen), absolute, positive_share, origin)


def _circuit(
    method: str,
    keep: Bool[np.ndarray, " edge"],
    shape: ModelShape,
    asked: float,
    chosen: int,
    absolute: bool,
    positive_share: float | None,
    origin: Mapping[str, Any] | None,
) -> Circuit:
    """The pruned circuit, with a record of how it was selected."""
    table = edge_table(shape)
    pruned = flow.on_path(table.matrix(keep, False)[..., None], shape, ("*",))[..., 0]
    got = int(pruned.sum())
    selection: dict[str, Any] = {"by": method, "asked": asked, "chosen": chosen, "got": got, "absolute": absolute}
    if positive_share is not None:
        selection["positive_share"] = positive_share
    return Circuit(shape, pruned, name=f"{method} {asked:g}", origin={**(origin or {}), "selection": selection})
