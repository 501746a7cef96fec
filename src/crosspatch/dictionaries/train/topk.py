"""The k largest of a token (Gao et al. 2024, arXiv 2406.04093), with AuxK.

loss = |y - y_hat|^2 + auxk * |e - e_hat|^2 / |e|^2
e = y - y_hat (held fixed); e_hat: reconstruction of e by the k largest dead features of the token (appendix A.2)

The appendix takes the d_out / 2 largest. Where no more than that are dead, all of them then learn at every token, and
come back as dense directions of the error's subspace. As few as the dictionary itself may use learn what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, relu
from torch.nn.functional import linear

from crosspatch.dictionaries.train.coder import Coder, Finished, Moment, Terms, Variant, squared_error
from crosspatch.dictionaries.train.sparse import Chosen, decoded, picked

_SMALL = 1e-4
"""A smaller share of the variance is no error worth reviving features for."""


@dataclass(frozen=True)
class TopK(Variant):
    """Args: k: active features of every token; auxk: weight of the loss that revives dead features."""

    k: int = 32
    auxk: float = 1 / 32
    name: ClassVar[str] = "topk"
    sparsity: ClassVar[str] = "k"
    resamples: ClassVar[bool] = False

    def terms(self, coder: Coder, x: Tensor, y: Tensor, at: Moment) -> Terms:
        encoder, bias = coder.params["encoder"], coder.bias()
        with torch.no_grad():
            pre = linear(x, encoder, bias)
            chosen = Chosen(pre.topk(self.k, dim=1, sorted=False).indices, len(bias))

        def pick(some: Chosen) -> Tensor:
            return picked(pre, some, x, encoder, bias)

        values = relu(pick(chosen))
        y_hat = decoded(values, chosen, coder.params["decoder"]) + coder.baseline(x)
        loss = squared_error(y, y_hat) + self.auxk * auxiliary(coder, pre, y - y_hat, self.k, at, pick)
        active = chosen.total(values.detach().float().sign())
        return Terms(loss, active, active.sum() / len(x), y_hat)

    def finish(self, coder: Coder) -> Finished:
        encoder, bias = coder.params["encoder"], coder.params["encoder_bias"]
        return Finished(encoder, bias, torch.zeros_like(bias), "topk", self.k)


def auxiliary(
    coder: Coder,
    pre: Float[Tensor, "token feature"],
    error: Float[Tensor, "token d_out"],
    k: int,
    at: Moment,
    pick: Callable[[Chosen], Tensor] | None = None,
) -> Float[Tensor, ""]:
    """The share of the error that the `k` largest dead features of every token miss; 0 where none is dead.

    `pre` is before the ReLU, or features far below zero would get no gradient and stay there. Fewer dead features than
    `k` weigh less, in proportion. A share, because the optimiser remembers the gradients of features from when they
    were active: beside those, the gradients of an error that has become small move nothing.

    Args:
        pick: gives entries of `pre` with their gradient, where `pre` itself has none.
    """
    n_dead = int(at.dead.sum())
    if n_dead == 0:
        return pre.new_zeros(())
    best = torch.where(at.dead, pre.detach(), -torch.inf).topk(min(k, n_dead), dim=-1, sorted=False)
    chosen = Chosen(best.indices, pre.shape[1])
    values = pre.gather(-1, chosen.index) if pick is None else pick(chosen)
    error = error.detach()
    missed = squared_error(error, decoded(values, chosen, coder.params["decoder"]))
    return min(1.0, n_dead / k) * missed / error.pow(2).sum(-1).mean().clamp(min=_SMALL)
