"""From rows to work: check edits, drop what changes nothing, find where each row begins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from crosspatch.errors import InterventionError
from crosspatch.graph.names import Site
from crosspatch.model.pack import GroupKey
from crosspatch.model.run import STAGES, Blocked, Edit, FromRun, Key, Row, Run, store_key

_AFTER_ATTENTION = frozenset(STAGES[STAGES.index("z") :])
# Edits of these kinds in the last layer reach the output only from a position that is read.
_LAST_LAYER_LOCAL = _AFTER_ATTENTION | {"q", "pattern"}
_COMPARED = 2**22  # numbers compared at once: bounded memory, whatever the number of edits


@dataclass
class Atom:
    """One edit of one row, with absolute positions and the place where it happens."""

    row: int
    key: Key
    site: Site
    positions: list[int]
    value: Tensor | Callable[[Tensor], Tensor] | Blocked | None
    source: Run | None = None
    source_tokens: list[int] = field(default_factory=list)  # indices into the packed tokens of ``source``
    equal: set[int] = field(default_factory=set)  # entries of ``positions`` whose value is the base run's already
    pick: list[int] | None = None  # which rows of a tensor value belong to ``positions``; None = all


@dataclass
class PlannedRow:
    """A row that has work to do: its group, where it starts, and its edits."""

    row: int
    example: int
    group: GroupKey
    start: tuple[int, int]  # (layer, index into STAGES)
    atoms: list[Atom]


@dataclass
class Plan:
    rows: list[PlannedRow]
    unchanged: list[int]
    examples: list[int]  # example of every row given

    def needs(self, parallel: bool, n_layers: int) -> set[Key]:
        """What has to be stored of the base run so that these rows can begin where they begin."""
        keys: set[Key] = set()
        for layer, stage in {row.start for row in self.rows}:
            keys |= restart_keys(layer, STAGES[stage], parallel)
        for row in self.rows:
            for atom in row.atoms:
                if parallel and atom.key[1] == "mlp_act" and row.start != (atom.key[0], 0):
                    keys.add(atom.key)
        prefixed = [row.start for row in self.rows if row.group[0] > 0]
        if prefixed:
            layer, stage = min(prefixed)
            first = layer + (stage > STAGES.index("pattern"))
            keys |= {(at, kind) for at in range(first, n_layers) for kind in ("k", "v")}
        return keys


def restart_keys(layer: int, stage: str, parallel: bool) -> set[Key]:
    """What a row that begins at ``stage`` of ``layer`` takes from its base run."""
    index = STAGES.index(stage)
    if stage == "resid_post":
        return {(layer, stage)}
    if index <= STAGES.index("attn_out"):
        kinds = ["resid_pre"]
        if 0 < index <= STAGES.index("pattern"):
            kinds += ["q", "k", "v"]
        elif index:
            kinds.append(stage)
        if parallel and index:
            kinds.append("mlp_out")
    else:
        kinds = ["resid_pre", "attn_out"] if parallel else ["resid_mid"]
        if stage != "resid_mid":
            kinds.append(stage)
    return {(layer, kind) for kind in kinds}


def make_plan(
    base: Run, rows: Sequence[Row], *, prune: bool = True, ensure: Callable[[Run, Iterable[Key]], None]
) -> Plan:
    """Check every edit and decide where each row starts.

    Edits that cannot reach a read position, or whose value equals the base run's, are dropped (rule 3 of the
    executor). ``prune=False`` keeps edits with equal values (a base run that does not exist yet has none).

    Raises:
        InterventionError: positions or shapes that do not fit, naming the site, the shapes and the fix.
    """
    atoms: list[list[Atom]] = []
    for index, row in enumerate(rows):
        if not 0 <= row.example < len(base):
            raise InterventionError(
                f"example {row.example} does not exist", where=f"row {index}", fix=f"the run has {len(base)} examples"
            )
        made = [_atom(base, index, row, edit) for edit in row.edits]
        if len(made) > 1:
            _refuse_overlap(made)
        atoms.append([atom for atom in made if atom is not None])
    if prune:
        _drop_equal(base, atoms, [row.example for row in rows], ensure)
    planned, unchanged = [], []
    for index, (row, mine) in enumerate(zip(rows, atoms, strict=True)):
        if not mine:
            unchanged.append(index)
            continue
        first, last = _reach(base, row.example)
        first = min(min(atom.positions) for atom in mine) if first is None else first
        start = min((atom.key[0], _join_stage(atom.key[1])) for atom in mine)
        read = base.read[row.example]
        planned.append(PlannedRow(index, row.example, (first, last, read), start, mine))
    return Plan(planned, unchanged, [row.example for row in rows])


def _reach(base: Run, example: int) -> tuple[int | None, int]:
    """Which positions of an example a patched row has to compute: from the first (None: from its first edit) to the
    last that the reads depend on. Where attention is bidirectional every position depends on every edit."""
    if base.model.shape.causal:
        return None, max(base.read[example]) + 1
    return 0, len(base.tokens[example])


def _join_stage(kind: str) -> int:
    """Rows whose first edit is to q, k, v or the pattern all join just before the attention sum."""
    return STAGES.index("q") if kind in ("q", "k", "v", "pattern") else STAGES.index(kind)


def _atom(base: Run, index: int, row: Row, edit: Edit) -> Atom | None:
    shape = base.model.shape
    layer, kind = key = store_key(edit.site, shape.n_layers)
    if kind in ("resid_mid", "mlp_act", "mlp_out") and not shape.has_mlp:
        raise InterventionError(
            "the blocks of this model are attention only, they have no MLP",
            where=str(edit.site),
            fix=f"patch r{layer}.post or a{layer}",
        )
    if kind == "mlp_act" and not shape.has_neurons:
        raise InterventionError(
            "the MLP is a mixture of experts and has no single hidden layer",
            where=str(edit.site),
            fix=f"patch the block's output, m{layer}",
        )
    length = len(base.tokens[row.example])
    positions = _absolute(edit.positions, length, str(edit.site), row.example)
    end = _reach(base, row.example)[1]
    local = layer == shape.n_layers - 1 and kind in _LAST_LAYER_LOCAL
    read = base.read[row.example]
    keep = [i for i, p in enumerate(positions) if p < end and (not local or p in read)]
    atom = Atom(index, key, edit.site, [positions[i] for i in keep], None)
    if isinstance(edit.value, FromRun):
        _from_run(atom, edit.value, edit, positions, keep, length)
    elif isinstance(edit.value, Tensor):
        _check_shape(edit, len(positions), _width(base, edit.site, row.example))
        atom.value = edit.value
        if edit.value.dim() == 2 and edit.value.shape[0] == len(positions) != len(keep):
            atom.pick = keep
    elif isinstance(edit.value, Blocked):
        if kind != "pattern":
            raise InterventionError(
                "only an attention pattern has keys to block",
                where=str(edit.site),
                fix=f"edit a pattern, for example a{layer}.h0.pattern",
            )
        atom.value = Blocked(tuple(_absolute(edit.value.keys, length, f"keys of {edit.site}", row.example)))
    elif callable(edit.value):
        atom.value = edit.value
    else:
        raise InterventionError(
            f"the value is a {type(edit.value).__name__}",
            where=str(edit.site),
            fix="give FromRun(run, example), a tensor, a function of the present value, or Blocked(keys)",
        )
    return atom if keep else None


def _absolute(positions: tuple[int, ...], length: int, site: str, example: int) -> list[int]:
    out = []
    for p in positions:
        if not -length <= p < length:
            raise InterventionError(
                f"position {p} does not exist",
                where=f"{site}, example {example}",
                fix=f"its prompt has {length} tokens: use 0 to {length - 1}, or -{length} to -1",
            )
        out.append(p % length)
    if len(set(out)) != len(out):
        raise InterventionError(f"position given twice: {positions}", where=f"{site}, example {example}")
    return out


def _from_run(atom: Atom, value: FromRun, edit: Edit, positions: list[int], keep: list[int], length: int) -> None:
    run = value.run
    if not 0 <= value.example < len(run):
        raise InterventionError(
            f"the source run has no example {value.example}", where=str(edit.site), fix=f"it has {len(run)} examples"
        )
    other = len(run.tokens[value.example])
    if edit.site.kind == "pattern" and other != length:
        raise InterventionError(
            f"the source's pattern rows have {other} entries, the base's {length}",
            where=f"{edit.site}, source example {value.example}",
            fix="patterns can be exchanged between prompts of equal length only; patch q and k instead",
        )
    where = positions if value.positions is None else value.positions
    if len(where) != len(positions):
        raise InterventionError(
            f"{len(positions)} positions are edited but the source gives {len(where)}",
            where=f"{edit.site}, source example {value.example}",
            fix="give one source position for each edited one (tasks.align maps prompts of unequal length)",
        )
    source = _absolute(tuple(where), other, f"{edit.site} of the source run", value.example)
    atom.source = run
    atom.source_tokens = [run.offset[value.example] + source[i] for i in keep]


def _width(base: Run, site: Site, example: int) -> int:
    shape = base.model.shape
    if site.kind in ("q", "k", "v", "z"):
        return shape.d_head
    if site.kind == "pattern":
        return len(base.tokens[example])
    if site.kind == "mlp_act":
        return shape.d_mlp
    return 1 if site.kind == "neuron" else shape.d_model


def _check_shape(edit: Edit, n_positions: int, width: int) -> None:
    assert isinstance(edit.value, Tensor)
    shape = tuple(edit.value.shape)
    if len(shape) > 2 or any(
        have not in (1, want) for have, want in zip(reversed(shape), (width, n_positions), strict=False)
    ):
        raise InterventionError(
            f"the value has shape {list(shape)}, the site takes [{n_positions} positions, {width}]",
            where=str(edit.site),
            fix=f"give a tensor of shape [{width}] or [{n_positions}, {width}]",
        )


def _refuse_overlap(atoms: list[Atom | None]) -> None:
    seen: dict[tuple[Key, int], set[int | None]] = {}
    for atom in atoms:
        for p in atom.positions if atom else ():
            assert atom is not None
            taken, index = seen.setdefault((atom.key, p), set()), atom.site.index
            if taken and (index is None or None in taken or index in taken):
                raise InterventionError(
                    f"position {p} is edited twice in one row", where=str(atom.site), fix="make one edit of it"
                )
            taken.add(index)


def _drop_equal(
    base: Run, atoms: list[list[Atom]], examples: list[int], ensure: Callable[[Run, Iterable[Key]], None]
) -> None:
    """Drop positions at which an edit gives the value that is there anyway.

    Where attention is causal, values before the first token at which two unedited runs differ are equal, whatever
    rounding says; elsewhere they are compared bit by bit. An edit that puts the base run's own value back is no edit
    only where nothing earlier in the same row has changed it.
    """
    causal = base.model.shape.causal
    first_difference: dict[tuple[int, int, int], int] = {}
    compare: dict[tuple[int, Key, bool], list[Atom]] = {}
    for mine in atoms:
        for atom in mine:
            run = atom.source
            if run is None:
                continue
            if causal and not run.edited and not base.edited:
                _mark_shared_prefix(base, atom, examples[atom.row], first_difference)
            if atom.key[1] != "pattern" and len(atom.equal) < len(atom.positions):
                compare.setdefault((id(run), atom.key, atom.site.index is None), []).append(atom)
    for (_, key, _), group in compare.items():
        run = group[0].source
        assert run is not None
        ensure(base, [key])
        ensure(run, [key])
        _mark_equal_values(base, run, key, group, examples)
    for mine in atoms:
        mine.sort(key=lambda atom: (atom.key[0], STAGES.index(atom.key[1])))
        changed = 10**9  # first position that an earlier edit of this row changes
        for atom in mine:
            _keep(atom, [i for i, p in enumerate(atom.positions) if i not in atom.equal or p >= changed])
            if atom.positions:
                changed = min(changed, min(atom.positions) if causal else 0)
        mine[:] = [atom for atom in mine if atom.positions]


def _mark_shared_prefix(base: Run, atom: Atom, example: int, cache: dict[tuple[int, int, int], int]) -> None:
    run = atom.source
    assert run is not None
    source_example = example_of(run, atom.source_tokens[0])
    spot = (id(run), example, source_example)
    if spot not in cache:
        pairs = zip(base.tokens[example], run.tokens[source_example], strict=False)
        shared = min(len(base.tokens[example]), len(run.tokens[source_example]))
        cache[spot] = next((i for i, (a, b) in enumerate(pairs) if a != b), shared)
    start = run.offset[source_example]
    here = enumerate(zip(atom.positions, atom.source_tokens, strict=True))
    atom.equal |= {i for i, (p, token) in here if p < cache[spot] and token - start == p}


def example_of(run: Run, token: int) -> int:
    """The example that a packed token belongs to."""
    return bisect_right(run.offset, token) - 1


def _mark_equal_values(base: Run, run: Run, key: Key, atoms: list[Atom], examples: list[int]) -> None:
    ours, theirs = base.packed(key), run.packed(key)
    whole = atoms[0].site.index is None  # else one head of [token, head, d_head], or one neuron of [token, neuron]
    step = max(1, _COMPARED // (ours[0].numel() if whole else ours[0, 0].numel()))
    spots = [(atom, i) for atom in atoms for i in range(len(atom.positions)) if i not in atom.equal]
    for lo in range(0, len(spots), step):
        part = spots[lo : lo + step]
        here: Any = [base.offset[examples[atom.row]] + atom.positions[i] for atom, i in part]
        there: Any = [atom.source_tokens[i] for atom, i in part]
        if not whole:
            index = [atom.site.index for atom, _ in part]
            here, there = (here, index), (there, index)
        different = ours[here] != theirs[there].to(ours.device)
        flags = different.any(-1) if different.dim() > 1 else different
        for (atom, i), flag in zip(part, flags.tolist(), strict=True):
            if not flag:
                atom.equal.add(i)


def _keep(atom: Atom, keep: list[int]) -> None:
    if len(keep) == len(atom.positions):
        return
    atom.positions = [atom.positions[i] for i in keep]
    if atom.source is not None:
        atom.source_tokens = [atom.source_tokens[i] for i in keep]
