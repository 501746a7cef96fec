"""A circuit drawn as a layered graph: the input below, the logits above, one row for the heads and one for the MLP of
every layer, and a column for every span.

A box stands in the column of the span that it writes at, so that a line which crosses columns is attention that moves
something. The small cells below a head are its query, key and value; heads that share a key and value share one box.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from crosspatch.circuits import Circuit
from crosspatch.graph import Site, parse_site
from crosspatch.report.circuits_layout import LEFT, NAME, Box, End, Layout, lay_out
from crosspatch.report.svg import Figure, Panel, percent, signed, tag

MOST_LINES = 200
"""Lines that are drawn; the thin ones beyond them are counted below the part that they enter."""
CORE = 0.95
"""An edge in at least this share of the resamples is drawn solid."""


@dataclass(frozen=True)
class Line:
    """One edge.

    Attributes:
        sender, receiver: numbers in the model's edge table.
        span: of the edge, "" where the circuit has no spans.
        score: NaN where it is not known.
        often: share of resamples that select it, NaN where that is not known.
    """

    sender: int
    receiver: int
    span: str
    score: float
    often: float

    @property
    def size(self) -> float:
        """What the strongest lines are chosen by."""
        return abs(self.score) if math.isfinite(self.score) else 0.0


@dataclass
class _Drawing:
    """Boxes by unit and column, and where every line begins and ends."""

    circuit: Circuit
    boxes: dict[tuple[str, str], Box] = field(default_factory=dict)
    ends: list[tuple[Line, End]] = field(default_factory=list)


def circuit_graph(
    circuit: Circuit,
    scores: Float[np.ndarray, "edge ..."] | None = None,
    often: Float[np.ndarray, " edge"] | None = None,
    *,
    gap: float = math.nan,
    order: Sequence[str] = (),
    most: int = MOST_LINES,
) -> Figure:
    """Draw a circuit.

    Args:
        scores: of all edges by number, `[edge]` or, for a circuit with spans, `[edge, span]`: colour and width.
        often: share of resamples that select each edge; those below `CORE` are dashed.
        gap: what shares of the scores refer to.
        order: spans in the order in which they stand in the prompt.
        most: lines that are drawn.
    """
    lines = sorted(_lines(circuit, scores, often), key=lambda line: -line.size)
    drawn, thin = lines[:most], lines[most:]
    drawing = _Drawing(circuit)
    writes = _writes(circuit)
    for line in drawn:
        _place(drawing, line, writes)
    room = 70.0 if thin else 0.0
    layout = lay_out(list(drawing.boxes.values()), [end for _, end in drawing.ends], order, room)
    panel = _panel(drawing, layout, thin, gap)
    return Figure((panel,), _caption(circuit, drawn, thin, scores is not None, often is not None), _alt(circuit, drawn))


def _lines(circuit: Circuit, scores: np.ndarray | None, often: np.ndarray | None) -> list[Line]:
    table = circuit.table
    start = np.concatenate([[0], np.cumsum(table.reach)])
    found = []
    for v, u, s in np.argwhere(np.swapaxes(circuit.cube, 0, 1)):
        edge = int(start[v]) + int(u)
        at = (edge, int(s)) if scores is not None and scores.ndim > 1 else edge
        found.append(
            Line(
                int(u), int(v), circuit.spans[s] if circuit.spans else "",
                math.nan if scores is None else float(scores[at]),
                math.nan if often is None else float(often[edge]),
            )
        )  # fmt: skip
    return found


def _writes(circuit: Circuit) -> dict[int, list[str]]:
    """The spans at which every sender writes something that is read, or reads with its query."""
    table = circuit.table
    found: dict[int, dict[str, None]] = defaultdict(dict)
    for u, _, s in np.argwhere(circuit.cube):
        found[int(u)][circuit.spans[s] if circuit.spans else ""] = None
    for v, nodes in enumerate(table.node_of_receiver):
        if nodes and table.receivers[v].kind == "q":
            for s in np.flatnonzero(circuit.cube[:, v].any(0)):
                found[nodes[0]][circuit.spans[s] if circuit.spans else ""] = None
    return {u: list(spans) for u, spans in found.items()}


def _place(drawing: _Drawing, line: Line, writes: Mapping[int, list[str]]) -> None:
    circuit, table = drawing.circuit, drawing.circuit.table
    sender, receiver = table.senders[line.sender], table.receivers[line.receiver]
    before = _box(drawing, sender, line.span)
    columns = [line.span]
    if receiver.kind in ("k", "v"):  # read here, but written where the heads stand
        heads = [table.sender_number[parse_site(head)] for head in circuit.readers(line.receiver)]
        columns = list(dict.fromkeys(span for head in heads for span in writes.get(head, []))) or columns
    for column in columns:
        after = _box(drawing, receiver, column)
        port = receiver.kind if receiver.kind in ("q", "k", "v") else ""
        end = End(before, _cell(sender, circuit), after, _cell(receiver, circuit), port)
        drawing.ends.append((line, end))


def _unit(site: Site, circuit: Circuit) -> str:
    """The box that a sender or receiver belongs to."""
    if site.kind not in ("z", "q", "k", "v"):
        return str(site)
    index = site.index or 0
    return f"a{site.layer}.{index if site.kind in ('k', 'v') else circuit.shape.group_of(index)}"


def _cell(site: Site, circuit: Circuit) -> str:
    """The name in the box: a head, the key and value that heads share, or the part itself."""
    if site.kind in ("k", "v") and circuit.shape.grouped:
        return f"a{site.layer}.kv{site.index}"
    return f"a{site.layer}.h{site.index}" if site.kind in ("z", "q", "k", "v") else str(site)


def _level(site: Site, circuit: Circuit) -> float:
    """Two rows to a layer, heads and MLP; one where they run side by side."""
    if site.kind in ("input", "logits"):
        return -1.0 if site.kind == "input" else 2.0 * circuit.shape.n_layers
    return 2.0 * (site.layer or 0) + (site.kind == "mlp_out" and not circuit.shape.parallel)


def _box(drawing: _Drawing, site: Site, column: str) -> Box:
    """The box of a part in a column, with its cell; both are made when they are first met."""
    circuit = drawing.circuit
    unit = _unit(site, circuit)
    box = drawing.boxes.setdefault(
        (unit, column), Box(unit, column, _level(site, circuit), bar=site.kind in ("input", "logits"))
    )
    ports = box.cells.setdefault(_cell(site, circuit), [])
    if site.kind in ("q", "k", "v") and site.kind not in ports:
        ports.append(site.kind)
        ports.sort(key="qkv".index)
    return box


# -- drawing ---------------------------------------------------------------------------------------------------------


def _panel(drawing: _Drawing, layout: Layout, thin: Sequence[Line], gap: float) -> Panel:
    parts: list[Markup] = []
    for name, (low, high) in layout.columns.items():
        if name:
            parts.append(tag("rect", x=low + 2, y=4, width=high - low - 4, height=layout.height - 8, class_="band"))
            words = "any token" if name == "*" else name
            middle = (low + high) / 2
            parts.append(tag("text", words, x=middle, y=layout.height + 10, text_anchor="middle", class_="s"))
    for level, y in layout.rows.items():
        parts.append(tag("text", _row_name(level, drawing), x=LEFT - 12, y=y + 4, text_anchor="end", class_="s"))
    numbers = {box: i for i, box in enumerate(layout.boxes)}
    limit = max((line.size for line, _ in drawing.ends), default=0.0)
    # Thin lines first, so that the strong ones lie above them.
    routed = zip(drawing.ends, layout.routes, strict=True)
    for (line, end), route in sorted(routed, key=lambda pair: pair[0][0].size):
        ends = numbers[end.before], numbers[end.after]
        parts.append(_stroke(drawing.circuit, line, route, limit, gap, ends))
    entering = _entering(drawing, thin)
    for box in layout.boxes:
        parts.append(_draw_box(box, layout, numbers[box], entering.get((box.unit, box.column), [])))
    parts += _left_out(drawing, layout, thin)
    return Panel(Markup("").join(parts), layout.width, layout.height + (18 if any(layout.columns) else 0))


def _row_name(level: float, drawing: _Drawing) -> str:
    if level < 0 or level >= 2 * drawing.circuit.shape.n_layers:
        return ""
    parallel = drawing.circuit.shape.parallel
    return f"layer {int(level // 2)}" + ("" if parallel else ", MLP" if level % 2 else "")


def _stroke(circuit: Circuit, line: Line, route: str, limit: float, gap: float, ends: tuple[int, int]) -> Markup:
    known = math.isfinite(line.score)
    tone = "flat" if not known else "up" if line.score >= 0 else "down"
    colour = {"up": "#175ca3", "down": "#be4e14", "flat": "#5b636d"}[tone]
    width = 1.2 if not known or not limit else 0.8 + 5.2 * math.sqrt(line.size / limit)
    dashed = math.isfinite(line.often) and line.often < CORE
    return tag(
        "path",
        tag("title", _said(circuit, line, gap)),
        d=route,
        fill="none",
        class_=f"edge {tone}",
        stroke=colour,
        stroke_width=width,
        stroke_dasharray="5 3" if dashed else None,
        data_a=ends[0],
        data_b=ends[1],
    )


def _said(circuit: Circuit, line: Line, gap: float) -> str:
    """The edge in words, for a tooltip."""
    at = f" at {line.span}" if line.span else ""
    name = f"{circuit.table.senders[line.sender]} \N{RIGHTWARDS ARROW} {circuit.table.receivers[line.receiver]}{at}"
    words = [name]
    if math.isfinite(line.score):
        share = f", {percent(line.score / gap)} of the gap" if math.isfinite(gap) and gap else ""
        words.append(f"score {signed(line.score)}{share}")
    if math.isfinite(line.often):
        words.append(f"in {percent(line.often)} of resamples")
    return "\n".join(words)


def _draw_box(box: Box, layout: Layout, number_: int, thin: Sequence[Line]) -> Markup:
    x, y = layout.x_of(box), layout.y_of(box)
    left, top, tall = x - box.width / 2, y - box.height / 2, box.height
    frame = tag("rect", x=left, y=top, width=box.width, height=tall, rx=4, class_="node end" if box.bar else "node")
    parts, at = [frame], left
    for name, ports in box.cells.items():
        wide = box.cell_width(name)
        parts.append(tag("text", name, x=at + wide / 2, y=top + 14, text_anchor="middle", class_="m"))
        for i, port in enumerate(ports):
            middle = at + wide * (i + 0.5) / len(ports)
            parts.append(tag("text", port, x=middle, y=top + tall - 3.5, text_anchor="middle", class_=f"port {port}"))
            if i:
                cut = at + wide * i / len(ports)
                parts.append(tag("line", x1=cut, x2=cut, y1=top + NAME, y2=top + tall, class_="ax"))
        at += wide
        if at < left + box.width - 1:
            parts.append(tag("line", x1=at, x2=at, y1=top, y2=top + tall, class_="ax"))
    if any(box.cells.values()):
        parts.append(tag("line", x1=left, x2=left + box.width, y1=top + NAME, y2=top + NAME, class_="ax"))
    if thin:
        total = sum(line.score for line in thin if math.isfinite(line.score))
        said = f"{len(thin)} thinner edges enter here that are not drawn, {signed(total)} together"
        below = top + tall + 10
        parts.append(tag("text", tag("title", said), f"+{len(thin)}", x=left + box.width, y=below, class_="s h more"))
    return tag("g", *parts, class_="part", data_n=number_)


def _entering(drawing: _Drawing, thin: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """Lines that are not drawn, at the boxes that are there to count them at."""
    found: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in thin:
        unit = _unit(drawing.circuit.table.receivers[line.receiver], drawing.circuit)
        columns = [column for name, column in drawing.boxes if name == unit]
        if columns:
            found[unit, line.span if line.span in columns else columns[0]].append(line)
    return found


def _left_out(drawing: _Drawing, layout: Layout, thin: Sequence[Line]) -> list[Markup]:
    """At the end of a row: how many parts of it have thin edges only, with their names."""
    there = {name for box in drawing.boxes.values() for name in box.cells}
    rows: dict[float, list[str]] = defaultdict(list)
    circuit = drawing.circuit
    for u in dict.fromkeys(line.sender for line in thin):
        site = circuit.table.senders[u]
        if str(site) not in there and site.kind != "input":
            rows[_level(site, circuit)].append(str(site))
    parts = []
    for level, names in rows.items():
        if level in layout.rows:
            said = f"with thin edges only: {', '.join(names)}"
            words = f"+{len(names)} part{'' if len(names) == 1 else 's'}"
            place = {"x": layout.width - 66.0, "y": layout.rows[level] + 4}
            parts.append(tag("text", tag("title", said), words, class_="s more", **place))
    return parts


def _caption(circuit: Circuit, drawn: Sequence[Line], thin: Sequence[Line], scored: bool, sampled: bool) -> Markup:
    said = [Markup("Information flows upwards.")]
    if scored:
        said.append(
            Markup(
                '<b class="hotkey">Blue</b> edges help the behaviour, <b class="coldkey">orange</b> ones work against '
                "it; width grows with the root of the score's size."
            )
        )
    said.append(Markup("q, k, v: a line ends at the query, key or value that it feeds."))
    if circuit.shape.grouped:
        said.append(Markup("Heads that share a key and value (kv) stand in one box."))
    if sampled:
        said.append(Markup(f"Dashed: selected in fewer than {CORE:.0%} of the resamples of the pairs."))
    if circuit.spans:
        said.append(Markup("Columns are spans: a line that crosses them is attention."))
    if thin:
        said.append(
            Markup("The {} strongest of {} edges are drawn; +n counts the others where they enter.").format(
                f"{len(drawn):,}", f"{len(drawn) + len(thin):,}"
            )
        )
    return Markup(" ").join(said)


def _alt(circuit: Circuit, drawn: Sequence[Line]) -> str:
    table = circuit.table
    first = ", ".join(table.name(line.sender, line.receiver) for line in drawn[:8])
    return f"Graph of a circuit of {circuit.n_edges} edges and {circuit.n_nodes} nodes. Strongest edges: {first}."
