"""Causal tracing: corrupt a prompt by noise on some tokens' embeddings, then restore one activation at a time.

Meng et al. 2022 (arXiv 2202.05262): noise of three standard deviations of the token embeddings on the subject, ten
draws. The indirect effect of a site is the denoising effect here. Zhang & Nanda 2023 (arXiv 2309.16042) show that noise
and paired prompts find different parts; compare with `patch` on the same task.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from crosspatch.errors import GateError
from crosspatch.graph import Address, Site
from crosspatch.metrics import Metric, resolve_metrics
from crosspatch.model import Edit, Model
from crosspatch.patching.experiment import Experiment, prepare
from crosspatch.patching.plan import Positions, plan_cells
from crosspatch.patching.positions import Spots
from crosspatch.patching.sources import GaussianNoise, OtherRun, embedding_std
from crosspatch.patching.sweep import Progress, Setup, as_tokenized, sweep
from crosspatch.results import SweepResult
from crosspatch.tasks import Task, align
from crosspatch.tasks.tokenize import TokenizedTask, tokenize_pairs


def causal_trace(
    model: Model,
    task: Task | TokenizedTask,
    sites: str | Iterable[str | Site | Address] = "r*",
    *,
    at: str | int,
    noise: GaussianNoise = GaussianNoise(),  # noqa: B008 (frozen)
    positions: Positions = None,
    metrics: str | Metric | Iterable[str | Metric] = ("prob", "logit_diff", "log_prob"),
    window: int = 1,
    k: float = 2.0,
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    out: str | Path | None = None,
    force: bool = False,
    random_control: bool = True,
) -> SweepResult:
    """Noise the embeddings of one span of the clean prompt, and restore every site at every position.

    Only the clean prompts of the task are used. Values are averaged over the draws of noise, per example.

    Args:
        at: span (or token index) whose embeddings are noised.
        noise: how much, how many draws, which seed.
        window: 10 in the paper for MLP and attention sites, 1 for the residual stream.
        model, task, sites, positions, metrics, k, seed, budget_mib, progress, out, force, random_control: see `patch`.

    Raises:
        GateError: the noise does not lower the first metric by `k` standard errors.
        AddressError, MetricError, TaskError, ModelError: input that does not fit.
    """
    model.require_eval()
    tokenized = as_tokenized(model, task)
    chosen = resolve_metrics(metrics)
    cells = plan_cells(model.shape, tokenized, sites, positions, window)
    experiment = _noised(model, tokenized, at, noise, chosen, budget_mib)
    overruled = _require_gap(experiment, k, force)
    setup = Setup(
        experiment,
        OtherRun(),
        ("denoise",),
        overruled=overruled,
        seed=seed,
        random_control=random_control,
        window=window,
        progress=progress,
    )
    return sweep(setup, cells, out=out)


def _noised(
    model: Model,
    tokenized: TokenizedTask,
    at: str | int,
    noise: GaussianNoise,
    metrics: tuple[Metric, ...],
    budget_mib: float | None,
) -> Experiment:
    """Clean prompts against themselves with noise, once for every draw."""
    label = f"gaussian noise at {at} ({noise.scale:g} sd, {noise.draws} draws, seed {noise.seed})"
    pairs = [replace(p, corrupt=p.clean, corrupt_spans=p.spans, corruption=label) for p in tokenized.task.pairs]
    task = replace(tokenized.task, pairs=tuple(pairs), varies=f"the embeddings of {at}", holds="every other embedding")
    each = [(example, draw) for example in range(len(pairs)) for draw in range(noise.draws)]
    many = tokenize_pairs(replace(task, pairs=tuple(pairs[example] for example, _ in each)), tokenized.encoder)
    spots, size, source = Spots(many, align(many)), noise.scale * embedding_std(model), Site("input")
    edits = [
        (Edit(source, spots.spot("clean", number, at).positions, noise.adder(size, source, example, draw)),)
        for number, (example, draw) in enumerate(each)
    ]
    owner = [example for example, _ in each]
    experiment = prepare(
        model, many, metrics, alignment=spots.alignment, corrupt_edits=edits, owner=owner, budget_mib=budget_mib
    )
    experiment.task = task
    return experiment


def _require_gap(experiment: Experiment, k: float, force: bool) -> bool:
    """Whether a missing gap was overruled.

    Raises:
        GateError: the noise does nothing that could be restored.
    """
    metric = experiment.metrics[0]
    gap = experiment.baseline("clean")[metric.name] - experiment.baseline("corrupt")[metric.name]
    gap = gap if metric.better == "higher" else -gap
    error = float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else 0.0
    if gap.mean() > k * error and gap.mean() > 0:
        return False
    if force:
        return True
    raise GateError(
        f"the noise lowers {metric.name} by {gap.mean():.3g} on average (standard error {error:.3g}), which is not "
        f"{k:g} standard errors: there is nothing to restore",
        where=f"task {experiment.task.name!r}",
        fix="use more noise, noise the tokens that the answer depends on, or go on with force=True",
    )
