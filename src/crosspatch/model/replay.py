"""The executor's two verbs: ``record`` activations, and ``replay`` interventions on a recorded run.

``replay`` is exact (the numbers of a full forward pass with hooks, up to float rounding) and does only the work whose
result is not known yet; docs/architecture.md lists the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.errors import InterventionError
from crosspatch.graph.names import Site
from crosspatch.model.budget import MIB, chunk_rows, default_budget_mib
from crosspatch.model.model import Model
from crosspatch.model.pack import Pack
from crosspatch.model.plan import Plan, PlannedRow, make_plan, restart_keys
from crosspatch.model.run import Cost, Edit, Key, Readout, Row, Run, store_key
from crosspatch.model.walk import PatternTap, Tap, Walk

Progress = Callable[[float, float], None]  # work done, work in all (one unit = one token through one block)


def record(
    model: Model,
    tokens: Sequence[Sequence[int]],
    sites: Iterable[Site | str] = (),
    *,
    read: Sequence[Sequence[int]] | None = None,
    edits: Sequence[Sequence[Edit]] = (),
    restart_at: Iterable[Site | str] = (),
    keys: Iterable[Key] = (),
    prefix: Run | None = None,
    begin: int = 0,
    budget_mib: float | None = None,
) -> Run:
    """Run prompts once and keep the activations at ``sites``.

    Args:
        tokens: token ids of each prompt; lengths may differ (nothing is padded).
        sites: what to keep. Anything else is recorded when it is first asked for.
        read: positions of each prompt whose logits are wanted; default: the last one. Where no prompt has any, the run
            ends with the last activation that is kept.
        edits: for each example, edits made to this run itself (it can still serve as base or source).
        restart_at: sites at which rows of a later ``replay`` will begin, so that this one pass keeps what they need.
        keys: further activations to keep, by layer and kind.
        prefix: an unedited run of prompts of the same lengths and reads, one for each of these, with keys and values of
            all layers. What is read before the first token that differs is that run's.
        begin: tokens before this one, which must be the prefix's, are not computed again where attention is causal:
            their activations are that run's, and NaN where it has not kept them.
        budget_mib: memory for activations in flight.

    Raises:
        InterventionError: no prompts, an empty prompt, unknown token ids, reads that do not exist, or a prefix of other
            lengths or tokens.
        AddressError: a site that the model does not have.
        ModelError: a model in training mode, or a prompt longer than its context.
    """
    model.require_eval()
    ids, reads = _checked(model, tokens, read)
    if edits and len(edits) != len(ids):
        raise InterventionError(f"{len(edits)} tuples of edits for {len(ids)} examples", fix="give one tuple each")
    run = Run(model, ids, reads, tuple(tuple(e) for e in edits))
    n = model.shape.n_layers
    kept = {store_key(model.site(s), n) for s in sites} | set(keys)
    for site in restart_at:
        layer, kind = store_key(model.site(site), n)
        kept |= {(layer, kind)} | restart_keys(layer, kind, model.shape.parallel)
        if model.shape.causal:  # keys and values of the positions before a row's first
            kept |= {(at, part) for at in range(layer, n) for part in ("k", "v")}
    if prefix is not None:
        _require_prefix(run, prefix, begin)
    whole = not model.shape.causal or any(kind == "pattern" for _, kind in kept)  # patterns are kept prompt by prompt
    _fill(run, kept, budget_mib, *((None, 0) if whole else (prefix, begin)))
    return run


def ensure(run: Run, keys: Iterable[Key]) -> None:
    """Record what a run has not kept yet (one more pass over its prompts, if anything is missing)."""
    missing = {key for key in keys if key not in run.store}
    if missing:
        _fill(run, missing, None)


@torch.no_grad()
def _fill(run: Run, keys: set[Key], budget_mib: float | None, prefix: Run | None = None, begin: int = 0) -> None:
    """Walk all prompts from the embedding, storing ``keys`` and the normalised last states at the read positions."""
    model, last = run.model, run.model.shape.n_layers - 1
    model.ensure_positions(max(map(len, run.tokens)))
    scratch = Run(model, run.tokens, run.read, store={(0, "resid_pre"): model.embed(run.tokens)})
    rows = [Row(i, run.edits[i] if run.edits else ()) for i in range(len(run))]
    plan = make_plan(scratch, rows, prune=False, ensure=ensure)
    atoms = {row.row: row.atoms for row in plan.rows}
    firsts = [min(begin, read[-1] if read else begin) for read in run.read]
    if prefix is not None:
        _begin_with(run, prefix, firsts, keys, scratch)
    planned = [
        PlannedRow(i, i, (firsts[i], len(ids), run.read[i]), (0, 0), atoms.get(i, []))
        for i, ids in enumerate(run.tokens)
    ]
    needed = {key for row in planned for atom in row.atoms if atom.source for key in [atom.key]}
    for row in planned:
        for atom in row.atoms:
            if atom.source is not None:
                ensure(atom.source, needed & {atom.key})
    total = run.offset[-1]
    taps: dict[Key, Tap] = {key: _keeper(run, total) for key in keys if key[1] != "pattern"}
    pattern_taps = {layer: _pattern_keeper(run, layer) for layer, kind in keys if kind == "pattern"}
    ends = not any(layer == last and kind not in ("resid_pre", "q", "k", "v") for layer, kind in keys)
    hidden = torch.empty(run.read_offset[-1], model.shape.d_model, dtype=model.dtype, device=model.device)
    to_the_end = bool(len(hidden) or pattern_taps)
    for chunk in chunk_rows(model, planned, 0, budget_mib) if taps or to_the_end else ():
        here = taps if to_the_end else _stopping(taps)
        walk = Walk(scratch, chunk, taps=here, pattern_taps=pattern_taps, read_only_end=ends and len(hidden) > 0)
        try:
            final = model.anatomy.final_norm(walk.run())
        except _Enough:
            continue
        slots = [run.read_offset[row] + run.read[row].index(p) for row, p in _reads(walk.pack)]
        hidden = hidden if final.shape[1] == hidden.shape[1] else hidden.new_empty(len(hidden), final.shape[1])
        hidden[slots] = final.to(hidden)
    run.hidden = hidden if prefix is None else _reads_of(prefix, run, hidden)


def _require_prefix(run: Run, prefix: Run, begin: int) -> None:
    lengths = [*map(len, run.tokens)]
    same = [ids[:begin] for ids in run.tokens] == [ids[:begin] for ids in prefix.tokens]
    if (
        [*map(len, prefix.tokens)] != lengths
        or prefix.read != run.read
        or run.edited
        or not same
        or begin >= min(lengths)
    ):
        raise InterventionError(
            "the prefix is a run of prompts of other lengths, tokens or reads, or these have edits",
            where="record",
            fix=f"give a run of prompts that are equal up to position {begin}, and go on as far",
        )


def _begin_with(run: Run, prefix: Run, firsts: list[int], keys: set[Key], scratch: Run) -> None:
    """Take what comes before the first tokens from another run."""
    spots = [start + p for start, first in zip(run.offset[:-1], firsts, strict=True) for p in range(first)]
    if not spots:
        return
    layers, shared = range(run.model.shape.n_layers), torch.tensor(spots)
    scratch.store |= {(layer, kind): prefix.packed((layer, kind)) for layer in layers for kind in ("k", "v")}
    for key in keys & prefix.store.keys():
        stored = prefix.packed(key)
        run.store[key] = torch.empty_like(stored)
        run.store[key][shared] = stored[shared]


def _reads_of(prefix: Run, run: Run, hidden: Float[Tensor, "read d"]) -> Float[Tensor, "read d"]:
    """Final states, of which those before the first token that differs are another run's."""
    pairs = zip(run.tokens, prefix.tokens, run.read, strict=True)
    equal = [ids[: p + 1] == other[: p + 1] for ids, other, read in pairs for p in read]
    return torch.where(torch.tensor(equal, device=hidden.device)[:, None], prefix.hidden, hidden)


