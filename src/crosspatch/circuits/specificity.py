"""Does a circuit serve its own task and no other? Every circuit on every task, beside random circuits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from crosspatch.circuits import shares
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.compare import iou
from crosspatch.circuits.gates import examples_gate, gap_gate
from crosspatch.circuits.judge import Judge, Progress, held_out_pairs
from crosspatch.circuits.random import random_like
from crosspatch.circuits.stored import Stored
from crosspatch.errors import CircuitError
from crosspatch.results.statistics import benjamini_hochberg, resampler, sign_flip_p
from crosspatch.tasks.findings import GateFinding

if TYPE_CHECKING:
    from crosspatch.attribution.ablation import Ablation, AblationName
    from crosspatch.attribution.setup import Setup


@dataclass(eq=False)
class Specificity(Stored):
    """Circuits of several tasks on the pairs of all of them, raw metric values per pair.

    Attributes:
        tasks: names; `circuits` has one for each.
        clusters: of each task, what intervals resample.
        n_pairs: of each task; `example` beyond it is NaN.
        clean, empty: whole model; every edge cut.
        kept, cut: `[task, circuit]`: everything outside the circuit cut; the circuit cut.
        random_kept, random_cut: of random connected circuits of the size of the task's own.
        findings: gates of each task.
        methodology: everything that the numbers depend on.
    """

    dims: ClassVar = {
        "n_pairs": ("task",),
        "clean": ("task", "example"),
        "empty": ("task", "example"),
        "kept": ("task", "task", "example"),
        "cut": ("task", "task", "example"),
        "random_kept": ("task", "draw", "example"),
        "random_cut": ("task", "draw", "example"),
    }

    tasks: list[str]
    circuits: list[Circuit]
    clusters: list[list[str]]
    n_pairs: Int[np.ndarray, " task"]
    clean: Float[np.ndarray, "task example"]
    empty: Float[np.ndarray, "task example"]
    kept: Float[np.ndarray, "task circuit example"]
    cut: Float[np.ndarray, "task circuit example"]
    random_kept: Float[np.ndarray, "task draw example"]
    random_cut: Float[np.ndarray, "task draw example"]
    findings: list[GateFinding] = field(default_factory=list)
    methodology: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per task and circuit.

        `faithfulness`, `necessity`: as in `CircuitEvaluation.frame`, with intervals. `own_better` = how much more of
        the task's gap its own circuit keeps than this one, p from flipping signs of pairs, q corrected over the whole
        matrix; NaN on the diagonal. `edges_shared`, `nodes_shared`: Jaccard index with the task's own circuit.
        """
        rows = []
        for t, task in enumerate(self.tasks):
            n, seed = int(self.n_pairs[t]), self.methodology["seed"]
            sampler = resampler(n, self.clusters[t], draws=self.methodology["n_boot"], seed=seed)
            clean, empty = self.clean[t, :n], self.empty[t, :n]
            gap = clean - empty
            kept, cut = self.kept[t, :, :n], self.cut[t, :, :n]
            faithful = shares.ratio_of_means(kept - empty, gap, sampler)
            necessary = shares.ratio_of_means(clean - cut, gap, sampler)
            sign = 1.0 if self.methodology["better"][t] == "higher" else -1.0
            ahead = sign * (kept[t] - kept)
            better = shares.ratio_of_means(ahead, sign * gap).value
            p = sign_flip_p(ahead, self.clusters[t], seed=seed)
            drawn = {
                "faithfulness": shares.ratio_of_means(self.random_kept[t, :, :n] - empty, gap).value,
                "necessity": shares.ratio_of_means(clean - self.random_cut[t, :, :n], gap).value,
            }
            for c, circuit in enumerate(self.circuits):
                row: dict[str, Any] = {"task": task, "circuit": self.tasks[c], "own": t == c}
                for name, share in (("faithfulness", faithful), ("necessity", necessary)):
                    row |= {name: share.value[c], f"{name}_low": share.low[c], f"{name}_high": share.high[c]}
                    row[f"random_{name}"] = np.median(drawn[name]) if len(drawn[name]) else np.nan
                row["own_better"] = np.nan if t == c else better[c]
                row["p"] = np.nan if t == c else p[c]
                row["edges_shared"] = iou(self.circuits[t].any_span(), circuit.any_span())
                row["nodes_shared"] = iou(self.circuits[t].any_span(), circuit.any_span(), "nodes")
                rows.append(row)
        table = pd.DataFrame(rows)
        table["q"] = benjamini_hochberg(table["p"].to_numpy(float))
        return table

    def matrix(self, of: str = "faithfulness") -> pd.DataFrame:
        """Tasks by circuits, with a last column `random`."""
        table = self.frame.pivot(index="task", columns="circuit", values=of).loc[self.tasks, self.tasks]
        table["random"] = self.frame.groupby("task")[f"random_{of}"].first().loc[self.tasks]
        return table

    def __str__(self) -> str:
        text = [f"{name} by task (rows) and circuit:\n{self.matrix(name).round(2)}" for name in
                ("faithfulness", "necessity")]  # fmt: skip
        return "\n".join([*text, *map(str, self.findings)])


