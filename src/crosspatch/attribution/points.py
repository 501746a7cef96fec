"""Where gradients are taken: at the clean run, or between the replaced and the clean one; and at which tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.ablation import Store
from crosspatch.attribution.forward import Trace, trace
from crosspatch.attribution.rules import Rules
from crosspatch.attribution.setup import Setup
from crosspatch.errors import MetricError
from crosspatch.model.run import Key

MIB = 2**20
BUDGET_MIB = 256.0
"""Memory for one chunk of pairs: the graph of its forward pass, and what is multiplied."""
INPUT: Key = (0, "resid_pre")
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Point:
    """One run at which the gradient is taken: `clean` of the way from replaced (0) to clean (1), and its weight."""

    clean: float
    weight: float


CLEAN = (Point(1.0, 1.0),)


def integration_points(steps: int, rule: str = "midpoint") -> tuple[Point, ...]:
    """Points and weights of a quadrature on [0, 1].

    Args:
        steps: number of intervals.
        rule: "midpoint"; "left" and "right" (the Riemann sums of published code); "trapezoid" (one more point).

    Raises:
        MetricError: an unknown rule, or no steps.
    """
    if steps < 1 or rule not in ("midpoint", "left", "right", "trapezoid"):
        raise MetricError(
            f"{steps} steps of the {rule!r} rule",
            where="integrated gradients",
            fix="use at least one step, and midpoint, left, right or trapezoid",
        )
    if rule == "trapezoid":
        ends = [0.5 if k in (0, steps) else 1.0 for k in range(steps + 1)]
        return tuple(Point(k / steps, w / steps) for k, w in enumerate(ends))
    shift = {"midpoint": 0.5, "left": 0.0, "right": 1.0}[rule]
    return tuple(Point((k + shift) / steps, 1 / steps) for k in range(steps))


def require_gradient(setup: Setup, points: Sequence[Point]) -> None:
    """Refuse a divergence from the clean run, whose gradient is zero there.

    Raises:
        MetricError: naming what to use instead.
    """
    if setup.metric.reference == "clean" and all(point.clean == 1.0 for point in points):
        raise MetricError(
            f"{setup.metric.name} is at its minimum at the clean run, so that its gradient is zero there",
            where="attribution",
            fix="use method='eap-ig' (edges) or 'atp-ig' (nodes), or a metric such as logit_diff",
        )


def chunks(setup: Setup, n_points: float, budget_mib: float | None) -> Iterator[list[int]]:
    """Examples of equal length, as many as the budget takes with all their points, in chunks of about one size."""
    lengths: dict[int, list[int]] = {}
    for i, ids in enumerate(setup.clean):
        lengths.setdefault(len(ids), []).append(i)
    for length, members in lengths.items():
        most = max(1, int((budget_mib or BUDGET_MIB) * MIB / (row_bytes(setup, length) * n_points)))
        size = math.ceil(len(members) / math.ceil(len(members) / most))
        yield from (members[at : at + size] for at in range(0, len(members), size))


def few(
    points: Sequence[Point], n_examples: int, length: int, setup: Setup, budget_mib: float | None
) -> Iterator[Sequence[Point]]:
    """Points that fit into one pass with these examples."""
    size = max(1, int((budget_mib or BUDGET_MIB) * MIB / (row_bytes(setup, length) * n_examples)))
    yield from (points[at : at + size] for at in range(0, len(points), size))


def row_bytes(setup: Setup, length: int) -> float:
    """Bytes that the graph of one row keeps: about fourteen residual streams and four hidden layers a block."""
    shape = setup.model.shape
    return 4.0 * length * shape.n_layers * (14 * shape.d_model + 4 * max(shape.d_mlp, shape.d_model))


def run_at(
    part: Setup,
    clean: Store,
    replaced: Store,
    points: Sequence[Point],
    rules: Rules,
    *,
    only: Key | None = None,
    neurons: bool = False,
) -> tuple[Trace, Float[Tensor, ""]]:
    """Run examples of equal length at some points; the runs, and the metric summed over them with the points' weights.

    Rows are ordered by point, then by example.

    Args:
        clean, replaced: values by place; of the input, and of `only`.
        only: interpolate this activation of the clean run instead of the input. With the value of its layer's
            `resid_pre` in `clean` the layers below are not run.
        neurons: keep the hidden neurons of MLPs.
    """
    place = only or INPUT
    value = clean[place]
    mixed = [value if p.clean == 1.0 else torch.lerp(replaced[place], value, p.clean) for p in points]
    stacked = torch.cat(mixed) if len(mixed) > 1 else mixed[0]
    embedded, insert, first = stacked, {}, 0
    if place != INPUT:
        first = place[0] if (place[0], "resid_pre") in clean else 0
        embedded, insert = clean[(first, "resid_pre")].repeat(len(points), 1), {place: stacked}
    examples = list(range(len(part))) * len(points)
    run = trace(
        part.model, embedded, [len(part.clean[i]) for i in examples], [part.read[i] for i in examples],
        insert=insert, neurons=neurons, rules=rules, first=first,
    )  # fmt: skip
    with torch.enable_grad():
        values = part.measure(run.hidden, examples)
        weights = values.new_tensor([point.weight for point in points for _ in range(len(part))])
        return run, (values * weights).sum()


def span_masks(part: Setup, spans: Sequence[str] | None) -> Float[Tensor, "span example position"]:
    """Which tokens belong to which span, for examples of equal length; one span of all tokens where none are named.

    Raises:
        MetricError: an example that has no span of a name.
    """
    length = len(part.clean[0])
    if not spans:
        return torch.ones(1, len(part), length)
    masks = torch.zeros(len(spans), len(part), length)
    for s, name in enumerate(spans):
        for i, named in enumerate(part.spans):
            if name not in named:
                raise MetricError(
                    f"example {i} has no span {name!r}", where="spans", fix=f"use some of {', '.join(named)}"
                )
            masks[s, i, slice(*named[name])] = 1.0
    return masks
