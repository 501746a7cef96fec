"""Is a set of features and error terms enough, and is the model without it left with nothing?

Faithfulness of C is (m(C) - m(nothing)) / (m(model) - m(nothing)), m the mean metric of runs in which every node
outside C is replaced; completeness is the faithfulness of all other nodes, 0 at best (Marks et al. 2025, arXiv
2403.19647, section 3.2). Nothing is clipped: values above 1 occur, and the raw means belong beside every share.
The paper leaves the first third of the blocks alone and does not count them: `start_block` says so here, and has no
default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import get_args

import numpy as np
from jaxtyping import Float

from crosspatch.attribution.points import Progress
from crosspatch.attribution.setup import Setup
from crosspatch.errors import CircuitError
from crosspatch.features.basis import Bases
from crosspatch.features.evaluation import FeatureEvaluation
from crosspatch.features.forward import Ablated, KeptError, ablated
from crosspatch.features.gradients import example_chunks
from crosspatch.features.nodes import STREAM, Errors, NodeSet
from crosspatch.features.replaced import Replacement, ReplacementName, replacement


def evaluate_nodes(
    setup: Setup,
    bases: Bases,
    sets: Sequence[NodeSet],
    replaced: ReplacementName | Replacement = "mean",
    *,
    start_block: int,
    errors: Errors = "nodes",
    kept_error: KeptError = "recomputed",
    population: NodeSet | None = None,
    n_random: int = 10,
    held_out: float = 0.5,
    seed: int = 0,
    n_boot: int = 2000,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> FeatureEvaluation:
    """Faithfulness and completeness of sets of nodes, beside random sets of the same size at every place.

    Args:
        setup: all pairs. Means are taken over their corrupt prompts.
        sets: over the places of `bases`, all at the same spans. Tokens of no span have no nodes and are left to the
            model, in m(nothing) too. Nodes of blocks before `start_block` count for nothing.
        replaced: what takes the place of nodes outside a set.
        start_block: places of earlier blocks are left to the model; -1: the input is replaced as well.
        errors: which error terms are kept, in a set and in its complement alike (see `nodes.Errors`). With nothing
            kept, every error term is replaced whatever the policy, so that policies share one scale.
        kept_error: an error term that is kept is `recomputed` from the present activation, or the `clean` run's.
        population: what random features are drawn from, as a rule `FeatureEffects.active()`: drawn from all features,
            nearly all would be silent on these prompts. None: no random sets.
        n_random: random sets for each set.
        held_out: share of the pairs to judge on, `setup.split(held_out, seed)[1]`; effects should come from
            `setup.split(held_out, seed)[0]`. 0: all pairs.
        seed: of the split, random sets and intervals.
        n_boot: resamples for intervals.
        budget_mib: memory for one chunk of pairs.

    Raises:
        CircuitError: no sets; no place from `start_block` on; a set over other places or spans; an unknown policy, or
            way to keep error terms; not a share.
        InterventionError: see `replacement`.
    """
    places = [basis.place for basis in bases if basis.block >= start_block]
    stream = [basis.place for basis in bases if basis.key[1] in STREAM]
    if not sets:
        raise CircuitError("no sets of nodes", where="sets", fix="give at least one")
    if not places:
        raise CircuitError(f"no place is in block {start_block} or later", where="start_block", fix="start earlier")
    if not 0 <= held_out < 1:
        raise CircuitError(f"held_out={held_out}", where="held_out", fix="give a share from 0 to below 1")
    if kept_error not in get_args(KeptError):
        fix = f"use one of {', '.join(get_args(KeptError))}"
        raise CircuitError(f"kept_error={kept_error!r}", where="error terms", fix=fix)
    for nodes in [*sets, *([] if population is None else [population])]:
        if lacking := [place for place in places if place not in nodes.keep]:
            raise CircuitError(f"{nodes!r} says nothing about {lacking[0]}", where="sets", fix="use the same bases")
        if nodes.spans != sets[0].spans:
            raise CircuitError(f"nodes at {nodes.spans} and at {sets[0].spans}", where="sets", fix="use the same spans")
    table = replacement(setup, bases, replaced)
    judged = setup.split(held_out, seed)[1] if held_out else setup
    own = [nodes.at(places) for nodes in sets]
    if population is None:
        random: list[list[NodeSet]] = [[] for _ in own]
    else:
        draws = [np.random.default_rng([seed, i]) for i in range(n_random)]
        random = [[nodes.random_like(population, draw) for draw in draws] for nodes in own]

    def policy(nodes: NodeSet) -> NodeSet:
        return nodes.with_errors(errors, stream)

    rows = [policy(nodes) for nodes in own] + [policy(nodes.complement()) for nodes in own]
    rows += [policy(nodes) for drawn in random for nodes in drawn]
    rows += [policy(nodes.complement()) for drawn in random for nodes in drawn]
    start = partial(ablated, bases=bases, replacement=table, start_block=start_block, kept_error=kept_error)
    chunks = example_chunks(judged, bases, budget_mib)
    clean, values = _values(judged, chunks, start, [own[0].emptied(), *rows], progress)
    n, m = len(own), sum(map(len, random))
    kept, cut, random_kept, random_cut = np.split(values[1:], [n, 2 * n, 2 * n + m])
    shape = (n, m // n if n else 0, len(judged))
    return FeatureEvaluation(
        sets=own,
        pairs=judged.digests,
        clusters=list(judged.clusters),
        model=clean,
        empty=values[0],
        kept=kept,
        cut=cut,
        random_kept=random_kept.reshape(shape),
        random_cut=random_cut.reshape(shape),
        about={
            **setup.provenance,
            "replacement": table.name,
            "error_terms": errors,
            "kept_error": kept_error,
            "start_block": start_block,
            "places": places,
            "held_out": held_out,
            "seed": seed,
            "n_boot": n_boot,
        },
    )


def _values(
    setup: Setup,
    chunks: Iterable[list[int]],
    start: Callable[[Setup], Ablated],
    rows: Sequence[NodeSet],
    progress: Progress | None,
) -> tuple[Float[np.ndarray, " example"], Float[np.ndarray, "row example"]]:
    """The metric of the model, and of every set."""
    clean, out = np.zeros(len(setup)), np.zeros((len(rows), len(setup)))
    done = 0
    for chunk in chunks:
        ready = start(setup.select(chunk))
        clean[chunk] = ready.values.metric.double().cpu().numpy()
        for i, nodes in enumerate(rows):
            out[i, chunk] = ready.run(nodes).cpu().numpy()
            done += len(chunk)
            if progress is not None:
                progress(done, len(rows) * len(setup))
    return clean, out
