"""A ReLU code with its penalty: loss and gradients in one sweep over the batch.

Written out instead of left to autograd, because the time beside the five matrix products is what passes over
`[token, feature]` take: here there are few, on pieces of the batch that stay in a processor's cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

_PIECE = 2**22
"""Entries of `[token, feature]` that are handled at once: 16 MiB in single precision."""


class Penalised(NamedTuple):
    """Loss (with gradients), code times decoder, sum of each feature over tokens, number of entries above 0."""

    loss: Float[Tensor, ""]
    decoded: Float[Tensor, "token d_out"]
    sums: Float[Tensor, " feature"]
    positive: Float[Tensor, ""]


def penalised(
    x: Float[Tensor, "token d_in"],
    target: Float[Tensor, "token d_out"],
    encoder: Float[Tensor, "feature d_in"],
    bias: Float[Tensor, " feature"],
    decoder: Float[Tensor, "feature d_out"],
    norms: Float[Tensor, " feature"],
    weight: float,
) -> Penalised:
    """Mean over tokens of |target - f decoder|^2 + weight * f . norms, with f = ReLU(encoder x + bias).

    Gradients go to all but `x`.
    """
    return Penalised(*_Penalised.apply(x.detach(), target, encoder, bias, decoder, norms, weight))


class _Penalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        encoder: Tensor,
        bias: Tensor,
        decoder: Tensor,
        norms: Tensor,
        weight: float,
    ) -> tuple[Tensor, ...]:
        n, size = len(x), max(1, _PIECE // len(encoder))
        d_encoder, d_bias, d_decoder = (torch.zeros_like(value) for value in (encoder, bias, decoder))
        sums, count = torch.zeros_like(bias), torch.zeros_like(bias[0])
        penalty = norms * (weight / n)
        out, back = [], []
        for xs, ys in zip(x.split(size), target.split(size), strict=True):
            f = linear(xs, encoder, bias).relu_()
            made = (f @ decoder).to(ys)
            g_out = (made - ys) * (2 / n)
            out.append(made)
            back.append(g_out)
            sums += f.sum(0)
            d_decoder += f.T @ g_out
            g = linear(g_out, decoder, penalty)
            active = f.sign_()  # f is not needed any more
            count += active.sum(dtype=count.dtype)
            g *= active
            d_encoder += g.T @ xs
            d_bias += g.sum(0)
        made, g_out = torch.cat(out), torch.cat(back)
        loss = (made - target).pow(2).sum() / n + weight / n * (sums @ norms)
        ctx.save_for_backward(-g_out, d_encoder, d_bias, d_decoder, sums * (weight / n))
        ctx.mark_non_differentiable(made, sums, count)
        return loss, made, sums, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        target, encoder, bias, decoder, norms = (grads[0] * value for value in ctx.saved_tensors)
        return None, target, encoder, bias, decoder, norms, None
