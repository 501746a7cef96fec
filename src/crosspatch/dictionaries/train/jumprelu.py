"""JumpReLU with a wanted L0 (Rajamanoharan et al. 2024, arXiv 2407.14435, sections 3 and 5.1).

    f_i = pre_i 1[pre_i > theta_i]        loss = |y - y_hat|^2 + penalty * (L0 / target_l0 - 1)^2

Neither step has a gradient; with K the rectangle of height 1 and width 1 around 0,
    df/dtheta = -(theta / eps) K((pre - theta) / eps)        dL0/dtheta = -(1 / eps) K((pre - theta) / eps)
estimate, on average over the data, the gradient of the expected loss. Thresholds are trained as they are: their
logarithm, with Adam's steps of bounded size, hardly moves a small threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, relu

from crosspatch.dictionaries.train.coder import Coder, Finished, Moment, Terms, Variant, squared_error


@dataclass(frozen=True)
class JumpReLU(Variant):
    """Args: target_l0: active features per token on average; penalty: its weight; bandwidth: eps; start: first
    thresholds. One unit is the root mean square deviation of the input.
    """

    target_l0: float = 32.0
    penalty: float = 1.0
    bandwidth: float = 0.02
    start: float = 0.02
    name: ClassVar[str] = "jumprelu"
    sparsity: ClassVar[str] = "target_l0"
    resamples: ClassVar[bool] = True
    betas: ClassVar[tuple[float, float]] = (0.0, 0.999)

    def prepare(self, coder: Coder) -> None:
        coder.params["threshold"] = torch.full_like(coder.params["encoder_bias"], self.start)

    def terms(self, coder: Coder, x: Tensor, y: Tensor, at: Moment) -> Terms:
        pre, threshold = relu(coder.pre(x)), coder.params["threshold"]
        f: Tensor = Jump.apply(pre, threshold, self.bandwidth)
        l0: Tensor = Step.apply(pre, threshold, self.bandwidth)
        y_hat = coder.decode(f, x)
        off = (l0.sum(-1).mean() / self.target_l0 - 1).pow(2)
        return Terms.of(squared_error(y, y_hat) + self.penalty * at.sparsity * off, f, y_hat)

    def finish(self, coder: Coder) -> Finished:
        return Finished(coder.params["encoder"], coder.params["encoder_bias"], coder.params["threshold"])

    def revive(self, coder: Coder, dead: Tensor) -> None:
        coder.params["threshold"][dead] = self.start


class Jump(torch.autograd.Function):
    """`pre` above its threshold, else 0."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(pre > threshold, pre, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        (grad,), (pre, threshold) = grads, ctx.saved_tensors
        near = _near(pre, threshold, ctx.bandwidth)
        by_threshold = torch.where(near, -threshold / ctx.bandwidth * grad, 0).sum(0)
        return torch.where(pre > threshold, grad, 0), by_threshold, None


class Step(torch.autograd.Function):
    """1 where `pre` is above its threshold."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, Tensor, None]:
        (grad,), (pre, threshold) = grads, ctx.saved_tensors
        return None, torch.where(_near(pre, threshold, ctx.bandwidth), -grad / ctx.bandwidth, 0).sum(0), None


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Where the kernel is not 0."""
    return (pre - threshold).abs() < bandwidth / 2
