"""A feature circuit drawn as a layered graph: the input below, the logits above, a row for every place that nodes
belong to, and a column for every span or position.

A rounded box is a feature, with the token at which it is most active below its number; a cut-off box with a broken
outline is the error term of its place, what the dictionary did not explain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from crosspatch.features.nodes import Node
from crosspatch.report.circuits_layout import GAP, LEFT, Box, End, Layout, lay_out
from crosspatch.report.features_cards import FeatureCard
from crosspatch.report.svg import Figure, Panel, diverging, interval, number, signed, tag
from crosspatch.report.tokens import visible

MOST_LINES = 150
"""Edges that are drawn; the others are counted."""
LONGEST = 11
"""Characters of a token in a box."""
TINT = 0.5
"""Colour of the node of largest effect, as a share of the scale: text on it stays readable."""
CORNER = 8.0
BAR, BAR_LETTERS = 44.0, 6
"""Where no edges are drawn: the bar of the largest effect, and letters of a box that it fits into."""
_PLACE = re.compile(r"([amr])(\d+)(\.\w+)?$")
_WORDS = {"a": "attention", "m": "MLP", "r": "stream"}


@dataclass(frozen=True)
class GraphNode:
    """A node with its numbers.

    Attributes:
        effect: estimated; with its interval.
        exact: measured, NaN where it was not.
        card: what is known of a feature.
    """

    node: Node
    effect: float
    low: float
    high: float
    exact: float
    card: FeatureCard | None


@dataclass(frozen=True)
class GraphEdge:
    """An edge between nodes by number; `down` -1: the logits."""

    up: int
    down: int
    effect: float
    low: float
    high: float


def feature_graph(
    nodes: Sequence[GraphNode],
    edges: Sequence[GraphEdge],
    places: Sequence[str],
    order: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    *,
    narrow: bool = False,
) -> Figure:
    """Draw a feature circuit.

    Without edges, the nodes of a row stand by effect, the largest first, each with a bar as long as its effect.

    Args:
        nodes: in any order; edges mean their numbers.
        edges: those of the circuit; none where they were not computed.
        places: in the order of the computation.
        order: spans in the order of the prompt.
        labels: what stands below the name of a span: a token of an example.
    """
    strongest = sorted(edges, key=lambda edge: -abs(edge.effect))
    drawn = strongest[:MOST_LINES]
    rank = {i: n for n, i in enumerate(sorted(range(len(nodes)), key=lambda i: -abs(nodes[i].effect)))}
    boxes = [_box(one, places, None if edges else rank[i]) for i, one in enumerate(nodes)]
    last = _last_column([box.column for box in boxes], order)
    logits = Box("logits", last, float(len(places)), bar=True, cells={"logits": []})
    layout = lay_out(
        [*boxes, logits],
        [_end(boxes[e.up], logits if e.down < 0 else boxes[e.down]) for e in drawn],
        order,
        narrow=narrow or not edges,
    )
    caption, alt = _caption(drawn, strongest, any(one.node.feature is None for one in nodes), len(layout.columns) > 1)
    panel = _panel(nodes, drawn, [*boxes, logits], layout, places, labels or {})
    return Figure((panel,), caption, alt)


def fitting(nodes: Sequence[GraphNode], room: float, bars: bool) -> list[int]:
    """Numbers of the largest nodes of every place, as many as fit into a row of `room` pixels, the largest first.

    Args:
        bars: no edges are drawn, but bars.
    """
    left: dict[str, float] = {}
    found = []
    for i in sorted(range(len(nodes)), key=lambda i: -abs(nodes[i].effect)):
        place = nodes[i].node.place
        box = _box(nodes[i], [place], i if bars else None)
        left[place] = left.get(place, room) - sum(map(box.cell_width, box.cells)) - GAP
        if left[place] >= 0:
            found.append(i)
    return found


def _box(one: GraphNode, places: Sequence[str], rank: int | None) -> Box:
    """A box wide enough for what is in it. Boxes that no line pulls elsewhere stand in the order of their units."""
    head, below = _lines(one)
    name = head.ljust(len(below) if rank is None else max(len(below), BAR_LETTERS))
    unit = str(one.node) if rank is None else f"{rank:06d}"
    return Box(unit, _column(one.node.span), float(places.index(one.node.place)), False, {name: ["x"]})


def _end(before: Box, after: Box) -> End:
    """A line between boxes of one cell each."""
    return End(before, next(iter(before.cells)), after, next(iter(after.cells)))


def _column(span: str) -> str:
    return "" if span == "*" else span


def _last_column(columns: Sequence[str], order: Sequence[str]) -> str:
    """Where the logits stand: at the last span."""
    known = {name: i for i, name in enumerate(order)}
    return max(columns, key=lambda c: (c == "END", known.get(c, -1)), default="")


def _lines(one: GraphNode) -> tuple[str, str]:
    if one.node.feature is None:
        return "error", ""
    token = visible(one.card.token.strip()) if one.card is not None and one.card.token.strip() else ""
    return str(one.node.feature), token if len(token) <= LONGEST else token[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _panel(
    nodes: Sequence[GraphNode],
    edges: Sequence[GraphEdge],
    boxes: Sequence[Box],
    layout: Layout,
    places: Sequence[str],
    labels: Mapping[str, str],
) -> Panel:
    parts: list[Markup] = []
    for name, (low, high) in layout.columns.items():
        if name:
            parts.append(tag("rect", x=low + 2, y=4, width=high - low - 4, height=layout.height - 8, class_="band"))
            middle = (low + high) / 2
            example = f" ({visible(labels[name])})" if labels.get(name) else ""
            words = f"{name}{example}"
            parts.append(tag("text", words, x=middle, y=layout.height + 10, text_anchor="middle", class_="s"))
    for level, y in layout.rows.items():
        if level < len(places):
            words = place_words(places[int(level)])
            parts.append(tag("text", words, x=LEFT - 12, y=y + 4, text_anchor="end", class_="s"))
    limit = max((abs(edge.effect) for edge in edges), default=0.0)
    routed = sorted(zip(edges, layout.routes, strict=True), key=lambda pair: abs(pair[0].effect))
    for edge, route in routed:  # thin lines first, so that the strong ones lie above them
        parts.append(_stroke(edge, route, limit, nodes))
    largest = max((abs(one.effect) for one in nodes), default=0.0)
    for i, (one, box) in enumerate(zip(nodes, boxes, strict=False)):
        parts.append(_node(one, box, layout, i, largest, bar=not edges))
    parts.append(_logits(boxes[-1], layout))
    return Panel(Markup("").join(parts), layout.width, layout.height + (18 if any(layout.columns) else 0))


def place_words(place: str) -> str:
    """A place as a row is called."""
    found = _PLACE.match(place)
    if found is None:
        return place
    kind, layer, rest = found.groups()
    if kind == "r" and rest is None:  # what the block reads
        return "input" if layer == "0" else f"stream before {layer}"
    return f"{_WORDS[kind]} {layer}" + ("" if rest in (None, ".post") else f" {rest[1:]}")


def _stroke(edge: GraphEdge, route: str, limit: float, nodes: Sequence[GraphNode]) -> Markup:
    up = edge.effect >= 0
    to = "logits" if edge.down < 0 else str(nodes[edge.down].node)
    ends = interval(edge.low, edge.high)
    said = f"{nodes[edge.up].node} \N{RIGHTWARDS ARROW} {to}\neffect {signed(edge.effect)} {ends}".strip()
    return tag(
        "path",
        tag("title", said),
        d=route,
        fill="none",
        class_=f"edge {'up' if up else 'down'}",
        stroke="#175ca3" if up else "#be4e14",
        stroke_width=0.8 + 5.2 * math.sqrt(abs(edge.effect) / limit if limit else 0.0),
        data_a=edge.up,
        data_b=len(nodes) if edge.down < 0 else edge.down,
    )


def _node(one: GraphNode, box: Box, layout: Layout, number_: int, largest: float, *, bar: bool) -> Markup:
    x, y = layout.x_of(box), layout.y_of(box)
    left, top = x - box.width / 2, y - box.height / 2
    head, below = _lines(one)
    share = TINT * abs(one.effect) / largest if largest else 0.0
    tone = {
        "class_": f"{'p' if one.effect >= 0 else 'q'} unit{' rest' if one.node.feature is None else ''}",
        "fill": diverging(math.copysign(share, one.effect), 1.0),
        "style": f"--t:{100 * share:.0f}%",
    }
    title = tag("title", "\n".join(_said(one)))
    if one.node.feature is None:
        c, w, h = CORNER, box.width, box.height
        corners = [(c, 0), (w - c, 0), (w, h / 2), (w - c, h), (c, h), (0, h / 2)]
        points = " ".join(f"{number(left + a)},{number(top + b)}" for a, b in corners)
        frame = tag("polygon", title, points=points, stroke_dasharray="4 2", **tone)
    else:
        frame = tag("rect", title, x=left, y=top, width=box.width, height=box.height, rx=5, **tone)
    words = [tag("text", head, x=x, y=top + (14.0 if below else box.height / 2 + 4), text_anchor="middle", class_="m")]
    if below:
        words.append(tag("text", below, x=x, y=top + box.height - 6, text_anchor="middle", class_="port"))
    if bar and largest:
        long = BAR * abs(one.effect) / largest
        place = {"x": x - long / 2, "y": top + box.height + 3, "width": max(long, 1.0), "height": 3.5}
        colour = {"class_": "w0", "fill": "#175ca3"} if one.effect >= 0 else {"class_": "neg", "fill": "#be4e14"}
        words.append(tag("rect", **place, **colour, rx=1))
    return tag("g", frame, *words, class_="part", data_n=number_)


def _logits(box: Box, layout: Layout) -> Markup:
    x, y = layout.x_of(box), layout.y_of(box)
    place = {"x": x - box.width / 2, "y": y - box.height / 2, "width": box.width, "height": box.height}
    frame = tag("rect", **place, rx=4, class_="node end")
    name = tag("text", "logits", x=x, y=y + 4, text_anchor="middle", class_="m")
    number_ = len(layout.boxes) - 1
    return tag("g", frame, name, class_="part", data_n=number_)


def _said(one: GraphNode) -> list[str]:
    exact = f", exact {signed(one.exact)}" if math.isfinite(one.exact) else ""
    lines = [str(one.node), f"effect {signed(one.effect)} {interval(one.low, one.high)}".strip() + exact]
    if one.node.feature is None:
        return [*lines, "error term: what the dictionary did not explain"]
    return lines + (one.card.said() if one.card is not None else [])


def _caption(drawn: Sequence[GraphEdge], every: Sequence[GraphEdge], errors: bool, columns: bool) -> tuple[Markup, str]:
    said = [
        Markup("Information flows upwards. A box is a feature: its number, and the token at which it is most active."),
        Markup("Hexagons are error terms.") if errors else None,
        Markup(
            '<b class="hotkey">Blue</b> nodes and edges help the behaviour, <b class="coldkey">orange</b> ones work '
            "against it; the tint grows with a node's effect, the width with the root of an edge's."
        )
        if every
        else Markup(
            '<b class="hotkey">Blue</b> nodes help the behaviour, <b class="coldkey">orange</b> ones work against it; '
            "the bar below a node is as long as its effect is large, and a row begins with the largest. No edges were "
            "computed."
        ),
        Markup("Columns are spans of tokens{}.").format(": a line that crosses them is attention" if every else "")
        if columns
        else None,
        Markup("The {} strongest of {} edges are drawn.").format(f"{len(drawn):,}", f"{len(every):,}")
        if len(drawn) < len(every)
        else None,
    ]
    caption = Markup(" ").join(part for part in said if part is not None)
    return caption, f"Graph of a feature circuit with {len(every)} edges."
