"""Where a head looks: the pattern as a matrix, and one destination's row as shaded text."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from crosspatch.report.data import Attention
from crosspatch.report.svg import Figure, Panel, number, tag
from crosspatch.report.tokens import visible

FAINT = 0.01
"""Weights below this are not drawn; the caption says so."""


def attention_matrix(view: Attention) -> Figure:
    """Clean (and, where recorded, corrupt) pattern: destination down, source across."""
    panels = [_matrix(view.tokens, view.pattern, f"{view.head} on the clean prompt")]
    if view.corrupt_pattern is not None:
        panels.append(_matrix(view.corrupt_tokens, view.corrupt_pattern, f"{view.head} on the corrupt prompt"))
    caption = (
        f"Attention of {view.head}: each row is a destination token and sums to one. Weights under {FAINT:.0%} are "
        "left blank."
    )
    strongest = strongest_sources(view.tokens, view.pattern)
    return Figure(tuple(panels), caption, f"Attention pattern of {view.head}. The last token attends to {strongest}.")


def strongest_sources(tokens: Sequence[str], pattern: Float[np.ndarray, "destination source"], k: int = 3) -> str:
    """The `k` largest weights of the last row, in words."""
    row = pattern[-1]
    order = np.argsort(-row)[:k]
    return ", ".join(
        f"\N{LEFT DOUBLE QUOTATION MARK}{visible(tokens[i])}\N{RIGHT DOUBLE QUOTATION MARK} ({row[i]:.0%})"
        for i in order
    )


def _matrix(tokens: Sequence[str], pattern: Float[np.ndarray, "destination source"], title: str) -> Panel:
    n = len(tokens)
    cell = min(20.0, max(6.0, 320.0 / max(1, n)))
    words = [_short(t) for t in tokens]
    longest = 6.3 * max((len(w) for w in words), default=1)
    left, top = longest + 10, 24.0
    each = max(1, int(np.ceil(9.5 / cell)))
    parts: list[Markup] = [tag("text", title, x=left, y=14, class_="t")]
    outline = f"M{number(left)} {number(top)}" + "".join(f"v{number(cell)}h{number(cell)}" for _ in range(n))
    if not _causal(pattern):
        outline = f"M{number(left)} {number(top)}h{number(n * cell)}v{number(n * cell)}"
    parts.append(tag("path", d=f"{outline}H{number(left)}V{number(top)}", fill="none", class_="ax"))
    for i in range(n):
        if i % each == 0:
            y = top + (i + 0.5) * cell + 3.5
            x = left + (i + 0.5) * cell + 3
            foot = top + n * cell + 8
            parts.append(tag("text", words[i], x=left - 5, y=y, text_anchor="end", class_="s m k"))
            turned = f"rotate(-60 {number(x)} {number(foot)})"
            parts.append(tag("text", words[i], x=x, y=foot, text_anchor="end", class_="s m k", transform=turned))
        for j in range(n):
            weight = float(pattern[i, j])
            if weight >= FAINT:
                said = tag("title", f"{visible(tokens[i])} \N{RIGHTWARDS ARROW} {visible(tokens[j])}: {weight:.2f}")
                at = {"x": left + j * cell, "y": top + i * cell}
                size = {"width": cell - 0.5, "height": cell - 0.5}
                parts.append(tag("rect", said, **at, **size, class_="w0", fill="#175ca3", fill_opacity=weight**0.7))
    width = max(left + n * cell + 8, left + 7 * len(title))
    return Panel(Markup("").join(parts), width, top + n * cell + 12 + 0.88 * longest)


def _causal(pattern: Float[np.ndarray, "destination source"]) -> bool:
    """Whether no destination looks at what comes after it."""
    return not np.triu(pattern, 1).any()


def _short(token: str, most: int = 12) -> str:
    text = visible(token)
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def attention_strip(view: Attention, position: str = "END", corrupt: bool = False) -> Markup:
    """The prompt with every token shaded by the attention of one destination to it.

    Args:
        view: the pattern.
        position: role or token index of the destination (the last token of a role); the last token where it is neither.
        corrupt: the corrupt prompt instead of the clean one.

    The page's script shades by another destination when that token is pointed at; without it this row stays.
    """
    tokens = view.corrupt_tokens if corrupt else view.tokens
    pattern = view.corrupt_pattern if corrupt else view.pattern
    if pattern is None:
        return Markup("")
    chosen = destination(view, position, len(tokens))
    boxes = []
    for i, token in enumerate(tokens):
        weight = float(pattern[chosen, i])
        words = tag("small", f"{100 * weight:.0f}" if weight >= 0.05 else "")
        style = f"--a:{number(100 * weight**0.7)}%"
        kind = "at dest" if i == chosen else "at"
        boxes.append(tag("span", visible(token), words, class_=kind, style=style, tabindex="0"))
    causal = _causal(pattern)
    rows = [[round(float(w), 3) for w in (row[: i + 1] if causal else row)] for i, row in enumerate(pattern)]
    packed = json.dumps(rows, separators=(",", ":"))
    return tag("p", *boxes, class_="astrip", data_rows=packed, data_dest=chosen)


def destination(view: Attention, position: str, n: int) -> int:
    """Index of the token whose row is shown first."""
    if position.lstrip("-").isdigit():
        return int(position) % n
    start, stop = view.spans.get(position, (0, 0))
    return stop - 1 if start < stop <= n else n - 1
