"""Per-pair numbers of path sets: dissimilarity to the reference run, and the signed quantity behind it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.errors import PathError
from crosspatch.model import Model
from crosspatch.paths.compile import Plan
from crosspatch.paths.dissimilarity import Dissimilarity, Reads, require_nonnegative
from crosspatch.paths.evaluate import PathReadout, Progress, evaluate
from crosspatch.paths.norms import Norms
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import Decohered, PathSet

Mask = Sequence[Sequence[bool]]
"""For every pair and read, whether it counts."""


@dataclass(frozen=True)
class Measured:
    """Numbers of path sets on pairs, averaged over the reads of a pair that count (NaN where none does).

    Attributes:
        apart: dissimilarity to the reference run.
        signed: the signed quantity under each set.
        counter_apart, counter_signed, reference_signed: the same of the plain runs.
        signed_reads: the signed quantity at every read of every pair, `[set][pair]`; the reference's is in
            `reference_reads`.
        plan: what was computed.
    """

    apart: Float[np.ndarray, "set pair"]
    signed: Float[np.ndarray, "set pair"]
    counter_apart: Float[np.ndarray, " pair"]
    counter_signed: Float[np.ndarray, " pair"]
    reference_signed: Float[np.ndarray, " pair"]
    signed_reads: list[list[Float[np.ndarray, " read"]]]
    reference_reads: list[Float[np.ndarray, " read"]]
    plan: Plan


def measure(
    model: Model,
    sets: Sequence[PathSet | Decohered],
    pairs: Pairs,
    dissimilarity: Dissimilarity,
    *,
    mask: Mask | None = None,
    norms: Norms = "recomputed",
    anew: Collection[int] = (),
    budget_mib: float | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> Measured:
    """Evaluate path sets and compare each with the reference run, read by read.

    Raises:
        MetricError: a signed dissimilarity, or pairs that lack what it needs.
        PathError, AddressError: see `evaluate`.
    """
    counts = _mask(mask, pairs)
    n, wanted = len(pairs), [*range(len(sets)), -1, -2]
    apart = {number: np.full(n, np.nan) for number in wanted}
    signed = {number: np.full(n, np.nan) for number in wanted}
    reads_of: dict[int, list[np.ndarray]] = {number: [np.empty(0)] * n for number in wanted}
    reference: dict[tuple[int, ...], Tensor] = {}

    columns = _answers(pairs) if dissimilarity.answers_only else None

    def on_read(readout: PathReadout) -> None:
        logits = model.unembed(readout.hidden, columns)
        if readout.number == -1:
            reference.clear()
            reference[tuple(readout.pairs)] = logits
        base = reference[tuple(readout.pairs)]
        reads = _reads(pairs, readout.pairs, logits.device, columns)
        far = require_nonnegative(dissimilarity.compare(base, logits, reads), dissimilarity.name).cpu().numpy()
        value = dissimilarity.signed_or_nan(logits, reads).cpu().numpy()
        at = 0
        for pair in readout.pairs:
            some = slice(at, at + len(pairs.read[pair]))
            at = some.stop
            reads_of[readout.number][pair] = value[some]
            if counts[pair].any():
                apart[readout.number][pair] = far[some][counts[pair]].mean()
                signed[readout.number][pair] = value[some][counts[pair]].mean()

    plan = evaluate(
        model, sets, pairs, on_read, norms=norms, anew=anew, budget_mib=budget_mib, progress=progress, on_plan=on_plan
    )
    numbers = range(len(sets))
    return Measured(
        np.array([apart[i] for i in numbers]).reshape(len(sets), n),
        np.array([signed[i] for i in numbers]).reshape(len(sets), n),
        apart[-2],
        signed[-2],
        signed[-1],
        [reads_of[i] for i in numbers],
        reads_of[-1],
        plan,
    )


def _mask(mask: Mask | None, pairs: Pairs) -> list[np.ndarray]:
    if mask is None:
        return [np.ones(len(read), dtype=bool) for read in pairs.read]
    if len(mask) != len(pairs) or any(len(m) != len(read) for m, read in zip(mask, pairs.read, strict=True)):
        raise PathError(
            "the mask does not fit the pairs", where="mask", fix="give one list per pair with one bool per read"
        )
    rows = [np.asarray(row, dtype=bool) for row in mask]
    if not any(row.any() for row in rows):
        raise PathError("the mask leaves nothing to compare", where="mask", fix="let one read count at least")
    return rows


def _answers(pairs: Pairs) -> list[int]:
    return sorted({token for side in (pairs.answers, pairs.wrong) for row in side for token in row}) or [0]


def _reads(pairs: Pairs, chosen: Sequence[int], device: torch.device, columns: Sequence[int] | None) -> Reads:
    """Targets and answers, once per read; numbers of columns where only some are there."""
    place = None if columns is None else {token: i for i, token in enumerate(columns)}
    rows = [pair for pair in chosen for _ in pairs.read[pair]]
    target = [token if place is None else -1 for pair in chosen for token in pairs.targets[pair]]
    answers, wrong = (_padded(side, rows, place, device) for side in (pairs.answers, pairs.wrong))
    return Reads(torch.tensor(target, device=device), answers, wrong)


def _padded(
    tokens: Sequence[Sequence[int]], rows: Sequence[int], place: dict[int, int] | None, device: torch.device
) -> Tensor:
    width = max([1, *(len(tokens[row]) for row in rows)])
    listed = [[token if place is None else place[token] for token in tokens[row]] for row in rows]
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in listed], device=device)
