"""A bound on what a ranking of nodes missed, from random subsets of the nodes that were not verified.

Gradients may miss a node that matters. Measuring every node alone is what one wanted to avoid; random subsets measure
many at once (the diagnostic of Kramár et al. 2024, arXiv 2403.00745; the statistic is ours).

Two disjoint random subsets A and B of the unverified nodes are drawn: each node is in A with probability `share`, in B
with the same, in neither otherwise. One row replaces A, one row replaces B, in the same example, and
`d = effect(A) - effect(B)`. For a node, `x = d` where it is in A and `x = -d` where it is in B. The mean of `x` is
exactly the node's average marginal effect: what replacing it adds, averaged over the sets of other unverified nodes in
which each is replaced with probability `share`, and over the examples. What the example contributes by itself cancels.
Estimates that exist already sharpen it: `d` is taken less the difference of their sums over A and B, and the node's own
mean estimate is added at the end. Other nodes' estimates have mean zero in `x`, so that wrong ones add spread and no
bias.

The hypothesis "some unverified node has an average marginal effect of at least theta in absolute value" is a union over
nodes. It is rejected where every node's own one-sided t-test rejects (Berger 1982, intersection-union test), so that
the p-value is the largest of theirs, without a correction for their number, and the largest of their one-sided upper
bounds is an upper bound for the largest effect. With effects that add up this is the effect of the node alone; where
nodes interact, a small `share` keeps the others near their clean values. t-tests assume that means of `x` are nearly
normal: give enough pairs for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from crosspatch.attribution.ablation import Ablation
from crosspatch.attribution.exact_nodes import as_addresses, measure_replaced
from crosspatch.attribution.points import Progress
from crosspatch.attribution.setup import Setup
from crosspatch.errors import MetricError
from crosspatch.graph import Address, Site

_FEWEST = 8  # subsets that must hold a node, on average, for a spread to be estimated


@dataclass(frozen=True)
class MissedBound:
    """What random subsets say about nodes that were not measured alone.

    Attributes:
        nodes: their addresses.
        effect: estimated average marginal effect of each, in the metric's unit; positive: it helps.
        error: standard error of each.
        drawn: pairs of subsets that had the node in one of the two.
        share: chance of a node to be in a subset.
        rows: patched forward passes that were made.
        seed: of the draws.
    """

    nodes: tuple[str, ...]
    effect: Float[np.ndarray, " node"]
    error: Float[np.ndarray, " node"]
    drawn: Int[np.ndarray, " node"]
    share: float
    rows: int
    seed: int

    def p_values(self, theta: float) -> Float[np.ndarray, " node"]:
        """For each node: chance of an estimate this small, were its average marginal effect `theta` in size."""
        gap = theta - np.abs(self.effect)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(self.error > 0, gap / self.error, np.where(gap > 0, np.inf, -np.inf))
        return np.where(self.drawn > 1, stats.t.sf(t, np.maximum(self.drawn - 1, 1)), 1.0)

    def p_value(self, theta: float) -> float:
        """Chance of estimates this small, if any node had an average marginal effect of at least `theta` in size."""
        return float(self.p_values(theta).max(initial=0.0))

    def upper(self, confidence: float = 0.95) -> float:
        """With this (one-sided) confidence, no node has a larger average marginal effect in size."""
        if not len(self.nodes):
            return 0.0
        reach = stats.t.ppf(confidence, np.maximum(self.drawn - 1, 1)) * self.error
        return float(np.where(self.drawn > 1, np.abs(self.effect) + reach, np.inf).max())

    def suspects(self, theta: float, level: float = 0.05) -> list[str]:
        """Nodes that cannot be ruled out at this level, most suspect first: measure these next."""
        p = self.p_values(theta)
        return [self.nodes[i] for i in np.lexsort((-np.abs(self.effect), -p)) if p[i] > level]

    def describe(self, theta: float, confidence: float = 0.95) -> str:
        """What holds, in words."""
        return (
            f"{self.rows} runs with random {self.share:.0%} of {len(self.nodes)} unverified nodes replaced: with "
            f"{confidence:.0%} confidence none has an average marginal effect above {self.upper(confidence):.3g}; "
            f"p = {self.p_value(theta):.2g} for one of at least {theta:.3g}."
        )


def missed_bound(
    setup: Setup,
    nodes: Sequence[Address | Site | str],
    ablation: Ablation,
    *,
    estimates: Float[np.ndarray, "example node"] | None = None,
    pairs: int = 400,
    share: float = 0.1,
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> MissedBound:
    """Patch random subsets of unverified nodes exactly; see the module's text for the statistic.

    Args:
        nodes: those that were not measured alone; none may overlap another (`a3` and `a3.h1`).
        estimates: signed scores of the same nodes (`node_scores` without GradDrop), to reduce the spread.
        pairs: pairs of subsets, two patched forward passes each; examples take turns.
        share: chance of each node to be in a subset, at most one half.

    Raises:
        MetricError: too few pairs, a share out of range, a node named twice, or estimates of another shape.
    """
    chosen = as_addresses(setup, nodes)
    if not 0 < share <= 0.5 or 2 * share * pairs < _FEWEST or len(set(chosen)) < len(chosen):
        twice = len(set(chosen)) < len(chosen)
        raise MetricError(
            "a node is named twice" if twice else f"{pairs} pairs of subsets with a share of {share:g}",
            where="missed_bound",
            fix="name each node once" if twice else f"use a share of at most 0.5, and {_FEWEST / 2:g} / share pairs",
        )
    if estimates is not None and estimates.shape != (len(setup), len(chosen)):
        raise MetricError(
            f"estimates of shape {estimates.shape} for {len(setup)} examples and {len(chosen)} nodes",
            where="missed_bound",
            fix="give one number per example and node, spans apart",
        )
    draw = np.random.default_rng(seed)
    which = draw.random((pairs, len(chosen)))
    sign = np.where(which < share, 1.0, np.where(which < 2 * share, -1.0, 0.0))
    example = np.concatenate([draw.permutation(len(setup)) for _ in range(-(-pairs // len(setup)))])[:pairs]
    rows = [
        (int(i), [node for node, s in zip(chosen, signs, strict=True) if s == side])
        for i, signs in zip(example, sign, strict=True)
        for side in (1.0, -1.0)
    ]
    effects = measure_replaced(setup, ablation, rows, budget_mib=budget_mib, progress=progress)
    guess = np.zeros_like(sign) if estimates is None else np.asarray(estimates)[example]
    d = effects[0::2] - effects[1::2] - (sign * guess).sum(1)
    x = sign * d[:, None]
    drawn = (sign != 0).sum(0)
    mean = x.sum(0) / np.maximum(drawn, 1)
    spread = (((x - mean) * (sign != 0)) ** 2).sum(0) / np.maximum(drawn - 1, 1)
    error = np.where(drawn > 1, np.sqrt(spread / np.maximum(drawn, 1)), np.inf)
    effect = mean if estimates is None else mean + np.asarray(estimates).mean(0)
    return MissedBound(tuple(map(str, chosen)), effect, error, drawn, share, len(rows), seed)
