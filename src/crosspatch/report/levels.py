"""From the effect table of a sweep to what the figures take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspatch.report.data import Band, Effect, Estimate, Level, Remark
from crosspatch.results.evidence import ALPHA, MIN_EFFECT, RANDOM_DIRECTION, RANDOM_SITE, can_reach, matters

if TYPE_CHECKING:
    import pandas as pd

    from crosspatch.results import Finding, SweepResult

CONTROLS = (RANDOM_SITE, RANDOM_DIRECTION)
"""Kinds of random control, the one to draw first."""


def level_of(result: SweepResult, name: str = "sweep", metric: str | None = None) -> Level:
    """The rows of a sweep under one metric (the primary when None), the other metrics beside it, and its control."""
    metric = metric or result.metrics[0]
    others = {other: effects_of(result, other) for other in result.metrics if other != metric}
    return Level(name, effects_of(result, metric), others, control_band(result, metric), rule_of(result))


def effects_of(result: SweepResult, metric: str | None = None) -> tuple[Effect, ...]:
    """All rows but the random controls."""
    table = result.frame(metric)
    several = table["corruption"].nunique() > 1
    each = {direction: result.effects(direction, metric) for direction in ("denoise", "noise")}
    found = matters(result, table)
    either = found["denoise"] | found["noise"]
    chosen = np.flatnonzero(~result.is_control)
    return tuple(
        replace(
            _effect(table.iloc[i], several),
            each_denoise=each["denoise"][i],
            each_noise=each["noise"][i],
            matters=bool(either[i]),
        )
        for i in chosen
    )


def rule_of(result: SweepResult) -> str:
    """When a row of this sweep matters, in words."""
    tests = result.rows["granularity"][~result.is_control].value_counts()
    small = f"at least {MIN_EFFECT:.0%} of the gap"
    if all(can_reach(result, int(n)) for n in tests):
        return f"corrected p \N{LESS-THAN OR EQUAL TO} {ALPHA}, {small}"
    return f"interval excludes zero, {small}; too few pairs for corrected p-values"


def _effect(row: pd.Series, several: bool) -> Effect:
    return Effect(
        address=row["address"],
        kind=row["kind"],
        layer=_integer(row["layer"]),
        index=_integer(row["index"]),
        position=row["position"],
        denoise=Estimate(row["denoise_effect"], row["denoise_low"], row["denoise_high"], row["denoise_norm"]),
        noise=Estimate(row["noise_effect"], row["noise_low"], row["noise_high"], row["noise_norm"]),
        interaction=Estimate(row["int"], row["int_low"], row["int_high"]),
        gate=row["gate"],
        q_denoise=row["q_denoise"],
        q_noise=row["q_noise"],
        parent=row["parent"],
        corruption=row["corruption"] if several else "",
    )


def _integer(value: Any) -> int | None:
    import pandas as pd

    return None if pd.isna(value) else int(value)


def control_band(result: SweepResult, metric: str | None = None) -> Band:
    """Where the mean effects of the random controls lie, smallest to largest."""
    kinds = result.rows["control"]
    kind = next((k for k in CONTROLS if (kinds == k).any()), None)
    if kind is None:
        return Band()
    table = result.frame(metric)[(kinds == kind).to_numpy()]
    lanes = []
    for direction in ("denoise", "noise"):
        values = table[f"{direction}_effect"].to_numpy(float)
        values = values[np.isfinite(values)]
        lanes.append((float(values.min()), float(values.max())) if values.size else None)
    words = f"spans the mean effects of {len(table)} random controls of the same size ({kind})"
    return Band(lanes[0], lanes[1], words)


def remarks_of(result: SweepResult, findings: Sequence[Finding] | None = None) -> tuple[Remark, ...]:
    """Findings about a table (its own when None), most serious first, with addresses for row numbers.

    Those of one title (the same remark about several levels, say) become one.
    """
    several = result.rows["corruption"].nunique() > 1
    merged: dict[tuple[str, str], Remark] = {}
    for finding in result.findings if findings is None else findings:
        rows = result.rows.iloc[finding.rows]
        suffixes = [f" ({c})" if several and c else "" for c in rows["corruption"]]
        keys = [a + s for a, s in zip(rows["address"], suffixes, strict=True)]
        title = finding.title or finding.code.replace("_", " ").replace("-", " ")
        before = merged.get((finding.severity, title), Remark(finding.severity, title, fix=finding.fix))
        merged[finding.severity, title] = replace(
            before,
            details=tuple(dict.fromkeys((*before.details, finding.text))),
            rows=tuple(dict.fromkeys((*before.rows, *keys))),
        )
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(merged.values(), key=lambda remark: order[remark.severity]))


def baseline(result: SweepResult, side: str, metric: str | None = None) -> Estimate:
    """Mean of the metric on an unpatched run, with its bootstrap interval over examples or clusters."""
    from crosspatch.results import statistics

    values = getattr(result, side)[metric or result.metrics[0]]
    if not np.isfinite(values).any():
        return Estimate()
    seed = result.methodology.seeds.get("statistics", 0)
    sampler = statistics.resampler(len(result.clusters), result.clusters, seed=seed)
    ends = statistics.bootstrap_mean(values[None], sampler)
    return Estimate(float(np.nanmean(values)), float(ends.low[0]), float(ends.high[0]), math.nan)
