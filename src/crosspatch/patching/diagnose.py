"""The method's checklist, applied to a result: what its numbers do and do not show, in plain words.

Rules A1 to D7 are those of Heimersheim & Nanda 2024 (arXiv 2404.15255) and its neighbours. Every finding has a code
that stays the same, and names the rows it concerns. `whole_checks` looks at the result, `row_checks` at single rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crosspatch.errors import MetricError
from crosspatch.metrics import Metric, resolve_metrics
from crosspatch.patching.case import Case
from crosspatch.patching.row_checks import ROW_CHECKS
from crosspatch.patching.sources import Source
from crosspatch.patching.whole_checks import WHOLE_CHECKS
from crosspatch.results import SEVERITIES, Finding, SweepResult
from crosspatch.results.evidence import matters, size
from crosspatch.tasks import GateReport, Task


def diagnose(
    result: SweepResult,
    *,
    metrics: Sequence[Metric] = (),
    task: Task | None = None,
    gates: GateReport | None = None,
    source: Source | None = None,
) -> list[Finding]:
    """Findings about a result, the gravest first.

    Args:
        result: of a sweep; a loaded one will do.
        metrics: the metrics that were used (default: told from their names).
        task: for the scope sentence.
        gates: what the gates said.
        source: where inserted values came from.
    """
    frame = result.frame()
    case = Case(
        result,
        frame,
        matters(result, frame),
        np.where(result.is_control, 0.0, size(frame)),
        tuple(d for d in ("denoise", "noise") if np.isfinite(frame[f"{d}_effect"]).any()),
        tuple(metrics) or _by_name(result.metrics),
        task,
        gates,
        source,
    )
    found = [finding for check in (*WHOLE_CHECKS, *ROW_CHECKS) for finding in check(case)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _by_name(names: Sequence[str]) -> tuple[Metric, ...]:
    found: list[Metric] = []
    for name in names:
        try:
            found += resolve_metrics(name, companions=False)
        except MetricError:  # a function of the user's own; nothing is known about it
            continue
    return tuple(found)
