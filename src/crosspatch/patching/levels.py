"""What a drill found, level by level. Plain data: reading it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from crosspatch.results import SweepResult

PLAN = ("residual", "block", "head", "qkv", "neuron")
"""Granularities, coarse to fine."""


@dataclass
class Drill:
    """The levels of a drill, coarse to fine.

    Attributes:
        levels: granularity to result. A granularity whose parents did not matter is missing.
    """

    levels: dict[str, SweepResult]

    @property
    def result(self) -> SweepResult:
        """All levels as one table, with `granularity` and `parent`."""
        return SweepResult.concat(list(self.levels.values()))

    def frame(self, metric: str | None = None) -> pd.DataFrame:
        """The effect table of all levels; see `SweepResult.frame`."""
        return self.result.frame(metric)

    def top(self, n: int = 10, granularity: str = "head", metric: str | None = None) -> pd.DataFrame:
        """The strongest rows of one level; empty when that level was not reached."""
        level = self.levels.get(granularity)
        return pd.DataFrame() if level is None else level.top(n, metric)
