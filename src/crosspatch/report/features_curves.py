"""Faithfulness and completeness of features and neurons over size, in one figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from crosspatch.features.curve import Curve
from crosspatch.report.circuits_figures import area, line_path
from crosspatch.report.strips import Axis
from crosspatch.report.svg import Figure, Panel, nice_ticks, percent, signed, tag

_WIDE, _TALL, _LEFT, _TOP = 430.0, 300.0, 52.0, 20.0
_LEAST, _MOST = -0.5, 1.5
"""What lies beyond is drawn at the edge."""
_HALF = 4
"""Lines in the first column of the legend: as a rule those of features."""
DASHES = {"kept": "7 4", "removed": "2 3", "stream kept": "8 3 2 3", "relp": "7 4", "atp": "2 3"}
TONES = {"features": "c0", "neurons, outputs": "c1", "neurons, hidden": "c2", "neurons, hidden and attention": "c3"}
COLOURS = {"c0": "#0a7d78", "c1": "#8a3b8f", "c2": "#175ca3", "c3": "#be4e14"}
MEASURES = (
    ("faithfulness", "Faithfulness: all but the set replaced"),
    ("completeness", "Completeness: the set replaced"),
)


def curve_rows(curve: Curve) -> list[dict[str, Any]]:
    """The rows of its evaluation with `nodes`, how many were chosen: error terms count where a policy does not decide
    about them."""
    rows = curve.evaluation.frame.to_dict("records")
    return [
        {**row, "nodes": row["features"] + (row["error_terms"] if curve.errors in ("nodes", "") else 0)}
        for row in map(dict, rows)
    ]


def curves_chart(curves: Sequence[Curve]) -> Figure:
    """Lines over size, each with the band of random sets of the same sizes."""
    rows = [curve_rows(curve) for curve in curves]
    largest = max((row["nodes"] for its in rows for row in its), default=1)
    across = Axis(0.0, max(math.log10(max(largest, 2)), 1.0), _LEFT + 8, _WIDE - 24)
    panels = tuple(_panel(curves, rows, name, title, across) for name, title in MEASURES)
    caption = Markup(
        "How much of the gap between the model and the model with everything replaced a set of nodes keeps (left; "
        "ideal 100 %), and what is left without it (right; ideal 0 %), over its size, on held-out pairs. Shaded: 95 % "
        "of random sets of the same sizes. Lines of one colour replace the same places and share one scale; between "
        "colours compare the raw values too."
    )
    words = "; ".join(
        f"{curve.name}: " + ", ".join(f"{row['nodes']} nodes {percent(row['faithfulness'])}" for row in its)
        for curve, its in zip(curves, rows, strict=True)
    )
    legends = [_legend(some) for some in (curves[:_HALF], curves[_HALF:]) if some]
    return Figure((*panels, *legends), caption, f"Faithfulness over size. {words}.")


def _panel(
    curves: Sequence[Curve], rows: Sequence[Sequence[Mapping[str, Any]]], name: str, title: str, across: Axis
) -> Panel:
    values = [row[f"{name}{end}"] for its in rows for row in its for end in ("", "_low", "_high")]
    finite = [value for value in values if math.isfinite(value)]
    low, high = max(_LEAST, min([0.0, *finite])), min(_MOST, max([1.0, *finite]))
    up = Axis(low - 0.05, high + 0.05, _TALL - 44, _TOP + 8)
    parts = [tag("text", title, x=_LEFT, y=12, class_="t")]
    for value in nice_ticks(up.low, up.high, 6):
        strong = abs(value) < 1e-9 or abs(value - 1) < 1e-9
        parts.append(tag("line", x1=_LEFT, x2=_WIDE - 6, y1=up(value), y2=up(value), class_="zero" if strong else "ax"))
        parts.append(tag("text", percent(value), x=_LEFT - 6, y=up(value) + 4, text_anchor="end", class_="s"))
    for power in range(math.floor(across.high + 1e-9) + 1):
        x = across(float(power))
        parts.append(tag("line", x1=x, x2=x, y1=_TALL - 44, y2=_TALL - 40, class_="zero"))
        parts.append(tag("text", f"{10**power:,}", x=x, y=_TALL - 26, text_anchor="middle", class_="s"))
    words = "nodes in the set (log axis)"
    parts.append(tag("text", words, x=(_LEFT + _WIDE) / 2, y=_TALL - 8, text_anchor="middle", class_="s"))
    strokes: list[Markup] = []
    for curve, its in zip(curves, rows, strict=True):
        strokes += _line(curve, [row for row in its if row["nodes"] > 0], name, across, up, parts)
    return Panel(Markup("").join([*parts, *strokes]), _WIDE, _TALL)


def _line(
    curve: Curve, rows: Sequence[Mapping[str, Any]], name: str, across: Axis, up: Axis, behind: list[Markup]
) -> list[Markup]:
    """A line with its dots; its band goes behind all lines."""
    tone = TONES.get(curve.kind, "c0")
    xs = [across(math.log10(row["nodes"])) for row in rows]
    band = area(xs, [up(r[f"random_{name}_low"]) for r in rows], [up(r[f"random_{name}_high"]) for r in rows])
    if band:
        behind.append(tag("path", d=band, class_=f"chance {tone}", fill=COLOURS[tone], fill_opacity=0.1))
    line = line_path([(x, up(row[name])) for x, row in zip(xs, rows, strict=True)])
    strokes = [
        tag("path", d=line, fill="none", class_=f"trace {tone}", stroke=COLOURS[tone], stroke_width=2,
            stroke_dasharray=_dash(curve))
    ]  # fmt: skip
    for x, row in zip(xs, rows, strict=True):
        if math.isfinite(row[name]):
            said = (
                f"{curve.name}\n{row['nodes']:,} nodes: {percent(row[name])} [{percent(row[f'{name}_low'])}, "
                f"{percent(row[f'{name}_high'])}]\nm {signed(row['m_kept' if name == 'faithfulness' else 'm_cut'])}, "
                f"model {signed(row['m_model'])}, everything replaced {signed(row['m_empty'])}"
            )
            if math.isfinite(row[f"random_{name}_low"]):
                ends = percent(row[f"random_{name}_low"]), percent(row[f"random_{name}_high"])
                said += f"\nrandom sets {ends[0]} to {ends[1]}"
            place = {"cx": x, "cy": up(row[name])}
            strokes.append(tag("circle", tag("title", said), **place, r=3, class_=f"dot {tone}", fill=COLOURS[tone]))
    return strokes


def _dash(curve: Curve) -> str | None:
    return DASHES.get(curve.errors or curve.method)


def _legend(curves: Sequence[Curve]) -> Panel:
    """Lines with what is left when everything is replaced."""
    parts = [tag("text", "m: everything replaced / model", x=0, y=12, class_="s")]
    for i, curve in enumerate(curves):
        y, tone = 32.0 + 30 * i, TONES.get(curve.kind, "c0")
        parts.append(
            tag("line", x1=0, x2=30, y1=y - 4, y2=y - 4, class_=f"trace {tone}", stroke=COLOURS[tone], stroke_width=2,
                stroke_dasharray=_dash(curve))
        )  # fmt: skip
        parts.append(tag("text", curve.name, x=38, y=y))
        found = curve.evaluation
        parts.append(
            tag("text", f"{signed(found.empty.mean())} / {signed(found.model.mean())}", x=38, y=y + 13, class_="s")
        )
    return Panel(Markup("").join(parts), 330.0, 32.0 + 30 * len(curves))
