"""Grow a connected circuit to an exact number of edges, path by path.

An *ear* is a path of new edges that begins at a sender which the circuit feeds (at first the input) and ends at a
receiver which the circuit uses (at first the logits): adding one keeps every edge on a whole path. It is as good as its
weakest edge. The best ear is found by dynamic programming over the senders in the order of computation (a widest path),
so that edges come in the order in which `top_n` followed by pruning would keep them, without the waste.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from crosspatch.circuits import flow
from crosspatch.graph import ModelShape, edge_table

TRIED = 32
"""How many edges are tried to be given up, when no ear has the length that is missing."""
_ONE = np.ones((1, 1), dtype=bool)

Values = Float[np.ndarray, "sender receiver"]
"""What an edge is worth: its rank from the end; 0 cannot be used, infinity is in the circuit."""


def grow(
    keep: Bool[np.ndarray, " edge"], order: Int[np.ndarray, " rank"], shape: ModelShape, n: int, *, exchange: bool
) -> Bool[np.ndarray, " edge"]:
    """A connected circuit of n edges that holds a smaller one.

    Args:
        keep: a connected circuit of at most n edges; may be empty.
        order: edges that may be used, best first.
        exchange: give up the worst edge that can be spared where no ear has the length that is still missing. Without
            it `keep` stays inside.

    Returns:
        The mask; of fewer than n edges where the edges in `order` allow no more (or, rarely, where no way was found).
    """
    table = edge_table(shape)
    values = np.zeros(len(table))
    values[order] = np.arange(order.size, 0, -1)
    value, inside = table.matrix(values), table.matrix(keep, False).copy()
    _fill(inside, value, shape, n)
    missing = n - int(inside.sum())
    if missing and exchange:
        inside = _exchanged(inside, value, shape, n)
    return table.flat(inside)


def _fill(inside: Bool[np.ndarray, "sender receiver"], value: Values, shape: ModelShape, n: int) -> None:
    """Add the best edges whose paths fit, in place, until there are n or no ear fits."""
    while (missing := n - int(inside.sum())) > 0:
        missing -= _whole_groups(inside, value, shape, missing)
        if missing == 0 or not _add_ear(inside, value, shape, missing):
            return


def _whole_groups(inside: Bool[np.ndarray, "sender receiver"], value: Values, shape: ModelShape, missing: int) -> int:
    """Add all edges that come with the same weakest edge, group by group while they fit; returns how many."""
    worth = _through(np.where(inside, np.inf, value), shape)
    worth[inside] = 0
    # All edges worth at least t are connected; only thresholds between two groups can be used.
    falling = -np.sort(-worth[worth > 0])
    if falling.size == 0:
        return 0
    if falling.size <= missing:
        least = falling[-1]
    else:
        ends = np.flatnonzero(falling[:missing] > falling[1 : missing + 1])
        if ends.size == 0:
            return 0
        least = falling[ends[-1]]
    added = worth >= least
    inside |= added
    return int(added.sum())


def _through(value: Values, shape: ModelShape) -> Values:
    """The weakest edge of the best whole path through every edge."""
    table, stages = edge_table(shape), flow.stages(shape)
    fed = np.zeros(len(table.senders))
    fed[0] = np.inf
    for stage in stages:
        if stage.nodes.stop:
            arrives = np.minimum(fed[: stage.senders, None], value[: stage.senders, stage.receivers]).max(0)
            fed[stage.nodes] = np.where(stage.feeds, arrives[:, None], 0).max(0)
    used, wanted = np.zeros(len(table.receivers)), np.zeros(len(table.senders))
    for stage in reversed(stages):
        ports = np.where(stage.feeds, wanted[None, stage.nodes], 0).max(1) if stage.nodes.stop else np.array([np.inf])
        used[stage.receivers] = ports
        best = np.minimum(value[: stage.senders, stage.receivers], ports).max(1)
        wanted[: stage.senders] = np.maximum(wanted[: stage.senders], best)
    return np.minimum(value, np.minimum(fed[:, None], used[None]))


def _add_ear(inside: Bool[np.ndarray, "sender receiver"], value: Values, shape: ModelShape, longest: int) -> int:
    """Add the best ear of at most `longest` edges, in place; returns its length, 0 where there is none."""
    stages = flow.stages(shape)
    length = min(longest, len(stages))
    fed, used = flow.fed(inside[..., None], shape, _ONE)[:, 0], flow.used(inside[..., None], shape, _ONE)[:, 0]
    free = np.where(inside, 0, value)
    # reach[u, j]: the best weakest edge of a way from the circuit to sender u with at most j new edges.
    reach = np.where(fed[:, None], np.inf, np.zeros((inside.shape[0], length + 1)))
    arrives = np.zeros((inside.shape[1], length + 1))
    for stage in stages:
        new = np.minimum(reach[: stage.senders, None, :-1], free[: stage.senders, stage.receivers, None]).max(0)
        arrives[stage.receivers, 1:] = new
        if stage.nodes.stop:
            into = np.where(stage.feeds[..., None], arrives[stage.receivers, None], 0).max(0)
            reach[stage.nodes] = np.maximum(reach[stage.nodes], into)
    ends = np.where(used, arrives[:, -1], 0)
    best = float(ends.max())
    if best <= 0:
        return 0
    v = int(ends.argmax())
    j = int((arrives[v] >= best).argmax())  # with as few edges as this weakest edge allows
    ports = _ports(shape)
    for added in range(1, length + 1):
        u = int(np.minimum(reach[:, j - 1], free[:, v]).argmax())
        inside[u, v] = True
        if fed[u]:
            return added
        j -= 1
        v = max(ports[u], key=lambda port: arrives[port, j])
    raise AssertionError("an ear begins at a sender of the circuit")


@lru_cache(maxsize=8)
def _ports(shape: ModelShape) -> dict[int, list[int]]:
    """The receivers that feed each sender."""
    found: dict[int, list[int]] = {}
    for v, nodes in enumerate(edge_table(shape).node_of_receiver):
        for node in nodes:
            found.setdefault(node, []).append(v)
    return found


def _exchanged(
    inside: Bool[np.ndarray, "sender receiver"], value: Values, shape: ModelShape, n: int
) -> Bool[np.ndarray, "sender receiver"]:
    """The circuit with its worst spare edge given up for longer ears, or as it was where that gives no n edges."""
    spare = [(int(u), int(v)) for u, v in np.argwhere(inside)]
    spare.sort(key=lambda edge: value[edge])
    tried = 0
    for edge in spare:
        without = inside.copy()
        without[edge] = False
        if int(flow.on_path(without[..., None], shape, ("*",)).sum()) < int(without.sum()):
            continue
        tried += 1
        if tried > TRIED:
            break
        others = value.copy()
        others[edge] = 0
        _fill(without, others, shape, n)
        if int(without.sum()) == n:
            return without
    return inside
