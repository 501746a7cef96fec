"""Which rows of a result matter: the one rule that the drill, the diagnosis, the confirmation and the report share."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from crosspatch.results.statistics import flip_units, means, smallest_p
from crosspatch.results.table import DIRECTIONS, SweepResult

RANDOM_SITE, RANDOM_DIRECTION = "random site", "random direction"
"""Kinds of random control in the column `control`; see `patching.controls`."""
ALPHA = 0.05
MIN_EFFECT = 0.02
"""Smallest share of the clean-corrupt gap that counts as an effect, whatever its p-value."""


def n_units(result: SweepResult) -> int:
    """Number of units whose signs the permutation test flips."""
    return int(flip_units(len(result.clusters), result.clusters).max(initial=-1)) + 1


def can_reach(result: SweepResult, n_tests: int, alpha: float = ALPHA) -> bool:
    """Whether one true effect among `n_tests` could survive the false-discovery correction with this few examples."""
    return smallest_p(n_units(result)) * max(n_tests, 1) <= alpha


def matters(
    result: SweepResult, frame: pd.DataFrame, alpha: float = ALPHA, min_effect: float = MIN_EFFECT
) -> dict[str, Bool[np.ndarray, " row"]]:
    """For each direction, the rows whose effect is both significant and not small.

    Significant means a corrected p-value of at most `alpha`; where the examples are too few for any row to get there,
    it means that the bootstrap interval excludes zero (the diagnosis then says so). Not small means a share of the gap
    of at least `min_effect`. Controls never matter.
    """
    control = result.is_control
    found: dict[str, np.ndarray] = {}
    for direction in DIRECTIONS:
        low, high = frame[f"{direction}_low"].to_numpy(float), frame[f"{direction}_high"].to_numpy(float)
        significant = np.zeros(len(frame), dtype=bool)
        for granularity in frame["granularity"].unique():
            family = (frame["granularity"] == granularity).to_numpy() & ~control
            if can_reach(result, int(family.sum()), alpha):
                significant |= family & (frame[f"q_{direction}"].to_numpy(float) <= alpha)
            else:
                significant |= family & ((low > 0) | (high < 0) | _constant(result, direction))
        found[direction] = significant & (np.abs(frame[f"{direction}_norm"].to_numpy(float)) >= min_effect)
    return found


def _constant(result: SweepResult, direction: str) -> Bool[np.ndarray, " row"]:
    """Rows with the same effect, not zero, in every example: an interval of no width, or none with one example."""
    effects = result.effects(direction)  # type: ignore[arg-type]
    with np.errstate(invalid="ignore"):
        spread = np.abs(effects - effects[:, :1]).max(axis=1)
        return (len(result.clusters) > 1) & (spread == 0) & (effects[:, 0] != 0)


def size(frame: pd.DataFrame) -> np.ndarray:
    """The larger absolute effect of the two directions; 0 where neither was run. What rows are ranked by."""
    columns = np.abs(frame[[f"{direction}_effect" for direction in DIRECTIONS]].to_numpy(float))
    return np.nan_to_num(columns, nan=0.0).max(axis=1)


def control_size(result: SweepResult, direction: str) -> Float[np.ndarray, " row"]:
    """What each row has to exceed: the absolute mean effect of its random controls; 0 where it has none.

    That is the largest effect among random sites of its granularity, or of a random push at its own address,
    whichever is larger.
    """
    rows = result.rows
    effect = np.abs(means(result.effects(direction)))  # type: ignore[arg-type]
    effect = np.where(np.isfinite(effect), effect, 0.0)
    control = rows["control"]
    by_place = rows["granularity"][control == RANDOM_SITE]
    sites = pd.Series(effect[(control == RANDOM_SITE).to_numpy()], dtype=float).groupby(by_place.to_numpy()).max()
    pushed = (control == RANDOM_DIRECTION).to_numpy()
    keys = list(zip(rows["address"], rows["corruption"], strict=True))
    own = {keys[i]: effect[i] for i in np.flatnonzero(pushed)}
    elsewhere = rows["granularity"].map(sites).fillna(0.0).to_numpy(float)
    return np.maximum(elsewhere, [own.get(key, 0.0) for key in keys])
