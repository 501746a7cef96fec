"""Where the boxes and lines of a circuit's drawing stand: rows by layer, columns by span, few lines behind boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crosspatch.report.svg import number

LETTER, CELL, GAP, WIDEST_GAP, LEFT = 6.8, 15.0, 16.0, 64.0, 98.0
NAME, PORTS = 20.0, 13.0
"""Heights of the name of a part and of the cells below it."""
PITCH, PITCH_OF_MANY, MANY = 76.0, 60.0, 14
"""Distance of two rows, and where there are many rows."""
_BOWS = (0.0, 22.0, -22.0, 44.0, -44.0, 72.0, -72.0, 110.0, -110.0, 160.0, -160.0, 220.0, -220.0)
_SWEEPS = 14


@dataclass(eq=False)
class Box:
    """One part, or a group of heads that share a key and value.

    Attributes:
        unit: `a3.1` (layer and group of heads), `m3`, `input`, `logits`.
        column: span, "" where there are none.
        level: rows are ordered by it, upwards.
        bar: as wide as its column.
        cells: name -> its inputs, some of q, k, v.
        width: of a bar it is set by the layout.
    """

    unit: str
    column: str
    level: float
    bar: bool
    cells: dict[str, list[str]] = field(default_factory=dict)
    width: float = 0.0

    @property
    def height(self) -> float:
        return NAME + (PORTS if any(self.cells.values()) else 0.0)

    def cell_width(self, name: str) -> float:
        """Of one cell: its name and its inputs fit."""
        if self.bar:
            return self.width
        return max(LETTER * len(name) + 12, CELL * len(self.cells[name]))

    def middle_of(self, cell: str, port: str = "") -> float:
        """Where a line ends, from the left side of the box."""
        at = 0.0
        for name, ports in self.cells.items():
            wide = self.cell_width(name)
            if name == cell:
                return at + (wide * (ports.index(port) + 0.5) / len(ports) if port else wide / 2)
            at += wide
        raise KeyError(cell)


@dataclass(frozen=True)
class End:
    """A line from the top of one box to the bottom of another: cell names, and the input that it enters by."""

    before: Box
    cell: str
    after: Box
    into: str
    port: str = ""


@dataclass(frozen=True)
class Layout:
    """Where things stand, in pixels.

    Attributes:
        boxes: in drawing order.
        columns: span -> left and right side.
        rows: level -> middle.
        routes: one path (the `d` of an SVG path) for each line.
    """

    boxes: list[Box]
    columns: dict[str, tuple[float, float]]
    rows: dict[float, float]
    x: Mapping[Box, float]
    routes: list[str]
    width: float
    height: float

    def x_of(self, box: Box) -> float:
        """The middle of a box."""
        return self.x[box]

    def y_of(self, box: Box) -> float:
        """The middle of a box."""
        return self.rows[box.level]


def lay_out(
    boxes: Sequence[Box], lines: Sequence[End], order: Sequence[str] = (), room: float = 0.0, *, narrow: bool = False
) -> Layout:
    """Place boxes and route lines.

    Args:
        order: spans in the order in which they stand in the prompt.
        room: to keep free at the right side.
        narrow: a drawing without spans is no wider than its boxes need.
    """
    columns = in_order([box.column for box in boxes], order)
    for box in boxes:
        box.cells = dict(sorted(box.cells.items(), key=_natural))
        if not box.bar:
            box.width = sum(map(box.cell_width, box.cells))
    sides = _sides(boxes, columns, narrow)
    for box in boxes:
        if box.bar:
            low, high = sides[box.column]
            box.width = high - low - 12
    levels = sorted({box.level for box in boxes})
    pitch = PITCH if len(levels) <= MANY else PITCH_OF_MANY
    height = pitch * (len(levels) - 1) + NAME + PORTS + 30
    rows = {level: height - 24 - pitch * i for i, level in enumerate(levels)}
    x = _placed(boxes, lines, sides)
    right = max((high for _, high in sides.values()), default=LEFT)
    routes = _routes(boxes, lines, x, rows, right)
    return Layout(list(boxes), sides, rows, x, routes, right + 8 + room, height)


def in_order(columns: Sequence[str], order: Sequence[str]) -> list[str]:
    """Any token first; then as in the prompt, or as they appear; the end last."""
    known = {name: i for i, name in enumerate(order)}
    seen = list(dict.fromkeys(columns))
    return sorted(seen, key=lambda c: (c not in ("", "*"), c == "END", known.get(c, len(known))))


def _natural(cell: tuple[str, list[str]]) -> tuple[bool, int, str]:
    """Heads by number, then the key and value that they share."""
    name = cell[0]
    index = "".join(c for c in name.rpartition(".")[2] if c.isdigit())
    return ".kv" in name, int(index or 0), name


def _sides(boxes: Sequence[Box], columns: Sequence[str], narrow: bool) -> dict[str, tuple[float, float]]:
    cells: dict[tuple[float, str], list[Box]] = defaultdict(list)
    for box in boxes:
        if not box.bar:
            cells[box.level, box.column].append(box)
    sides, at = {}, LEFT
    for column in columns:
        rows = [its for (_, name), its in cells.items() if name == column]
        wide = max((sum(box.width + GAP for box in its) + GAP for its in rows), default=0.0)
        # Room for lines to pass beside the boxes.
        tight = narrow or bool(column)
        wide = max(wide, LETTER * len(column or "any") + 30, 90.0 if tight else 420.0) + (20.0 if tight else 120.0)
        sides[column] = (at, at + wide)
        at += wide
    return sides


def _placed(boxes: Sequence[Box], lines: Sequence[End], sides: Mapping[str, tuple[float, float]]) -> dict[Box, float]:
    """The middle of every box: near what it is connected to, without overlap in its row."""
    x = {box: sum(sides[box.column]) / 2 for box in boxes}
    groups: dict[tuple[float, str], list[Box]] = defaultdict(list)
    for box in sorted(boxes, key=lambda box: (box.level, box.unit)):
        if not box.bar:
            groups[box.level, box.column].append(box)
    near: dict[Box, list[Box]] = defaultdict(list)
    for line in lines:
        if not (line.before.bar or line.after.bar):
            near[line.before].append(line.after)
            near[line.after].append(line.before)
    for (_, column), row in groups.items():
        low, high = sides[column]
        for i, box in enumerate(row):
            x[box] = low + (high - low) * (i + 1) / (len(row) + 1)
    for sweep in range(_SWEEPS):
        for key in sorted(groups, reverse=bool(sweep % 2)):
            row, (low, high) = groups[key], sides[key[1]]
            wanted = {box: float(np.mean([x[b] for b in near[box]])) if near[box] else x[box] for box in row}
            row.sort(key=lambda box: wanted[box])
            _spread(row, wanted, low + GAP / 2, high - GAP / 2, x)
    for column, (low, high) in sides.items():
        its = [box for (_, name), row in groups.items() if name == column for box in row]
        if its:
            left, right = min(x[box] - box.width / 2 for box in its), max(x[box] + box.width / 2 for box in its)
            for box in its:
                x[box] += (low + high - left - right) / 2
    return x


def _spread(row: Sequence[Box], wanted: Mapping[Box, float], low: float, high: float, x: dict[Box, float]) -> None:
    """Boxes of one row near where they want to be, none over another: between pushing to the right and to the left."""
    spare = (high - low - sum(box.width for box in row)) / (len(row) + 1)
    gap = max(GAP, min(WIDEST_GAP, spare))
    rightmost, at = {}, low
    for box in row:
        rightmost[box] = max(wanted[box], at + box.width / 2)
        at = rightmost[box] + box.width / 2 + gap
    leftmost, at = {}, high
    for box in reversed(row):
        leftmost[box] = min(wanted[box], at - box.width / 2)
        at = leftmost[box] - box.width / 2 - gap
    for box in row:
        x[box] = (rightmost[box] + leftmost[box]) / 2
    at = high
    for box in reversed(row):
        x[box] = min(x[box], at - box.width / 2)
        at = x[box] - box.width / 2 - gap
    at = low
    for box in row:
        x[box] = max(x[box], at + box.width / 2)
        at = x[box] + box.width / 2 + gap


def _routes(
    boxes: Sequence[Box], lines: Sequence[End], x: Mapping[Box, float], rows: Mapping[float, float], most: float
) -> list[str]:
    """A curve for every line, of several that bow to either side the one behind the fewest boxes and inside the
    drawing."""
    solid = [box for box in boxes if not box.bar]
    left = np.array([x[box] - box.width / 2 - 4 for box in solid])
    right = np.array([x[box] + box.width / 2 + 4 for box in solid])
    top = np.array([rows[box.level] - box.height / 2 - 2 for box in solid])
    bottom = np.array([rows[box.level] + box.height / 2 + 2 for box in solid])
    t = np.linspace(0.04, 0.96, 32)[:, None]
    shape = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    found = []
    for line in lines:
        a, b = line.before, line.after
        others = np.array([box is not a and box is not b for box in solid], dtype=bool)
        x0 = x[a] - a.width / 2 + a.middle_of(line.cell)
        x1 = x[b] - b.width / 2 + b.middle_of(line.into, line.port)
        y0, y1 = rows[a.level] - a.height / 2, rows[b.level] + b.height / 2
        lean = 0.42 * (y0 - y1)
        best: tuple[float, tuple[float, ...]] | None = None
        for bow in _BOWS:
            start = min(max(x1 + bow, x[a] - a.width / 2 + 4), x[a] + a.width / 2 - 4) if a.bar else x0
            stop = min(max(x0 + bow, x[b] - b.width / 2 + 4), x[b] + b.width / 2 - 4) if b.bar and not a.bar else x1
            side = 0.0 if (a.bar or b.bar) and a.column == b.column else bow
            curve = (start, y0, start + side, y0 - lean, stop + side, y1 + lean, stop, y1)
            px, py = shape @ np.array(curve[0::2]), shape @ np.array(curve[1::2])
            hit = (px[:, None] > left) & (px[:, None] < right) & (py[:, None] > top) & (py[:, None] < bottom)
            outside = ((px < LEFT) | (px > most)).any()
            cost = 10.0 * float((hit.any(0) & others).sum()) + 40.0 * float(outside) + abs(bow) / 60
            if best is None or cost < best[0] - 1e-9:
                best = cost, curve
            if best[0] < 1e-9:
                break
        assert best is not None
        c = [number(value) for value in best[1]]
        found.append(f"M{c[0]} {c[1]}C{c[2]} {c[3]} {c[4]} {c[5]} {c[6]} {c[7]}")
    return found
