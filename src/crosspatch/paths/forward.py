"""One chunk of pairs through all copies of all nodes, layer by layer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.model import Run
from crosspatch.model.activation import one_kernel
from crosspatch.model.attention import AttentionRule, attend, capturing, seen_mask
from crosspatch.model.project import head_write
from crosspatch.paths.automaton import COUNTER, REFERENCE
from crosspatch.paths.compile import HeadVariant, MlpVariant
from crosspatch.paths.norms import Frozen
from crosspatch.paths.places import first_difference, offset_masks
from crosspatch.paths.projected import Projected, project
from crosspatch.paths.readers import Readers
from crosspatch.paths.stacks import Stacks
from crosspatch.paths.sums import Sums

Value = Float[Tensor, "pair position d_model"]
MLP_TOKENS = 2048
"""Tokens that go through an MLP at once, at least one prompt."""


class Forward:
    """Computes a plan on the two plain runs of some pairs of equal length.

    Args:
        readers: what to compute, and how often what is used.
        reference, counters: plain runs of the pairs, with the activations of `Readers.keys`.
        kinds: kind of position of every token.
    """

    def __init__(
        self, readers: Readers, reference: Run, counters: Sequence[Run], kinds: Int[Tensor, "pair position"]
    ) -> None:
        self.readers, self.plan, self.model = readers, readers.plan, reference.model
        plan = self.plan
        self.shape = plan.words.shape
        self.per_layer = self.shape.n_heads + int(self.shape.has_mlp)
        self.runs = {REFERENCE: reference, **{COUNTER - i: run for i, run in enumerate(counters)}}
        self.pairs, self.length = kinds.shape
        # Where attention is bidirectional no position is out of reach of a difference.
        self.first = first_difference([reference.tokens, *(run.tokens for run in counters)]) if self.shape.causal else 0
        self.read = reference.read[0]
        self.masks = [(kinds == kind)[..., None].to(self.model.device) for kind in range(len(plan.atoms.places))]
        # What no key or value depends on is needed where it is read. Reads before the first difference are the plain
        # runs'.
        self.tail = [p - self.first for p in self.read if p >= self.first]
        self.z: dict[int, Float[Tensor, "pair position d_head"]] = {}
        self.mlp: dict[int, Value] = {}
        self.streams = Stacks()
        self.offsets: dict[tuple[int, ...], list[Tensor]] = {}
        self.blocks: dict[tuple[int, int, bytes, bool], Value] = {}
        self.sums = Sums(self)
        self.frozen = Frozen(self) if plan.norms == "frozen" else None
        self.by_layer: dict[int, list[tuple[int, HeadVariant | MlpVariant]]] = defaultdict(list)
        for number, variant in enumerate(plan.variants):
            self.by_layer[plan.words.nodes[variant.node].layer or 0].append((number, variant))
        self.at_level: dict[int, list[int]] = defaultdict(list)
        for number, stream in enumerate(plan.streams):
            self.at_level[stream.level].append(number)

    def run(self) -> Iterator[Float[Tensor, "read d_model"]]:
        """Final-norm outputs at the reads, path set by path set."""
        blocks = self.model.anatomy.blocks
        if self.plan.streams and self.tail:
            with capturing([b.attn for b in blocks]), one_kernel([b.mlp for b in blocks]):
                for layer in range(self.shape.n_layers):
                    self._layer(layer)
                self._open(len(self.plan.words.nodes))
        for classes in self.plan.final:
            yield self._final(classes)

    def _final(self, classes: tuple[int, ...]) -> Float[Tensor, "read d_model"]:
        """Reads of one set; a set may read different streams at different kinds of position."""
        normed = {one: self._normed(one) for one in set(classes)}
        mixed = self._mix([normed[one] for one in classes], self._tail_masks(full=True))
        return mixed.flatten(0, 1)

    def _normed(self, one: int) -> Float[Tensor, "pair read d_model"]:
        if one < 0:
            return self.runs[one].hidden.view(self.pairs, len(self.read), -1)
        out = self.runs[COUNTER].hidden.view(self.pairs, len(self.read), -1)
        if not self.tail:
            return out
        normed = self.norm_streams(len(self.plan.words.nodes), "final_norm", [one], self.streams[one][None], True)[0]
        return torch.cat([out[:, : len(self.read) - len(self.tail)], normed.to(out)], 1)

    def norm_streams(self, level: int, role: str, numbers: list[int], x: Tensor, tail: bool) -> Tensor:
        """The norm that readers of one level apply to what they find, `x [stream, pair, position, d_model]`."""
        final = role == "final_norm"
        layer = (level - 1) // self.per_layer
        anatomy = self.model.anatomy
        norm = anatomy.final_norm if final else getattr(anatomy.blocks[layer], role)
        return norm(x) if self.frozen is None else self.frozen.of_streams(level, role, norm, numbers, x, tail)

    def level_of_mlp(self, layer: int) -> int:
        """How many nodes come before a layer's MLP."""
        return 1 + layer * self.per_layer + (0 if self.shape.parallel else self.shape.n_heads)

    def _tail_masks(self, full: bool = False) -> list[Tensor]:
        at = list(self.read) if full else [self.first + t for t in self.tail]
        return [mask[:, at] for mask in self.masks]

    # -- streams ------------------------------------------------------------------------------------------------

    def _layer(self, layer: int) -> None:
        if not self.by_layer[layer]:
            return
        level = 1 + layer * self.per_layer
        heads = [(n, v) for n, v in self.by_layer[layer] if isinstance(v, HeadVariant)]
        mlps = [(n, v) for n, v in self.by_layer[layer] if isinstance(v, MlpVariant)]
        if heads or self.shape.parallel:
            self._open(level)
        if heads:
            self._attention(layer, heads)
        if mlps:
            self._mlps(layer, mlps)

    def positions(self, tail: bool) -> tuple[int, ...]:
        """Token positions of what is computed: all from the first difference on, or only those that are read."""
        return tuple(self.first + t for t in self.tail) if tail else tuple(range(self.first, self.length))

    def _open(self, level: int) -> None:
        """Sum the streams that readers of one level find; those that nothing begins with any more are forgotten."""
        for number in [n for n in self.streams if self.readers.last_begun[n] < level]:
            self.streams.drop(number)
        self.sums.forget(level)
        todo = [number for number in self.at_level[level] if number not in self.streams]
        rows = [n for n in todo if self.readers.row_by_row(level)]
        mlp = level + self.shape.n_heads
        ahead = [n for n in self.at_level[mlp] if self._sequential(level) and self.readers.row_by_row(mlp)]
        for base, tail in product(self.runs, (False, True)):
            some, then = (
                [n for n in numbers if self.readers.bases[n] == base and self._tail(n) == tail]
                for numbers in (rows, ahead)
            )
            if len(some) > 1 or (some and self.readers.dense(base, tail)):
                self.streams.put(some, self.sums.of(some, level, base, tail, then))
        for number in todo:
            if number not in self.streams:
                self.streams.put([number], self._stream(number, self._tail(number))[None])

    def _sequential(self, level: int) -> bool:
        """Whether a level is that of a block's heads, whose MLP reads more than they do."""
        return self.shape.has_mlp and not self.shape.parallel and (level - 1) % self.per_layer == 0

    def _tail(self, number: int) -> bool:
        return number not in self.readers.wide

    def plain(self, run: int, layer: int, kind: str, tail: bool = False) -> Tensor:
        """A plain run's activation from the first differing position on."""
        stored = self.runs[run].packed((layer, kind))
        value = stored.view(self.pairs, self.length, *stored.shape[1:])[:, self.first :]
        return value[:, self.tail] if tail else value

    def plain_stream(self, run: int, level: int, tail: bool) -> Value:
        layer, inside = divmod(level - 1, self.per_layer)
        if layer == self.shape.n_layers:
            return self.plain(run, self.shape.n_layers - 1, "resid_post", tail)
        return self.plain(run, layer, "resid_mid" if inside else "resid_pre", tail)

    def _stream(self, number: int, tail: bool) -> Value:
        """The nearer plain run's stream, and what differs from it: block by block of attention, MLP by MLP."""
        stream = self.plan.streams[number]
        classes, base = stream.classes, self.readers.bases[number]
        parent, below = self._parent(number, tail)
        x = self.plain_stream(base, stream.level, tail)
        if parent is not None:
            x = x + parent - self.plain_stream(base, below, tail)
        masks = self._masks(tail)
        if below == 0 and (classes[0] != base).any():
            plain = self.plain(base, 0, "resid_pre", tail)
            changes = {base: torch.zeros_like(plain)}
            for other in self.runs.keys() - {base}:
                changes[other] = self.plain(other, 0, "resid_pre", tail) - plain
            x = x + self._mix([changes[one] for one in classes[0].tolist()], masks)
        for layer in range(self.shape.n_layers):
            start = 1 + layer * self.per_layer
            block = classes[start : start + self.shape.n_heads]
            if start >= below and len(block) and (block != base).any():
                x = x + self._attention_change(layer, block, base, tail)
            at = start + self.shape.n_heads
            if self.shape.has_mlp and below <= at < stream.level and (classes[at] != base).any():
                own = self.plain(base, layer, "mlp_out", tail)
                parts = {one: self.mlp_of(one, layer, tail) - own for one in set(classes[at].tolist()) - {base}}
                x = x + self._mix([parts.get(one, torch.zeros_like(own)) for one in classes[at].tolist()], masks)
        return x

    def _parent(self, number: int, tail: bool) -> tuple[Value | None, int]:
        """A stream that has been summed already and agrees with this one on all nodes below it."""
        parent = self.readers.parents[number]
        if parent not in self.streams or (self._tail(parent) and not tail):
            return None, 0
        found = self.streams[parent]
        cut = found[:, self.tail] if tail and found.shape[1] != len(self.tail) else found
        return cut, self.plan.streams[parent].level

    def _masks(self, tail: bool) -> list[Tensor]:
        return self._tail_masks() if tail else [mask[:, self.first :] for mask in self.masks]

    def _mix(self, values: list[Tensor], masks: list[Tensor]) -> Tensor:
        """At every position the value for its kind."""
        if all(value is values[0] for value in values):
            return values[0]
        out = values[0]
        for value, mask in zip(values[1:], masks[1:], strict=True):
            if value is not values[0]:
                out = torch.where(mask, value, out)
        return out

    def mlp_of(self, one: int, layer: int, tail: bool) -> Value:
        if one < 0:
            return self.plain(one, layer, "mlp_out", tail)
        value = self.mlp[one]
        return value[:, self.tail] if tail and value.shape[1] != len(self.tail) else value

    # -- attention ----------------------------------------------------------------------------------------------

    def _attention_change(self, layer: int, block: Int[np.ndarray, "head atom"], base: int, tail: bool) -> Value:
        """What a block's attention writes with these copies of its heads, less what it writes in the plain run."""
        key = (layer, base, block.tobytes(), tail)
        if key not in self.blocks:
            if self.readers.head_by_head:
                change = self._head_by_head(layer, block, base, tail)
            else:
                parts = self.model.anatomy.blocks[layer]
                z = torch.stack([self._z_mixed(layer, head, row, tail) for head, row in enumerate(block.tolist())], 2)
                out = parts.o_proj(z.flatten(2))
                if self.frozen is None or not parts.post_norm:
                    out = parts.norm_attn_out(out)
                else:
                    out = self.frozen.of_heads(layer, parts.norm_attn_out, block.tolist(), out, tail)
                change = out - self.plain(base, layer, "attn_out", tail)
            if self.readers.uses(layer, block) == 1:
                return change
            self.blocks[key] = change
        return self.blocks[key]

    def _head_by_head(self, layer: int, block: Int[np.ndarray, "head atom"], base: int, tail: bool) -> Value:
        masks = self._masks(tail)
        change: Value | None = None
        for head, row in enumerate(block.tolist()):
            for atom, one in enumerate(row):
                if one == base:
                    continue
                part = self._written(layer, head, one, base, tail)
                part = part if len(masks) == 1 else torch.where(masks[atom], part, torch.zeros_like(part))
                change = part if change is None else change + part
        assert change is not None
        return change

    def _written(self, layer: int, head: int, one: int, base: int, tail: bool) -> Value:
        """What one copy of a head writes, less what the plain run's writes; kept, because many streams read it."""
        key = (layer, head, f"{one} {base}".encode(), tail)
        if key not in self.blocks:
            z = self.z_of(layer, head, one, tail) - self.z_of(layer, head, base, tail)
            self.blocks[key] = head_write(self.model, layer, head, z)
        return self.blocks[key]

    def _z_mixed(self, layer: int, head: int, row: list[int], tail: bool) -> Float[Tensor, "pair position d_head"]:
        found = {one: self.z_of(layer, head, one, tail) for one in set(row)}
        return self._mix([found[one] for one in row], self._masks(tail))

    def z_of(self, layer: int, head: int, one: int, tail: bool) -> Float[Tensor, "pair position d_head"]:
        if one < 0:
            return self.plain(one, layer, "z", tail)[:, :, head]
        value = self.z[one]
        return value[:, self.tail] if tail and value.shape[1] != len(self.tail) else value

    def _attention(self, layer: int, heads: list[tuple[int, HeadVariant]]) -> None:
        """All copies of the heads of one layer."""
        qkv = project(self, layer, [variant for _, variant in heads])
        rule = self.model.attention_rule(layer)
        for tail in (False, True):
            chosen = [item for item in heads if (item[0] not in self.readers.wide_copies) == tail]
            positions = self.positions(tail)
            whole = [item for item in chosen if not self._windowed(item[1])]
            for lo in range(0, len(whole), 64):
                some = whole[lo : lo + 64]
                q, k, v = (self._gathered(kind, layer, [x for _, x in some], qkv, tail) for kind in "qkv")
                z = attend(q[:, :, None], k[:, :, None], v[:, :, None], positions, rule)[:, :, 0]
                self.z |= dict(zip([number for number, _ in some], z.split(self.pairs), strict=True))
            for number, variant in chosen:
                if self._windowed(variant):
                    self.z[number] = self._attend_windows(layer, variant, qkv, tail, rule)

    def _gathered(
        self, kind: str, layer: int, heads: list[HeadVariant], qkv: Projected, tail: bool
    ) -> Float[Tensor, "copy_and_pair position d_head"]:
        """Queries, keys or values of copies that read one kind of offset."""
        if len(self.masks) > 1:
            return torch.cat(
                [self._q(layer, x, qkv, tail) if kind == "q" else self._keys(kind, layer, x, 0, qkv) for x in heads]
            )
        index = [self.plan.words.nodes[x.node].index or 0 for x in heads]
        index = index if kind == "q" else [self.shape.group_of(head) for head in index]
        reads = [x.q if kind == "q" else (x.k if kind == "k" else x.v)[0][0] for x in heads]
        out = qkv.rows(kind, list(zip(index, reads, strict=True)), self, layer, tail and kind == "q")
        if kind != "q" and self.first:
            stored = self.runs[COUNTER].packed((layer, kind)).view(self.pairs, self.length, -1, out.shape[-1])
            before = stored[:, : self.first].permute(2, 0, 1, 3)[index]
            out = torch.cat([before, out], 2)
        return out.flatten(0, 1)

    def _windowed(self, variant: HeadVariant) -> bool:
        return any(len(set(row)) > 1 for rows in (variant.k, variant.v) for row in rows)

    def _q(self, layer: int, variant: HeadVariant, qkv: Projected, tail: bool) -> Float[Tensor, "pair query d_head"]:
        head = self.plan.words.nodes[variant.node].index or 0
        q = self.plain(variant.q, layer, "q")[:, :, head] if variant.q < 0 else qkv.row("q", head, variant.q)
        return q[:, self.tail] if tail and q.shape[1] != len(self.tail) else q

    def _keys(
        self, kind: str, layer: int, variant: HeadVariant, offset: int, qkv: Projected
    ) -> Float[Tensor, "pair key d_head"]:
        """Keys or values at all positions for one kind of offset; before the first difference the plain runs agree."""
        streams = [row[offset] for row in (variant.k if kind == "k" else variant.v)]
        group = self.shape.group_of(self.plan.words.nodes[variant.node].index or 0)
        found = {
            one: self.plain(one, layer, kind)[:, :, group] if one < 0 else qkv.row(kind, group, one)
            for one in set(streams)
        }
        mixed = self._mix([found[one] for one in streams], self._masks(False))
        if not self.first:
            return mixed
        stored = self.runs[COUNTER].packed((layer, kind))
        before = stored.view(self.pairs, self.length, *stored.shape[1:])[:, : self.first, group]
        return torch.cat([before, mixed], 1)

    def _attend_windows(
        self, layer: int, variant: HeadVariant, qkv: Projected, tail: bool, rule: AttentionRule
    ) -> Float[Tensor, "pair query d_head"]:
        """Attention whose keys and values depend on how far back they are: one product per kind of offset."""
        q, positions = self._q(layer, variant, qkv, tail), self.positions(tail)
        masks = self.offset_masks(positions, q.device)
        keys = {tuple(row[o] for row in variant.k): o for o in range(len(masks))}
        scores = q.new_zeros(self.pairs, len(positions), self.length)
        for streams, o in keys.items():
            where = [mask for p, mask in enumerate(masks) if tuple(row[p] for row in variant.k) == streams]
            k = self._keys("k", layer, variant, o, qkv)
            scores = torch.where(torch.stack(where).any(0), q @ k.transpose(-1, -2) * rule.scaling, scores)
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        seen = seen_mask(positions, self.length, rule, q.device)
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        pattern = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        values = {tuple(row[o] for row in variant.v): o for o in range(len(masks))}
        out = torch.zeros_like(q)
        for streams, o in values.items():
            where = [mask for p, mask in enumerate(masks) if tuple(row[p] for row in variant.v) == streams]
            out = out + (pattern * torch.stack(where).any(0)) @ self._keys("v", layer, variant, o, qkv)
        return out

    def offset_masks(self, positions: tuple[int, ...], device: torch.device) -> list[Tensor]:
        if positions not in self.offsets:
            found = offset_masks(self.plan.atoms, self.plan.words, positions, self.length)
            self.offsets[positions] = [mask.to(device) for mask in found]
        return self.offsets[positions]

    # -- MLPs ---------------------------------------------------------------------------------------------------

    def _mlps(self, layer: int, mlps: list[tuple[int, MlpVariant]]) -> None:
        if not self.shape.parallel:
            self._open(self.level_of_mlp(layer))
        for tail in (False, True):
            chosen = [item for item in mlps if (item[0] not in self.readers.wide_copies) == tail]
            if chosen:
                self._mlps_at(layer, chosen, tail)

    def _mlps_at(self, layer: int, mlps: list[tuple[int, MlpVariant]], tail: bool) -> None:
        block = self.model.anatomy.blocks[layer]
        numbers = [variant.x for _, variant in mlps]
        if tail:
            streams = [self.streams[number] for number in numbers]
            x = torch.stack([x if x.shape[1] == len(self.tail) else x[:, self.tail] for x in streams])
        else:
            x = self.streams.of(numbers)
        role = "norm_attn_in" if block.shared_norm else "norm_mlp_in"
        h = self.norm_streams(self.level_of_mlp(layer), role, numbers, x, tail)
        assert block.mlp is not None
        # In slices, so that the hidden layer of many copies is never held at once.
        flat = h.flatten(0, 1)
        found = [block.mlp(some) for some in flat.split(max(1, MLP_TOKENS // flat.shape[1]))]
        out = torch.cat([one[0] if isinstance(one, tuple) else one for one in found]).view(x.shape)
        numbers = [number for number, _ in mlps]
        if self.frozen is None:
            out = block.norm_mlp_out(out)
        else:
            out = self.frozen.of_mlps(layer, block.norm_mlp_out, numbers, out, tail)
        self.mlp |= dict(zip(numbers, out, strict=True))
