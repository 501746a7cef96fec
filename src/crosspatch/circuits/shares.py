"""How much of the gap between the whole model and nothing a circuit accounts for, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from crosspatch.results import statistics
from crosspatch.results.statistics import Resampler

PerExample = Float[np.ndarray, " example"]


@dataclass(frozen=True)
class Share:
    """A share of the gap for each row, with the ends of its 95 % interval; NaN where it is undefined."""

    value: Float[np.ndarray, " row"]
    low: Float[np.ndarray, " row"]
    high: Float[np.ndarray, " row"]


def ratio_of_means(
    effects: Float[np.ndarray, "row example"], gap: PerExample, sampler: Resampler | None = None
) -> Share:
    """Mean effect over mean gap: faithfulness as MIB defines it (Mueller et al. 2025, arXiv 2504.13151, section 3.1).

    With `effects = m(circuit) - m(empty)` and `gap = m(model) - m(empty)` this is
    `f(C) = (m(C) - m(empty)) / (m(N) - m(empty))`, m a mean over examples. Nothing is clipped, and a small gap is not
    guarded against: that is what the gates are for. In the interval an example's effect and gap are drawn together.

    Args:
        effects: per example; NaN = not measured.
        gap: per example.
        sampler: resamples for the interval; without one the ends are NaN.
    """
    value = statistics.ratio_of_means(effects, gap, 0.0)
    if sampler is None:
        return Share(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    ends = statistics.bootstrap_ratio_of_means(effects, gap, sampler, 0.0)
    return Share(value, ends.low, ends.high)


def mean_of_ratios(
    effects: Float[np.ndarray, "row example"], gap: PerExample, sampler: Resampler
) -> tuple[Share, Float[np.ndarray, " row"]]:
    """The mean over examples of effect / gap, and how many examples were left out.

    An example whose |gap| is below a tenth of the median |gap| (`statistics.default_min_gap`) has no share of its own:
    it would divide noise by almost nothing. Both orders of averaging are reported because they can differ much (Miller,
    Chughtai & Saunders 2024, arXiv 2407.08734).
    """
    each = statistics.ratios(effects, gap, statistics.default_min_gap(gap))
    ends = statistics.bootstrap_mean(each, sampler)
    return Share(statistics.means(each), ends.low, ends.high), statistics.left_out(effects, each)


def resampled(
    effects: Float[np.ndarray, "row example"], gap: PerExample, sampler: Resampler
) -> Float[np.ndarray, "draw row"]:
    """`ratio_of_means` in every resample; NaN where the gap of a resample is exactly zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (sampler.weights @ effects.T) / (sampler.weights @ gap)[:, None]
    return np.where(np.isfinite(found), found, np.nan)


def against_random(
    value: Float[np.ndarray, " row"], drawn: Float[np.ndarray, "row draw"]
) -> tuple[Float[np.ndarray, "row 3"], Float[np.ndarray, " row"]]:
    """The band of random circuits (2.5 %, 50 %, 97.5 %), and the p-value of "no better than a random circuit".

    p = (1 + number of draws at least as good) / (1 + number of draws): never 0 (Phipson & Smyth 2010). NaN without
    draws.
    """
    band = np.full((len(value), 3), np.nan)
    p = np.full(len(value), np.nan)
    for row, draws in enumerate(drawn):
        known = draws[~np.isnan(draws)]
        if len(known):
            band[row] = np.quantile(known, [0.025, 0.5, 0.975])
            if not np.isnan(value[row]):
                # Rounding must not decide: a random circuit that is the same circuit is as good.
                p[row] = (1 + (known >= value[row] - 1e-9 * max(1.0, abs(value[row]))).sum()) / (1 + len(known))
    return band, p
