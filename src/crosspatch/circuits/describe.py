"""A circuit as text, layer by layer: every part with what it reads."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from crosspatch.graph import Site

if TYPE_CHECKING:
    from crosspatch.circuits.circuit import Circuit

LONGEST = 12
"""So many senders are named one by one; above it whole runs of heads are."""


def describe(circuit: Circuit) -> str:
    """The circuit as text: a line with its size, then layer by layer what every part reads.

    Parts that are in the circuit but on no path from the input to the logits are marked with `(!)`.
    """
    table = circuit.table
    cube = circuit.cube
    alive = np.asarray(circuit.pruned().cube.any((0, 2)))
    lines = [str(circuit) + ("" if circuit.is_connected else " (! = on no path from the input to the logits)")]
    shown = np.flatnonzero(cube.any((0, 2)))
    for layer, group in groupby(shown, key=lambda v: table.receivers[v].layer):
        lines.append("logits" if layer is None else f"layer {layer}")
        for v in group:
            name, mark = str(table.receivers[v]), "" if alive[v] else " (!)"
            by_reads: dict[str, list[str]] = {}
            for s in range(cube.shape[2]):
                if cube[:, v, s].any():
                    reads = _senders([table.senders[u] for u in np.flatnonzero(cube[:, v, s])], circuit)
                    by_reads.setdefault(reads, []).append(circuit.spans[s] if circuit.spans else "")
            for reads, spans in by_reads.items():
                at = f"@{','.join(spans)}" if circuit.spans else ""
                lines.append(f"  {name}{at}{mark} <- {reads}")
    for name, part in circuit.neurons.items():
        lines.append(f"  of {name} {len(part.kept):,} {part.basis} neurons")
    return "\n".join(lines)


def _senders(sites: list[Site], circuit: Circuit) -> str:
    """Names, heads of one layer together: `input, a0.h[1,3-5], m0-m4`."""
    if len(sites) <= LONGEST:
        return ", ".join(map(str, sites))
    parts: list[str] = []
    mlps = [site.layer or 0 for site in sites if site.kind == "mlp_out"]
    for layer, group in groupby((site for site in sites if site.kind == "z"), key=lambda site: site.layer):
        heads = [site.index or 0 for site in group]
        whole = len(heads) == circuit.shape.n_heads
        parts.append(
            f"a{layer}.h*" if whole else f"a{layer}.h[{_runs(heads)}]" if len(heads) > 1 else f"a{layer}.h{heads[0]}"
        )
    if mlps:
        parts.append(f"m[{_runs(mlps)}]" if len(mlps) > 1 else f"m{mlps[0]}")
    return ", ".join(["input"] * (sites[0].kind == "input") + parts)


def _runs(numbers: list[int]) -> str:
    """`0,2-5`"""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
