"""Rows of tables and lines of facts that the sections of the path report share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from crosspatch.report.svg import percent, signed

TOP = 20
"""Rows of a table of senders or tokens."""


@dataclass(frozen=True)
class Row:
    """Words and numbers of one table row, and its bar."""

    name: str
    cells: tuple[str, ...]
    bar: Markup | None = None


NO_INTERVAL = "(no interval)"
"""Where fewer than two independent pairs are there, or the number itself is undefined."""


def share_range(low: float, high: float) -> str:
    return f"[{percent(low)}, {percent(high)}]" if math.isfinite(low) and math.isfinite(high) else NO_INTERVAL


def between(low: float, high: float) -> str:
    return f"[{signed(low)}, {signed(high)}]" if math.isfinite(low) and math.isfinite(high) else NO_INTERVAL


def plain_range(low: float, high: float) -> str:
    return f"[{low:.4g}, {high:.4g}]" if math.isfinite(low) and math.isfinite(high) else NO_INTERVAL


def facts_of(about: dict[str, Any], skip: Sequence[str] = ()) -> dict[str, str]:
    said = {}
    for name, value in about.items():
        if name not in skip and value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            if text:
                said[name.replace("_", " ")] = text
    return said
