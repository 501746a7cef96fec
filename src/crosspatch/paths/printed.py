"""How results of path patching print their numbers."""

from __future__ import annotations

import math


def estimate(value: float, low: float, high: float, form: str) -> str:
    """A number with its interval, `12% [9%, 15%]`; says so where it has none (fewer than two independent pairs)."""
    said = format(value, form) if math.isfinite(value) else "n/a"
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{said} (no interval)"
    return f"{said} [{low:{form}}, {high:{form}}]"
