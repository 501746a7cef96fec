"""Texts through the model with some features taken out: what a classifier then sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.points import Progress
from crosspatch.attribution.setup import Setup
from crosspatch.features.basis import Bases
from crosspatch.features.forward import ablated
from crosspatch.features.gradients import example_chunks
from crosspatch.features.nodes import NodeSet
from crosspatch.features.replaced import Means, Replacement, ReplacementName, replacement
from crosspatch.shift.probe import TEXT

Feature = tuple[str, int]
"""A place and the number of a feature there."""


def feature_set(bases: Bases, features: Iterable[Feature], name: str = "") -> NodeSet:
    """Some features, at the tokens that count; no error terms."""
    keep = {basis.place: np.zeros((1, basis.n_nodes), dtype=bool) for basis in bases}
    for place, feature in features:
        keep[place][0, feature] = True
    return NodeSet(keep, {basis.place: basis.has_error for basis in bases}, (TEXT,), name)


@torch.no_grad()
def pooled_without(
    setup: Setup,
    bases: Bases,
    sets: Sequence[NodeSet],
    replaced: ReplacementName | Replacement = "zero",
    *,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "set text d_model"]:
    """Mean residual streams behind the probe's block, with features replaced at every token that counts.

    Place after place through the model: each is encoded as earlier ablations left it, the features are taken out of it,
    and all else, the error term with it, stays as it is.

    Args:
        setup: of `probe_setup`.
        sets: what is taken out, each over the places of `bases`.
        replaced: what takes the place of a feature.

    Returns:
        double precision, in the order of the texts.
    """
    table, kept = replacement(setup, bases, replaced), [features.complement() for features in sets]
    out = torch.zeros(len(sets), len(setup), setup.model.shape.d_model, dtype=torch.float64)
    done = 0
    for chunk in example_chunks(setup, bases, budget_mib):
        part = setup.select(chunk)
        ready, reads = ablated(part, bases, table, -1), [len(read) for read in part.read]
        for i, nodes in enumerate(kept):
            parts = ready.hidden(nodes).double().cpu().split(reads)
            out[i, chunk] = torch.stack([x.mean(0) for x in parts])
        done += len(chunk)
        if progress is not None:
            progress(done, len(setup))
    return out


@torch.no_grad()
def text_means(setup: Setup, bases: Bases, budget_mib: float | None = None) -> Replacement:
    """Means over the tokens that count, of all texts: what neurons are replaced by."""
    sums: dict[str, list[Tensor]] = {}
    count = 0
    for chunk in example_chunks(setup, bases, budget_mib):
        part = setup.select(chunk)
        run = part.record_clean([basis.key for basis in bases])
        at = torch.cat([torch.tensor(read) + run.offset[i] for i, read in enumerate(part.read)])
        count += len(at)
        for basis in bases:
            x = run.packed(basis.key).flatten(1)[at.to(run.hidden.device)]
            found = [basis.features(x).sum(0, keepdim=True), x.sum(0, keepdim=True)]
            sums[basis.place] = (
                [a + b for a, b in zip(sums[basis.place], found, strict=True)] if sums.get(basis.place) else found
            )
    return Replacement("mean-all", {None: {place: Means(f / count, x / count) for place, (f, x) in sums.items()}})
