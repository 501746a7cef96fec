"""The bench that circuits are judged on: pairs, what replaces cut edges, and values of masks, each run once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.errors import CircuitError
from crosspatch.graph import ALL
from crosspatch.results.methodology import versions
from crosspatch.results.statistics import Resampler, resampler
from crosspatch.tasks.findings import GateFinding

if TYPE_CHECKING:
    from crosspatch.attribution.ablation import Ablation, AblationName
    from crosspatch.attribution.setup import Setup

Progress = Callable[[float, float], None]


class Judge:
    """Runs circuits on the pairs of a setup and remembers what each gave.

    Attributes:
        setup: the pairs.
        ablation: what stands in for the sender of a cut edge.
        n_runs: masks that were run so far; the cost.
    """

    def __init__(
        self,
        setup: Setup,
        ablation: AblationName | Ablation = "paired",
        *,
        budget_mib: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        from crosspatch.attribution.ablation import resolve_ablation

        self.setup = setup
        self.ablation = resolve_ablation(ablation, setup)
        self.n_runs = 0
        self._options: dict[str, Any] = {"progress": progress}
        if budget_mib is not None:
            self._options["budget_mib"] = budget_mib
        self._known: dict[tuple[bool, tuple[str, ...], str], Float[np.ndarray, " example"]] = {}
        self._divided: dict[tuple[str, ...], tuple[Setup, tuple[str, ...], np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.setup)

    @property
    def full(self) -> Circuit:
        return Circuit.full(self.setup.model.shape, name="whole model")

    @property
    def empty(self) -> Circuit:
        return Circuit.empty(self.setup.model.shape, name="nothing")

    def values(self, circuits: Sequence[Circuit]) -> Float[np.ndarray, "circuit example"]:
        """The metric of every pair when only the circuit's edges carry what their senders write now: sufficiency.

        Equal circuits are run once, and nothing is run twice in the life of a judge.

        Raises:
            CircuitError: a circuit of another model, or one that cannot be run.
        """
        self._fits(circuits)
        return self._run([(c.keep, c.spans) for c in circuits], self.setup)

    def without(self, circuits: Sequence[Circuit]) -> Float[np.ndarray, "circuit example"]:
        """The metric of every pair when the circuit is cut and everything else is whole: necessity.

        For a circuit that is kept by span the rest includes all edges at tokens of no span of it.

        Raises:
            CircuitError: as `values`.
        """
        self._fits(circuits)
        found = np.empty((len(circuits), len(self)))
        for spans in dict.fromkeys(c.spans for c in circuits):
            at = [i for i, c in enumerate(circuits) if c.spans == spans]
            setup, names, covers = self._atoms(spans) if spans else (self.setup, (), None)
            masks = []
            for i in at:
                kept = circuits[i].keep
                if covers is not None:
                    kept = kept.astype(np.uint8) @ covers.astype(np.uint8) > 0
                exists = circuits[i].table.exists
                masks.append(((exists[..., None] if spans else exists) & ~kept, names))
            found[at] = self._run(masks, setup)
        return found

    def _run(
        self, masks: Sequence[tuple[np.ndarray, tuple[str, ...]]], setup: Setup
    ) -> Float[np.ndarray, "mask example"]:
        from crosspatch.circuits.masked import run_masks

        own = setup is self.setup  # names of atoms are no names of spans
        keys = [(own, spans, hashlib.sha256(np.packbits(keep).tobytes()).hexdigest()) for keep, spans in masks]
        new = {key: keep for key, (keep, _) in zip(keys, masks, strict=True) if key not in self._known}
        for spans in dict.fromkeys(spans for _, spans, _ in new):
            several = {key: keep for key, keep in new.items() if key[1] == spans}
            found = run_masks(setup, list(several.values()), self.ablation, spans=spans, **self._options)
            self._known.update(zip(several, found, strict=True))
        self.n_runs += len(new)
        return np.array([self._known[key] for key in keys]).reshape(len(masks), len(self))

    def _atoms(self, spans: tuple[str, ...]) -> tuple[Setup, tuple[str, ...], Bool[np.ndarray, "span atom"]]:
        """The pairs with spans of their own that divide every prompt: tokens of one are in the same of `spans`.

        Returns:
            the pairs; names of these spans; which of `spans` cover each.
        """
        if spans not in self._divided:
            covers: dict[str, tuple[bool, ...]] = {}
            prompts = []
            for i, ids in enumerate(self.setup.clean):
                limits = [(0, len(ids)) if name == ALL else self.setup.spans[i][name] for name in spans]
                ends = sorted({0, len(ids), *(end for limit in limits for end in limit)})
                found, seen = {}, Counter[tuple[bool, ...]]()
                for low, high in pairwise(ends):
                    inside = tuple(a <= low and high <= b for a, b in limits)
                    name = "".join("01"[x] for x in inside) + f"-{seen[inside]}"
                    seen[inside] += 1
                    found[name], covers[name] = (low, high), inside
                prompts.append(found)
            named = [{name: found.get(name, (0, 0)) for name in covers} for found in prompts]
            made = replace(self.setup, spans=named)
            self._divided[spans] = (made, tuple(covers), np.array(list(covers.values()), dtype=bool).T)
        return self._divided[spans]

    def sampler(self, n_boot: int, seed: int) -> Resampler:
        """Resamples of the pairs, in clusters; the same whatever the order of the pairs within a cluster."""
        return resampler(len(self), self.setup.clusters, draws=n_boot, seed=seed)

    def _fits(self, circuits: Sequence[Circuit]) -> None:
        for circuit in circuits:
            name = circuit.name or "Circuit"
            if circuit.shape != self.setup.model.shape:
                raise CircuitError(f"a circuit of another model: {circuit.shape}", where=name, fix="use this model's")
            if circuit.neurons:
                raise CircuitError("kept by neuron, which is not run", where=name, fix="use circuit.with_(neurons={})")
            missing = [span for span in circuit.spans if span != ALL and any(span not in s for s in self.setup.spans)]
            if missing:
                what = f"the pairs have no span {missing[0]!r}"
                raise CircuitError(what, where=name, fix="use a task with this span, or circuit.any_span()")

    def methodology(self, **more: Any) -> dict[str, Any]:
        """What the numbers depend on, as JSON values."""
        model = self.setup.model
        return {
            **self.setup.provenance,
            "metric": self.setup.metric.name,
            "better": self.setup.metric.better,
            "ablation": self.ablation.name,
            "granularity": "edges",
            "model": model.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "n_pairs": len(self),
            "versions": versions(),
            **more,
        }


def held_out_pairs(setup: Setup, held_out: float, seed: int) -> tuple[Setup, str]:
    """The pairs to judge on, and what to say about them.

    `held_out` > 0: that share of the pairs, `setup.split(held_out, seed)[1]`; the circuit should have been searched for
    on `setup.split(held_out, seed)[0]`. 0: all pairs.

    They come in an order of their own, so that nothing drawn at random depends on the order of the task's pairs.

    Raises:
        CircuitError: not a share.
    """
    if not 0 <= held_out < 1:
        raise CircuitError(f"held_out={held_out}", where="held_out", fix="give a share from 0 to below 1")
    judged = setup.split(held_out, seed)[1] if held_out else setup
    judged = judged.select(sorted(range(len(judged)), key=judged.digests.__getitem__))
    told = f"held out: {held_out:g} of the pairs, seed {seed}" if held_out else "all pairs, those searched on included"
    return judged, told


def searched_on(circuits: Sequence[Circuit], judged: Sequence[str], held_out: bool = True) -> GateFinding:
    """Whether circuits were searched for on pairs that they are judged on, as far as their origins tell (`pairs`).

    Args:
        judged: digests of the judged pairs.
        held_out: whether the judged pairs were split off.
    """
    told = [found for found in (_pairs_of(dict(circuit.origin)) for circuit in circuits) if found]
    seen = tuple(i for i, digest in enumerate(judged) if any(digest in pairs for pairs in told))
    fix = "search on setup.split(held_out, seed)[0], and evaluate with the same held_out and seed"
    if seen:
        what = f"{len(seen)} of {len(judged)} judged pairs were used to find a circuit: its scores are optimistic"
        return GateFinding("held-out", "warning", what, seen, fix=fix)
    if len(told) == len(circuits):
        return GateFinding("held-out", "info", "no judged pair was used to find the circuits")
    what = f"{len(circuits) - len(told)} of {len(circuits)} circuits do not say on which pairs they were found"
    if held_out:
        return GateFinding("held-out", "info", f"{what}; that they are others than those judged is taken on trust")
    return GateFinding(
        "held-out", "warning", f"{what}, and all pairs are judged: the scores may be optimistic", fix=fix
    )


def _pairs_of(origin: Any) -> set[str]:
    """All digests under `pairs` in an origin; the origin of a union holds those of its parts."""
    if isinstance(origin, list):
        return {digest for part in origin for digest in _pairs_of(part)}
    if not isinstance(origin, dict):
        return set()
    own = origin.get("pairs")
    found = set(map(str, own)) if isinstance(own, list) else set()
    return found | {digest for key, part in origin.items() if key != "pairs" for digest in _pairs_of(part)}
