"""The pairs on which a circuit differs most from the whole model: what an average hides."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.judge import Judge, held_out_pairs
from crosspatch.errors import CircuitError

if TYPE_CHECKING:
    from crosspatch.attribution.ablation import Ablation, AblationName
    from crosspatch.attribution.setup import Setup


def worst_pairs(
    setup: Setup,
    circuit: Circuit,
    n: int = 5,
    by: Literal["metric", "kl"] = "metric",
    *,
    ablation: AblationName | Ablation = "paired",
    held_out: float = 0.5,
    seed: int = 0,
    budget_mib: float | None = None,
) -> pd.DataFrame:
    """The judged pairs with the largest deviation of the circuit from the whole model, worst first.

    Args:
        setup, ablation, held_out, seed, budget_mib: as in `evaluate`.
        n: how many.
        by: `metric`: |circuit - whole model|; `kl`: divergence of the circuit's distribution at the answer from the
            whole model's, in nats, which sees errors that the metric cannot (it needs the whole vocabulary).

    Returns:
        One row per pair: deviation, metric of the whole model, of everything cut and of the circuit, the two prompts,
        answers and wrong answers as text (as token ids where there is no tokenizer), template, digest of the pair.

    Raises:
        CircuitError: an unknown `by`.
    """
    from crosspatch.attribution.ablation import resolve_ablation
    from crosspatch.metrics import KL, PAD
    from crosspatch.model import record

    if by not in ("metric", "kl"):
        raise CircuitError(f"by={by!r}", where="worst_pairs", fix="use 'metric' or 'kl'")
    chosen = resolve_ablation(ablation, setup)
    judged, _ = held_out_pairs(setup, held_out, seed)
    judge = Judge(judged, chosen, budget_mib=budget_mib)
    clean, empty, kept = judge.values([judge.full, judge.empty, circuit])
    apart = np.abs(kept - clean)
    if by == "kl":
        last: list[tuple[int, ...]] = [(len(ids) - 1,) for ids in judged.clean]
        targets = replace(judged.targets, clean_logits=record(judged.model, judged.clean, read=last).logits())
        whole = Judge(replace(judged, metric=KL(), targets=targets, read=last), chosen, budget_mib=budget_mib)
        apart = whole.values([circuit])[0]
    order = np.argsort(-apart, kind="stable")[:n]
    tokenizer = judged.model.tokenizer

    def text(ids: list[int]) -> str:
        known = [i for i in ids if i != PAD]
        return tokenizer.decode(known) if tokenizer is not None else " ".join(map(str, known))

    return pd.DataFrame(
        [
            {
                "deviation": float(apart[i]),
                "clean": float(clean[i]),
                "empty": float(empty[i]),
                "circuit": float(kept[i]),
                "clean_prompt": text(judged.clean[i]),
                "corrupt_prompt": text(judged.corrupt[i]),
                "answers": text(judged.targets.answers[i].tolist()),
                "wrong": text(judged.targets.wrong[i].tolist()),
                "template": judged.clusters[i],
                "pair": judged.digests[i],
            }
            for i in order
        ]
    )
