"""How faithfulness grows with size: many circuits in one run, their areas as MIB computes them, and on a log axis.

Read the areas with care (Mueller et al. 2025, arXiv 2504.13151, and the benchmark's code):

- 85 % of the weight of CPR and CMD lies on the three largest of the ten sizes (20, 50 and 100 %); only a tenth of the
  axis lies below 10 %. Small circuits, where methods differ, hardly count.
- The whole model scores 1 for free, and a method that is blind up to half of all edges gets CPR 0.25 and CMD 0.75.
- CPR has no maximum: leaving out parts that work against the answer pushes faithfulness above 1. Read CMD beside it.
- The axis is the size asked for, not what pruning left of it.

`log_cpr` and `log_cmd` are over the true size, on a logarithmic axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.circuits import mib, select, shares
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.evaluation import ABOVE_ONE, above_one
from crosspatch.circuits.gates import examples_gate, gap_gate
from crosspatch.circuits.judge import Judge, Progress, held_out_pairs, searched_on
from crosspatch.circuits.random import random_like
from crosspatch.circuits.stored import Stored
from crosspatch.errors import CircuitError
from crosspatch.graph import edge_table
from crosspatch.results.statistics import Resampler, interval_of, resampler
from crosspatch.tasks.findings import GateFinding

if TYPE_CHECKING:
    from crosspatch.attribution.ablation import Ablation, AblationName
    from crosspatch.attribution.setup import Setup

AREAS = ("cpr", "cmd", "log_cpr", "log_cmd")


@dataclass(eq=False)
class Frontier(Stored):
    """Circuits of growing size on the same pairs, raw metric values per pair.

    Attributes:
        circuits: in order of nominal size.
        nominal: share of all edges that was asked for.
        pairs, clusters: a digest of every pair's tokens; what intervals resample.
        clean, empty: whole model; every edge cut.
        kept: everything outside the circuit cut.
        random_kept: the same of random connected circuits of the circuit's true size.
        findings: gates and caveats.
        methodology: everything that the numbers depend on.
    """

    dims: ClassVar = {
        "nominal": ("point",),
        "clean": ("example",),
        "empty": ("example",),
        "kept": ("point", "example"),
        "random_kept": ("point", "draw", "example"),
    }

    circuits: list[Circuit]
    nominal: Float[np.ndarray, " point"]
    pairs: list[str]
    clusters: list[str]
    clean: Float[np.ndarray, " example"]
    empty: Float[np.ndarray, " example"]
    kept: Float[np.ndarray, "point example"]
    random_kept: Float[np.ndarray, "point draw example"]
    findings: list[GateFinding] = field(default_factory=list)
    methodology: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _sampler(self) -> Resampler:
        return resampler(
            len(self.clean), self.clusters, draws=self.methodology["n_boot"], seed=self.methodology["seed"]
        )

    @property
    def ok(self) -> bool:
        """Whether every gate passed."""
        return not any(f.level == "failure" for f in self.findings)

    @property
    def n_total(self) -> int:
        """Edges of the model."""
        return len(self.circuits[0].table)

    @cached_property
    def _random(self) -> Float[np.ndarray, "point draw"]:
        effects = (self.random_kept - self.empty).reshape(-1, len(self.clean))
        return shares.ratio_of_means(effects, self.clean - self.empty).value.reshape(self.random_kept.shape[:2])

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per size: nominal share, edges, weighted edges, faithfulness (ratio of means) with its interval, and
        the band of random circuits (2.5, 50, 97.5 %) with the p-value of being no better than they are."""
        share = shares.ratio_of_means(self.kept - self.empty, self.clean - self.empty, self._sampler)
        band, p = shares.against_random(share.value, self._random)
        return pd.DataFrame(
            {
                "circuit": [c.name for c in self.circuits],
                "nominal": self.nominal,
                "edges": [c.n_edges for c in self.circuits],
                "weighted_edges": [c.weighted_edge_count for c in self.circuits],
                "faithfulness": share.value,
                "faithfulness_low": share.low,
                "faithfulness_high": share.high,
                "random_low": band[:, 0],
                "random_median": band[:, 1],
                "random_high": band[:, 2],
                "p": p,
                "above_one": share.value > ABOVE_ONE,
            }
        )

    @cached_property
    def areas(self) -> pd.DataFrame:
        """One row per area of `AREAS`: value, 95 % interval over resampled pairs, and the band of random curves.

        `cpr` and `cmd` are those of MIB: trapezoids over the nominal size, linear. A random curve is made of one random
        circuit at each size.
        """
        effects, gap = self.kept - self.empty, self.clean - self.empty
        value = self._areas(shares.ratio_of_means(effects, gap).value)
        drawn = np.array([self._areas(f) for f in shares.resampled(effects, gap, self._sampler)]).T
        ends = interval_of(drawn, self._sampler)
        random = np.array([self._areas(f) for f in self._random.T]).reshape(-1, len(AREAS))
        band, _ = shares.against_random(value, random.T)
        return pd.DataFrame(
            {
                "area": AREAS,
                "value": value,
                "low": ends.low,
                "high": ends.high,
                "random_low": band[:, 0],
                "random_median": band[:, 1],
                "random_high": band[:, 2],
            }
        )

    def _areas(self, f: Float[np.ndarray, " point"]) -> Float[np.ndarray, " area"]:
        if not np.isfinite(f).all():
            return np.full(len(AREAS), np.nan)
        sizes = [c.weighted_edge_count for c in self.circuits]
        return np.array(
            [
                mib.cpr(f, self.nominal.tolist()),
                mib.cmd(f, self.nominal.tolist()),
                mib.log_cpr(sizes, f, self.n_total),
                mib.log_cmd(sizes, f, self.n_total),
            ]
        )

    def __str__(self) -> str:
        about = self.methodology
        lines = [
            f"frontier of {len(self.circuits)} circuits on {len(self.clean)} pairs ({about['pairs']}), "
            f"{about['metric']}, {about['ablation']} ablation"
        ]
        lines += [
            f"  {row['nominal']:7.2%} asked, {row['edges']:,} edges: faithfulness {row['faithfulness']:.3f} "
            f"[{row['faithfulness_low']:.3f}, {row['faithfulness_high']:.3f}], random {row['random_low']:.2f} to "
            f"{row['random_high']:.2f}"
            for row in self.frame.to_dict("records")
        ]
        lines += [
            f"  {row['area']}: {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], random "
            f"{row['random_low']:.2f} to {row['random_high']:.2f}"
            for row in self.areas.to_dict("records")
        ]
        return "\n".join([*lines, *map(str, self.findings)])


