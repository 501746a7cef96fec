"""Features that are never active, and their replacement (Bricken et al. 2023, "neuron resampling").

A dead feature starts anew at a token that is badly reconstructed, drawn with probability in proportion to the squared
error. Its decoder row becomes the direction of the error there (the original takes the input; the error is what is
missing), its encoder row the same, or in a transcoder the input, at a fifth of the mean norm of living rows; its bias
becomes 0 and the optimiser forgets it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosspatch.dictionaries.train.coder import Coder

_SHARE = 0.2


@torch.no_grad()
def resample(
    coder: Coder,
    optimizer: torch.optim.Optimizer,
    dead: Bool[Tensor, " feature"],
    x: Float[Tensor, "token d_in"],
    error: Float[Tensor, "token d_out"],
    generator: torch.Generator,
) -> int:
    """Replace dead features, in place.

    Returns:
        how many.
    """
    which = dead.nonzero()[:, 0]
    weights = error.pow(2).sum(1).double()
    if len(which) == 0 or not weights.sum() > 0:
        return 0
    drawn = torch.multinomial(weights.cpu() / weights.sum().cpu(), len(which), replacement=True, generator=generator)
    rows = drawn.to(x.device)
    direction = error[rows] / error[rows].norm(dim=1, keepdim=True).clamp(min=1e-12)
    source = direction if coder.tied else x[rows] / x[rows].norm(dim=1, keepdim=True).clamp(min=1e-12)
    alive = coder.params["encoder"][~dead].norm(dim=1)
    size = alive.mean() if len(alive) else torch.ones_like(direction[0, 0])
    coder.params["decoder"][which] = direction
    coder.params["encoder"][which] = source * size * _SHARE
    coder.params["encoder_bias"][which] = 0
    width = len(dead)
    for name, value in coder.params.items():
        if name in ("decoder_bias", "skip") or value.shape[0] != width:
            continue
        for moment in optimizer.state.get(value, {}).values():
            if isinstance(moment, Tensor) and moment.shape == value.shape:
                moment[which] = 0
    return len(which)
