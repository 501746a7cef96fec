"""What training begins with: random directions, and encoder rows of a length that suits the activations.

Decoder rows are random directions of length 1; encoder rows point the same way, or in a transcoder random ways (Gao et
al. 2024, arXiv 2406.04093, appendix A.1). Were encoder rows of length 1 too, what random features find of an input
would add up to about width / 2d times the input in a ReLU dictionary, and the first hundreds of steps would be spent on
making it smaller. So their length is fitted to activations, as the same appendix does for TopK; libraries that start
with decoder rows of length 0.1 and the encoder as their transpose choose such a length by hand.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.dictionaries.train.coder import Coder, Moment, Variant

SAMPLE = 2048
"""Tokens that are enough to fit one number to."""


@torch.no_grad()
def scale_encoder(
    variant: Variant, coder: Coder, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]
) -> None:
    """Multiply the encoder, in place, so that the first reconstruction has the right size.

    In an autoencoder that is the target's size times the cosine between the two: where the error is least. Random rows
    of a transcoder know nothing of its target, so that no size is better than none; it begins with the target's own.
    Without thresholds a code is as large as its encoder, and one division gives the factor; with them it is found by
    bisection. An encoder that activates nothing stays as it is.
    """
    encoder = coder.params["encoder"]
    nothing = torch.zeros(len(encoder), dtype=torch.bool, device=encoder.device)

    def reconstruction(scale: float) -> Tensor:
        params = coder.params | {"encoder": encoder * scale}
        trial = Coder(params, coder.n_writes, coder.tied, dict(coder.state))
        return variant.terms(trial, x, y, Moment(0, 1, 0.0, nothing)).reconstruction

    first = reconstruction(1.0)
    if not first.any():
        return
    wanted = float((first * y).sum() / first.norm() if coder.tied else y.norm())
    scale = wanted / float(first.norm())
    if abs(float(reconstruction(scale).norm()) / wanted - 1) > 0.01:
        low, high = min(1.0, scale), max(1.0, scale)
        while high > 1.01 * low:
            scale = (low * high) ** 0.5
            low, high = (scale, high) if reconstruction(scale).norm() < wanted else (low, scale)
    encoder *= scale
