"""Masks learned by gradient descent, for those who can pay: the fewest edges that keep the model's behaviour.

Edge pruning (Bhaskar et al. 2024, arXiv 2406.16778): every edge has a hard-concrete gate (Louizos, Welling & Kingma
2018, arXiv 1712.01312), and a Lagrangian drives the expected share of kept edges to a target. A cut edge carries its
replacement, whatever the ablation; with learned constants this is the search of optimal ablation (Li & Janson 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.ablation import Ablation, AblationName, Store, resolve_ablation, sender_keys
from crosspatch.attribution.forward import frozen_parameters
from crosspatch.attribution.setup import Setup
from crosspatch.circuits.soft import SoftRun
from crosspatch.errors import CircuitError
from crosspatch.graph import edge_table
from crosspatch.model.activation import one_kernel

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
"""Limits and temperature of the hard-concrete distribution, as Louizos et al. choose them."""


@dataclass(frozen=True)
class Learned:
    """Learned gates.

    Attributes:
        keep: probability that each edge is kept, by number of edge. Rank edges by it to get a circuit of any size.
        history: one row per step: loss, expected share of kept edges, target share.
        origin: JSON values.
    """

    keep: Float[np.ndarray, " edge"]
    history: pd.DataFrame
    origin: dict = field(default_factory=dict)


@dataclass(frozen=True)
class _Batch:
    part: Setup
    clean: Store
    replaced: Store
    target: Tensor
    values: Tensor


def learn_mask(
    setup: Setup,
    share: float = 0.05,
    *,
    ablation: AblationName | Ablation = "paired",
    objective: Literal["kl", "metric"] = "kl",
    start: Float[np.ndarray, " edge"] | None = None,
    steps: int = 300,
    batch: int = 8,
    learning_rate: float = 0.1,
    warm_up: float = 0.6,
    seed: int = 0,
    progress: Callable[[float, float], None] | None = None,
) -> Learned:
    """Learn which edges to keep.

    Memory grows with pairs in a batch, tokens and receivers: every receiver has a stream of its own.

    Args:
        share: target share of all edges.
        ablation: what cut edges carry.
        objective: "kl": divergence of the next-token distribution from the whole model's; "metric": absolute change
            of the setup's metric.
        start: scores to begin from (of `attribute`, say): gates are opened in their order. None: all open.
        steps, batch, learning_rate: of Adam; pairs of equal length make a batch.
        warm_up: share of the steps over which the target falls from 1 to `share`.
        seed: of batches and gates.

    Raises:
        CircuitError: a share outside (0, 1), an unknown objective.
    """
    if not 0 < share < 1 or objective not in ("kl", "metric") or steps < 1:
        raise CircuitError(
            f"share {share}, objective {objective!r}, {steps} steps",
            where="learn_mask",
            fix="0 < share < 1, objective 'kl' or 'metric', at least one step",
        )
    model, table = setup.model, edge_table(setup.model.shape)
    chosen = resolve_ablation(ablation, setup)
    batches = [_batch(setup, examples, chosen) for examples in _equal(setup, batch)]
    draw = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    exists = torch.from_numpy(table.exists.copy()).to(model.device)
    log_alpha = torch.full((len(table),), 2.0) if start is None else _opened(start)
    log_alpha.requires_grad_(True)
    price = torch.zeros(2, requires_grad=True)
    gates = torch.optim.Adam([log_alpha], lr=learning_rate)
    prices = torch.optim.Adam([price], lr=learning_rate, maximize=True)
    rows = []
    receivers, senders = torch.from_numpy(np.argwhere(table.exists.T)).unbind(1)
    places = (senders, receivers)
    with frozen_parameters(model), one_kernel([block.mlp for block in model.anatomy.blocks]):
        for step in range(steps):
            one = batches[int(draw.integers(len(batches)))]
            target = 1 - (1 - share) * min(1.0, (step + 1) / max(1.0, warm_up * steps))
            uniform = torch.rand(len(table), generator=noise).clamp(1e-6, 1 - 1e-6)
            gate = _hard((uniform.log() - (-uniform).log1p() + log_alpha) / TEMPERATURE)
            mask = torch.zeros(exists.shape, dtype=model.dtype).index_put(places, gate.to(model.dtype))
            hidden = SoftRun(one.part, one.clean, one.replaced, mask.to(model.device)).hidden()
            loss = _loss(one, hidden, objective)
            kept = _kept(log_alpha).mean()
            excess = kept - target
            total = loss + price[0] * excess + price[1] * excess.square()
            gates.zero_grad()
            prices.zero_grad()
            total.backward()
            gates.step()
            prices.step()
            rows.append({"step": step, "loss": float(loss.detach()), "kept": float(kept.detach()), "target": target})
            if progress is not None:
                progress(step + 1, steps)
    origin = setup.provenance | {
        "method": "edge-pruning", "ablation": chosen.name, "objective": objective, "share": share, "steps": steps,
        "batch": batch, "learning_rate": learning_rate, "warm_up": warm_up, "seed": seed,
    }  # fmt: skip
    return Learned(_kept(log_alpha.detach()).double().numpy(), pd.DataFrame(rows), origin)


def _equal(setup: Setup, size: int) -> list[list[int]]:
    """Batches of pairs of equal length."""
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(setup.clean):
        by_length.setdefault(len(ids), []).append(i)
    return [members[at : at + size] for members in by_length.values() for at in range(0, len(members), size)]


@torch.no_grad()
def _batch(setup: Setup, examples: list[int], ablation: Ablation) -> _Batch:
    part = setup.select(examples)
    keys = sender_keys(setup.model.shape)
    run = part.record_clean(keys)
    clean = {key: run.packed(key) for key in keys}
    target = setup.model.unembed(run.hidden).float().log_softmax(-1)
    return _Batch(part, clean, ablation.store(setup, examples, clean), target, part.measure(run.hidden))


def _loss(one: _Batch, hidden: Tensor, objective: str) -> Tensor:
    if objective == "metric":
        return (one.part.measure(hidden) - one.values).abs().mean()
    found = one.part.model.unembed(hidden).float().log_softmax(-1)
    return (one.target.exp() * (one.target - found)).sum(-1).mean()


def _hard(logit: Tensor) -> Tensor:
    return (torch.sigmoid(logit) * (HIGH - LOW) + LOW).clamp(0, 1)


def _kept(log_alpha: Tensor) -> Tensor:
    """Probability that a gate is not zero (Louizos et al. 2018, equation 12)."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def _opened(scores: np.ndarray) -> Tensor:
    """Gates from half closed to open, by rank of the absolute score."""
    order = np.argsort(np.argsort(np.nan_to_num(np.abs(scores)), kind="stable"), kind="stable")
    return torch.from_numpy(4 * order / max(1, len(order) - 1) - 1).float()
