"""A result with what the checks of the diagnosis read off it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

from crosspatch.metrics import Metric
from crosspatch.patching.sources import Source
from crosspatch.results import SweepResult
from crosspatch.tasks import GateReport, Task

SHOWN = 4
"""Rows that a finding's text names; all of them are in `Finding.rows`."""


@dataclass(frozen=True)
class Case:
    """A result with what the checks read off it.

    Attributes:
        frame: the table of the primary metric.
        matters: per direction the rows that matter (see `results.evidence`).
        size: what rows are ranked by.
        ran: the directions that were run.
        metrics: the metrics that could be told from their names.
    """

    result: SweepResult
    frame: pd.DataFrame
    matters: dict[str, Bool[np.ndarray, " row"]]
    size: np.ndarray
    ran: tuple[str, ...]
    metrics: tuple[Metric, ...]
    task: Task | None = None
    gates: GateReport | None = None
    source: Source | None = None

    @property
    def primary(self) -> str:
        return self.result.metrics[0]

    @property
    def any(self) -> Bool[np.ndarray, " row"]:
        """Rows that matter in one direction or the other."""
        return self.matters["denoise"] | self.matters["noise"]

    def named(self, rows: Sequence[int]) -> str:
        """The first few of some rows, by address."""
        addresses = list(dict.fromkeys(self.frame["address"].iloc[list(rows)]))
        more = len(addresses) - SHOWN
        return ", ".join(addresses[:SHOWN]) + (f" and {more} more" if more > 0 else "")

    def strongest(self, chosen: Bool[np.ndarray, " row"]) -> list[int]:
        """Row numbers, strongest first."""
        rows = np.flatnonzero(chosen)
        return [int(row) for row in rows[np.argsort(-self.size[rows], kind="stable")]]
