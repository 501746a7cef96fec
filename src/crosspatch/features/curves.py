"""How much sets of growing size explain: features under every policy for error terms, and neurons beside them.

A baseline is fair when it may use the best part of the model to name and the best score to rank by. Neurons are
therefore dimensions of the components' outputs, as in the paper, and hidden neurons of the MLPs, which are far sparser
(arXiv 2601.22594), each ranked by integrated gradients and by RelP. Baselines replace other places than features do, so
that each has a value of its own with everything replaced: it stands beside every share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from crosspatch.attribution.setup import Setup
from crosspatch.errors import CircuitError
from crosspatch.features.basis import Bases, bases_of
from crosspatch.features.curve import Curve
from crosspatch.features.effects import feature_effects
from crosspatch.features.evaluate import evaluate_nodes
from crosspatch.features.found import FeatureEffects
from crosspatch.features.nodes import Errors, NodeSet
from crosspatch.features.replaced import ReplacementName, replacement
from crosspatch.features.search import Stage
from crosspatch.model import Model

Baseline = Literal["outputs", "hidden", "hidden and attention"]
"""Neurons: dimensions of what the dictionaries read; hidden neurons of the MLPs, attention being left to the model;
hidden neurons and dimensions of attention outputs."""
STEPS = (1, 2, 5)


def sizes_up_to(largest: int) -> list[int]:
    """1, 2, 5, 10, ... below a number, and the number."""
    found = [step * 10**power for power in range(len(str(largest))) for step in STEPS]
    return [size for size in found if size < largest] + ([largest] if largest else [])


def baseline_places(model: Model, bases: Bases, baseline: Baseline) -> list[str]:
    """The places of a baseline beside dictionaries at some places.

    Raises:
        CircuitError: an unknown one, or no hidden neurons to be had.
    """
    if baseline not in get_args(Baseline):
        fix = f"use one of {', '.join(get_args(Baseline))}"
        raise CircuitError(f"unknown baseline {baseline!r}", where="baseline", fix=fix)
    if baseline == "outputs":
        return [basis.place for basis in bases]
    if not model.shape.has_neurons:
        raise CircuitError("the MLPs have no hidden neurons that could be seen", where="baseline", fix="use outputs")
    layers = range(model.shape.n_layers)
    attention = [f"a{layer}" for layer in layers] if baseline == "hidden and attention" else []
    return [*attention, *(f"m{layer}.act" for layer in layers)]


def size_curves(
    setup: Setup,
    bases: Bases,
    effects: FeatureEffects,
    *,
    start_block: int,
    sizes: Sequence[int] = (),
    errors: Sequence[Errors] = get_args(Errors),
    baselines: Sequence[Baseline] = get_args(Baseline),
    methods: Sequence[str] = ("ig", "relp"),
    replaced: ReplacementName = "mean",
    n_random: int = 5,
    held_out: float = 0.5,
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Stage | None = None,
) -> list[Curve]:
    """Faithfulness and completeness over size, on the same held-out pairs for all lines.

    Args:
        setup: all pairs, with the spans that `effects` are about.
        bases, effects: of features; effects should come from `setup.split(held_out, seed)[0]`.
        start_block: nodes of earlier blocks are left to the model and not counted, of neurons as of features.
        sizes: how many nodes; default: 1, 2, 5, 10, ... up to all that have an effect.
        errors: policies, a line each.
        baselines, methods: which neurons, ranked by what, a line each. Their effects are found here, on the pairs not
            held out, against the same replacement as those of the features.
        replaced: what takes the place of nodes outside a set.
        n_random: random sets of every size.

    Raises:
        CircuitError: no lines; an unknown baseline; a size below 1; as `evaluate_nodes`.
        MetricError, InterventionError: as `feature_effects`.
    """
    if any(size < 1 for size in sizes):
        raise CircuitError(f"a set of {min(sizes)} nodes", where="sizes", fix="give numbers from 1 on")
    if not errors and not (baselines and methods):
        raise CircuitError("nothing to draw", where="curves", fix="name a policy for errors, or baselines")
    common: dict[str, Any] = {"start_block": start_block, "n_random": n_random, "held_out": held_out, "seed": seed}
    common["budget_mib"] = budget_mib
    search = setup.split(held_out, seed)[0]
    origin = effects.origin
    ranking = {"steps": int(origin.get("steps", 10)), "rule": str(origin.get("rule", "midpoint"))}
    lines = len(errors) + len(baselines) * len(methods)
    found: list[Curve] = []

    def step() -> None:
        if progress is not None:
            progress("curves", len(found), lines)

    table = replacement(setup, bases, replaced)
    for policy in errors:
        sets, active = growing(effects, sizes, start_block)
        judged = evaluate_nodes(setup, bases, sets, table, errors=policy, population=active, **common)
        found.append(Curve("features", str(origin.get("method", "")), policy, judged))
        step()
    for baseline in baselines:
        own = bases_of(setup.model, neurons=baseline_places(setup.model, bases, baseline))
        table = replacement(setup, own, replaced)
        for method in methods:
            scores = feature_effects(
                search,
                own,
                origin["replacement"],
                method=method,
                spans=_named(effects),
                budget_mib=budget_mib,
                **ranking,  # type: ignore[arg-type]
            )
            sets, active = growing(scores, sizes, start_block)
            judged = evaluate_nodes(setup, own, sets, table, population=active, **common)
            found.append(Curve(f"neurons, {baseline}", method, "", judged))
            step()
    return found


def growing(effects: FeatureEffects, sizes: Sequence[int], start_block: int) -> tuple[list[NodeSet], NodeSet]:
    """Sets of the largest nodes from a block on, and all nodes there that have any effect.

    Raises:
        CircuitError: no node has one.
    """
    active = effects.active().at([place for place in effects.places if effects.blocks[place] >= start_block])
    if not len(active):
        raise CircuitError(
            f"no node from block {start_block} on has an effect", where="start_block", fix="start earlier"
        )
    wanted = [size for size in sizes if size <= len(active)] or sizes_up_to(len(active))
    return [effects.top(size, start_block=start_block) for size in sorted(set(wanted))], effects.active()


def _named(effects: FeatureEffects) -> tuple[str, ...]:
    return () if effects.spans == ("*",) else effects.spans
