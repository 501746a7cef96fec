"""A few helpers for drawing: elements whose every attribute and text is escaped, numbers, colours, one figure type."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup, escape

MINUS = "\N{MINUS SIGN}"
HOT, COLD, MID = (23, 92, 163), (190, 78, 20), (246, 245, 241)
"""Ends and middle of the diverging scale: blue helps, orange hurts (distinguishable without red-green vision)."""

Child = str | Markup


def tag(name: str, *children: Child, **attributes: object) -> Markup:
    """One element. `class_` becomes `class`, other underscores become hyphens; `None` drops an attribute.

    Children that are not `Markup` are text and are escaped, as are all attribute values.
    """
    parts = []
    for key, value in attributes.items():
        if value is None:
            continue
        text = number(value) if isinstance(value, float) else str(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("".join(parts)), Markup("").join(children))


def number(value: float) -> str:
    """A coordinate, short: two decimals at most and no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def signed(value: float, digits: int | None = None) -> str:
    """A number with a typographic sign; `n/a` for what was not measured.

    Two decimals, and up to four where the number is so small that two would say nothing.
    """
    if not math.isfinite(value):
        return "n/a"
    if digits is None:
        digits = 2 if abs(value) >= 0.01 else 3 if abs(value) >= 0.001 else 4
        digits = digits if abs(value) >= 0.00005 else 2
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def percent(share: float) -> str:
    """A share as a whole percentage with a typographic minus, `n/a` when undefined."""
    if not math.isfinite(share):
        return "n/a"
    rounded = round(100 * share)
    return f"{MINUS if rounded < 0 else ''}{abs(rounded)} %"


def interval(low: float, high: float, digits: int | None = None) -> str:
    """`[low, high]`, or nothing when there is no interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{signed(low, digits)}, {signed(high, digits)}]"


def diverging(value: float, limit: float) -> str:
    """Colour of `value` on the scale from `-limit` (orange) over 0 (paper) to `limit` (blue)."""
    if not math.isfinite(value):
        return "none"
    share = max(-1.0, min(1.0, value / limit if limit else 0.0))
    end = HOT if share > 0 else COLD
    mixed = (round(middle + (target - middle) * abs(share)) for middle, target in zip(MID, end, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round tick values that lie within `[low, high]`."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


FIGURE_CSS = """
.cpf{--ink:#1d2126;--soft:#5b636d;--rule:#d9d7d0;--paper:#fff;--mid:#f6f5f1;--hot:#175ca3;--cold:#be4e14;
--denoise:#0a7d78;--noise:#8a3b8f;--band:#e9e7e0;font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif}
.cpf text{font-family:inherit;fill:var(--ink);font-size:11px}.cpf text.s{fill:var(--soft)}
.cpf text.m{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
.cpf text.h{stroke:var(--paper);stroke-width:3px;paint-order:stroke}
.cpf text.t{font-weight:600;font-size:12px}
.cpf .c{stroke:var(--paper);stroke-width:1}.cpf .z{fill:none;stroke:var(--rule);stroke-dasharray:2 2}
.cpf text.v{font-size:10px;text-anchor:middle;pointer-events:none;font-variant-numeric:tabular-nums}
.cpf text.w{fill:#fff}.cpf .ax{stroke:var(--rule);stroke-width:1}.cpf .zero{stroke:var(--soft);stroke-width:1}
.cpf .d{fill:var(--denoise)}.cpf .n{fill:var(--noise)}.cpf .dl{stroke:var(--denoise)}.cpf .nl{stroke:var(--noise)}
.cpf .band{fill:var(--band)}.cpf .neg{fill:var(--cold)}.cpf .flat{fill:var(--soft)}
.cpf .mean{stroke:var(--paper);stroke-width:1}.cpf .w0{fill:var(--hot)}
@supports (color:color-mix(in oklab,red,blue)){
.cpf .p{fill:color-mix(in oklab,var(--hot) var(--t),var(--mid))}
.cpf .q{fill:color-mix(in oklab,var(--cold) var(--t),var(--mid))}}
"""
FIGURE_CSS_DARK = """
.cpf{--ink:#e6e4de;--soft:#9aa1a9;--rule:#3a4048;--paper:#15181c;--mid:#23272d;--hot:#5fa8f0;--cold:#f08a4b;
--denoise:#3cc2b6;--noise:#d489d8;--band:#2b3037}.cpf text.w{fill:#0d1013}
"""


@dataclass(frozen=True)
class Figure:
    """A drawing with the words that belong to it.

    It shows itself in a notebook, saves itself as a standalone `.svg`, and is what the report is made of.

    Attributes:
        panels: one or more `<svg>` elements with their sizes; they stand side by side, or below one another
            where the page is narrow.
        caption: what was measured, in words (may be Markup).
        alt: what a reader who does not see the figure needs to know.
        legend: a scale that belongs to all panels, drawn below them.
    """

    panels: tuple[Panel, ...]
    caption: Child
    alt: str
    legend: Panel | None = field(default=None, repr=False)

    @property
    def html(self) -> Markup:
        """The panels, without caption or style (the page has the style once)."""
        drawn = tag("div", *(panel.element() for panel in self.panels), class_="panels")
        if self.legend is not None:
            drawn += tag("div", self.legend.element(), class_="panels")
        return tag("div", drawn, class_="cpf", role="group", aria_label=self.alt)

    def _repr_html_(self) -> str:
        style = tag("style", Markup(FIGURE_CSS))
        caption = tag("figcaption", self.caption, style="max-width:46em;font-size:90%")
        box = "background:#fff;color:#1d2126;padding:8px;display:inline-block"
        return str(tag("figure", style, self.html, caption, style=box))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one standalone SVG file, the panels in a row (atomically)."""
        from crosspatch.results.files import write_atomic

        path = Path(path)
        gap, x, nested = 24.0, 0.0, []
        for panel in self.panels:
            nested.append(panel.element(x=x))
            x += panel.width + gap
        width, height = x - gap, max(panel.height for panel in self.panels)
        if self.legend is not None:
            nested.append(self.legend.element(x=0.0, y=height))
            width, height = max(width, self.legend.width), height + self.legend.height
        style = tag("style", Markup(FIGURE_CSS))
        paper = tag("rect", width=width, height=height, fill="#fff")
        drawing = tag(
            "svg",
            style,
            paper,
            *nested,
            class_="cpf",
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {number(width)} {number(height)}",
            width=width,
            height=height,
        )
        write_atomic(path, str(drawing).encode())
        return path


@dataclass(frozen=True)
class Panel:
    """One drawing of a given size in pixels."""

    body: Markup
    width: float
    height: float

    def element(self, x: float | None = None, y: float | None = None) -> Markup:
        box = f"0 0 {number(self.width)} {number(self.height)}"
        size = {"viewBox": box, "width": self.width, "height": self.height}
        return tag("svg", self.body, **size, x=x, y=y)
