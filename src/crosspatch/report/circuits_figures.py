"""Figures of circuits: faithfulness over size, estimates against exact effects, stability, circuits on other tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from crosspatch.report.heatmap import Grid, heatmap
from crosspatch.report.strips import Axis
from crosspatch.report.svg import Figure, Panel, nice_ticks, number, percent, signed, tag

Row = Mapping[str, Any]
_TALL, _LEFT, _TOP = 250.0, 52.0, 16.0
_LEAST, _MOST = -0.5, 1.5
"""Faithfulness beyond these is drawn at the edge."""


def frontier_chart(rows: Sequence[Row], n_total: int, chosen: Row | None = None) -> Figure:
    """Faithfulness over size, on the axis of the MIB benchmark and on a logarithmic one.

    Args:
        rows: of `Frontier.frame`.
        n_total: edges of the model.
        chosen: the circuit that the page is about: `edges`, `faithfulness`.
    """
    values = [r[k] for r in rows for k in ("faithfulness_low", "faithfulness_high", "random_low", "random_high")]
    finite = [v for v in values if math.isfinite(v)]
    low, high = max(_LEAST, min([0.0, *finite])), min(_MOST, max([1.0, *finite]))
    up = Axis(low - 0.06, high + 0.06, _TALL - 40, _TOP)
    with_edges = [r for r in rows if r["edges"] > 0]
    smallest = math.floor(math.log10(min((r["edges"] for r in with_edges), default=1)))
    largest = math.log10(max(n_total, 10))
    log_axis = Axis(smallest, largest, _LEFT + 8, 372)
    ticks = [(float(10**k), f"{10**k:,}") for k in range(smallest, math.floor(largest) + 1)]
    logs = _size_panel(
        with_edges,
        up,
        [log_axis(math.log10(r["edges"])) for r in with_edges],
        [(log_axis(math.log10(v)), w) for v, w in ticks],
        "edges (log axis)",
        None if chosen is None else (log_axis(math.log10(max(chosen["edges"], 1))), chosen),
    )
    linear_axis = Axis(0.0, 1.0, _LEFT + 8, 372)
    linear = _size_panel(
        rows,
        up,
        [linear_axis(r["nominal"]) for r in rows],
        [(linear_axis(v), percent(v)) for v in (0.0, 0.2, 0.5, 1.0)],
        "share of edges asked for (the benchmark's axis)",
        None if chosen is None else (linear_axis(chosen["edges"] / n_total), chosen),
    )
    caption = Markup(
        "How much of the gap a circuit keeps, over its size, on held-out pairs. <b>Line</b>: circuits of this ranking "
        "with their 95 % interval. <b>Grey</b>: 95 % of random connected circuits of the same size. <b>Diamond</b>: "
        "the circuit of this page. CPR is the area below the line on the right, CMD the area between it and 100 %."
    )
    last = ", ".join(f"{r['edges']} edges {percent(r['faithfulness'])}" for r in rows)
    return Figure((logs, linear), caption, f"Faithfulness over size: {last}.")


def _size_panel(
    rows: Sequence[Row],
    up: Axis,
    xs: Sequence[float],
    ticks: Sequence[tuple[float, str]],
    title: str,
    chosen: tuple[float, Row] | None,
) -> Panel:
    """One axis of sizes; `chosen` stands at its place on it."""
    right = 380.0
    parts: list[Markup] = []
    for value in nice_ticks(up.low, up.high, 6):
        strong = abs(value) < 1e-9 or abs(value - 1) < 1e-9
        parts.append(tag("line", x1=_LEFT, x2=right, y1=up(value), y2=up(value), class_="zero" if strong else "ax"))
        parts.append(tag("text", percent(value), x=_LEFT - 6, y=up(value) + 4, text_anchor="end", class_="s"))
    for x, words in ticks:
        parts.append(tag("line", x1=x, x2=x, y1=_TALL - 40, y2=_TALL - 36, class_="zero"))
        parts.append(tag("text", words, x=x, y=_TALL - 22, text_anchor="middle", class_="s"))
    parts.append(tag("text", title, x=(_LEFT + right) / 2, y=_TALL - 4, text_anchor="middle", class_="s"))
    for names, style in (
        (("random_low", "random_high"), "band random"),
        (("faithfulness_low", "faithfulness_high"), "sure"),
    ):
        shape = area(xs, [up(r[names[0]]) for r in rows], [up(r[names[1]]) for r in rows])
        if shape:
            parts.append(tag("path", d=shape, class_=style, fill="#d5d2c8" if style != "sure" else "#0a7d78"))
    middle = line_path([(x, up(r["random_median"])) for x, r in zip(xs, rows, strict=True)])
    parts.append(tag("path", d=middle, fill="none", class_="flatl", stroke="#5b636d", stroke_dasharray="2 3"))
    line = line_path([(x, up(r["faithfulness"])) for x, r in zip(xs, rows, strict=True)])
    parts.append(tag("path", d=line, fill="none", class_="dl", stroke_width=2))
    for x, r in zip(xs, rows, strict=True):
        if math.isfinite(r["faithfulness"]):
            said = (
                f"{r['edges']:,} edges ({percent(r['nominal'])} asked)\nkeeps {percent(r['faithfulness'])} "
                f"[{percent(r['faithfulness_low'])}, {percent(r['faithfulness_high'])}]\nrandom circuits "
                f"{percent(r['random_low'])} to {percent(r['random_high'])}"
            )
            parts.append(tag("circle", tag("title", said), cx=x, cy=up(r["faithfulness"]), r=3.4, class_="d"))
    if chosen is not None and math.isfinite(chosen[1]["faithfulness"]):
        x, row = chosen
        said = f"the circuit of this page: {row['edges']:,} edges keep {percent(row['faithfulness'])}"
        shape = f"M{number(x)} {number(up(row['faithfulness']) - 7)}l7 7l-7 7l-7 -7z"
        parts.append(tag("path", tag("title", said), d=shape, class_="n mean"))
    return Panel(Markup("").join(parts), right + 18, _TALL)


def line_path(points: Sequence[tuple[float, float]]) -> str:
    """A line through the points that have a number, broken where one has none."""
    found, pen = "", "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        found += f"{pen}{number(x)} {number(y)}"
        pen = "L"
    return found


def area(xs: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    kept = [(x, a, b) for x, a, b in zip(xs, low, high, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(kept) < 2:
        return ""
    there = line_path([(x, a) for x, a, _ in kept])
    back = line_path([(x, b) for x, _, b in reversed(kept)])
    return f"{there}L{back[1:]}Z"


def scatter(rows: Sequence[Row], unit: str, theta: float) -> Figure:
    """Exact effect over estimate, one dot per measured edge.

    Args:
        rows: of `Verification.frame`: part, drawn (top, sample), estimate, exact, low, high.
        theta: effect from which an edge counts.
    """
    size, left, bottom = 380.0, 58.0, 336.0
    ends = [0.0, theta, -theta, *(r[k] for r in rows for k in ("estimate", "exact"))]
    finite = [v for v in ends if math.isfinite(v)]
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low or 1.0)
    across, up = Axis(low - margin, high + margin, left, size - 8), Axis(low - margin, high + margin, bottom, 10)
    parts: list[Markup] = []
    y0, y1 = up(theta), up(-theta)
    parts.append(tag("rect", x=left, y=y0, width=size - 8 - left, height=y1 - y0, class_="band", fill="#e9e7e0"))
    for value in nice_ticks(low - margin, high + margin, 5):
        words = f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
        kind = "zero" if abs(value) < 1e-12 else "ax"
        parts.append(tag("line", x1=across(value), x2=across(value), y1=10, y2=bottom, class_=kind))
        parts.append(tag("line", x1=left, x2=size - 8, y1=up(value), y2=up(value), class_=kind))
        parts.append(tag("text", words, x=across(value), y=bottom + 15, text_anchor="middle", class_="s"))
        parts.append(tag("text", words, x=left - 5, y=up(value) + 4, text_anchor="end", class_="s"))
    corner = {"x1": across(across.low), "y1": up(across.low), "x2": across(across.high), "y2": up(across.high)}
    parts.append(tag("line", **corner, class_="zero", stroke_dasharray="4 3"))
    for r in sorted(rows, key=lambda r: r["drawn"] == "top"):
        if not (math.isfinite(r["estimate"]) and math.isfinite(r["exact"])):
            continue
        tone = "flat" if r["drawn"] != "top" else "n" if r["estimate"] * r["exact"] < 0 else "d"
        said = (
            f"{r['part']} ({'among the strongest' if r['drawn'] == 'top' else 'drawn at random'})\n"
            f"estimate {signed(r['estimate'])}, exact {signed(r['exact'])} [{signed(r['low'])}, {signed(r['high'])}]"
        )
        fill = {"flat": "#5b636d", "n": "#8a3b8f", "d": "#0a7d78"}[tone]
        place = {"cx": across(r["estimate"]), "cy": up(r["exact"])}
        parts.append(tag("circle", tag("title", said), **place, r=3.6, class_=tone, fill=fill, opacity=0.75))
    parts += _names(rows, across, up, size)
    parts.append(tag("text", f"estimate, {unit}", x=(left + size) / 2, y=size - 10, text_anchor="middle"))
    turn = f"rotate(-90 12 {number(bottom / 2)})"
    parts.append(tag("text", f"exact effect, {unit}", x=12, y=bottom / 2, text_anchor="middle", transform=turn))
    caption = Markup(
        'Each dot is one edge, cut alone. <b class="den">Teal</b>: of the strongest by the estimate; '
        '<b class="noi">purple</b>: the same with the wrong sign; grey: drawn at random from all others. On the dashed '
        "line the two agree; inside the band an effect counts as none."
    )
    alt = f"Scatter plot of exact effects against estimates for {len(rows)} edges."
    return Figure((Panel(Markup("").join(parts), size, size),), caption, alt)


def _names(rows: Sequence[Row], across: Axis, up: Axis, size: float, most: int = 6) -> list[Markup]:
    """The edges with the largest exact effects, where their names do not cover one another."""
    parts: list[Markup] = []
    taken: list[tuple[float, float, float]] = []
    known = [r for r in rows if math.isfinite(r["exact"]) and math.isfinite(r["estimate"])]
    for r in sorted(known, key=lambda r: -abs(r["exact"]))[:most]:
        x, y, wide = across(r["estimate"]), up(r["exact"]) + 4, 6.8 * len(r["part"])
        left = x - 8 - wide if x + 8 + wide > size - 8 else x + 8
        if all(abs(y - t) > 11 or left > b or left + wide < a for a, b, t in taken):
            taken.append((left, left + wide, y))
            parts.append(tag("text", r["part"], x=left, y=y, class_="m h"))
    return parts


def stability_chart(
    found: Float[np.ndarray, " pair"],
    nulls: Mapping[str, Float[np.ndarray, " null"]],
    random: Float[np.ndarray, " pair"],
) -> Figure:
    """How much circuits of resampled pairs have in common, beside resamples without a signal and random circuits.

    Args:
        found: Jaccard index of every two resamples.
        nulls: what was done -> mean Jaccard index of each data set without a signal.
        random: of every two random connected circuits.
    """
    lanes: list[tuple[str, np.ndarray, str]] = [("these pairs, resampled", np.asarray(found), "d")]
    lanes += [(name, np.asarray(values), "flat") for name, values in nulls.items()]
    lanes.append(("random circuits", np.asarray(random), "flat"))
    left, right, tall = 178.0, 560.0, 26.0
    across = Axis(0.0, 1.0, left, right - 12)
    bottom = tall * len(lanes) + 12
    parts: list[Markup] = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(tag("line", x1=across(value), x2=across(value), y1=6, y2=bottom, class_="ax"))
        parts.append(tag("text", f"{value:g}", x=across(value), y=bottom + 15, text_anchor="middle", class_="s"))
    for i, (name, values, tone) in enumerate(lanes):
        y = 10 + tall * (i + 0.5)
        parts.append(tag("text", name, x=left - 10, y=y + 4, text_anchor="end"))
        values = values[np.isfinite(values)]
        if not values.size:
            parts.append(tag("text", "not made", x=left + 8, y=y + 4, class_="s"))
            continue
        low, high = (float(v) for v in np.quantile(values, [0.025, 0.975]))
        mean = float(values.mean())
        said = tag("title", f"{name}: mean {mean:.2f}, 95 % between {low:.2f} and {high:.2f} ({values.size} values)")
        kind = "dl" if tone == "d" else "flatl"
        parts.append(tag("line", x1=across(low), x2=across(high), y1=y, y2=y, class_=kind, stroke_width=3))
        shape = f"M{number(across(mean))} {number(y - 6)}l6 6l-6 6l-6 -6z"
        parts.append(tag("path", said, d=shape, class_=f"{tone} mean"))
    parts.append(
        tag(
            "text",
            "edges in common (Jaccard index)",
            x=(left + right) / 2,
            y=bottom + 31,
            text_anchor="middle",
            class_="s",
        )
    )
    caption = Markup(
        "How much two circuits have in common. <b>First line</b>: selected on two resamples of the pairs. Resamples "
        "share most of their pairs, so that even scores without a signal agree: the lines below show how much. Bars "
        "hold 95 %."
    )
    alt = f"Jaccard index of resampled circuits: mean {float(np.mean(found)):.2f}."
    return Figure((Panel(Markup("").join(parts), right, bottom + 38),), caption, alt)


def specificity_map(rows: Sequence[Row], tasks: Sequence[str]) -> Figure:
    """Every circuit on every task: what it keeps, and what goes without it.

    Args:
        rows: of `Specificity.frame`: task, circuit, faithfulness, necessity with their intervals, q.
    """
    grids = []
    for of, title in (("faithfulness", "kept by the circuit alone"), ("necessity", "lost without the circuit")):
        values, sure = np.full((len(tasks), len(tasks) + 1), np.nan), np.ones((len(tasks), len(tasks) + 1))
        tips = [[""] * (len(tasks) + 1) for _ in tasks]
        for r in rows:
            i, j = tasks.index(r["task"]), tasks.index(r["circuit"])
            values[i, j] = r[of]
            between = f"[{percent(r[of + '_low'])}, {percent(r[of + '_high'])}]"
            tips[i][j] = f"circuit of {r['circuit']} on {r['task']}: {percent(r[of])} {between}"
            values[i, -1] = r[f"random_{of}"]
            tips[i][-1] = f"random circuits on {r['task']} (median): {percent(r[f'random_{of}'])}"
        grids.append(Grid(title, values, tips, sure, [[None] * (len(tasks) + 1) for _ in tasks]))
    return heatmap(
        grids,
        list(tasks),
        [*tasks, "random"],
        row_title="task",
        column_title="circuit of",
        caption="Shares of each task's gap. A circuit that serves its own task and no other has large numbers on the "
        "diagonal only.",
        alt=f"Circuits of {len(tasks)} tasks on the pairs of all of them.",
        unit="share of the gap",
        limit=1.0,
    )
