"""What a ranking is worth: its top measured exactly, a random sample of the rest, and a bound on what was missed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from crosspatch.attribution.ablation import Ablation, AblationName
from crosspatch.attribution.exact import exact_edges
from crosspatch.attribution.points import Progress
from crosspatch.attribution.scores import Scores
from crosspatch.attribution.setup import Setup
from crosspatch.errors import ResultError
from crosspatch.results.evidence import MIN_EFFECT
from crosspatch.results.statistics import bootstrap_mean, resampler


@dataclass(eq=False)
class Verification:
    """Exact effects beside estimated ones.

    Attributes:
        scores: the ranking that was checked.
        top: numbers of its strongest edges, strongest first.
        sample: numbers of edges drawn at random from all others.
        exact: exact effect of these edges, `[example, edge]`, first `top`, then `sample`.
        theta: absolute mean effect from which an edge counts as one that matters.
        confidence: of the bound.
    """

    scores: Scores
    top: Int[np.ndarray, " top"]
    sample: Int[np.ndarray, " sample"]
    exact: Float[np.ndarray, "example edge"]
    theta: float
    confidence: float = 0.95

    @property
    def measured(self) -> Int[np.ndarray, " edge"]:
        return np.concatenate([self.top, self.sample])

    @property
    def unmeasured(self) -> int:
        """Edges that were not measured exactly."""
        return len(self.scores.parts) - len(self.measured)

    def correlation(self, which: str = "sample") -> tuple[float, float]:
        """Pearson and Spearman correlation of estimate and exact effect (means over examples).

        Args:
            which: "top", "sample" (of all edges below the top; the honest one), or "all" that was measured.
        """
        chosen = {
            "top": slice(0, len(self.top)),
            "sample": slice(len(self.top), None),
            "all": slice(None),
        }[which]
        a, b = self.scores.mean[self.measured][chosen], self.exact.mean(0)[chosen]
        if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
            return float("nan"), float("nan")
        return float(stats.pearsonr(a, b)[0]), float(stats.spearmanr(a, b)[0])

    @property
    def missed(self) -> int:
        """Edges of the random sample that matter although the ranking left them out of its top."""
        return int((np.abs(self.exact.mean(0)[len(self.top) :]) >= self.theta).sum())

    @property
    def missed_bound(self) -> float:
        """Upper confidence bound on the number of edges below the top that matter (Clopper & Pearson 1934).

        It holds whatever the ranking, since the sample is drawn blindly. The sample's own hits are counted as found.
        """
        n, hits = len(self.sample), self.missed
        if self.unmeasured == 0:
            return 0.0
        if n == 0:
            return float(self.unmeasured)
        share = 1.0 if hits == n else float(stats.beta.ppf(self.confidence, hits + 1, n - hits))
        return share * self.unmeasured

    @property
    def recall_bound(self) -> float:
        """Lower confidence bound on the share of the edges that matter which the top holds."""
        found = int((np.abs(self.exact.mean(0)[: len(self.top)]) >= self.theta).sum())
        return found / (found + self.missed + self.missed_bound) if found else 0.0

    @property
    def precision(self) -> float:
        """Share of the top that matters."""
        return float((np.abs(self.exact.mean(0)[: len(self.top)]) >= self.theta).mean()) if len(self.top) else np.nan

    def frame(self) -> pd.DataFrame:
        """One row per measured edge: estimate, exact effect with its interval, and whether the sign agrees."""
        band = bootstrap_mean(self.exact.T, resampler(len(self.exact), self.scores.clusters))
        estimate, exact = self.scores.mean[self.measured], self.exact.mean(0)
        return pd.DataFrame(
            {
                "part": [self.scores.parts[i] for i in self.measured],
                "drawn": ["top"] * len(self.top) + ["sample"] * len(self.sample),
                "estimate": estimate,
                "exact": exact,
                "low": band.low,
                "high": band.high,
                "sign_agrees": np.sign(estimate) == np.sign(exact),
                "matters": np.abs(exact) >= self.theta,
            }
        )

    def corrected(self) -> Scores:
        """The ranking with exact values where there are any."""
        values = self.scores.per_example.copy()
        values[:, self.measured] = self.exact
        origin = self.scores.origin | {"verified": len(self.measured)}
        return dataclasses.replace(self.scores, values=values[:, None], spans=("*",), origin=origin)

    def summary(self) -> dict[str, Any]:
        """The numbers that the texts below state, as JSON values."""
        return {
            "method": self.scores.origin.get("method"),
            "top": len(self.top),
            "sample": len(self.sample),
            "theta": self.theta,
            "precision": self.precision,
            "correlation": {which: _finite(self.correlation(which)) for which in ("top", "sample", "all")},
            "missed_in_sample": self.missed,
            "missed_bound": self.missed_bound,
            "recall_bound": self.recall_bound,
            "confidence": self.confidence,
        }

    def describe(self) -> str:
        """What holds, in words."""
        (top_r, top_rho), (r, rho) = self.correlation("top"), self.correlation("sample")
        method = self.scores.origin.get("method", "?")
        return (
            f"{method}: {self.precision:.0%} of its {len(self.top)} strongest edges change the metric by at least "
            f"{self.theta:.3g} when cut alone. Pearson / Spearman correlation with exact patching: {top_r:.2f} / "
            f"{top_rho:.2f} among these, {r:.2f} / {rho:.2f} among {len(self.sample)} random others. {self.missed} of "
            f"the random ones matter; with {self.confidence:.0%} confidence at most {self.missed_bound:,.0f} of the "
            f"{self.unmeasured:,} edges that were not measured do."
        )


def verify(
    setup: Setup,
    scores: Scores,
    top: int = 100,
    sample: int = 100,
    *,
    ablation: AblationName | Ablation | None = None,
    theta: float | None = None,
    seed: int = 0,
    budget_mib: float = 512.0,
    progress: Progress | None = None,
) -> Verification:
    """Measure the strongest edges of a ranking, and a random sample of the others, exactly.

    Args:
        setup: the pairs to measure on: those of the ranking, or held-out ones.
        scores: of edges.
        top, sample: how many.
        ablation: None = the one that the ranking was made with.
        theta: effect from which an edge matters; None = 2 % of the gap between the clean run and everything cut.
        seed: of the sample.

    Raises:
        ResultError: scores of nodes; a ranking made with an ablation that only exists as an object, and none given.
    """
    if scores.level != "edge":
        raise ResultError("only rankings of edges are verified here", where="verify", fix="use attribute(setup, ...)")
    name = ablation or scores.origin.get("ablation")
    if name not in ("paired", "mean", "mean-all", "zero") and not isinstance(name, Ablation):
        raise ResultError(f"the ranking's ablation was {name!r}", where="verify", fix="pass it as ablation=")
    order = np.argsort(-np.nan_to_num(np.abs(scores.mean), nan=-1.0), kind="stable")
    rest = np.sort(order[top:])
    drawn = np.random.default_rng(seed).choice(rest, min(sample, len(rest)), replace=False)
    chosen = np.concatenate([order[:top], drawn])
    exact = exact_edges(setup, chosen.tolist(), name, budget_mib=budget_mib, progress=progress)
    threshold = MIN_EFFECT * abs(scores.gap) if theta is None else theta
    return Verification(scores, order[:top], drawn, exact, threshold)


def _finite(pair: tuple[float, float]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in pair]
