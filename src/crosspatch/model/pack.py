"""The rows of one pass, packed token by token, in groups that attention can treat as dense batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

GroupKey = tuple[int, int, tuple[int, ...]]


@dataclass
class Group:
    """Rows that start at the same position of prompts of the same length and are read at the same places."""

    first: int
    length: int
    read: tuple[int, ...]
    rows: list[int] = field(default_factory=list)
    positions: tuple[int, ...] = ()
    start: int = 0

    @property
    def size(self) -> int:
        return len(self.rows) * len(self.positions)

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.size)


class Pack:
    """Named tensors ``[token, ...]`` over the active tokens of the rows that have joined, group after group."""

    def __init__(self) -> None:
        self.groups: dict[GroupKey, Group] = {}
        self.data: dict[str, Tensor] = {}
        self.reads_only = False
        self.slot: dict[int, tuple[Group, int]] = {}

    def __len__(self) -> int:
        return sum(group.size for group in self.groups.values())

    def join(
        self, rows: Mapping[int, GroupKey], fetch: Mapping[str, Callable[[Group], Tensor]], device: torch.device
    ) -> None:
        """Add rows. ``fetch[name]`` gives the tokens ``[row * position, ...]`` of a group of new rows."""
        fresh: dict[GroupKey, Group] = {}
        for row, key in rows.items():
            group = fresh.get(key)
            if group is None:
                group = fresh[key] = Group(*key)
                group.positions = self._positions(group)
            group.rows.append(row)
        pieces: dict[str, list[Tensor]] = {name: [] for name in fetch}
        merged: dict[GroupKey, Group] = {}
        for key in self.groups | fresh:
            old, new = self.groups.get(key), fresh.get(key)
            for name, get in fetch.items():
                if old is not None:
                    pieces[name].append(self.data[name][old.span])
                if new is not None:
                    pieces[name].append(get(new).to(device))
            rows_here = (old.rows if old else []) + (new.rows if new else [])
            merged[key] = Group(*key, rows=rows_here, positions=(old or fresh[key]).positions)
        self.data = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in pieces.items()}
        self.groups = merged
        self._index()

    def keep_reads(self, tensors: list[str]) -> None:
        """Drop all tokens that are not read: nothing after the last attention sum looks at them."""
        keep = {}
        for group in self.groups.values():
            at = [group.positions.index(p) for p in group.read if p >= group.first]
            keep[id(group)] = torch.tensor(at, dtype=torch.long)
        for name in tensors:
            self.data[name] = torch.cat([self.select(self.data[name], g, keep[id(g)]) for g in self.groups.values()])
        self.reads_only = True
        for group in self.groups.values():
            group.positions = self._positions(group)
        self._index()

    def select(self, x: Tensor, group: Group, at: Tensor) -> Tensor:
        """Some positions (indices ``at``) of every row of a group, flattened to tokens again."""
        return self.dense(x, group)[:, at.to(x.device)].flatten(0, 1)

    def dense(self, x: Tensor, group: Group) -> Tensor:
        """``[token, ...]`` -> ``[row, position, ...]`` for one group (a view)."""
        return x[group.span].unflatten(0, (len(group.rows), len(group.positions)))

    def token(self, row: int, position: int) -> int:
        """Index of a row's position among the packed tokens."""
        group, i = self.slot[row]
        at = group.positions.index(position) if self.reads_only else position - group.first
        return group.start + i * len(group.positions) + at

    def positions(self) -> list[int]:
        return [p for group in self.groups.values() for _ in group.rows for p in group.positions]

    def _positions(self, group: Group) -> tuple[int, ...]:
        if self.reads_only:
            return tuple(p for p in group.read if p >= group.first)
        return tuple(range(group.first, group.length))

    def _index(self) -> None:
        start = 0
        self.slot = {}
        for group in self.groups.values():
            group.start = start
            start += group.size
            for i, row in enumerate(group.rows):
                self.slot[row] = (group, i)
