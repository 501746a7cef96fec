"""The effect table: raw metric values per intervention and example, and everything that is derived from them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from crosspatch.errors import ResultError
from crosspatch.results import statistics
from crosspatch.results.methodology import Methodology, require_comparable

Direction = Literal["denoise", "noise"]
DIRECTIONS: tuple[Direction, Direction] = ("denoise", "noise")
SIDES = ("clean", "corrupt")
SEVERITIES = ("error", "warning", "note")
_ROUNDING = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}
"""How far the metrics of one unpatched run lie apart when it is computed again, in other batches or threads."""
COLUMNS = ("address", "kind", "layer", "index", "position", "granularity", "parent", "corruption", "control")
"""Columns of `SweepResult.rows`. `control` is empty, or the kind of random control that the row is."""


@dataclass(frozen=True)
class Finding:
    """What the diagnosis says, and which rows of the table it concerns (none: the whole result).

    Args:
        code: stable short name, for scripts.
        severity: `error`, `warning` or `note`.
        text: one or two plain sentences.
        rows: row numbers.
        title: a few words.
        fix: what can be done about it.
    """

    code: str
    severity: str
    text: str
    rows: list[int] = field(default_factory=list)
    title: str = ""
    fix: str = ""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ResultError(
                f"severity {self.severity!r}", where=f"finding {self.code}", fix=f"use one of {', '.join(SEVERITIES)}"
            )
        object.__setattr__(self, "rows", [int(row) for row in self.rows])  # numpy integers are no JSON


@dataclass(eq=False)
class SweepResult:
    """What a sweep measured.

    Attributes:
        rows: one row per intervention, with `COLUMNS` (parent, corruption and control may be left out when empty).
        denoise, noise: metric -> values of the patched run `[row, example]`; NaN = not run. A metric may be missing
            from one of them when that direction was not run.
        clean, corrupt: metric -> values of the two unpatched runs `[example]`. The first metric is the primary one.
        clusters: for each example the name of what it shares with others, as a rule its template.
        methodology: how this was made.
        findings: what the diagnosis says.
        cost: what it took, name to number (seconds, forward-equivalents, ...).

    Raises:
        ResultError: sizes or names that do not fit together.
    """

    rows: pd.DataFrame
    denoise: dict[str, Float[np.ndarray, "row example"]]
    noise: dict[str, Float[np.ndarray, "row example"]]
    clean: dict[str, Float[np.ndarray, " example"]]
    corrupt: dict[str, Float[np.ndarray, " example"]]
    clusters: list[str]
    methodology: Methodology
    findings: list[Finding] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    _frames: dict[bytes, pd.DataFrame] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.rows = _tidy_rows(self.rows)
        metrics, shape = list(self.clean), (len(self.rows), len(self.clusters))
        for direction in DIRECTIONS:
            values: Mapping[str, np.ndarray] = getattr(self, direction)
            _known(values, metrics, direction)
            full = {m: np.asarray(values[m], np.float64) if m in values else np.full(shape, np.nan) for m in metrics}
            setattr(self, direction, full)
            _sized(full, shape, direction)
        for side in SIDES:
            base = {metric: np.asarray(value, np.float64) for metric, value in getattr(self, side).items()}
            _known(base, metrics, side)
            _sized(base, shape[1:], side)
            setattr(self, side, base)
        self.cost = {name: float(value) for name, value in self.cost.items()}
        if not metrics or self.corrupt.keys() != self.clean.keys():
            raise ResultError("clean and corrupt need values of the same metrics, at least one", where="SweepResult")
        rows = [row for finding in self.findings for row in finding.rows]
        if rows and not 0 <= min(rows) <= max(rows) < len(self.rows):
            raise ResultError(f"a finding names row {max(rows)} of {len(self.rows)}", where="findings")

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, the primary one first."""
        return list(self.clean)

    @property
    def is_control(self) -> Bool[np.ndarray, " row"]:
        """Rows that are random controls: in the table, but in no ranking and no family of tests."""
        return self.rows["control"].ne("").to_numpy()

    def gap(self, metric: str | None = None) -> Float[np.ndarray, " example"]:
        """Clean minus corrupt value of the unpatched runs."""
        metric = self._metric(metric)
        return statistics.minus(self.clean[metric], self.corrupt[metric])

    def effects(self, direction: Direction, metric: str | None = None) -> Float[np.ndarray, "row example"]:
        """Effect per example: denoise - corrupt, or clean - noise; both go the way of the gap where a part helps."""
        metric = self._metric(metric)
        if direction == "denoise":
            return statistics.minus(self.denoise[metric], self.corrupt[metric])
        return statistics.minus(self.clean[metric], self.noise[metric])

    def frame(
        self, metric: str | None = None, *, tolerance: float = 0.02, min_gap: float | None = None, level: float = 0.95
    ) -> pd.DataFrame:
        """The tidy table of one metric (the primary one when None): one row per intervention.

        Columns beside those of `rows` and `metric`; the first four groups for d in `denoise`, `noise`:

        - `d_effect`, `d_low`, `d_high`: mean over examples and its bootstrap interval;
          `d_sd`, `d_min`, `d_q25`, `d_median`, `d_q75`, `d_max`, `d_n`: spread over examples.
        - `d_norm`, `d_norm_low`, `d_norm_high`: ratio of means, the share of the gap.
        - `d_mean_ratio`, `d_mean_ratio_low`, `d_mean_ratio_high`, `d_left_out`: mean of ratios, and how many examples
          it leaves out because their gap is too small.
        - `p_d`, `q_d`: sign-flip test, and its false-discovery rate among the rows of one granularity.
        - `int`, `int_low`, `int_high`, `gate`: interaction and its label.

        `frame.attrs` says what was resampled and the thresholds.

        Args:
            metric: name of the metric.
            tolerance: width of the band of `statistics.gate_labels`, as a share of the gap.
            min_gap: smallest |clean - corrupt| that effects are divided by; see `statistics.default_min_gap`.
            level: of the intervals.

        Raises:
            ResultError: no such metric.
        """
        metric = self._metric(metric)
        min_gap = statistics.default_min_gap(self.gap(metric)) if min_gap is None else min_gap
        settings = {"metric": metric, "level": level, "min_gap": min_gap, "tolerance": tolerance}
        key = self._fingerprint(settings)
        if key not in self._frames:
            self._frames[key] = self._derive(metric, tolerance, min_gap, level)
        derived = self._frames[key]
        table = pd.concat([self.rows, derived], axis=1)
        table.attrs = settings | derived.attrs
        return table

    def _derive(self, metric: str, tolerance: float, min_gap: float, level: float) -> pd.DataFrame:
        """The columns that `frame` adds to `rows`."""
        gap, seed = self.gap(metric), self.methodology.seeds.get("statistics", 0)
        sampler = statistics.resampler(len(self.clusters), self.clusters, seed=seed)
        columns: dict[str, object] = {"metric": metric}
        means: dict[Direction, statistics.Interval] = {}
        for direction in DIRECTIONS:
            effects = self.effects(direction, metric)
            means[direction] = statistics.bootstrap_mean(effects, sampler, level)
            described = statistics.describe(effects)
            columns |= {f"{direction}_effect": described.pop("effect")} | _ends(direction, means[direction])
            columns |= {f"{direction}_{name}": value for name, value in described.items()}
            columns[f"{direction}_norm"] = statistics.ratio_of_means(effects, gap, min_gap)
            ratio = statistics.bootstrap_ratio_of_means(effects, gap, sampler, min_gap, level)
            columns |= _ends(f"{direction}_norm", ratio)
            shares = statistics.ratios(effects, gap, min_gap)
            columns[f"{direction}_mean_ratio"] = statistics.describe(shares)["effect"]
            columns |= _ends(f"{direction}_mean_ratio", statistics.bootstrap_mean(shares, sampler, level))
            columns[f"{direction}_left_out"] = statistics.left_out(effects, shares)
            p = statistics.sign_flip_p(effects, self.clusters, seed=seed)
            columns |= {f"p_{direction}": p, f"q_{direction}": self._corrected(p)}
        int_values = statistics.interaction(self.effects("noise", metric), self.effects("denoise", metric))
        between = statistics.bootstrap_mean(int_values, sampler, level)
        columns |= {"int": statistics.describe(int_values)["effect"]} | _ends("int", between)
        mean_gap = float(statistics.means(gap[None])[0])
        columns["gate"] = statistics.gate_labels(between, means["denoise"], means["noise"], mean_gap, tolerance)
        derived = pd.DataFrame(columns, index=self.rows.index)
        derived.attrs = {"resampled": sampler.unit, "n_units": sampler.n_units}
        return derived

    def _fingerprint(self, settings: dict[str, Any]) -> bytes:
        """Changes with anything that `_derive` reads, so that a frame is computed once and never stale."""
        digest = hashlib.blake2b(repr((settings, self.clusters, self.methodology.seeds)).encode())
        digest.update(repr(self.rows[["granularity", "control"]].to_numpy().tolist()).encode())
        for values in (self.denoise, self.noise, self.clean, self.corrupt):
            digest.update(values[settings["metric"]].tobytes())
        return digest.digest()

    def wide(self) -> pd.DataFrame:
        """One row per intervention, the columns of `frame` for every metric as `<metric>.<column>`."""
        known = [*self.rows, "metric"]
        derived = [self.frame(m).drop(columns=known).add_prefix(f"{m}.") for m in self.metrics]
        return pd.concat([self.rows, *derived], axis=1)

    def long(self) -> pd.DataFrame:
        """One row per intervention, example, metric and direction that was run.

        Columns: those of `rows`, then `row` (its number), `example`, `cluster`, `metric`, `direction`, `value` (of the
        patched run) and `effect`.
        """
        pieces = []
        for metric in self.metrics:
            for direction in DIRECTIONS:
                values, effects = getattr(self, direction)[metric], self.effects(direction, metric)
                row, example = np.nonzero(~np.isnan(values))
                piece = self.rows.iloc[row].assign(
                    row=row,
                    example=example,
                    cluster=np.asarray(self.clusters, dtype=object)[example],
                    metric=metric,
                    direction=direction,
                    value=values[row, example],
                    effect=effects[row, example],
                )
                pieces.append(piece)
        return pd.concat(pieces, ignore_index=True)

    def top(self, n: int = 10, metric: str | None = None, granularity: str | None = None) -> pd.DataFrame:
        """The `n` rows of `frame` with the largest absolute effect in either direction, controls left out.

        Args:
            n: how many.
            metric: name of the metric (the primary one when None).
            granularity: only rows of this one; the residual stream, which carries all that came before, else wins.
        """
        table = self.frame(metric)[~self.is_control]
        if granularity is not None:
            if granularity not in set(table["granularity"]):
                raise ResultError(
                    f"no rows of granularity {granularity!r}",
                    where="top",
                    fix=f"use one of {', '.join(sorted(set(table['granularity'])))}",
                )
            table = table[table["granularity"] == granularity]
        size = table[["denoise_effect", "noise_effect"]].abs().max(axis=1)
        return table.loc[size.sort_values(ascending=False, kind="stable").index[:n]]

    def compare(self, other: SweepResult, metric: str | None = None, ignore: Collection[str] = ()) -> pd.DataFrame:
        """Two results side by side (suffixes `_a`, `_b`); rows that only one of them has are kept, with NaN.

        Args:
            other: the result to set beside this one.
            metric: name of a metric that both have (the primary one when None).
            ignore: fields of the methodology that may differ.

        Raises:
            ResultError: the methodologies differ; names the fields.
        """
        metric = self._metric(metric)
        require_comparable(self.methodology, other.methodology, {*ignore, "metrics"})
        keys = ["address", "kind", "layer", "index", "position", "granularity", "corruption"]
        columns = [f"{d}_{c}" for d in DIRECTIONS for c in ("effect", "low", "high", "norm")]
        columns += ["q_denoise", "q_noise", "int", "int_low", "int_high", "gate"]
        a, b = (result.frame(metric).loc[~result.is_control, keys + columns] for result in (self, other))
        return a.merge(b, on=keys, how="outer", suffixes=("_a", "_b"), sort=False)

    def save(self, folder: str | Path) -> Path:
        """Write to a folder, atomically; see `results.io.save_result`."""
        from crosspatch.results.io import save_result

        return save_result(self, folder)

    @staticmethod
    def load(folder: str | Path) -> SweepResult:
        """Read from a folder; see `results.io.load_result`."""
        from crosspatch.results.io import load_result

        return load_result(folder)

    @staticmethod
    def concat(results: Sequence[SweepResult]) -> SweepResult:
        """The levels of a drill as one table: same model, pairs and methodology, other parts patched.

        The unpatched runs must be the same up to rounding in the model's dtype; those of the first are kept.

        Raises:
            ResultError: the results differ in more than which parts they patched; names the fields.
        """
        if not results:
            raise ResultError("nothing to concatenate", where="SweepResult.concat", fix="pass at least one result")
        first = results[0]
        rounding = _ROUNDING.get(first.methodology.dtype, _ROUNDING["float32"])
        parts = ("granularity", "component", "positions")
        for other in results[1:]:
            require_comparable(first.methodology, other.methodology, parts)
            same = other.clusters == first.clusters and all(
                _same(getattr(first, side)[metric], getattr(other, side)[metric], rounding)
                for side in SIDES
                for metric in first.metrics
            )
            if not same:
                raise ResultError(
                    "the unpatched runs differ",
                    where="SweepResult.concat",
                    fix="concatenate only sweeps of the same clean and corrupt runs",
                )
        union: dict[str, Any] = {
            name: tuple(dict.fromkeys(item for r in results for item in getattr(r.methodology, name))) for name in parts
        }
        findings, cost, start = [], Counter[str](), 0
        for result in results:
            findings += [dataclasses.replace(f, rows=[start + row for row in f.rows]) for f in result.findings]
            cost.update(result.cost)
            start += len(result.rows)
        return SweepResult(
            rows=pd.concat([r.rows for r in results], ignore_index=True),
            denoise={m: np.concatenate([r.denoise[m] for r in results]) for m in first.metrics},
            noise={m: np.concatenate([r.noise[m] for r in results]) for m in first.metrics},
            clean=first.clean,
            corrupt=first.corrupt,
            clusters=first.clusters,
            methodology=dataclasses.replace(first.methodology, **union),
            findings=findings,
            cost=dict(cost),
        )

    def _metric(self, metric: str | None) -> str:
        if metric is not None and metric not in self.clean:
            raise ResultError(
                f"no metric {metric!r} in this result", where="metric", fix=f"use one of {', '.join(self.metrics)}"
            )
        return self.metrics[0] if metric is None else metric

    def _corrected(self, p: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
        """False-discovery correction within each granularity; a drill tests the next level only under what it found."""
        q = np.full(len(p), np.nan)
        for granularity in self.rows["granularity"].unique():
            family = (self.rows["granularity"] == granularity).to_numpy() & ~self.is_control
            q[family] = statistics.benjamini_hochberg(p[family])
        return q


def _same(a: np.ndarray, b: np.ndarray, rounding: float) -> bool:
    scale = np.abs(a[np.isfinite(a)]).max(initial=1.0)
    return np.allclose(a, b, rtol=0, atol=rounding * scale, equal_nan=True)


def _ends(name: str, interval: statistics.Interval) -> dict[str, np.ndarray]:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _tidy_rows(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.reset_index(drop=True)
    missing = [name for name in COLUMNS[:6] if name not in rows]
    if missing:
        raise ResultError(f"the rows have no column {missing[0]!r}", where="rows", fix=f"give {', '.join(COLUMNS[:6])}")
    for name in COLUMNS:
        if name in ("layer", "index"):
            rows[name] = rows[name].astype("Int64")
        else:
            texts = rows[name].astype(object).fillna("") if name in rows else pd.Series("", rows.index)
            rows[name] = texts.map(str).astype(object)
    return rows[[*COLUMNS, *(name for name in rows if name not in COLUMNS)]]


def _known(values: Mapping[str, np.ndarray], metrics: list[str], where: str) -> None:
    unknown = [metric for metric in values if metric not in metrics]
    if unknown:
        said = f"metric {unknown[0]!r} has no clean values"
        raise ResultError(said, where=where, fix="give its values of the clean and the corrupt run")


def _sized(values: Mapping[str, np.ndarray], shape: tuple[int, ...], where: str) -> None:
    for metric, value in values.items():
        if value.shape != shape:
            names = "[row, example]" if len(shape) == 2 else "[example]"
            raise ResultError(
                f"values of {metric!r} have shape {list(value.shape)}, expected {list(shape)} {names}", where=where
            )
