"""The clean run of some pairs and what replaces its parts, kept so that many exact evaluations share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.attribution.ablation import Ablation, AblationName, Store, resolve_ablation, sender_keys
from crosspatch.attribution.setup import Setup
from crosspatch.errors import InterventionError
from crosspatch.graph import ModelShape
from crosspatch.model import Run
from crosspatch.model.run import Key


def stream_keys(shape: ModelShape) -> list[Key]:
    """Residual streams that receivers read, and queries, keys and values."""
    keys: list[Key] = [(shape.n_layers - 1, "resid_post")]
    for layer in range(shape.n_layers):
        keys += [(layer, kind) for kind in ("resid_pre", "q", "k", "v")]
        keys += [(layer, "resid_mid")] if shape.has_resid_mid else []
    return keys


@dataclass(frozen=True, eq=False)
class Recorded:
    """Two plain runs of some pairs; make it with `record_pairs`.

    Attributes:
        setup: the pairs, as many as were recorded, numbered from 0.
        examples: their numbers in the setup that they were taken from.
        ablation: what replaces.
        clean: the clean run, with what senders write and receivers read.
        cut: replacements of all senders at the clean prompts' tokens.
        replaced: the run in which everything is replaced, where it is a plain one: the corrupt run, if tokens have the
            same place in both. None for other ablations and other pairs.
    """

    setup: Setup
    examples: tuple[int, ...]
    ablation: Ablation
    clean: Run
    cut: Store
    replaced: Run | None

    def require(self, setup: Setup, ablation: AblationName | Ablation) -> Ablation:
        """The ablation, if these are runs of this very setup with it.

        Raises:
            InterventionError: they are not.
        """
        if self.setup is not setup or not (ablation is self.ablation or ablation == self.ablation.name):
            raise InterventionError(
                f"these are runs of other pairs, or for {self.ablation.name!r} ablation",
                where="recorded",
                fix="pass what record_pairs(setup, ablation) returned for this very setup and ablation",
            )
        return self.ablation

    @cached_property
    def first(self) -> list[int]:
        """For each pair the first position at which anything can differ from the clean run; its length if none."""
        if not (self.ablation.paired and self.setup.model.shape.causal):
            return [0] * len(self.setup)
        found = []
        for ids, other, partner in zip(self.setup.clean, self.setup.corrupt, self.setup.partner, strict=True):
            same = (partner[p] == p and other[p] == token for p, token in enumerate(ids))
            found.append(next((p for p, equal in enumerate(same) if not equal), len(ids)))
        return found


def replaced_by_a_run(setup: Setup, ablation: Ablation) -> bool:
    """Whether replacing everything is a plain run: the corrupt one, if tokens have the same place in both prompts."""
    equal = all(len(a) == len(b) for a, b in zip(setup.clean, setup.corrupt, strict=True))
    return ablation.paired and equal and setup.aligned


@torch.no_grad()
def record_pairs(
    setup: Setup, ablation: AblationName | Ablation = "paired", examples: Sequence[int] | None = None
) -> Recorded:
    """Run pairs, and look up what replaces them.

    Memory: for each token, layer and run about 7 times `d_model` numbers.

    Args:
        examples: numbers of pairs; None = all.

    Raises:
        InterventionError: see `resolve_ablation`.
    """
    chosen = resolve_ablation(ablation, setup)
    numbers = tuple(range(len(setup)) if examples is None else examples)
    part = setup if examples is None else setup.select(numbers)
    shape = setup.model.shape
    senders = sender_keys(shape)
    clean = part.record_clean([*senders, *stream_keys(shape)])
    values = {key: clean.packed(key) for key in senders}
    if replaced_by_a_run(part, chosen):
        replaced = part.record_corrupt([*senders, *stream_keys(shape)])
        return Recorded(part, numbers, chosen, clean, {key: replaced.packed(key) for key in senders}, replaced)
    return Recorded(part, numbers, chosen, clean, chosen.store(setup, numbers, values), None)


@dataclass(frozen=True)
class Group:
    """Recorded pairs of which the same positions are computed, `first` to `end`, and the same are read."""

    pairs: tuple[int, ...]
    first: int
    end: int
    read: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of some recorded pairs that an evaluation has to compute: from the first difference of each pair to
    its last read, packed pair after pair, group after group; make it with `pack_tokens`.

    Attributes:
        recorded: where they are from.
        groups: pairs that attention can treat as a dense batch, in order of packing.
    """

    recorded: Recorded
    groups: tuple[Group, ...]

    @property
    def pairs(self) -> list[int]:
        """Numbers of recorded pairs, in order of packing."""
        return [pair for group in self.groups for pair in group.pairs]

    @cached_property
    def spots(self) -> list[tuple[int, int]]:
        """(pair, position) of every token."""
        return [(pair, p) for group in self.groups for pair in group.pairs for p in range(group.first, group.end)]

    @cached_property
    def index(self) -> Int[Tensor, " token"]:
        """Where recorded values of these tokens are stored."""
        offset = self.recorded.clean.offset
        return torch.tensor([offset[pair] + p for pair, p in self.spots], device=self.recorded.setup.model.device)

    @cached_property
    def positions(self) -> Int[Tensor, " token"]:
        return torch.tensor([p for _, p in self.spots], device=self.recorded.setup.model.device)

    @cached_property
    def tail(self) -> Int[Tensor, " read"]:
        """Which of the tokens are read."""
        found, start = [], 0
        for group in self.groups:
            for _ in group.pairs:
                found += [start + p - group.first for p in group.read]
                start += group.end - group.first
        return torch.tensor(found, dtype=torch.long, device=self.recorded.setup.model.device)

    def clean(self, layer: int, kind: str) -> Float[Tensor, "token ..."]:
        """What the clean run had there."""
        return self.recorded.clean.packed((layer, kind))[self.index]

    def cut(self, layer: int, kind: str) -> Float[Tensor, "token ..."]:
        """What replaces it there."""
        return self.recorded.cut[(layer, kind)][self.index]

    def replaced(self, layer: int, kind: str) -> Float[Tensor, "token ..."]:
        """What the run in which everything is replaced had there."""
        assert self.recorded.replaced is not None
        return self.recorded.replaced.packed((layer, kind))[self.index]

    def before(self, layer: int, kind: str, group: Group) -> Float[Tensor, "pair position head d_head"]:
        """Keys or values of the clean run at the positions of a group's pairs before their first token."""
        offset = self.recorded.clean.offset
        index = [[offset[pair] + p for p in range(group.first)] for pair in group.pairs]
        return self.recorded.clean.packed((layer, kind))[torch.tensor(index, dtype=torch.long)]

    def reads(self, tail: Float[Tensor, "... read d_model"]) -> Float[Tensor, "... read d_model"]:
        """Final states at all reads of these pairs: those given at `tail`, the clean run's before."""
        clean = self.recorded.clean
        slots = [slot for pair in self.pairs for slot in range(clean.read_offset[pair], clean.read_offset[pair + 1])]
        given = [p >= group.first for group in self.groups for pair in group.pairs for p in clean.read[pair]]
        out = clean.hidden[slots].to(tail).expand(*tail.shape[:-2], len(slots), -1).clone()
        out[..., [i for i, own in enumerate(given) if own], :] = tail
        return out


def pack_tokens(recorded: Recorded, pairs: Sequence[int]) -> Tokens:
    """The tokens of some recorded pairs; pairs in which nothing that is read can change are left out."""
    setup = recorded.setup
    places: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
    for pair in pairs:
        read, first = recorded.clean.read[pair], recorded.first[pair]
        # A model that is not causal needs what comes after the last read as well.
        end = read[-1] + 1 if setup.model.shape.causal else len(setup.clean[pair])
        if first <= read[-1]:
            places.setdefault((first, end, tuple(p for p in read if p >= first)), []).append(pair)
    return Tokens(recorded, tuple(Group(tuple(members), *place) for place, members in places.items()))
