"""Which values of which nodes some circuits need, each once: numbers only, no model.

A receiver finds in its stream, of every sender, either the replacement (the edge is cut) or what the sender writes
now. What a node writes now depends on what its receivers find, so that two circuits in which those are equal share one
*copy* of the node. Where a receiver finds the clean run's values only, so does everybody after it: the clean run has
that copy already. The same holds for the run in which everything is replaced, where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from crosspatch.graph.edges import EdgeTable

CUT, CLEAN = -2, -1
"""The replacement, and what the clean run has; a copy's class is its number. Streams are referred to in the same way,
and `CUT` is then the stream of the run in which everything is replaced."""


@dataclass(frozen=True, eq=False)
class Stream:
    """What some receivers find in the residual stream.

    Attributes:
        row: the class of every sender before it, by kind of token.
        mask: number of the first mask that needs it.
    """

    row: Int[np.ndarray, "kind sender"]
    mask: int


@dataclass(frozen=True)
class HeadCopy:
    """One value of a head: the streams that its query, key and value are made of."""

    layer: int
    head: int
    q: int
    k: int
    v: int
    mask: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.q, self.k, self.v)


@dataclass(frozen=True)
class MlpCopy:
    """One value of an MLP."""

    layer: int
    x: int
    mask: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,)


@dataclass(eq=False)
class Classes:
    """What has to be computed for some masks.

    Attributes:
        of: the class of every sender under every mask. A sender from which no kept route leads on is `CUT`.
        streams: residual streams that receivers find, by number.
        copies: copies of nodes, by number, in the order of computation.
        final: for each mask what the logits find.
        wide_streams, wide_copies: those that a key or a value in use depends on; the others are needed where the
            logits are read only.
    """

    table: EdgeTable
    of: Int[np.ndarray, "mask sender"]
    streams: list[Stream] = field(default_factory=list)
    copies: list[HeadCopy | MlpCopy] = field(default_factory=list)
    final: list[int] = field(default_factory=list)
    wide_streams: Bool[np.ndarray, " stream"] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    wide_copies: Bool[np.ndarray, " copy"] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def node(self, copy: int) -> int:
        """The sender that a copy is one of."""
        found, shape = self.copies[copy], self.table.shape
        at = found.head if isinstance(found, HeadCopy) else shape.n_heads
        return first_sender(self.table, found.layer) + at


def first_sender(table: EdgeTable, layer: int) -> int:
    """The number of a layer's first head among the senders."""
    return 1 + layer * (table.shape.n_heads + int(table.shape.has_mlp))


def first_receiver(table: EdgeTable, layer: int) -> int:
    """The number of a layer's first query among the receivers; keys, values and the MLP follow."""
    shape = table.shape
    return layer * (shape.n_heads + 2 * shape.n_kv_heads + int(shape.has_mlp))


def find_classes(
    table: EdgeTable, masks: Sequence[Bool[np.ndarray, "sender receiver"]], has_replaced_run: bool
) -> Classes:
    """What has to be computed for some masks.

    Args:
        masks: `[sender, receiver]`, or `[kind, sender, receiver]` where masks differ between kinds of tokens.
        has_replaced_run: a node that finds replacements only has the replacement for its value.
    """
    return _Finder(table, masks, has_replaced_run).run()


def live_edges(table: EdgeTable, masks: Sequence[np.ndarray]) -> Bool[np.ndarray, "mask kind sender receiver"]:
    """Kept edges from which a kept route leads to the logits."""
    kept = np.stack([mask.reshape(-1, *table.exists.shape) for mask in masks]) & table.exists
    shape = table.shape
    live = np.zeros((len(masks), len(table.receivers)), dtype=bool)
    live[:, -1] = True

    def used(senders: slice) -> np.ndarray:
        return (kept[:, :, senders] & live[:, None, None]).any((1, 3))

    for layer in range(shape.n_layers)[::-1]:
        at, port = first_sender(table, layer), first_receiver(table, layer)
        if shape.has_mlp:
            mlp = at + shape.n_heads
            live[:, port + shape.n_heads + 2 * shape.n_kv_heads] = used(slice(mlp, mlp + 1))[:, 0]
        heads = used(slice(at, at + shape.n_heads))
        groups = heads.reshape(len(masks), shape.n_kv_heads, -1).any(-1)
        live[:, port : port + shape.n_heads + 2 * shape.n_kv_heads] = np.concatenate([heads, groups, groups], 1)
    return kept & live[:, None, None]


