"""The report of path patching: claims, how much they explain, where they fail, what feeds what, and a search's steps.

A `Page` holds any of these sections; `score_section` and the other makers turn results into them. Everything that
comes from a prompt, a file or a model is escaped, and the page asks for nothing over the network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from crosspatch.paths.pathset import PathSet, from_json, paths
from crosspatch.paths.sender import NO_SHARES
from crosspatch.report import paths_figures as figures
from crosspatch.report.data import Gate
from crosspatch.report.html import POLICY, template, template_text
from crosspatch.report.paths_graph import hypothesis_graph
from crosspatch.report.paths_mediation import Decohered, Mediated
from crosspatch.report.paths_rows import TOP, Row, between, facts_of, plain_range, share_range
from crosspatch.report.svg import FIGURE_CSS, FIGURE_CSS_DARK, Figure, percent, signed, tag

if TYPE_CHECKING:
    from crosspatch.paths.attribute import Attribution
    from crosspatch.paths.pairs import Pairs
    from crosspatch.paths.refine import Refinement
    from crosspatch.paths.scores import PathTest
    from crosspatch.paths.sender import SenderEffects

NOISY = "The total effect is so near the numerical floor that proportions of it are noise: there is nothing to explain."
QUOTED = "\N{LEFT DOUBLE QUOTATION MARK}{}\N{RIGHT DOUBLE QUOTATION MARK}"


@dataclass(frozen=True)
class Drawing:
    """A hypothesis as a graph, as text, and in words."""

    name: str
    figure: Figure
    text: Markup
    words: str


@dataclass(frozen=True)
class Scores:
    """Hypotheses tested on the same pairs."""

    headline: tuple[str, ...]
    glance: dict[str, str]
    rows: tuple[Row, ...]
    scale: Markup
    comparison: tuple[Row, ...]
    yardstick: str | None
    drawings: tuple[Drawing, ...]
    unit: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Attributed:
    """One prompt with the effect of the paths that a hypothesis leaves out."""

    headline: tuple[str, ...]
    name: str
    unit: str
    quantity: str
    strip: Markup
    drawing: Drawing
    rows: tuple[Row, ...]
    scale: Markup
    facts: dict[str, str]


@dataclass(frozen=True)
class Swept:
    """Senders against one set of receivers."""

    headline: tuple[str, ...]
    title: str
    figure: Figure | None
    rows: tuple[Row, ...]
    scale: Markup
    total: int
    unit: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Refined:
    """A greedy search."""

    headline: tuple[str, ...]
    figure: Figure
    rows: tuple[Row, ...]
    drawing: Drawing | None
    facts: dict[str, str]


@dataclass(frozen=True)
class Page:
    """What the page shows; sections that are not there are left out.

    Attributes:
        title: the question.
        asked: behaviour and data, in words.
        facts: further things that a reproduction needs.
        gates, forced: what was checked before, and whether a failure was overruled.
        command: what made it; empty where it was made from Python.
    """

    title: str
    scores: Scores | None = None
    attributions: tuple[Attributed, ...] = ()
    sweeps: tuple[Swept, ...] = ()
    mediation: Mediated | None = None
    refinement: Refined | None = None
    decohering: Decohered | None = None
    asked: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    forced: bool = False
    command: str = ""


def render(page: Page) -> str:
    """The whole page as text."""
    parts = [page.scores, page.decohering, *page.attributions, *page.sweeps, page.mediation, page.refinement]
    facts = dict(page.facts)
    for part in parts:
        facts |= part.facts if part is not None else {}
    return template("paths.html.j2").render(
        page=page,
        facts=facts,
        policy=POLICY,
        headline=[line for part in parts if part is not None for line in part.headline],
        figure_css=Markup(FIGURE_CSS),
        figure_css_dark=Markup(FIGURE_CSS_DARK),
        style=Markup(template_text("style.css")),
        own_style=Markup(template_text("paths.css")),
        script=Markup(template_text("report.js")),
    )


def score_section(scored: PathTest, pairs: Pairs | None = None, words: Mapping[str, str] | None = None) -> Scores:
    """What `test_paths` found.

    Args:
        pairs: with them positions are drawn in the order of the prompt.
        words: hypotheses in words, by name (`paths.explain`).
    """
    frame, compared, about = scored.frame(), scored.compare(scored.yardstick), scored.about
    records = frame.to_dict("records")
    lanes = [
        [
            figures.Lane("explained (sufficient)", r["explained"], r["explained_low"], r["explained_high"], "d"),
            figures.Lane("needed (necessary)", r["needed"], r["needed_low"], r["needed_high"], "n"),
        ]
        for r in records
    ]
    axis = figures.axis_of([lane for both in lanes for lane in both], least=-0.5, most=1.5, ends=(0.0, 1.0))
    rows = tuple(
        Row(
            str(r["hypothesis"]),
            (
                percent(r["explained"]),
                share_range(r["explained_low"], r["explained_high"]),
                percent(r["needed"]),
                share_range(r["needed_low"], r["needed_high"]),
                f"{r['aue']:.4g}",
                plain_range(r["aue_low"], r["aue_high"]),
                percent(r["loss_recovered"]),
                share_range(r["loss_recovered_low"], r["loss_recovered_high"]),
            ),
            figures.bars(both, axis, share=True, marks=(0.0, 1.0)),
        )
        for r, both in zip(records, lanes, strict=True)
    )
    mean, low, high = scored.ate
    floor = float(np.nanmean(scored.floor))
    order = _order(pairs)
    said = words or {}
    drawings = [
        _drawn(name, from_json(claim), order, said.get(name, "")) for name, claim in about["hypotheses"].items()
    ]
    if about["always"] is not None:
        drawings.append(_drawn("always: on the reference in every hypothesis", from_json(about["always"]), order))
    return Scores(
        (NOISY,) if scored.is_noise else tuple(_verdicts(records)),
        {
            "pairs": str(len(scored.total)),
            f"ATE, {about['unit']}": f"{mean:.3g} {plain_range(low, high)}",
            "numerical floor": f"{floor:.0e}",
        },
        rows,
        figures.scale(axis, share=True),
        tuple(
            Row(
                f"{QUOTED.format(r['first'])} against {QUOTED.format(r['second'])}",
                (f"{r['difference']:.4g}", plain_range(r["low"], r["high"]), f"{r['p']:.3f}", f"{r['q']:.3f}"),
            )
            for r in compared.to_dict("records")
        ),
        scored.yardstick,
        tuple(drawings),
        about["unit"],
        facts_of(about, skip=("hypotheses", "always")) | {"numerical floor (AUE at all paths)": f"{floor:.1e}"},
    )


def _verdicts(records: Sequence[dict[str, Any]]) -> list[str]:
    """The first two sentences of the page."""
    best = max(records, key=lambda r: r["explained"] if math.isfinite(r["explained"]) else -math.inf)
    if not math.isfinite(best["explained"]):
        return ["The null hypothesis leaves nothing to explain: the two prompts of the pairs give the same output."]
    said = [
        f"{QUOTED.format(best['hypothesis'])} explains {percent(best['explained'])} "
        f"{share_range(best['explained_low'], best['explained_high'])} of the total effect on these pairs"
        + (f", the most of {len(records)} hypotheses." if len(records) > 1 else ".")
    ]
    over = best["needed"] - best["explained"]
    said.append(
        f"Its paths alone, moved to the other prompt, do {percent(best['needed'])} "
        f"{share_range(best['needed_low'], best['needed_high'])} of the damage of moving all"
        + (
            "; much less than they explain: other paths can do the same work."
            if over < -0.25
            else "; much more than they explain: they need other paths beside them."
            if over > 0.25
            else "."
        )
    )
    return said


def attribution_section(
    seen: Attribution, name: str, claim: PathSet, following: str = "", pairs: Pairs | None = None
) -> Attributed:
    """What `attribute` found for the paths that `claim` leaves out.

    Args:
        following: the token that should come after the prompt, where its prediction was read.
    """
    nan, quantity = math.nan, str(seen.about.get("quantity", "loss"))
    shown = [figures.ReadToken(text, nan, nan, nan, nan) for text in seen.tokens]
    shown += [figures.ReadToken(following, nan, nan, nan, nan)] if following else []
    rows, lanes = [], []
    for i, position in enumerate(seen.positions):
        effect, low, high, loss = (float(a[i]) for a in (seen.effect, seen.low, seen.high, seen.reference))
        text = [*seen.tokens[1:], following][position]
        if position + 1 < len(shown):
            shown[position + 1] = figures.ReadToken(text, effect, low, high, loss)
        rows.append((position + 1, text, effect, low, high, loss))
        lanes.append(figures.Lane(text, effect, low, high, "d"))
    axis = figures.axis_of(lanes)
    ranked = sorted(zip(rows, lanes, strict=True), key=lambda pair: -abs(pair[0][2]))[:TOP]
    (position, text, effect, low, high, loss), _ = ranked[0]
    return Attributed(
        (
            f"Most changes on {text!r} at token {position}: {signed(effect)} {seen.unit} {between(low, high)}, "
            f"where the model's own {quantity} is {loss:.3g}.",
        ),
        name,
        seen.unit,
        quantity,
        figures.token_strip(shown, seen.unit),
        _drawn(name, claim, _order(pairs)),
        tuple(
            Row(
                f"{text!r} at {position}",
                (signed(effect), between(low, high), f"{loss:.3g}"),
                figures.bars([lane], axis, share=False),
            )
            for (position, text, effect, low, high, loss), lane in ranked
        ),
        figures.scale(axis, share=False),
        facts_of(seen.about, skip=("patched", "always", "quantity"))
        | {"counterfactual prompts": str(len(seen.draws))}
        | ({"pairs": pairs.provenance} if pairs is not None else {}),
    )


def sweep_section(swept: SenderEffects) -> Swept:
    """What `path_patch` found."""
    about = swept.about
    records = swept.frame().to_dict("records")
    top = swept.top(TOP).to_dict("records")
    lanes = [figures.Lane(r["sender"], r["effect"], r["low"], r["high"], "d") for r in top]
    axis = figures.axis_of(lanes)
    first = top[0]
    said = (
        f", {percent(first['share'])} {share_range(first['share_low'], first['share_high'])} of the total effect."
        if math.isfinite(first["share"])
        else f". {NO_SHARES}"
    )
    return Swept(
        (
            f"{first['sender']} feeds {', '.join(about['receivers'])} most: {signed(first['effect'])} {about['unit']} "
            f"{between(first['low'], first['high'])}{said}",
        ),
        f"What feeds {', '.join(about['receivers'])}",
        figures.sender_maps(records, about["unit"]),
        tuple(
            Row(
                r["sender"],
                (
                    signed(r["effect"]),
                    between(r["low"], r["high"]),
                    percent(r["share"]),
                    share_range(r["share_low"], r["share_high"]),
                    f"{r['q']:.3f}",
                ),
                figures.bars([lane], axis, share=False),
            )
            for r, lane in zip(top, lanes, strict=True)
        ),
        figures.scale(axis, share=False),
        len(records),
        about["unit"],
        facts_of(about),
    )


def refinement_section(grown: Refinement, pairs: Pairs | None = None) -> Refined:
    """What `refine` found."""
    log = grown.log.to_dict("records")
    last = log[-1]
    explained = f"{percent(last['explained_held_out'])} {share_range(last['held_out_low'], last['held_out_high'])}"
    said = [
        f"After {len(log) - 1} step{'' if len(log) == 2 else 's'} {len(grown.patterns)} "
        f"pattern{'' if len(grown.patterns) == 1 else 's'} explain{'s' if len(grown.patterns) == 1 else ''} "
        f"{explained} of the total effect on pairs that the search did not see."
        if grown.patterns
        else "No step surely explains enough, so that no path is claimed."
    ]
    if len(grown.random):
        said.append(
            f"Random hypotheses of as many patterns explain {percent(float(np.median(grown.random)))} (median) and at "
            f"most {percent(float(grown.random.max()))} of {len(grown.random)}."
        )
    return Refined(
        tuple(said),
        figures.step_chart(
            [r["explained"] for r in log],
            [(r["explained_held_out"], r["held_out_low"], r["held_out_high"]) for r in log],
            grown.random,
        ),
        tuple(
            Row(
                str(i),
                (
                    r["step"],
                    r["pattern"],
                    percent(r["explained"]),
                    percent(r["explained_held_out"]),
                    share_range(r["held_out_low"], r["held_out_high"]),
                ),
            )
            for i, r in enumerate(log)
        ),
        _drawn("where the search ended", paths(*grown.patterns), _order(pairs)) if grown.patterns else None,
        facts_of(grown.about) | {"numerical floor (AUE at all paths, held-out pairs)": f"{grown.floor.mean():.1e}"},
    )


def _drawn(name: str, claim: PathSet, order: Sequence[str], words: str = "") -> Drawing:
    return Drawing(name, hypothesis_graph(claim, order), _unbroken(str(claim)), words)


def _unbroken(text: str) -> Markup:
    """The text of a claim, in which no line ends inside an arrow."""
    parts = re.split(r"(->|~>)", text)
    return Markup("").join(tag("span", part, class_="arrow") if i % 2 else part for i, part in enumerate(parts))


def _order(pairs: Pairs | None) -> list[str]:
    """Names of spans as they stand in the first prompt."""
    if pairs is None or not pairs.spans:
        return []
    return sorted(pairs.spans[0], key=lambda name: pairs.spans[0][name])
