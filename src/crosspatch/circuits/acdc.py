"""ACDC (Conmy et al. 2023, arXiv 2304.14997): cut edge after edge, from the output down, wherever it costs little.

Each edge is tested with all edges cut so far: it is cut for good if the metric gets worse by less than a threshold.
The numbers are those of that loop; the work is not. Nothing before the receiver in hand differs from the clean run
(`run_masks` computes what does), and the next removals of a receiver are evaluated together as if each were accepted:
up to the first that is not, they are what the loop would have evaluated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from crosspatch.attribution.ablation import Ablation, AblationName
from crosspatch.attribution.recorded import Recorded, record_pairs
from crosspatch.attribution.setup import Setup
from crosspatch.circuits.classes import live_edges
from crosspatch.circuits.masked import run_masks
from crosspatch.errors import CircuitError
from crosspatch.graph import EdgeTable, edge_table
from crosspatch.results.files import read_json, write_json

Progress = Callable[[float, float], None]
Change = Literal["worse", "absolute"]
Order = Literal["reverse", "forward"]
_MOST = 32  # removals that are evaluated together at most


@dataclass(frozen=True, eq=False)
class Pruned:
    """What ACDC found, and what it saw on the way.

    Attributes:
        keep: the circuit. An edge can be left whose receiver leads nowhere only if `threshold` is not above zero.
        edges: numbers of the edges in the order in which they were tested.
        change: for each of them what cutting it did to the mean metric, in the sense of the criterion.
        cut: whether it was cut.
        start, value: mean metric before the first test, and of the circuit.
        evaluations: masks that were run.
    """

    keep: Bool[np.ndarray, "sender receiver"]
    edges: Int[np.ndarray, " test"]
    change: Float[np.ndarray, " test"]
    cut: Bool[np.ndarray, " test"]
    start: float
    value: float
    evaluations: int


def acdc(
    setup: Setup,
    threshold: float,
    ablation: AblationName | Ablation = "paired",
    *,
    change: Change = "worse",
    order: Order | Float[np.ndarray, "sender receiver"] = "reverse",
    start: Bool[np.ndarray, "sender receiver"] | None = None,
    recorded: Recorded | None = None,
    checkpoint: str | Path | None = None,
    budget_mib: float = 512.0,
    progress: Progress | None = None,
) -> Pruned:
    """Find a circuit by cutting edges one by one.

    With the metric `kl` this is the paper's default: its metric is a distance, of which lower is better.

    Args:
        threshold: an edge is cut if the mean over pairs changes by less than this, in units of the metric, against the
            circuit that is left.
        ablation: what cut edges carry.
        change: `worse` counts a change for the worse as positive and one for the better as negative (the paper's
            criterion); `absolute` counts either as positive.
        order: of a receiver's senders: `reverse` tests the latest first (as the paper's code does), `forward` the
            earliest; a matrix of scores tests the smallest absolute score first. Receivers always come in reverse.
        start: edges to begin with; None = all. The others stay cut and are not tested.
        recorded: both plain runs of these very pairs (`record_pairs`), to save running them again.
        checkpoint: a file that keeps what was seen after every receiver; if it is there, the search goes on from it.
        budget_mib: memory for what is computed, beside the runs.
        progress: called with (edges done, edges in all).

    Raises:
        CircuitError: a mask or scores that do not fit the model, an unknown criterion or order, or a checkpoint of
            another search.
        InterventionError: see `resolve_ablation`.
    """
    table = edge_table(setup.model.shape)
    search = _Search(setup, table, ablation, change, recorded, budget_mib)
    ranks = _ranks(table, order)
    keep = _start(table, start)
    file = None if checkpoint is None else Path(checkpoint)
    about = _about(search, threshold, ranks, keep) if file is not None else {}
    done = _Log([], [], [])
    if file is not None and file.exists():
        done = _read(file, about, table)
    return search.run(threshold, ranks, keep, done, file, about, progress)


def acdc_scores(
    setup: Setup,
    thresholds: Sequence[float],
    ablation: AblationName | Ablation = "paired",
    *,
    change: Change = "worse",
    order: Order | Float[np.ndarray, "sender receiver"] = "reverse",
    budget_mib: float = 512.0,
    progress: Progress | None = None,
) -> Float[np.ndarray, "sender receiver"]:
    """For every edge the smallest of some thresholds at which ACDC cuts it; infinity where none does.

    A ranking of edges as Conmy et al. draw ROC curves from one: one search per threshold. Masks that several searches
    come by are run once. NaN where there is no edge. Arguments and errors as in `acdc`.
    """
    table = edge_table(setup.model.shape)
    search = _Search(setup, table, ablation, change, None, budget_mib)
    ranks, found = _ranks(table, order), np.where(table.exists, np.inf, np.nan)
    for i, threshold in enumerate(sorted(thresholds, reverse=True)):

        def report(done: float, of: float, i: int = i) -> None:
            if progress is not None:
                progress(i * of + done, len(thresholds) * of)

        pruned = search.run(threshold, ranks, table.exists.copy(), _Log([], [], []), None, {}, report)
        found[table.exists & ~pruned.keep] = threshold
    return found


@dataclass
class _Log:
    edges: list[int]
    change: list[float]
    cut: list[bool]


class _Search:
    """What searches on the same pairs share: the two plain runs, and masks that were run."""

    def __init__(
        self,
        setup: Setup,
        table: EdgeTable,
        ablation: AblationName | Ablation,
        change: str,
        recorded: Recorded | None,
        budget_mib: float,
    ) -> None:
        if change not in get_args(Change):
            raise CircuitError(
                f"unknown criterion {change!r}", where="change", fix=f"use one of {', '.join(get_args(Change))}"
            )
        self.setup, self.table, self.change, self.budget_mib = setup, table, change, budget_mib
        self.recorded = recorded if recorded is not None else record_pairs(setup, ablation)
        self.ablation = self.recorded.require(setup, self.recorded.ablation if recorded is None else ablation)
        self.sign = -1.0 if setup.metric.better == "higher" else 1.0
        self.known: dict[bytes, float] = {}
        self.evaluations = 0

    def values(self, masks: Sequence[np.ndarray]) -> list[float]:
        """Mean metrics of masks."""
        keys = [hashlib.sha256(np.packbits(mask).tobytes()).digest() for mask in masks]
        new = {key: mask for key, mask in zip(keys, masks, strict=True) if key not in self.known}
        if new:
            found = run_masks(
                self.setup, list(new.values()), self.ablation, recorded=self.recorded, budget_mib=self.budget_mib
            )
            self.known |= dict(zip(new, found.mean(1).tolist(), strict=True))
            self.evaluations += len(new)
        return [self.known[key] for key in keys]

    def costs(self, before: float, after: float) -> float:
        """What a removal costs, by the criterion."""
        difference = self.sign * (after - before)
        return abs(difference) if self.change == "absolute" else difference

    def run(
        self,
        threshold: float,
        ranks: Float[np.ndarray, "sender receiver"],
        keep: Bool[np.ndarray, "sender receiver"],
        log: _Log,
        file: Path | None,
        about: dict[str, Any],
        progress: Progress | None,
    ) -> Pruned:
        table, before = self.table, self.evaluations
        start = value = self.values([keep])[0]
        total = int(keep.sum())
        finished = set(log.edges)
        for edge, cut in zip(log.edges, log.cut, strict=True):
            if cut:
                keep[_ends(table, edge)] = False
        if any(log.cut):
            value = self.values([keep])[0]
        batch = 4
        for receiver in range(len(table.receivers))[::-1]:
            senders = keep[:, receiver].nonzero()[0]
            waiting = senders[np.argsort(ranks[senders, receiver], kind="stable")].tolist()
            waiting = [u for u in waiting if table.number(u, receiver) not in finished]
            if not waiting:
                continue
            if not live_edges(table, [keep])[0, 0, :, receiver].any():  # no change reaches the logits
                for sender in waiting:
                    self._note(log, keep, sender, receiver, 0.0, threshold)
                waiting = []
            while waiting:
                chunk, masks = waiting[:batch], []
                for end in range(len(chunk)):
                    mask = keep.copy()
                    mask[chunk[: end + 1], receiver] = False
                    masks.append(mask)
                taken = 0
                for sender, after in zip(chunk, self.values(masks), strict=True):
                    taken += 1
                    if not self._note(log, keep, sender, receiver, self.costs(value, after), threshold):
                        break
                    value = after
                accepted = taken == len(chunk) and log.cut[-1]
                batch = min(_MOST, 2 * batch) if accepted else max(2, taken)
                waiting = waiting[taken:]
            if file is not None:
                write_json(file, {**about, "edges": log.edges, "change": log.change, "cut": log.cut})
            if progress is not None:
                progress(len(log.edges), total)
        arrays = (np.array(log.edges, dtype=int), np.array(log.change), np.array(log.cut, dtype=bool))
        return Pruned(keep, *arrays, start, value, self.evaluations - before)

    def _note(self, log: _Log, keep: np.ndarray, sender: int, receiver: int, change: float, threshold: float) -> bool:
        """Decide about one edge."""
        cut = change < threshold
        keep[sender, receiver] &= not cut
        log.edges.append(self.table.number(sender, receiver))
        log.change.append(change)
        log.cut.append(cut)
        return cut


def _ends(table: EdgeTable, edge: int) -> tuple[int, int]:
    ends = np.cumsum(table.reach)
    receiver = int(np.searchsorted(ends, edge, side="right"))
    return edge - int(ends[receiver] - table.reach[receiver]), receiver


def _ranks(table: EdgeTable, order: Order | np.ndarray) -> Float[np.ndarray, "sender receiver"]:
    """What a receiver's senders are sorted by."""
    if isinstance(order, str):
        if order not in get_args(Order):
            raise CircuitError(
                f"unknown order {order!r}", where="order", fix="use reverse, forward, or a matrix of scores"
            )
        numbers = np.arange(len(table.senders), dtype=float)[:, None]
        return np.broadcast_to(-numbers if order == "reverse" else numbers, table.exists.shape)
    scores = np.abs(np.asarray(order, dtype=float))
    if scores.shape != table.exists.shape or np.isnan(scores[table.exists]).any():
        raise CircuitError(
            f"scores of shape {scores.shape}{' with gaps' if scores.shape == table.exists.shape else ''}",
            where="order",
            fix=f"give one number for every edge, in a matrix of shape {table.exists.shape}",
        )
    return scores


