"""The effect of every feature and error term, by gradients (Marks et al. 2025, arXiv 2403.19647, section 3.1).

An effect is the estimate of `metric(clean) - metric(this node replaced)`: (clean - replaced value) times the gradient
at the node, added up over the tokens of a span. A positive effect helps. (The paper's indirect effect has the other
sign.) An error term is one node: the inner product over its dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.points import Progress
from crosspatch.attribution.setup import Setup
from crosspatch.errors import TaskError
from crosspatch.features.basis import Bases, Basis
from crosspatch.features.found import FeatureEffects, Kept
from crosspatch.features.gradients import example_chunks, gradients, how, token_masks
from crosspatch.features.replaced import Replacement, ReplacementName, Values, replacement
from crosspatch.graph import ALL


def feature_effects(
    setup: Setup,
    bases: Bases,
    replaced: ReplacementName | Replacement = "paired",
    *,
    method: str = "atp",
    steps: int = 10,
    rule: str = "midpoint",
    spans: Sequence[str] = (),
    keep: int | None = 1000,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> FeatureEffects:
    """The effect of every node at some places.

    Args:
        replaced: what takes the place of a node (see `features.replaced`).
        method: `atp`, `ig` or `relp` (see `gradients.METHODS`); exact ones are `exact_effects`.
        steps, rule: of integrated gradients.
        spans: names of spans, for one node per span (see `templatic` for one per position); default: nodes are
            features at all tokens, effects summed over them.
        keep: how many effects of each example, span and place are kept, the largest; None = all that are not zero.
            Means over examples are exact whatever it is.
        budget_mib: memory for one chunk of pairs.

    Raises:
        MetricError: an unknown method; a metric without a gradient at the clean run; an unknown span.
        InterventionError: see `replacement`.
    """
    chosen = how(method, steps, rule)
    table = replacement(setup, bases, replaced)
    found = Kept.empty(len(setup), [basis.place for basis in bases], max(len(spans), 1))
    sums = {b.place: np.zeros((max(len(spans), 1), b.n_nodes)) for b in bases}
    clean = np.zeros(len(setup))
    done = 0
    for chunk in example_chunks(setup, bases, budget_mib):
        part = setup.select(chunk)
        masks = token_masks(part, spans)
        values, each = gradients(part, bases, chosen, table, budget_mib)
        for place, (basis, gradient) in enumerate(each):
            effects = _at_place(basis, gradient, values, masks)
            sums[basis.place] += effects.sum(0).numpy()
            found.add(effects.numpy(), chunk, place, basis.has_error, keep)
        clean[chunk] = values.metric.double().cpu().numpy()
        done += len(chunk)
        if progress is not None:
            progress(done, len(setup))
    return FeatureEffects(
        places=[basis.place for basis in bases],
        has_error={basis.place: basis.has_error for basis in bases},
        blocks={basis.place: basis.block for basis in bases},
        spans=tuple(spans) or (ALL,),
        mean={place: total / len(setup) for place, total in sums.items()},
        kept=found.done(),
        clean=clean,
        clusters=list(setup.clusters),
        pairs=setup.digests,
        origin={
            **setup.provenance,
            "method": method,
            "replacement": table.name,
            **({"steps": steps, "rule": rule} if method == "ig" else {}),
        },
    )


@torch.no_grad()
def _at_place(
    basis: Basis,
    gradient: Float[Tensor, "token d"],
    values: Values,
    masks: Float[Tensor, "span example position"],
) -> Float[Tensor, "example span node"]:
    """Effects of all nodes at one place, added up over the tokens of each span."""
    x, whole = values.at[basis.place], values.whole(basis)
    moves = (gradient != 0).any(-1)
    if values.replacement.name == "paired":  # equal activations have equal features; means of them need not
        moves &= (x != whole).any(-1)
    rows = moves.nonzero()[:, 0]  # at all other tokens every effect is 0
    g = gradient[rows]
    products = basis.along(g) * values.change(basis, rows)
    own = rows // values.length == torch.arange(values.n, device=rows.device)[:, None]
    inside = masks.flatten(1).to(rows.device)[:, rows]
    weights = (own[:, None] * inside).flatten(0, 1).double()
    effects = weights @ products.double()
    if basis.has_error:
        # g . (change of e) is g . (change of x) less what the features account for: no decoding is needed.
        both = weights @ (g * (x - whole)[rows]).sum(-1, keepdim=True).double()
        effects = torch.cat([effects, both - effects.sum(-1, keepdim=True)], -1)
    return effects.unflatten(0, (values.n, -1)).cpu()


def templatic(setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    """The same pairs with a span for every position, and their names: nodes are then (feature, position).

    Raises:
        TaskError: prompts that differ in length, so that a position does not mean the same in all.
    """
    lengths = {len(ids) for ids in setup.clean}
    if len(lengths) > 1:
        raise TaskError(
            f"prompts have {min(lengths)} to {max(lengths)} tokens, so that a position means different things",
            where="templatic",
            fix="name spans, or add up over tokens",
        )
    names = tuple(f"t{p}" for p in range(lengths.pop()))
    own = {name: (p, p + 1) for p, name in enumerate(names)}
    return dataclasses.replace(setup, spans=[{**spans, **own} for spans in setup.spans]), names
