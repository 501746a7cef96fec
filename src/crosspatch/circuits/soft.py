"""A circuit whose edges are kept in part: differentiable in the mask, every port with a stream of its own.

With a mask of zeros and ones it is `masked.run_masks`, which costs far less; this one is for learning masks. An edge
kept to the share m lets its receiver read `m * (what the sender writes now) + (1 - m) * replacement`. Where a norm
follows the attention, heads are mixed before the output projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.ablation import Store
from crosspatch.attribution.setup import Setup
from crosspatch.model import Model
from crosspatch.model.attention import attend, capturing, query_key_value
from crosspatch.model.project import answering, head_write, linear_weight, rows_of

Mask = Float[Tensor, "sender receiver"]


@dataclass
class SoftRun:
    """One pass under one mask over pairs of equal length.

    Attributes:
        part: the pairs.
        clean, replaced: what senders write, and what stands in for them.
        mask: kept shares.
    """

    part: Setup
    clean: Store
    replaced: Store
    mask: Mask

    def hidden(self) -> Float[Tensor, "read d_model"]:
        """Final-norm outputs at the reads of all pairs."""
        model, shape = self.part.model, self.part.model.shape
        length = len(self.part.clean[0])
        model.ensure_positions(length)
        self.length, self.positions = length, torch.arange(length).repeat(len(self.part)).to(model.device)
        self.changes: list[Tensor] = [self.clean[(0, "resid_pre")] - self.replaced[(0, "resid_pre")]]  # by sender
        self.heads: list[Tensor] = []  # z by layer, where heads do not add up
        self.base = self.replaced[(0, "resid_pre")]  # replacements of everything so far; not of heads under a norm
        self.readers = 0
        blocks = model.anatomy.blocks
        with capturing([block.attn for block in blocks]):
            for layer in range(shape.n_layers):
                self._layer(layer)
        final = model.anatomy.final_norm(self._streams(len(self.changes), [self.readers]))[0]
        at = [i * length + p for i, read in enumerate(self.part.read) for p in read]
        return final[at]

    def _streams(self, n_senders: int, receivers: list[int]) -> Float[Tensor, "receiver token d_model"]:
        """What some receivers read of the first senders."""
        share = self.mask[:, receivers]
        model, shape = self.part.model, self.part.model.shape
        additive = [i for i in range(n_senders) if self.changes[i].numel()]
        stacked = torch.stack([self.changes[i] for i in additive])
        x = self.base + torch.einsum("up,utd->ptd", share[additive], stacked)
        per_layer = shape.n_heads + int(shape.has_mlp)
        for layer, z in enumerate(self.heads):
            start = 1 + layer * per_layer
            if start >= n_senders:
                break
            block, cut = model.anatomy.blocks[layer], self.replaced[(layer, "z")]
            mixed = cut + share[start : start + shape.n_heads].T[:, None, :, None] * (z - cut)
            x = x + block.norm_attn_out(block.o_proj(mixed.flatten(2)))
        return x

    def _layer(self, layer: int) -> None:
        model, shape, block = self.part.model, self.part.model.shape, self.part.model.anatomy.blocks[layer]
        n, before = shape.n_heads + 2 * shape.n_kv_heads, len(self.changes)
        x = self._streams(before, list(range(self.readers, self.readers + n)))
        mlp_in = self._streams(before, [self.readers + n])[0] if shape.parallel else None
        q, k, v = project_ports(model, layer, block.norm_attn_in(x), self.positions)
        rule = model.attention_rule(layer)
        q, k, v = (y.unflatten(0, (len(self.part), self.length)) for y in (q, k, v))
        z = attend(q, k, v, tuple(range(self.length)), rule).flatten(0, 1)
        cut = self.replaced[(layer, "z")]
        if block.post_norm:
            self.heads.append(z)
            self.changes += [x.new_empty(0)] * shape.n_heads
        else:
            dz = z - cut
            self.changes += [head_write(model, layer, head, dz[:, head]) for head in range(shape.n_heads)]
            self.base = self.base + block.o_proj(cut.flatten(1)[None])[0]
        self.readers += n
        if block.mlp is None:
            return
        if mlp_in is None:
            mlp_in = self._streams(len(self.changes), [self.readers])[0]
        norm = block.norm_attn_in if block.shared_norm else block.norm_mlp_in
        out = block.mlp(norm(mlp_in)[None])
        m = block.norm_mlp_out((out[0] if isinstance(out, tuple) else out)[0])
        self.changes.append(m - self.replaced[(layer, "mlp_out")])
        self.base = self.base + self.replaced[(layer, "mlp_out")]
        self.readers += 1


def project_ports(
    model: Model, layer: int, h: Float[Tensor, "port token d_model"], positions: Tensor
) -> tuple[Float[Tensor, "token head d_head"], Tensor, Tensor]:
    """q, k, v of a layer whose every head reads a normed stream of its own. Inside `capturing`."""
    shape, block, cuts = model.shape, model.anatomy.blocks[layer], rows_of(model, layer)
    slots = [("q", i) for i in range(shape.n_heads)]
    slots += [(kind, i) for kind in ("k", "v") for i in range(shape.n_kv_heads)]
    kwargs = model.attention_kwargs(layer, positions, {})
    if cuts is None:
        found: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
        for port, (kind, i) in enumerate(slots):
            qkv = dict(zip("qkv", query_key_value(block.attn, h[port], kwargs)[:3], strict=True))
            found[kind].append(qkv[kind][:, i])
        q, k, v = (torch.stack(found[kind], 1) for kind in "qkv")
        return q, k, v
    parts: dict[str, dict[int, Tensor]] = {name: {} for name in cuts.projections}
    for port, slot in enumerate(slots):
        name, start = cuts.of[slot]
        module = cuts.projections[name]
        weight, bias = linear_weight(module), module.bias
        assert weight is not None
        rows = slice(start, start + cuts.d_head)
        parts[name][start] = F.linear(h[port], weight[rows], None if bias is None else bias[rows])  # type: ignore[index]
    outputs = {name: torch.cat([found[at] for at in sorted(found)], -1)[None] for name, found in parts.items()}
    with answering(cuts.projections, outputs):
        return query_key_value(block.attn, h.new_zeros(h.shape[1], 1), kwargs)[:3]
