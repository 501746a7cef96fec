"""Which kept edges lie on a path from the input to the logits.

A head is fed when any of its query, key and value is: a clean query alone makes its pattern, and so its output, depend
on the clean run (the rule of EAP-IG's graph too; Hanna et al. 2024, arXiv 2403.17806). A key/value head of a grouped
model feeds all of its query heads, and is used when any of them is.

Where edges are kept by span, a path stays at its span along an edge, through an MLP and through a query, and may move
from any span to any other through a key or value. Two spans of different names are taken to share no token; `*` is
every token and shares some with all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool

from crosspatch.graph import ALL, ModelShape, edge_table


@dataclass(frozen=True)
class Stage:
    """Receivers that read the stream at the same moment, and the nodes that they belong to.

    Attributes:
        receivers: slice of the receivers.
        senders: how many senders come before.
        nodes: slice of the senders that these receivers feed; empty for the logits.
        feeds: `[receiver, node]` within the two slices.
        moves: `[receiver]`, whether it is a key or a value, through which information changes its position.
    """

    receivers: slice
    senders: int
    nodes: slice
    feeds: Bool[np.ndarray, "receiver node"]
    moves: Bool[np.ndarray, " receiver"]


@lru_cache(maxsize=8)
def stages(shape: ModelShape) -> tuple[Stage, ...]:
    """The receivers of a model in groups, in the order of computation."""
    table = edge_table(shape)
    node_of = table.node_of_receiver
    found, start = [], 0
    groups = [(site.kind == "mlp_out", site.layer) for site in table.receivers]
    while start < len(groups):
        stop = start + groups[start:].count(groups[start])  # each group is one run
        parts = [node_of[r] for r in range(start, stop)]
        members = sorted({node for part in parts for node in part})
        nodes = slice(members[0], members[-1] + 1) if members else slice(0, 0)
        feeds = np.zeros((stop - start, len(members)), dtype=bool)
        for i, part in enumerate(parts):
            feeds[i, [node - nodes.start for node in part]] = True
        moves = np.array([table.receivers[r].kind in ("k", "v") for r in range(start, stop)])
        found.append(Stage(slice(start, stop), int(table.reach[start]), nodes, feeds, moves))
        start = stop
    return tuple(found)


def overlap(spans: Sequence[str]) -> Bool[np.ndarray, "span span"]:
    """Which spans share tokens: each with itself, `*` with all."""
    every = np.array([span == ALL for span in spans])
    return np.eye(len(spans), dtype=bool) | every[:, None] | every[None]


def fed(
    keep: Bool[np.ndarray, "sender receiver span"], shape: ModelShape, share: Bool[np.ndarray, "span span"]
) -> Bool[np.ndarray, "sender span"]:
    """Senders that a path along kept edges leads to from the input, by the span at which they write."""
    live = np.zeros((keep.shape[0], keep.shape[2]), dtype=bool)
    live[0] = True
    for stage in stages(shape):
        if stage.nodes.stop == 0:
            continue
        readable = live[: stage.senders] @ share
        arrives = (keep[: stage.senders, stage.receivers] & readable[:, None]).any(0)  # [receiver, span]
        arrives[stage.moves] = arrives[stage.moves].any(-1, keepdims=True)
        live[stage.nodes] = stage.feeds.T @ arrives
    return live


def used(
    keep: Bool[np.ndarray, "sender receiver span"], shape: ModelShape, share: Bool[np.ndarray, "span span"]
) -> Bool[np.ndarray, "receiver span"]:
    """Receivers from which a path along kept edges leads to the logits, by the span at which they read."""
    wanted = np.zeros((keep.shape[0], keep.shape[2]), dtype=bool)  # senders, by the span at which they write
    useful = np.zeros(keep.shape[1:], dtype=bool)
    for stage in reversed(stages(shape)):
        useful[stage.receivers] = True if stage.nodes.stop == 0 else stage.feeds @ wanted[stage.nodes]
        here = useful[stage.receivers]  # a view
        here[stage.moves] = here[stage.moves].any(-1, keepdims=True)
        reads = (keep[: stage.senders, stage.receivers] & here).any(1)
        wanted[: stage.senders] |= reads @ share
    return useful


def on_path(
    keep: Bool[np.ndarray, "sender receiver span"], shape: ModelShape, spans: Sequence[str]
) -> Bool[np.ndarray, "sender receiver span"]:
    """The kept edges that lie on a path of kept edges from the input to the logits."""
    share = overlap(spans)
    return keep & (fed(keep, shape, share) @ share)[:, None] & used(keep, shape, share)
