"""A set of paths drawn as a layered graph: the input below, the logits above, layers between, positions as columns.

A node stands in the column of the position that it writes to, so that an edge which crosses columns is attention that
moves something. Solid: one direct edge. Dashed: through any number of MLPs. Dotted: any route.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from crosspatch.paths.language import Route, Step
from crosspatch.paths.pathset import Combined, Complement, EdgePaths, PathSet, Pattern
from crosspatch.report.svg import Figure, Panel, number, tag

MOST_EDGES = 250
ROW, GAP, TALL, LETTER = 58.0, 14.0, 24.0, 7.0
DASHES = {"direct": None, "mlps": "7 4", "any": "1.5 5"}
_FIXED = re.compile(r"([am])(\d+)(?:\.|$)")
_CHANNEL = re.compile(r"(.*)\.([qkv])$")


@dataclass(frozen=True)
class Node:
    """One box. `level` orders rows; `column` is a position as text, "" where the path may be at any."""

    name: str
    column: str
    level: float


@dataclass(frozen=True)
class Edge:
    """One line; `label` says which input of a head is taken and how far back it reads."""

    before: Node
    after: Node
    link: str
    label: str
    taken_away: bool


def hypothesis_graph(claim: PathSet, order: Sequence[str] = ()) -> Figure:
    """Draw a set of paths.

    Args:
        claim: patterns and edge sets, combined in any way; what is taken away (under a complement) is orange.
        order: positions in the order in which they stand in the prompt, where that is known.
    """
    edges = _level_ends(list(_edges(claim)))
    left_out = max(0, len(edges) - MOST_EDGES)
    drawn = _draw(edges[:MOST_EDGES], order)
    caption = (
        "Solid: a direct edge. Dashed: through any number of MLPs. Dotted: any route. q, k, v: the input of a head."
    )
    if any(edge.taken_away for edge in edges):
        caption += " Orange: paths that are taken away."
    if any(edge.after.column or edge.before.column for edge in edges):
        caption += " Columns are positions: a line that crosses them is attention."
    if left_out:
        caption += f" {left_out} further edges are not drawn."
    names = sorted({n.name for e in edges for n in (e.before, e.after)} - {"input", "logits"})
    alt = f"Graph of {len(edges)} links between the input, the logits and {len(names)} nodes: {', '.join(names[:12])}."
    return Figure((drawn,), caption, alt)


def _level_ends(edges: Sequence[Edge]) -> list[Edge]:
    """The edges, each once, with all `logits` in one row, though long routes end at higher levels."""
    top = max(edge.after.level for edge in edges)
    return list(
        dict.fromkeys(
            replace(edge, after=replace(edge.after, level=top)) if edge.after.name == "logits" else edge
            for edge in edges
        )
    )


def _edges(claim: PathSet, taken_away: bool = False) -> Iterable[Edge]:
    if isinstance(claim, Pattern):
        yield from _of_route(claim.route, taken_away)
    elif isinstance(claim, EdgePaths):
        yield from _of_edge_set(claim, taken_away)
    elif isinstance(claim, Combined):
        for part in claim.parts:
            yield from _edges(part, taken_away)
    elif isinstance(claim, Complement):
        yield from _edges(claim.part, not taken_away)


def _of_edge_set(claim: EdgePaths, taken_away: bool) -> Iterable[Edge]:
    top = 2.0 * max([0, *(int(found[2]) for edge in claim.edges for end in edge if (found := _FIXED.match(end)))]) + 2

    def node(name: str) -> Node:
        level = _fixed_level(name)
        return Node(name, "", -1.0 if name == "input" else top if level is None else level)

    for before, after in sorted(claim.edges):
        found = _CHANNEL.match(after)
        yield Edge(node(before), node(found[1] if found else after), "direct", found[2] if found else "", taken_away)


def _of_route(route: Route, taken_away: bool) -> Iterable[Edge]:
    levels = _levels(route)
    writes = _columns(route)
    nodes = [
        [Node(step.name, writes[i][j], levels[i][j]) for j, step in enumerate(hop.steps)]
        for i, hop in enumerate(route.hops)
    ]
    for i, link in enumerate(route.links):
        for before in nodes[i]:
            for after, step in zip(nodes[i + 1], route.hops[i + 1].steps, strict=True):
                yield Edge(before, after, link, _label(step, before), taken_away)


def _label(step: Step, before: Node) -> str:
    """The input of a head, the position that it reads where the line does not come from there, and the window."""
    channels = "" if step.channels is None else "".join(sorted(step.channels))
    at = f"@{step.at}" if step.reads_at and step.at is not None and before.column != str(step.at) else ""
    window = "" if step.window is None else f"[{step.window[0]}..{step.window[1]}]"
    return f"{channels}{at} {window}".strip()


def _fixed_level(name: str) -> float | None:
    """Two levels to a layer: attention, then MLP."""
    found = _FIXED.match(name)
    return None if found is None else 2.0 * int(found[2]) + (found[1] == "m")


def _levels(route: Route) -> list[list[float]]:
    """Where hops stand; those that may be in several layers are spread between their neighbours."""
    known: list[list[float | None]] = [[_fixed_level(step.name) for step in hop.steps] for hop in route.hops]
    top = max([0.0, *(level for row in known for level in row if level is not None)]) + 2 + len(known) % 2
    known[0], known[-1] = [-1.0], [top]
    found: list[list[float]] = []
    for i, row in enumerate(known):
        low = max(found[-1]) if found else -1.0
        after = next(j for j in range(i, len(known)) if any(level is not None for level in known[j])) if i else 0
        high = max(level for level in known[after] if level is not None)
        between = low + (high - low) / (after - i + 1)
        found.append([round(between, 3) if level is None else level for level in row])
    return found


def _columns(route: Route) -> list[list[str]]:
    """Positions that the steps write to, "" for any; a link other than `**` keeps the position."""
    reads, writes = [], []
    for hop in route.hops:
        at = [("" if step.at is None else str(step.at)) for step in hop.steps]
        heads = [step.name.startswith("a") or step.name.startswith("*") for step in hop.steps]
        queried = [step.channels is not None and "q" in step.channels for step in hop.steps]
        reads.append(
            [
                p if step.reads_at or q or not h else ""
                for p, step, h, q in zip(at, hop.steps, heads, queried, strict=True)
            ]
        )
        writes.append(["" if step.reads_at else p for p, step in zip(at, hop.steps, strict=True)])
    for i, link in enumerate(route.links):
        if link != "any":
            following = {p for p in reads[i + 1] if p}
            before = {p for p in writes[i] if p}
            if len(following) == 1:
                (only,) = following
                writes[i] = [p or only for p in writes[i]]
            if len(before) == 1:
                (only,) = before
                reads[i + 1] = [p or only for p in reads[i + 1]]
                # An MLP writes where it reads, and the logits are read where the stream is.
                names = [step.name for step in route.hops[i + 1].steps]
                writes[i + 1] = [
                    w or (only if name.startswith("m") or name == "logits" else "")
                    for w, name in zip(writes[i + 1], names, strict=True)
                ]
    return writes


@dataclass(frozen=True)
class Layout:
    """Where things stand: middles of boxes, heights of rows by level, the middle of the drawing."""

    x_of: dict[Node, float]
    y_of: dict[float, float]
    center: float

    def ends(self, edge: Edge) -> tuple[float, float, float, float, float]:
        """Start, end, and how far the line bows out so that it passes by the boxes between."""
        x0, x1 = self.x_of.get(edge.before), self.x_of.get(edge.after)
        x0 = x0 if x0 is not None else x1 if x1 is not None else self.center
        x1 = x1 if x1 is not None else x0
        low, high = edge.before.level, edge.after.level
        bow = 0.0
        if abs(x0 - x1) < 4:
            between = [
                _width(node) / 2
                for node, x in self.x_of.items()
                if low < node.level < high and abs(x - x0) < _width(node) / 2
            ]
            bow = 1.6 * max(between, default=0.0)
        return x0, self.y_of[low] - TALL / 2, x1, self.y_of[high] + TALL / 2, bow


def _draw(edges: Sequence[Edge], order: Sequence[str]) -> Panel:
    nodes = list(dict.fromkeys(node for edge in edges for node in (edge.before, edge.after)))
    columns = _in_order([node.column for node in nodes if not _is_bar(node)], order)
    rows = sorted({node.level for node in nodes})
    cells: dict[tuple[float, str], list[Node]] = defaultdict(list)
    for node in nodes:
        if not _is_bar(node):
            cells[node.level, node.column].append(node)
    widths = {
        column: max(
            [64.0 if column else 40.0, LETTER * len(_column_name(column)) + GAP]
            + [sum(map(_width, its)) + GAP * (len(its) + 1) for (_, c), its in cells.items() if c == column]
        )
        for column in columns
    }
    left = 88.0
    lefts, x = {}, left
    for column in columns:
        lefts[column] = x
        x += widths[column]
    right = max(x, left + 150)
    height = ROW * (len(rows) - 1) + TALL + 20
    y_of = {level: 10 + TALL / 2 + ROW * (len(rows) - 1 - i) for i, level in enumerate(rows)}
    x_of: dict[Node, float] = {}
    for (_, column), its in cells.items():
        spare = widths[column] - sum(map(_width, its)) - GAP * (len(its) - 1)
        at = lefts[column] + spare / 2
        for node in its:
            x_of[node] = at + _width(node) / 2
            at += _width(node) + GAP
    headed = columns != [""] and bool(columns)
    parts: list[Markup] = []
    if headed:
        for column in columns:
            parts.append(
                tag("rect", x=lefts[column] + 2, y=4, width=widths[column] - 4, height=height - 8, class_="band")
            )
            middle = lefts[column] + widths[column] / 2
            parts.append(tag("text", _column_name(column), x=middle, y=height + 10, text_anchor="middle", class_="s"))
    for level in rows:
        name = _row_name([node.name for node in nodes if node.level == level], level)
        parts.append(tag("text", name, x=left - 10, y=y_of[level] + 4, text_anchor="end", class_="s"))
    center = (left + right) / 2
    layout = Layout(x_of, y_of, center)
    for edge in edges:
        parts.append(_line(edge, layout))
    for node in nodes:
        width = right - left if _is_bar(node) else _width(node)
        parts.append(_box(node, x_of.get(node, center), y_of[node.level], width, edges))
    for node in nodes:
        parts += _labels([edge for edge in edges if edge.after == node and edge.label], layout)
    return Panel(Markup("").join(parts), right + 8, height + (18 if headed else 0))


def _is_bar(node: Node) -> bool:
    """Input and logits without a position stretch over all columns."""
    return node.name in ("input", "logits") and not node.column


def _row_name(names: Sequence[str], level: float) -> str:
    """The layer, in a row where all nodes are of one."""
    if not all(_FIXED.match(name) for name in names):
        return ""
    return f"layer {int(level // 2)}{', MLP' if level % 2 else ''}"


def _in_order(columns: Sequence[str], order: Sequence[str]) -> list[str]:
    """Any position first; then as in the prompt, or as they appear; the end last."""
    seen = list(dict.fromkeys(columns))
    known = {name: i for i, name in enumerate(order)}
    return sorted(
        seen,
        key=lambda c: (c != "", c in ("END", "-1"), known.get(c, len(known)), int(c) if c.lstrip("-").isdigit() else 0),
    )


def _column_name(column: str) -> str:
    return column or "any position"


def _width(node: Node) -> float:
    return LETTER * len(node.name) + 16


def _line(edge: Edge, layout: Layout) -> Markup:
    x0, y0, x1, y1, bow = layout.ends(edge)
    middle = (y0 + y1) / 2
    d = (
        f"M{number(x0)} {number(y0)}C{number(x0 + bow)} {number(middle)} {number(x1 + bow)} {number(middle)} "
        f"{number(x1)} {number(y1)}"
    )
    words = {"direct": "direct edge", "mlps": "through any number of MLPs", "any": "any route"}[edge.link]
    said = f"{edge.before.name} to {edge.after.name}{f' ({edge.label})' if edge.label else ''}: {words}"
    return tag(
        "path",
        tag("title", f"{said}{', taken away' if edge.taken_away else ''}"),
        d=d,
        fill="none",
        class_="away" if edge.taken_away else "way",
        stroke="#be4e14" if edge.taken_away else "#175ca3",
        stroke_width=1.8,
        stroke_dasharray=DASHES[edge.link],
        stroke_linecap="round" if edge.link == "any" else None,
    )


def _labels(edges: Sequence[Edge], layout: Layout) -> list[Markup]:
    """What stands below a head: the inputs that its lines enter by, each once, in the order of the lines."""
    where: dict[str, float] = {}
    for edge in edges:
        x0, _, x1, _, bow = layout.ends(edge)
        where.setdefault(edge.label, x0 - x1 + bow)
    if not where:
        return []
    _, _, x1, y1, _ = layout.ends(edges[0])
    words = "  ".join(sorted(where, key=lambda label: where[label]))
    return [tag("text", words, x=x1 + 4, y=y1 + 12, class_="s h m")]


def _box(node: Node, x: float, y: float, width: float, edges: Sequence[Edge]) -> Markup:
    away = all(edge.taken_away for edge in edges if node in (edge.before, edge.after))
    bar = node.name in ("input", "logits")
    at = f" at {node.column}" if node.column else ""
    rect = tag(
        "rect",
        tag("title", f"{node.name}{at}"),
        x=x - width / 2,
        y=y - TALL / 2,
        width=width,
        height=TALL,
        rx=4,
        class_="node end" if bar else "node away" if away else "node way",
    )
    return rect + tag("text", node.name, x=x, y=y + 4, text_anchor="middle", class_="m", pointer_events="none")
