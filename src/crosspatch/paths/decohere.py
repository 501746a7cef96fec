"""A control of path hypotheses: counterfactuals that different groups of paths do not share.

All unimportant paths of a hypothesis carry the same counterfactual prompt, so that what they say agrees with itself: a
query, a key and a value may all come from the one other text. Here every group of paths carries a counterfactual of its
own, drawn independently (the decohered variant of Goldowsky-Dill et al. 2023, arXiv 2304.05969). A claim whose AUE
stays as it is does not lean on that agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.errors import MetricError, PathError
from crosspatch.model import Model
from crosspatch.paths.compile import Plan
from crosspatch.paths.dissimilarity import Dissimilarity, resolve
from crosspatch.paths.evaluate import Progress
from crosspatch.paths.inspect import require_some
from crosspatch.paths.kept import kept_in, measure_kept
from crosspatch.paths.measure import Mask
from crosspatch.paths.norms import LARGE, Norms, Stretch, stretch_of
from crosspatch.paths.pairs import Pairs, pairs_of
from crosspatch.paths.pathset import Decohered, PathSet, everything, nothing
from crosspatch.paths.printed import estimate
from crosspatch.paths.scores import SAID_NOISE, about_claims, is_noise, require_named
from crosspatch.results import statistics
from crosspatch.tasks.pairs import Task


@dataclass
class Decohering:
    """Hypotheses with a shared counterfactual, and with one for each group of paths.

    Attributes:
        names: of the hypotheses.
        shared, apart: per pair, dissimilarity to the reference run (AUE) under the two.
        total, total_apart: the same of the null hypothesis.
        floor: per pair, the same when all paths carry the reference and every node is computed all the same: rounding.
        clusters: what intervals resample.
        about: groups, pairs, dissimilarity, null, seed, cost; with frozen norms also `stretch`, where they leave an
            input largest beside recomputed ones (of the pairs that this run measured, not of those from a checkpoint).
    """

    names: list[str]
    shared: Float[np.ndarray, "hypothesis pair"]
    apart: Float[np.ndarray, "hypothesis pair"]
    total: Float[np.ndarray, " pair"]
    total_apart: Float[np.ndarray, " pair"]
    floor: Float[np.ndarray, " pair"]
    clusters: list[str]
    about: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per hypothesis: proportion explained under both, and the change of AUE from shared to apart.

        Each proportion is of the total effect of its own null, in which the same paths carry the same counterfactuals.
        """
        seed = self.about.get("seed", 0)
        sampler = statistics.resampler(len(self.total), self.clusters, seed=seed)
        table = pd.DataFrame({"hypothesis": self.names})
        for name, values, total in (("shared", self.shared, self.total), ("apart", self.apart, self.total_apart)):
            between = statistics.bootstrap_ratio_of_means(values, total, sampler, 0.0)
            ate = float(np.nanmean(total))
            table[f"explained_{name}"] = 1 - np.nanmean(values, axis=1) / ate if ate > 0 else np.nan
            table[f"explained_{name}_low"], table[f"explained_{name}_high"] = 1 - between.high, 1 - between.low
        change = self.apart - self.shared
        between = statistics.bootstrap_mean(change, sampler)
        table["aue_change"] = statistics.means(change)
        table["aue_change_low"], table["aue_change_high"] = between.low, between.high
        table["p"] = statistics.sign_flip_p(change, self.clusters, seed=seed)
        return table

    def __str__(self) -> str:
        a = self.about
        totals = np.stack([self.total, self.total_apart])
        sampler = statistics.resampler(len(self.total), self.clusters, seed=a.get("seed", 0))
        between = statistics.bootstrap_mean(totals, sampler)
        ates = list(zip(statistics.means(totals), between.low, between.high, strict=True))
        lines = [
            f"{a['dissimilarity']} in {a['unit']} on {len(self.total)} pairs ({a['pairs']}); a counterfactual of its "
            f"own for each of {', '.join(a['groups'])}; {a['method']}",
            f"null: {a['null']}; ATE {estimate(*ates[0], '.4g')} shared, {estimate(*ates[1], '.4g')} apart; "
            f"numerical floor (AUE at all paths) {float(np.nanmean(self.floor)):.1e}",
        ]
        if is_noise(self.total, self.floor) or is_noise(self.total_apart, self.floor):
            lines.append(SAID_NOISE)
        for row in self.frame().to_dict("records"):
            shared, apart, change = (
                estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], form)
                for name, form in (("explained_shared", ".1%"), ("explained_apart", ".1%"), ("aue_change", ".4g"))
            )
            lines.append(f"  {row['hypothesis']}: explained {shared} shared, {apart} apart; AUE changes by {change}")
        return "\n".join([*lines, *([self.warning] if self.warning else [])])

    @property
    def warning(self) -> str:
        """What frozen norms did to the numbers, where they let a mixed input grow; else empty."""
        return _warning(self.about.get("stretch") or {})


