"""The page of SHIFT: what taking features out of a classifier was worth, beside what it has to beat. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from crosspatch.report.html import POLICY, template, template_text
from crosspatch.report.svg import FIGURE_CSS, FIGURE_CSS_DARK, Figure, Panel, percent, signed, tag
from crosspatch.report.tokens import visible
from crosspatch.shift.result import FILE, ORIGINAL, ShiftResult, load_shift

MEASURES = (
    ("label", "accuracy"),
    ("spurious", "agrees with the other attribute"),
    ("worst", "accuracy in the worst group"),
)
PANEL, LANE, LEFT, NARROW_LEFT, NARROW = 250.0, 22.0, 232.0, 238.0, 200.0
"""Pixels: of one measure, of one method, and of the methods' names; the same two where the page is narrow."""
SEEN = 30
"""Judged features that are seen at once."""
CONTROLS = ("cue words removed", "mean embeddings, cue words removed")


@dataclass(frozen=True)
class ShiftPage:
    """What the page shows.

    Attributes:
        result: of a run of SHIFT.
        frame: its table.
        cards: whether a page of feature cards lies beside it.
        command: what made it; empty where it was made from Python.
        python: how to read the results in Python.
    """

    result: ShiftResult
    frame: pd.DataFrame
    cards: bool
    command: str = ""
    python: str = ""


def is_shift(folder: Path) -> bool:
    """Whether the folder was written by `crosspatch shift`."""
    return (folder / FILE).is_file()


def read_page(folder: Path, command: str = "") -> ShiftPage:
    """The page of a folder that `crosspatch shift` wrote.

    Raises:
        ResultError: a file that was damaged.
    """
    result = load_shift(folder)
    python = f"from crosspatch.shift import load_shift\n\nresult = load_shift({str(folder)!r})\nresult.frame()"
    frame = result.frame(seed=int(result.about["settings"]["seed"]))
    return ShiftPage(result, frame, (folder / "cards.html").is_file(), command, python)


def headline_of(result: ShiftResult, frame: pd.DataFrame) -> list[str]:
    """The first sentences: what happened, who judged, and whether something simpler does as well."""
    at = frame.set_index("method")
    label, other = (" or ".join(result.about[name]) for name in ("label", "other"))
    before, after = at.loc[ORIGINAL], at.loc["SHIFT"]
    removed = int(after["ablated"])

    def now(name: str, more: str = "") -> str:
        return f"{percent(after[name])} (before: {percent(before[name])}{more})"

    said = [
        f"Without {removed} of {sum(f.in_circuit for f in result.features)} features of its circuit the classifier of "
        f"{label} is right on {now('label')} of held-out texts and agrees with {other} on "
        f"{now('spurious', '; chance: 50 %')}; its worst group is at {now('worst')}."
    ]
    if "SHIFT, retrained" in at.index:
        again = at.loc["SHIFT, retrained"]
        said.append(
            f"With the head fitted again: {percent(again['label'])} right, {percent(again['spurious'])} with {other}, "
            f"{percent(again['worst'])} in the worst group."
        )
    said.append(f"The features were judged by {result.about['judge']}.")
    simple = [name for name in CONTROLS if name in at.index]
    if simple:
        best = max(simple, key=lambda name: at.loc[name, "label"])
        names = [name for name in ("SHIFT", "SHIFT, retrained") if name in at.index]
        ours = max(at.loc[name, "label"] for name in names)
        does = "does as well or better" if at.loc[best, "label"] >= ours else "does less well"
        said.append(f"A control without any feature ({best}) {does}: {percent(at.loc[best, 'label'])} right.")
    return said


def render(page: ShiftPage) -> str:
    """The whole page as text. Everything from a prompt, a file or a model is escaped."""
    result, about = page.result, page.result.about
    label, other = (" or ".join(about[name]) for name in ("label", "other"))
    return template("shift.html.j2").render(
        page=page,
        policy=POLICY,
        title=f"A classifier of {label}, not of {other}",
        label=label,
        other=other,
        headline=headline_of(result, page.frame),
        figure=_figure(page.frame, label),
        narrow=_narrow(page.frame, label),
        methods=[_method(row, about["judge"]) for _, row in page.frame.iterrows()],
        groups=[(name, _groups(result, name)) for name in page.frame["method"]],
        seen=SEEN,
        features=[_feature(feature, page.cards, i) for i, feature in enumerate(result.features)],
        facts=_facts(about, result),
        figure_css=Markup(FIGURE_CSS),
        figure_css_dark=Markup(FIGURE_CSS_DARK),
        style=Markup(template_text("style.css")),
        own_style=Markup(template_text("circuits.css")),
        script=Markup(template_text("report.js")),
    )


def _groups(result: ShiftResult, name: str) -> list[tuple[str, str, str]]:
    """Of each group its name, the accuracy, and its interval."""
    found = result.group_intervals(name, seed=int(result.about["settings"]["seed"]))
    return [(group, percent(mean), _range(low, high)) for group, (mean, low, high) in found.items()]


def _method(row: Mapping[str, Any], judge: str) -> dict[str, Any]:
    p = row["p_holm"]
    draws = (
        f"{row['draws']} draws, {percent(row['band_low'])} to {percent(row['band_high'])}" if row["draws"] > 1 else ""
    )
    return {
        "name": row["method"],
        "kind": row["kind"],
        "told": "the judge's verdicts" if row["told"] == judge else row["told"],
        "ablated": row["ablated"] or "",
        "cells": [(percent(row[m]), _range(row[f"{m}_low"], row[f"{m}_high"])) for m, _ in MEASURES],
        "worst": row["worst_group"],
        "draws": draws,
        "gain": "" if p != p else signed(100 * row["gain"], 1),
        "p": "" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}",
    }


