"""A control of path hypotheses: counterfactuals that different groups of paths do not share.

All unimportant paths of a hypothesis carry the same counterfactual prompt, so that what they say agrees with itself: a
query, a key and a value may all come from the one other text. Here every group of paths carries a counterfactual of its
own, drawn independently (the decohered variant of Goldowsky-Dill et al. 2023, arXiv 2304.05969). A claim whose AUE
stays as it is does not lean on that agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from crosspatch.paths.measure import Mask, measure
from crosspatch.paths.norms import Norms
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import Decohered, PathSet, nothing
from crosspatch.paths.scores import about_claims
from crosspatch.results import statistics


@dataclass
class Decohering:
    """Hypotheses with a shared counterfactual, and with one for each group of paths.

    Attributes:
        names: of the hypotheses.
        shared, apart: per pair, dissimilarity to the reference run (AUE) under the two.
        total, total_apart: the same of the null hypothesis.
        clusters: what intervals resample.
        about: groups, pairs, dissimilarity, null, seed, cost.
    """

    names: list[str]
    shared: Float[np.ndarray, "hypothesis pair"]
    apart: Float[np.ndarray, "hypothesis pair"]
    total: Float[np.ndarray, " pair"]
    total_apart: Float[np.ndarray, " pair"]
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
        lines = [
            f"{a['dissimilarity']} in {a['unit']} on {len(self.total)} pairs ({a['pairs']}); a counterfactual of its "
            f"own for each of {', '.join(a['groups'])}; {a['method']}",
            f"null: {a['null']}; ATE {np.nanmean(self.total):.4g} shared, {np.nanmean(self.total_apart):.4g} apart",
        ]
        for row in self.frame().to_dict("records"):
            lines.append(
                f"  {row['hypothesis']}: explained {row['explained_shared']:.1%} shared, {row['explained_apart']:.1%} "
                f"apart; AUE changes by {row['aue_change']:.4g} [{row['aue_change_low']:.4g}, "
                f"{row['aue_change_high']:.4g}]"
            )
        return "\n".join(lines)


def decohere(
    model: Model,
    hypotheses: Mapping[str, PathSet],
    groups: Mapping[str, PathSet],
    pairs: Pairs,
    *,
    dissimilarity: str | Dissimilarity = "kl",
    always: PathSet | None = None,
    mask: Mask | None = None,
    norms: Norms = "recomputed",
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
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

    Raises:
        PathError: a set that does not fit the model or has no path; no hypotheses or no groups.
        TaskError: no pair has others of its length to draw from.
        MetricError: a signed dissimilarity.
    """
    if not hypotheses or not groups:
        what = "hypothesis" if not hypotheses else "group"
        raise PathError(f"no {what} was given", where="decohere", fix="give {'name': paths('...')}")
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
    found = measure(
        model,
        sets,
        pairs,
        chosen,
        mask=mask,
        norms=norms,
        budget_mib=budget_mib,
        progress=progress,
        on_plan=on_plan,
    )
    n = len(claims)
    return Decohering(
        list(hypotheses),
        found.apart[1:n],
        found.apart[n + 1 :],
        found.apart[0],
        found.apart[n],
        pairs.clusters,
        {
            "null": "all paths on counterfactuals" if always is None else f"all but {always} on counterfactuals",
            "groups": {name: group.to_json() for name, group in groups.items()},
            **about_claims(model, hypotheses, always, pairs, chosen, found.plan, norms, seed),
        },
    )
