"""Scores of path hypotheses: how much of a model's output on some pairs they account for.

AUE = mean of delta(G(x_r), G_H(x_r, x_c)) and ATE = the same of the null hypothesis (Goldowsky-Dill et al. 2023, arXiv
2304.05969, section 2). The proportion explained is 1 - AUE / ATE. It can be negative, and it says that the paths are
*sufficient* on these pairs; the complement (only the claimed paths carry the counterfactual) tests whether they are
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.errors import PathError
from crosspatch.model import Model
from crosspatch.paths.compile import Plan
from crosspatch.paths.dissimilarity import Dissimilarity, resolve
from crosspatch.paths.evaluate import Progress
from crosspatch.paths.inspect import require_some
from crosspatch.paths.kept import kept_in, measure_kept
from crosspatch.paths.measure import Mask
from crosspatch.paths.norms import Norms
from crosspatch.paths.pairs import Pairs, pairs_of
from crosspatch.paths.pathset import PathSet, everything, nothing
from crosspatch.paths.printed import estimate
from crosspatch.results import statistics
from crosspatch.tasks.pairs import Task

NOISE = 100
"""How many times the numerical floor a total effect has to be."""
SAID_NOISE = f"ATE is less than {NOISE} times the numerical floor: proportions of it are noise"
EVERY_TWO = 10
"""So many hypotheses are shown in every pair of two; more, each beside one (`PathTest.yardstick`)."""
PRINTED = (
    ("explained", "explained", ".1%"),
    ("aue", "AUE", ".4g"),
    ("needed", "needed", ".1%"),
    ("loss_recovered", "loss recovered", ".1%"),
)


@dataclass
class PathTest:
    """Hypotheses tested on the same pairs.

    Attributes:
        names: of the hypotheses, in order.
        unexplained: per pair, delta when only the claimed paths (and `always`) carry the reference: sufficiency.
        needed: per pair, delta when only the claimed paths carry the counterfactual: necessity.
        total: per pair, delta of the null hypothesis, in which only `always` carries the reference.
        floor: per pair, delta when all paths carry the reference and every node is computed all the same: rounding.
        signed, signed_null, signed_reference: the signed quantity (loss) under each hypothesis, the null, the model.
        clusters: what intervals resample.
        about: pairs, dissimilarity, null, seed, cost: what makes these numbers reproducible.
    """

    names: list[str]
    unexplained: Float[np.ndarray, "hypothesis pair"]
    needed: Float[np.ndarray, "hypothesis pair"]
    total: Float[np.ndarray, " pair"]
    floor: Float[np.ndarray, " pair"]
    signed: Float[np.ndarray, "hypothesis pair"]
    signed_null: Float[np.ndarray, " pair"]
    signed_reference: Float[np.ndarray, " pair"]
    clusters: list[str]
    about: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per hypothesis: AUE, proportion explained, the complement's, difference of means, with intervals.

        `explained` = 1 - AUE / ATE and `needed` = mean delta of the complement / ATE are ratios of means over the same
        resampled pairs. `loss_recovered` is the older difference of means, in which over- and undershoots cancel: it is
        not an AUE.
        """
        sampler = self._sampler()
        table = pd.DataFrame({"hypothesis": self.names})
        table["aue"] = np.nanmean(self.unexplained, axis=1)
        table["aue_low"], table["aue_high"] = _ends(statistics.bootstrap_mean(self.unexplained, sampler))
        ate = float(np.nanmean(self.total))
        for name, values, flip in (("explained", self.unexplained, True), ("needed", self.needed, False)):
            share = np.nanmean(values, axis=1) / ate if ate > 0 else np.full(len(values), np.nan)
            low, high = _ends(statistics.bootstrap_ratio_of_means(values, self.total, sampler, 0.0))
            table[name] = 1 - share if flip else share
            table[f"{name}_low"], table[f"{name}_high"] = (1 - high, 1 - low) if flip else (low, high)
        gap = self.signed_null - self.signed_reference
        lost = self.signed - self.signed_reference
        with np.errstate(invalid="ignore", divide="ignore"):
            table["loss_recovered"] = 1 - statistics.means(lost) / statistics.means(gap[None])
        low, high = _ends(statistics.bootstrap_ratio_of_means(lost, gap, sampler, 0.0))
        table["loss_recovered_low"], table["loss_recovered_high"] = 1 - high, 1 - low
        return table

    @property
    def ate(self) -> tuple[float, float, float]:
        """Mean total effect with its interval."""
        low, high = _ends(statistics.bootstrap_mean(self.total[None], self._sampler()))
        return float(np.nanmean(self.total)), float(low[0]), float(high[0])

    @property
    def is_noise(self) -> bool:
        """Whether there is a total effect, but so near the numerical floor that shares of it say nothing."""
        return is_noise(self.total, self.floor)

    @property
    def yardstick(self) -> str | None:
        """The hypothesis that leaves least unexplained, where they are too many to show every two side by side.

        It was picked on the same pairs, so that it looks better beside the others than it is.
        """
        if len(self.names) <= EVERY_TWO:
            return None
        return self.names[int(np.nanmean(self.unexplained, axis=1).argmin())]

    def compare(self, against: str | None = None) -> pd.DataFrame:
        """Hypotheses two by two: difference of AUE on the same pairs (negative: the first leaves less unexplained).

        Args:
            against: only this one, as the first, with each of the others; None: every two, n (n - 1) / 2 rows.

        Raises:
            PathError: no hypothesis of that name.
        """
        sampler, n = self._sampler(), len(self.names)
        if against is not None and against not in self.names:
            raise PathError(f"no hypothesis {against!r}", where="compare", fix=f"use one of {self.names[:9]}")
        one = None if against is None else self.names.index(against)
        rows = [(a, b) for a in range(n) for b in range(a + 1, n)] if one is None else [(one, b) for b in range(n)]
        rows = [(a, b) for a, b in rows if a != b]
        first, second = ([row[i] for row in rows] for i in (0, 1))
        apart = self.unexplained[first] - self.unexplained[second]
        low, high = _ends(statistics.bootstrap_mean(apart, sampler)) if rows else (np.empty(0), np.empty(0))
        p = statistics.sign_flip_p(apart, self.clusters, seed=self.about.get("seed", 0)) if rows else np.empty(0)
        return pd.DataFrame(
            {
                "first": [self.names[a] for a in first],
                "second": [self.names[b] for b in second],
                "difference": statistics.means(apart),
                "low": low,
                "high": high,
                "p": p,
                "q": statistics.benjamini_hochberg(p),
            }
        )

    def _sampler(self) -> statistics.Resampler:
        return statistics.resampler(len(self.total), self.clusters, seed=self.about.get("seed", 0))

    def __str__(self) -> str:
        mean, low, high = self.ate
        lines = [
            f"{self.about['dissimilarity']} on {len(self.total)} pairs ({self.about['pairs']}); {self.about['method']}",
            f"null: {self.about['null']}; ATE {estimate(mean, low, high, '.4g')}; "
            f"numerical floor (AUE at all paths) {float(np.nanmean(self.floor)):.1e}",
        ]
        if self.is_noise:
            lines.append(SAID_NOISE)
        for row in self.frame().to_dict("records"):
            said = [
                f"{words} {estimate(row[name], row[f'{name}_low'], row[f'{name}_high'], form)}"
                for name, words, form in PRINTED
            ]
            lines.append(f"  {row['hypothesis']}: {', '.join(said)}")
        return "\n".join(lines)


