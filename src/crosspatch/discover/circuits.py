"""A feature circuit for every cluster, over thousands of them: what is finished is kept, what fails is noted.

Nodes by the size of their mean effect on log p(answer), zero ablation, on half of the cluster's documents; direct
effects between them; faithfulness on the other half, beside random sets of the same size and the same error terms
(Marks et al. 2025, arXiv 2403.19647, sections 3.2 and 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from crosspatch.attribution.setup import Setup
from crosspatch.discover.cards import circuit_cards
from crosspatch.discover.clusters import (
    CARDS_FILE,
    CLUSTER,
    CLUSTER_FILE,
    CLUSTER_VERSION,
    Clustering,
    cluster_folder,
    drop_circuit,
    drop_others,
    read_cluster,
)
from crosspatch.discover.samples import Samples
from crosspatch.discover.setup import setup_of_samples
from crosspatch.discover.vectors import dictionary_digests
from crosspatch.errors import CircuitError, CrosspatchError
from crosspatch.features.basis import Bases
from crosspatch.features.edge_scores import FeatureEdges
from crosspatch.features.edges import feature_edges
from crosspatch.features.effects import feature_effects
from crosspatch.features.evaluate import evaluate_nodes
from crosspatch.features.evaluation import FeatureEvaluation
from crosspatch.features.found import FeatureEffects
from crosspatch.features.nodes import Errors, NodeSet
from crosspatch.features.replaced import Replacement, ReplacementName, replacement
from crosspatch.features.saved import save_circuit
from crosspatch.features.search import mean_effects
from crosspatch.model import Model
from crosspatch.results.files import write_json
from crosspatch.results.statistics import bootstrap_mean, resampler

Progress = Callable[[float, float], None]
FOUND, JUDGED, LINKED = 0.45, 0.75, 0.95
"""Share of the work on a cluster that is done after its nodes, their evaluation, their edges; cards are the rest."""
CARDS, CARDS_OF_PLACE = 60, 12
"""The largest nodes of a circuit, and of every place, have cards: those that a page lists and draws."""
FEWEST = 4
"""Documents that a cluster needs: two to search on and two to judge on."""


@dataclass(frozen=True)
class CircuitSettings:
    """How the circuits of clusters are found and judged.

    Attributes:
        nodes: features and error terms of a circuit, the largest mean effects.
        edges: so many of the strongest edges are kept; 0: no edges.
        method, steps: of effects (see `features.feature_effects`). The answers are nearly certain, so that the gradient
            at the clean run is nearly 0 and says little of what a whole ablation does: integrate.
        replaced: `zero`, as in the paper, or `mean-all`: means over contexts of all clusters.
        errors: which error terms are kept in the evaluation (see `features.nodes.Errors`).
        start_block: places of earlier blocks are left to the model; None: the first third is, as in the paper.
        most: samples of a cluster that are used, drawn at random.
        held_out: share of the documents to judge on.
        n_random: random sets to compare with; they keep the circuit's error terms.
        seed: of draws, split and intervals.
    """

    nodes: int = 200
    edges: int = 60
    method: str = "ig"
    steps: int = 5
    replaced: ReplacementName = "zero"
    errors: Errors = "nodes"
    start_block: int | None = None
    most: int = 40
    held_out: float = 0.5
    n_random: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.edges < 0 or self.most < FEWEST or not 0 < self.held_out < 1:
            raise CircuitError(
                f"nodes={self.nodes}, edges={self.edges}, most={self.most}, held_out={self.held_out}",
                where="CircuitSettings",
                fix=f"give at least 1 node and {FEWEST} samples, and a share between 0 and 1",
            )
        if self.replaced not in ("zero", "mean-all"):
            raise CircuitError(
                f"replaced={self.replaced!r}", where="CircuitSettings", fix="contexts have no pairs: zero or mean-all"
            )
        if self.errors not in get_args(Errors):
            fix = f"use one of {', '.join(get_args(Errors))}"
            raise CircuitError(f"errors={self.errors!r}", where="CircuitSettings", fix=fix)


def cluster_circuits(
    model: Model,
    samples: Samples,
    clustering: Clustering,
    bases: Bases,
    folder: str | Path,
    settings: CircuitSettings | None = None,
    *,
    most: int | None = None,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Find and judge a circuit for every cluster, and write each to a folder of its own as soon as it is done.

    A cluster that is there with the same samples, dictionaries and settings is not computed again; one that failed is
    tried again. A circuit that was found in another way is replaced, with all of its files; those of clusters that
    there are no more are removed.

    Args:
        folder: gets `c00000/cluster.json`, and beside it the circuit as `features.save_circuit` writes it and
            `cards.json`, what its largest features are active on.
        most: so many of the largest clusters; None: all. Clusters with samples of fewer than `FEWEST` documents have
            no circuit.
        progress: called with (clusters, of how many); while one is looked at, with the share of it that is done.

    Returns:
        What is in each `cluster.json`. One with an `error` has no circuit.

    Raises:
        CircuitError: bases without any place from the start block on.
    """
    settings = settings or CircuitSettings()
    start = model.shape.n_layers // 3 if settings.start_block is None else settings.start_block
    if not any(basis.block >= start for basis in bases):
        raise CircuitError(f"no place is in block {start} or later", where="start_block", fix="start earlier")
    folder = Path(folder)
    chosen = [number for number in range(clustering.k) if _documents(samples, clustering, number) >= FEWEST]
    chosen = chosen[:most]
    drop_others(folder, clustering.k)
    table: Replacement | None = None
    found = []
    for done, number in enumerate(chosen, 1):
        own = samples.select(_drawn(clustering.members(number), settings, number))
        key = {"samples": own.hash, "places": [basis.place for basis in bases], "start_block": start}
        key |= {"settings": asdict(settings), "model": model.name, "dictionaries": dictionary_digests(bases)}
        kept = read_cluster(cluster_folder(folder, number))
        if kept is None or kept["key"] != key or "error" in kept:
            if table is None:
                table = _replacement(model, samples, bases, settings)
            drop_circuit(cluster_folder(folder, number))  # of other settings: files of two circuits are never mixed
            kept = {"format": CLUSTER, "version": CLUSTER_VERSION, "cluster": number, "key": key}
            at = _steps(progress, done - 1, len(chosen))
            kept |= _noted(model, own, bases, table, start, settings, cluster_folder(folder, number), budget_mib, at)
            write_json(cluster_folder(folder, number) / CLUSTER_FILE, kept)
        found.append(kept)
        if progress is not None:
            progress(done, len(chosen))
    return found


