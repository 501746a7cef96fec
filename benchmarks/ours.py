"""Crosspatch's side: `crosspatch.patch`, as a user calls it."""

from __future__ import annotations

from collections.abc import Callable

import torch

import crosspatch as cp
from benchmarks.floor import BY_POSITION, Sizes
from benchmarks.problem import Problem

Sweep = Callable[[str], torch.Tensor]


def our_sweeps(problem: Problem, budget_mib: float | None = None) -> tuple[Sweep, Sizes]:
    """A function from the kind of sweep to the patched metric `[layer, place, example]`, and the model's sizes.

    What it times is the whole call: tokenising, gates, recording both runs, every cell of the sweep (with those that
    change nothing), and the diagnosis. One direction and no random controls, because that is all that the peer does.
    """
    model = cp.load(problem.hf, problem.tokenizer, name="gpt2-small-random")
    shape = model.shape
    task = cp.Task.from_lists(
        "random-tokens",
        [problem.text(ids) for ids in problem.clean.tolist()],
        [problem.text(ids) for ids in problem.corrupt.tolist()],
        [" " + problem.text([token]) for token in problem.right],
        [" " + problem.text([token]) for token in problem.wrong],
    )

    def sweep(kind: str) -> torch.Tensor:
        heads = shape.n_heads if kind in ("z", "q") else shape.n_kv_heads
        layers = range(shape.n_layers)
        if kind in BY_POSITION:
            sites = [cp.Site(kind, layer) for layer in layers]
        else:
            sites = [cp.Site(kind, layer, head) for layer in layers for head in range(heads)]
        result = cp.patch(
            model,
            task,
            sites,
            positions="tokens" if kind in BY_POSITION else "all",
            direction="denoise",
            metrics="logit_diff",
            random_control=False,
            force=True,  # a model with random weights cannot do the task, and the gate says so
            budget_mib=budget_mib,
        )
        # Rows come in the order of layers, then positions or heads.
        return torch.from_numpy(result.denoise["logit_diff"]).view(shape.n_layers, -1, len(problem.clean))

    config = problem.hf.config
    sizes = Sizes(
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        d_model=shape.d_model,
        d_head=shape.d_head,
        d_mlp=config.n_inner or 4 * config.n_embd,
    )
    return sweep, sizes
