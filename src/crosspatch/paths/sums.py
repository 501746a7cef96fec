"""Many residual streams at once: the nearer plain run, plus what the copies that each stream reads write beyond it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosspatch.model.project import head_write, head_writes, run_of

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
        self._results: dict[tuple[int, bool], Float[Tensor, "stream number"]] = {}
        self._begun: dict[tuple[int, bool], tuple[list[int], int, Float[Tensor, "stream number"]]] = {}

    def of(
        self, numbers: list[int], level: int, base: int, tail: bool, ahead: list[int]
    ) -> Float[Tensor, "stream pair position d"]:
        """Streams of one level that begin with the same plain run, at all positions or at the tail.

        Args:
            ahead: streams of the next level, which are begun with those of this one where sums are products: what was
                written so far is read once for both.
        """
        plain = self.forward.plain_stream(base, level, tail)
        starts = self._starts(level, base, tail)
        if self.forward.readers.dense(base, tail):
            for start in starts:
                self._change(start, base, tail)
            x = self._product(plain.flatten(), numbers, level, base, tail, ahead)
        else:
            reads = zip(self._reads(numbers, starts, level, base, tail), starts, strict=True)
            used = [(read, self._change(start, base, tail)) for read, start in reads if read.any()]
            x = _added(plain.flatten(), len(numbers), used)
        return x.view(len(numbers), *plain.shape)

    def _starts(self, level: int, base: int, tail: bool) -> list[int]:
        readers = self.forward.readers
        return [start for start in readers.parts(level) if readers.terms(start, base, tail)]

    def _reads(
        self, numbers: list[int], starts: list[int], level: int, base: int, tail: bool
    ) -> list[Bool[np.ndarray, "stream copy"]]:
        """Which copies of each part streams read below a level."""
        classes = np.stack([self.forward.plan.streams[number].classes[:level, 0] for number in numbers])
        found = []
        for start in starts:
            nodes, ones = np.array(self.forward.readers.terms(start, base, tail)).T
            found.append(classes[:, nodes] == ones)
        return found

    def _product(
        self, plain: Float[Tensor, " number"], numbers: list[int], level: int, base: int, tail: bool, ahead: list[int]
    ) -> Float[Tensor, "stream number"]:
        """Streams from what they read: one product with the matrix of all changes so far."""
        key, room = (base, tail), self._room(base, tail)
        known, below, begun = self._begun.pop(key, ([], 0, plain))
        starts = self._starts(level, base, tail)
        if known == numbers:
            starts = [start for start in starts if start >= below]
            x = begun.add_(plain)
            if starts:
                weights = np.concatenate(self._reads(numbers, starts, level, base, tail), 1)
                before = self._row(starts[0], base, tail)
                x.addmm_(torch.from_numpy(weights).to(room), room[before : before + weights.shape[1]])
            return x
        room[0] = plain
        n, every = len(numbers), [*numbers, *ahead]
        own = np.arange(len(every))[:, None] < n
        weights = np.concatenate([own, *self._reads(every, starts, level, base, tail)], 1)
        out = None
        # Nothing begins with these streams: their memory is used again for the next ones. Fresh memory is slow to get.
        if all(self.forward.readers.last_begun[number] == level for number in numbers):
            if key not in self._results or len(self._results[key]) < len(every):
                self._results[key] = plain.new_empty(len(every), len(plain))
            out = self._results[key][: len(every)]
        x = torch.mm(torch.from_numpy(weights).to(room), room[: weights.shape[1]], out=out)
        if ahead:
            self._begun[key] = (ahead, level, x[n:].clone())
        return x[:n]

    def _room(self, base: int, tail: bool) -> Float[Tensor, "row number"]:
        """Memory for all changes, below a row for the plain run's stream."""
        if (base, tail) not in self._rooms:
            like = self.forward.plain(base, 0, "resid_pre", tail)
            self._rooms[base, tail] = like.new_empty(1 + self.forward.readers.n_terms(base, tail), like.numel())
        return self._rooms[base, tail]

    def _row(self, start: int, base: int, tail: bool) -> int:
        """Where the changes of a part begin in that memory."""
        readers = self.forward.readers
        return 1 + sum(len(readers.terms(one, base, tail)) for one in readers.parts(start))

    def forget(self, level: int) -> None:
        """Drop what no stream of this level or a higher one reads."""
        for key in [key for key in self._changes if self.forward.readers.last_read(*key) < level]:
            del self._changes[key]

    def _change(self, start: int, base: int, tail: bool) -> Float[Tensor, "copy number"]:
        """What each of a part's copies writes beyond the plain run."""
        key = (start, base, tail)
        if key not in self._changes:
            n = len(self.forward.readers.terms(*key))
            if self.forward.readers.dense(base, tail):
                before = self._row(*key)
                out = self._room(base, tail)[before : before + n]
            else:
                plain = self.forward.plain(base, 0, "resid_pre", tail)
                out = plain.new_empty(n, plain.numel())
            self._write(start, base, tail, out)
            self._changes[key] = out
        return self._changes[key]

    def _write(self, start: int, base: int, tail: bool, out: Float[Tensor, "copy number"]) -> None:
        forward = self.forward
        terms = forward.readers.terms(start, base, tail)
        site = forward.plan.words.nodes[start]
        layer = site.layer or 0
        if site.kind == "z":
            z = torch.stack(
                [
                    forward.z_of(layer, node - start, one, tail) - forward.z_of(layer, node - start, base, tail)
                    for node, one in terms
                ]
            )
            heads, rows = _groups([node - start for node, _ in terms])
            if len(heads) == len(terms):
                head_writes(
                    forward.model, layer, heads, z.flatten(1, 2), out.view(len(terms), -1, forward.shape.d_model)
                )
                return
            for head, row in zip(heads, rows, strict=True):
                head_write(forward.model, layer, head, z[row], out[row].view(-1, forward.shape.d_model))
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
