"""Figures of path results: interval bars, tokens coloured by effect, senders as a heat map, steps of a search."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from crosspatch.report.heatmap import Grid, heatmap
from crosspatch.report.strips import Axis
from crosspatch.report.svg import Figure, Panel, interval, nice_ticks, number, percent, signed, tag
from crosspatch.report.tokens import visible

WIDTH = 280.0
_SENDER = re.compile(r"a(\d+)\.h(\d+)(?:@(.+))?$|m(\d+)(?:@(.+))?$")


@dataclass(frozen=True)
class Lane:
    """One number with its interval; `tone` is a class of the figures' style (d, n)."""

    name: str
    mean: float
    low: float
    high: float
    tone: str


def axis_of(
    lanes: Sequence[Lane], *, least: float = -math.inf, most: float = math.inf, ends: tuple[float, ...] = (0.0,)
) -> Axis:
    """One axis for all bars; what lies beyond `least` or `most` is drawn at its edge."""
    values = [*ends, *(v for lane in lanes for v in (lane.mean, lane.low, lane.high) if math.isfinite(v))]
    low, high = max(least, min(values)), min(most, max(values))
    margin = 0.05 * (high - low or 1.0)
    return Axis(low - margin, high + margin, 8, WIDTH - 8)


def bars(
    lanes: Sequence[Lane],
    axis: Axis,
    *,
    share: bool,
    marks: Sequence[float] = (0.0,),
    bands: Sequence[tuple[float, float] | None] = (),
) -> Markup:
    """Means as diamonds and intervals as bars, one lane below another; numbers are shares or effects.

    Args:
        bands: of each lane what it is to be compared with (of random circuits, say), drawn behind it.
    """
    say = percent if share else signed
    height = 15.0 * len(lanes) + 4
    parts = [tag("line", x1=axis(m), x2=axis(m), y1=0, y2=height, class_="zero") for m in marks]
    for i, band in enumerate(bands):
        if band is not None and math.isfinite(band[0]):
            place = {"x": axis(band[0]), "width": max(2.0, axis(band[1]) - axis(band[0])), "y": 3.5 + 15.0 * i}
            parts.append(tag("rect", **place, height=12, class_="band random", fill="#e9e7e0"))
    for i, lane in enumerate(lanes):
        y = 2 + 15.0 * (i + 0.5)
        if not math.isfinite(lane.mean):
            continue
        ends = f"[{say(lane.low)}, {say(lane.high)}]" if math.isfinite(lane.low) else ""
        said = tag("title", f"{lane.name}: {say(lane.mean)} {ends}".strip())
        if math.isfinite(lane.low):
            parts.append(
                tag("line", x1=axis(lane.low), x2=axis(lane.high), y1=y, y2=y, class_=f"{lane.tone}l", stroke_width=2.4)
            )
        x = axis(lane.mean)
        shape = f"M{number(x)} {number(y - 5)}l5 5l-5 5l-5 -5z"
        parts.append(tag("path", said, d=shape, class_=f"{lane.tone} mean"))
    return Panel(Markup("").join(parts), WIDTH, height).element()


def scale(axis: Axis, *, share: bool) -> Markup:
    """The axis of the bars, to stand above them."""
    parts = []
    for value in nice_ticks(axis.low, axis.high, 5):
        x = axis(value)
        parts.append(tag("line", x1=x, x2=x, y1=15, y2=20, class_="ax"))
        words = percent(value) if share else f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
        parts.append(tag("text", words, x=x, y=11, text_anchor="middle", class_="s"))
    return Panel(Markup("").join(parts), WIDTH, 20).element()


@dataclass(frozen=True)
class ReadToken:
    """A token of the prompt, and what moving the paths does to predicting it (NaN where nothing was read)."""

    text: str
    effect: float
    low: float
    high: float
    loss: float

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return math.isfinite(self.low) and (self.low > 0 or self.high < 0)


def token_strip(tokens: Sequence[ReadToken], unit: str) -> Markup:
    """The prompt with every token coloured by the change of its loss: blue helps (the loss rises), orange hurts."""
    limit = max((abs(t.effect) for t in tokens if math.isfinite(t.effect)), default=0.0) or 1.0
    boxes = []
    for i, token in enumerate(tokens):
        if not math.isfinite(token.effect):
            boxes.append(tag("span", visible(token.text), class_="ptok", title=f"token {i}: not predicted"))
            continue
        share = 100 * (abs(token.effect) / limit) ** 0.7
        said = (
            f"token {i}: {signed(token.effect)} {unit} {interval(token.low, token.high)}; in the model {token.loss:.3g}"
        )
        tone = "up" if token.effect > 0 else "down" if token.effect < 0 else "none"
        shown = tag("small", signed(token.effect)) if token.sure and share >= 25 else Markup("")
        boxes.append(
            tag(
                "span",
                visible(token.text),
                shown,
                class_=f"ptok {tone}",
                title=said,
                style=f"--t:{number(share)}%",
            )
        )
    return tag("p", *boxes, class_="pstrip cpf")


