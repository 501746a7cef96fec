"""ReLU with an L1 penalty (Bricken et al. 2023; Cunningham et al. 2023, arXiv 2309.08600).

loss = |y - y_hat|^2 + l1 * sum_i f_i |d_i|        mean over tokens, decoder rows of length 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crosspatch.dictionaries.train.coder import Coder, Moment, Terms, Variant
from crosspatch.dictionaries.train.penalised import penalised


@dataclass(frozen=True)
class Standard(Variant):
    """Args: l1: weight of the penalty; of order 0.1."""

    l1: float = 0.1
    name: ClassVar[str] = "standard"
    sparsity: ClassVar[str] = "l1"
    resamples: ClassVar[bool] = True

    def terms(self, coder: Coder, x: Tensor, y: Tensor, at: Moment) -> Terms:
        encoder, decoder = coder.params["encoder"], coder.params["decoder"]
        baseline, weight = coder.baseline(x), self.l1 * at.sparsity
        made = penalised(x, y - baseline, encoder, coder.bias(), decoder, coder.row_norms(), weight)
        return Terms(made.loss, made.sums, made.positive / len(x), made.decoded + baseline)
