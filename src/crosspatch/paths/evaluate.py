"""G_H(x_r, x_c): what the model would say if important paths carried the reference and all others the counterfactual.

Goldowsky-Dill et al. 2023 (arXiv 2304.05969), section 2, on real models: exact, without building the treeified network.
`paths.compile` says which copies of nodes there are; here they are computed layer by layer, those of a layer stacked.
Every reader applies its norm to its own mixed input; `norms="frozen"` holds the norm's scale (`paths.norms`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.errors import PathError
from crosspatch.model import Model, record
from crosspatch.paths.automaton import COUNTER, REFERENCE, vocabulary
from crosspatch.paths.compile import Plan, compile_paths
from crosspatch.paths.forward import Forward
from crosspatch.paths.norms import Norms, require_norms
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import Decohered, PathSet
from crosspatch.paths.places import find_atoms, first_difference, kind_tensor
from crosspatch.paths.readers import Readers

MIB = 2**20
BUDGET_MIB = 512.0
"""Memory for one chunk of pairs: copies of nodes and residual streams."""

Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class PathReadout:
    """Final-norm outputs at the read positions of some pairs under one path set.

    Attributes:
        number: of the path set; -1 is the reference run and -2 the counterfactual run, which come first.
        pairs: the pairs, in order.
        hidden: their reads, pair after pair, for `Model.unembed`.
    """

    number: int
    pairs: list[int]
    hidden: Float[Tensor, "read d_model"]


@torch.no_grad()
def evaluate(
    model: Model,
    sets: Sequence[PathSet | Decohered],
    pairs: Pairs,
    on_read: Callable[[PathReadout], None],
    *,
    norms: Norms = "recomputed",
    anew: Collection[int] = (),
    skip: Collection[int] = (),
    budget_mib: float | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> Plan:
    """Evaluate path sets on pairs.

    Args:
        sets: any number of them; copies of nodes that several need are computed once.
        on_read: receives, chunk by chunk, the reference run, the counterfactual run, and every path set.
        norms: "recomputed" on each mixed input, or "frozen" at the scale of the reference run (`paths.norms`).
        anew: see `compile_paths`.
        skip: pairs to leave out. The others stay in the chunks that they have without it, so that where whole chunks
            are skipped (as one run finished them, with the same memory) the numbers of the others are the same, bit
            for bit.
        budget_mib: memory for one chunk.
        progress: called with (pairs done, pairs in all); pairs to skip are done at the start.
        on_plan: receives what will be computed, before it is.

    Returns:
        what was computed.

    Raises:
        PathError: a set that does not fit the model; no pairs.
        AddressError: a position that a prompt lacks.
        ModelError: frozen norms in a model whose norms are of another form.
    """
    model.require_eval()
    plan, kinds = make_plan(model, sets, pairs, anew, norms)
    if on_plan is not None:
        on_plan(plan)
    readers = Readers(plan, model)
    groups = max((len(one.groups) for one in sets if isinstance(one, Decohered)), default=0)
    keys = [readers.keys(run) for run in (REFERENCE, *(COUNTER - i for i in range(1 + groups)))]
    sides = [pairs.reference, pairs.counterfactual, *pairs.others[:groups]]
    skipped = set(skip)
    done = len(skipped)
    if done and progress is not None:
        progress(done, len(pairs))
    for whole in _chunks(readers, sum(map(len, keys)), sides, pairs.read, budget_mib or BUDGET_MIB):
        chunk = [i for i in whole if i not in skipped]
        if not chunk:
            continue
        tokens = [[side[i] for i in chunk] for side in sides]
        read = [pairs.read[i] for i in chunk]
        reference = record(model, tokens[0], read=read, keys=keys[0])
        first = first_difference(tokens) if model.shape.causal and plan.streams else 0
        counters = [
            record(model, ids, read=read, keys=wanted, prefix=reference, begin=first)
            for ids, wanted in zip(tokens[1:], keys[1:], strict=True)
        ]
        on_read(PathReadout(-1, chunk, reference.hidden))
        on_read(PathReadout(-2, chunk, counters[0].hidden))
        forward = Forward(readers, reference, counters, kind_tensor([kinds[i] for i in chunk]))
        for number, hidden in enumerate(forward.run()):
            on_read(PathReadout(number, chunk, hidden))
        done += len(chunk)
        if progress is not None:
            progress(done, len(pairs))
    return plan


def make_plan(
    model: Model,
    sets: Sequence[PathSet | Decohered],
    pairs: Pairs,
    anew: Collection[int] = (),
    norms: Norms = "recomputed",
) -> tuple[Plan, list[list[int]]]:
    """What has to be computed, and the kind of position of every token; see `Plan.describe`.

    Raises:
        PathError: a set does not fit the model; no pairs.
    """
    if not len(pairs):
        raise PathError("no pairs were given", where="pairs", fix="give at least one")
    require_norms(norms)
    for one in sets:
        if isinstance(one, Decohered) and len(one.groups) > len(pairs.others):
            raise PathError(
                f"{len(one.groups)} groups need as many further counterfactuals; the pairs have {len(pairs.others)}",
                where="pairs",
                fix=f"use pairs.with_others({len(one.groups)})",
            )
    words = vocabulary(sets, model.shape)
    atoms, kinds = find_atoms(words, pairs)
    return replace(compile_paths(sets, words, atoms, anew), norms=norms), kinds


def _chunks(
    readers: Readers,
    n_keys: int,
    sides: Sequence[Sequence[Sequence[int]]],
    reads: Sequence[tuple[int, ...]],
    budget_mib: float,
) -> Iterator[list[int]]:
    """Pairs of equal length and equal reads, as many as the budget takes beside so many activations of plain runs."""
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for i, ids in enumerate(sides[0]):
        groups.setdefault((len(ids), reads[i]), []).append(i)
    shape = readers.plan.words.shape
    runs = (1 + n_keys) * max(shape.d_model, shape.d_head * shape.n_heads)
    for (length, read), members in groups.items():
        first = first_difference([[side[i] for i in members] for side in sides]) if shape.causal else 0
        numbers = readers.floats(length - first, len(read)) + length * runs
        most = max(1, int(budget_mib * MIB / (4 * numbers)))
        size = math.ceil(len(members) / math.ceil(len(members) / most))  # none of them much smaller than the others
        yield from (members[at : at + size] for at in range(0, len(members), size))
