"""Norms as affine maps: what a norm does to an input when its scale is held at that of another one.

A LayerNorm or RMS norm is `weight * centred(x) * scale(x) + bias` with one scale per token. Held at the scale of a
reference input it is affine, so that what is added to the input adds up in the output. Weight, bias and centring are
found by probing the module, because families store them differently (Gemma keeps weight - 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.errors import ModelError

Norm = Callable[[Tensor], Tensor]
_LOOSE, _TIGHT = 0.03, 1e-3
"""Relative error of the fit at which a module is no norm: of half precision, of all others."""


@torch.no_grad()
def frozen_norm(norm: Norm, x_ref: Float[Tensor, "... d_model"]) -> Norm:
    """The affine map that `norm` is when every token keeps the scale that it has for `x_ref`.

    The mean of a LayerNorm is linear, and is still taken of the input: `frozen(x_ref) == norm(x_ref)`, and
    `frozen(x) - frozen(y)` depends on `x - y` only. Gradients pass the map; they do not pass the scale.

    Args:
        norm: LayerNorm, RMS norm, the identity, or anything else of the form above.
        x_ref: inputs whose scales are kept; the map takes whatever broadcasts with it.

    Raises:
        ModelError: not of this form (a norm across tokens, or over groups of channels; a map that is not linear).
    """
    work = torch.promote_types(x_ref.dtype, torch.float32)
    weight, bias, centred = _parts(norm, x_ref)
    basis, wanted = weight * _centre(x_ref.to(work), centred), norm(x_ref).to(work) - bias
    size = (basis * basis).sum(-1, keepdim=True)
    scale = torch.where(size > 0, (basis * wanted).sum(-1, keepdim=True) / size, 0)
    error = (basis * scale - wanted).norm() / wanted.norm().clamp(min=torch.finfo(work).tiny)
    if not error <= (_LOOSE if x_ref.element_size() < 4 else _TIGHT):
        raise ModelError(
            f"{type(norm).__name__} is no norm of each token by itself: no weight per channel and scale per token fit "
            f"it (off by {float(error):.1%})",
            where="frozen norms",
            fix="norms='recomputed' needs no such form",
        )

    def frozen(x: Tensor) -> Tensor:
        return (weight * _centre(x.to(work), centred) * scale + bias).to(x.dtype)

    return frozen


def _parts(norm: Norm, like: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Weight (up to a factor that the scale takes up), bias, and whether the mean is taken off."""
    width = like.shape[-1]
    work = torch.promote_types(like.dtype, torch.float32)
    probes = like.new_zeros(3, 1, width)
    probes[1] = 1
    probes[2] = torch.linspace(1, 2, width, device=like.device) * (
        1 - 2 * (torch.arange(width, device=like.device) % 2)
    )
    zero, ones, mixed = norm(probes).to(work)
    flat, varied = (ones - zero).norm(), (mixed - zero).norm()
    centred = bool(flat < 1e-2 * varied)
    return (mixed - zero) / _centre(probes[2].to(work), centred), zero, centred


def _centre(x: Tensor, centred: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if centred else x
