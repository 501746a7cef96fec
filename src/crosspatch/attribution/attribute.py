"""One call for every kind of attribution."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from crosspatch.attribution.ablation import Ablation, AblationName, resolve_ablation, sender_keys
from crosspatch.attribution.methods import Level, Request, method_named
from crosspatch.attribution.nodes import node_keys
from crosspatch.attribution.points import Progress
from crosspatch.attribution.scores import ALL_TOKENS, Scores
from crosspatch.attribution.senders import all_cut
from crosspatch.attribution.setup import Setup
from crosspatch.graph import Site, edge_table, nodes, select


def attribute(
    setup: Setup,
    method: str = "eap-ig",
    *,
    level: Level = "edge",
    sites: str | Sequence[Site | str] | None = None,
    ablation: AblationName | Ablation = "paired",
    steps: int = 5,
    rule: str = "midpoint",
    spans: Sequence[str] | None = None,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Scores:
    """The effect of cutting every edge, or of replacing every node, estimated or exact, per example.

    >>> attribute(setup_of(model, task), "eap-ig").top(10)                             # doctest: +SKIP
    >>> attribute(setup, "atp*", sites="a*.h*.q, m*", spans=["S2", "END"]).top(10)     # doctest: +SKIP

    Args:
        setup: pairs on a model; see `setup_of`.
        method: one of `EDGE_METHODS`, or, with `level="node"`, of `NODE_METHODS`.
        level: what is scored. Naming sites means nodes.
        sites: the nodes: a glob or sites; None = the input, every head and every MLP.
        ablation: what stands in for what is cut: "paired", "mean", "mean-all", "zero", or an `Ablation`.
        steps, rule: of the integral, for the methods that have one; the rule is "midpoint", "left", "right" or
            "trapezoid".
        spans: names of spans to keep apart; None sums over all tokens.
        budget_mib: memory for one chunk of pairs.
        progress: called with (work done, work in all).

    Raises:
        MetricError: an unknown method; a metric whose gradient is zero at the clean run.
        AddressError: a site that the model does not have.
    """
    start = time.perf_counter()
    level = "node" if sites is not None else level
    chosen, shape = method_named(method, level), setup.model.shape
    found = _sites(setup, sites) if level == "node" else []
    keys = node_keys(setup.model, found) if found else None
    bound = resolve_ablation(ablation, setup, keys)
    values = chosen.run(Request(setup, bound, found, steps, rule, spans, budget_mib, progress))
    parts = [str(site) for site in found] if level == "node" else edge_table(shape).names()
    clean, cut = endpoints(setup, resolve_ablation(ablation, setup) if keys else bound)
    # The digests of the pairs let an evaluation tell whether it judges on what was searched on.
    origin = setup.provenance | {"method": method, "ablation": bound.name, "pairs": setup.digests}
    origin["pairs"] = setup.digests  # those that a circuit must not be judged on
    if chosen.steps:
        origin |= {"steps": steps, "rule": rule}
    origin |= {"signed": chosen.signed, "seconds": round(time.perf_counter() - start, 2)}
    names = tuple(spans) if spans else ALL_TOKENS
    return Scores(level, parts, values, names, clean, cut, setup.clusters, shape, origin)


def _sites(setup: Setup, sites: str | Sequence[Site | str] | None) -> list[Site]:
    shape = setup.model.shape
    if sites is None:
        return nodes(shape)
    if isinstance(sites, str):
        return [address.site for address in select(sites, shape)]
    return [setup.model.site(site) for site in sites]


def endpoints(
    setup: Setup, ablation: Ablation, chunk: int = 64
) -> tuple[Float[np.ndarray, " example"], Float[np.ndarray, " example"]]:
    """The metric of every example in the clean run, and with every edge cut."""
    clean, cut = np.zeros(len(setup)), np.zeros(len(setup))
    keys = sender_keys(setup.model.shape)
    for examples in setup.chunks(chunk):
        part = setup.select(examples)
        run = part.record_clean(keys)
        replaced = ablation.store(setup, examples, {key: run.packed(key) for key in keys})
        rows = torch.tensor([run.offset[i] + p for i, at in enumerate(run.read) for p in at])
        clean[examples] = part.measure(run.hidden).double().cpu().numpy()
        cut[examples] = part.measure(all_cut(part.model, replaced, rows)).double().cpu().numpy()
    return clean, cut
