"""Circuits as DOT, for Graphviz to draw. A drawing: what is to be read again is saved as JSON or GraphML."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.ranking import checked_scores
from crosspatch.errors import CircuitError
from crosspatch.results.files import write_atomic

COLORS = {"q": "#4477AA", "k": "#228833", "v": "#AA3377", "mlp_out": "#555555", "logits": "#000000"}
"""By the input that an edge enters (Tol's colours, which differ for colour-blind readers too)."""
WIDTHS = (0.5, 4.0)
"""Of the least and the greatest score, in points."""


def to_dot(circuit: Circuit, scores: Float[np.ndarray, " edge"] | None = None) -> str:
    """DOT text: layers from the input at the top, edges coloured by the input they enter, dashed where they hurt.

    Args:
        scores: of all edges, by number: width is their size, dashes are negative ones; a kept edge without one is thin.

    Raises:
        CircuitError: scores that do not fit.
    """
    table = circuit.table
    values = np.full(table.exists.shape, np.nan)
    if scores is not None:
        values = table.matrix(checked_scores(scores, circuit.shape), np.nan)
    some = np.asarray(circuit.cube.any(-1))
    sizes = np.abs(values[some])
    largest = float(np.nanmax(sizes)) if sizes.size and not np.isnan(sizes).all() else 0.0
    edges: list[str] = []
    shown: set[str] = set()
    for v, u in np.argwhere(some.T):
        site, source = table.receivers[v], str(table.senders[u])
        value = float(values[u, v])
        size = abs(value) / largest if largest and not np.isnan(value) else 0.0
        kept = [span for span, here in zip(circuit.spans, circuit.cube[u, v], strict=False) if here]
        label = f"{site.kind if site.kind in 'qkv' else ''}{'@' + ','.join(kept) if kept else ''}"
        tip = "" if np.isnan(value) else f": {value:.3g}"
        for target in circuit.readers(int(v)):
            shown.update((source, target))
            edges.append(
                f"  {_quoted(source)} -> {_quoted(target)} [color={_quoted(COLORS[site.kind])}"
                f", label={_quoted(label)}, style={'dashed' if value < 0 else 'solid'}"
                f", penwidth={WIDTHS[0] + size * (WIDTHS[1] - WIDTHS[0]):.2f}"
                f", tooltip={_quoted(f'{source}->{site}{tip}')}];"
            )
    lines = [f"digraph {_quoted(circuit.name or 'circuit')} {{", "  rankdir=TB;"]
    lines += ["  node [shape=box, style=rounded, fontname=Helvetica]; edge [fontname=Helvetica, fontsize=8];"]
    sites = [site for site in (*table.senders, table.receivers[-1]) if str(site) in shown]
    for _, group in groupby(sites, key=lambda site: (site.kind == "mlp_out", site.layer, site.kind == "logits")):
        names = "; ".join(_quoted(str(site)) for site in group)
        lines.append(f"  {{ rank=same; {names}; }}")
    return "\n".join([*lines, *edges, "}", ""])


def write_dot(path: str | Path, circuit: Circuit, scores: Float[np.ndarray, " edge"] | None = None) -> None:
    """Write `to_dot`, atomically.

    Raises:
        CircuitError: the file cannot be written, or scores that do not fit.
    """
    text = to_dot(circuit, scores)
    try:
        write_atomic(Path(path), text.encode())
    except OSError as error:
        raise CircuitError(f"cannot be written ({error.strerror})", where=str(path), fix="check the folder") from error


def _quoted(text: str) -> str:
    """A DOT string: only quotes and backslashes need care, and a line ends where it must not."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