def _steps(progress: Progress | None, before: int, clusters: int) -> Callable[[float], None]:
    """From the share of one cluster that is done to the progress of all."""

    def at(share: float) -> None:
        if progress is not None:
            progress(before + share, clusters)

    return at


def _documents(samples: Samples, clustering: Clustering, number: int) -> int:
    return len(np.unique(samples.documents[clustering.members(number)]))


def _drawn(members: np.ndarray, settings: CircuitSettings, number: int) -> np.ndarray:
    if len(members) <= settings.most:
        return members
    draw = np.random.default_rng([settings.seed, number])
    return np.sort(draw.choice(members, settings.most, replace=False))


def _replacement(model: Model, samples: Samples, bases: Bases, settings: CircuitSettings) -> Replacement:
    """What takes the place of nodes, the same for all clusters."""
    draw = np.random.default_rng([settings.seed])
    some = np.sort(draw.choice(len(samples), min(len(samples), 512), replace=False))
    return replacement(setup_of_samples(model, samples, some.tolist()), bases, settings.replaced)


def _noted(
    model: Model,
    samples: Samples,
    bases: Bases,
    table: Replacement,
    start: int,
    settings: CircuitSettings,
    folder: Path,
    budget_mib: float | None,
    at: Callable[[float], None],
) -> dict[str, Any]:
    """The circuit of one cluster, or why there is none."""
    try:
        setup = setup_of_samples(model, samples)
        return _circuit(setup, bases, table, start, settings, folder, budget_mib, at)
    except CrosspatchError as error:
        return {"error": {"type": type(error).__name__, "what": error.what, "where": error.where}}
    except (RuntimeError, ValueError, ArithmeticError) as error:  # out of memory, a metric that is not finite
        return {"error": {"type": type(error).__name__, "what": str(error).partition("\n")[0], "where": None}}


