"""The gradient of the metric at every place, from the model as it is: dictionaries take no part in it.

Interpolating features and error terms together is interpolating the activation, so that integrated gradients at one
place need the average gradient along a straight line in activation space, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution import points
from crosspatch.attribution.points import CLEAN, INPUT, Point, integration_points
from crosspatch.attribution.rules import PLAIN, Rules, relp
from crosspatch.attribution.setup import Setup
from crosspatch.errors import MetricError
from crosspatch.features.basis import Bases, Basis
from crosspatch.features.replaced import Replacement, Values, natural, values_of
from crosspatch.graph import ALL
from crosspatch.model.run import Key

METHODS = {
    "atp": "gradient at the clean run: one forward and one backward pass",
    "ig": "gradient averaged between the replaced and the clean activation, one place at a time, from its block on",
    "relp": "RelP's propagation rules in the place of derivatives, at the clean run",
}

BUDGET_MIB = 768.0
"""Memory for one chunk of examples: more than elsewhere, because every chunk reads all dictionaries anew."""


@dataclass(frozen=True)
class How:
    """How gradients are taken.

    Attributes:
        points: where on the line from the replaced (0) to the clean activation (1).
        rules: how gradients pass norms, activations and products.
        by_place: one activation at a time is moved.
    """

    points: tuple[Point, ...]
    rules: Rules
    by_place: bool


def how(method: str, steps: int = 10, rule: str = "midpoint") -> How:
    """A method of `METHODS`.

    Args:
        steps, rule: of integrated gradients (see `integration_points`). The paper's equation is `left` (it holds the
            replaced end), its code `right` (the clean end); the midpoint is closer to the integral than both.

    Raises:
        MetricError: an unknown method, rule or number of steps.
    """
    if method not in METHODS:
        raise MetricError(f"unknown method {method!r}", where="features", fix=f"use one of {', '.join(METHODS)}")
    if method == "ig":
        return How(integration_points(steps, rule), PLAIN, True)
    return How(CLEAN, relp() if method == "relp" else PLAIN, False)


def example_chunks(setup: Setup, bases: Bases, budget_mib: float | None) -> Iterator[list[int]]:
    """Examples of equal length whose graph and widest feature activations fit into the budget (default: `BUDGET_MIB`)
    together."""
    longest = max(map(len, setup.clean))
    size = torch.empty(0, dtype=setup.model.dtype).element_size()
    wide = 4.0 * size * longest * max(basis.width for basis in bases)
    return points.chunks(setup, 1 + wide / points.row_bytes(setup, longest), budget_mib or BUDGET_MIB)


def token_masks(part: Setup, spans: Sequence[str]) -> Float[Tensor, "span example position"]:
    """Which tokens belong to which span; to none named, or to `*`, all.

    Raises:
        MetricError: a span that an example does not have.
    """
    return points.span_masks(part, None if tuple(spans) in ((), (ALL,)) else spans)


def clean_keys(bases: Bases) -> list[Key]:
    """What a clean run keeps: the places, and the residual stream below each, from which a run restarts."""
    starts = [(basis.key[0], "resid_pre") for basis in bases]
    return list(dict.fromkeys([*(basis.key for basis in bases), *starts]))


def gradients(
    part: Setup, bases: Bases, how: How, replaced: Replacement, budget_mib: float | None = None
) -> tuple[Values, Iterator[tuple[Basis, Float[Tensor, "token d"]]]]:
    """Clean values of examples of equal length, and the gradient at each place in turn.

    Raises:
        MetricError: a metric without a gradient at the clean run.
    """
    points.require_gradient(part, how.points)
    if how.by_place:
        run = part.record_clean(clean_keys(bases))
        clean = {key: run.packed(key) for key in clean_keys(bases)}
        values = values_of(part, bases, replaced, clean, run.hidden)
        return values, ((basis, _averaged(part, basis, how, clean, values, budget_mib)) for basis in bases)
    neurons = any(basis.key[1] == "mlp_act" for basis in bases)
    embedded = part.model.embed(part.clean)
    traced, value = points.run_at(part, {INPUT: embedded}, {}, how.points, how.rules, neurons=neurons)
    found = traced.gradients(value, [basis.key for basis in bases])
    at = {basis.key: traced.at[basis.key].detach() for basis in bases}
    values = values_of(part, bases, replaced, at, traced.hidden)
    return values, ((basis, found[basis.key].flatten(1)) for basis in bases)


def _averaged(
    part: Setup, basis: Basis, how: How, clean: dict[Key, Tensor], values: Values, budget_mib: float | None
) -> Float[Tensor, "token d"]:
    """The average gradient on the line between the replaced and the clean activation at one place."""
    end = {basis.key: natural(part, basis.key, values.whole(basis))}
    start = (basis.key[0], "resid_pre")
    known = {basis.key: clean[basis.key], start: clean[start]}
    total = torch.zeros_like(values.at[basis.place])
    chosen: Sequence[Point]
    for chosen in points.few(how.points, values.n, values.length, part, budget_mib):
        run, value = points.run_at(part, known, end, chosen, how.rules, only=basis.key)
        found = run.gradients(value, [basis.key])[basis.key].flatten(1)
        total += found.unflatten(0, (len(chosen), -1)).sum(0)
    return total