def _start(table: EdgeTable, start: np.ndarray | None) -> Bool[np.ndarray, "sender receiver"]:
    if start is None:
        return table.exists.copy()
    mask = np.asarray(start, dtype=bool)
    if mask.shape != table.exists.shape:
        raise CircuitError(
            f"a mask of shape {mask.shape}", where="start", fix=f"this model's have shape {table.exists.shape}"
        )
    return mask & table.exists


# -- checkpoints -------------------------------------------------------------------------------------------------------


def _about(search: _Search, threshold: float, ranks: np.ndarray, keep: np.ndarray) -> dict[str, Any]:
    """What a search depends on. The weights are told by the metric that it starts from."""
    setup = search.setup
    prompts = json.dumps([setup.clean, setup.corrupt, setup.read, setup.partner])
    hashed = hashlib.sha256(prompts.encode())
    for array in (np.ascontiguousarray(ranks), np.packbits(keep)):
        hashed.update(array.tobytes())
    return {
        "format": "crosspatch-acdc",
        "version": 1,
        "search": hashed.hexdigest(),
        "shape": str(setup.model.shape),
        "metric": setup.metric.name,
        "ablation": search.recorded.ablation.name,
        "criterion": search.change,
        "threshold": threshold,
        "start": search.values([keep])[0],
    }


