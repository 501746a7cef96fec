"""Some pairs through all copies of all nodes of some circuits, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.recorded import Tokens
from crosspatch.attribution.slots import Projection, attend_heads
from crosspatch.circuits.classes import CLEAN, CUT, HeadCopy, MlpCopy, first_sender
from crosspatch.circuits.streams import Streams, Value
from crosspatch.circuits.sums import TAIL, WIDE, Sums
from crosspatch.model.activation import one_kernel
from crosspatch.model.attention import capturing
from crosspatch.model.project import Slot, head_write


class Forward(Streams):
    """Computes final states under some masks on some pairs.

    Args:
        As of `Streams`.
    """

    def __init__(
        self, sums: Sums, tokens: Tokens, kinds: Tensor | None, tile_mib: float, memory: dict[str, Tensor]
    ) -> None:
        super().__init__(sums, tokens, kinds, tile_mib, memory)
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
        self.start()
        with capturing([b.attn for b in blocks]), one_kernel([b.mlp for b in blocks]):
            for layer in range(self.shape.n_layers):
                self._layer(layer)
        self.open_level(self.shape.n_layers - 1, "resid_post")
        streams = sorted({final for final in self.classes.final if final >= 0})
        for tile in self.tiles(streams, TAIL):
            normed = model.anatomy.final_norm(self.sum(tile, TAIL))
            for stream, hidden in zip(tile, normed, strict=True):
                yield from ((mask, hidden) for mask, final in enumerate(self.classes.final) if final == stream)

    def _layer(self, layer: int) -> None:
        shape, heads, mlps = self.shape, *self.by_layer[layer]
        self.open_level(layer, "resid_pre")
        if heads:
            self._attention(layer, heads)
        if mlps and shape.parallel:
            self._mlps(layer, mlps)
        self._after_attention(layer)
        if mlps and not shape.parallel:
            self.open_level(layer, "resid_mid")
            self._mlps(layer, mlps)
        if shape.has_mlp:
            self._after_mlp(layer)
        self.z, self.mlp = {}, {}

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
                projection = Projection(self.model, layer, some, self.at(self.tokens.positions, place))
                for tile in self.tiles(list(some), place):
                    x = self.sum(tile, place)
                    for part in self.parts(x, self.shape.d_model):
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
        q = torch.stack([self.fit(value(("q", copy.head), copy.q), place) for copy in copies])
        k = torch.stack([value(("k", group), copy.k) for copy, group in zip(copies, groups, strict=True)])
        v = torch.stack([value(("v", group), copy.v) for copy, group in zip(copies, groups, strict=True)])
        z = attend_heads(self.tokens, layer, self.model.attention_rule(layer), q, k, v, groups)
        self.z |= dict(zip(heads, z, strict=True))

    def _after_attention(self, layer: int) -> None:
        """What heads write: changes of copies that streams read, full streams, the replaced stream."""
        block, start = self.model.anatomy.blocks[layer], first_sender(self.classes.table, layer)
        cut, clean = self.tokens.cut(layer, "z"), self.tokens.clean(layer, "z")
        for place in (WIDE, TAIL):
            cut, clean = self.fit(cut, place), self.fit(clean, place)
            columns = self.sums.columns[place]
            for head in range(self.shape.n_heads):
                if start + head in columns.of_clean:
                    self._write(layer, head, clean[:, head] - cut[:, head], place, columns.of_clean[start + head])
            for number, z in self.z.items():
                copy = self.classes.copies[number]
                if number in columns.of_copy and isinstance(copy, HeadCopy):
                    change = self.fit(z, place) - cut[:, copy.head]
                    self._write(layer, copy.head, change, place, columns.of_copy[number])
            for mask, full in self.fulls[place].items():
                row = self.sums.full_rows[place][mask, start : start + self.shape.n_heads]
                mixed = cut.clone()
                for head, one in enumerate(row.tolist()):
                    if one != CUT:
                        mixed[:, head] = clean[:, head] if one == CLEAN else self.fit(self.z[one], place)
                self.fulls[place][mask] = full + block.norm_attn_out(block.o_proj(mixed.flatten(1)[None]))[0]
            if block.post_norm:
                inner = block.o_proj(cut.flatten(1)[None])
                self.blocks[place].append((inner[0], block.norm_attn_out(inner)[0]))
            if self.tokens.recorded.replaced is None:
                out = block.norm_attn_out(block.o_proj(cut.flatten(1)[None]))[0]
                self.replaced[place] = self.replaced[place] + out

    def _write(self, layer: int, head: int, z: Tensor, place: int, columns: list[int]) -> None:
        """Keep what a change of a head's output adds to the stream."""
        head_write(self.model, layer, head, z, self.changes[place][columns[0]])
        self._repeat(place, columns)

    def _repeat(self, place: int, columns: list[int]) -> None:
        for column in columns[1:]:
            self.changes[place][column] = self.changes[place][columns[0]]

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
                for tile in self.tiles(some, source):
                    x = self.sum(tile, source)
                    x = x if x.shape[1] == self.sizes[place] else x[:, self.tokens.tail]
                    for part in self.parts(x, self.shape.d_mlp or 4 * self.shape.d_model):
                        out = block.mlp(norm(x[part].flatten(0, 1)[None]))
                        out = block.norm_mlp_out(out[0] if isinstance(out, tuple) else out).view(x[part].shape)
                        for stream, value in zip(tile[part], out, strict=True):
                            self.mlp |= dict.fromkeys(readers[stream], value)

    def _after_mlp(self, layer: int) -> None:
        node = first_sender(self.classes.table, layer) + self.shape.n_heads
        cut, clean = self.tokens.cut(layer, "mlp_out"), self.tokens.clean(layer, "mlp_out")
        for place in (WIDE, TAIL):
            cut, clean = self.fit(cut, place), self.fit(clean, place)
            columns = self.sums.columns[place]
            if node in columns.of_clean:
                torch.sub(clean, cut, out=self.changes[place][columns.of_clean[node][0]])
                self._repeat(place, columns.of_clean[node])
            for number, value in self.mlp.items():
                if number in columns.of_copy:
                    torch.sub(self.fit(value, place), cut, out=self.changes[place][columns.of_copy[number][0]])
                    self._repeat(place, columns.of_copy[number])
            for mask, full in self.fulls[place].items():
                one = int(self.sums.full_rows[place][mask, node])
                now = cut if one == CUT else clean if one == CLEAN else self.fit(self.mlp[one], place)
                self.fulls[place][mask] = full + now
            if self.tokens.recorded.replaced is None:
                self.replaced[place] = self.replaced[place] + cut
