"""One sender's effect, split into the direct part and what other parts pass on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.errors import PathError
from crosspatch.model import Model
from crosspatch.paths.compile import Plan
from crosspatch.paths.dissimilarity import Dissimilarity, resolve
from crosspatch.paths.evaluate import Progress
from crosspatch.paths.measure import measure
from crosspatch.paths.norms import Norms
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import paths
from crosspatch.paths.sender import (
    Mlps,
    SenderEffects,
    about_of,
    any_way_into,
    named,
    require_fit,
    sender_paths,
)
from crosspatch.results import statistics


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

        `share` is of the total effect of the sender.
        """
        parts = {"total": self.total, "direct": self.direct, "mediated": self.mediated}
        parts["interaction"] = self.total - self.direct - self.mediated
        values = np.stack(list(parts.values()))
        m = self.mediators
        sampler = statistics.resampler(values.shape[1], m.clusters, seed=m.about["seed"])
        between = statistics.bootstrap_mean(values, sampler)
        share = statistics.bootstrap_ratio_of_means(values, self.total, sampler, 0.0)
        mean = values.mean(axis=1)
        return pd.DataFrame(
            {
                "part": list(parts),
                "effect": mean,
                "low": between.low,
                "high": between.high,
                "share": mean / mean[0] if mean[0] else np.nan,
                "share_low": share.low,
                "share_high": share.high,
            }
        )

    def __str__(self) -> str:
        a = self.mediators.about
        lines = [
            f"{self.sender}: signed {a['quantity']} in {a['unit']}; {len(self.total)} pairs; MLPs on the direct way: "
            f"{a['mlps']}; {a['method']}"
        ]
        for row in self.frame().to_dict("records"):
            between = f"[{row['low']:+.4g}, {row['high']:+.4g}]"
            lines.append(f"  {row['part']}: {row['effect']:+.4g} {between}, {row['share']:.0%} of the total")
        top = self.mediators.top(5).to_dict("records")
        lines.append("  first through: " + ", ".join(f"{r['sender']} {r['effect']:+.4g}" for r in top))
        return "\n".join(lines)


def mediation(
    model: Model,
    pairs: Pairs,
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
) -> Mediation:
    """Direct, total and mediated effect of a sender, and which parts mediate.

    In a linear network direct + mediated = total, as in one that is linear but for its norms if these are frozen;
    elsewhere the rest is their interaction. A mediator's effect is that
    of the paths on which it is the first part after the sender.

    Raises:
        PathError: a sender that does not exist.
    """
    chosen = resolve(dissimilarity)
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
    sets = [~through, ~direct, ~(through - direct), *(~one for one in first)]
    found = measure(model, sets, pairs, chosen, norms=norms, budget_mib=budget_mib, progress=progress, on_plan=on_plan)
    effect = found.signed - found.reference_signed
    about = {
        "receivers": ["what follows"],
        "mlps": mlps,
        "semantics": "first part after the sender",
    } | about_of(model, pairs, chosen, found, seed)
    total = found.counter_signed - found.reference_signed
    return Mediation(
        sender, effect[0], effect[1], effect[2], SenderEffects(names, effect[3:], total, pairs.clusters, about)
    )