def _circuit(
    setup: Setup,
    bases: Bases,
    table: Replacement,
    start: int,
    settings: CircuitSettings,
    folder: Path,
    budget_mib: float | None,
    at: Callable[[float], None],
) -> dict[str, Any]:
    search, _ = setup.split(settings.held_out, settings.seed)
    how: dict[str, Any] = {"method": settings.method, "steps": settings.steps, "budget_mib": budget_mib}

    def between(low: float, high: float) -> Progress:
        return lambda done, total: at(low + (high - low) * done / max(total, 1))

    effects = feature_effects(search, bases, table, **how, progress=between(0, FOUND))
    nodes = effects.top(settings.nodes, start_block=start)
    if not len(nodes):
        raise CircuitError("no node has an effect", where="cluster")
    judged = evaluate_nodes(
        setup,
        bases,
        [nodes],
        table,
        start_block=start,
        errors=settings.errors,
        population=effects.active(),
        n_random=settings.n_random,
        held_out=settings.held_out,
        seed=settings.seed,
        budget_mib=budget_mib,
        progress=between(FOUND, JUDGED),
    )
    linked = between(JUDGED, LINKED)
    edges = feature_edges(search, bases, nodes, table, **how, progress=linked) if settings.edges else None
    save_circuit(folder, nodes, edges)
    listed = _nodes(effects, nodes, settings.seed)
    largest = {one["node"] for one in listed[:CARDS]}
    for place in nodes.keep:
        largest |= set([one["node"] for one in listed if one["place"] == place][:CARDS_OF_PLACE])
    cards = circuit_cards(setup.model, bases, (node for node in nodes if str(node) in largest), setup.clean)
    write_json(folder / CARDS_FILE, {"cards": cards})
    return {
        "samples": len(setup),
        "searched": len(search),
        "judged": len(judged.pairs),
        "nodes": listed,
        "edges": [] if edges is None else _edges(edges, settings.edges, settings.seed),
        "evaluation": _evaluation(judged),
    }


def _nodes(effects: FeatureEffects, nodes: NodeSet, seed: int) -> list[dict[str, Any]]:
    """The nodes with their mean effects, the largest first, and intervals over documents (None where effects of single
    samples were not kept)."""
    values = effects.values_of(nodes).T
    ends = bootstrap_mean(values, resampler(len(effects.clean), effects.clusters, draws=500, seed=seed))
    whole = ~np.isnan(values).any(1)
    rows = [
        {
            "node": str(node),
            "place": node.place,
            "feature": node.feature,
            "effect": mean,
            "low": _plain(ends.low[i]) if whole[i] else None,
            "high": _plain(ends.high[i]) if whole[i] else None,
        }
        for i, (node, mean) in enumerate(zip(nodes, mean_effects(effects, nodes), strict=True))
    ]
    return sorted(rows, key=lambda row: -abs(row["effect"]))


def _edges(edges: FeatureEdges, most: int, seed: int) -> list[dict[str, Any]]:
    """The strongest edges with their mean effects, the largest first, and intervals over documents."""
    mean = edges.values.mean(0)
    names = [str(node) for node in edges.nodes] + ["logits"]
    order = [i for i in np.argsort(-np.abs(mean), kind="stable")[:most] if mean[i]]
    ends = bootstrap_mean(edges.values[:, order].T, resampler(len(edges.values), edges.clusters, draws=500, seed=seed))
    return [
        {
            "from": names[edges.up[i]],
            "to": names[edges.down[i]],
            "effect": float(mean[i]),
            "low": _plain(ends.low[row]),
            "high": _plain(ends.high[row]),
        }
        for row, i in enumerate(order)
    ]


def _evaluation(judged: FeatureEvaluation) -> dict[str, Any]:
    row = judged.frame.iloc[0]
    shares = ("faithfulness", "faithfulness_low", "faithfulness_high", "completeness", "random_faithfulness_median")
    names = ("m_model", "m_kept", "m_cut", "m_empty", *shares)
    return {**{name: _plain(row[name]) for name in names}, "has_gap": judged.has_gap}


def _plain(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None
