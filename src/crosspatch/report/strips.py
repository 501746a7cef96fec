"""Spread and interaction: a strip of per-example effects for each part, and denoise against noise for all parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from crosspatch.report.data import Band, Effect, Estimate
from crosspatch.report.svg import Figure, Panel, interval, nice_ticks, number, percent, signed, tag

STRIP_WIDTH = 300.0
LANE = 17.0
NO_BAND = Band()


class Axis:
    """A linear map from metric units to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        """Pixel of `value`; what lies outside is drawn at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.02, max(-0.02, share)) * (self.end - self.start)


def shared_axis(effects: Sequence[Effect], band: Band = NO_BAND) -> Axis:
    """One axis for all strips: every mean and interval fits, and nearly every example (1st to 99th percentile)."""
    ends = [0.0]
    for effect in effects:
        for estimate in (effect.denoise, effect.noise):
            ends += [v for v in (estimate.mean, estimate.low, estimate.high) if math.isfinite(v)]
    ends += [v for lane in (band.denoise, band.noise) if lane is not None for v in lane]
    each = np.concatenate([np.concatenate([e.each_denoise, e.each_noise]) for e in effects] or [np.empty(0)])
    each = each[np.isfinite(each)]
    if each.size:
        ends += [float(v) for v in np.percentile(each, [1, 99])]
    low, high = min(ends), max(ends)
    if high <= low:
        low, high = -1.0, 1.0
    margin = 0.05 * (high - low)
    return Axis(low - margin, high + margin, 6, STRIP_WIDTH - 6)


def strip(effect: Effect, axis: Axis, band: Band = NO_BAND) -> Panel:
    """Two lanes (denoise above noise): a dot per example, the mean as a diamond, its interval as a bar."""
    height = 2 * LANE + 4
    parts = [tag("line", x1=axis(0), x2=axis(0), y1=0, y2=height, class_="zero")]
    lanes = (
        (effect.denoise, effect.each_denoise, band.denoise, "d", "Denoise"),
        (effect.noise, effect.each_noise, band.noise, "n", "Noise"),
    )
    for lane, (estimate, each, random, tone, name) in enumerate(lanes):
        parts += _lane(estimate, each, random, tone, name, axis, 2 + (lane + 0.5) * LANE)
    return Panel(Markup("").join(parts), STRIP_WIDTH, height)


def _lane(
    estimate: Estimate,
    each: Float[np.ndarray, " example"],
    random: tuple[float, float] | None,
    tone: str,
    name: str,
    axis: Axis,
    middle: float,
) -> list[Markup]:
    parts = []
    if random is not None:
        low, high = axis(random[0]), axis(random[1])
        said = tag("title", f"random control, {name.lower()}: {signed(random[0])} to {signed(random[1])}")
        parts.append(
            tag("rect", said, x=low, y=middle - LANE / 2, width=max(1.5, high - low), height=LANE, class_="band")
        )
    for i, value in enumerate(each):
        if math.isfinite(value):
            # A fixed spread by index keeps equal values apart and the page reproducible.
            y = middle + ((i * 0.618) % 1 - 0.5) * (LANE - 7)
            said = tag("title", f"{name}, example {i}: {signed(float(value), 3)}")
            parts.append(tag("circle", said, cx=axis(float(value)), cy=y, r=2.1, class_=tone, opacity=0.33))
    if math.isfinite(estimate.mean):
        x = axis(estimate.mean)
        if math.isfinite(estimate.low):
            ends = {"x1": axis(estimate.low), "x2": axis(estimate.high)}
            parts.append(tag("line", **ends, y1=middle, y2=middle, class_=f"{tone}l", stroke_width=2.2))
        shape = f"M{number(x)} {number(middle - 5)}l5 5l-5 5l-5 -5z"
        said = tag("title", f"{name}: {signed(estimate.mean, 3)} {interval(estimate.low, estimate.high, 3)}".strip())
        parts.append(tag("path", said, d=shape, class_=f"{tone} mean"))
    return parts


def strip_scale(axis: Axis) -> Panel:
    """The axis of the strips, to stand above them."""
    parts = []
    ticks = nice_ticks(axis.low, axis.high, 5)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    digits = max(0, min(4, math.ceil(-math.log10(step) - 1e-9)))
    digits += not math.isclose(step * 10**digits, round(step * 10**digits))
    for value in ticks:
        x = axis(value)
        parts.append(tag("line", x1=x, x2=x, y1=15, y2=20, class_="ax"))
        parts.append(tag("text", signed(value, digits).lstrip("+"), x=x, y=11, text_anchor="middle", class_="s"))
    return Panel(Markup("").join(parts), STRIP_WIDTH, 20)


def gate_plane(effects: Sequence[Effect], *, label: int = 8, size: float = 430.0) -> Figure:
    """Denoise against noise, one dot per part, as shares of the gap.

    On the diagonal both directions agree (the part adds its share whatever the rest does). Above it the part
    needs company (AND); below it something else can do its work (OR, backup).
    """
    shown = [e for e in effects if math.isfinite(e.denoise.share) and math.isfinite(e.noise.share)]
    ends = [0.0] + [v for e in shown for v in (e.denoise.share, e.noise.share)]
    low, high = min(ends), max(ends)
    margin = 0.1 * (high - low or 1.0)
    left, bottom = 52.0, size - 44
    across = Axis(low - margin, high + margin, left, size - 12)
    up = Axis(low - margin, high + margin, bottom, 14)
    parts: list[Markup] = []
    for value in nice_ticks(across.low, across.high, 6):
        x, y = across(value), up(value)
        kind = "zero" if abs(value) < 1e-12 else "ax"
        parts.append(tag("line", x1=x, x2=x, y1=14, y2=bottom, class_=kind))
        parts.append(tag("line", x1=left, x2=size - 12, y1=y, y2=y, class_=kind))
        parts.append(tag("text", percent(value), x=x, y=bottom + 15, text_anchor="middle", class_="s"))
        parts.append(tag("text", percent(value), x=left - 5, y=y + 4, text_anchor="end", class_="s"))
    corner = {"x1": across(across.low), "y1": up(across.low), "x2": across(across.high), "y2": up(across.high)}
    parts.append(tag("line", **corner, class_="zero", stroke_dasharray="4 3"))
    parts.append(tag("text", "AND-like: needs company", x=left + 8, y=28, class_="s h", font_style="italic"))
    words = "OR-like: has a backup"
    parts.append(tag("text", words, x=size - 20, y=bottom - 8, text_anchor="end", class_="s h", font_style="italic"))
    middle = (14 + bottom) / 2
    parts.append(tag("text", "denoise: share restored", x=(left + size) / 2, y=size - 8, text_anchor="middle"))
    parts.append(
        tag(
            "text",
            "noise: share broken",
            x=12,
            y=middle,
            text_anchor="middle",
            transform=f"rotate(-90 12 {number(middle)})",
        )
    )
    ranked = sorted(shown, key=lambda e: -e.size)
    for effect in reversed(ranked):
        said = tag("title", describe(effect))
        tone = _tone(effect)
        dot = tag(
            "circle",
            said,
            cx=across(effect.denoise.share),
            cy=up(effect.noise.share),
            r=4.2,
            class_=f"dot {tone}",
            fill={"neg": "#be4e14", "w0": "#175ca3"}.get(tone, "#5b636d"),
            opacity=0.35 if tone == "flat" else 0.85,
        )
        parts.append(dot)
    named = [e for e in ranked if e.matters] or ranked
    parts += _labels(named[:label], across, up, size)
    caption = Markup(
        "Each dot is one part. Across: how much of the gap its clean value <b>restores</b> in the corrupt run. Up: how "
        "much its corrupt value <b>breaks</b> in the clean run. On the dashed line the two agree; the vertical "
        "distance to it is the interaction INT = noise \N{MINUS SIGN} denoise. Grey: not reliably different from zero."
    )
    most = ", ".join(f"{e.address} ({percent(e.denoise.share)}, {percent(e.noise.share)})" for e in ranked[:5])
    alt = f"Scatter plot of denoise against noise effects for {len(shown)} parts. Largest: {most or 'none'}."
    return Figure((Panel(Markup("").join(parts), size, size),), caption, alt)


def _tone(effect: Effect) -> str:
    """Blue for a part that helps, orange for one that hurts, grey for one that does not matter."""
    if not effect.matters:
        return "flat"
    return "w0" if effect.denoise.share + effect.noise.share >= 0 else "neg"


def _labels(effects: Sequence[Effect], across: Axis, up: Axis, size: float) -> list[Markup]:
    """Names beside the dots, left out where they would cover a name that is already there."""
    taken: list[tuple[float, float, float]] = []
    parts = []
    for effect in effects:
        x, y = across(effect.denoise.share), up(effect.noise.share)
        width = 6.8 * len(effect.address)
        left = x - 8 - width if x + 8 + width > size - 8 else x + 8
        for nudge in (4.0, -7.0, 15.0):
            top = y + nudge
            if all(abs(top - t) > 11 or left > r or left + width < s for s, r, t in taken):
                taken.append((left, left + width, top))
                parts.append(tag("text", effect.address, x=left, y=top, class_="m h"))
                break
    return parts


def describe(effect: Effect) -> str:
    """The row in a few plain lines, for a tooltip."""
    lines = [effect.address]
    for name, estimate, q in (
        ("denoise restores", effect.denoise, effect.q_denoise),
        ("noise breaks", effect.noise, effect.q_noise),
    ):
        if not math.isfinite(estimate.mean):
            continue
        line = f"{name} {percent(estimate.share)}: {signed(estimate.mean)} {interval(estimate.low, estimate.high)}"
        lines.append(line.rstrip() + (f", q = {q:.2g}" if math.isfinite(q) else ""))
    if math.isfinite(effect.interaction.mean):
        span = interval(effect.interaction.low, effect.interaction.high)
        gate = f", {effect.gate}" if effect.gate else ""
        lines.append(f"INT {signed(effect.interaction.mean)} {span}".rstrip() + gate)
    return "\n".join(lines)
