"""Statistics of effects: per example first, resampled in clusters, vectorised over the rows of a sweep.

Arrays are `[row, example]`; NaN means "not measured" and is left out of every sum. Infinities are measured (the
logarithm of a probability of 0, an overflow in half precision): a mean that holds one is infinite, its interval is
infinite on that side, and where both infinities meet the answer is NaN. An effect is positive when the part helps a
metric of which more is better.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

Values = Float[np.ndarray, "row example"]
PerRow = Float[np.ndarray, " row"]

FLIP_CLUSTERS = 6
"""Fewest clusters worth flipping as wholes: with five, no two-sided p-value is below 1/16."""
EXACT_UNITS = 16
"""Up to this many units every pattern of signs is tried (2^15 by symmetry)."""
TIE = 1e-5
"""Two sums of signed effects this near to each other, relative to the sum of absolute ones, count as equal."""
GATES = ("and-like", "or-like", "additive", "none", "unclear")
"""Gate labels: see `gate_labels`."""

_BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Resampler:
    """Bootstrap weights, drawn once and shared by all rows so that rows stay comparable.

    Attributes:
        weights: how often each example is in each resample.
        unit: what was resampled, `clusters` or `examples`.
        n_units: how many of these there are; below two there is no interval.
    """

    weights: Float[np.ndarray, "draw example"]
    unit: str
    n_units: int


@dataclass(frozen=True)
class Interval:
    """Lower and upper end per row; NaN where there is none."""

    low: PerRow
    high: PerRow


def resampler(n_examples: int, clusters: Sequence[str] | None = None, *, draws: int = 2000, seed: int = 0) -> Resampler:
    """Resample whole clusters (examples that share a template); examples where there are not two clusters."""
    labels = _labels(clusters, n_examples)
    unit = "clusters" if clusters is not None and labels.max(initial=0) > 0 else "examples"
    if unit == "examples":
        labels = np.arange(n_examples)
    n_units = int(labels.max(initial=-1)) + 1
    counts = np.random.default_rng(seed).multinomial(n_units, np.full(n_units, 1 / max(n_units, 1)), size=draws)
    return Resampler(counts[:, labels].astype(np.float64), unit, n_units)


def bootstrap_mean(values: Values, sampler: Resampler, level: float = 0.95) -> Interval:
    """Interval of the mean over examples of each row (see `_expanded` for the kind)."""
    return _intervals(values, sampler, level, lambda total, count, _: total / count)


def bootstrap_ratio_of_means(
    effects: Values, gap: Float[np.ndarray, " example"], sampler: Resampler, min_gap: float, level: float = 0.95
) -> Interval:
    """Interval of `ratio_of_means`: effect and gap of one example always enter together."""

    def ratio(total: np.ndarray, count: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        return np.where((np.abs(gaps) >= min_gap * count) & (gaps != 0), total / gaps, np.nan)

    return _intervals(effects, sampler, level, ratio, gap)


def _intervals(
    values: Values,
    sampler: Resampler,
    level: float,
    statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    denominator: Float[np.ndarray, " example"] | None = None,
) -> Interval:
    """Quantiles of `statistic(sum of values, number of examples, sum of denominators)` over resamples `[row, draw]`."""
    weights = sampler.weights.T
    low, high = np.full(len(values), np.nan), np.full(len(values), np.nan)
    if sampler.n_units < 2:
        return Interval(low, high)
    divisor = np.ones(values.shape[1]) if denominator is None else denominator
    measured = ~np.isnan(values) & np.isfinite(divisor)
    for rows in _blocks(len(values), weights.shape[1]):
        used = measured[rows]
        filled, shared = np.where(used, values[rows], 0), used[:1] if (used == used[:1]).all() else used
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = statistic(_sums(filled, weights), shared @ weights, np.where(shared, divisor, 0) @ weights)
        ends = interval_of(drawn, sampler, level)
        low[rows], high[rows] = ends.low, ends.high
    return Interval(low, high)


def interval_of(drawn: Float[np.ndarray, "row draw"], sampler: Resampler, level: float = 0.95) -> Interval:
    """Interval of a statistic from its value in every resample (kind: see `_expanded`); NaN = undefined there."""
    if sampler.n_units < 2:
        return Interval(np.full(len(drawn), np.nan), np.full(len(drawn), np.nan))
    tail = _expanded(level, sampler.n_units)
    # With more undefined resamples than the interval leaves out, nothing can be said.
    known = np.isnan(drawn).mean(axis=1) <= 1 - level
    low, high = np.where(known, _quantiles(drawn, [tail, 1 - tail]), np.nan)
    return Interval(low, high)


def _sums(values: Values, weights: Float[np.ndarray, "example draw"]) -> Float[np.ndarray, "row draw"]:
    """Weighted sums: infinite where an infinite value has a weight, NaN where both infinities have."""
    infinite = np.isinf(values)
    sums: np.ndarray = np.where(infinite, 0, values) @ weights
    if infinite.any():
        up, down = (np.equal(values, end).astype(float) @ weights > 0 for end in (np.inf, -np.inf))
        sums = np.select([up & down, up, down], [np.nan, np.inf, -np.inf], sums)
    return sums


def _expanded(level: float, n_units: int) -> float:
    """Tail of the expanded percentile interval, which makes up for a small sample.

    Plain percentiles are too narrow by sqrt((n-1)/n) and use normal instead of t quantiles (Hesterberg 2015, What
    Teachers Should Know About the Bootstrap, section 5.1.3).
    """
    t = stats.t.ppf((1 + level) / 2, n_units - 1)
    return float(stats.norm.cdf(-np.sqrt(n_units / (n_units - 1)) * t))


def _quantiles(values: Float[np.ndarray, "row draw"], at: Sequence[float]) -> Float[np.ndarray, "at row"]:
    """Linearly interpolated quantiles of each row without its NaN, as `numpy.nanquantile`, which is far slower."""
    ordered = np.sort(values, axis=1)  # NaN go last
    last = np.maximum((~np.isnan(ordered)).sum(axis=1) - 1, 0)
    place = np.multiply.outer(np.asarray(at), last)
    below = np.floor(place).astype(int)
    row = np.arange(len(values))
    start, end = ordered[row, below], ordered[row, np.minimum(below + 1, last)]
    share = place - below
    with np.errstate(invalid="ignore"):  # from one infinity to the other there is no number in between
        between = np.where(np.isfinite(start), start + share * (end - start), (1 - share) * start + share * end)
    return np.where(share > 0, between, start)


def _blocks(n_rows: int, n_draws: int) -> Iterator[slice]:
    size = max(1, _BLOCK_BYTES // (8 * max(n_draws, 1)))
    return (slice(start, start + size) for start in range(0, n_rows, size))


def _labels(clusters: Sequence[str] | None, n_examples: int) -> Int[np.ndarray, " example"]:
    if clusters is None:
        return np.arange(n_examples)
    return np.unique(np.asarray(clusters, dtype=str), return_inverse=True)[1]


def sign_flip_p(
    values: Values,
    clusters: Sequence[str] | None = None,
    *,
    draws: int = 20_000,
    seed: int = 0,
    rounding: float = 0.0,
) -> PerRow:
    """Two-sided p-value of "the effect is symmetric around zero", by flipping signs of examples.

    Whole clusters are flipped where there are at least `FLIP_CLUSTERS`. All patterns of signs are tried up to
    `EXACT_UNITS` units; beyond, `draws` random ones and the observed one (Phipson & Smyth 2010), so p is never 0.
    Sums that differ by no more than rounding are ties and count as reached, which can only make p larger.

    Args:
        rounding: how far a value may be off, in its own unit, where that is more than its size says: effects are
            differences of larger numbers. A row of which no value is larger has p 1.

    Returns:
        One p per row; NaN where nothing was measured or a value is infinite (no sum of signs compares with it), 1 where
        nothing changed.
    """
    labels = flip_units(values.shape[1], clusters)
    n_units = int(labels.max(initial=-1)) + 1
    tested = ~np.isnan(values).all(axis=1) & ~np.isinf(values).any(axis=1)
    sums = np.where(np.isfinite(values), values, 0) @ np.eye(n_units)[labels]
    signs = _signs(n_units, draws, seed)
    exact = n_units <= EXACT_UNITS
    p = np.empty(len(values))
    for rows in _blocks(len(values), len(signs)):
        observed = np.abs(sums[rows].sum(axis=1))
        # Effects are float32 numbers: sums that are equal in exact arithmetic differ by some units of its epsilon
        # (1.2e-7), in one direction with one batch size and in the other with the next. An exact count would let that
        # decide whether they reach the observed sum, and p would jump by as many patterns as tie.
        slack = TIE * np.abs(sums[rows]).sum(axis=1) + rounding * np.isfinite(values[rows]).sum(axis=1)
        flipped = sums[rows] @ signs.T
        np.abs(flipped, out=flipped)
        reached = np.count_nonzero(flipped >= (observed - slack)[:, None], axis=1)
        p[rows] = reached / len(signs) if exact else (reached + 1) / (len(signs) + 1)
    return np.where(tested, p, np.nan)


def flip_units(n_examples: int, clusters: Sequence[str] | None = None) -> Int[np.ndarray, " example"]:
    """The unit that each example is flipped with: its cluster where there are enough of them, else itself."""
    labels = _labels(clusters, n_examples)
    return labels if labels.max(initial=-1) + 1 >= FLIP_CLUSTERS else np.arange(n_examples)


def smallest_p(n_units: int, draws: int = 20_000) -> float:
    """The smallest p-value that `sign_flip_p` can give: what a family of tests must be measured against."""
    return 2.0 ** (1 - n_units) if n_units <= EXACT_UNITS else 1 / (draws + 1)


def _signs(n_units: int, draws: int, seed: int) -> Float[np.ndarray, "draw unit"]:
    """Patterns of +1 and -1. The exact set holds one of each pattern and its opposite, which has the same |sum|."""
    if n_units > EXACT_UNITS:
        return np.random.default_rng(seed).integers(0, 2, (draws, n_units)) * 2.0 - 1
    patterns = np.arange(2 ** max(n_units - 1, 0))[:, None] >> np.arange(n_units) & 1
    return 1.0 - 2 * patterns


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p-values (false discovery rate, Benjamini & Hochberg 1995); NaN are not tests and stay NaN."""
    q = np.full(len(p), np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return q


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p-values (family-wise error rate, Holm 1979); NaN are not tests and stay NaN."""
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def interaction(noise_effect: Values, denoise_effect: Values) -> Values:
    """`INT = noise - denoise = f(c,c) - f(k,c) - f(c,k) + f(k,k)` per example.

    f(x, y) is the metric with the part's value from run x and all else from run y (c clean, k corrupt). Positive: the
    part needs company. Negative: something else can do its work. Read it on metrics that are linear in the logits.
    """
    return minus(noise_effect, denoise_effect)


def minus(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a - b`; NaN where both are the same infinity, whose difference nothing is known of."""
    with np.errstate(invalid="ignore"):
        return a - b


def gate_labels(
    between: Interval, denoise: Interval, noise: Interval, gap: float, tolerance: float = 0.02
) -> list[str]:
    """What each part's interaction looks like, one of `GATES`, empty where a direction was not run.

    Judged by intervals (`between` is that of INT) against a band of `tolerance * |gap|` around zero, with signs turned
    so that the gap (mean clean - mean corrupt) is positive. `none`: both effects lie in the band. `additive`: INT lies
    in the band. `and-like`: INT > 0. `or-like`: INT < 0. `unclear`: INT may be zero and may lie outside the band. An
    infinite gap is no yardstick: no label.
    """
    band = tolerance * abs(gap)
    rules: list[tuple[str, Bool[np.ndarray, " row"]]] = [
        ("", np.isnan(denoise.low) | np.isnan(noise.low) | np.isnan(between.low) | (not np.isfinite(gap))),
        ("none", _within(denoise, band) & _within(noise, band)),
        ("additive", _within(between, band)),
        ("and-like", (between.low if gap > 0 else -between.high) > 0),
        ("or-like", (between.high if gap > 0 else -between.low) < 0),
    ]
    chosen = np.select([rule for _, rule in rules], [label for label, _ in rules], "unclear")
    return [str(label) for label in chosen]


def _within(interval: Interval, band: float) -> Bool[np.ndarray, " row"]:
    return (interval.low >= -band) & (interval.high <= band)


def default_min_gap(gap: Float[np.ndarray, " example"]) -> float:
    """A tenth of the median |clean - corrupt|: below it an example's share of the gap says more of the gap."""
    finite = gap[np.isfinite(gap)]
    return float(0.1 * np.median(np.abs(finite))) if len(finite) else 0.0


def ratio_of_means(effects: Values, gap: Float[np.ndarray, " example"], min_gap: float) -> PerRow:
    """Mean effect over mean gap: the share of the gap that moved; NaN where the mean gap is below `min_gap`."""
    measured = ~np.isnan(effects) & np.isfinite(gap)
    mean_gap = means(np.where(measured, gap, np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = means(np.where(measured, effects, np.nan)) / mean_gap
    return np.where((np.abs(mean_gap) >= min_gap) & (mean_gap != 0), share, np.nan)


def share_of_total(
    effects: Values, total: Float[np.ndarray, " example"], sampler: Resampler
) -> tuple[PerRow, Interval]:
    """`ratio_of_means` with its interval; NaN where the interval of the mean total holds zero.

    There the ratio has no bounded confidence set (Fieller 1954): a total near zero makes shares of any size.
    """
    low, high = (float(end[0]) for end in vars(bootstrap_mean(total[None], sampler)).values())
    if low <= 0 <= high:
        nothing = np.full(len(effects), np.nan)
        return nothing, Interval(nothing, nothing)
    return ratio_of_means(effects, total, 0.0), bootstrap_ratio_of_means(effects, total, sampler, 0.0)


def ratios(effects: Values, gap: Float[np.ndarray, " example"], min_gap: float) -> Values:
    """Effect over gap per example; NaN (not infinite) where |gap| < `min_gap`. Its mean is the mean of ratios.

    The two orders of averaging can differ much (Miller, Chughtai & Saunders 2024); report both.
    """
    usable = np.isfinite(gap) & (np.abs(gap) >= min_gap) & (gap != 0)
    return np.where(usable, effects, np.nan) / np.where(usable, gap, 1)


def left_out(effects: Values, shares: Values) -> Int[np.ndarray, " row"]:
    """How many measured examples of each row have no share of the gap because their gap is too small."""
    return (~np.isnan(effects) & np.isnan(shares)).sum(axis=1)


def describe(values: Values) -> dict[str, np.ndarray]:
    """Mean, spread and extremes over examples: effect, sd, min, q25, median, q75, max, n."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows without a value, whose NaN is the answer
        sd = np.nanstd(values, axis=1, ddof=1)
    low, q25, median, q75, high = _quantiles(values, [0, 0.25, 0.5, 0.75, 1])
    return {
        "effect": means(values),
        "sd": sd,
        "min": low,
        "q25": q25,
        "median": median,
        "q75": q75,
        "max": high,
        "n": (~np.isnan(values)).sum(axis=1),
    }


def worst_cases(values: Float[np.ndarray, " example"], n: int = 5) -> list[int]:
    """The examples of one row with the smallest values, worst first."""
    order = np.argsort(values, kind="stable")
    return [int(example) for example in order[~np.isnan(values[order])][:n]]


def means(values: np.ndarray[Any, Any]) -> PerRow:
    """Mean over the examples of each row that were measured; NaN where there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=1)
