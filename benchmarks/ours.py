"""Crosspatch's side: the same questions to the executor."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.floor import Sizes
from benchmarks.problem import Problem
from crosspatch.graph.names import Site
from crosspatch.model.load import load
from crosspatch.model.replay import record, replay
from crosspatch.model.run import Edit, FromRun, Readout, Row

Sweep = Callable[[str], torch.Tensor]


def our_sweeps(problem: Problem, budget_mib: float | None = None) -> tuple[Sweep, Sizes]:
    """A function from the kind of sweep to the patched metric `[layer, place, example]`, and the model's sizes.

    What it times is recording both runs and replaying every cell of the sweep, cells that change nothing included.
    """
    model = load(problem.hf, name="gpt2-small-random")
    shape = model.shape
    clean, corrupt = problem.clean.tolist(), problem.corrupt.tolist()
    n, length = problem.clean.shape
    answers = [*problem.right, *problem.wrong]
    columns = sorted(set(answers))
    right = torch.tensor([columns.index(token) for token in problem.right])
    wrong = torch.tensor([columns.index(token) for token in problem.wrong])

    def sweep(kind: str) -> torch.Tensor:
        by_position = kind in ("resid_pre", "mlp_out")
        places = length if by_position else shape.n_heads if kind in ("z", "q") else shape.n_kv_heads
        sites = [
            [Site(kind, layer) if by_position else Site(kind, layer, place) for place in range(places)]
            for layer in range(shape.n_layers)
        ]
        flat = [site for layer in sites for site in (layer[:1] if by_position else layer)]
        base = record(model, corrupt, restart_at=flat, budget_mib=budget_mib)
        source = record(model, clean, flat, budget_mib=budget_mib)
        everywhere = tuple(range(length))
        rows = [
            Row(example, (Edit(site, (place,) if by_position else everywhere, FromRun(source, example)),))
            for layer in sites
            for place, site in enumerate(layer)
            for example in range(n)
        ]
        values = torch.empty(len(rows))

        def on_read(read: Readout) -> None:
            index = torch.arange(len(read.row))
            values[read.row] = read.logits[index, right[read.example]] - read.logits[index, wrong[read.example]]

        replay(base, rows, on_read, columns=columns, budget_mib=budget_mib)
        return values.view(shape.n_layers, places, n)

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
