"""The k times n largest of a batch of n tokens (Bussmann et al. 2024, arXiv 2412.06410), with AuxK.

loss as for TopK. After training a feature is active above one threshold: the running mean over batches of the
smallest activation that was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, relu

from crosspatch.dictionaries.train.coder import Coder, Finished, Moment, Terms, Variant, squared_error
from crosspatch.dictionaries.train.largest import keep_largest
from crosspatch.dictionaries.train.topk import auxiliary


@dataclass(frozen=True)
class BatchTopK(Variant):
    """Args: k: active features per token on average; auxk: as for TopK; memory: batches that the threshold's running
    mean remembers.
    """

    k: int = 32
    auxk: float = 1 / 32
    memory: int = 100
    name: ClassVar[str] = "batch_topk"
    sparsity: ClassVar[str] = "k"
    resamples: ClassVar[bool] = False

    def prepare(self, coder: Coder) -> None:
        zero = torch.zeros_like(coder.params["encoder_bias"][0])
        coder.state |= {"threshold_sum": zero, "threshold_weight": zero.clone()}

    def terms(self, coder: Coder, x: Tensor, y: Tensor, at: Moment) -> Terms:
        raw = coder.pre(x)
        f = largest_of_batch(relu(raw), self.k)
        remember_threshold(coder, f, self.memory)
        y_hat = coder.decode(f, x)
        loss = squared_error(y, y_hat) + self.auxk * auxiliary(coder, raw, y - y_hat, self.k, at)
        return Terms.of(loss, f, y_hat)

    def finish(self, coder: Coder) -> Finished:
        encoder, bias = coder.params["encoder"], coder.params["encoder_bias"]
        return Finished(encoder, bias, one_threshold(coder).expand(bias.shape).clone())


def largest_of_batch(pre: Float[Tensor, "token feature"], k: int) -> Float[Tensor, "token feature"]:
    """Keep the `k * tokens` largest entries, set the others to 0."""
    return keep_largest(pre.flatten()[None], k * len(pre)).view_as(pre)


@torch.no_grad()
def remember_threshold(coder: Coder, f: Float[Tensor, "token feature"], memory: int) -> None:
    """Add the smallest kept activation to its running mean (weighted sum and weight, so that it is never biased)."""
    smallest = torch.where(f > 0, f, torch.inf).min()
    found = torch.isfinite(smallest)
    keep = 1 - 1 / memory
    total, weight = coder.state["threshold_sum"], coder.state["threshold_weight"]
    coder.state["threshold_sum"] = torch.where(found, keep * total + smallest.nan_to_num(posinf=0.0), total)
    coder.state["threshold_weight"] = torch.where(found, keep * weight + 1, weight)


def one_threshold(coder: Coder) -> Float[Tensor, ""]:
    """The running mean; 0 before the first batch."""
    return coder.state["threshold_sum"] / coder.state["threshold_weight"].clamp(min=1)
