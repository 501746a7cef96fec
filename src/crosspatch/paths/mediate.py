"""One sender's effect, split into the direct part and what other parts pass on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.errors import PathError
from crosspatch.model import Model
from crosspatch.paths.automaton import REFERENCE
from crosspatch.paths.compile import Plan
from crosspatch.paths.dissimilarity import Dissimilarity, resolve
from crosspatch.paths.evaluate import Progress
from crosspatch.paths.kept import kept_in, measure_kept
from crosspatch.paths.norms import Norms
from crosspatch.paths.pairs import Pairs, pairs_of
from crosspatch.paths.pathset import paths
from crosspatch.paths.printed import estimate
from crosspatch.paths.sender import (
    NO_SHARES,
    Mlps,
    SenderEffects,
    about_of,
    any_way_into,
    named,
    require_fit,
    sender_paths,
)
from crosspatch.results import statistics
from crosspatch.tasks.pairs import Task


@dataclass
class Mediation:
    """One sender's effect, split.

    Attributes:
        sender: its name.
        total: per pair, all paths through it.
        direct: straight to the logits.
        mediated: through other parts: all paths through it but the direct ones.
        mediators: every single part that may come next on a path.
    """

    sender: str
    total: Float[np.ndarray, " pair"]
    direct: Float[np.ndarray, " pair"]
    mediated: Float[np.ndarray, " pair"]
    mediators: SenderEffects

    def frame(self) -> pd.DataFrame:
        """Total, direct, mediated, and what is left (`interaction` = total - direct - mediated), with intervals.

        `share` is of the total effect of the sender; NaN where that may be zero (`statistics.share_of_total`).
        """
        parts = {"total": self.total, "direct": self.direct, "mediated": self.mediated}
        parts["interaction"] = self.total - self.direct - self.mediated
        values = np.stack(list(parts.values()))
        m = self.mediators
        sampler = statistics.resampler(values.shape[1], m.clusters, seed=m.about["seed"])
        between = statistics.bootstrap_mean(values, sampler)
        share, around = statistics.share_of_total(values, self.total, sampler)
        return pd.DataFrame(
            {
                "part": list(parts),
                "effect": values.mean(axis=1),
                "low": between.low,
                "high": between.high,
                "share": share,
                "share_low": around.low,
                "share_high": around.high,
            }
        )

    def __str__(self) -> str:
        a = self.mediators.about
        lines = [
            f"{self.sender}: {a['quantity']} in {a['unit']}; {len(self.total)} pairs; MLPs on the direct way: "
            f"{a['mlps']}; {a['method']}"
        ]
        split = self.frame()
        for row in split.to_dict("records"):
            share = estimate(row["share"], row["share_low"], row["share_high"], ".0%")
            lines.append(
                f"  {row['part']}: {estimate(row['effect'], row['low'], row['high'], '+.4g')}, {share} of the total"
            )
        for row in self.mediators.top(5).to_dict("records"):
            lines.append(f"  first through {row['sender']}: {estimate(row['effect'], row['low'], row['high'], '+.4g')}")
        if np.isnan(split["share"]).all():
            lines.append(NO_SHARES)
        return "\n".join(lines)


def mediation(
    model: Model,
    pairs: Pairs | Task,
    sender: str,
    *,
    mlps: Mlps = "frozen",
    mediators: str = "a*.h*, m*",
    dissimilarity: str | Dissimilarity = "abs_logit_diff",
    norms: Norms = "recomputed",
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    checkpoint: str | Path | None = None,
) -> Mediation:
    """Direct, total and mediated effect of a sender, and which parts mediate.

    In a linear network direct + mediated = total, as in one that is linear but for its norms if these are frozen;
    elsewhere the rest is their interaction. A mediator's effect is that of the mediated paths on which it is the first
    part after the sender.

    Args:
        pairs: or a task, whose clean prompts are the references.
        mlps: whether routes from the sender to the logits through MLPs alone are mediated ("frozen", the default) or
            part of its direct effect ("direct").
        mediators: parts whose effects are measured; those that cannot come after the sender are left out.
        dissimilarity: whose signed quantity is measured.
        norms, budget_mib, progress, on_plan: see `evaluate`.
        checkpoint: a folder that keeps finished pairs, see `path_patch`.

    Raises:
        PathError: a sender that does not exist.
        ResultError: the checkpoint is of another mediation (names what differs), or was damaged.
    """
    chosen = resolve(dissimilarity)
    pairs = pairs_of(pairs, model.tokenizer)
    start = any_way_into(sender)
    through = paths(f"{start} -> ** -> logits")
    direct = sender_paths(model.shape, sender, ["logits"], mlps=mlps)
    names = []
    for name in named(model, mediators)[0]:
        try:
            require_fit(model, paths(f"{start} -> {name} -> ** -> logits"))
            names.append(name)
        except PathError:
            continue
    first = [paths(f"{start} -> {name} -> ** -> logits") for name in names]
    if mlps == "direct":  # then routes through MLPs alone are no mediated ones
        first = [one - direct for one in first]
    sets = [~through, ~direct, ~(through - direct), *(~one for one in first)]
    asked = {"sender": sender, "mlps": mlps, "mediators": mediators, "seed": seed}
    found = measure_kept(
        kept_in(checkpoint, "mediation", model, pairs, chosen, norms, **asked),
        model,
        sets,
        pairs,
        chosen,
        norms=norms,
        budget_mib=budget_mib,
        progress=progress,
        on_plan=on_plan,
    )
    effect = found.signed - found.reference_signed
    about = {
        "receivers": ["what follows"],
        "mlps": mlps,
        "semantics": "first part after the sender",
    } | about_of(model, pairs, chosen, found, seed)
    total = found.counter_signed - found.reference_signed
    passing = [i for i in range(3, len(sets)) if set(found.plan.final[i]) != {REFERENCE}]
    by = SenderEffects([names[i - 3] for i in passing], effect[passing], total, pairs.clusters, about)
    return Mediation(sender, effect[0], effect[1], effect[2], by)
