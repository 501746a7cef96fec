"""Gates before a verdict on a circuit: is there a behaviour to explain, enough data, and no effect without training?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from crosspatch.results.statistics import Resampler, bootstrap_mean
from crosspatch.tasks.checks import preference
from crosspatch.tasks.findings import GateFinding

if TYPE_CHECKING:
    from crosspatch.attribution.setup import Setup

MIN_PAIRS = 10
"""Fewest judged pairs: below it the gate `examples` fails."""
FEW_PAIRS, FEW_CLUSTERS = 30, 6
"""Below either the gate `examples` warns."""
ERRORS = 2.0
"""Standard errors that the mean gap must exceed."""
SPREADS = 0.5
"""Standard deviations that the mean gap must exceed: below it three pairs in ten have it the other way round."""
CONTROL_SHARE = 0.2
"""Largest share of the model's gap that a control model may show consistently."""


def gap_gate(gap: Float[np.ndarray, " example"], sampler: Resampler, better: str) -> GateFinding:
    """Does the whole model beat the model with everything cut? By `ERRORS` standard errors, by an interval over
    resampled clusters, and by `SPREADS` standard deviations over pairs.

    Args:
        gap: whole model minus everything cut, per example.
        sampler: resamples of the examples.
        better: `higher` or `lower` values of the metric.
    """
    shows, words = _shows(gap if better == "higher" else -gap, sampler)
    if shows:
        return GateFinding("gap", "info", f"whole model minus everything cut: {words}")
    return GateFinding(
        "gap", "failure", f"whole model minus everything cut: {words}; there is nothing that a circuit could explain",
        fix="use a model that does this task, other pairs, or an ablation that takes the behaviour away",
    )  # fmt: skip


def _shows(gap: Float[np.ndarray, " example"], sampler: Resampler) -> tuple[bool, str]:
    """Whether a gap is consistently positive, and its numbers."""
    if not np.isfinite(gap).all():
        return False, f"not a finite number in {int((~np.isfinite(gap)).sum())} of {len(gap)} pairs"
    mean, spread = float(gap.mean()), float(gap.std(ddof=1)) if len(gap) > 1 else float("nan")
    ends = bootstrap_mean(gap[None], sampler)
    low, high = float(ends.low[0]), float(ends.high[0])
    shows = mean > max(ERRORS * spread / np.sqrt(len(gap)), SPREADS * spread) and mean > 0 and not low <= 0
    return bool(shows), f"{mean:.3g} [{low:.3g}, {high:.3g}], standard deviation {spread:.2g}, n = {len(gap)}"


def examples_gate(n: int, n_clusters: int) -> GateFinding:
    """Are there enough pairs, of enough kinds?"""
    message = f"{n} pairs of {n_clusters} templates are judged"
    if n < MIN_PAIRS:
        return GateFinding("examples", "failure", f"{message}; at least {MIN_PAIRS} pairs are needed", fix="add pairs")
    if n < FEW_PAIRS or n_clusters < FEW_CLUSTERS:
        few = f"{message}: few for intervals that resample templates ({FEW_PAIRS} and {FEW_CLUSTERS} are better)"
        return GateFinding("examples", "warning", few, fix="add pairs and templates")
    return GateFinding("examples", "info", message)


def accuracy_gate(setup: Setup) -> list[GateFinding]:
    """Does the model prefer the right answer on the clean prompts? Empty where the pairs give no answers."""
    from crosspatch.metrics import PAD, Accuracy, LogitDiff

    right, wrong = ((ids != PAD).sum(-1).numpy() for ids in (setup.targets.answers, setup.targets.wrong))
    if not right.all():
        return []
    metric = LogitDiff("max") if wrong.all() else Accuracy()
    last: list[tuple[int, ...]] = [(at[-1],) for at in setup.read]
    run = replace(setup, metric=metric, read=last)
    values = run.measure(run.record_clean().hidden).double().cpu().numpy()
    chance = float((right / (right + wrong)).mean()) if wrong.all() else None
    return preference(values > 0, chance)


def control_gate(
    gap: Float[np.ndarray, " example"],
    control_gaps: Float[np.ndarray, "control example"],
    kept: Float[np.ndarray, "control circuit"],
    sampler: Resampler,
    better: str,
) -> GateFinding | None:
    """Do models with permuted weights show no such gap? None without control models.

    It fails when a control model's gap passes the same test as the model's and is at least `CONTROL_SHARE` of it: then
    the prompts, or shared embeddings, make the gap, and a circuit for it would be found anywhere.

    Args:
        gap: of the model.
        control_gaps: of the control models.
        kept: mean effect of the circuits in the control models (circuit minus everything cut).
    """
    if not len(control_gaps):
        return None
    sign = 1.0 if better == "higher" else -1.0
    mean = float(gap.mean())
    shown = [_shows(sign * each, sampler) for each in control_gaps]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = control_gaps.mean(1) / mean
        circuit = float(np.abs(kept / mean).max(initial=0))
    bad = [i for i, (shows, _) in enumerate(shown) if shows and not found[i] < CONTROL_SHARE]
    numbers = "; ".join(words for _, words in shown)
    message = (
        f"gap of {len(shown)} model(s) with permuted weights: {numbers} (the model: {mean:.3g}); the circuits move at "
        f"most {circuit:.2f} of the model's gap there"
    )
    if bad:
        return GateFinding(
            "control", "failure", f"{message}: untrained weights show the gap too",
            fix="find out what in the prompts makes it (copied tokens, shared embeddings) and use other pairs",
        )  # fmt: skip
    return GateFinding("control", "info", message)
