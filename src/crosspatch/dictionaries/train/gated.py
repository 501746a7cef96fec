"""Gated features (Rajamanoharan et al. 2024, arXiv 2404.16014, equations 6 to 9).

    gate_i = W_i x + b_gate_i        f_i = 1[gate_i > 0] ReLU(exp(r_i) W_i x + b_mag_i)
    loss   = |y - y_hat(f)|^2 + l1 * sum_i ReLU(gate_i) |d_i| + |y - y_hat(ReLU(gate), decoder held fixed)|^2

The step has no gradient: gates learn from the last two terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, relu

from crosspatch.dictionaries.train.coder import Coder, Finished, Moment, Terms, Variant, squared_error


@dataclass(frozen=True)
class Gated(Variant):
    """Args: l1: weight of the penalty on the gates; of order 0.1."""

    l1: float = 0.2
    name: ClassVar[str] = "gated"
    sparsity: ClassVar[str] = "l1"
    resamples: ClassVar[bool] = True

    def prepare(self, coder: Coder) -> None:
        bias = coder.params["encoder_bias"]
        coder.params["log_gain"] = torch.zeros_like(bias)
        coder.params["magnitude_bias"] = torch.zeros_like(bias)

    def terms(self, coder: Coder, x: Tensor, y: Tensor, at: Moment) -> Terms:
        product = coder.pre(x, torch.zeros_like(coder.params["encoder_bias"]))
        gate = relu(product + coder.params["encoder_bias"])
        size = relu(product * coder.params["log_gain"].exp() + coder.params["magnitude_bias"])
        f = torch.where(gate > 0, size, 0)
        y_hat = coder.decode(f, x)
        held = {name: value.detach() for name, value in coder.params.items()}
        by_gate = Coder(held, coder.n_writes, coder.tied).decode(gate, x)
        loss = squared_error(y, y_hat) + self.l1 * at.sparsity * coder.written(gate) + squared_error(y, by_gate)
        return Terms.of(loss, f, y_hat)

    def finish(self, coder: Coder) -> Finished:
        gain, size = coder.params["log_gain"].exp(), coder.params["magnitude_bias"]
        return Finished(coder.params["encoder"] * gain[:, None], size, size - gain * coder.params["encoder_bias"])

    def revive(self, coder: Coder, dead: Tensor) -> None:
        coder.params["log_gain"][dead] = 0
        coder.params["magnitude_bias"][dead] = 0
