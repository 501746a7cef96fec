"""From pairs to a feature circuit, in two passes: all effects first, then edges between the nodes that were chosen.

Choosing nodes by their mean effect before any edge is computed leaves out no example's share of an edge (the authors'
code chooses by example and position) and spends nothing on nodes that vanish in the average. Estimates rank; what the
chosen nodes do is then measured exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from crosspatch.attribution.setup import Setup
from crosspatch.errors import CircuitError
from crosspatch.features.basis import Bases
from crosspatch.features.edge_scores import FeatureEdges
from crosspatch.features.edges import feature_edges
from crosspatch.features.effects import feature_effects, templatic
from crosspatch.features.exact import exact_effects
from crosspatch.features.found import FeatureEffects
from crosspatch.features.nodes import Node, NodeSet
from crosspatch.features.replaced import ReplacementName

Positions = Literal["aggregate", "templatic", "spans"]
"""What a node is: a feature at all tokens, its effects added up; at one position; at one span."""
Stage = Callable[[str, float, float], None]
"""Progress: (stage, done, total)."""
EDGE_SHARE = 0.1
"""The paper's T_E as a share of its T_N (its table of thresholds keeps to it nearly throughout)."""


@dataclass(frozen=True)
class FeatureSearch:
    """How a feature circuit is found.

    Attributes:
        method, steps, rule: of `feature_effects`.
        replaced: what takes the place of a node.
        nodes: so many nodes of largest effect.
        threshold: instead, all whose mean effect is larger in absolute value (the paper's T_N).
        edge_threshold: edges that are smaller do not belong to the circuit (the paper's T_E); None: `EDGE_SHARE` of
            the effect of the circuit's smallest node.
        positions: see `Positions`.
        spans: names, with `positions="spans"`.
        exact: so many of the largest nodes are measured exactly as well.
    """

    method: str = "ig"
    steps: int = 10
    rule: str = "midpoint"
    replaced: ReplacementName = "paired"
    nodes: int = 50
    threshold: float | None = None
    edge_threshold: float | None = None
    positions: Positions = "aggregate"
    spans: tuple[str, ...] = ()
    exact: int = 50


@dataclass(eq=False)
class FoundFeatures:
    """A feature circuit, and everything that it was chosen from.

    Attributes:
        search: how.
        setup: the pairs; with templatic positions they have a span for each.
        effects: of every node.
        circuit: the nodes.
        edges: between them; those of the circuit are larger than `edge_threshold`.
        edge_threshold: the paper's T_E.
        measured: nodes that were measured exactly, and what was found.
        exact: effects of single examples.
    """

    search: FeatureSearch
    setup: Setup
    effects: FeatureEffects
    circuit: NodeSet
    edges: FeatureEdges
    edge_threshold: float
    measured: list[Node]
    exact: Float[np.ndarray, "example node"]


def find_features(
    setup: Setup,
    bases: Bases,
    search: FeatureSearch | None = None,
    *,
    budget_mib: float | None = None,
    progress: Stage | None = None,
) -> FoundFeatures:
    """Find the features and error terms that carry a behaviour, and what passes between them.

    Args:
        setup: pairs to search on, as a rule `setup.split(held_out, seed)[0]`.
        bases: places and what they are split into.
        search: how; `FeatureSearch()` if none.
        budget_mib: memory for one chunk.

    Raises:
        CircuitError: no node has an effect above the threshold; settings that contradict each other.
        TaskError: templatic positions of prompts that differ in length.
        MetricError, InterventionError: as `feature_effects`.
    """
    search = search or FeatureSearch()
    setup, spans = positioned(setup, search.positions, search.spans)

    def stage(name: str) -> Callable[[float, float], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    how = {"method": search.method, "steps": search.steps, "rule": search.rule, "budget_mib": budget_mib}
    effects = feature_effects(
        setup,
        bases,
        search.replaced,
        spans=spans,
        progress=stage("effects of features"),
        **how,  # type: ignore[arg-type]
    )
    circuit = chosen(effects, search)
    edges = feature_edges(
        setup,
        bases,
        circuit,
        search.replaced,
        progress=stage("edges"),
        **how,  # type: ignore[arg-type]
    )
    measured = list(circuit) if search.exact >= len(circuit) else list(effects.top(min(search.exact, len(circuit))))
    exact = exact_effects(
        setup, bases, measured, search.replaced, budget_mib=budget_mib, progress=stage("exact effects")
    )
    limit = edge_limit(search, effects, circuit)
    return FoundFeatures(search, setup, effects, circuit, edges, limit, measured, exact)


def positioned(setup: Setup, positions: Positions, spans: Sequence[str] = ()) -> tuple[Setup, tuple[str, ...]]:
    """The pairs and the names of the spans at which nodes are told apart; none: all tokens together.

    Raises:
        CircuitError: an unknown choice; spans without `spans`, or the reverse.
        TaskError: templatic positions of prompts that differ in length.
    """
    if positions not in get_args(Positions):
        fix = f"use one of {', '.join(get_args(Positions))}"
        raise CircuitError(f"unknown positions {positions!r}", where="positions", fix=fix)
    if bool(spans) != (positions == "spans"):
        what = "no spans were named" if positions == "spans" else f"{positions} positions have no named spans"
        raise CircuitError(what, where="positions", fix="name spans together with positions='spans', and only then")
    return templatic(setup) if positions == "templatic" else (setup, tuple(spans))


def chosen(effects: FeatureEffects, search: FeatureSearch) -> NodeSet:
    """The nodes of the circuit.

    Raises:
        CircuitError: there are none.
    """
    nodes = effects.top(search.nodes) if search.threshold is None else effects.above(search.threshold)
    if not len(nodes):
        largest = max((float(np.abs(mean).max()) for mean in effects.mean.values() if mean.size), default=0.0)
        raise CircuitError(
            f"no node has a larger effect (the largest is {largest:.3g})", where="threshold",
            fix="lower the threshold, or ask for a number of nodes",
        )  # fmt: skip
    return nodes


def mean_effects(effects: FeatureEffects, nodes: NodeSet) -> list[float]:
    """Mean effects in the order in which a set lists its nodes."""
    at = {span: i for i, span in enumerate(effects.spans)}
    return [
        float(effects.mean[node.place][at[node.span], -1 if node.feature is None else node.feature]) for node in nodes
    ]


def edge_limit(search: FeatureSearch, effects: FeatureEffects, circuit: NodeSet) -> float:
    """The paper's T_E: what was asked for, or `EDGE_SHARE` of the effect of the circuit's smallest node."""
    if search.edge_threshold is not None:
        return search.edge_threshold
    return EDGE_SHARE * min(abs(value) for value in mean_effects(effects, circuit))
