"""The report of circuits: what was found, whether it holds, how it grows with size, how stable and specific it is.

A `CircuitPage` holds any of these sections; `circuits_sections` turns results into them. Everything that comes from a
prompt, a file or a model is escaped, and the page asks for nothing over the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup

from crosspatch.report.data import Gate
from crosspatch.report.html import POLICY, template, template_text
from crosspatch.report.paths_rows import Row
from crosspatch.report.svg import FIGURE_CSS, FIGURE_CSS_DARK, Figure


@dataclass(frozen=True)
class Drawn:
    """The circuit as a graph and as text."""

    figure: Figure
    text: str
    glance: dict[str, str]


@dataclass(frozen=True)
class Judged:
    """Sufficiency and necessity on held-out pairs, beside random circuits."""

    headline: tuple[str, ...]
    findings: tuple[Gate, ...]
    rows: tuple[Row, ...]
    scale: Markup
    facts: dict[str, str]


@dataclass(frozen=True)
class Tested:
    """The tests of Shi et al."""

    rows: tuple[Row, ...]
    redundant: tuple[str, ...]


@dataclass(frozen=True)
class Grown:
    """Faithfulness over size."""

    figure: Figure
    areas: tuple[Row, ...]
    sizes: tuple[Row, ...]
    findings: tuple[Gate, ...]


@dataclass(frozen=True)
class Steady:
    """Would other pairs give the same circuit?"""

    headline: str
    figure: Figure
    core: tuple[str, ...]
    n_edges: int


@dataclass(frozen=True)
class Specific:
    """The circuits of several tasks on all of them."""

    figure: Figure
    rows: tuple[Row, ...]
    findings: tuple[Gate, ...]


@dataclass(frozen=True)
class Verified:
    """Estimates against exact effects."""

    headline: str
    figure: Figure


@dataclass(frozen=True)
class Ranked:
    """The strongest edges."""

    rows: tuple[Row, ...]
    scale: Markup
    total: int
    unit: str
    measured: bool
    sampled: bool
    origin: dict[str, str]


@dataclass(frozen=True)
class CircuitPage:
    """What the page shows; sections that are not there are left out.

    Attributes:
        title: the question.
        circuit: as a graph.
        asked: behaviour and data, in words.
        worst: the pairs on which circuit and model differ most.
        facts: further things that a reproduction needs.
        gates, forced: what was checked before, and whether a failure was overruled.
        command: what made it; empty where it was made from Python.
        python: how to read the results in Python.
    """

    title: str
    circuit: Drawn
    judged: Judged | None = None
    tested: Tested | None = None
    worst: tuple[Row, ...] = ()
    frontier: Grown | None = None
    stability: Steady | None = None
    specificity: Specific | None = None
    verified: Verified | None = None
    ranked: Ranked | None = None
    asked: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    forced: bool = False
    command: str = ""
    python: str = ""


def headline_of(page: CircuitPage) -> list[str]:
    """The first sentences: what holds, and what the ranking missed."""
    said = list(page.judged.headline) if page.judged is not None else []
    if page.verified is not None:
        said.append(page.verified.headline)
    if page.stability is not None:
        said.append(page.stability.headline)
    return said


def render(page: CircuitPage) -> str:
    """The whole page as text."""
    return template("circuits.html.j2").render(
        page=page,
        policy=POLICY,
        headline=headline_of(page),
        facts=page.facts | (page.judged.facts if page.judged is not None else {}),
        figure_css=Markup(FIGURE_CSS),
        figure_css_dark=Markup(FIGURE_CSS_DARK),
        style=Markup(template_text("style.css")),
        own_style=Markup(template_text("circuits.css")),
        script=Markup(template_text("report.js")),
        own_script=Markup(template_text("circuits.js")),
    )
