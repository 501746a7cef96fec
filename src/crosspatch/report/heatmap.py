"""Heat maps: layer by role, layer by head; both directions on one colour scale centred at zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from crosspatch.report.svg import Child, Figure, Panel, diverging, number, percent, tag


@dataclass(frozen=True)
class Grid:
    """One panel of a heat map.

    Attributes:
        title: what was done in this panel.
        values: share of the clean-corrupt gap (or the effect itself); NaN where nothing was run.
        tips: what to say about each cell (plain text, several lines).
        reliable: cells whose number is worth printing (the interval excludes zero, say).
        links: fragment identifiers of the cells that have a row elsewhere on the page, or None.
    """

    title: str
    values: Float[np.ndarray, "row column"]
    tips: Sequence[Sequence[str]]
    reliable: Float[np.ndarray, "row column"]
    links: Sequence[Sequence[str | None]]


def heatmap(
    grids: Sequence[Grid],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row_title: str,
    column_title: str,
    caption: Child,
    alt: str,
    unit: str = "share of the clean\N{EN DASH}corrupt gap",
    limit: float | None = None,
    write: Callable[[float], str] = percent,
) -> Figure:
    """Draw the grids next to each other with one colour scale.

    The scale is symmetric about zero and ends at `limit` (default: the largest absolute value in any grid). A
    number is printed (by `write`, without its unit) in a cell where it fits and where the cell is `reliable`; hovering
    shows the cell's `tip`.
    """
    if limit is None:
        limit = max((float(np.nanmax(np.abs(g.values))) for g in grids if np.isfinite(g.values).any()), default=0.0)
    limit = limit or 1.0
    panels = [_panel(g, rows, columns, limit, (row_title, column_title), write) for g in grids]
    return Figure(tuple(panels), caption, alt, colour_bar(limit, unit, write))


def _panel(
    grid: Grid,
    rows: Sequence[str],
    columns: Sequence[str],
    limit: float,
    titles: tuple[str, str],
    write: Callable[[float], str],
) -> Panel:
    width = min(62.0, max(11.0, 400.0 / max(1, len(columns))))
    height = min(24.0, max(11.0, 520.0 / max(1, len(rows))))
    turned = max((len(c) for c in columns), default=0) * 6.3 > width
    left = 22.0 + 6.6 * max((len(r) for r in rows), default=1)
    foot = (14.0 + 5.4 * max(len(c) for c in columns)) if turned and columns else 18.0
    top = 26.0
    parts: list[Markup] = [tag("text", grid.title, x=left, y=14, class_="t")]
    shown = max(1, math.ceil(11.5 / height))
    for i, row in enumerate(rows):
        if i % shown == 0:
            y = top + i * height + height / 2 + 4
            parts.append(tag("text", row, x=left - 6, y=y, text_anchor="end", class_="s m"))
        box = (top + i * height, width, height, limit, write)
        parts.extend(_cell(grid, i, j, left + j * width, *box) for j in range(len(columns)))
    bottom = top + len(rows) * height
    for j, column in enumerate(columns):
        x = left + (j + 0.5) * width
        if turned:
            where = f"rotate(-50 {number(x + 4)} {number(bottom + 12)})"
            parts.append(tag("text", column, x=x + 4, y=bottom + 12, class_="s m", text_anchor="end", transform=where))
        else:
            parts.append(tag("text", column, x=x, y=bottom + 14, text_anchor="middle", class_="s m"))
    middle = top + len(rows) * height / 2
    turn = f"rotate(-90 10 {number(middle)})"
    parts.append(tag("text", titles[0], x=10, y=middle, text_anchor="middle", class_="s", transform=turn))
    right = left + len(columns) * width
    parts.append(tag("text", titles[1], x=(left + right) / 2, y=bottom + foot + 12, text_anchor="middle", class_="s"))
    total = max(right + 6, left + 6.9 * len(grid.title))
    return Panel(Markup("").join(parts), total, bottom + foot + 18)


def _cell(
    grid: Grid,
    i: int,
    j: int,
    x: float,
    y: float,
    width: float,
    height: float,
    limit: float,
    write: Callable[[float], str],
) -> Markup:
    value = float(grid.values[i, j])
    if not math.isfinite(value):
        return tag("rect", x=x + 1, y=y + 1, width=width - 2, height=height - 2, class_="z")
    share = min(1.0, abs(value) / limit)
    rect = tag(
        "rect",
        tag("title", grid.tips[i][j]),
        x=x,
        y=y,
        width=width,
        height=height,
        fill=diverging(value, limit),
        class_="c p" if value >= 0 else "c q",
        style=f"--t:{number(100 * share)}%",
    )
    if grid.reliable[i, j] and width >= 21 and height >= 13:
        words = write(value).removesuffix(" %")
        tone = "v w" if share > 0.55 else "v"
        rect += tag("text", words, x=x + width / 2, y=y + height / 2 + 3.5, class_=tone)
    link = grid.links[i][j]
    return tag("a", rect, href=f"#{link}") if link else rect


def colour_bar(limit: float, unit: str, write: Callable[[float], str] = percent) -> Panel:
    """The shared scale, lying below the grids."""
    length, left, steps = 240.0, 44.0, 41
    parts: list[Markup] = []
    for k in range(steps):
        share = 2 * k / (steps - 1) - 1
        parts.append(
            tag(
                "rect",
                x=left + k * length / steps,
                y=4,
                width=length / steps + 0.6,
                height=10,
                fill=diverging(share, 1.0),
                class_="p" if share >= 0 else "q",
                style=f"--t:{number(abs(share) * 100)}%",
            )
        )
    for share in (-1, -0.5, 0, 0.5, 1):
        x = left + (1 + share) / 2 * length
        parts.append(tag("line", x1=x, x2=x, y1=14, y2=18, class_="ax"))
        parts.append(tag("text", write(share * limit), x=x, y=29, text_anchor="middle", class_="s"))
    parts.append(tag("text", unit, x=left + length + 24, y=13, class_="s"))
    return Panel(Markup("").join(parts), left + length + 36 + 6 * len(unit), 34)
