"""Exact activation patching: one number per site, position, direction, metric and example.

`denoise` puts the clean run's value into the corrupt run (does it restore the behaviour?); `noise` puts the corrupt run's
value into the clean run (does it break it?). Heimersheim & Nanda 2024 (arXiv 2404.15255) say why both are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from crosspatch.patching.experiment import Experiment
from crosspatch.patching.sources import Direction, Source
from crosspatch.tasks import GateReport

Progress = Callable[[str, float, float], None]
"""Called with (stage, work done, work in all)."""

Mode = Literal["exploratory", "confirmatory"]
CONFIRMATORY = ("logit_diff", "log_prob", "prob", "kl", "accuracy", "rank")
"""Metrics that a confirmatory run always computes: on a true claim they agree (rule A1 of the method)."""
ROWS_PER_BLOCK = 4096


@dataclass
class Plan:
    """Everything about a sweep but its cells: what `sweep` needs to run and to describe itself."""

    experiment: Experiment
    source: Source
    directions: tuple[Direction, ...]
    gates: GateReport | None
    mode: Mode = "exploratory"
    seed: int = 0
    out: Path | None = None
    progress: Progress | None = None
    extra: dict[str, Any] = field(default_factory=dict)
