"""Control models: the same architecture with weights that can have learned nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from crosspatch.attribution.setup import Setup
from crosspatch.errors import ModelError
from crosspatch.model import Model, load, record


@torch.no_grad()
def random_weights(model: Model, seed: int = 0) -> Model:
    """A copy of a model in which the entries of every weight tensor are permuted.

    Each tensor keeps its distribution, so that activations keep their scale, and loses all structure. What an analysis
    finds in such a model it would find anywhere (Conmy et al. 2023, arXiv 2304.14997, use such networks as controls).
    Weights that are shared between modules stay shared. The model itself is left as it is.

    Args:
        seed: of the permutations.

    Raises:
        ModelError: weights that cannot be permuted: off-loaded or quantised ones.
    """
    weights = list(model.hf.named_parameters())
    bad = [name for name, p in weights if p.is_meta or not p.is_floating_point()]
    if bad:
        raise ModelError(
            f"{bad[0]} is off-loaded or quantised", where=model.name, fix="load the model in floating point"
        )
    hf = copy.deepcopy(model.hf)
    draw = torch.Generator().manual_seed(seed)
    for parameter in hf.parameters():
        order = torch.randperm(parameter.numel(), generator=draw).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return load(
        hf, model.tokenizer, layout=model.anatomy.layout, name=f"{model.name} with permuted weights (seed {seed})"
    )


def on_model(setup: Setup, model: Model) -> Setup:
    """The same pairs on another model with the same vocabulary."""
    targets = setup.targets
    if targets.clean_logits is not None:
        targets = replace(targets, clean_logits=record(model, setup.clean).logits())
    if targets.corrupt_logits is not None:
        targets = replace(targets, corrupt_logits=record(model, setup.corrupt).logits())
    return replace(setup, model=model, targets=targets, provenance={**setup.provenance, "model": model.name})
