"""The figures of a sweep: which rows of an effect table go into which heat map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from crosspatch.report.data import Effect, Estimate, Level
from crosspatch.report.heatmap import Grid, heatmap
from crosspatch.report.strips import describe
from crosspatch.report.svg import Figure, percent

RESIDUAL = ("input", "resid_pre", "resid_mid", "resid_post")
BLOCKS = {"attn_out": "Attention blocks", "mlp_out": "MLP blocks"}
DIRECTIONS = (("denoise", "Denoise: clean into corrupt, restores"), ("noise", "Noise: corrupt into clean, breaks"))


def anchor(address: str) -> str:
    """Fragment identifier of a row: letters, digits and hyphens only."""
    return "row-" + "".join(c if c.isalnum() and c.isascii() else f"-{ord(c):x}-" for c in address)


def contribution_limit(levels: Sequence[Level]) -> float:
    """The end of the colour scale that all maps of single parts share, so that a block's map and a head's compare."""
    shares = [e.size for level in levels for e in level.effects if e.kind in (*BLOCKS, "z")]
    return max(shares, default=0.0)


def level_figures(
    level: Level, linked: frozenset[str] = frozenset(), limit: float | None = None
) -> list[tuple[str, Figure]]:
    """Every heat map that the rows of this level fill, with its title.

    Residual stream and blocks: layer by role. Heads: layer by head (where a head was patched at several roles,
    the role with the largest effect is shown). Other kinds have no heat map; they are in the table. `limit` ends
    the colour scale of blocks and heads.
    """
    figures = []
    residual = [e for e in level.effects if e.kind in RESIDUAL]
    if residual:
        figures.append(("Residual stream", by_role(residual, "the residual stream", linked)))
    for kind, title in BLOCKS.items():
        rows = [e for e in level.effects if e.kind == kind]
        if rows:
            figures.append(
                (title, by_role(rows, f"the output of the {title[:-1].replace('Att', 'att')}", linked, limit))
            )
    heads = [e for e in level.effects if e.kind == "z"]
    if heads:
        figures.append(("Attention heads", by_head(heads, linked, limit)))
    return figures


def by_role(
    effects: Sequence[Effect], what: str, linked: frozenset[str] = frozenset(), limit: float | None = None
) -> Figure:
    """Layer by role, both directions side by side."""
    rows = list(dict.fromkeys(_row_name(e) for e in effects))
    columns = list(dict.fromkeys(e.position for e in effects))
    caption = (
        f"Effect of patching {what}, per layer (down) and role (across), as a share of the "
        "clean\N{EN DASH}corrupt gap: 100 means that this one patch moves the metric all the way. "
        "Numbers are printed where the interval excludes zero; blue helps the behaviour, orange works against it."
    )
    if what == "the residual stream":
        caption += (
            " A residual patch carries everything written so far: read it as where the information is, not as one "
            "part's share."
        )
    return _figure(effects, rows, columns, _row_name, lambda e: e.position, "layer", "role", caption, linked, limit)


def by_head(effects: Sequence[Effect], linked: frozenset[str] = frozenset(), limit: float | None = None) -> Figure:
    """Layer by head, both directions side by side."""
    best: dict[tuple[int | None, int | None], Effect] = {}
    several = False
    for effect in effects:
        key = (effect.layer, effect.index)
        several |= key in best
        if key not in best or effect.size > best[key].size:
            best[key] = effect
    layers = sorted({e.layer for e in effects if e.layer is not None})
    heads = sorted({e.index for e in effects if e.index is not None})
    caption = "Effect of patching one attention head's output, as a share of the clean\N{EN DASH}corrupt gap."
    if several:
        caption += " Heads were patched at several roles; the largest is shown (point at a cell for which)."
    caption += " Dashed cells were not run. Numbers are printed where the interval excludes zero."
    return _figure(
        list(best.values()),
        [str(v) for v in layers],
        [str(v) for v in heads],
        lambda e: str(e.layer),
        lambda e: str(e.index),
        "layer",
        "head",
        caption,
        linked,
        limit,
    )


def _row_name(effect: Effect) -> str:
    if effect.kind == "input":
        return "input"
    suffix = {"resid_mid": ".mid", "resid_post": ".post"}.get(effect.kind, "")
    return f"{effect.layer}{suffix}"


def _figure(
    effects: Sequence[Effect],
    rows: list[str],
    columns: list[str],
    row: Callable[[Effect], str],
    column: Callable[[Effect], str],
    row_title: str,
    column_title: str,
    caption: str,
    linked: frozenset[str],
    limit: float | None,
) -> Figure:
    at = {(rows.index(row(e)), columns.index(column(e))): e for e in effects}
    grids = []
    for name, title in DIRECTIONS:
        values = np.full((len(rows), len(columns)), math.nan)
        reliable = np.zeros((len(rows), len(columns)), dtype=bool)
        tips = [["not run"] * len(columns) for _ in rows]
        links: list[list[str | None]] = [[None] * len(columns) for _ in rows]
        for (i, j), effect in at.items():
            estimate: Estimate = getattr(effect, name)
            values[i, j] = estimate.share
            reliable[i, j] = estimate.excludes_zero
            tips[i][j] = describe(effect)
            links[i][j] = anchor(effect.address) if effect.address in linked else None
        if np.isfinite(values).any():
            grids.append(Grid(title, values, tips, reliable, links))
    alt = f"Heat map, {row_title} by {column_title}. Largest effects: {_largest(effects)}."
    return heatmap(
        grids, rows, columns, row_title=row_title, column_title=column_title, caption=caption, alt=alt, limit=limit
    )


def _largest(effects: Sequence[Effect], k: int = 4) -> str:
    ranked = sorted(effects, key=lambda e: -e.size)[:k]
    return "; ".join(
        f"{e.address} restores {percent(e.denoise.share)} and breaks {percent(e.noise.share)}" for e in ranked
    )