def is_noise(total: Float[np.ndarray, " pair"], floor: Float[np.ndarray, " pair"]) -> bool:
    """Whether there is a total effect, but so near the numerical floor that shares of it say nothing."""
    return bool(0 < np.nanmean(total) < NOISE * np.nanmean(floor))


def _ends(interval: statistics.Interval) -> tuple[np.ndarray, np.ndarray]:
    return interval.low, interval.high


def test_paths(
    model: Model,
    hypotheses: Mapping[str, PathSet],
    pairs: Pairs | Task,
    *,
    dissimilarity: str | Dissimilarity = "kl",
    always: PathSet | None = None,
    mask: Mask | None = None,
    norms: Norms = "recomputed",
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    checkpoint: str | Path | None = None,
) -> PathTest:
    """Score hypotheses, each a set of paths that is claimed to carry the behaviour.

    >>> claim = {"induction": paths("input -> a0.h3.v -> a1.h5.k -> logits")}      # doctest: +SKIP
    >>> print(test_paths(model, claim, pairs))                                     # doctest: +SKIP

    Args:
        hypotheses: name -> paths that keep the reference.
        pairs: (x_r, x_c), or a task, whose clean prompts are x_r; all hypotheses and the null see the same ones.
        dissimilarity: "kl", "abs_loss", "sq_loss", "abs_logit_diff", or your own.
        always: paths that stay on the reference in every hypothesis, the null included.
        mask: which reads count.
        norms: see `evaluate`.
        seed: of the bootstrap.
        budget_mib, progress, on_plan: see `evaluate`.
        checkpoint: a folder that keeps finished pairs, see `path_patch`.

    Raises:
        PathError: a set that does not fit the model or in which no path is left (`nothing()` itself may be tested); no
            hypotheses; a mask that does not fit.
        MetricError: a signed dissimilarity.
        ResultError: the checkpoint is of another test (names what differs), or was damaged.
    """
    require_named(hypotheses, "test_paths")
    pairs = pairs_of(pairs, model.tokenizer)
    chosen = resolve(dissimilarity)
    null = always if always is not None else nothing()
    for claim in (*hypotheses.values(), null):
        require_some(claim, model.shape, pairs)
    claims = list(hypotheses.values())
    sets = [null, everything()]
    sets += [claim | null if always is not None else claim for claim in claims]
    sets += [~claim | null if always is not None else ~claim for claim in claims]
    asked = {"hypotheses": {name: claim.to_json() for name, claim in hypotheses.items()}, "always": null.to_json()}
    found = measure_kept(
        kept_in(checkpoint, "test", model, pairs, chosen, norms, **asked, seed=seed),
        model,
        sets,
        pairs,
        chosen,
        mask=mask,
        norms=norms,
        anew={1},
        budget_mib=budget_mib,
        progress=progress,
        on_plan=on_plan,
    )
    n = len(claims)
    return PathTest(
        list(hypotheses),
        found.apart[2 : 2 + n],
        found.apart[2 + n :],
        found.apart[0],
        found.apart[1],
        found.signed[2 : 2 + n],
        found.signed[0],
        found.reference_signed,
        pairs.clusters,
        {
            "null": "all paths on the counterfactual" if always is None else f"all but {always} on the counterfactual",
            **about_claims(model, hypotheses, always, pairs, chosen, found.plan, norms, seed),
        },
    )


