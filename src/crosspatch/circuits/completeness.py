"""Does a circuit miss parts that matter? The model and the circuit with the same nodes taken out (Wang et al. 2022,
arXiv 2211.00593)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.judge import Judge, Progress, held_out_pairs
from crosspatch.circuits.stored import Stored
from crosspatch.errors import CircuitError
from crosspatch.graph import parse_site, validate
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


@dataclass(eq=False)
class Completeness(Stored):
    """The model and the circuit with the same nodes taken out of both.

    Attributes:
        circuit: the circuit C.
        sets: for each set K: `kind` (class, random, greedy), `name`, `nodes`.
        clusters: what intervals resample.
        clean, empty: whole model; every edge cut.
        model_without: the metric of M without K.
        circuit_without: of C without K.
        methodology: what was done.
    """

    dims: ClassVar = {
        "clean": ("example",),
        "empty": ("example",),
        "model_without": ("set", "example"),
        "circuit_without": ("set", "example"),
    }

    circuit: Circuit
    sets: list[dict[str, Any]]
    clusters: list[str]
    clean: Float[np.ndarray, " example"]
    empty: Float[np.ndarray, " example"]
    model_without: Float[np.ndarray, "set example"]
    circuit_without: Float[np.ndarray, "set example"]
    methodology: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per set K: F(M without K), F(C without K) (means) and their difference as a share of the gap with its
        95 % interval, and p (signs flipped), q corrected over all sets. A complete circuit has differences near 0."""
        about = self.methodology
        sampler = resampler(len(self.clean), self.clusters, draws=about["n_boot"], seed=about["seed"])
        apart, gap = self.model_without - self.circuit_without, self.clean - self.empty
        ends = bootstrap_ratio_of_means(apart, gap, sampler, 0.0)
        p = sign_flip_p(apart, self.clusters, seed=about["seed"])
        return pd.DataFrame(
            {
                "kind": [one["kind"] for one in self.sets],
                "set": [one["name"] for one in self.sets],
                "n_nodes": [len(one["nodes"]) for one in self.sets],
                "model_without": self.model_without.mean(1),
                "circuit_without": self.circuit_without.mean(1),
                "difference": ratio_of_means(apart, gap, 0.0),
                "low": ends.low,
                "high": ends.high,
                "p": p,
                "q": benjamini_hochberg(p),
            }
        )

    @property
    def worst(self) -> dict[str, Any]:
        """The row of `frame` with the largest difference in size: the incompleteness of the circuit."""
        return self.frame.loc[self.frame["difference"].abs().idxmax()].to_dict()

    def __str__(self) -> str:
        worst, frame = self.worst, self.frame
        lines = [
            f"incompleteness of {self.circuit.name or 'the circuit'}: at most {abs(worst['difference']):.3f} of the "
            f"gap [{worst['low']:.3f}, {worst['high']:.3f}] ({worst['kind']} {worst['set']}), among {len(frame)} sets"
        ]
        for kind, rows in frame.groupby("kind", sort=False):
            at = rows["difference"].abs()
            lines.append(f"  {kind}: {len(rows)} sets, mean {at.mean():.3f}, largest {at.max():.3f}")
        return "\n".join(lines)