def sender_maps(rows: Sequence[Mapping[str, float | str]], unit: str, what: str = "senders") -> Figure | None:
    """Senders as layer by head (MLPs in a column of their own), one panel per position; None where no sender fits.

    Args:
        rows: sender, effect, low, high, share.
        what: as titles and captions call them.
    """
    found: dict[str, dict[tuple[int, int], Mapping[str, float | str]]] = {}
    for row in rows:
        match = _SENDER.match(str(row["sender"]))
        if match is not None:
            layer, head = (int(match[1]), int(match[2])) if match[1] else (int(match[4]), -1)
            found.setdefault(match[3] or match[5] or "", {})[layer, head] = row
    if not found:
        return None
    cells = [cell for panel in found.values() for cell in panel]
    layers = list(range(min(c[0] for c in cells), max(c[0] for c in cells) + 1))
    heads = sorted({c[1] for c in cells}, key=lambda h: (h < 0, h))
    share = all(math.isfinite(float(row["share"])) for row in rows)
    grids = []
    for position, panel in found.items():
        values = np.full((len(layers), len(heads)), np.nan)
        tips = [[""] * len(heads) for _ in layers]
        sure = np.zeros(values.shape)
        for (layer, head), row in panel.items():
            i, j = layer - layers[0], heads.index(head)
            effect, low, high = (float(row[name]) for name in ("effect", "low", "high"))
            values[i, j] = float(row["share"]) if share else effect
            words = f", {percent(float(row['share']))} of the total" if share else ""
            tips[i][j] = f"{row['sender']}: {signed(effect)} {unit} {interval(low, high)}{words}"
            sure[i, j] = (low > 0 or high < 0) and (not share or abs(values[i, j]) >= 0.005)
        title = f"{what} at {position}" if position else f"{what} at any position"
        grids.append(Grid(title, values, tips, sure, [[None] * len(heads) for _ in layers]))
    return heatmap(
        grids,
        [str(layer) for layer in layers],
        [f"h{head}" if head >= 0 else "MLP" for head in heads],
        row_title="layer",
        column_title="head",
        caption="Blue: the paths were helping (without them the output is worse). Orange: they were hurting. "
        "Numbers stand where the interval leaves out zero; "
        f"dashed cells are no {what}.",
        alt=f"Heat map of {len(rows)} {what} over layers and heads.",
        unit="share of the total effect" if share else unit,
        write=percent if share else signed,
    )


def step_chart(
    searched: Sequence[float], held_out: Sequence[tuple[float, float, float]], random: Float[np.ndarray, " draw"]
) -> Figure:
    """Proportion explained after every step, and that of random hypotheses of as many patterns beside the last one.

    Args:
        held_out: with both ends of its interval.
    """
    ends = [v for step in held_out for v in step]
    finite = [v for v in (*searched, *ends, *random.tolist()) if math.isfinite(v)]
    low, high = max(-1.0, min([0.0, *finite])), max([1.0, *finite])
    wide = max(280.0, min(620.0, 90.0 * (len(searched) + 1)))
    left, right, bottom = 52.0, 52.0 + wide, 236.0
    across = Axis(0, max(1, len(searched) - 1), left + 16, right - 90)
    up = Axis(low - 0.05 * (high - low), high + 0.05 * (high - low), bottom, 16)
    parts: list[Markup] = []
    for value in nice_ticks(up.low, up.high, 6):
        kind = "zero" if abs(value) < 1e-12 else "ax"
        parts.append(tag("line", x1=left, x2=right, y1=up(value), y2=up(value), class_=kind))
        parts.append(tag("text", percent(value), x=left - 6, y=up(value) + 4, text_anchor="end", class_="s"))
    every = max(1, math.ceil(len(searched) / 14))
    for i in range(0, len(searched), every):
        words = "start" if i == 0 else str(i)
        parts.append(tag("text", words, x=across(i), y=bottom + 16, text_anchor="middle", class_="s"))
    for i, (_, least, most) in enumerate(held_out):
        if math.isfinite(least) and math.isfinite(most):
            x, top, below = across(i), up(min(most, high)), up(max(least, low))
            parts.append(tag("line", x1=x, x2=x, y1=below, y2=top, class_="dl", stroke_width=1.4, opacity=0.6))
    means = [mean for mean, _, _ in held_out]
    for name, values, tone, dash in (("pairs searched", searched, "n", "5 4"), ("held-out pairs", means, "d", None)):
        dots = [(across(i), up(v), v, i) for i, v in enumerate(values) if math.isfinite(v)]
        line = "".join(f"{'L' if k else 'M'}{number(x)} {number(y)}" for k, (x, y, _, _) in enumerate(dots))
        if line:
            parts.append(tag("path", d=line, fill="none", class_=f"{tone}l", stroke_width=2, stroke_dasharray=dash))
        for x, y, v, i in dots:
            between = [f"[{percent(a)}, {percent(b)}]" for _, a, b in held_out[i : i + 1] if values is means]
            said = " ".join([f"step {i}, {name}: {percent(v)}", *between])
            parts.append(tag("circle", tag("title", said), cx=x, cy=y, r=3.6, class_=tone))
    if len(random):
        x = right - 40
        for k, v in enumerate(random.tolist()):
            said = tag("title", f"random hypothesis {k}: {percent(v)}")
            parts.append(
                tag("circle", said, cx=x + ((k * 0.618) % 1 - 0.5) * 26, cy=up(v), r=2.6, class_="flat", opacity=0.6)
            )
        parts.append(tag("text", "random", x=x, y=bottom + 16, text_anchor="middle", class_="s"))
    parts.append(tag("text", "steps taken", x=(left + right - 90) / 2, y=bottom + 34, text_anchor="middle", class_="s"))
    caption = Markup(
        'Proportion explained. <b class="den">Solid: held-out pairs</b>, which only scored the steps (95 % intervals). '
        '<b class="noi">Dashed: the pairs searched.</b> Grey: random hypotheses of as many patterns, on held-out pairs.'
    )
    last = percent(means[-1]) if means else "n/a"
    alt = f"Line chart of the proportion explained over {len(searched) - 1} steps; {last} at the end on held-out pairs."
    return Figure((Panel(Markup("").join(parts), right + 6, bottom + 40),), caption, alt)
