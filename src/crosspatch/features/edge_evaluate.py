"""How much of a behaviour a set of edges explains: exactly, and on pairs that were not searched on.

Marks et al. 2025 (arXiv 2403.19647) and the tools that follow them evaluate nodes alone: every kept node reads every
other kept node, whichever edges were found. Here a node reads another only where the edge between them is kept; see
`edge_run` for the definition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from crosspatch.attribution.points import Progress
from crosspatch.attribution.setup import Setup
from crosspatch.errors import CircuitError
from crosspatch.features.basis import Bases
from crosspatch.features.edge_run import EdgeRun, Plan, plan
from crosspatch.features.edge_sets import LOGITS, EdgeEvaluation, EdgeSet
from crosspatch.features.forward import ablated
from crosspatch.features.gradients import example_chunks, token_masks
from crosspatch.features.nodes import NodeSet
from crosspatch.features.replaced import Replacement, ReplacementName, replacement
from crosspatch.features.structure import LOGITS as LOGITS_KEY
from crosspatch.features.structure import direct_ways
from crosspatch.graph import ModelShape


def evaluate_edges(
    setup: Setup,
    bases: Bases,
    nodes: NodeSet,
    sets: Sequence[EdgeSet],
    replaced: ReplacementName | Replacement = "mean",
    *,
    start_block: int,
    n_random: int = 10,
    held_out: float = 0.5,
    seed: int = 0,
    n_boot: int = 2000,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> EdgeEvaluation:
    """Faithfulness and completeness of sets of edges, beside random sets with as many edges between every two places.

    A node d of the set has the value that it would have if each place which it reads directly held its replaced
    activation, plus what the nodes u with a kept edge u -> d make different by the values that they have in turn. The
    logits are a receiver like any other. So m(edges) with every edge between the nodes is what `evaluate_nodes` gives
    for them, with every node and every edge it is the model, and without an edge into the logits (and with every token
    in a span) it is m(nothing).
    For completeness the edges of the set are cut out of the whole model: d reads the replaced u where u -> d is in the
    set, and everything else, chosen or not, as it is.

    Error terms are nodes where `nodes` has them, and recomputed from the activation that they read.

    Costs one run of the model between two places for every different set of parents that some node reads, at most
    `edge_passes` forward passes per example for each set (a small part of the number of nodes, since no run is longer
    than from one place to the next), and as much again for completeness and for each random set.

    Args:
        setup: all pairs. Means are taken over their corrupt prompts.
        bases: every place that counts as a node, as for `feature_edges`.
        nodes: the chosen nodes. Spans must not overlap. Tokens of no span have no nodes: they read all chosen nodes,
            and everything reads them. Nodes of blocks before `start_block`, and their edges, count for nothing.
        sets: edges between these nodes.
        replaced, start_block, held_out, seed, n_boot, budget_mib: as in `evaluate_nodes`.
        n_random: random sets for each set, drawn from all edges that there may be between the nodes.
        progress: told after every set and chunk.

    Raises:
        CircuitError: no sets; an edge where no direct way is, or of a node that is not there; no place from
            `start_block` on; nodes of other bases; spans that overlap; not a share.
        InterventionError: see `replacement`.
    """
    used, own, edges = _from_block(bases, nodes, sets, start_block)
    if not 0 <= held_out < 1:
        raise CircuitError(f"held_out={held_out}", where="held_out", fix="give a share from 0 to below 1")
    table = replacement(setup, bases, replaced)
    judged = setup.split(held_out, seed)[1] if held_out else setup
    covered = _covered(judged, own.spans)
    listed, shape = list(own), setup.model.shape
    every = all_edges(shape, used, own)
    draws = [np.random.default_rng([seed, i]) for i in range(n_random)]
    random = [[one.random_like(every, listed, draw) for draw in draws] for one in edges]
    drawn = [one for some in random for one in some]

    def plans(some: Sequence[EdgeSet], cut: bool) -> list[Plan]:
        return [plan(shape, used, own, one.matrix(len(listed)), cut=cut, covered=covered) for one in some]

    rows = [*plans([every], False), *plans(edges, False), *plans(edges, True)]
    rows += [*plans(drawn, False), *plans(drawn, True)]
    clean, empty, values = _values(judged, used, table, start_block, own, rows, budget_mib, progress)
    n, m = len(edges), len(drawn)
    kept, cut, random_kept, random_cut = np.split(values[1:], [n, 2 * n, 2 * n + m])
    return EdgeEvaluation(
        sets=[own] * n,
        pairs=judged.digests,
        clusters=list(judged.clusters),
        model=clean,
        empty=empty,
        kept=kept,
        cut=cut,
        random_kept=random_kept.reshape(n, n_random, len(judged)),
        random_cut=random_cut.reshape(n, n_random, len(judged)),
        about={
            **setup.provenance,
            "replacement": table.name,
            "error_terms": "nodes",
            "kept_error": "recomputed",
            "start_block": start_block,
            "places": [basis.place for basis in used],
            "held_out": held_out,
            "seed": seed,
            "n_boot": n_boot,
            "forward_passes": round(sum(one.passes(shape) for one in rows), 2),
        },
        edges=edges,
        nodes_kept=values[0],
    )


def all_edges(shape: ModelShape, bases: Bases, nodes: NodeSet) -> EdgeSet:
    """Every edge that there may be between the nodes of a set, and from them into the logits."""
    ways = direct_ways(shape, [basis.key for basis in bases])
    key_of = {basis.place: basis.key for basis in bases}
    places = [key_of[node.place] for node in nodes]
    by_key = {key: np.array([i for i, at in enumerate(places) if at == key], dtype=np.int64) for key in ways}
    up, down = [], []
    for key, parents in ways.items():
        to = np.array([LOGITS]) if key == LOGITS_KEY else by_key[key]
        for parent in parents:
            pairs = np.meshgrid(by_key[parent], to, indexing="ij")
            up.append(pairs[0].ravel())
            down.append(pairs[1].ravel())
    return EdgeSet(np.concatenate(up), np.concatenate(down), "every edge")


def edge_passes(setup: Setup, bases: Bases, nodes: NodeSet, edges: EdgeSet, *, start_block: int) -> float:
    """About how many forward passes per example `evaluate_edges` takes for one set and its completeness, so that a
    long run is known as one before it begins (times 1 + `n_random` with random sets).

    Raises:
        As `evaluate_edges`.
    """
    used, own, (one,) = _from_block(bases, nodes, [edges], start_block)
    shape, covered, marks = setup.model.shape, _covered(setup, own.spans), one.matrix(len(own))
    return sum(plan(shape, used, own, marks, cut=cut, covered=covered).passes(shape) for cut in (False, True))


def _from_block(
    bases: Bases, nodes: NodeSet, sets: Sequence[EdgeSet], start_block: int
) -> tuple[Bases, NodeSet, list[EdgeSet]]:
    """The same without places of earlier blocks."""
    used = tuple(basis for basis in bases if basis.block >= start_block)
    if not sets:
        raise CircuitError("no sets of edges", where="sets", fix="give at least one")
    if not used:
        raise CircuitError(f"no place is in block {start_block} or later", where="start_block", fix="start earlier")
    for basis in bases:
        if basis.place not in nodes.keep or nodes.keep[basis.place].shape[1] != basis.n_nodes:
            raise CircuitError(f"{nodes!r} is of other places", where="nodes", fix="use the same bases")
    places = [basis.place for basis in used]
    number = np.full(len(nodes) + 1, -2)  # of nodes that stay; the last: the logits
    number[-1] = LOGITS
    stays = [i for i, node in enumerate(nodes) if node.place in places]
    number[stays] = range(len(stays))
    made = []
    for edges in sets:
        edges.matrix(len(nodes))
        up, down = number[edges.up], number[edges.down]
        both = (up >= 0) & (down >= LOGITS)
        made.append(EdgeSet(up[both], down[both], edges.name))
    return used, nodes.at(places), made


def _covered(setup: Setup, spans: Sequence[str]) -> bool:
    """Whether every token of every prompt belongs to one span.

    Raises:
        CircuitError: a token of several, where a feature would be several nodes at once.
    """
    counts = [token_masks(setup.select([i]), spans).sum(0) for i in range(len(setup))]
    if any(bool((count > 1).any()) for count in counts):
        raise CircuitError(
            "a token belongs to several spans, so that its features would be several nodes at once",
            where=f"spans {', '.join(spans)}",
            fix="use spans that do not overlap, or all tokens",
        )
    return all(bool((count > 0).all()) for count in counts)


@torch.no_grad()
def _values(
    setup: Setup,
    bases: Bases,
    table: Replacement,
    start_block: int,
    nodes: NodeSet,
    rows: Sequence[Plan],
    budget_mib: float | None,
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The metric of the model, of every node replaced, and of every plan, by example."""
    clean, empty, out = np.zeros(len(setup)), np.zeros(len(setup)), np.zeros((len(rows), len(setup)))
    done = 0
    for chunk in example_chunks(setup, bases, budget_mib):
        ready = ablated(setup.select(chunk), bases, table, start_block)
        clean[chunk] = ready.values.metric.double().cpu().numpy()
        empty[chunk] = ready.run(nodes.emptied()).cpu().numpy()
        for i, row in enumerate(rows):
            out[i, chunk] = EdgeRun(ready, row, budget_mib).run().cpu().numpy()
            done += len(chunk)
            if progress is not None:
                progress(done, len(rows) * len(setup))
    return clean, empty, out
