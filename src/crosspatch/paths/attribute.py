"""Where a hypothesis fails: signed change of the loss, token by token, for one reference and many counterfactuals.

A(Q; x_r) = mean over x_c of L(G with the paths Q on x_c) - L(G(x_r)) (Goldowsky-Dill et al. 2023, path patching
attribution). Positive: Q was lowering the loss on x_r; negative: Q was hurting.
"""

from __future__ import annotations

from collections.abc import Callable
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
from crosspatch.paths.measure import measure
from crosspatch.paths.norms import Norms
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import PathSet
from crosspatch.results import statistics


@dataclass(frozen=True)
class Attribution:
    """Signed effects of moving some paths to the counterfactual.

    Attributes:
        positions: of the reference that were read.
        effect, low, high: mean change of the signed quantity (a loss) and its interval over counterfactuals.
        reference: the quantity in the model itself.
        draws: `[counterfactual, read]`.
        tokens: the reference prompt, where a tokenizer is there.
        unit: of the effect.
        about: quantity, pairs, paths, seed, cost: what makes these numbers reproducible.
    """

    positions: tuple[int, ...]
    effect: Float[np.ndarray, " read"]
    low: Float[np.ndarray, " read"]
    high: Float[np.ndarray, " read"]
    reference: Float[np.ndarray, " read"]
    draws: Float[np.ndarray, "counterfactual read"]
    tokens: list[str]
    unit: str
    about: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per read: position, the token there, change of the quantity with interval, and the model's own."""
        return pd.DataFrame(
            {
                "position": self.positions,
                "token": [self.tokens[at] for at in self.positions],
                "effect": self.effect,
                "low": self.low,
                "high": self.high,
                "reference": self.reference,
            }
        )

    def __str__(self) -> str:
        a = self.about
        head = (
            f"{a['quantity']} in {self.unit}, change when {a['patched']} see another prompt; {len(self.draws)} "
            f"counterfactuals ({a['pairs']}); {a['method']}"
        )
        return f"{head}\n{self.frame().to_string(index=False, float_format=lambda x: f'{x:.4g}')}"


def attribute(
    model: Model,
    patched: PathSet,
    pairs: Pairs,
    *,
    dissimilarity: str | Dissimilarity = "abs_loss",
    always: PathSet | None = None,
    norms: Norms = "recomputed",
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> Attribution:
    """Move `patched` to the counterfactual and see what happens to the loss at every token.

    Args:
        patched: the paths that carry the counterfactual: those that a hypothesis leaves out, say (`~claim`).
        pairs: one reference, many counterfactuals (`fixed_reference`).
        dissimilarity: whose signed quantity is followed.
        always: paths that stay on the reference.
        seed: of the bootstrap over counterfactuals.
        norms, budget_mib, progress, on_plan: see `evaluate`.

    Raises:
        PathError: more than one reference, or a set that does not fit.
    """
    if len({tuple(ids) for ids in pairs.reference}) != 1:
        raise PathError(
            "attribution looks at one reference prompt, and these pairs have several",
            where="attribute",
            fix="use fixed_reference(rows, row, n), or select the pairs of one prompt",
        )
    chosen = resolve(dissimilarity)
    keep = ~patched if always is None else ~patched | always
    found = measure(
        model, [keep], pairs, chosen, norms=norms, budget_mib=budget_mib, progress=progress, on_plan=on_plan
    )
    reference = found.reference_reads[0]
    draws = np.stack(found.signed_reads[0]) - reference
    sampler = statistics.resampler(len(draws), pairs.clusters, seed=seed)
    interval = statistics.bootstrap_mean(draws.T, sampler)
    ids = pairs.reference[0]
    names = [model.tokenizer.decode([i]) for i in ids] if model.tokenizer is not None else [str(i) for i in ids]
    about = {
        "quantity": chosen.quantity,
        "patched": str(patched),
        "always": None if always is None else always.to_json(),
        "pairs": pairs.provenance,
        "pairs_hash": pairs.hash,
        "method": found.plan.describe(),
        "node_evaluations": found.plan.node_evaluations,
        "model": model.name,
        "norms": norms,
        "seed": seed,
    }
    effect, unit = draws.mean(axis=0), chosen.unit_of_signed
    return Attribution(pairs.read[0], effect, interval.low, interval.high, reference, draws, names, unit, about)