def _range(low: float, high: float) -> str:
    """Ends of an interval of a share, or nothing."""
    return f"{percent(low)} to {percent(high)}" if low == low else ""


def _feature(feature: Any, cards: bool, number: int) -> dict[str, Any]:
    between = "" if feature.low is None else f"[{signed(feature.low)}, {signed(feature.high)}]"
    return {
        "name": feature.name,
        "href": f"cards.html#card-{number}" if cards else "",
        "effect": signed(feature.effect),
        "between": between,
        "verdict": feature.verdict,
        "reason": feature.reason,
        "inside": feature.in_circuit,
        "active": " ".join(visible(token.strip()) for token in feature.active_on),
        "promotes": " ".join(visible(token.strip()) for token in feature.promotes),
    }


def _facts(about: Mapping[str, Any], result: ShiftResult) -> dict[str, str]:
    settings = about["settings"]
    node = f"threshold {settings['threshold']:g}" if settings["threshold"] is not None else f"{settings['nodes']} nodes"
    steps = f", {settings['steps']} steps, {settings['rule']} rule" if settings["method"] == "ig" else ""
    sets = [
        f"{name}: " + ", ".join(f"{n} {group}" for group, n in counts.items())
        for name, counts in about["texts"].items()
    ]
    chosen = ", ".join(f"block {layer}: {loss:.3f}" for layer, loss in about["layers"].items())
    facts = {
        "model": about["model"],
        "texts": about["data"],
        "sets": "; ".join(sets),
        "classifier": f"mean residual stream behind block {settings['layer']}, {about['classifier']}",
        "block": f"smallest cross-entropy on held-out ambiguous texts ({chosen})" if chosen else "given",
        "effects": f"{settings['method']}{steps}, zero ablation, on at most {settings['texts']} ambiguous texts",
        "circuit": f"{node}, of which {result.n_errors} are error terms, which nobody judges and which stay",
        "places": ", ".join(about["places"]),
        "judge": about["judge"],
        "seed": str(settings["seed"]),
    }
    return {name: str(value) for name, value in facts.items()}


_CAPTION = Markup(
    "Shares of held-out texts with 95 % intervals over texts. Right is better, but not at the other attribute, where "
    'the dashed line at 50 % is a classifier that says nothing of it. <b class="hotkey">Blue</b>: SHIFT; '
    '<b class="den">green</b>: baselines; <b class="noi">purple</b>: controls; grey: skylines and the oracle.'
)


def _figure(frame: pd.DataFrame, label: str) -> Figure:
    """One lane for each method: three measures side by side, a dot and an interval each."""
    height = _height(frame)
    parts = _names(frame, LEFT - 6)
    for k, (name, title) in enumerate(MEASURES):
        parts += _panel(frame, name, title, LEFT + k * PANEL, PANEL)
    return Figure((Panel(Markup("").join(parts), LEFT + 3 * PANEL, height),), _CAPTION, _alt(frame, label))


def _narrow(frame: pd.DataFrame, label: str) -> Figure:
    """The same measures below one another, each with the methods' names."""
    panels = []
    for name, title in MEASURES:
        parts = [*_names(frame, NARROW_LEFT - 6), *_panel(frame, name, title, NARROW_LEFT, NARROW)]
        panels.append(Panel(Markup("").join(parts), NARROW_LEFT + NARROW, _height(frame)))
    return Figure(tuple(panels), _CAPTION, _alt(frame, label))


def _height(frame: pd.DataFrame) -> float:
    return 38 + LANE * len(frame)


def _alt(frame: pd.DataFrame, label: str) -> str:
    best = frame.loc[frame["label"].idxmax(), "method"]
    return f"Accuracy of every method at telling {label}. The largest is that of {best}."


def _names(frame: pd.DataFrame, right: float) -> list[Markup]:
    """Names of the methods, ending at `right`."""
    found = []
    for i, (_, row) in enumerate(frame.iterrows()):
        weight = "700" if row["kind"] == "SHIFT" else None
        y = 20 + LANE * (i + 0.5) + 4
        found.append(tag("text", row["method"], x=right, y=y, text_anchor="end", font_weight=weight))
    return found


def _panel(frame: pd.DataFrame, measure: str, title: str, start: float, width: float) -> list[Markup]:
    """One measure: its title, its scale, and a dot with an interval for every method."""
    height = _height(frame)

    def x(value: float) -> float:
        return start + 12 + min(1.0, max(0.0, value)) * (width - 44)

    parts = [tag("text", title, x=x(0.5), y=12.0, text_anchor="middle", class_="t")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        chance = tick == 0.5 and measure == "spurious"
        style = {"class_": "zero", "stroke_dasharray": "4 3"} if chance else {"class_": "ax"}
        parts.append(tag("line", x1=x(tick), x2=x(tick), y1=20.0, y2=height - 18, **style))
        if tick in (0.0, 0.5, 1.0):
            parts.append(tag("text", percent(tick), x=x(tick), y=height - 4, class_="s", text_anchor="middle"))
    for i, (_, row) in enumerate(frame.iterrows()):
        y = 20 + LANE * (i + 0.5)
        tone = {"SHIFT": "w0", "control": "n", "skyline": "flat"}.get(row["kind"], "d")
        low, high = row[f"{measure}_low"], row[f"{measure}_high"]
        if low == low:
            parts.append(tag("line", x1=x(low), x2=x(high), y1=y, y2=y, class_="zero"))
        said = f"{row['method']}: {percent(row[measure])} ({_range(low, high) or 'no interval'})"
        parts.append(tag("circle", tag("title", said), cx=x(row[measure]), cy=y, r=4.0, class_=tone))
    return parts
