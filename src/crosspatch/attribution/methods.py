"""The ways to score edges and nodes, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from crosspatch.attribution.ablation import Ablation
from crosspatch.attribution.edges import edge_scores, edge_scores_by_activation
from crosspatch.attribution.exact import exact_edges
from crosspatch.attribution.exact_nodes import node_effects
from crosspatch.attribution.ifr import flow_scores
from crosspatch.attribution.nodes import node_scores, node_scores_by_activation
from crosspatch.attribution.points import BUDGET_MIB, CLEAN, Progress, integration_points
from crosspatch.attribution.rules import relp
from crosspatch.attribution.setup import Setup
from crosspatch.errors import MetricError
from crosspatch.graph import Address, Site

Level = Literal["edge", "node"]
Values = Float[np.ndarray, "example span part"]


@dataclass(frozen=True)
class Request:
    """What a method is asked for; see `attribute`."""

    setup: Setup
    ablation: Ablation
    sites: Sequence[Site]
    steps: int
    rule: str
    spans: Sequence[str] | None
    budget_mib: float | None
    progress: Progress | None

    @property
    def points(self) -> Any:
        return integration_points(self.steps, self.rule)

    @property
    def common(self) -> dict[str, Any]:
        return {"spans": self.spans, "budget_mib": self.budget_mib, "progress": self.progress}


@dataclass(frozen=True)
class Method:
    """How scores are made.

    Attributes:
        run: from a request to `[example, span, part]`.
        says: one line for help texts.
        steps: whether it integrates, so that `steps` and `rule` mean something.
        ablates: whether something stands in for what is cut; information flow looks at the clean run alone.
        signed: whether a positive score means that the part helps; else scores are sizes.
    """

    run: Callable[[Request], Values]
    says: str
    steps: bool = False
    ablates: bool = True
    signed: bool = True


def _exact_edges(r: Request) -> Values:
    spans = tuple(r.spans or ())
    budget = 2 * (r.budget_mib or BUDGET_MIB)
    found = exact_edges(r.setup, None, r.ablation, spans=spans, budget_mib=budget, progress=r.progress)
    return found.transpose(0, 2, 1) if spans else found[:, None]


def _exact_nodes(r: Request) -> Values:
    spans = tuple(r.spans or ("*",))
    sets = [[Address(site, span)] for span in spans for site in r.sites]
    found = node_effects(r.setup, r.ablation, sets, budget_mib=r.budget_mib, progress=r.progress)
    return found.reshape(len(r.setup), len(spans), len(r.sites))


def _nodes(**how: Any) -> Callable[[Request], Values]:
    return lambda r: node_scores(r.setup, r.sites, r.ablation, CLEAN, **how, **r.common)


EDGE_METHODS: dict[str, Method] = {
    "eap": Method(
        lambda r: edge_scores(r.setup, r.ablation, CLEAN, **r.common),
        "gradient at the clean run: two forward passes and one backward pass",
    ),
    "eap-ig": Method(
        lambda r: edge_scores(r.setup, r.ablation, r.points, **r.common),
        "gradient averaged between the replaced and the clean input",
        steps=True,
    ),
    "eap-ig-activations": Method(
        lambda r: edge_scores_by_activation(r.setup, r.ablation, r.points, **r.common),
        "gradient averaged along each block's output; many passes",
        steps=True,
    ),
    "relp": Method(
        lambda r: edge_scores(r.setup, r.ablation, CLEAN, rules=relp(), **r.common),
        "RelP's propagation rules in the place of derivatives; queries and keys get nothing",
    ),
    "flow": Method(
        lambda r: flow_scores(r.setup, spans=r.spans, budget_mib=r.budget_mib),
        "information flow routes: how much of what a receiver reads is this sender's; no gradient, no metric",
        ablates=False,
        signed=False,
    ),
    "exact": Method(_exact_edges, "every edge cut alone, exactly: what the others approximate"),
}
NODE_METHODS: dict[str, Method] = {
    "atp": Method(_nodes(), "gradient at the clean run"),
    "atp-qk": Method(_nodes(qk_fix=True), "the same, with exact patterns for queries and keys (the QK fix)"),
    "atp-graddrop": Method(_nodes(grad_drop=True), "absolute, one layer dropped at a time", signed=False),
    "atp*": Method(_nodes(qk_fix=True, grad_drop=True), "AtP*: QK fix and GradDrop", signed=False),
    "atp-ig": Method(
        lambda r: node_scores(r.setup, r.sites, r.ablation, r.points, **r.common),
        "gradient averaged between the replaced and the clean input",
        steps=True,
    ),
    "atp-ig-activations": Method(
        lambda r: node_scores_by_activation(r.setup, r.sites, r.ablation, r.points, **r.common),
        "gradient averaged along each part's own block; many passes",
        steps=True,
    ),
    "relp": Method(_nodes(rules=relp()), "RelP's propagation rules in the place of derivatives"),
    "exact": Method(_exact_nodes, "every part replaced alone, exactly: activation patching"),
}
METHODS: dict[Level, dict[str, Method]] = {"edge": EDGE_METHODS, "node": NODE_METHODS}
"""Everything that scores parts, by name."""


def method_named(name: str, level: Level) -> Method:
    """A method by name.

    Raises:
        MetricError: an unknown name; lists those there are.
    """
    known = METHODS[level]
    if name not in known:
        raise MetricError(
            f"unknown method {name!r} for {level}s", where="attribute", fix=f"use one of {', '.join(known)}"
        )
    return known[name]
