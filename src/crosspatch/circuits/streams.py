"""Residual streams as sums of what senders write: one at a time, or many as one matrix product."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.recorded import Tokens
from crosspatch.circuits.classes import CUT, first_sender
from crosspatch.circuits.sums import BASES, TAIL, WIDE, Sums

Value = Float[Tensor, "token d_model"]
SPAN = 1.5
"""Changes that lie among at most this many times as many others are read with those between them, not gathered."""
NORMED_MIB = 8.0
"""Streams are normed and projected in parts of this size, which caches hold and allocators keep."""
MIB = 2**20


class Streams:
    """The residual streams of some circuits on some pairs, at one level after another.

    Args:
        sums: how they are put together.
        tokens: the tokens that they are there for.
        kinds: kind of every token, where masks differ between them.
        tile_mib: memory for the streams that are held at once.
        memory: what the last one used, to be used again: fresh memory is slow to come by.

    Attributes:
        changes: by place, what senders write beyond their replacements, in the rows that `sums` has for them.
        fulls: by place, the full streams of masks.
        replaced: by place, the replaced stream at the present level.
    """

    def __init__(
        self, sums: Sums, tokens: Tokens, kinds: Tensor | None, tile_mib: float, memory: dict[str, Tensor]
    ) -> None:
        self.memory = memory
        self.sums, self.classes, self.tokens = sums, sums.classes, tokens
        self.model = tokens.recorded.setup.model
        self.shape = self.model.shape
        self.post_norm = self.model.anatomy.blocks[0].post_norm
        self.sizes = (len(tokens.index), len(tokens.tail))
        self.places = self._places(kinds)
        self.changes = [self.room(f"changes {place}", place, sums.columns[place].number) for place in (WIDE, TAIL)]
        self.workspace = [self._workspace(place, tile_mib) for place in (WIDE, TAIL)]
        self.fulls: list[dict[int, Value]] = [{}, {}]
        self.replaced: list[Value] = []  # the replaced stream at the present level, by place
        self.input: list[Value] = []  # what the clean input changes in it
        self.bases: list[Float[Tensor, "base token d_model"]] = []  # without and with that change
        self.fresh: set[tuple[int, int]] = set()  # (place, mask) whose copies of the bases are of the present level
        self.blocks: list[list[tuple[Value, Value]]] = [[], []]  # by place and layer, where a norm follows attention

    def room(self, name: str, place: int, rows: int) -> Float[Tensor, "row token d_model"]:
        """Uninitialised memory."""
        shape, like = (rows, self.sizes[place], self.shape.d_model), self.tokens.recorded.clean.hidden
        number = math.prod(shape)
        if name not in self.memory or self.memory[name].numel() < number:
            self.memory.pop(name, None)
            self.memory[name] = torch.empty(number, dtype=self.model.dtype, device=like.device)
        return self.memory[name][:number].view(shape)

    def _workspace(self, place: int, tile_mib: float) -> Float[Tensor, "stream token d_model"]:
        """Room for the streams that are summed at once, used over and over."""
        size = max(1, self.sizes[place] * self.shape.d_model * torch.finfo(self.model.dtype).bits // 8)
        longest = max((len(numbers) for numbers in self._levels(place)), default=0)
        return self.room(f"streams {place}", place, min(longest, max(1, int(tile_mib * MIB / size))))

    def _levels(self, place: int) -> Iterator[list[int]]:
        """Streams that receivers of one level find."""
        by_level: dict[int, list[int]] = defaultdict(list)
        for number, stream in enumerate(self.classes.streams):
            if self.sums.place(number) == place:
                by_level[stream.row.shape[1]].append(number)
        yield from by_level.values()

    def _places(self, kinds: Tensor | None) -> list[list[Tensor | None]]:
        """For each place and kind of token the tokens of that kind; None = all of them."""
        if kinds is None:
            return [[None], [None]]
        n = self.classes.streams[0].row.shape[0] if self.classes.streams else 0
        both = (kinds, kinds[self.tokens.tail])
        return [[(place == kind).nonzero()[:, 0] for kind in range(n)] for place in both]

    def start(self) -> None:
        """The streams before the first block."""
        clean, cut = self.tokens.clean(0, "resid_pre"), self.tokens.cut(0, "resid_pre")
        for place in (WIDE, TAIL):
            self.replaced.append(self.at(cut, place))
            self.input.append(self.at(clean - cut, place))
            self.fulls[place] = {mask: self.at(clean, place) for mask in self.sums.fulls[place]}

    def at(self, value: Tensor, place: int) -> Tensor:
        """Values of all tokens, or of those that are read."""
        return value if place == WIDE else value[self.tokens.tail]

    def open_level(self, layer: int, kind: str) -> None:
        """The replaced stream at a new level: the run's, where there is one."""
        if self.tokens.recorded.replaced is not None:
            value = self.tokens.replaced(layer, kind)
            self.replaced = [value, self.at(value, TAIL)]
        self.bases = [torch.stack([x, x + change]) for x, change in zip(self.replaced, self.input, strict=True)]
        self.fresh = set()

    def fit(self, value: Tensor, place: int) -> Tensor:
        """Values of all tokens cut to a place; those of a place stay."""
        return value if len(value) == self.sizes[place] else value[self.tokens.tail]

    def tiles(self, streams: Sequence[int], place: int) -> Iterator[list[int]]:
        """Streams of one mask after another, as many at once as the workspace takes."""
        order = sorted(streams, key=lambda number: (self.classes.streams[number].mask, number))
        step = max(1, len(self.workspace[place]))
        yield from (order[at : at + step] for at in range(0, len(order), step))

    def parts(self, x: Float[Tensor, "stream token d_model"], width: int) -> Iterator[slice]:
        """Parts of a tile whose widest activation stays small."""
        step = max(1, int(NORMED_MIB * MIB / max(1, x.shape[1] * width * x.element_size())))
        yield from (slice(at, min(at + step, len(x))) for at in range(0, len(x), step))

    def sum(self, streams: list[int], place: int) -> Float[Tensor, "stream token d_model"]:
        """The streams, whose numbers are in the order of `tiles`; they are there until the next are summed."""
        out = self.workspace[place][: len(streams)]
        starts = [i for i, n in enumerate(streams) if not i or self._mask(n) != self._mask(streams[i - 1])]
        for kind, where in enumerate(self.places[place]):
            part = out if where is None else out[:, where]
            for first, last in pairwise([*starts, len(streams)]):
                self._sum_mask(part[first:last], streams[first:last], place, kind, where)
            if self.post_norm:
                self._add_blocks(part, streams, place, kind, where)
            if where is not None:
                out[:, where] = part
        return out

    def _mask(self, stream: int) -> int:
        return self.classes.streams[stream].mask

    def _sum_mask(self, out: Tensor, streams: list[int], place: int, kind: int, where: Tensor | None) -> None:
        """What one kind of token finds in the streams of one mask."""
        rows, columns, signs = [], [], []
        for i, number in enumerate(streams):
            terms = self.sums.terms[number]
            chosen = terms.kind == kind
            if self.post_norm:
                chosen &= ~self._is_head(terms.sender)
            column = terms.column if chosen.all() else terms.column[chosen]
            rows.append(np.full(len(column), i))
            columns.append(column)
            signs.append(np.full(len(column), terms.sign))
        row, column, sign = (np.concatenate(each) for each in (rows, columns, signs))
        if self._worth(column, len(streams)):
            self._product(out, streams, row, column, sign, place, kind, where)
            return
        for i, number in enumerate(streams):
            base = self._base(number, place, kind)
            out[i] = base if where is None else base[where]
        changes = self.changes[place]
        for i, c, s in zip(row.tolist(), column.tolist(), sign.tolist(), strict=True):
            out[i].add_(changes[c] if where is None else changes[c, where], alpha=s)

    def _worth(self, columns: np.ndarray, n_streams: int) -> bool:
        """Whether a product is cheaper than adding one change after another, in passes over one change: three for an
        addition, one for reading a factor (three if it is gathered), and the arithmetic."""
        if len(columns) <= 1:
            return False
        used = len(np.unique(columns))
        read = used if columns.max() + 1 - columns.min() <= SPAN * used else 3 * used
        return bool(3 * len(columns) > read + n_streams + 0.06 * n_streams * used)

    def _base(self, stream: int, place: int, kind: int) -> Value:
        """What a stream begins with."""
        if self.sums.base[stream] != CUT:
            return self._full(stream, place, kind)
        return self.bases[place][int(self.sums.terms[stream].input[kind])]

    def _full(self, stream: int, place: int, kind: int) -> Value:
        """A mask's full stream, without the clean input where that is cut."""
        full = self.fulls[place][int(self.sums.base[stream])]
        return full if self.sums.terms[stream].input[kind] else full - self.input[place]

    def _product(
        self,
        out: Tensor,
        streams: list[int],
        row: np.ndarray,
        column: np.ndarray,
        sign: np.ndarray,
        place: int,
        kind: int,
        where: Tensor | None,
    ) -> None:
        """Streams of one mask as a product of weights and the mask's own changes, which begin with the bases."""
        start = self.sums.columns[place].start[self._mask(streams[0])]
        if (place, start) not in self.fresh:
            self.changes[place][start : start + BASES] = self.bases[place]
            self.fresh.add((place, start))
        used = np.unique(column)
        if used[-1] + 1 - start <= SPAN * (len(used) + BASES):
            part, at = self.changes[place][start : int(used[-1]) + 1], column - start
        else:
            part = self.changes[place][torch.from_numpy(np.concatenate([start + np.arange(BASES), used]))]
            at = BASES + np.searchsorted(used, column)
        weights = torch.zeros(len(streams), len(part), dtype=out.dtype)
        weights[torch.from_numpy(row), torch.from_numpy(at)] = torch.from_numpy(sign).to(out.dtype)
        for i, number in enumerate(streams):
            if self.sums.base[number] == CUT:
                weights[i, int(self.sums.terms[number].input[kind])] = 1
        weights = weights.to(out.device)
        torch.mm(weights, (part if where is None else part[:, where]).flatten(1), out=out.view(len(streams), -1))
        for i, number in enumerate(streams):
            if self.sums.base[number] != CUT:
                full = self._full(number, place, kind)
                out[i] += full if where is None else full[where]

    def _is_head(self, senders: np.ndarray) -> np.ndarray:
        per_layer = self.shape.n_heads + int(self.shape.has_mlp)
        return (senders > 0) & ((senders - 1) % per_layer < self.shape.n_heads)

    def _add_blocks(self, out: Tensor, streams: list[int], place: int, kind: int, where: Tensor | None) -> None:
        """Where a norm follows attention, its change is that of a norm of a sum: one for every combination of heads."""
        rows = [self.classes.streams[number].row[kind] for number in streams]
        for layer, (inner, outer) in enumerate(self.blocks[place]):
            start = first_sender(self.classes.table, layer)
            combinations: dict[bytes, list[int]] = defaultdict(list)
            for i, row in enumerate(rows):
                block = row[start : start + self.shape.n_heads]
                if (block != CUT).any():
                    combinations[block.tobytes()].append(i)
            for members in combinations.values():
                terms = self.sums.terms[streams[members[0]]]
                inside = (terms.kind == kind) & (terms.sender >= start) & (terms.sender < start + self.shape.n_heads)
                cols = torch.from_numpy(terms.column[inside])
                total = inner + self.changes[place][cols].sum(0)
                change = self.model.anatomy.blocks[layer].norm_attn_out(total[None])[0] - outer
                out[members] += change if where is None else change[where]
