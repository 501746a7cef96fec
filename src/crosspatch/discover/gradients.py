"""Gradients of single samples with respect to the weights, hashed while they are made (quanta discovery: Michaud et al.
2023, arXiv 2303.13506, section 5).

The gradient of one sample's loss at a linear layer is a sum over its tokens of what the layer's output asks for times
what it read: both are there after one backward pass over many samples, so that no sample needs a pass of its own, and a
layer's gradients exist for a few samples at a time only. Weights and biases of all linear layers inside the blocks are
in it; embeddings, the output head and norms are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from crosspatch.attribution.forward import trace
from crosspatch.attribution.setup import Setup
from crosspatch.discover.hashing import Hash, hash_of
from crosspatch.errors import ModelError
from crosspatch.model import Model

MIB = 2**20
GRADIENT_MIB = 64.0
"""Memory for one layer's gradients of some samples."""
FIX = "use activations, features or effects for this model"


def linear_layers(model: Model) -> dict[str, nn.Module]:
    """The linear layers inside the blocks, by the names that the model gives them.

    Raises:
        ModelError: a matrix of weights that belongs to no linear layer (experts in one tensor, adapters).
    """
    inside = {part for block in model.anatomy.blocks for part in block.layer.modules()}
    found: dict[str, nn.Module] = {}
    for name, part in model.hf.named_modules():
        if part not in inside:
            continue
        if type(part) in (nn.Linear, Conv1D):
            found[name] = part
        elif wide := [own for own, weight in part.named_parameters(recurse=False) if weight.dim() > 1]:
            raise ModelError(
                f"{name}.{wide[0]} of {type(part).__name__} is no plain linear layer", where="gradients", fix=FIX
            )
    return found


def gradient_hashes(model: Model, dims: int, seed: int = 0) -> dict[str, Hash]:
    """A hash for the gradient of every linear layer, `[out, in]`; a bias is one more column."""
    made = {}
    for name, layer in linear_layers(model).items():
        weight: Any = layer.weight
        bias = getattr(layer, "bias", None)
        rows, columns = weight.shape if isinstance(layer, nn.Linear) else weight.shape[::-1]
        made[name] = hash_of(name, rows, columns + (bias is not None), dims, seed).to(weight.device)
    return made


def hashed_gradients(part: Setup, hashes: Mapping[str, Hash]) -> Float[Tensor, "sample dims"]:
    """The hashed gradient of the loss, -metric, of every sample.

    Args:
        part: samples of equal length.
        hashes: as `gradient_hashes` gives them.

    Raises:
        ModelError: a layer that is not given all tokens (a mixture of experts).
    """
    dims = next(iter(hashes.values())).dims
    into = torch.zeros(len(part), dims, device=part.model.device)
    length = len(part.clean[0])
    for name, g, x in _factors(part, hashes):
        one = hashes[name]
        rows, columns = len(one.row_sign), len(one.column_sign)
        if g.numel() != len(part) * length * rows:
            raise ModelError(f"{name} does not read every token once", where="gradients", fix=FIX)
        g = (g.reshape(-1, rows) * one.row_sign.to(g)).unflatten(0, (len(part), length))
        x = x.reshape(-1, x.shape[-1])
        x = torch.cat([x, x.new_ones(len(x), columns - x.shape[-1])], -1) * one.column_sign.to(x)
        x = x.unflatten(0, (len(part), length))
        size = max(1, int(GRADIENT_MIB * MIB / (4 * rows * columns)))
        for at in range(0, len(part), size):
            some = slice(at, at + size)
            # -metric: the sign of the loss, which angles do not depend on but the vectors' meaning does.
            one.add(into[some], -torch.einsum("nti,ntj->nij", g[some], x[some]).to(into.device))
    return into


def _factors(part: Setup, names: Sequence[str] | Mapping[str, Any]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """For each layer the gradient of the metric at its output, and its input, of all tokens."""
    model = part.model
    layers = linear_layers(model)
    read: dict[str, Tensor] = {}
    wrote: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_: nn.Module, args: tuple[Any, ...], out: Tensor, name: str = name) -> None:
                if name in read:
                    raise ModelError(f"{name} runs twice in one pass", where="gradients", fix=FIX)
                read[name], wrote[name] = args[0].detach(), out

            stack.callback(layers[name].register_forward_hook(keep).remove)
        run = trace(model, model.embed(part.clean), [len(ids) for ids in part.clean], part.read)
        with torch.enable_grad():
            value = part.measure(run.hidden).sum()
    seen = list(wrote)
    gradients = torch.autograd.grad(value, [wrote[name] for name in seen], allow_unused=True)
    for name, g in zip(seen, gradients, strict=True):
        if g is not None:
            yield name, g, read[name]
