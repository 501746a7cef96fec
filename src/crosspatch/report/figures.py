"""The figures of a sweep: which rows of an effect table go into which heat map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crosspatch.report.data import Effect, Estimate, Level
from crosspatch.report.heatmap import Grid, heatmap
from crosspatch.report.strips import describe
from crosspatch.report.svg import Figure, percent, signed

RESIDUAL = ("input", "resid_pre", "resid_mid", "resid_post")
BLOCKS = {"attn_out": "Attention blocks", "mlp_out": "MLP blocks"}
DIRECTIONS = (("denoise", "Denoise: clean into corrupt, restores"), ("noise", "Noise: corrupt into clean, breaks"))
SHARE = "share of the clean\N{EN DASH}corrupt gap"


@dataclass(frozen=True)
class Style:
    """What the maps of one report have in common.

    Attributes:
        linked: keys of the effects that have a row elsewhere on the page.
        limit: end of the colour scale of single parts (blocks and heads); None: each map its own.
        roles: positions in the order in which they stand in the prompt.
    """

    linked: frozenset[str] = frozenset()
    limit: float | None = None
    roles: tuple[str, ...] = ()


PLAIN = Style()


def anchor(address: str) -> str:
    """Fragment identifier of a row: letters, digits and hyphens only."""
    return "row-" + "".join(c if c.isalnum() and c.isascii() else f"-{ord(c):x}-" for c in address)


def contribution_limit(levels: Sequence[Level]) -> float:
    """The end of the colour scale that all maps of single parts share, so that a block's map and a head's compare."""
    shares = [e.size for level in levels for e in level.effects if e.kind in (*BLOCKS, "z")]
    return max(shares, default=0.0)


def role_order(levels: Sequence[Level]) -> tuple[str, ...]:
    """Positions in the order of the coarsest level, which has them all."""
    return tuple(dict.fromkeys(e.position for level in levels for e in level.effects))


def level_figures(level: Level, style: Style = PLAIN) -> list[tuple[str, Figure]]:
    """Every heat map that the rows of this level fill, with its title; one set for each corruption.

    Residual stream and blocks: layer by role. Heads: layer by head (where a head was patched at several roles,
    the role with the largest effect is shown). Other kinds have no heat map; they are in the table.
    """
    found = []
    for corruption in dict.fromkeys(e.corruption for e in level.effects):
        rows = [e for e in level.effects if e.corruption == corruption]
        suffix = f" ({corruption})" if corruption else ""
        residual = [e for e in rows if e.kind in RESIDUAL]
        if residual:
            found.append(("Residual stream" + suffix, by_role(residual, style)))
        for kind, title in BLOCKS.items():
            blocks = [e for e in rows if e.kind == kind]
            if blocks:
                found.append((title + suffix, by_role(blocks, style)))
        heads = [e for e in rows if e.kind == "z"]
        if heads:
            found.append(("Attention heads" + suffix, by_head(heads, style)))
    return found


def by_role(effects: Sequence[Effect], style: Style = PLAIN) -> Figure:
    """Layer by role, both directions side by side, of the residual stream or of one kind of block."""
    residual = effects[0].kind in RESIDUAL
    what = "the residual stream" if residual else f"the output of the {_block(effects[0].kind)}"
    caption = (
        f"Effect of patching {what}, per layer (down) and role (across), as a {SHARE}: 100 means that this one patch "
        "moves the metric all the way. Numbers are printed where the interval excludes zero; blue helps the behaviour, "
        "orange works against it."
    )
    if residual:
        caption += (
            " A residual patch carries everything written so far: read it as where the information is, not as one "
            "part's share."
        )
    placed = {(_layer(e), e.position): e for e in effects}
    return _figure(placed, "layer", "role", caption, style, None if residual else style.limit)


def by_head(effects: Sequence[Effect], style: Style = PLAIN) -> Figure:
    """Layer by head, both directions side by side."""
    placed: dict[tuple[str, str], Effect] = {}
    several = False
    for effect in sorted(effects, key=lambda e: (e.layer or 0, e.index or 0)):
        at = (str(effect.layer), str(effect.index))
        several |= at in placed
        if at not in placed or effect.size > placed[at].size:
            placed[at] = effect
    caption = f"Effect of patching one attention head's output, as a {SHARE}."
    if several:
        caption += " Heads were patched at several roles; the largest is shown (point at a cell for which)."
    caption += " Dashed cells were not run. Numbers are printed where the interval excludes zero."
    return _figure(placed, "layer", "head", caption, style, style.limit)


def _block(kind: str) -> str:
    return {"attn_out": "attention block", "mlp_out": "MLP block"}[kind]


def _layer(effect: Effect) -> str:
    if effect.kind == "input":
        return "input"
    return f"{effect.layer}{ {'resid_mid': '.mid', 'resid_post': '.post'}.get(effect.kind, '') }"


def _figure(
    placed: dict[tuple[str, str], Effect],
    row_title: str,
    column_title: str,
    caption: str,
    style: Style,
    limit: float | None,
) -> Figure:
    rows = list(dict.fromkeys(row for row, _ in placed))
    columns = list(dict.fromkeys(column for _, column in placed))
    if column_title == "head":
        columns.sort(key=int)
    else:
        columns.sort(key=lambda role: style.roles.index(role) if role in style.roles else len(style.roles))
    effects = list(placed.values())
    shared = any(math.isfinite(getattr(e, name).share) for e in effects for name, _ in DIRECTIONS)
    value: Callable[[Estimate], float] = (lambda e: e.share) if shared else (lambda e: e.mean)
    grids = []
    for name, title in DIRECTIONS:
        values = np.full((len(rows), len(columns)), math.nan)
        reliable = np.zeros((len(rows), len(columns)), dtype=bool)
        tips = [["not run"] * len(columns) for _ in rows]
        links: list[list[str | None]] = [[None] * len(columns) for _ in rows]
        for (row, column), effect in placed.items():
            i, j = rows.index(row), columns.index(column)
            estimate: Estimate = getattr(effect, name)
            values[i, j] = value(estimate)
            reliable[i, j] = estimate.excludes_zero
            tips[i][j] = describe(effect)
            links[i][j] = anchor(effect.key) if effect.key in style.linked else None
        if np.isfinite(values).any():
            grids.append(Grid(title, values, tips, reliable, links))
    return heatmap(
        grids,
        rows,
        columns,
        row_title=row_title,
        column_title=column_title,
        caption=caption if shared else f"{caption} The gap is too small here, so the raw effect is shown instead.",
        alt=f"Heat map, {row_title} by {column_title}. Largest effects: {_largest(effects)}.",
        unit=SHARE if shared else "effect, in the metric's unit",
        limit=limit,
        write=percent if shared else signed,
    )


def _largest(effects: Sequence[Effect], k: int = 4) -> str:
    ranked = sorted(effects, key=lambda e: -e.size)[:k]
    return "; ".join(
        f"{e.address} restores {percent(e.denoise.share)} and breaks {percent(e.noise.share)}" for e in ranked
    )
