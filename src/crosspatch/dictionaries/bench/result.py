"""What the tests give back: rows of numbers with their intervals, in words and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from crosspatch.dictionaries.measure import Estimate
from crosspatch.results.files import write_json
from crosspatch.results.statistics import bootstrap_ratio_of_means, resampler


@dataclass(frozen=True)
class Row:
    """One number of a test.

    Args:
        what: what was asked: `biographies/gender`, `nurse or professor`, `all classes`, ...
        by: what was used to answer it: `latents`, or the baseline or control it stands beside.
        n: how many latents (neurons, dimensions) were used; None where all of the activation was.
        value: the number with its 95 % interval over held-out texts (words, pairs).
        overall: whether it sums up others.
    """

    what: str
    by: str
    n: int | None
    value: Estimate
    overall: bool = False


@dataclass(frozen=True)
class Result:
    """What one test found.

    Args:
        test: its name.
        definition: what its numbers are, in a sentence.
        rows: the numbers.
        notes: what must be known to read them: flags, skipped parts, limits.
        details: further plain data.
    """

    test: str
    definition: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def value(self, what: str, by: str = "latents", n: int | None = None) -> Estimate:
        """The number of one row.

        Raises:
            KeyError: there is no such row.
        """
        for row in self.rows:
            if (row.what, row.by, row.n) == (what, by, n):
                return row.value
        raise KeyError(f"{self.test}: no row {what!r}, {by!r}, n {n}")

    def table(self, full: bool = True) -> str:
        """As a Markdown table with its definition and notes; `full=False`: rows that sum up others only."""
        lines = [f"{self.test}: {self.definition}", "", "| of | by | n | value | 95 % |", "|---|---|---|---|---|"]
        for row in self.rows:
            if not (full or row.overall):
                continue
            v = row.value
            ends = "" if math.isnan(v.low) else f"{v.low:.3f} to {v.high:.3f}"
            shown = "not defined" if math.isnan(v.value) else f"{v.value:.3f}"
            lines.append(f"| {row.what} | {row.by} | {'' if row.n is None else row.n} | {shown} | {ends} |")
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])

    def plain(self) -> dict[str, Any]:
        """As plain data; None stands for a number that is not defined."""
        rows = [
            {
                "what": row.what,
                "by": row.by,
                "n": row.n,
                "overall": row.overall,
                **{name: _finite(getattr(row.value, name)) for name in ("value", "low", "high")},
            }
            for row in self.rows
        ]
        return {
            "test": self.test, "definition": self.definition, "rows": rows, "notes": list(self.notes),
            "details": self.details,
        }  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What several tests found of one dictionary.

    Args:
        dictionary: it, in words.
        model: the model's name.
        seed: of every split and draw.
        results: by the test's name.
        skipped: tests that could not be run, with the reason.
    """

    dictionary: str
    model: str
    seed: int
    results: dict[str, Result]
    skipped: dict[str, str] = field(default_factory=dict)

    def table(self, full: bool = True) -> str:
        """All results in Markdown; `full=False`: rows that sum up others only."""
        parts = [found.table(full) for found in self.results.values()]
        skipped = [f"{name}: not run ({why})" for name, why in self.skipped.items()]
        return "\n\n".join([f"{self.dictionary} on {self.model}", *parts, *skipped])

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "dictionary": self.dictionary, "model": self.model, "seed": self.seed,
            "results": {name: found.plain() for name, found in self.results.items()}, "skipped": self.skipped,
        }  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, atomically."""
        write_json(Path(path), self.plain())
        return Path(path)


def estimate(
    above: Float[np.ndarray, " unit"],
    below: Float[np.ndarray, " unit"] | None = None,
    *,
    clusters: Sequence[str] | None = None,
    min_gap: float = 0.0,
    seed: int = 0,
) -> Estimate:
    """Ratio of two means (or the mean of the first), with the bootstrap interval over units.

    Args:
        clusters: units that are resampled together.
        min_gap: where the mean of `below` is smaller in size, the ratio is not defined (NaN).
    """
    if not len(above):
        return Estimate(math.nan, math.nan, math.nan)
    divisor = np.ones(len(above)) if below is None else below
    ends = bootstrap_ratio_of_means(above[None], divisor, resampler(len(above), clusters, seed=seed), min_gap=min_gap)
    mean = float(divisor.mean())
    value = float(above.mean()) / mean if mean and abs(mean) >= min_gap else math.nan
    return Estimate(value, float(ends.low[0]), float(ends.high[0]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
