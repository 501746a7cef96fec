"""The k largest of a token (Gao et al. 2024, arXiv 2406.04093), with AuxK.

loss = |y - y_hat|^2 + auxk * |e - e_hat|^2
e = y - y_hat (held fixed); e_hat: reconstruction of e by the d_out / 2 largest dead features (appendix A.2)
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
        loss = squared_error(y, y_hat) + self.auxk * auxiliary(coder, pre, y - y_hat, at, pick)
        active = chosen.total(values.detach().float().sign())
        return Terms(loss, active, active.sum() / len(x), y_hat)

    def finish(self, coder: Coder) -> Finished:
        encoder, bias = coder.params["encoder"], coder.params["encoder_bias"]
        return Finished(encoder, bias, torch.zeros_like(bias), "topk", self.k)


def auxiliary(
    coder: Coder,
    pre: Float[Tensor, "token feature"],
    error: Float[Tensor, "token d_out"],
    at: Moment,
    pick: Callable[[Chosen], Tensor] | None = None,
) -> Float[Tensor, ""]:
    """What the largest dead features miss of the error; 0 where none is dead.

    `pre` is before the ReLU, or features far below zero would get no gradient and stay there. Fewer dead features than
    are asked for weigh less, in proportion.

    Args:
        pick: gives entries of `pre` with their gradient, where `pre` itself has none.
    """
    n_dead = int(at.dead.sum())
    if n_dead == 0:
        return pre.new_zeros(())
    wanted = max(1, error.shape[1] // 2)
    best = torch.where(at.dead, pre.detach(), -torch.inf).topk(min(wanted, n_dead), dim=-1, sorted=False)
    chosen = Chosen(best.indices, pre.shape[1])
    values = pre.gather(-1, chosen.index) if pick is None else pick(chosen)
    return min(1.0, n_dead / wanted) * squared_error(error.detach(), decoded(values, chosen, coder.params["decoder"]))