def _read(file: Path, about: dict[str, Any], table: EdgeTable) -> _Log:
    found = read_json(file)
    differing = [
        name
        for name, value in about.items()
        if not (_near(found.get(name), value) if name == "start" else found.get(name) == value)
    ]
    if differing:
        raise CircuitError(
            f"this file was written by another search ({', '.join(differing)} differ)",
            where=str(file),
            fix="use another file, or delete this one to start anew",
        )
    log = _Log([], [], [])
    for edge, change, cut in _entries(found, file):
        known = type(edge) is int and 0 <= edge < len(table) and edge not in log.edges
        if not (known and isinstance(change, int | float) and type(cut) is bool):
            raise CircuitError(f"test {len(log.edges)} cannot be read", where=str(file), fix="delete it to start anew")
        log.edges.append(edge)
        log.change.append(float(change))
        log.cut.append(cut)
    return log


def _entries(found: dict[str, Any], file: Path) -> Iterator[tuple[Any, Any, Any]]:
    lists = [found.get(name) for name in ("edges", "change", "cut")]
    if not all(isinstance(each, list) for each in lists) or len({len(each) for each in lists if each is not None}) > 1:
        raise CircuitError("the lists of tests are damaged", where=str(file), fix="delete it to start anew")
    yield from zip(*lists, strict=True)


def _near(found: object, value: float) -> bool:
    return isinstance(found, int | float) and abs(found - value) <= 1e-4 * max(1.0, abs(value))
