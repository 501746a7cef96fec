"""One walk down the layers for many rows, each joining where it begins.

The base run supplies everything before that place: the residual stream below it, and keys and values of earlier
positions. After the last attention sum only positions that are read go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from crosspatch.errors import InterventionError
from crosspatch.model.activation import one_kernel
from crosspatch.model.attention import AttentionRule, attend, capturing, query_key_value
from crosspatch.model.pack import Group, Pack
from crosspatch.model.plan import Atom, PlannedRow, example_of
from crosspatch.model.run import STAGES, Blocked, Key, Run

Tap = Callable[[Key, Tensor, Pack], None]
PatternTap = Callable[[list[int], Tensor], None]  # rows, pattern [row, head, query, key]


class Walk:
    """One walk down the layers for one chunk of rows."""

    def __init__(
        self,
        base: Run,
        rows: list[PlannedRow],
        *,
        taps: dict[Key, Tap] | None = None,
        pattern_taps: dict[int, PatternTap] | None = None,
        read_only_end: bool = True,
    ) -> None:
        self.model, self.base = base.model, base
        self.taps, self.pattern_taps = taps or {}, pattern_taps or {}
        self.read_only_end = read_only_end
        self.parallel = self.model.shape.parallel
        self.last = self.model.shape.n_layers - 1
        self.pack = Pack()
        self.example = {row.row: row.example for row in rows}
        self.starting: dict[tuple[int, int], list[PlannedRow]] = {}
        self.atoms: dict[Key, list[Atom]] = {}
        for row in rows:
            self.starting.setdefault(row.start, []).append(row)
            for atom in row.atoms:
                self.atoms.setdefault(atom.key, []).append(atom)
        self.started_early: set[int] = set()  # rows whose MLP of the present parallel block is computed afresh
        self.tables: dict[int, Any] = {}  # rotary tables at the present positions
        self.token_layers = 0.0

    def run(self) -> Tensor:
        """All layers.

        Returns:
            the residual stream after the last one at the read positions of the rows, ``[read, d_model]``, in the
            order of ``self.pack``.
        """
        first = min(layer for layer, _ in self.starting)
        blocks = self.model.anatomy.blocks[first:]
        with capturing([block.attn for block in blocks]), one_kernel([block.mlp for block in blocks]):
            for layer in range(first, self.last + 1):
                self._block(layer)
        if not self.pack.reads_only:
            self.pack.keep_reads(["x"])
        return self.pack.data["x"]

    def _block(self, layer: int) -> None:
        pack, block = self.pack, self.model.anatomy.blocks[layer]
        self.device = block.device
        pack.data = {name: value.to(self.device) for name, value in pack.data.items()}
        self._join(layer, "resid_pre", {"x": "resid_pre"})
        self._touch(layer, "resid_pre", "x")
        self.started_early = set(pack.slot)
        self._attention(layer)
        if self.parallel:
            self._join(layer, "attn_out", {"x": "resid_pre", "m": "mlp_out", "a": "attn_out"})
        else:
            self._join(layer, "attn_out", {"x": "resid_pre", "a": "attn_out"})
        self._touch(layer, "attn_out", "a")
        if self.parallel:
            self._finish_parallel(layer)
        else:
            self._finish_sequential(layer)
        if layer == self.last:
            self._join(layer, "resid_post", {"x": "resid_post"})
            self._touch(layer, "resid_post", "x")
        self.token_layers += len(pack)

    def _attention(self, layer: int) -> None:
        """From the residual stream to the block's attention output, in ``pack.data['a']``."""
        pack, block = self.pack, self.model.anatomy.blocks[layer]
        names = {"x": "resid_pre", "q": "q", "k": "k", "v": "v"} | ({"m": "mlp_out"} if self.parallel else {})
        rule = None
        if len(pack):
            h = block.norm_attn_in(pack.data["x"][None])[0]
            if self.parallel:
                pack.data["m"] = self._mlp(layer, h if block.shared_norm else pack.data["x"])
            kwargs = self.model.attention_kwargs(layer, self._positions(), self.tables)
            q, k, v, rule = query_key_value(block.attn, h, kwargs)
            pack.data |= {"q": q, "k": k, "v": v}
            self.model.rules[layer] = rule
        self._join(layer, "q", names)
        for kind in ("q", "k", "v"):
            self._touch(layer, kind, kind)
        if len(pack):
            rule = rule or self.model.attention_rule(layer)
            pack.data["z"] = self._attend(layer, rule)
            for name in ("q", "k", "v"):
                del pack.data[name]
        if layer == self.last and self.read_only_end and not pack.reads_only:
            pack.keep_reads([name for name in pack.data if name != "z"])
        self._join(layer, "z", {"x": "resid_pre", "z": "z"} | ({"m": "mlp_out"} if self.parallel else {}))
        self._touch(layer, "z", "z")
        if len(pack):
            z = pack.data.pop("z")
            pack.data["a"] = block.norm_attn_out(block.o_proj(z.flatten(1)[None]))[0]

    def _attend(self, layer: int, rule: AttentionRule) -> Tensor:
        """Attention of all groups; a row's keys before its first position are the base run's."""
        pack = self.pack
        only_reads = layer == self.last and self.read_only_end
        key = (layer, "pattern")
        edits = self.atoms.get(key, [])
        out = []
        for group in pack.groups.values():
            q, k, v = (pack.dense(pack.data[name], group) for name in ("q", "k", "v"))
            positions = group.positions
            if only_reads:
                at = [positions.index(p) for p in group.read if p >= group.first]
                positions = tuple(positions[i] for i in at)
                q = q[:, at]
            if group.first:
                k, v = (torch.cat([self._before(layer, name, group), t], 1) for name, t in (("k", k), ("v", v)))
            here = [atom for atom in edits if pack.slot[atom.row][0] is group]
            mine = [atom for atom in here if not isinstance(atom.value, Blocked)]
            edit = None
            if mine or layer in self.pattern_taps:
                edit = self._pattern_editor(layer, group, positions, mine)
            blocked = self._blocked(q, k, positions, [a for a in here if isinstance(a.value, Blocked)])
            out.append(attend(q, k, v, positions, rule, edit, blocked).flatten(0, 1))
        return torch.cat(out) if len(out) > 1 else out[0]

    def _blocked(self, q: Tensor, k: Tensor, positions: tuple[int, ...], atoms: list[Atom]) -> Tensor | None:
        """True where a query of one group's rows may not see a key, ``[row, head, query, key]``."""
        if not atoms:
            return None
        blocked = torch.zeros(q.shape[0], q.shape[2], q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        for atom in atoms:
            assert isinstance(atom.value, Blocked)
            i, at = self.pack.slot[atom.row][1], [positions.index(p) for p in atom.positions]
            keys = [key for key in atom.value.keys if key < k.shape[1]]
            blocked[i, atom.site.index, torch.tensor(at)[:, None], torch.tensor(keys, dtype=torch.long)] = True
        return blocked

    def _pattern_editor(
        self, layer: int, group: Group, positions: tuple[int, ...], atoms: list[Atom]
    ) -> Callable[[Tensor], Tensor]:
        def edit(pattern: Tensor) -> Tensor:
            for atom in atoms:
                i, at = self.pack.slot[atom.row][1], [positions.index(p) for p in atom.positions]
                assert atom.site.index is not None
                pattern[i, atom.site.index, at] = self._pattern_value(atom, pattern[i, atom.site.index, at])
            if layer in self.pattern_taps:
                self.pattern_taps[layer](group.rows, pattern)
            return pattern

        return edit

    def _pattern_value(self, atom: Atom, present: Tensor) -> Tensor:
        width = present.shape[-1]
        if atom.source is not None:
            stored = atom.source.store[atom.key]
            assert isinstance(stored, list)
            assert atom.site.index is not None
            rows = []
            for token in atom.source_tokens:
                example = example_of(atom.source, token)
                rows.append(stored[example][atom.site.index, token - atom.source.offset[example], :width])
            return torch.stack(rows).to(present)
        if isinstance(atom.value, Tensor):
            value = atom.value.to(present)
            value = value[atom.pick] if atom.pick is not None else value
            return value[..., :width] if value.dim() and value.shape[-1] > 1 else value
        assert atom.value is not None
        return _called(atom, present)

    def _before(self, layer: int, kind: str, group: Group) -> Tensor:
        """The base run's keys or values before a group's first position, ``[row, position, head, d_head]``."""
        stored = self.base.packed((layer, kind))
        starts = torch.tensor([self.base.offset[self.example[row]] for row in group.rows], device=stored.device)
        index = starts[:, None] + torch.arange(group.first, device=stored.device)
        return stored[index].to(self.device)

    def _finish_sequential(self, layer: int) -> None:
        pack = self.pack
        if len(pack):
            pack.data["x"] = pack.data["x"] + pack.data.pop("a")
        if self.model.anatomy.blocks[layer].mlp is None:
            return
        self._join(layer, "resid_mid", {"x": "resid_mid"})
        self._touch(layer, "resid_mid", "x")
        if len(pack):
            pack.data["m"] = self._mlp(layer, pack.data["x"])
        act = self._join_from_act(layer)
        self._join(layer, "mlp_act", {"x": "resid_mid", "m": act})
        self._join(layer, "mlp_out", {"x": "resid_mid", "m": "mlp_out"})
        self._touch(layer, "mlp_out", "m")
        if len(pack):
            pack.data["x"] = pack.data["x"] + pack.data.pop("m")

    def _finish_parallel(self, layer: int) -> None:
        pack = self.pack
        late = [a for a in self.atoms.get((layer, "mlp_act"), []) if a.row in pack.slot]
        late = [a for a in late if a.row not in self.started_early]
        if late:
            self._redo_mlp(layer, late)
        act = self._join_from_act(layer)
        self._join(layer, "mlp_act", {"x": "resid_pre", "a": "attn_out", "m": act})
        self._join(layer, "mlp_out", {"x": "resid_pre", "a": "attn_out", "m": "mlp_out"})
        self._touch(layer, "mlp_out", "m")
        if len(pack):
            pack.data["x"] = pack.data["x"] + pack.data.pop("a") + pack.data.pop("m")

    def _redo_mlp(self, layer: int, atoms: list[Atom]) -> None:
        """Rows of a parallel block that began at the attention but also have their hidden neurons edited."""
        pack = self.pack
        rows = {atom.row for atom in atoms}
        tokens = [pack.token(row, p) for row in rows for p in pack.slot[row][0].positions]
        base_tokens = [self._base_token(row, p) for row in rows for p in pack.slot[row][0].positions]
        act = self.base.packed((layer, "mlp_act"))[base_tokens].to(self.device)
        at = {token: i for i, token in enumerate(tokens)}
        self._write(act, atoms, lambda atom: [at[pack.token(atom.row, p)] for p in atom.positions])
        pack.data["m"][tokens] = self._down(layer, act)

    def _join_from_act(self, layer: int) -> Callable[[Group], Tensor]:
        """MLP output of rows that begin at the hidden neurons: the base's neurons, edited, through W_out."""

        def fetch(group: Group) -> Tensor:
            act = self._fetch(layer, "mlp_act")(group)
            slot = {row: i for i, row in enumerate(group.rows)}
            n = len(group.positions)
            atoms = [a for a in self.atoms.get((layer, "mlp_act"), []) if a.row in slot]
            self._write(
                act, atoms, lambda atom: [slot[atom.row] * n + group.positions.index(p) for p in atom.positions]
            )
            return self._down(layer, act)

        return fetch

    def _down(self, layer: int, act: Tensor) -> Tensor:
        block = self.model.anatomy.blocks[layer]
        assert block.down_proj is not None
        return block.norm_mlp_out(block.down_proj(act[None]))[0]

    def _mlp(self, layer: int, x: Tensor) -> Tensor:
        """The block's MLP on all active tokens; its hidden neurons are edited and tapped on the way."""
        block = self.model.anatomy.blocks[layer]
        assert block.mlp is not None
        h = x if block.shared_norm else block.norm_mlp_in(x[None])[0]
        key = (layer, "mlp_act")
        atoms = [atom for atom in self.atoms.get(key, []) if atom.row in self.pack.slot]
        hook = None
        if atoms or key in self.taps:
            assert block.down_proj is not None

            def at_neurons(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                act = args[0].reshape(-1, args[0].shape[-1])
                self._write(act, atoms, self._tokens_of)
                if key in self.taps:
                    self.taps[key](key, act, self.pack)
                return (act.reshape(args[0].shape), *args[1:])

            hook = block.down_proj.register_forward_pre_hook(at_neurons)
        try:
            out = block.mlp(h[None])
        finally:
            if hook is not None:
                hook.remove()
        return block.norm_mlp_out(out[0] if isinstance(out, tuple) else out)[0]

    # -- joining, editing, tapping ------------------------------------------------------------------------------

    def _join(self, layer: int, stage: str, sources: Mapping[str, str | Callable[[Group], Tensor]]) -> None:
        """Rows that begin at ``stage`` join the pack with the base run's values."""
        rows = self.starting.get((layer, STAGES.index(stage)))
        if rows:
            fetch = {name: self._fetch(layer, s) if isinstance(s, str) else s for name, s in sources.items()}
            self.pack.join({row.row: row.group for row in rows}, fetch, self.device)
            self.tables = {}

    def _fetch(self, layer: int, kind: str) -> Callable[[Group], Tensor]:
        def fetch(group: Group) -> Tensor:
            stored = self.base.packed((layer, kind))
            starts = torch.tensor([self.base.offset[self.example[row]] for row in group.rows], device=stored.device)
            index = starts[:, None] + torch.tensor(group.positions, device=stored.device)
            return stored[index.flatten()]

        return fetch

    def _base_token(self, row: int, position: int) -> int:
        return self.base.offset[self.example[row]] + position

    def _positions(self) -> Tensor:
        return torch.tensor(self.pack.positions(), device=self.device)

    def _tokens_of(self, atom: Atom) -> list[int]:
        return [self.pack.token(atom.row, p) for p in atom.positions]

    def _touch(self, layer: int, kind: str, name: str) -> None:
        """Apply the edits of one stage to ``pack.data[name]`` and show the result to a tap."""
        key = (layer, kind)
        atoms = self.atoms.get(key)
        if atoms:
            self._write(self.pack.data[name], atoms, self._tokens_of)
        if key in self.taps and len(self.pack):
            self.taps[key](key, self.pack.data[name], self.pack)

    def _write(self, x: Tensor, atoms: list[Atom], tokens_of: Callable[[Atom], list[int]]) -> None:
        """``x [token, ...]`` takes the atoms' values; values from one run are moved in one indexed copy."""
        moved: dict[tuple[int, bool], tuple[Run, list[int], list[int], list[int]]] = {}
        for atom in atoms:
            to = tokens_of(atom)
            if atom.source is not None:
                spot = (id(atom.source), atom.site.index is None)
                _, dst, src, index = moved.setdefault(spot, (atom.source, [], [], []))
                dst += to
                src += atom.source_tokens
                index += [atom.site.index or 0] * len(to)
                continue
            where: Any = to if atom.site.index is None else (torch.tensor(to), atom.site.index)
            present = x[where]
            if atom.site.kind == "neuron":
                present = present[:, None]
            value = _called(atom, present) if callable(atom.value) else _picked(atom, present)
            x[where] = value[:, 0] if atom.site.kind == "neuron" else value
        key = atoms[0].key if atoms else None
        for (_, whole), (run, dst, src, index) in moved.items():
            assert key is not None
            stored = run.packed(key)
            if whole:
                x[dst] = stored[src].to(x)
            else:
                x[dst, index] = stored[src, index].to(x)


def _picked(atom: Atom, present: Tensor) -> Tensor:
    assert isinstance(atom.value, Tensor)
    value = atom.value.to(present)
    return (value[atom.pick] if atom.pick is not None else value).expand_as(present)


def _called(atom: Atom, present: Tensor) -> Tensor:
    """A user's function on the present value ``[position, width]``."""
    assert callable(atom.value)
    value = atom.value(present.clone())
    if not isinstance(value, Tensor) or value.shape != present.shape:
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InterventionError(
            f"the function returned {got} instead of a tensor of shape {list(present.shape)}",
            where=str(atom.site),
            fix="return the new value, of the same shape as the value that was given (position, width)",
        )
    return value.to(present)
