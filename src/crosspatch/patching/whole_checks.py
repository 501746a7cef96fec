"""Checks of a result as a whole; see `diagnose`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from crosspatch.patching.case import Case
from crosspatch.patching.sources import OtherRun
from crosspatch.results import Finding
from crosspatch.results.evidence import ALPHA, MIN_EFFECT, can_reach, n_units
from crosspatch.results.statistics import smallest_p


def scope(case: Case) -> Iterator[Finding]:
    """A6, A8: a result is about one difference, on one set of prompts."""
    method, task = case.result.methodology, case.task
    varies = f"the difference in {task.varies}" if task and task.varies else "what differs between clean and corrupt"
    holds = (
        f" Parts that respond only to what is held fixed ({task.holds}) stay invisible." if task and task.holds else ""
    )
    n_templates = len(set(case.result.clusters))
    yield Finding(
        "scope",
        "note",
        f"These effects are about {varies}, on {method.n_examples} pairs of {method.task!r} from {n_templates} "
        f"template{'s' if n_templates != 1 else ''}; they say nothing about other prompts.{holds} "
        "Patching does not show that a set of parts is minimal.",
        title="What this is about",
    )


def forced(case: Case) -> Iterator[Finding]:
    """A4, A5: the gates said no."""
    if case.result.methodology.forced:
        codes = ", ".join(dict.fromkeys(f.code for f in case.gates.failures)) if case.gates else "see the gates"
        yield Finding(
            "forced",
            "error",
            f"A gate failed ({codes}) and the run went on with force=True. The numbers may mean nothing.",
            title="Gates were overruled",
            fix="repair the task until the gates pass",
        )


def few_examples(case: Case) -> Iterator[Finding]:
    """D6: too few examples for the tests that were made."""
    n_tests = int((~case.result.is_control).sum())
    if can_reach(case.result, n_tests):
        return
    units = n_units(case.result)
    yield Finding(
        "few-examples",
        "warning",
        f"With {units} independent examples no p-value can be below {smallest_p(units):.2g}, which {n_tests} tests "
        f"corrected together cannot turn into q <= {ALPHA} for a single part. Parts are judged by their bootstrap "
        "interval instead, which does not correct for their number.",
        title="Too few examples for corrected p-values",
        fix="use at least 16 pairs (and six or more templates, if pairs share templates)",
    )


def one_template(case: Case) -> Iterator[Finding]:
    """A8: one sentence frame."""
    if len(set(case.result.clusters)) == 1 and len(case.result.clusters) > 1:
        yield Finding(
            "one-template",
            "warning",
            "All pairs share one template, so that effects of the template and of the behaviour cannot be told "
            "apart, and "
            "intervals cover new words only, not new sentences.",
            title="One template only",
            fix="use pairs of several templates",
        )


def one_direction(case: Case) -> Iterator[Finding]:
    """B3: denoising and noising answer different questions."""
    if len(case.ran) == 1:
        blind = "parts that need company (AND)" if case.ran[0] == "denoise" else "parts with a backup (OR)"
        other = "noise" if case.ran[0] == "denoise" else "denoise"
        yield Finding(
            "one-direction",
            "note",
            f"Only {case.ran[0]} was run, which is blind to {blind}; INT and gate labels need both directions.",
            title="One direction only",
            fix=f"run direction='both' to add {other}, with the paired prompt as source",
        )


def no_linear_metric(case: Case) -> Iterator[Finding]:
    """D1: curved metrics make interactions of their own."""
    if case.metrics and not any(metric.linear for metric in case.metrics):
        primary = case.metrics[0]
        yield Finding(
            "no-linear-metric",
            "warning",
            f"None of the metrics is linear in the logits, so INT and sums of effects contain the metric's own curve. "
            f"Known failure of {primary.name}: {primary.known_failure}.",
            title="No metric is linear in the logits",
            fix="add metrics='logit_diff'",
        )


def probability_only(case: Case) -> Iterator[Finding]:
    """Probability is exponential in the logits."""
    if case.result.metrics and all(name in ("prob", "prob_diff") for name in case.result.metrics):
        yield Finding(
            "probability-only",
            "warning",
            "Probability is the only metric. It overstates changes near the threshold, hides them elsewhere, and "
            "misses "
            "parts that work against the answer when the corrupt probability is near 0.",
            title="Probability only",
            fix="add logit_diff and log_prob",
        )


def saturation(case: Case) -> Iterator[Finding]:
    """A metric at the end of its range cannot show more."""
    result = case.result
    if case.primary not in ("prob", "log_prob", "prob_diff", "accuracy"):
        return
    value = np.exp(result.clean["log_prob"]) if case.primary == "log_prob" else result.clean[case.primary]
    top = float(np.mean(value > 0.9))
    if top >= 0.5:
        yield Finding(
            "saturation",
            "warning",
            f"{case.primary} is near the end of its range on {top:.0%} of the clean prompts: noising one part of "
            f"several "
            "can leave it there, and denoising cannot show more than the gap.",
            title="The metric is saturated",
            fix="rank by logit_diff",
        )


def end_only(case: Case) -> Iterator[Finding]:
    """C3: what happens before the last token stays out of sight."""
    positions = set(case.frame["position"])
    if positions <= {"END", "-1"}:
        yield Finding(
            "end-only",
            "note",
            "Only the last position was patched. Early computation at the words that differ is out of sight.",
            title="Last position only",
            fix="patch all roles (positions='roles')",
        )


def small_denominators(case: Case) -> Iterator[Finding]:
    """D5: shares of a gap that is not there."""
    gap, limit = case.result.gap(), case.frame.attrs["min_gap"]
    small = np.flatnonzero(~(np.abs(gap) >= limit) | (gap == 0))
    against = np.flatnonzero(gap * np.sign(np.nanmean(gap)) < 0)
    if len(small):
        shown = ", ".join(map(str, small[:5]))
        yield Finding(
            "small-denominators",
            "warning" if len(small) > 0.1 * len(gap) else "note",
            f"In {len(small)} of {len(gap)} examples ({shown}{', ...' if len(small) > 5 else ''}) clean and corrupt "
            f"differ "
            f"by less than {limit:.3g} {case.primary}. They are left out of per-example shares, not of effects.",
            title="Examples without a gap",
            fix="drop them, or find out why the corruption does nothing there",
        )
    if len(against):
        shown = ", ".join(map(str, against[:5]))
        yield Finding(
            "reversed-examples",
            "warning",
            f"In {len(against)} of {len(gap)} examples ({shown}{', ...' if len(against) > 5 else ''}) the corrupt "
            f"run does "
            "better than the clean one. Their effects have the wrong sign and shrink the averages.",
            title="Examples that go the other way",
            fix="keep the examples that the model can do: tokenized.select(gates(...).passing)",
        )


def off_distribution(case: Case) -> Iterator[Finding]:
    """A2: what the source adds of its own."""
    if case.source is not None and not isinstance(case.source, OtherRun):
        yield Finding(
            "off-distribution",
            "warning",
            f"Source: {case.source.describe()['source']}; {case.source.caution}.",
            title="Not a paired prompt",
            fix="compare with source=OtherRun()",
        )


def noise_corruption(case: Case) -> Iterator[Finding]:
    """Noise against paired prompts."""
    if case.result.methodology.corruption.startswith("gaussian noise"):
        yield Finding(
            "noise-corruption",
            "warning",
            "The prompts were corrupted by noise on embeddings, which lies off the distribution and breaks "
            "attention of "
            "its own; for one metric, noise and paired prompts find different parts (arXiv 2309.16042).",
            title="Corrupted by noise",
            fix="compare with patch() on paired prompts",
        )


def one_corruption(case: Case) -> Iterator[Finding]:
    """A7: different corruptions trace different things."""
    frame, names = case.frame, list(case.frame["corruption"].unique())
    if len(names) == 1:
        yield Finding(
            "one-corruption",
            "note",
            f"One corruption was used ({names[0] or 'without a name'}). Other corruptions of the same prompts trace "
            f"other "
            "parts.",
            title="One corruption only",
            fix="join tasks of several corruptions with tasks.concat and sweep again",
        )
        return
    found: dict[str, set[str]] = {name: set() for name in names}
    for row in np.flatnonzero(case.any):
        found[frame["corruption"].iloc[row]].add(frame["address"].iloc[row])
    every, some = set.intersection(*found.values()), set.union(*found.values())
    partial = np.array([a in some - every for a in frame["address"]]) & case.any
    if partial.any():
        rows = case.strongest(partial)
        yield Finding(
            "corruption-specific",
            "warning",
            f"{len(some - every)} of {len(some)} parts matter under some corruptions only ({case.named(rows)}); "
            f"{len(every)} matter under all {len(names)}.",
            rows,
            "Depends on the corruption",
            "say which corruption a claim is about",
        )


def nothing_found(case: Case) -> Iterator[Finding]:
    """B7: a null effect is not an absence."""
    if not case.any.any():
        kinds = ", ".join(case.frame.loc[~case.result.is_control, "granularity"].unique())
        yield Finding(
            "nothing-found",
            "warning",
            f"No row ({kinds}) has an effect that is both significant and at least {MIN_EFFECT:.0%} of the gap. "
            f"That is not "
            "evidence of absence: many small parts, redundant parts, a saturated metric or other positions give the "
            "same "
            "picture.",
            title=f"Nothing was found ({kinds})",
            fix="look at the residual stream over all roles first, in both directions; then at windows of layers",
        )


WHOLE_CHECKS = (
    scope,
    forced,
    few_examples,
    one_template,
    one_direction,
    no_linear_metric,
    probability_only,
    saturation,
    end_only,
    small_denominators,
    off_distribution,
    noise_corruption,
    one_corruption,
    nothing_found,
)