class _Enough(Exception):
    """A walk has shown everything that was asked for."""


def _stopping(taps: dict[Key, Tap]) -> dict[Key, Tap]:
    """The same taps for one walk, which the last of them ends."""
    left = set(taps)

    def tap(key: Key, x: Tensor, pack: Pack) -> None:
        taps[key](key, x, pack)
        left.discard(key)
        if not left:
            raise _Enough

    return dict.fromkeys(taps, tap)


def _reads(pack: Pack) -> list[tuple[int, int]]:
    """(row, position) of every packed token of a pack that holds read positions only."""
    return [(row, p) for group in pack.groups.values() for row in group.rows for p in group.positions]


def _keeper(run: Run, total: int) -> Tap:
    every = list(range(len(run)))

    def keep(key: Key, x: Tensor, pack: Pack) -> None:
        stored = run.store.get(key)
        if stored is None and [group.rows for group in pack.groups.values()] == [every] and len(pack) == total:
            # All tokens in order. Nothing that follows writes to them; a part of something larger would hold all of it.
            own = x.untyped_storage().nbytes() == x.nbytes
            run.store[key] = x if own else x.clone(memory_format=torch.contiguous_format)
            return
        if stored is None:
            stored = run.store[key] = x.new_full((total, *x.shape[1:]), float("nan"))
        assert isinstance(stored, Tensor)
        for group in pack.groups.values():
            for row, value in zip(group.rows, pack.dense(x, group), strict=True):
                stored[run.offset[row] + group.first : run.offset[row] + group.length] = value

    return keep


