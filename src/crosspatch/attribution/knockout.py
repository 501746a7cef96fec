"""Attention-edge knock-out: stop some tokens from attending to others in a window of layers, exactly.

What a position reads from another by attention in the layers of a window is cut by setting the attention scores
between them to minus infinity, in every head or in some (Geva, Bastings, Filippova & Globerson 2023, arXiv 2304.14767);
the softmax runs over the keys that are left, and everything after recomputes. The change of the metric
over windows shows in which layers information passes from one span to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from crosspatch.attribution.exact_nodes import positions_of
from crosspatch.attribution.points import Progress
from crosspatch.attribution.setup import Setup
from crosspatch.errors import InterventionError
from crosspatch.graph import ALL, ModelShape, Site
from crosspatch.metrics import evaluate
from crosspatch.model import Blocked, Edit, Row, replay
from crosspatch.model.run import Readout

Where = str | int
_PAIRS = 64  # pairs whose keys and values are held at once


@dataclass(frozen=True, eq=False)
class Knockout:
    """Effects of blocked attention.

    Attributes:
        source, target: target tokens do not attend to source tokens.
        windows: first layer and layer after the last of each window.
        effects: `metric(clean) - metric(blocked)`, in the metric's unit. Positive: what passed there helped.
        clean: the metric of each example.
    """

    source: Where
    target: Where
    windows: tuple[tuple[int, int], ...]
    effects: Float[np.ndarray, "example window"]
    clean: Float[np.ndarray, " example"]

    @property
    def mean(self) -> Float[np.ndarray, " window"]:
        return self.effects.mean(0)


def windows_of(shape: ModelShape, width: int, layers: Sequence[int] | None = None) -> tuple[tuple[int, int], ...]:
    """One window around each layer, `width` layers wide and cut off at the ends of the model.

    Args:
        layers: middle layers; None = all.

    Raises:
        InterventionError: a width below one, or a layer that does not exist.
    """
    middle = range(shape.n_layers) if layers is None else layers
    beyond = [layer for layer in middle if not 0 <= layer < shape.n_layers]
    if width < 1 or beyond:
        raise InterventionError(
            f"layer {beyond[0]} does not exist" if beyond else f"a window of {width} layers",
            where="knockout",
            fix=f"use layers 0 to {shape.n_layers - 1}" if beyond else "use at least one layer",
        )
    starts = [layer - (width - 1) // 2 for layer in middle]
    return tuple((max(0, at), min(shape.n_layers, at + width)) for at in starts)


def knockout(
    setup: Setup,
    source: Where = ALL,
    target: Where = "END",
    *,
    window: int = 1,
    layers: Sequence[int] | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Knockout:
    """Effect of hiding `source` tokens from `target` tokens, for each window of layers.

    A token never stops seeing itself, so that `source="*"` hides all others. Only clean prompts are run.

    Args:
        source, target: a span's name, a token index, or "*".
        window: layers that are blocked together; `n_layers` in one window needs `layers=[n_layers // 2]` and
            `window=2 * n_layers`.
        layers: middle layers of the windows; None = every layer.
        heads: `(layer, head)` to block, elsewhere attention is left alone; None = all heads.

    Raises:
        MetricError: an example without such a span or token.
        InterventionError: a window, layer or head that does not exist; nothing to block in any example.
    """
    shape = setup.model.shape
    windows = windows_of(shape, window, layers)
    chosen = _heads(shape, heads)
    out, clean, anything, done = np.zeros((len(setup), len(windows))), np.zeros(len(setup)), False, 0
    for lo in range(0, len(setup), _PAIRS):
        chunk = list(range(lo, min(len(setup), lo + _PAIRS)))
        part = setup.select(chunk)
        base = part.record_clean(budget_mib=budget_mib)
        rows = [
            Row(i, _edits(part, i, source, target, [head for head in chosen if first <= head[0] < last]))
            for i in range(len(part))
            for first, last in windows
        ]
        anything |= any(row.edits for row in rows)
        values = torch.zeros(len(rows), dtype=torch.float64)

        def on_read(readout: Readout, part: Setup = part, values: torch.Tensor = values) -> None:
            numbers, found = evaluate([part.metric], readout, part.targets)
            values[numbers] = found[part.metric.name].double().cpu()

        def report(work: float, total: float, done: int = done, count: int = len(chunk)) -> None:
            if progress is not None:
                progress(done + count * work / total, len(setup))

        replay(base, rows, on_read, columns=part.columns, budget_mib=budget_mib, progress=report)
        clean[chunk] = part.measure(base.hidden).double().cpu().numpy()
        out[chunk] = clean[chunk][:, None] - values.reshape(len(part), len(windows)).numpy()
        done += len(chunk)
    if not anything:
        raise InterventionError(
            f"no token of {target!r} can see another one of {source!r}",
            where="knockout",
            fix="name as source what comes before the target",
        )
    return Knockout(source, target, windows, out, clean)


def _heads(shape: ModelShape, heads: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    every = [(layer, head) for layer in range(shape.n_layers) for head in range(shape.n_heads)]
    unknown = sorted(set(heads or ()) - set(every))
    if unknown:
        raise InterventionError(
            f"head {unknown[0]} does not exist",
            where="knockout",
            fix=f"this model has {shape.n_layers} layers of {shape.n_heads} heads",
        )
    return every if heads is None else sorted(set(heads))


def _edits(
    part: Setup, example: int, source: Where, target: Where, heads: Sequence[tuple[int, int]]
) -> tuple[Edit, ...]:
    """Pattern edits of one example: queries that lose the same keys together."""
    keys, causal = positions_of(part, example, source), part.model.shape.causal
    groups: dict[tuple[int, ...], list[int]] = {}
    for query in positions_of(part, example, target):
        hidden = tuple(key for key in keys if key != query and (key < query or not causal))
        if hidden:
            groups.setdefault(hidden, []).append(query)
    return tuple(
        Edit(Site("pattern", layer, head), tuple(queries), Blocked(hidden))
        for layer, head in heads
        for hidden, queries in groups.items()
    )