class _Finder:
    def __init__(self, table: EdgeTable, masks: Sequence[np.ndarray], has_replaced_run: bool) -> None:
        self.table, self.has_replaced_run = table, has_replaced_run
        self.kept = live_edges(table, masks)
        of = np.full((len(masks), len(table.senders)), CUT, dtype=np.int32)
        of[:, 0] = CLEAN
        self.found = Classes(table, of)
        self.stream_of: dict[bytes, int] = {}
        self.copy_of: dict[tuple[int, ...], int] = {}

    def run(self) -> Classes:
        shape, found = self.table.shape, self.found
        for layer in range(shape.n_layers):
            at, port = first_sender(self.table, layer), first_receiver(self.table, layer)
            live = self.sending(at, at + shape.n_heads)
            groups = np.asarray(live.reshape(len(live), shape.n_kv_heads, -1).any(-1))
            queries = [self.streams(port + head, live[:, head]) for head in range(shape.n_heads)]
            port += shape.n_heads
            keys, values = (
                [self.streams(port + part + group, groups[:, group]) for group in range(shape.n_kv_heads)]
                for part in (0, shape.n_kv_heads)
            )
            for head in range(shape.n_heads):
                group = shape.group_of(head)
                for mask in live[:, head].nonzero()[0].tolist():
                    reads = (int(queries[head][mask]), int(keys[group][mask]), int(values[group][mask]))
                    found.of[mask, at + head] = self.copy(at + head, reads, HeadCopy(layer, head, *reads, mask))
            if shape.has_mlp:
                mlp = at + shape.n_heads
                live = self.sending(mlp, mlp + 1)
                streams = self.streams(port + 2 * shape.n_kv_heads, live[:, 0])
                for mask in live[:, 0].nonzero()[0].tolist():
                    x = int(streams[mask])
                    found.of[mask, mlp] = self.copy(mlp, (x,), MlpCopy(layer, x, mask))
        every: np.ndarray = np.ones(len(found.of), dtype=bool)
        found.final = self.streams(len(self.table.receivers) - 1, every).tolist()
        self.widths()
        return found

    def sending(self, first: int, stop: int) -> Bool[np.ndarray, "mask sender"]:
        """Which of some senders lead on to the logits."""
        return np.asarray(self.kept[:, :, first:stop].any((1, 3)))

    def streams(self, receiver: int, live: Bool[np.ndarray, " mask"]) -> Int[np.ndarray, " mask"]:
        """What a receiver finds under every mask in which it is of use."""
        reach = int(self.table.reach[receiver])
        rows = np.where(self.kept[:, :, :reach, receiver], self.found.of[:, None, :reach], CUT)
        found = np.full(len(rows), CUT)
        clean, cut = (rows == CLEAN).all((1, 2)), (rows == CUT).all((1, 2))
        found[clean] = CLEAN
        known = clean | (cut & self.has_replaced_run)
        for mask in (live & ~known).nonzero()[0].tolist():
            key = rows[mask].tobytes()  # its length tells how far the receiver sees
            if key not in self.stream_of:
                self.stream_of[key] = len(self.found.streams)
                self.found.streams.append(Stream(rows[mask], mask))
            found[mask] = self.stream_of[key]
        return found

    def copy(self, node: int, reads: tuple[int, ...], fresh: HeadCopy | MlpCopy) -> int:
        if reads[0] < 0 and len(set(reads)) == 1:
            return reads[0]
        number = self.copy_of.setdefault((node, *reads), len(self.found.copies))
        if number == len(self.found.copies):
            self.found.copies.append(fresh)
        return number

    def widths(self) -> None:
        """Mark what keys and values depend on, from the last copy to the first: readers come after what they read."""
        found = self.found
        found.wide_streams = np.zeros(len(found.streams), dtype=bool)
        found.wide_copies = np.zeros(len(found.copies), dtype=bool)
        for number in range(len(found.copies))[::-1]:
            copy = found.copies[number]
            everywhere = list(copy.reads) if found.wide_copies[number] else list(copy.reads[1:])
            for stream in everywhere:
                if stream >= 0 and not found.wide_streams[stream]:
                    found.wide_streams[stream] = True
                    row = found.streams[stream].row
                    found.wide_copies[row[row >= 0]] = True
