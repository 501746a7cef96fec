"""What all trainers share: parameters, the affine parts, and what a variant of training has to say.

Training happens on centred inputs and outputs in units in which their mean squared deviation is 1, so that the
reconstruction loss is the fraction of variance unexplained (FVU) and penalties mean the same at every site.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import linear

State = dict[str, Tensor]


@dataclass(eq=False)
class Coder:
    """Trainable parameters of one dictionary.

    Args:
        params: `encoder [feature, d_in]`, `encoder_bias`, `decoder [feature, d_out]`, `decoder_bias`, perhaps `skip`,
            and what a variant adds.
        n_writes: places that it writes; the decoder row of a crosscoder has one part for each.
        tied: an autoencoder, which takes its decoder bias off the input.
        state: tensors of a variant that are not trained by gradients.
    """

    params: dict[str, Tensor]
    n_writes: int
    tied: bool
    state: State = field(default_factory=dict)

    def pre(
        self, x: Float[Tensor, "token d_in"], bias: Float[Tensor, " feature"] | None = None
    ) -> Float[Tensor, "token feature"]:
        """Encoder products plus `bias` (the encoder's own by default).

        The input's bias is taken off the result: off the input, its gradient would be a product over all tokens.
        """
        return linear(x, self.params["encoder"], self.bias(bias))

    def bias(self, bias: Float[Tensor, " feature"] | None = None) -> Float[Tensor, " feature"]:
        """What `pre` adds to the products."""
        bias = self.params["encoder_bias"] if bias is None else bias
        return bias - self.params["encoder"] @ self.params["decoder_bias"] if self.tied else bias

    def decode(self, f: Float[Tensor, "token feature"], x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_out"]:
        """The reconstruction."""
        return f @ self.params["decoder"] + self.baseline(x)

    def baseline(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "... d_out"]:
        """The reconstruction with no feature active; with a skip connection each token has its own."""
        bias = self.params["decoder_bias"]
        return bias if "skip" not in self.params else bias + linear(x, self.params["skip"])

    def written(self, f: Float[Tensor, "token feature"]) -> Float[Tensor, ""]:
        """How much features write: mean over tokens of sum_i f_i |d_i|."""
        return f.mean(0) @ self.row_norms()

    def row_norms(self) -> Float[Tensor, " feature"]:
        """How much a feature writes: the norms of its parts for each place, added up (1 where there is one place)."""
        return self.params["decoder"].unflatten(1, (self.n_writes, -1)).norm(dim=2).sum(1)


@dataclass(frozen=True)
class Moment:
    """Where training is.

    Args:
        step, steps: this one, of how many.
        sparsity: rises from 0 to 1 while sparsity is warmed up.
        dead: features that have not been active for long.
    """

    step: int
    steps: int
    sparsity: float
    dead: Bool[Tensor, " feature"]


@dataclass(frozen=True)
class Terms:
    """What one batch gives.

    Args:
        loss: to be made small.
        active: for each feature a number, above 0 if any token had it.
        l0: active features per token.
        reconstruction: what the loss was computed with.
    """

    loss: Float[Tensor, ""]
    active: Float[Tensor, " feature"]
    l0: Float[Tensor, ""]
    reconstruction: Float[Tensor, "token d_out"]

    @classmethod
    def of(
        cls, loss: Float[Tensor, ""], features: Float[Tensor, "token feature"], y_hat: Float[Tensor, "token d_out"]
    ) -> Terms:
        """From the features themselves."""
        active = features.detach().float().sign().sum(0)  # a sum of truth values would be slower
        return cls(loss, active, active.sum() / len(features), y_hat)


@dataclass(frozen=True)
class Finished:
    """How the trained features become active (see `Dictionary`)."""

    encoder: Float[Tensor, "feature d_in"]
    encoder_bias: Float[Tensor, " feature"]
    threshold: Float[Tensor, " feature"]
    selection: str = "all"
    k: int | None = None


class Variant(ABC):
    """A way of training. Instances are dataclasses of plain numbers."""

    name: ClassVar[str]
    sparsity: ClassVar[str]
    """The field that sets how sparse it becomes."""
    resamples: ClassVar[bool]
    """Dead features are replaced (`dead.resample`); otherwise the loss itself revives them (AuxK)."""
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    def learning_rate(self, width: int) -> float:
        """Default learning rate: 2e-4 / sqrt(width / 2^14) (Gao et al. 2024, figure 3)."""
        return 2e-4 / (width / 2**14) ** 0.5

    def prepare(self, coder: Coder) -> None:
        """Add the variant's own parameters and state."""
        return

    @abstractmethod
    def terms(self, coder: Coder, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], at: Moment) -> Terms:
        """The loss of a batch, in the units above."""

    def finish(self, coder: Coder) -> Finished:
        """The features as they are used after training."""
        encoder, bias = coder.params["encoder"], coder.params["encoder_bias"]
        return Finished(encoder, bias, torch.zeros_like(bias))

    def revive(self, coder: Coder, dead: Bool[Tensor, " feature"]) -> None:
        """Reset the variant's own parameters of features that are replaced."""
        return


def squared_error(y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> Float[Tensor, ""]:
    """Mean over tokens of the squared distance; in training units the FVU."""
    return (y - y_hat).pow(2).sum(-1).mean()
