"""Exact evaluation of circuits: what the metric is when only some edges carry what their sender writes now.

What receiver v finds is the sum, over the senders of kept edges, of what they write in this very pass, and over those
of cut edges of their replacements; norms see that sum (Conmy et al. 2023, arXiv 2304.14997; Miller, Chughtai & Saunders
2024). Biases belong to no node and stay. `classes` finds what has to be computed, `sums` how streams are put together;
`streams` and `forward` do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosspatch.attribution.ablation import Ablation, AblationName, resolve_ablation
from crosspatch.attribution.recorded import Recorded, Tokens, pack_tokens, record_pairs, replaced_by_a_run
from crosspatch.attribution.setup import Setup
from crosspatch.circuits.classes import CLEAN, CUT, HeadCopy, find_classes, live_edges
from crosspatch.circuits.forward import Forward
from crosspatch.circuits.streams import MIB
from crosspatch.circuits.sums import WIDE, Sums
from crosspatch.errors import CircuitError
from crosspatch.graph import ALL, ModelShape, edge_table

Progress = Callable[[float, float], None]
TOKENS = 512
"""Fewer tokens at once make matrix products slow; masks are computed in parts before pairs are."""


@torch.no_grad()
def run_masks(
    setup: Setup,
    masks: Sequence[Bool[np.ndarray, "sender receiver *span"]],
    ablation: AblationName | Ablation = "paired",
    *,
    spans: Sequence[str] = (),
    recorded: Recorded | None = None,
    budget_mib: float = 512.0,
    progress: Progress | None = None,
) -> Float[np.ndarray, "mask example"]:
    """The metric on every pair under every mask, exactly.

    With every edge kept it is that of the clean run, and with every edge cut that of the run in which everything is
    replaced (the corrupt run, with paired ablation), to the last bit. Work that masks have in common is done once, so
    that one call with many masks costs less than many calls.

    Args:
        masks: True where an edge is kept: its receiver reads what its sender writes now. Of the others it reads the
            sender's replacement. Entries that are no edge of the model do nothing.
        ablation: what replaces.
        spans: names of the last axis of masks that have one: an edge is kept at the tokens of a span (`"*"`: all).
            What the receiver reads there counts; at tokens of no span nothing is kept.
        recorded: both plain runs of these very pairs (`record_pairs`), to save running them again.
        budget_mib: memory for what is computed, beside `recorded`.
        progress: called with (work done, work in all).

    Returns:
        raw metric values.

    Raises:
        CircuitError: a mask that does not fit the model.
        InterventionError: see `resolve_ablation`; runs of other pairs.
    """
    chosen = resolve_ablation(ablation, setup) if recorded is None else recorded.require(setup, ablation)
    kinds, by_kind = _by_kind(setup, masks, spans)
    n_examples, out = len(setup), np.full((len(masks), len(setup)), np.nan)
    if not len(masks):
        return out
    works = _divided(setup, by_kind, replaced_by_a_run(setup, chosen), budget_mib)
    chunk = min(_pairs_at_once(setup, sums, budget_mib, recorded is None) for _, sums in works)
    done, memory = 0, dict[str, Tensor]()
    for examples in setup.chunks(chunk):
        runs = recorded if recorded is not None else record_pairs(setup, chosen, examples)
        local = examples if recorded is not None else range(len(examples))
        tokens = pack_tokens(runs, local)
        own = None if kinds is None else _kinds_of(tokens, examples if recorded is None else None, kinds)
        for numbers, sums in works:
            _evaluate(out, setup, numbers, examples, sums, tokens, own, budget_mib / 8, memory)
            done += len(numbers) * len(examples)
            if progress is not None:
                progress(done, len(masks) * n_examples)
    return out


def _evaluate(
    out: np.ndarray,
    setup: Setup,
    numbers: list[int],
    examples: Sequence[int],
    sums: Sums,
    tokens: Tokens,
    kinds: Tensor | None,
    tile_mib: float,
    memory: dict[str, Tensor],
) -> None:
    """Fill in the metric of some masks on some examples."""
    runs = tokens.recorded

    def plain(final: int) -> np.ndarray:
        run = runs.clean if final != CUT or runs.replaced is None else runs.replaced
        local = examples if runs.setup is setup else range(len(examples))
        hidden = [run.hidden[run.read_offset[i] : run.read_offset[i + 1]] for i in local]
        return _numbers(setup.measure(torch.cat(hidden), examples))

    known = {final: plain(final) for final in {*sums.classes.final} & {CUT, CLEAN}}
    for mask, final in enumerate(sums.classes.final):
        if final < 0:
            out[numbers[mask], examples] = known[final]
    if not tokens.groups:
        for mask in [mask for mask, final in enumerate(sums.classes.final) if final >= 0]:
            out[numbers[mask], examples] = plain(CLEAN)
        return
    computed = [runs.examples[pair] for pair in tokens.pairs]
    same = [i for i in examples if i not in set(computed)]
    for mask, tail in Forward(sums, tokens, kinds, tile_mib, memory).run():
        out[numbers[mask], computed] = _numbers(setup.measure(tokens.reads(tail), computed))
        if same:
            out[numbers[mask], same] = plain(CLEAN)[[list(examples).index(i) for i in same]]


def _numbers(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _by_kind(
    setup: Setup, masks: Sequence[np.ndarray], spans: Sequence[str]
) -> tuple[list[list[int]] | None, list[np.ndarray]]:
    """(kind of every token of every prompt, masks `[kind, sender, receiver]`): tokens in the same spans are alike."""
    table = edge_table(setup.model.shape)
    wanted = (*table.exists.shape, *((len(spans),) if spans else ()))
    arrays = [np.asarray(mask, dtype=bool) for mask in masks]
    wrong = next((mask.shape for mask in arrays if mask.shape != wanted), None)
    if wrong is not None:
        raise CircuitError(
            f"a mask of shape {wrong}, this model and these spans need {wanted}",
            where="masks",
            fix="[sender, receiver], and a last axis with one entry per name in spans=; see edge_table(model.shape)",
        )
    if not spans:
        return None, [mask[None] for mask in arrays]
    atoms: dict[tuple[bool, ...], int] = {}
    kinds = []
    for i, ids in enumerate(setup.clean):
        for name in spans:
            if name != ALL and name not in setup.spans[i]:
                raise CircuitError(
                    f"example {i} has no span {name!r}", where="spans", fix=f"it has {', '.join(setup.spans[i])}"
                )
        limits = [(0, len(ids)) if name == ALL else setup.spans[i][name] for name in spans]
        inside = [tuple(low <= p < high for low, high in limits) for p in range(len(ids))]
        kinds.append([atoms.setdefault(atom, len(atoms)) for atom in inside])
    rows = [np.array(atom, dtype=bool) for atom in atoms]
    return kinds, [np.stack([mask[..., row].any(-1) for row in rows]) for mask in arrays]


def _kinds_of(tokens: Tokens, examples: Sequence[int] | None, kinds: list[list[int]]) -> Int[Tensor, " token"]:
    numbers = range(len(kinds)) if examples is None else examples
    return torch.tensor([kinds[numbers[pair]][p] for pair, p in tokens.spots])


def _divided(setup: Setup, masks: list[np.ndarray], has_run: bool, budget_mib: float) -> list[tuple[list[int], Sums]]:
    """Masks in parts that are computed at once: as many as memory takes, of enough tokens."""
    table, shape = edge_table(setup.model.shape), setup.model.shape
    additive = not setup.model.anatomy.blocks[0].post_norm
    at_once = min(TOKENS, sum(map(len, setup.clean))) * shape.d_model * torch.finfo(setup.model.dtype).bits // 8
    room = 0.6 * budget_mib * MIB / at_once  # changes of so many nodes, at the tokens that should be computed together
    parts: list[list[int]] = [[]]
    used = 0
    for i, mask in enumerate(masks):
        nodes = int(live_edges(table, [mask]).any((0, 1, 3)).sum())  # an upper bound: masks may share some
        if parts[-1] and used + nodes > room:
            parts.append([])
            used = 0
        parts[-1].append(i)
        used += nodes
    found = ((part, find_classes(table, [masks[i] for i in part], has_run)) for part in parts)
    return [(part, Sums(classes, additive)) for part, classes in found]


def _pairs_at_once(setup: Setup, sums: Sums, budget_mib: float, recording: bool) -> int:
    """How many pairs fit into memory beside the tiles of streams."""
    shape = setup.model.shape
    heads: dict[int, int] = {}
    for copy in sums.classes.copies:
        if isinstance(copy, HeadCopy):
            heads[copy.layer] = heads.get(copy.layer, 0) + 1
    numbers = (1 + sums.columns[WIDE].number + 2 * len(sums.fulls[WIDE])) * shape.d_model
    numbers += 10 * max(heads.values(), default=0) * shape.d_head
    numbers += recorded_numbers(shape) if recording else 0
    size = torch.finfo(setup.model.dtype).bits // 8
    longest = max(map(len, setup.clean))
    return max(1, int(0.6 * budget_mib * MIB / (numbers * size * longest)))


def recorded_numbers(shape: ModelShape) -> int:
    """How many numbers two plain runs keep for each token."""
    stream = shape.d_model * (2 + int(shape.has_mlp))
    return 2 * shape.n_layers * (stream + 2 * (shape.n_heads + shape.n_kv_heads) * shape.d_head)
