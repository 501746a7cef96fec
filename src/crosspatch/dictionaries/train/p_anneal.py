"""ReLU with a penalty whose power falls (Karvonen et al. 2024, arXiv 2408.00113, section 3).

    loss = |y - y_hat|^2 + l1 * c_p * sum_i (f_i |d_i|)^p

p falls from 1 in equal steps; at each, c_p changes so that the penalty of that moment's batch stays what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, relu

from crosspatch.dictionaries.train.coder import Coder, Moment, Terms, Variant, squared_error

_SMALL = 1e-3
"""Added under the power, whose slope at 0 is infinite."""


@dataclass(frozen=True)
class PAnneal(Variant):
    """Args: l1: weight of the penalty; last: p at the end; changes: steps of p; start: share of training before it."""

    l1: float = 0.1
    last: float = 0.2
    changes: int = 10
    start: float = 0.2
    name: ClassVar[str] = "p_anneal"
    sparsity: ClassVar[str] = "l1"
    resamples: ClassVar[bool] = True

    def prepare(self, coder: Coder) -> None:
        one = torch.ones_like(coder.params["encoder_bias"][0])
        coder.state |= {"p": one, "factor": one.clone()}

    def terms(self, coder: Coder, x: Tensor, y: Tensor, at: Moment) -> Terms:
        f = relu(coder.pre(x))
        y_hat = coder.decode(f, x)
        written = f * coder.row_norms()
        self._anneal(coder, written.detach(), at)
        penalty = coder.state["factor"] * power_sum(written, coder.state["p"])
        return Terms.of(squared_error(y, y_hat) + self.l1 * at.sparsity * penalty, f, y_hat)

    def power(self, at: Moment) -> float:
        """p at this moment."""
        done = (at.step / at.steps - self.start) / (1 - self.start)
        return 1 - (1 - self.last) * min(self.changes, max(0, int(done * (self.changes + 1)))) / self.changes

    def _anneal(self, coder: Coder, written: Tensor, at: Moment) -> None:
        old, new = coder.state["p"], torch.full_like(coder.state["p"], self.power(at))
        before, after = power_sum(written, old), power_sum(written, new)
        change = torch.where((new != old) & (after > 0), before / after.clamp(min=1e-12), 1)
        coder.state |= {"p": new, "factor": coder.state["factor"] * change}


def power_sum(values: Float[Tensor, "token feature"], p: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Mean over tokens of sum (v + s)^p - s^p, which is sum v^p but for what is about as small as s."""
    return ((values + _SMALL) ** p - _SMALL**p).sum(-1).mean()
