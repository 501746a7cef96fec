"""What cutting a sender takes out of the residual stream, for every sender at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.ablation import Store
from crosspatch.model import Model
from crosspatch.model.project import head_write, linear_weight


def head_changes(
    model: Model, layer: int, change: Float[Tensor, "token head d_head"], clean: Float[Tensor, "token head d_head"]
) -> Float[Tensor, "head token d_model"]:
    """A change of each head's output, in the residual stream.

    Where a norm follows the attention, heads do not add up; its derivative at the clean run makes them.
    """
    block, shape = model.anatomy.blocks[layer], model.shape
    weight = linear_weight(block.o_proj)
    if weight is None:
        written = torch.stack([head_write(model, layer, head, change[:, head]) for head in range(shape.n_heads)])
    else:
        written = torch.bmm(change.transpose(0, 1), weight.unflatten(1, (shape.n_heads, -1)).permute(1, 2, 0))
    if not block.post_norm:
        return written
    at = block.o_proj(clean.flatten(1)[None])[0].expand(written.shape)
    return torch.func.jvp(block.norm_attn_out, (at.contiguous(),), (written,))[1]


@torch.no_grad()
def sender_changes(
    model: Model, clean: Store, replaced: Store, tokens: Tensor, layers: Sequence[int] | None = None
) -> Float[Tensor, "sender token d_model"]:
    """Clean minus replacement of every sender at some packed tokens, in the order of `graph.nodes`.

    Args:
        clean, replaced: what the senders write.
        tokens: indices of packed tokens.
        layers: only the senders of these layers are wanted; others are left zero, the input too.
    """
    shape = model.shape
    per_layer = shape.n_heads + int(shape.has_mlp)
    out = clean[(0, "resid_pre")].new_zeros(1 + shape.n_layers * per_layer, len(tokens), shape.d_model)
    if layers is None:
        out[0] = (clean[(0, "resid_pre")] - replaced[(0, "resid_pre")])[tokens]
    for layer in range(shape.n_layers) if layers is None else layers:
        start = 1 + layer * per_layer
        z = clean[(layer, "z")][tokens]
        out[start : start + shape.n_heads] = head_changes(model, layer, z - replaced[(layer, "z")][tokens], z).to(out)
        if shape.has_mlp:
            m = clean[(layer, "mlp_out")][tokens] - replaced[(layer, "mlp_out")][tokens]
            out[start + shape.n_heads] = m.to(out)
    return out


@torch.no_grad()
def all_cut(model: Model, replaced: Store, rows: Tensor) -> Float[Tensor, "read d_model"]:
    """Final-norm outputs where every edge is cut: the sum of all replacements.

    Args:
        replaced: what stands in for every sender.
        rows: packed tokens that are read.
    """
    x = replaced[(0, "resid_pre")][rows]
    for layer, block in enumerate(model.anatomy.blocks):
        z = replaced[(layer, "z")][rows]
        x = x.to(z.device) + block.norm_attn_out(block.o_proj(z.flatten(1)[None]))[0]
        if block.mlp is not None:
            x = x + replaced[(layer, "mlp_out")][rows]
    return model.anatomy.final_norm(x)
