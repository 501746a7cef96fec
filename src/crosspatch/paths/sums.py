"""Many residual streams at once: the nearer plain run, plus what the copies that each stream reads write beyond it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.model.project import head_write
from crosspatch.paths.stacks import run_of

if TYPE_CHECKING:
    from crosspatch.paths.forward import Forward

COLUMNS = 2**14
"""Numbers of each stream that are summed before the next ones are: as many as stay in a cache."""


class Sums:
    """Sums of streams of one chunk, where all positions are of one kind and the heads of every block add up.

    What the copies of one block's heads, or of its MLP, write beyond a plain run is computed once, for all streams that
    start from that run, and dropped after the last of them. Where streams read many of them (edge sets), they lie in
    one matrix, below a row for the plain run's stream, so that the streams of a level are one product.
    """

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self._changes: dict[tuple[int, int, bool], Float[Tensor, "copy number"]] = {}
        self._rooms: dict[tuple[int, bool], Float[Tensor, "row number"]] = {}

    def of(self, numbers: list[int], level: int, base: int, tail: bool) -> Float[Tensor, "stream pair position d"]:
        """Streams of one level that are nearest to the same plain run, at all positions or at the tail."""
        forward, terms = self.forward, self.forward.readers.terms
        classes = np.stack([forward.plan.streams[number].classes[:, 0] for number in numbers])
        plain = forward.plain_stream(base, level, tail)
        starts = [start for start in forward.readers.parts(level) if terms(start, base, tail)]
        reads = []
        for start in starts:
            nodes, ones = np.array(terms(start, base, tail)).T
            reads.append(classes[:, nodes] == ones)
        if forward.readers.dense(base, tail):
            x = self._product(plain.flatten(), reads, starts, base, tail)
        else:
            used = [
                (read, self._change(start, base, tail)) for read, start in zip(reads, starts, strict=True) if read.any()
            ]
            x = _added(plain.flatten(), len(numbers), used)
        return x.view(len(numbers), *plain.shape)

    def _product(self, plain: Tensor, reads: list[np.ndarray], starts: list[int], base: int, tail: bool) -> Tensor:
        """Streams from what they read: one product with the matrix of all changes so far."""
        if (base, tail) not in self._rooms:
            self._rooms[base, tail] = plain.new_empty(1 + self.forward.readers.n_terms(base, tail), len(plain))
        for start in starts:
            self._change(start, base, tail)
        room = self._rooms[base, tail]
        room[0] = plain
        weights = np.concatenate([np.ones((len(reads[0]), 1), dtype=bool), *reads], 1)
        return torch.from_numpy(weights).to(room) @ room[: weights.shape[1]]

    def forget(self, level: int) -> None:
        """Drop what no stream of this level or a higher one reads."""
        for key in [key for key in self._changes if self.forward.readers.last_read(*key) < level]:
            del self._changes[key]

    def _change(self, start: int, base: int, tail: bool) -> Float[Tensor, "copy number"]:
        """What each of a part's copies writes beyond the plain run."""
        key = (start, base, tail)
        if key not in self._changes:
            readers, room = self.forward.readers, self._rooms.get((base, tail))
            n = len(readers.terms(*key))
            if room is None:
                plain = self.forward.plain(base, 0, "resid_pre", tail)
                out = plain.new_empty(n, plain.numel())
            else:
                before = 1 + sum(len(readers.terms(one, base, tail)) for one in readers.parts(start))
                out = room[before : before + n]
            self._write(start, base, tail, out)
            self._changes[key] = out
        return self._changes[key]

    def _write(self, start: int, base: int, tail: bool, out: Float[Tensor, "copy number"]) -> None:
        forward = self.forward
        terms = forward.readers.terms(start, base, tail)
        site = forward.plan.words.nodes[start]
        layer = site.layer or 0
        if site.kind == "z":
            for node, row in zip(*_groups([node for node, _ in terms]), strict=True):
                z = torch.stack([forward.z_of(layer, node - start, one, tail) for _, one in terms[row]])
                z -= forward.z_of(layer, node - start, base, tail)
                head_write(forward.model, layer, node - start, z, out[row].view(-1, forward.shape.d_model))
            return
        kind = "resid_pre" if site.kind == "input" else "mlp_out"
        plain = forward.plain(base, layer, kind, tail)
        for row, (_, one) in zip(out, terms, strict=True):
            value = forward.plain(one, 0, kind, tail) if site.kind == "input" else forward.mlp_of(one, layer, tail)
            torch.sub(value, plain, out=row.view(plain.shape))


def _added(plain: Float[Tensor, " number"], n: int, parts: list[tuple[np.ndarray, Tensor]]) -> Tensor:
    """`n` times a plain run's stream, and the changes that each reads, part by part."""
    if all(read.sum(1).max() == 1 for read, _ in parts):  # one copy of each part: nothing to multiply
        x = plain.expand(n, -1).clone()
        for read, change in parts:
            streams, copies = (run_of(i.tolist()) for i in read.nonzero())
            if isinstance(streams, slice):
                x[streams] += change[copies]
            else:
                x.index_add_(0, torch.tensor(streams, device=x.device), change[copies])
        return x
    x = plain.new_empty(n, len(plain))
    factors = [(torch.from_numpy(read).to(x), change) for read, change in parts]
    for at in range(0, len(plain), COLUMNS):
        some = slice(at, at + COLUMNS)
        x[:, some] = plain[some]
        for factor, change in factors:
            x[:, some].addmm_(factor, change[:, some])
    return x


def _groups(values: list[int]) -> tuple[list[int], list[slice]]:
    """(each value, where it is) of a sorted list."""
    found = list(dict.fromkeys(values))
    return found, [slice(bisect_left(values, one), bisect_right(values, one)) for one in found]
