"""Sections of the path report: one sender's effect, split; and hypotheses whose paths share no counterfactual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from crosspatch.report import paths_figures as figures
from crosspatch.report.paths_rows import TOP, Row, between, facts_of, share_range
from crosspatch.report.svg import Figure, percent, signed

if TYPE_CHECKING:
    from crosspatch.paths.decohere import Decohering
    from crosspatch.paths.mediate import Mediation

PARTS = {
    "total": "all paths through it",
    "direct": "straight to the logits",
    "mediated": "through other parts",
    "interaction": "what the two do not add up to",
}


@dataclass(frozen=True)
class Mediated:
    """One sender's effect and who passes it on."""

    headline: tuple[str, ...]
    sender: str
    parts: tuple[Row, ...]
    scale: Markup
    figure: Figure | None
    rows: tuple[Row, ...]
    row_scale: Markup
    total: int
    unit: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Decohered:
    """Hypotheses with a shared counterfactual and with several."""

    headline: tuple[str, ...]
    groups: tuple[str, ...]
    rows: tuple[Row, ...]
    scale: Markup
    unit: str
    facts: dict[str, str]


def mediation_section(found: Mediation) -> Mediated:
    """What `mediation` found."""
    about, unit = found.mediators.about, found.mediators.about["unit"]
    split = found.frame().to_dict("records")
    lanes = [figures.Lane(r["part"], r["effect"], r["low"], r["high"], "d") for r in split]
    axis = figures.axis_of(lanes)
    top = found.mediators.top(TOP).to_dict("records")
    mediators = [figures.Lane(r["sender"], r["effect"], r["low"], r["high"], "d") for r in top]
    row_axis = figures.axis_of(mediators)
    total, direct, mediated, _ = split
    sure = total["low"] > 0 or total["high"] < 0
    unsure = "the interval holds zero" if math.isfinite(total["low"]) else "these are too few independent pairs"
    effect = f"{signed(total['effect'])} {unit} {between(total['low'], total['high'])}"
    does = f"All paths through {found.sender} do {effect}"
    alone, passed = (
        f"{percent(r['share'])} {share_range(r['share_low'], r['share_high'])}" for r in (direct, mediated)
    )
    said = [
        f"{does}: {alone} of it straight to the logits, {passed} through other parts."
        if sure
        else f"{does}: {unsure}, so that there is no sure effect to split."
    ]
    if top and sure:
        first = top[0]
        said.append(
            f"{first['sender']} passes on most as the first part after it: {signed(first['effect'])} {unit} "
            f"{between(first['low'], first['high'])}."
        )
    return Mediated(
        tuple(said),
        found.sender,
        tuple(
            Row(
                r["part"],
                (
                    PARTS[r["part"]],
                    signed(r["effect"]),
                    between(r["low"], r["high"]),
                    percent(r["share"]) if sure else "",
                    share_range(r["share_low"], r["share_high"]) if sure else "",
                ),
                figures.bars([lane], axis, share=False),
            )
            for r, lane in zip(split, lanes, strict=True)
        ),
        figures.scale(axis, share=False),
        figures.sender_maps(
            # Not as shares: these are of what all paths do, and one sender's are a small part of that.
            [r | {"share": math.nan} for r in found.mediators.frame().to_dict("records")],
            unit,
            what="mediators",
        ),
        tuple(
            Row(
                r["sender"],
                (signed(r["effect"]), between(r["low"], r["high"]), f"{r['q']:.3f}"),
                figures.bars([lane], row_axis, share=False),
            )
            for r, lane in zip(top, mediators, strict=True)
        ),
        figures.scale(row_axis, share=False),
        len(found.mediators.senders),
        unit,
        facts_of(about, skip=("receivers", "semantics")),
    )


def decohering_section(found: Decohering) -> Decohered:
    """What `decohere` found."""
    about, records = found.about, found.frame().to_dict("records")
    lanes = [
        [
            figures.Lane(
                f"counterfactual {name}",
                r[f"explained_{name}"],
                r[f"explained_{name}_low"],
                r[f"explained_{name}_high"],
                tone,
            )
            for name, tone in (("shared", "d"), ("apart", "n"))
        ]
        for r in records
    ]
    axis = figures.axis_of([lane for both in lanes for lane in both], least=-0.5, most=1.5, ends=(0.0, 1.0))
    most = max(records, key=lambda r: abs(r["aue_change"]))
    return Decohered(
        (
            f"With a counterfactual of its own for each group of paths, AUE changes by at most "
            f"{signed(most['aue_change'])} {about['unit']} {between(most['aue_change_low'], most['aue_change_high'])} "
            f"(\N{LEFT DOUBLE QUOTATION MARK}{most['hypothesis']}\N{RIGHT DOUBLE QUOTATION MARK}).",
        ),
        tuple(_group(name, str(group)) for name, group in about["groups"].items()),
        tuple(
            Row(
                str(r["hypothesis"]),
                (
                    percent(r["explained_shared"]),
                    share_range(r["explained_shared_low"], r["explained_shared_high"]),
                    percent(r["explained_apart"]),
                    share_range(r["explained_apart_low"], r["explained_apart_high"]),
                    signed(r["aue_change"]),
                    between(r["aue_change_low"], r["aue_change_high"]),
                ),
                figures.bars(both, axis, share=True, marks=(0.0, 1.0)),
            )
            for r, both in zip(records, lanes, strict=True)
        ),
        figures.scale(axis, share=True),
        about["unit"],
        facts_of(about, skip=("hypotheses", "always", "groups"))
        | {"numerical floor (AUE at all paths), counterfactuals apart": f"{np.nanmean(found.floor):.1e}"},
    )


def _group(name: str, text: str) -> str:
    """A group's name and paths, once if they are the same (a pattern is written out from the input on)."""
    return name if text.removeprefix("input -> ") == name else f"{name}: {text}"
