"""The report of a feature circuit: what it is, whether it is enough, over size and beside neurons, edge by edge, and
what every feature stands for.

A `FeaturePage` holds any of these sections; `features_sections` turns results into them. Everything that comes from a
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
class Held:
    """The circuit on held-out pairs, a row for every policy; cells: m(circuit), m(rest), then each share with its
    interval and random sets."""

    headline: str
    warning: str
    start: str
    rows: tuple[Row, ...]
    scale: Markup
    facts: dict[str, str]


@dataclass(frozen=True)
class Sized:
    """Shares over size: the figure, and for every line its table."""

    figure: Figure
    tables: tuple[tuple[str, tuple[Row, ...]], ...]
    start: str


@dataclass(frozen=True)
class EdgesHeld:
    """Sets of edges on held-out pairs."""

    headline: str
    warning: str
    start: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Feature:
    """A row of the table of nodes; cells: effect, interval, exact effect, its interval."""

    row: Row
    kind: str
    density: str
    raises: tuple[str, ...]
    lowers: tuple[str, ...]
    contexts: tuple[Markup, ...]


@dataclass(frozen=True)
class FeaturePage:
    """What the page shows; sections that are not there are left out.

    Attributes:
        title: the question.
        graph: the circuit.
        glance: numbers to begin with.
        nodes: the largest first, with the scale of their bars.
        unit: of effects.
        held, sized, edges_held: evaluations.
        exact: estimates against exact effects.
        edges, n_edges: the largest edges, and how many the circuit has above `edge_threshold`.
        asked: behaviour and data, in words.
        facts: further things that a reproduction needs.
        gates, forced: what was checked before, and whether a failure was overruled.
        cards: whether there is a page of cards beside this one.
        command: what made it; empty where it was made from Python.
        python: how to read the results in Python.
    """

    title: str
    graph: Figure
    glance: dict[str, str]
    nodes: tuple[Feature, ...]
    scale: Markup
    unit: str
    edges: tuple[Row, ...]
    n_edges: int
    edge_threshold: str
    held: Held | None = None
    sized: Sized | None = None
    edges_held: EdgesHeld | None = None
    exact: Figure | None = None
    asked: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    forced: bool = False
    cards: bool = False
    command: str = ""
    python: str = ""


def headline_of(page: FeaturePage) -> list[str]:
    """The first sentences: what holds."""
    return [part.headline for part in (page.held, page.edges_held) if part is not None]


def render(page: FeaturePage) -> str:
    """The whole page as text."""
    return template("features.html.j2").render(
        page=page,
        policy=POLICY,
        headline=headline_of(page),
        facts=page.facts | (page.held.facts if page.held is not None else {}),
        figure_css=Markup(FIGURE_CSS),
        figure_css_dark=Markup(FIGURE_CSS_DARK),
        style=Markup(template_text("style.css")),
        own_style=Markup(template_text("circuits.css") + template_text("features.css")),
        script=Markup(template_text("report.js")),
        own_script=Markup(template_text("circuits.js")),
    )