def specificity(
    claims: Mapping[str, tuple[Setup, Circuit]],
    *,
    ablation: AblationName = "paired",
    held_out: float = 0.5,
    seed: int = 0,
    n_random: int = 10,
    n_boot: int = 1000,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Specificity:
    """Run the circuit of every task on every task.

    Args:
        claims: name -> (pairs of the task, its circuit), all on one model.
        ablation: by name; means are taken over the corrupt prompts of each task.
        held_out, seed, n_random, n_boot, budget_mib, progress: as in `evaluate`.

    Raises:
        CircuitError: fewer than two tasks, or circuits of different models.
    """
    if len(claims) < 2:
        raise CircuitError(f"{len(claims)} task", where="specificity", fix="give at least two tasks with circuits")
    circuits = [circuit for _, circuit in claims.values()]
    findings, parts, about = [], [], []
    for name, (setup, own) in claims.items():
        judged, told = held_out_pairs(setup, held_out, seed)
        judge = Judge(judged, _ablation(ablation, setup), budget_mib=budget_mib, progress=progress)
        every = [*circuits, *random_like(own, n_random, seed=seed)]
        values = np.concatenate([judge.values([judge.full, judge.empty, *every]), judge.without(every)])
        gates = [
            gap_gate(values[0] - values[1], judge.sampler(n_boot, seed), judged.metric.better),
            examples_gate(len(judged), len(set(judged.clusters))),
        ]
        findings += [GateFinding(g.code, g.level, f"{name}: {g.message}", fix=g.fix) for g in gates]
        parts.append((judged, values))
        about.append(judge.methodology(pairs=told, runs=judge.n_runs))
    widest = max(len(judged) for judged, _ in parts)
    rows = 2 + 2 * (len(circuits) + n_random)
    values = np.full((len(parts), rows, widest), np.nan)
    for t, (judged, found) in enumerate(parts):
        values[t, :, : len(judged)] = found
    clean, empty = values[:, 0], values[:, 1]
    kept, cut = np.split(values[:, 2:], 2, axis=1)
    n = len(circuits)
    return Specificity(
        tasks=list(claims),
        circuits=circuits,
        clusters=[list(judged.clusters) for judged, _ in parts],
        n_pairs=np.array([len(judged) for judged, _ in parts], dtype=np.int64),
        clean=clean,
        empty=empty,
        kept=kept[:, :n],
        cut=cut[:, :n],
        random_kept=kept[:, n:],
        random_cut=cut[:, n:],
        findings=findings,
        methodology={
            "tasks": about,
            "better": [judged.metric.better for judged, _ in parts],
            "held_out": held_out,
            "seed": seed,
            "n_boot": n_boot,
            "n_random": n_random,
        },
    )


def _ablation(name: AblationName, setup: Setup) -> Ablation:
    from crosspatch.attribution.ablation import resolve_ablation

    return resolve_ablation(name, setup)
