"""From gradients at projections to gradients at what each port reads, without copying the residual stream.

The gradient that reaches head h's query at the projection, times that head's rows of the weights, is the gradient at
the normed stream as this query alone reads it; the norm's own derivative takes it to the stream. Where projections
cannot be cut into heads (a norm over all heads together, an adapter), each head is pulled back through the module.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.attribution.forward import Trace
from crosspatch.attribution.rules import Rules
from crosspatch.graph import ModelShape
from crosspatch.model.attention import capturing, query_key_value
from crosspatch.model.norms import Norm
from crosspatch.model.project import Rows, linear_weight

Key = tuple[int, str]
Ports = Float[Tensor, "port token d_model"]


def port_keys(trace: Trace) -> list[Key]:
    """Activations whose gradients the ports of all layers need."""
    keys: list[Key] = []
    shape = trace.model.shape
    for layer in range(shape.n_layers):
        rows = trace.cuts[layer]
        keys += [(layer, f"{name}.proj") for name in rows.projections] if rows else [(layer, kind) for kind in "qkv"]
        keys += [(layer, "mlp_in")] if shape.has_mlp else []
    return [*keys, (shape.n_layers, "final_in")]


def attention_ports(
    trace: Trace, layer: int, gradients: dict[Key, Tensor], rules: Rules, tokens: Int[Tensor, " token"]
) -> Ports:
    """Gradients at the residual stream as q of every head, then k and v of every key/value head, read it.

    Args:
        tokens: packed tokens that they are wanted at.
    """
    block = trace.model.anatomy.blocks[layer]
    x = trace.at[(layer, "attn_in")].detach()[tokens]
    rows = trace.cuts[layer]
    if rows is None:
        return _through_module(trace, layer, x, gradients, rules, tokens)
    shape = trace.model.shape
    normed = _through_weights(rows, shape, {n: gradients[(layer, f"{n}.proj")][0, tokens] for n in rows.projections})
    return through_norm(block.norm_attn_in, x, normed, rules)


def _through_weights(rows: Rows, shape: ModelShape, gradients: dict[str, Tensor]) -> Ports:
    """Head by head through its own rows of the weights; heads that lie together in one projection at once."""
    parts = {}
    for name, module in rows.projections.items():
        weight = linear_weight(module)
        assert weight is not None
        g = gradients[name].unflatten(-1, (-1, rows.d_head)).transpose(0, 1)  # [slot, token, d_head]
        parts[name] = torch.bmm(g, weight.unflatten(0, (-1, rows.d_head)).contiguous())
    slots = [("q", h) for h in range(shape.n_heads)]
    slots += [(kind, g) for kind in ("k", "v") for g in range(shape.n_kv_heads)]
    places = [rows.of[slot] for slot in slots]
    if len(parts) == 1:
        (only,) = parts.values()
        order = [start // rows.d_head for _, start in places]
        return only if order == list(range(len(order))) else only[order]
    return torch.stack([parts[name][start // rows.d_head] for name, start in places])


def through_norm(norm: Norm, x: Float[Tensor, "token d_model"], normed: Ports, rules: Rules) -> Ports:
    """Gradients at a norm's output, many at once, to gradients at its input."""
    with torch.enable_grad():
        wide = x.expand(normed.shape).detach().requires_grad_(True)
        out = rules.norm(norm, wide)
        if out is wide:
            return normed
        return torch.autograd.grad(out, wide, normed)[0]


def _through_module(
    trace: Trace, layer: int, x: Tensor, gradients: dict[Key, Tensor], rules: Rules, tokens: Tensor
) -> Ports:
    """Each head's gradient back through norm and attention module, with those of all other heads at zero."""
    model = trace.model
    block, shape = model.anatomy.blocks[layer], model.shape
    positions = torch.cat([torch.arange(n) for n in trace.lengths])[tokens].to(x.device)
    kwargs: dict[str, Any] = model.attention_kwargs(layer, positions, {})
    found = []
    with torch.enable_grad(), capturing([block.attn]):
        seen = x.clone().requires_grad_(True)
        q, k, v, _ = query_key_value(block.attn, rules.norm(block.norm_attn_in, seen), kwargs)
        for kind, value, n in (("q", q, shape.n_heads), ("k", k, shape.n_kv_heads), ("v", v, shape.n_kv_heads)):
            for head in range(n):
                g = torch.zeros_like(value)
                g[:, head] = gradients[(layer, kind)][tokens, head]
                found.append(torch.autograd.grad(value, seen, g, retain_graph=True)[0])
    return torch.stack(found)