def frontier(
    setup: Setup,
    circuits: Sequence[Circuit],
    nominal: Sequence[float] | None = None,
    *,
    ablation: AblationName | Ablation = "paired",
    held_out: float = 0.5,
    seed: int = 0,
    n_random: int = 10,
    n_boot: int = 1000,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Frontier:
    """Faithfulness over size for given circuits, all evaluated in one run.

    Args:
        setup: all pairs; which are judged is said by `held_out`, as in `evaluate`.
        circuits: at least two.
        nominal: the size that was asked for as a share of all edges, ascending, one per circuit; default: the true one.
        ablation, held_out, seed, n_random, n_boot, budget_mib, progress: as in `evaluate`.

    Raises:
        CircuitError: sizes that do not ascend, too few circuits, or one of another model.
    """
    from crosspatch.attribution.ablation import resolve_ablation

    listed = list(circuits)
    total = len(edge_table(setup.model.shape))
    at = np.array([c.n_edges / total for c in listed] if nominal is None else list(nominal), dtype=np.float64)
    if len(listed) < 2 or len(at) != len(listed) or (np.diff(at) <= 0).any():
        what = f"{len(listed)} circuits at {len(at)} sizes"
        raise CircuitError(what, where="frontier", fix="give at least two circuits, in order of growing nominal size")
    chosen = resolve_ablation(ablation, setup)
    judged, told = held_out_pairs(setup, held_out, seed)
    judge = Judge(judged, chosen, budget_mib=budget_mib, progress=progress)
    random = [random_like(circuit, n_random, seed=seed) for circuit in listed]
    flat = [circuit for several in random for circuit in several]
    values = judge.values([judge.full, judge.empty, *listed, *flat])
    clean, empty, kept = values[0], values[1], values[2 : 2 + len(listed)]
    found = Frontier(
        circuits=listed,
        nominal=at,
        pairs=judged.digests,
        clusters=list(judged.clusters),
        clean=clean,
        empty=empty,
        kept=kept,
        random_kept=values[2 + len(listed) :].reshape(len(listed), n_random, len(judged)),
        methodology=judge.methodology(
            pairs=told, held_out=held_out, seed=seed, n_boot=n_boot, n_random=n_random, runs=judge.n_runs
        ),
    )
    found.findings = [
        gap_gate(clean - empty, judge.sampler(n_boot, seed), judged.metric.better),
        examples_gate(len(judged), len(set(judged.clusters))),
        searched_on(listed, judged.digests, held_out > 0),
        *_caveats(found),
    ]
    return found


def frontier_of_scores(
    setup: Setup,
    scores: Float[np.ndarray, " edge"],
    grid: Sequence[float] = mib.GRID,
    *,
    method: select.Method = "top_n",
    absolute: bool = False,
    origin: Mapping[str, Any] | None = None,
    **options: Any,
) -> Frontier:
    """The frontier of the circuits that edge scores give at each size of `grid` (shares of all edges).

    The default is what MIB does: the n best edges, n = int(k x edges), then pruned. The benchmark ranks by signed
    scores for CPR and by absolute ones for CMD: make two frontiers to reproduce both columns.

    Args:
        scores: by number of edge; found on pairs that are not judged.
        method, absolute, origin: see `select.nested`.
        options: of `frontier`.
    """
    shape = setup.model.shape
    numbers = mib.sizes(len(edge_table(shape)), grid)
    return frontier(
        setup, select.nested(scores, shape, numbers, method=method, absolute=absolute, origin=origin), grid, **options
    )


def _caveats(found: Frontier) -> list[GateFinding]:
    lost = [(k, c.n_edges) for k, c in zip(found.nominal, found.circuits, strict=True)]
    gone = [f"{k:.2%}" for k, n in lost if int(k * found.n_total) >= 1 and n < 0.5 * int(k * found.n_total)]
    notes = []
    if gone:
        notes.append(
            GateFinding(
                "pruned",
                "warning",
                f"less than half of the edges asked for are left at {', '.join(gone)}: CPR and CMD still count these "
                "circuits at the size asked for",
                fix="choose circuits with select.path_aware",
            )
        )
    above = found.frame[found.frame["above_one"]]
    if len(above):
        best = above.loc[above["faithfulness"].idxmax()]
        low = float(best["faithfulness_low"])
        notes.append(above_one(f"the circuit of {best['edges']:,} edges", float(best["faithfulness"]), low))
    notes.append(
        GateFinding(
            "areas",
            "info",
            "the three largest sizes of the benchmark's grid carry 85 % of CPR and CMD, the whole model scores 1 for "
            "free, and CPR has no maximum; log_cpr and log_cmd weigh all orders of magnitude alike",
        )
    )
    return notes
