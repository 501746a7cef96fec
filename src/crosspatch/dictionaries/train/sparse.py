"""Products with codes of which only a few entries of every token are not 0.

A dense product takes as long as if all were active. Here the forward direction adds up decoder rows token by token, and
the gradient of encoder and decoder adds up tokens feature by feature; both are sums over bags, so that what is not
active costs nothing. Sums are taken in a fixed order: the same numbers every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True, eq=False)
class Chosen:
    """The entries of a code that may differ from 0: `k` features of every token.

    Attributes:
        index: their numbers.
        width: how many features there are.
    """

    index: Int[Tensor, "token k"]
    width: int

    @cached_property
    def by_feature(self) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"], Int[Tensor, " end"]]:
        """The same entries feature by feature: their places in `index`, their tokens, and where each feature begins
        (and the last one ends)."""
        flat = self.index.flatten()
        order = flat.argsort(stable=True)
        ends = torch.bincount(flat, minlength=self.width).cumsum(0)
        return order, order // self.index.shape[1], torch.cat([ends.new_zeros(1), ends])

    def total(self, values: Float[Tensor, "token k"]) -> Float[Tensor, " feature"]:
        """Values added up for every feature."""
        return values.new_zeros(self.width).index_add_(0, self.index.flatten(), values.flatten())

    def weighted(self, values: Float[Tensor, "token k"], rows: Float[Tensor, "token d"]) -> Float[Tensor, "feature d"]:
        """For every feature the sum of value times row over the tokens that it was chosen at."""
        order, token, begin = self.by_feature
        weights = values.flatten()[order]
        return embedding_bag(token, rows, begin, mode="sum", per_sample_weights=weights, include_last_offset=True)


def picked(
    pre: Float[Tensor, "token feature"],
    chosen: Chosen,
    x: Float[Tensor, "token d_in"],
    encoder: Float[Tensor, "feature d_in"],
    bias: Float[Tensor, " feature"],
) -> Float[Tensor, "token k"]:
    """The chosen entries of `pre = linear(x, encoder, bias)`, with a gradient to `encoder` and `bias` (none to `x`)."""
    found: Tensor = _Picked.apply(pre.detach(), chosen, x.detach(), encoder, bias)
    return found


def decoded(
    values: Float[Tensor, "token k"], chosen: Chosen, decoder: Float[Tensor, "feature d_out"]
) -> Float[Tensor, "token d_out"]:
    """The product of a code with the decoder."""
    found: Tensor = _Decoded.apply(values.to(decoder), chosen, decoder)
    return found


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, chosen: Chosen, x: Tensor, encoder: Tensor, bias: Tensor) -> Tensor:
        ctx.chosen, ctx.x, ctx.dtype = chosen, x, encoder.dtype
        return pre.gather(1, chosen.index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g = grads[0].to(ctx.dtype)
        return None, None, None, ctx.chosen.weighted(g, ctx.x.to(ctx.dtype)), ctx.chosen.total(g)


class _Decoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, chosen: Chosen, decoder: Tensor) -> Tensor:
        with torch.enable_grad():  # torch has the gradient of the weights, and only inside a graph
            weights = values.detach().requires_grad_()
            out = embedding_bag(chosen.index, decoder.detach(), mode="sum", per_sample_weights=weights)
        ctx.chosen, ctx.weights, ctx.out = chosen, weights, out
        return out.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        [values] = torch.autograd.grad(ctx.out, ctx.weights, grads[0])
        return values, None, ctx.chosen.weighted(ctx.weights.detach(), grads[0])