def completeness(
    setup: Setup,
    circuit: Circuit,
    classes: Mapping[str, Sequence[str]] | None = None,
    *,
    ablation: AblationName | Ablation = "paired",
    held_out: float = 0.5,
    n_random: int = 10,
    budget: int = 200,
    width: int = 8,
    seed: int = 0,
    n_boot: int = 1000,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Completeness:
    """|F(M without K) - F(C without K)| for sets K of the circuit's nodes: classes, random ones, and a greedy search.

    Taking nodes out cuts all edges out of them. Random sets hold each node with a probability of one half. The greedy
    search starts with nothing and adds, of `width` random nodes, the one that makes the difference largest (Wang et
    al., appendix), until the budget is spent or no node is left. It chooses on the pairs to search on and is reported
    on the others: the largest of many differences on the same pairs would be too large by chance alone.

    Args:
        setup, ablation, held_out, seed, n_boot, budget_mib, progress: as in `evaluate`.
        circuit: the circuit.
        classes: name -> nodes (`a5.h3`, `m2`); those that are not in the circuit are left out of K.
        n_random: random sets.
        budget: most runs of a mask in the greedy search; a candidate takes two. 0: no greedy search.
        width: candidates in each step.

    Raises:
        CircuitError: a circuit without nodes that could be taken out.
        AddressError: a class names no node of this model.
    """
    from crosspatch.attribution.ablation import resolve_ablation

    table = circuit.table
    inside = [int(u) for u in np.flatnonzero(circuit.node_mask) if u > 0]
    if not inside:
        raise CircuitError("no node but the input", where=circuit.name or "Circuit", fix="use a larger circuit")
    chosen = resolve_ablation(ablation, setup)
    judged, told = held_out_pairs(setup, held_out, seed)
    judge = Judge(judged, chosen, budget_mib=budget_mib, progress=progress)
    other = setup.split(held_out, seed)[0] if held_out else judged
    scout = Judge(other, chosen, budget_mib=budget_mib, progress=progress) if held_out else judge
    sets: list[dict[str, Any]] = []

    def add(kind: str, name: str, nodes: Sequence[int]) -> None:
        sets.append({"kind": kind, "name": name, "nodes": [str(table.senders[u]) for u in sorted(nodes)]})

    add("nothing", "K empty", [])
    for name, members in (classes or {}).items():
        sites = [validate(parse_site(str(member)), circuit.shape) for member in members]
        add("class", name, [u for u in inside if table.senders[u] in sites])
    draw = np.random.default_rng([seed, 0])
    for i in range(n_random):
        add(
            "random", f"random {i}", [u for u, take in zip(inside, draw.random(len(inside)) < 0.5, strict=True) if take]
        )
    steps = _greedy(scout, circuit, inside, budget, width, np.random.default_rng([seed, 1]))
    for i in range(len(steps)):
        add("greedy", f"greedy {i + 1}", steps[: i + 1])
    masks = [m for one in sets for m in _without(circuit, [table.sender_number[parse_site(n)] for n in one["nodes"]])]
    values = judge.values([judge.full, judge.empty, *masks])
    return Completeness(
        circuit,
        sets,
        list(judged.clusters),
        values[0],
        values[1],
        values[2::2],
        values[3::2],
        judge.methodology(
            pairs=told, held_out=held_out, seed=seed, n_boot=n_boot, budget=budget, width=width,
            runs=judge.n_runs + (scout.n_runs if scout is not judge else 0),
        ),
    )  # fmt: skip


def _without(circuit: Circuit, nodes: Sequence[int]) -> tuple[Circuit, Circuit]:
    """The whole model and the circuit, without what some nodes write."""
    keep, all_ = circuit.keep.copy(), circuit.table.exists.copy()
    keep[list(nodes)] = all_[list(nodes)] = False
    return Circuit(circuit.shape, all_), Circuit(circuit.shape, keep)


def _greedy(
    judge: Judge, circuit: Circuit, inside: list[int], budget: int, width: int, rng: np.random.Generator
) -> list[int]:
    """Nodes in the order in which the search adds them."""
    taken: list[int] = []
    start = judge.n_runs
    while len(taken) < len(inside):
        left = [u for u in inside if u not in taken]
        several = min(width, len(left), (budget - (judge.n_runs - start)) // 2)
        if several < 1:
            break
        tried = sorted(rng.permutation(left)[:several].tolist())
        values = judge.values([m for u in tried for m in _without(circuit, [*taken, u])])
        apart = np.abs((values[::2] - values[1::2]).mean(1))
        taken.append(tried[int(np.argmax(apart))])
    return taken