def require_named(hypotheses: Mapping[str, PathSet], where: str) -> None:
    """Refuse what is not names with path sets.

    Raises:
        PathError: no hypotheses, or something else.
    """
    fix = "give {'name': paths('...')}"
    if not isinstance(hypotheses, Mapping) or not hypotheses:
        what = "the hypotheses have no names" if hypotheses else "no hypothesis was given"
        raise PathError(what, where=where, fix=fix)
    for name, claim in hypotheses.items():
        if not isinstance(claim, PathSet):
            raise PathError(f"hypothesis {name!r} is no set of paths: {claim!r:.60}", where=where, fix=fix)


def about_claims(
    model: Model,
    hypotheses: Mapping[str, PathSet],
    always: PathSet | None,
    pairs: Pairs,
    dissimilarity: Dissimilarity,
    plan: Plan,
    norms: Norms,
    seed: int,
) -> dict[str, Any]:
    """What claims were scored on and how, as JSON values."""
    return {
        "dissimilarity": dissimilarity.name,
        "unit": dissimilarity.unit,
        "pairs": pairs.provenance,
        "pairs_hash": pairs.hash,
        "hypotheses": {name: claim.to_json() for name, claim in hypotheses.items()},
        "always": None if always is None else always.to_json(),
        "method": plan.describe(),
        "node_evaluations": plan.node_evaluations,
        "model": model.name,
        "norms": norms,
        "seed": seed,
    }


test_paths.__test__ = False  # type: ignore[attr-defined]  # pytest takes imported functions of this name for tests