def _pattern_keeper(run: Run, layer: int) -> PatternTap:
    stored: list[Tensor] = [torch.empty(0)] * len(run)
    run.store[(layer, "pattern")] = stored

    def keep(rows: list[int], pattern: Tensor) -> None:
        for row, value in zip(rows, pattern, strict=True):
            stored[row] = value.clone()

    return keep


@torch.no_grad()
def replay(
    base: Run,
    rows: Sequence[Row],
    on_read: Callable[[Readout], None],
    *,
    columns: Sequence[int] | None = None,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Cost:
    """Run every row (an example of ``base`` with its edits) and hand its logits to ``on_read``, chunk by chunk.

    Args:
        base: the run that is intervened on. Logits are read where it was read.
        rows: any number of patched forwards.
        on_read: receives a :class:`Readout` for each chunk; chunks come in any order of rows.
        columns: token ids whose logits are wanted; None = the whole vocabulary.
        budget_mib: memory for one chunk's activations and logits; default: see ``budget.default_budget_mib``.
        progress: called with (work done, work in all).

    Returns:
        what was computed, against one full forward pass a row.

    Raises:
        InterventionError: an edit that does not fit, naming its site, shapes and the fix.
    """
    model = base.model
    model.require_eval()
    plan = make_plan(base, rows, ensure=ensure)
    _ensure_needs(base, plan)
    cols = None if columns is None else torch.as_tensor(columns, dtype=torch.long)
    n_columns = model.shape.vocab if cols is None else len(cols)
    cost = Cost(rows=len(rows), unchanged_rows=len(plan.unchanged))
    cost.naive_token_layers = float(sum(len(base.tokens[row.example]) for row in rows) * model.shape.n_layers)
    if plan.unchanged:
        _read_unchanged(base, plan, cols, on_read, budget_mib)
    work = sum(_work(model, row) for row in plan.rows)
    done = 0.0
    for chunk in chunk_rows(model, plan.rows, n_columns, budget_mib):
        walk = Walk(base, chunk)
        final = walk.run()
        on_read(_readout(base, chunk, walk.pack, model.anatomy.final_norm(final), cols))
        cost.chunks += 1
        cost.token_layers += walk.token_layers
        done += sum(_work(model, row) for row in chunk)
        if progress is not None:
            progress(done, work)
    return cost


def _work(model: Model, row: PlannedRow) -> float:
    return (row.group[1] - row.group[0]) * (model.shape.n_layers - row.start[0])


def _ensure_needs(base: Run, plan: Plan) -> None:
    model = base.model
    model.ensure_positions(max(map(len, base.tokens)))
    ensure(base, plan.needs(model.shape.parallel, model.shape.n_layers))
    sources: dict[int, tuple[Run, set[Key]]] = {}
    for row in plan.rows:
        for atom in row.atoms:
            if atom.source is not None:
                sources.setdefault(id(atom.source), (atom.source, set()))[1].add(atom.key)
    for run, keys in sources.values():
        ensure(run, keys)


def _read_unchanged(
    base: Run, plan: Plan, columns: Tensor | None, on_read: Callable[[Readout], None], budget_mib: float | None
) -> None:
    """Rows whose edits change nothing have the base run's logits, computed once for each example."""
    logits = base.logits(columns)
    budget = (budget_mib if budget_mib is not None else default_budget_mib(base.model)) * MIB - logits.nbytes
    reads = max(map(len, base.read))
    step = max(1, int(budget // (reads * logits.shape[1] * logits.element_size())))  # rows that are copied at once
    for lo in range(0, len(plan.unchanged), step):
        spots = _Spots(base, {row: plan.examples[row] for row in plan.unchanged[lo : lo + step]})
        on_read(spots.readout(logits[spots.slots.to(logits.device)], columns))


class _Spots:
    """The reads of some rows, in order: which row, which of its positions, and where the base run keeps its own."""

    def __init__(self, base: Run, examples: dict[int, int]) -> None:
        self.spots = [(row, p) for row, example in examples.items() for p in base.read[example]]
        self.example = [examples[row] for row, _ in self.spots]
        first = base.read_offset
        slots = [range(first[example], first[example + 1]) for example in examples.values()]
        self.slots = torch.tensor([slot for rows in slots for slot in rows])

    def readout(self, logits: Tensor, columns: Tensor | None) -> Readout:
        row, position = (torch.tensor(part) for part in zip(*self.spots, strict=True))
        return Readout(logits, columns, row, torch.tensor(self.example), position)


def _readout(base: Run, chunk: list[PlannedRow], pack: Pack, final: Tensor, columns: Tensor | None) -> Readout:
    """Logits of one chunk: reads before a row's first changed position are the base run's."""
    spots = _Spots(base, {row.row: row.example for row in sorted(chunk, key=lambda row: row.row)})
    place = {spot: i for i, spot in enumerate(spots.spots)}
    hidden = base.hidden[spots.slots.to(base.hidden.device)].to(final)
    hidden[[place[spot] for spot in _reads(pack)]] = final
    return spots.readout(base.model.unembed(hidden, columns), columns)


def _checked(
    model: Model, tokens: Sequence[Sequence[int]], read: Sequence[Sequence[int]] | None
) -> tuple[list[list[int]], list[tuple[int, ...]]]:
    ids = [[int(t) for t in prompt] for prompt in tokens]
    if not ids:
        raise InterventionError("no prompts were given", where="record", fix="give at least one list of token ids")
    n_tokens = model.n_tokens
    for i, prompt in enumerate(ids):
        bad = [t for t in prompt if not 0 <= t < n_tokens]
        if not prompt or bad:
            what = f"token ids {bad[:3]} outside 0..{n_tokens - 1}" if bad else "an empty prompt"
            raise InterventionError(what, where=f"example {i}", fix="tokenise with this model's own tokenizer")
    if read is None:
        return ids, [(len(prompt) - 1,) for prompt in ids]
    if len(read) != len(ids):
        raise InterventionError(f"{len(read)} lists of reads for {len(ids)} prompts", where="read")
    if not any(map(len, read)):
        return ids, [()] * len(ids)
    reads = []
    for i, (prompt, positions) in enumerate(zip(ids, read, strict=True)):
        if not positions or any(not -len(prompt) <= p < len(prompt) for p in positions):
            raise InterventionError(
                f"reads {list(positions)} of a prompt of {len(prompt)} tokens",
                where=f"example {i}",
                fix="give at least one existing position",
            )
        reads.append(tuple(sorted({p % len(prompt) for p in positions})))
    return ids, reads