def _warning(stretch: Mapping[str, Any]) -> str:
    if not stretch.get("large"):
        return ""
    ratio = stretch["ratio"]
    much = "overflows" if ratio is None else f"is {ratio:.3g} times as large as recomputed (careful above {LARGE:g})"
    pair = "" if stretch.get("pair") is None else f" in pair {stretch['pair']}"
    return (
        f"frozen norms are out of their range: {stretch['reader']} {much} at position {stretch['position']}{pair}; "
        "compare with norms='recomputed'"
    )


def decohere(
    model: Model,
    hypotheses: Mapping[str, PathSet],
    groups: Mapping[str, PathSet],
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
) -> Decohering:
    """Score hypotheses with one counterfactual for all other paths, and with one of its own for each group of these.

    >>> by_input = {c: paths(f"** -> a1.h5.{c} -> ** -> logits") for c in "qkv"}        # doctest: +SKIP
    >>> print(decohere(model, {"induction": claim}, by_input, pairs))                   # doctest: +SKIP

    Args:
        hypotheses: name -> paths that keep the reference.
        groups: name -> paths that share a counterfactual; a path in several belongs to the first, one in none keeps the
            pair's own counterfactual.
        pairs: further counterfactuals are those of other pairs of the same length, unless the pairs bring their own
            (`Pairs.with_others`), and must be there if a mask is.
        dissimilarity, always, mask, seed: see `test_paths`.
        norms, budget_mib, progress, on_plan: see `evaluate`.
        checkpoint: a folder that keeps finished pairs, see `path_patch`. With frozen norms it keeps nothing: how far
            their scales are from recomputed ones is seen only where all pairs are measured in one go.

    Raises:
        PathError: a set that does not fit the model or has no path; no hypotheses or no groups.
        TaskError: no pair has others of its length to draw from.
        MetricError: a signed dissimilarity.
        ResultError: the checkpoint is of another control (names what differs), or was damaged.
    """
    require_named(hypotheses, "decohere")
    if not groups:
        raise PathError("no group was given", where="decohere", fix="give {'name': paths('...')}")
    pairs = pairs_of(pairs, model.tokenizer)
    chosen = resolve(dissimilarity)
    kept = always if always is not None else nothing()
    for one in (*hypotheses.values(), *groups.values(), kept):
        require_some(one, model.shape, pairs)
    if mask is not None and len(pairs.others) < len(groups):
        raise PathError(
            "a mask needs pairs that bring their counterfactuals", where="decohere", fix="pairs.with_others(n)"
        )
    pairs = pairs if len(pairs.others) >= len(groups) else pairs.with_others(len(groups), seed)
    claims = [kept, *(claim | kept if always is not None else claim for claim in hypotheses.values())]
    sets: list[PathSet | Decohered] = [*claims]
    sets += [Decohered(claim, tuple(groups.values())) for claim in claims]
    sets.append(everything())
    asked = {
        "hypotheses": {name: claim.to_json() for name, claim in hypotheses.items()},
        "groups": {name: group.to_json() for name, group in groups.items()},
        "always": kept.to_json(),
    }
    folder = None if norms == "frozen" else checkpoint
    with stretch_of() as stretch:
        try:
            found = measure_kept(
                kept_in(folder, "decohering", model, pairs, chosen, norms, **asked, seed=seed),
                model,
                sets,
                pairs,
                chosen,
                mask=mask,
                norms=norms,
                anew={len(sets) - 1},
                budget_mib=budget_mib,
                progress=progress,
                on_plan=on_plan,
            )
        except MetricError as error:
            if said := _warning(_located(stretch, pairs)):
                raise MetricError(f"{error.what}: {said}", where=error.where, fix="norms='recomputed'") from error
            raise
    n = len(claims)
    return Decohering(
        list(hypotheses),
        found.apart[1:n],
        found.apart[n + 1 : -1],
        found.apart[0],
        found.apart[n],
        found.apart[-1],
        pairs.clusters,
        {
            "null": "all paths on counterfactuals" if always is None else f"all but {always} on counterfactuals",
            "groups": {name: group.to_json() for name, group in groups.items()},
            **about_claims(model, hypotheses, always, pairs, chosen, found.plan, norms, seed),
            "stretch": _located(stretch, pairs) if norms == "frozen" else None,
        },
    )


def _located(stretch: Stretch, pairs: Pairs) -> dict[str, Any]:
    """With the number of the pair."""
    sides = [pairs.reference, pairs.counterfactual, *pairs.others][: len(stretch.tokens)]
    rows = enumerate(zip(*sides, strict=True)) if sides else ()
    return stretch.to_json() | {"pair": next((i for i, row in rows if row == stretch.tokens), None)}
