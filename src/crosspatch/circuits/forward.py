"""Some pairs through all copies of all nodes of some circuits, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.recorded import Tokens
from crosspatch.attribution.slots import Projection, attend_heads
from crosspatch.circuits.classes import CLEAN, CUT, HeadCopy, MlpCopy, first_sender
from crosspatch.circuits.sums import BASES, TAIL, WIDE, Sums
from crosspatch.model.activation import one_kernel
from crosspatch.model.attention import capturing
from crosspatch.model.project import Slot, head_write, linear_weight

Value = Float[Tensor, "token d_model"]
SPAN = 1.5
"""Changes that lie among at most this many times as many others are read with those between them, not gathered."""
NORMED_MIB = 8.0
"""Streams are normed and projected in parts of this size, which caches hold and allocators keep."""
MIB = 2**20


class Forward:
    """Computes final states under some masks on some pairs.

    Args:
        sums: what to compute.
        tokens: what to compute it on.
        kinds: kind of every token, where masks differ between them.
        tile_mib: memory for the streams that are held at once.
    """

    def __init__(self, sums: Sums, tokens: Tokens, kinds: Tensor | None, tile_mib: float) -> None:
        self.sums, self.classes, self.tokens = sums, sums.classes, tokens
        self.model = tokens.recorded.setup.model
        self.shape = self.model.shape
        self.post_norm = self.model.anatomy.blocks[0].post_norm
        self.sizes = (len(tokens.index), len(tokens.tail))
        self.places = self._places(kinds)
        like = tokens.recorded.clean.hidden
        width = self.shape.d_model
        self.changes = [
            torch.empty(len(columns), size, width, dtype=self.model.dtype, device=like.device)
            for columns, size in zip(sums.columns, self.sizes, strict=True)
        ]
        self.workspace = [self._workspace(place, tile_mib) for place in (WIDE, TAIL)]
        self.fulls: list[dict[int, Value]] = [{}, {}]
        self.replaced: list[Value] = []  # the replaced stream at the present level, by place
        self.input: list[Value] = []  # what the clean input changes in it
        self.bases: list[Float[Tensor, "base token d_model"]] = []  # without and with that change
        self.fresh: set[tuple[int, int]] = set()  # (place, mask) whose copies of the bases are of the present level
        self.blocks: list[list[tuple[Value, Value]]] = [[], []]  # by place and layer, where a norm follows attention
        self.z: dict[int, Float[Tensor, "token d_head"]] = {}
        self.mlp: dict[int, Value] = {}
        self.by_layer: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for number, copy in enumerate(self.classes.copies):
            self.by_layer[copy.layer][isinstance(copy, MlpCopy)].append(number)

    def run(self) -> Iterator[tuple[int, Float[Tensor, "read d_model"]]]:
        """(mask, final-norm outputs at the tokens that are read) of every mask that is no plain run."""
        model, blocks = self.model, self.model.anatomy.blocks
        if not any(final >= 0 for final in self.classes.final):
            return
        self._start()
        with capturing([b.attn for b in blocks]), one_kernel([b.mlp for b in blocks]):
            for layer in range(self.shape.n_layers):
                self._layer(layer)
        self._open(self.shape.n_layers - 1, "resid_post")
        streams = sorted({final for final in self.classes.final if final >= 0})
        for tile in self._tiles(streams, TAIL):
            normed = model.anatomy.final_norm(self._sum(tile, TAIL))
            for stream, hidden in zip(tile, normed, strict=True):
                yield from ((mask, hidden) for mask, final in enumerate(self.classes.final) if final == stream)

    # -- what is there before ----------------------------------------------------------------------------------

    def _places(self, kinds: Tensor | None) -> list[list[Tensor | None]]:
        """For each place and kind of token the tokens of that kind; None = all of them."""
        if kinds is None:
            return [[None], [None]]
        n = self.classes.streams[0].row.shape[0] if self.classes.streams else 0
        both = (kinds, kinds[self.tokens.tail])
        return [[(place == kind).nonzero()[:, 0] for kind in range(n)] for place in both]

    def _workspace(self, place: int, tile_mib: float) -> Float[Tensor, "stream token d_model"]:
        """Room for the streams that are summed at once, used over and over."""
        number = self.tokens.recorded.clean.hidden
        size = max(1, self.sizes[place] * self.shape.d_model * number.element_size())
        longest = max((len(numbers) for numbers in self._levels(place)), default=0)
        step = min(longest, max(1, int(tile_mib * MIB / size)))
        return torch.empty(step, self.sizes[place], self.shape.d_model, dtype=self.model.dtype, device=number.device)

    def _levels(self, place: int) -> Iterator[list[int]]:
        """Streams that receivers of one level find."""
        by_level: dict[int, list[int]] = defaultdict(list)
        for number, stream in enumerate(self.classes.streams):
            if self.sums.place(number) == place:
                by_level[stream.row.shape[1]].append(number)
        yield from by_level.values()

    def _start(self) -> None:
        clean, cut = self.tokens.clean(0, "resid_pre"), self.tokens.cut(0, "resid_pre")
        for place in (WIDE, TAIL):
            self.replaced.append(self._at(cut, place))
            self.input.append(self._at(clean - cut, place))
            self.fulls[place] = {mask: self._at(clean, place) for mask in self.sums.fulls[place]}

    def _at(self, value: Tensor, place: int) -> Tensor:
        """Values of all tokens, or of those that are read."""
        return value if place == WIDE else value[self.tokens.tail]

    def _open(self, layer: int, kind: str) -> None:
        """The replaced stream at a new level: the run's, where there is one."""
        if self.tokens.recorded.replaced is not None:
            value = self.tokens.replaced(layer, kind)
            self.replaced = [value, self._at(value, TAIL)]
        self.bases = [torch.stack([x, x + change]) for x, change in zip(self.replaced, self.input, strict=True)]
        self.fresh = set()

    def _layer(self, layer: int) -> None:
        shape, heads, mlps = self.shape, *self.by_layer[layer]
        self._open(layer, "resid_pre")
        if heads:
            self._attention(layer, heads)
        if mlps and shape.parallel:
            self._mlps(layer, mlps)
        self._after_attention(layer)
        if mlps and not shape.parallel:
            self._open(layer, "resid_mid")
            self._mlps(layer, mlps)
        if shape.has_mlp:
            self._after_mlp(layer)
        self.z, self.mlp = {}, {}

    # -- streams -----------------------------------------------------------------------------------------------

    def _tiles(self, streams: Sequence[int], place: int) -> Iterator[list[int]]:
        """Streams of one mask after another, as many at once as the workspace takes."""
        order = sorted(streams, key=lambda number: (self.classes.streams[number].mask, number))
        step = max(1, len(self.workspace[place]))
        yield from (order[at : at + step] for at in range(0, len(order), step))

    def _parts(self, x: Float[Tensor, "stream token d_model"], width: int) -> Iterator[slice]:
        """Parts of a tile whose widest activation stays small."""
        step = max(1, int(NORMED_MIB * MIB / max(1, x.shape[1] * width * x.element_size())))
        yield from (slice(at, min(at + step, len(x))) for at in range(0, len(x), step))

    def _sum(self, streams: list[int], place: int) -> Float[Tensor, "stream token d_model"]:
        """The streams, whose numbers are in the order of `_tiles`; they are there until the next are summed."""
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
        region = self.sums.columns[place].mask[column]
        own = region == self._mask(streams[0])
        if self._worth(own.sum(), column[own], len(streams), place):
            self._product(out, streams, row[own], column[own], sign[own], place, kind, where)
        else:
            own[:] = False
            for i, number in enumerate(streams):
                base = self._base(number, place, kind)
                out[i] = base if where is None else base[where]
        changes = self.changes[place]
        rest = ~own
        if self._worth(rest.sum(), column[rest], len(streams), place):
            used, at = np.unique(column[rest], return_inverse=True)
            part = changes[torch.from_numpy(used)]
            weights = self._weights(len(streams), len(used), row[rest], at, sign[rest])
            out.view(len(streams), -1).addmm_(weights, (part if where is None else part[:, where]).flatten(1))
            return
        for i, c, s in zip(row[rest].tolist(), column[rest].tolist(), sign[rest].tolist(), strict=True):
            out[i].add_(changes[c] if where is None else changes[c, where], alpha=s)

    def _worth(self, terms: int, columns: np.ndarray, n_streams: int, place: int) -> bool:
        """Whether a product is cheaper than adding one change after another, in passes over one change: three for an
        addition, one for reading a factor (three if it is gathered), and the arithmetic."""
        if terms <= 1:
            return False
        used = len(np.unique(columns))
        read = used if columns.max() + 1 - columns.min() <= SPAN * used else 3 * used
        return 3 * terms > read + n_streams + 0.06 * n_streams * used

    def _weights(self, rows: int, columns: int, row: np.ndarray, at: np.ndarray, sign: np.ndarray) -> Tensor:
        weights = torch.zeros(rows, columns, dtype=self.model.dtype)
        weights[torch.from_numpy(row), torch.from_numpy(at)] = torch.from_numpy(sign).to(weights.dtype)
        return weights.to(self.workspace[WIDE].device)

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
        start = int(self.sums.columns[place].start[self._mask(streams[0])])
        if (place, start) not in self.fresh:
            self.changes[place][start : start + BASES] = self.bases[place]
            self.fresh.add((place, start))
        used = np.unique(column)
        if used[-1] + 1 - start <= SPAN * (len(used) + BASES):
            part, at = self.changes[place][start : int(used[-1]) + 1], column - start
        else:
            part = self.changes[place][torch.from_numpy(np.concatenate([start + np.arange(BASES), used]))]
            at = BASES + np.searchsorted(used, column)
        weights = self._weights(len(streams), len(part), row, at, sign)
        for i, number in enumerate(streams):
            if self.sums.base[number] == CUT:
                weights[i, int(self.sums.terms[number].input[kind])] = 1
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
                block = rows[members[0]][start : start + self.shape.n_heads]
                heads = (block != CUT).nonzero()[0]
                cols = torch.from_numpy(self.sums.columns[place].of(start + heads, block[heads]))
                total = inner + self.changes[place][cols].sum(0)
                change = self.model.anatomy.blocks[layer].norm_attn_out(total[None])[0] - outer
                out[members] += change if where is None else change[where]

    # -- attention ---------------------------------------------------------------------------------------------

    def _attention(self, layer: int, heads: list[int]) -> None:
        """All copies of the heads of one layer."""
        readers: dict[int, list[Slot]] = defaultdict(list)
        for number in heads:
            copy = self.classes.copies[number]
            assert isinstance(copy, HeadCopy)
            group = self.shape.group_of(copy.head)
            for slot, stream in ((("q", copy.head), copy.q), (("k", group), copy.k), (("v", group), copy.v)):
                if stream >= 0 and slot not in readers[stream]:
                    readers[stream].append(slot)
        found: dict[tuple[Slot, int], Tensor] = {}
        for place in (WIDE, TAIL):
            some = {s: slots for s, slots in readers.items() if self.sums.place(s) == place}
            if some:
                projection = Projection(self.model, layer, some, self._at(self.tokens.positions, place))
                for tile in self._tiles(list(some), place):
                    x = self._sum(tile, place)
                    for part in self._parts(x, self.shape.d_model):
                        projection.add(tile[part], self.model.anatomy.blocks[layer].norm_attn_in(x[part]))
                found |= projection.values()
        plain: dict[tuple[str, int], Tensor] = {}

        def value(slot: Slot, stream: int) -> Tensor:
            if stream >= 0:
                return found[(slot, stream)]
            if (slot[0], stream) not in plain:
                source = self.tokens.clean if stream == CLEAN else self.tokens.replaced
                plain[(slot[0], stream)] = source(layer, slot[0])
            return plain[(slot[0], stream)][:, slot[1]]

        for place in (WIDE, TAIL):
            some_heads = [n for n in heads if bool(self.classes.wide_copies[n]) == (place == WIDE)]
            if some_heads:
                self._attend(layer, some_heads, place, value)

    def _attend(self, layer: int, heads: list[int], place: int, value: Callable[[Slot, int], Tensor]) -> None:
        """Head outputs of some copies."""
        copies = [copy for copy in (self.classes.copies[number] for number in heads) if isinstance(copy, HeadCopy)]
        groups = [self.shape.group_of(copy.head) for copy in copies]
        q = torch.stack([self._fit(value(("q", copy.head), copy.q), place) for copy in copies])
        k = torch.stack([value(("k", group), copy.k) for copy, group in zip(copies, groups, strict=True)])
        v = torch.stack([value(("v", group), copy.v) for copy, group in zip(copies, groups, strict=True)])
        z = attend_heads(self.tokens, layer, self.model.attention_rule(layer), q, k, v, groups)
        self.z |= dict(zip(heads, z, strict=True))

    def _fit(self, value: Tensor, place: int) -> Tensor:
        """Values of all tokens cut to a place; those of a place stay."""
        return value if len(value) == self.sizes[place] else value[self.tokens.tail]

    def _after_attention(self, layer: int) -> None:
        """What heads write: changes of copies that streams read, full streams, the replaced stream."""
        block, start = self.model.anatomy.blocks[layer], first_sender(self.classes.table, layer)
        cut, clean = self.tokens.cut(layer, "z"), self.tokens.clean(layer, "z")
        for place in (WIDE, TAIL):
            cut, clean = self._fit(cut, place), self._fit(clean, place)
            columns = self.sums.columns[place]
            for head in range(self.shape.n_heads):
                column = columns.of_clean[start + head]
                if column >= 0:
                    self._write(layer, head, clean[:, head] - cut[:, head], self.changes[place][column])
            for number, z in self.z.items():
                copy = self.classes.copies[number]
                column = columns.of_copy[number]
                if column >= 0:
                    assert isinstance(copy, HeadCopy)
                    self._write(layer, copy.head, self._fit(z, place) - cut[:, copy.head], self.changes[place][column])
            for mask, full in self.fulls[place].items():
                row = self.sums.full_rows[place][mask, start : start + self.shape.n_heads]
                mixed = cut.clone()
                for head, one in enumerate(row.tolist()):
                    if one != CUT:
                        mixed[:, head] = clean[:, head] if one == CLEAN else self._fit(self.z[one], place)
                self.fulls[place][mask] = full + block.norm_attn_out(block.o_proj(mixed.flatten(1)[None]))[0]
            if block.post_norm:
                inner = block.o_proj(cut.flatten(1)[None])
                self.blocks[place].append((inner[0], block.norm_attn_out(inner)[0]))
            if self.tokens.recorded.replaced is None:
                out = block.norm_attn_out(block.o_proj(cut.flatten(1)[None]))[0]
                self.replaced[place] = self.replaced[place] + out

    def _write(self, layer: int, head: int, z: Tensor, out: Tensor) -> None:
        weight = linear_weight(self.model.anatomy.blocks[layer].o_proj)
        if weight is None:
            out.copy_(head_write(self.model, layer, head, z))
        else:
            torch.mm(z, weight[:, head * self.shape.d_head : (head + 1) * self.shape.d_head].T, out=out)

    # -- MLPs --------------------------------------------------------------------------------------------------

    def _mlps(self, layer: int, numbers: list[int]) -> None:
        """All copies of one MLP."""
        block, copies = self.model.anatomy.blocks[layer], self.classes.copies
        norm = block.norm_attn_in if block.shared_norm else block.norm_mlp_in
        assert block.mlp is not None
        for place in (WIDE, TAIL):
            readers: dict[int, list[int]] = defaultdict(list)
            for number in numbers:
                if bool(self.classes.wide_copies[number]) == (place == WIDE):
                    readers[copies[number].reads[0]].append(number)
            for source in (WIDE, TAIL):
                some = [stream for stream in readers if self.sums.place(stream) == source]
                for tile in self._tiles(some, source):
                    x = self._sum(tile, source)
                    x = x if x.shape[1] == self.sizes[place] else x[:, self.tokens.tail]
                    for part in self._parts(x, self.shape.d_mlp or 4 * self.shape.d_model):
                        out = block.mlp(norm(x[part].flatten(0, 1)[None]))
                        out = block.norm_mlp_out(out[0] if isinstance(out, tuple) else out).view(x[part].shape)
                        for stream, value in zip(tile[part], out, strict=True):
                            self.mlp |= dict.fromkeys(readers[stream], value)

    def _after_mlp(self, layer: int) -> None:
        node = first_sender(self.classes.table, layer) + self.shape.n_heads
        cut, clean = self.tokens.cut(layer, "mlp_out"), self.tokens.clean(layer, "mlp_out")
        for place in (WIDE, TAIL):
            cut, clean = self._fit(cut, place), self._fit(clean, place)
            columns = self.sums.columns[place]
            if columns.of_clean[node] >= 0:
                self.changes[place][columns.of_clean[node]] = clean - cut
            for number, value in self.mlp.items():
                if columns.of_copy[number] >= 0:
                    torch.sub(self._fit(value, place), cut, out=self.changes[place][columns.of_copy[number]])
            for mask, full in self.fulls[place].items():
                one = int(self.sums.full_rows[place][mask, node])
                now = cut if one == CUT else clean if one == CLEAN else self._fit(self.mlp[one], place)
                self.fulls[place][mask] = full + now
            if self.tokens.recorded.replaced is None:
                self.replaced[place] = self.replaced[place] + cut
