"""Does a circuit hold parts that do nothing? (Wang et al. 2022, arXiv 2211.00593.)"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.judge import Judge, Progress, held_out_pairs
from crosspatch.circuits.stored import Stored
from crosspatch.errors import CircuitError
from crosspatch.results.statistics import (
    benjamini_hochberg,
    bootstrap_ratio_of_means,
    ratio_of_means,
    resampler,
    sign_flip_p,
)

if TYPE_CHECKING:
    from crosspatch.attribution.ablation import Ablation, AblationName
    from crosspatch.attribution.setup import Setup

Parts = Literal["edges", "nodes"]


@dataclass(eq=False)
class Minimality(Stored):
    """A circuit without each of its parts, one at a time; raw metric values per pair.

    Attributes:
        circuit: the circuit.
        parts: names of the parts that were taken out.
        clusters: what intervals resample.
        clean, empty: whole model; every edge cut.
        kept: the circuit.
        without: the circuit without the part.
        methodology: what was done.
    """

    dims: ClassVar = {
        "clean": ("example",),
        "empty": ("example",),
        "kept": ("example",),
        "without": ("part", "example"),
    }

    circuit: Circuit
    parts: list[str]
    clusters: list[str]
    clean: Float[np.ndarray, " example"]
    empty: Float[np.ndarray, " example"]
    kept: Float[np.ndarray, " example"]
    without: Float[np.ndarray, "part example"]
    methodology: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per part: what is lost without it as a share of the gap, its 95 % interval, p (signs flipped) and q
        corrected over the parts, and a `label`: `needed`, `harmful` (the circuit is better without), `redundant` (the
        interval lies within `min_effect` of zero) or `unclear`."""
        about = self.methodology
        sampler = resampler(len(self.clean), self.clusters, draws=about["n_boot"], seed=about["seed"])
        lost, gap = self.kept - self.without, self.clean - self.empty
        ends = bootstrap_ratio_of_means(lost, gap, sampler, 0.0)
        p = sign_flip_p(lost, self.clusters, seed=about["seed"])
        share, q = ratio_of_means(lost, gap, 0.0), benjamini_hochberg(p)
        small = (ends.low >= -about["min_effect"]) & (ends.high <= about["min_effect"])
        label = np.select([small, (q <= 0.05) & (share > 0), (q <= 0.05) & (share < 0)],
                          ["redundant", "needed", "harmful"], "unclear")  # fmt: skip
        return pd.DataFrame(
            {"part": self.parts, "effect": share, "low": ends.low, "high": ends.high, "p": p, "q": q, "label": label}
        )

    def __str__(self) -> str:
        counts = self.frame["label"].value_counts()
        told = ", ".join(f"{counts[k]} {k}" for k in ("needed", "harmful", "redundant", "unclear") if k in counts)
        return f"{self.circuit.name or 'circuit'}, {len(self.parts)} parts taken out one at a time: {told}"


def minimality(
    setup: Setup,
    circuit: Circuit,
    parts: Parts = "edges",
    *,
    ablation: AblationName | Ablation = "paired",
    held_out: float = 0.5,
    max_parts: int | None = None,
    min_effect: float = 0.01,
    seed: int = 0,
    n_boot: int = 1000,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Minimality:
    """What the circuit loses without each of its edges or nodes.

    Only the part's own edges are cut (all edges out of a node); what then leads nowhere stays. Two parts that stand in
    for each other both look redundant: try them together in `completeness`. For the test against random edges see
    `hypotheses.hypothesis_tests`.

    Args:
        setup, circuit, ablation, held_out, seed, n_boot, budget_mib, progress: as in `evaluate`.
        parts: `edges`, or `nodes` but the input.
        max_parts: take this many at random.
        min_effect: share of the gap below which an effect counts as none.

    Raises:
        CircuitError: no parts, or unknown ones.
    """
    from crosspatch.attribution.ablation import resolve_ablation

    names, smaller = one_less(circuit, parts, max_parts, seed)
    chosen = resolve_ablation(ablation, setup)
    judged, told = held_out_pairs(setup, held_out, seed)
    judge = Judge(judged, chosen, budget_mib=budget_mib, progress=progress)
    values = judge.values([judge.full, judge.empty, circuit, *smaller])
    return Minimality(
        circuit, names, list(judged.clusters), values[0], values[1], values[2], values[3:],
        judge.methodology(pairs=told, held_out=held_out, seed=seed, n_boot=n_boot, parts=parts, min_effect=min_effect,
                          runs=judge.n_runs),
    )  # fmt: skip


def one_less(
    circuit: Circuit, parts: Parts = "edges", most: int | None = None, seed: int = 0
) -> tuple[list[str], list[Circuit]]:
    """The circuit without each of its edges, or without all edges out of each of its nodes but the input.

    Args:
        most: take this many of them at random.
        seed: of that.

    Returns:
        (names of the parts, the circuits without them)

    Raises:
        CircuitError: no parts, or unknown ones.
    """
    places: list[tuple[Any, ...]]
    if parts == "edges":
        places = [(u, v, *span) for v, u, *span in np.argwhere(np.swapaxes(circuit.keep, 0, 1))]
        names = circuit.edge_names()
    elif parts == "nodes":
        places = [(u,) for u in np.flatnonzero(circuit.node_mask) if u > 0]
        names = [str(circuit.table.senders[u]) for (u,) in places]
    else:
        raise CircuitError(f"parts={parts!r}", where="one_less", fix="use 'edges' or 'nodes'")
    if not places:
        raise CircuitError(f"no {parts} to take out", where=circuit.name or "Circuit", fix="use a larger circuit")
    if most is not None and most < len(places):
        some = sorted(np.random.default_rng(seed).permutation(len(places))[:most].tolist())
        places, names = [places[i] for i in some], [names[i] for i in some]
    smaller = []
    for place in places:
        keep = circuit.keep.copy()
        keep[place] = False
        smaller.append(circuit.with_(keep=keep))
    return names, smaller
