"""From pairs to one circuit: rank the edges, then take the smallest circuit that is faithful on the pairs searched on.

The size is chosen on the pairs that were searched on and on no others, so that the pairs held out can judge it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.circuits import select
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.judge import Judge
from crosspatch.errors import CircuitError
from crosspatch.graph import edge_table

if TYPE_CHECKING:
    from crosspatch.attribution.ablation import Ablation, AblationName
    from crosspatch.attribution.scores import Scores
    from crosspatch.attribution.setup import Setup

Stage = Callable[[str, float, float], None]
"""Progress: (name of the stage, work done, work in all)."""
SEARCHES = ("acdc", "edge-pruning")
"""Methods that find a circuit themselves, and give no score per pair."""
TARGET = 0.9
_SMALLEST, _SIZES, _LARGEST = 4, 16, 0.5


@dataclass(frozen=True)
class Search:
    """What is asked for.

    Attributes:
        method: one of `EDGE_METHODS` ("eap-ig"), or "acdc" or "edge-pruning".
        steps, rule: of methods that integrate.
        spans: names of spans to keep apart; empty: a circuit at all tokens.
        selection: "path_aware", "top_n" or "greedy"; with spans it is always "top_n", pruned.
        absolute: rank by the size of the scores (a part that works against the behaviour belongs to its mechanism);
            False: the most positive first.
        sizes: numbers of edges to choose among; empty: many.
        target: the smallest size is taken at which the circuit is at most 1 - target of the gap from the whole model.
        threshold: of ACDC, as a share of the gap.
    """

    method: str = "eap-ig"
    steps: int = 5
    rule: str = "midpoint"
    spans: tuple[str, ...] = ()
    selection: select.Method = "path_aware"
    absolute: bool = True
    sizes: tuple[int, ...] = ()
    target: float = TARGET
    threshold: float = 0.003
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Found:
    """What a search gave.

    Attributes:
        circuit: the circuit; its origin says how it was found, and on which pairs.
        ranking: what edges were chosen by, `[edge]` or `[edge, span]`; NaN: not scored.
        scores: per pair, where the method has them.
        tried: one row per size: asked, edges, kept (share of the gap on the pairs searched on).
        reached: whether the target was reached.
    """

    circuit: Circuit
    ranking: Float[np.ndarray, "edge ..."]
    scores: Scores | None
    tried: pd.DataFrame
    reached: bool
    search: Search = field(default_factory=Search)

    def select(self, ranking: Float[np.ndarray, " edge"]) -> Circuit:
        """A circuit of the same size from other scores, in the same way: for `stability`."""
        return _selected(self.search, ranking, self.circuit, [self.circuit.any_span().n_edges], {})[0]

    def of_sizes(self, sizes: Sequence[int]) -> list[Circuit]:
        """Nested circuits of several sizes from the same ranking, in the same way: for `frontier`."""
        return _selected(self.search, self.ranking, self.circuit, sizes, dict(self.circuit.origin))


def find_circuit(
    setup: Setup,
    search: Search | None = None,
    *,
    ablation: AblationName | Ablation = "paired",
    budget_mib: float | None = None,
    progress: Stage | None = None,
) -> Found:
    """Find a circuit on these pairs; judge it on others with `evaluate`.

    >>> search, _ = setup.split(0.5, seed=0)                   # doctest: +SKIP
    >>> found = find_circuit(search)                           # doctest: +SKIP
    >>> evaluate(setup, found.circuit, held_out=0.5, seed=0)   # doctest: +SKIP

    Args:
        setup: the pairs to search on.
        search: method, selection and sizes.
        ablation: what cut edges carry, in the scores and in choosing the size.
        budget_mib, progress: see `attribute`; a stage is named in words.

    Raises:
        CircuitError: a size the model does not have, or a method that does not go with spans.
        MetricError, InterventionError, ResultError: see `attribute`, `acdc`, `learn_mask`.
    """
    from crosspatch.attribution.ablation import resolve_ablation
    from crosspatch.attribution.attribute import attribute

    asked = search or Search()
    bound = resolve_ablation(ablation, setup)
    tell = progress or _silent
    origin = setup.provenance | {"method": asked.method, "ablation": bound.name, "pairs": setup.digests}
    judge = Judge(setup, bound, budget_mib=budget_mib)
    if asked.method in SEARCHES:
        if asked.spans:
            fix = "use eap-ig, or leave the spans out"
            raise CircuitError(f"{asked.method} does not keep spans apart", where="find_circuit", fix=fix)
        return _searched(setup, asked, bound, origin, judge, budget_mib, tell)
    scores = attribute(
        setup,
        asked.method,
        ablation=bound,
        steps=asked.steps,
        rule=asked.rule,
        spans=asked.spans or None,
        budget_mib=budget_mib,
        progress=lambda done, of: tell("scores of edges", done, of),
    )
    origin |= {key: value for key, value in scores.origin.items() if key in ("steps", "rule")}
    ranking = scores.values.mean(0).T if asked.spans else scores.mean
    blank = Circuit.empty(setup.model.shape, spans=asked.spans)
    circuit, tried, reached = _smallest(asked, ranking, blank, judge, origin, tell)
    return Found(circuit, ranking, scores, tried, reached, asked)


def _searched(
    setup: Setup,
    asked: Search,
    bound: Ablation,
    origin: dict[str, Any],
    judge: Judge,
    budget_mib: float | None,
    tell: Stage,
) -> Found:
    """ACDC, or learned masks."""
    shape = setup.model.shape
    table, blank = edge_table(shape), Circuit.empty(shape)
    if asked.method == "edge-pruning":
        from crosspatch.circuits.learn import learn_mask

        share = max(asked.sizes, default=max(1, round(0.05 * len(table)))) / len(table)
        learned = learn_mask(
            setup, share, ablation=bound, seed=asked.seed, progress=lambda done, of: tell("learning a mask", done, of)
        )
        own = {key: value for key, value in learned.origin.items() if key not in origin}
        circuit, tried, reached = _smallest(asked, learned.keep, blank, judge, origin | own, tell)
        return Found(circuit, learned.keep, None, tried, reached, asked)
    from crosspatch.circuits.acdc import acdc

    whole, nothing = judge.values([judge.full, judge.empty]).mean(1)
    limit = asked.threshold * abs(float(whole - nothing))
    options: dict[str, Any] = {} if budget_mib is None else {"budget_mib": budget_mib}
    pruned = acdc(setup, limit, bound, progress=lambda done, of: tell("ACDC", done, of), **options)
    ranking = np.full(len(table), np.nan)
    ranking[pruned.edges] = pruned.change
    circuit = Circuit(shape, pruned.keep).pruned()
    kept = _kept(judge, [circuit])[0]
    selection = {"by": "acdc", "threshold": limit, "got": circuit.n_edges, "tests": len(pruned.edges)}
    circuit = circuit.with_(name=f"acdc {circuit.n_edges}", origin=origin | {"selection": selection})
    tried = pd.DataFrame([{"asked": circuit.n_edges, "edges": circuit.n_edges, "kept": kept}])
    return Found(circuit, ranking, None, tried, abs(kept - 1) <= 1 - asked.target + 1e-9, asked)


def _smallest(
    asked: Search, ranking: np.ndarray, blank: Circuit, judge: Judge, origin: dict[str, Any], tell: Stage
) -> tuple[Circuit, pd.DataFrame, bool]:
    """The smallest circuit near enough to the whole model; the nearest one where none is."""
    total = int(np.isfinite(ranking).sum())
    sizes = sorted(set(asked.sizes)) or _grid(total)
    rows: dict[int, tuple[Circuit, float]] = {}
    for turn in range(2):
        new = [n for n in sizes if n not in rows]
        made = _selected(asked, ranking, blank, new, origin)
        tell("choosing the size", turn, 2)
        rows |= {n: (c, share) for n, c, share in zip(new, made, _kept(judge, made), strict=True)}
        good = [n for n in sorted(rows) if abs(rows[n][1] - 1) <= 1 - asked.target + 1e-9]
        if asked.sizes or not good:
            break
        below = max((n for n in rows if n < good[0]), default=0)
        sizes = sorted({int(n) for n in np.linspace(below, good[0], 10)[1:-1] if below < n < good[0]})
    best = good[0] if good else min(sorted(rows), key=lambda n: abs(rows[n][1] - 1))
    tried = pd.DataFrame([{"asked": n, "edges": c.n_edges, "kept": kept} for n, (c, kept) in sorted(rows.items())])
    return rows[best][0], tried, bool(good)


def _grid(total: int) -> list[int]:
    largest = max(_SMALLEST, _LARGEST * total)
    return sorted({round(n) for n in np.geomspace(_SMALLEST, largest, _SIZES)})


def _kept(judge: Judge, circuits: Sequence[Circuit]) -> list[float]:
    """Share of the gap that each circuit keeps, a ratio of means."""
    whole, nothing, *values = judge.values([judge.full, judge.empty, *circuits]).mean(1)
    return [float((value - nothing) / (whole - nothing)) for value in values]


def _selected(
    asked: Search, ranking: np.ndarray, like: Circuit, sizes: Sequence[int], origin: Mapping[str, Any]
) -> list[Circuit]:
    """Circuits of some sizes."""
    if ranking.ndim == 1:
        return select.nested(ranking, like.shape, sizes, method=asked.selection, absolute=asked.absolute, origin=origin)
    return [_spanned(asked, ranking, like, n, origin) for n in sizes]


def _spanned(asked: Search, ranking: np.ndarray, like: Circuit, n: int, origin: Mapping[str, Any]) -> Circuit:
    """The best edges at their spans, as many as leave at most n after pruning."""
    values = np.abs(ranking) if asked.absolute else ranking
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf).ravel(), kind="stable")
    order = order[: int(np.isfinite(values).sum())]

    def of(first: int) -> Circuit:
        keep = np.zeros(ranking.size, dtype=bool)
        keep[order[:first]] = True
        return Circuit.from_mask(like.shape, keep.reshape(ranking.shape), spans=like.spans).pruned()

    low, high = 0, len(order)  # `of(low)` fits; what is kept only grows with its first edges
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of(middle).n_edges <= n else (low, middle)
    made = of(len(order)) if n >= len(order) else of(low)
    selection = {"by": "top_n", "asked": n, "chosen": low, "got": made.n_edges, "absolute": asked.absolute}
    return made.with_(name=f"top_n {n}", origin={**origin, "selection": selection})


def _silent(name: str, done: float, of: float) -> None:
    pass
