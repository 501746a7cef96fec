"""The k largest of a token (Gao et al. 2024, arXiv 2406.04093), with AuxK.

loss = |y - y_hat|^2 + auxk * |e - e_hat|^2
e = y - y_hat (held fixed); e_hat: reconstruction of e by the d_out / 2 largest dead features (appendix A.2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, relu

from crosspatch.dictionaries.train.coder import Coder, Finished, Moment, Terms, Variant, squared_error
from crosspatch.dictionaries.train.largest import keep_largest


@dataclass(frozen=True)
class TopK(Variant):
    """Args: k: active features of every token; auxk: weight of the loss that revives dead features."""

    k: int = 32
    auxk: float = 1 / 32
    name: ClassVar[str] = "topk"
    sparsity: ClassVar[str] = "k"
    resamples: ClassVar[bool] = False

    def terms(self, coder: Coder, x: Tensor, y: Tensor, at: Moment) -> Terms:
        raw = coder.pre(x)
        f = keep_largest(relu(raw), self.k)
        y_hat = coder.decode(f, x)
        loss = squared_error(y, y_hat) + self.auxk * auxiliary(coder, raw, y - y_hat, at)
        return Terms(loss, f, y_hat)

    def finish(self, coder: Coder) -> Finished:
        encoder, bias = coder.params["encoder"], coder.params["encoder_bias"]
        return Finished(encoder, bias, torch.zeros_like(bias), "topk", self.k)


def auxiliary(
    coder: Coder, pre: Float[Tensor, "token feature"], error: Float[Tensor, "token d_out"], at: Moment
) -> Float[Tensor, ""]:
    """What the largest dead features miss of the error; 0 where none is dead.

    `pre` is before the ReLU, or features far below zero would get no gradient and stay there. Fewer dead features than
    are asked for weigh less, in proportion.
    """
    n_dead = int(at.dead.sum())
    if n_dead == 0:
        return pre.new_zeros(())
    wanted = max(1, error.shape[1] // 2)
    best = torch.where(at.dead, pre, -torch.inf).topk(min(wanted, n_dead), dim=-1, sorted=False)
    f = torch.zeros_like(pre).scatter(-1, best.indices, best.values)
    return min(1.0, n_dead / wanted) * squared_error(error.detach(), f @ coder.params["decoder"])
