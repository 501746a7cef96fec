"""Many residual streams at once: the nearer plain run, plus what the copies that each stream reads write beyond it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.model.project import head_write

if TYPE_CHECKING:
    from crosspatch.paths.forward import Forward

COLUMNS = 2**14
"""Numbers of each stream that are summed before the next ones are: as many as stay in a cache."""


class Sums:
    """Sums of streams of one chunk, where all positions are of one kind and the heads of every block add up.

    What the copies of one block's heads, or of its MLP, write beyond a plain run is computed once, for all streams that
    start from that run, and dropped after the last of them.
    """

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self._changes: dict[tuple[int, int, bool], Float[Tensor, "copy number"]] = {}

    def of(self, numbers: list[int], level: int, base: int, tail: bool) -> Float[Tensor, "stream pair position d"]:
        """Streams of one level that are nearest to the same plain run, at all positions or at the tail."""
        forward = self.forward
        classes = np.stack([forward.plan.streams[number].classes[:, 0] for number in numbers])
        plain = forward.plain_stream(base, level, tail)
        parts: list[tuple[np.ndarray, Tensor]] = []
        for start in forward.readers.parts(level):
            terms = forward.readers.terms(start, base, tail)
            read = np.stack([classes[:, node] == one for node, one in terms], 1) if terms else np.zeros((1, 0))
            if read.any():
                parts.append((read, self._change(start, base, tail)))
        flat = plain.flatten()
        if all(read.sum(1).max() == 1 for read, _ in parts):  # one copy of each part: nothing to multiply
            x = flat.expand(len(numbers), -1).clone()
            for read, change in parts:
                rows, copies = (torch.from_numpy(i).to(x.device) for i in read.nonzero())
                x.index_add_(0, rows, change[copies])
        else:
            x = flat.new_empty(len(numbers), len(flat))
            factors = [(torch.from_numpy(read).to(x), change) for read, change in parts]
            for at in range(0, len(flat), COLUMNS):
                some = slice(at, at + COLUMNS)
                x[:, some] = flat[some]
                for factor, change in factors:
                    x[:, some].addmm_(factor, change[:, some])
        return x.view(len(numbers), *plain.shape)

    def forget(self, level: int) -> None:
        """Drop what no stream of this level or a higher one reads."""
        for key in [key for key in self._changes if self.forward.readers.last_read(*key) < level]:
            del self._changes[key]

    def _change(self, start: int, base: int, tail: bool) -> Float[Tensor, "copy number"]:
        """What each of a part's copies writes beyond the plain run."""
        key = (start, base, tail)
        if key not in self._changes:
            self._changes[key] = self._written(start, base, tail)
        return self._changes[key]

    def _written(self, start: int, base: int, tail: bool) -> Float[Tensor, "copy number"]:
        forward = self.forward
        terms = forward.readers.terms(start, base, tail)
        site = forward.plan.words.nodes[start]
        layer = site.layer or 0
        if site.kind == "z":
            found = []
            for node in dict.fromkeys(node for node, _ in terms):
                head = node - start
                z = torch.stack([forward.z_of(layer, head, one, tail) for n, one in terms if n == node])
                change = head_write(forward.model, layer, head, z - forward.z_of(layer, head, base, tail))
                found.append(change.flatten(1))
            return torch.cat(found)
        if site.kind == "input":
            values = [forward.plain(one, 0, "resid_pre", tail) for _, one in terms]
            return torch.stack(values).sub_(forward.plain(base, 0, "resid_pre", tail)).flatten(1)
        values = [forward.mlp_of(one, layer, tail) for _, one in terms]
        return torch.stack(values).sub_(forward.plain(base, layer, "mlp_out", tail)).flatten(1)
