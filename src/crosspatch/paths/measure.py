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


OnPairs = Callable[[list[int], Float[np.ndarray, "run pair"], Float[np.ndarray, "run pair"]], None]
"""Receives pairs, their dissimilarities and their signed quantities; runs are all sets, then the counterfactual run and
the reference run."""


@dataclass(frozen=True)
class PairNumbers:
    """Numbers of path sets on pairs, averaged over the reads of a pair that count (NaN where none does).

    Attributes:
        apart: dissimilarity to the reference run.
        signed: the signed quantity under each set.
        counter_apart, counter_signed, reference_signed: the same of the plain runs.
        plan: what was computed.
    """

    apart: Float[np.ndarray, "set pair"]
    signed: Float[np.ndarray, "set pair"]
    counter_apart: Float[np.ndarray, " pair"]
    counter_signed: Float[np.ndarray, " pair"]
    reference_signed: Float[np.ndarray, " pair"]
    plan: Plan


@dataclass(frozen=True)
class Measured(PairNumbers):
    """The same, and the signed quantity at every read of every pair.

    Attributes:
        signed_reads: `[set][pair]`.
        reference_reads: of the reference run, `[pair]`.
    """

    signed_reads: list[list[Float[np.ndarray, " read"]]]
    reference_reads: list[Float[np.ndarray, " read"]]


def pair_numbers(
    apart: Float[np.ndarray, "run pair"], signed: Float[np.ndarray, "run pair"], plan: Plan
) -> PairNumbers:
    """From the numbers of all runs, in the order of `OnPairs`."""
    return PairNumbers(apart[:-2], signed[:-2], apart[-2], signed[-2], signed[-1], plan)


def measure(
    model: Model,
    sets: Sequence[PathSet | Decohered],
    pairs: Pairs,
    dissimilarity: Dissimilarity,
    *,
    mask: Mask | None = None,
    norms: Norms = "recomputed",
    anew: Collection[int] = (),
    skip: Collection[int] = (),
    budget_mib: float | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_pairs: OnPairs | None = None,
) -> Measured:
    """Evaluate path sets and compare each with the reference run, read by read.

    Args:
        skip: pairs that get no numbers (NaN, and no reads), see `evaluate`.
        on_pairs: called with pairs as soon as all their numbers are there.

    Raises:
        MetricError: a signed dissimilarity, or pairs that lack what it needs.
        PathError: an answer or target that the model has no logit of.
        PathError, AddressError: see `evaluate`.
    """
    _require_logits(pairs, model.shape.vocab)
    counts = require_mask(mask, pairs)
    n, runs = len(pairs), len(sets) + 2  # run -2 is the counterfactual one and -1 the reference one
    apart, signed = np.full((runs, n), np.nan), np.full((runs, n), np.nan)
    reads_of: list[list[np.ndarray]] = [[np.empty(0)] * n for _ in range(runs)]
    arrived = np.zeros(n, dtype=int)
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
                apart[readout.number, pair] = far[some][counts[pair]].mean()
                signed[readout.number, pair] = value[some][counts[pair]].mean()
        arrived[readout.pairs] += 1
        if on_pairs is not None and (arrived[readout.pairs] == runs).all():
            on_pairs(readout.pairs, apart[:, readout.pairs], signed[:, readout.pairs])

    plan = evaluate(
        model,
        sets,
        pairs,
        on_read,
        norms=norms,
        anew=anew,
        skip=skip,
        budget_mib=budget_mib,
        progress=progress,
        on_plan=on_plan,
    )
    numbers = pair_numbers(apart, signed, plan)
    return Measured(**vars(numbers), signed_reads=reads_of[:-2], reference_reads=reads_of[-1])


def require_mask(mask: Mask | None, pairs: Pairs) -> list[np.ndarray]:
    """For every pair, which of its reads count.

    Raises:
        PathError: a mask that does not fit, or that leaves nothing.
    """
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


def _require_logits(pairs: Pairs, n_logits: int) -> None:
    """Refuse pairs whose answers or targets (but -1, which is none) are no logits of this model."""
    for what, least, rows in (
        ("answer", 0, pairs.answers),
        ("wrong answer", 0, pairs.wrong),
        ("target", -1, pairs.targets),
    ):
        for i, row in enumerate(rows):
            for token in row:
                if not least <= token < n_logits:
                    raise PathError(
                        f"the {what} {token} is none of the model's {n_logits} logits",
                        where=f"pair {i}",
                        fix="make the pairs with this model's own tokenizer",
                    )


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
