"""Exact evaluation of circuits on held-out pairs, in both directions, against random circuits and control models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from crosspatch.circuits import evaluation
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.evaluation import CircuitEvaluation
from crosspatch.circuits.gates import accuracy_gate, control_gate, examples_gate, gap_gate
from crosspatch.circuits.judge import Judge, Progress, held_out_pairs, searched_on
from crosspatch.circuits.random import random_like
from crosspatch.errors import CircuitError
from crosspatch.tasks.findings import GateFinding

if TYPE_CHECKING:
    from crosspatch.attribution.ablation import Ablation, AblationName
    from crosspatch.attribution.setup import Setup

TRANSFERABLE = ("paired", "mean", "mean-all", "zero")
"""Ablations that can be made anew for a control model."""


def evaluate(
    setup: Setup,
    circuits: Circuit | Sequence[Circuit],
    *,
    ablation: AblationName | Ablation = "paired",
    held_out: float = 0.5,
    seed: int = 0,
    n_random: int = 50,
    n_boot: int = 2000,
    n_controls: int = 1,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> CircuitEvaluation:
    """Judge circuits: sufficiency and necessity per pair, with intervals, random circuits, controls and gates.

    >>> search, _ = setup.split(0.5, seed=0)                 # doctest: +SKIP
    >>> found = ...                                          # doctest: +SKIP
    >>> print(evaluate(setup, found, held_out=0.5, seed=0))  # doctest: +SKIP

    The gates do not raise; they fail in the result, and `CircuitEvaluation.require()` raises. `gap`: the whole model
    clearly beats the model with everything cut. `accuracy`: it prefers the right answer. `examples`: there are enough
    pairs. `control`: a model with permuted weights shows no such gap. `held-out`: pairs are judged that were not
    searched on.

    Args:
        setup: all pairs; a part of them is judged, see `held_out`.
        circuits: one or several.
        ablation: what stands in for the sender of a cut edge. Means are taken over the corrupt prompts of all pairs.
        held_out: judge on `setup.split(held_out, seed)[1]`; search on the other part. 0 judges on all pairs, and the
            result says so.
        seed: of the split, the random circuits, the resamples and the control models.
        n_random: random circuits for each circuit; with 50 the smallest p-value is 1/51.
        n_boot: resamples of pairs.
        n_controls: models with permuted weights; each costs a copy of the model, and two runs per circuit and two more.
        budget_mib, progress: see `run_masks`.

    Raises:
        CircuitError: no circuit, or one of another model.
    """
    from crosspatch.attribution.ablation import resolve_ablation

    listed = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not listed:
        raise CircuitError("no circuit was given", where="evaluate", fix="give one or several")
    chosen = resolve_ablation(ablation, setup)
    judged, told = held_out_pairs(setup, held_out, seed)
    judge = Judge(judged, chosen, budget_mib=budget_mib, progress=progress)
    random = [random_like(circuit, n_random, seed=seed) for circuit in listed]
    every = [circuit for several in (listed, *random) for circuit in several]
    clean, empty, *_ = values = judge.values([judge.full, judge.empty, *every])
    kept, cut = values[2:], judge.without(every)
    n, drawn = len(listed), (len(listed), n_random, len(judged))
    controls = [
        _control(setup, held_out, chosen, listed, seed, i, budget_mib)
        for i in range(n_controls if chosen.name in TRANSFERABLE else 0)
    ]
    control = np.array(controls).reshape(len(controls), 2 + 2 * n, len(judged))
    control_clean, control_empty = control[:, 0], control[:, 1]
    control_kept, control_cut = control[:, 2 : 2 + n], control[:, 2 + n :]
    sampler, better = judge.sampler(n_boot, seed), judged.metric.better
    moved = (control_kept - control_empty[:, None]).mean(-1)
    findings = [
        gap_gate(clean - empty, sampler, better),
        *accuracy_gate(judged),
        examples_gate(len(judged), len(set(judged.clusters))),
        control_gate(clean - empty, control_clean - control_empty, moved, sampler, better)
        or GateFinding("control", "warning", "no control model was run"),
        searched_on(listed, judged.digests, held_out > 0),
    ]
    return CircuitEvaluation(
        circuits=listed,
        pairs=judged.digests,
        clusters=list(judged.clusters),
        clean=clean,
        empty=empty,
        kept=kept[:n],
        cut=cut[:n],
        random_kept=kept[n:].reshape(drawn),
        random_cut=cut[n:].reshape(drawn),
        random_edges=np.array([[c.n_edges for c in several] for several in random], dtype=np.int64).reshape(drawn[:2]),
        control_clean=control_clean,
        control_empty=control_empty,
        control_kept=control_kept,
        control_cut=control_cut,
        findings=findings,
        methodology=judge.methodology(
            pairs=told,
            held_out=held_out,
            seed=seed,
            n_boot=n_boot,
            n_random=n_random,
            n_controls=len(controls),
            random_circuits="unions of random walks from the logits, of the same number of edges",
            thresholds={name: getattr(evaluation, name) for name in ("SUFFICIENT", "NECESSARY", "FAITHFUL", "ALPHA")},
            runs=judge.n_runs,
        ),
    )


def _control(
    setup: Setup,
    held_out: float,
    ablation: Ablation,
    circuits: list[Circuit],
    seed: int,
    number: int,
    budget_mib: float | None,
) -> Float[np.ndarray, "value example"]:
    """Whole model, everything cut, circuits kept, circuits cut, on a model with permuted weights."""
    from crosspatch.attribution.ablation import resolve_ablation
    from crosspatch.circuits.control import on_model, random_weights

    permuted = on_model(setup, random_weights(setup.model, seed + number))
    again = resolve_ablation(ablation.name, permuted)  # type: ignore[arg-type]
    judge = Judge(held_out_pairs(permuted, held_out, seed)[0], again, budget_mib=budget_mib)
    return np.concatenate([judge.values([judge.full, judge.empty, *circuits]), judge.without(circuits)])
