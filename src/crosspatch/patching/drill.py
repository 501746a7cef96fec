"""Coarse to fine: patch the residual stream, then only the parts of what mattered (rule C1 of the method).

What a block writes at a position reaches the rest of the model through the residual stream behind it and in no other
way. So the children of `r7@S2` are `a6@S2` and `m6@S2`; those of `a6@S2` its heads; those of a head its query, key,
value and pattern; those of an MLP the neurons that write most of its difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from crosspatch.errors import AddressError
from crosspatch.graph import ALL, Site, children, parse_address
from crosspatch.metrics import DEFAULT, Metric
from crosspatch.model import Model
from crosspatch.patching.experiment import Experiment
from crosspatch.patching.levels import PLAN, Drill
from crosspatch.patching.plan import Cell, plan_cells
from crosspatch.patching.sources import OtherRun, Source
from crosspatch.patching.sweep import Progress, Setup, set_up, sweep
from crosspatch.results import SweepResult
from crosspatch.results.evidence import ALPHA, MIN_EFFECT, matters, size
from crosspatch.tasks import Task
from crosspatch.tasks.tokenize import TokenizedTask

PARENTS = {
    "block": ("residual", None),
    "head": ("block", "attn_out"),
    "qkv": ("head", None),
    "neuron": ("block", "mlp_out"),
}
"""For each granularity the one above it, and the kind of row there that has such children."""
NEURONS = 32
"""Neurons patched under one MLP: those whose difference between the runs writes most to the residual stream."""


def drill(
    model: Model,
    task: Task | TokenizedTask,
    *,
    plan: Sequence[str] = PLAN,
    top: int = 16,
    alpha: float = ALPHA,
    min_effect: float = MIN_EFFECT,
    source: Source = OtherRun(),  # noqa: B008 (frozen and empty)
    metrics: str | Metric | Sequence[str | Metric] = DEFAULT,
    k: float = 2.0,
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    out: str | Path | None = None,
    force: bool = False,
    random_control: bool = True,
) -> Drill:
    """Patch coarse to fine in both directions, going on only under rows that matter.

    A row matters when its effect is significant (corrected p of at most `alpha`) and at least `min_effect` of the
    gap, in either direction.

    Args:
        plan: granularities to run, of `PLAN`. One whose parent is not in the plan is run in full.
        top: at most this many parents are opened per level below the blocks, strongest first.
        alpha, min_effect: when a row matters.
        out: folder; each level is saved in a folder of its name, and a stopped drill goes on from there.
        model, task, source, metrics, k, seed, budget_mib, progress, force, random_control: see `patch`.

    Raises:
        AddressError: an unknown granularity.
        GateError and others: see `patch`.
    """
    check_plan(plan)
    setup = set_up(model, task, source=source, metrics=metrics, k=k, force=force, budget_mib=budget_mib)
    setup.seed, setup.progress, setup.random_control = seed, progress, random_control
    return run_drill(setup, plan, top=top, alpha=alpha, min_effect=min_effect, out=out)


def run_drill(
    setup: Setup,
    plan: Sequence[str] = PLAN,
    *,
    top: int = 16,
    alpha: float = ALPHA,
    min_effect: float = MIN_EFFECT,
    out: str | Path | None = None,
) -> Drill:
    """`drill` on a setup that exists."""
    levels: dict[str, SweepResult] = {}
    for granularity in sorted(plan, key=PLAN.index):
        above, kind = PARENTS.get(granularity, (None, None))
        if above in plan:
            parents = _parents(levels.get(above), kind, top, alpha, min_effect) if above else []
            cells = open_parents(setup.experiment, granularity, parents)
        else:
            cells = whole_level(setup.experiment, granularity)
        if cells:
            folder = None if out is None else Path(out) / granularity
            levels[granularity] = sweep(setup, cells, stage=granularity, out=folder)
    return Drill(levels)


def check_plan(plan: Sequence[str]) -> None:
    """Raise an AddressError for a plan with unknown granularities, or none."""
    unknown = [name for name in plan if name not in PLAN]
    if unknown or not plan:
        raise AddressError(
            f"unknown granularity {unknown[0]!r}" if unknown else "an empty plan",
            where="plan",
            fix=f"use some of {', '.join(PLAN)}",
        )


def _parents(level: SweepResult | None, kind: str | None, top: int, alpha: float, min_effect: float) -> list[str]:
    """Addresses of the rows of a level that matter, strongest first."""
    if level is None:
        return []
    frame = level.frame()
    found = matters(level, frame, alpha, min_effect)
    chosen = found["denoise"] | found["noise"]
    if kind is not None:
        chosen &= (frame["kind"] == kind).to_numpy()
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(-size(frame)[rows], kind="stable")]
    addresses = list(dict.fromkeys(frame["address"].iloc[rows]))
    return addresses if frame["granularity"].iloc[0] == "residual" else addresses[:top]


def whole_level(experiment: Experiment, granularity: str) -> list[Cell]:
    """Every cell of a granularity, at every role."""
    shape, tokenized = experiment.model.shape, experiment.tokenized
    if granularity == "neuron":
        blocks = [cell.address for cell in plan_cells(shape, tokenized, "m*")] if shape.has_neurons else []
        return [Cell(cell.sites, cell.position) for cell in open_parents(experiment, "neuron", blocks)]
    if granularity == "qkv":
        heads = [cell.address for cell in plan_cells(shape, tokenized, "a*.h*")]
        return [Cell(cell.sites, cell.position) for cell in open_parents(experiment, "qkv", heads)]
    patterns = {"residual": f"r*, r{shape.n_layers - 1}.post", "block": "a*, m*", "head": "a*.h*"}
    return plan_cells(shape, tokenized, patterns[granularity])


def open_parents(experiment: Experiment, granularity: str, parents: Sequence[str]) -> list[Cell]:
    """The children of some rows, each once (under the strongest of its parents), in the order of computation."""
    shape = experiment.model.shape
    lengths = zip(experiment.tokenized.clean, experiment.tokenized.corrupt, strict=True)
    equal = all(len(clean) == len(corrupt) for clean, corrupt in lengths)
    found: dict[tuple[tuple[Site, ...], int | str], Cell] = {}
    for parent in parents:
        address = parse_address(parent)
        parts = children(address.site, shape)
        if granularity == "neuron":
            parts = _loudest(experiment, address.site, address.position, parts)
        for site in parts:
            if site.kind == "input" or (site.kind == "pattern" and not equal):
                continue  # r0 is the input; patterns of unequal prompts have no common columns
            # A query or pattern belongs to the destination; keys and values are read from every token.
            position = ALL if site.kind in ("k", "v") else address.position
            found.setdefault(((site,), position), Cell((site,), position, parent))
    return sorted(found.values(), key=lambda cell: cell.site)


def _loudest(experiment: Experiment, block: Site, position: int | str, neurons: Sequence[Site]) -> list[Site]:
    """The neurons with the largest |difference of activation| x |output weights|, averaged over examples.

    This is the length of what each neuron adds to the difference that the whole block writes: the direct part of its
    effect, computed exactly and without a patch.
    """
    if not neurons:
        return []
    act = Site("mlp_act", block.layer)
    total: Float[torch.Tensor, " neuron"] = torch.zeros(len(neurons))
    for example in range(len(experiment.owner)):
        spot = experiment.spots.spot("clean", example, position)
        clean = experiment.runs["clean"].value(act, example)[list(spot.paired)].float()
        corrupt = experiment.runs["corrupt"].value(act, example)[list(spot.partners)].float()
        total += (clean - corrupt).abs().sum(0).cpu()
    assert block.layer is not None
    down = experiment.model.anatomy.blocks[block.layer].down_proj
    assert down is not None  # or the shape would have no neurons
    weights: torch.Tensor = down.weight  # type: ignore[assignment]
    weight = weights.detach().float()
    across = 1 if hasattr(down, "nf") else 0  # GPT-2's Conv1D stores [neuron, d_model], Linear [d_model, neuron]
    loudness = total * weight.norm(dim=across).cpu()
    chosen = torch.argsort(loudness, descending=True, stable=True)[:NEURONS]
    return [neurons[i] for i in sorted(chosen.tolist()) if loudness[i] > 0]
