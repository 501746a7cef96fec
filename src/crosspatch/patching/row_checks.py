"""Checks of single rows of a result; see `diagnose`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.patching.case import Case
from crosspatch.results import Finding
from crosspatch.results.evidence import control_size

VERB = {"denoise": "restores", "noise": "breaks"}
OVERSHOOT = 0.05
"""How far above 1 a share of the gap may lie before it is flagged."""
DISAGREE = 0.2
"""Difference of shares of the gap between metrics, or between orders of averaging, that is worth a word."""


def redundancy(case: Case) -> Iterator[Finding]:
    """B3, B7: null when noising, not when denoising."""
    if len(case.ran) < 2:
        return
    chosen = case.matters["denoise"] & ~case.matters["noise"] & (case.frame["gate"] == "or-like").to_numpy()
    if chosen.any():
        rows = case.strongest(chosen)
        yield Finding(
            "redundant",
            "note",
            f"{case.named(rows)}: putting the clean value in restores the behaviour, taking it out does not break it "
            "(INT < 0). Something else can do the same work: the null of noising is not absence.",
            rows,
            "Sufficient but not necessary (OR)",
            "look for the backup with conditional()",
        )


def needs_company(case: Case) -> Iterator[Finding]:
    """B3: null when denoising, not when noising."""
    if len(case.ran) < 2:
        return
    chosen = case.matters["noise"] & ~case.matters["denoise"] & (case.frame["gate"] == "and-like").to_numpy()
    if chosen.any():
        rows = case.strongest(chosen)
        yield Finding(
            "needs-company",
            "note",
            f"{case.named(rows)}: taking the value out breaks the behaviour, putting it in alone does not restore it "
            "(INT > 0). It works together with other parts: the null of denoising is not absence.",
            rows,
            "Necessary but not sufficient (AND)",
            "denoise it together with the other necessary parts",
        )


def overshoot(case: Case) -> Iterator[Finding]:
    """B6: more than all of the gap."""
    for direction in case.ran:
        above = case.frame[f"{direction}_norm"].to_numpy(float) > 1 + OVERSHOOT
        rows = case.strongest(above & case.matters[direction])
        if rows:
            yield Finding(
                "overshoot",
                "warning",
                f"{case.named(rows)}: the patch {VERB[direction]} more than the whole gap. As a rule parts that "
                f"work against "
                "the behaviour were left out of the patch, or the metric is curved; it is no sign of a better account.",
                rows,
                f"More than 100 % ({direction})",
                "look at the negative parts, and at kl beside logit_diff",
            )


def negative_parts(case: Case) -> Iterator[Finding]:
    """B6: parts that work against the behaviour."""
    against = np.zeros(len(case.frame), dtype=bool)
    for direction in case.ran:
        against |= case.matters[direction] & (case.frame[f"{direction}_norm"].to_numpy(float) < 0)
    if against.any():
        rows = case.strongest(against)
        yield Finding(
            "negative-parts",
            "note",
            f"{case.named(rows)}: with this part's clean value the behaviour gets weaker. It belongs to the "
            f"account, although "
            "leaving it out would make the account look better than the model.",
            rows,
            "Parts that work against the behaviour",
            "rank by absolute effect as well, and keep them in any circuit",
        )


def above_random(case: Case) -> Iterator[Finding]:
    """An effect that a random control of the same size has too."""
    for direction in case.ran:
        effect = np.abs(case.frame[f"{direction}_effect"].to_numpy(float))
        rows = case.strongest(case.matters[direction] & (effect <= control_size(case.result, direction)))
        if rows:
            yield Finding(
                "not-above-random",
                "warning",
                f"{case.named(rows)}: significant in {direction}, but no larger than the effect of a random control "
                f"(another "
                "site of the same kind, or a random push of equal length at the same site).",
                rows,
                f"Not above random control ({direction})",
                "do not claim that what these parts carry matters here",
            )


def wide_intervals(case: Case) -> Iterator[Finding]:
    """D6: a mean that could as well be nothing."""
    wide = np.zeros(len(case.frame), dtype=bool)
    for direction in case.ran:
        share = np.abs(case.frame[f"{direction}_norm"].to_numpy(float))
        low, high = (case.frame[f"{direction}_{end}"].to_numpy(float) for end in ("low", "high"))
        wide |= (share >= 0.1) & (low <= 0) & (high >= 0) & ~case.result.is_control & (high > low)
    if wide.any():
        rows = case.strongest(wide)
        yield Finding(
            "wide-intervals",
            "warning",
            f"{case.named(rows)}: a tenth of the gap or more on average, but the interval includes zero.",
            rows,
            "Large but uncertain",
            "use more pairs, and look at the examples one by one",
        )


def disagreement(case: Case) -> Iterator[Finding]:
    """A1: metrics that point in opposite directions."""
    names = [name for name in ("logit_diff", "log_prob", "prob", "rank", "accuracy") if name in case.result.metrics]
    if len(names) < 2:
        return
    opposed = np.zeros(len(case.frame), dtype=bool)
    for direction in case.ran:
        shares = np.nan_to_num(np.stack([_shares(case, direction, name) for name in names]))
        opposed |= case.matters[direction] & (shares.max(0) > DISAGREE / 2) & (shares.min(0) < -DISAGREE / 2)
    if opposed.any():
        rows, confirmatory = case.strongest(opposed), case.result.methodology.mode == "confirmatory"
        yield Finding(
            "metrics-disagree",
            "error" if confirmatory else "warning",
            f"{case.named(rows)}: {', '.join(names)} do not agree on whether this part helps."
            + (" A confirmatory run asks that they all do." if confirmatory else ""),
            rows,
            "Metrics disagree",
            "look at answer_logit and wrong_logit to see which of the two moves",
        )


def unspecific(case: Case) -> Iterator[Finding]:
    """KL moves where the logit difference does not."""
    if "kl" not in case.result.metrics or "logit_diff" not in case.result.metrics or "noise" not in case.ran:
        return
    kl, diff = np.abs(_shares(case, "noise", "kl")), np.abs(_shares(case, "noise", "logit_diff"))
    rows = case.strongest((kl > DISAGREE) & (diff < DISAGREE / 4) & ~case.result.is_control)
    if rows:
        yield Finding(
            "kl-without-logit-diff",
            "note",
            f"{case.named(rows)}: noising changes the distribution (KL) but hardly the logit difference. The part "
            f"carries "
            "something that differs between the prompts, but not this choice between answers.",
            rows,
            "Changes something else",
            "look at which tokens change",
        )


def damage(case: Case) -> Iterator[Finding]:
    """A logit difference that rises because the wrong answer falls."""
    if case.primary != "logit_diff" or "answer_logit" not in case.result.metrics or "denoise" not in case.ran:
        return
    answer = np.nanmean(case.result.effects("denoise", "answer_logit"), axis=1)
    helped = case.matters["denoise"] & (
        case.frame["denoise_effect"].to_numpy(float) * np.nanmean(case.result.gap()) > 0
    )
    worse = answer * np.sign(np.nanmean(case.result.gap())) < -0.1 * np.abs(
        case.frame["denoise_effect"].to_numpy(float)
    )
    if "entropy" in case.result.metrics:
        worse &= np.nanmean(case.result.effects("denoise", "entropy"), axis=1) > 0
    rows = case.strongest(helped & worse)
    if rows:
        yield Finding(
            "damage",
            "warning",
            f"{case.named(rows)}: the logit difference rises only because the wrong answer falls; the right answer "
            f"falls too. "
            "A patch that merely damages the corrupt run looks like this.",
            rows,
            "May be damage rather than help",
            "trust log_prob and kl for these rows",
        )


def averaging(case: Case) -> Iterator[Finding]:
    """D5: the order of averaging matters."""
    differs = np.zeros(len(case.frame), dtype=bool)
    for direction in case.ran:
        of_means, mean_of = (case.frame[f"{direction}_{name}"].to_numpy(float) for name in ("norm", "mean_ratio"))
        with np.errstate(invalid="ignore"):
            differs |= case.matters[direction] & (np.abs(of_means - mean_of) > DISAGREE)
    if differs.any():
        rows = case.strongest(differs)
        yield Finding(
            "averaging-order",
            "warning",
            f"{case.named(rows)}: the ratio of means and the mean of ratios differ by more than {DISAGREE:.0%} of "
            f"the gap. A "
            "few examples with small gaps decide the latter.",
            rows,
            "The order of averaging matters",
            "report both, and the spread over examples",
        )


def mixed_signs(case: Case) -> Iterator[Finding]:
    """D6: an average over examples that go both ways."""
    mixed = np.zeros(len(case.frame), dtype=bool)
    for direction in case.ran:
        effects = case.result.effects(direction)  # type: ignore[arg-type]
        limit = 0.1 * np.abs(np.nanmean(case.result.gap()))
        with np.errstate(invalid="ignore"):
            opposite = (np.sign(effects) != np.sign(np.nanmean(effects, axis=1, keepdims=True))) & (
                np.abs(effects) > limit
            )
        mixed |= case.matters[direction] & (opposite.sum(axis=1) >= np.maximum(1, 0.1 * effects.shape[1]))
    if mixed.any():
        rows = case.strongest(mixed)
        yield Finding(
            "mixed-signs",
            "note",
            f"{case.named(rows)}: in a tenth of the examples or more the effect goes the other way by more than a "
            f"tenth of "
            "the gap. The mean hides two kinds of examples.",
            rows,
            "Examples go both ways",
            "look at the worst cases (min and max columns) with their tokens",
        )


def cumulative(case: Case) -> Iterator[Finding]:
    """C2: what a residual patch carries."""
    rows = case.strongest(case.any & (case.frame["granularity"] == "residual").to_numpy())
    if rows:
        yield Finding(
            "cumulative",
            "note",
            "A residual patch carries everything that was written up to there, so its effect is not the share of "
            "one layer.",
            rows,
            "Residual rows are cumulative",
            "drill to blocks and heads for single contributions",
        )


def _shares(case: Case, direction: str, metric: str) -> Float[np.ndarray, " row"]:
    """Mean effect over mean gap under a metric; NaN where the gap is no larger than rounding."""
    gap = float(np.nanmean(case.result.gap(metric)))
    effects: Float[np.ndarray, " row"] = _mean(case.result.effects(direction, metric))  # type: ignore[arg-type]
    return effects / gap if abs(gap) > 1e-9 else np.full(len(effects), np.nan)


def _mean(values: Float[np.ndarray, "row example"]) -> Float[np.ndarray, " row"]:
    measured: Bool[np.ndarray, "row example"] = np.isfinite(values)
    count = measured.sum(axis=1)
    return np.where(count > 0, np.where(measured, values, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


ROW_CHECKS = (
    redundancy,
    needs_company,
    overshoot,
    negative_parts,
    above_random,
    wide_intervals,
    disagreement,
    unspecific,
    damage,
    averaging,
    mixed_signs,
    cumulative,
)
