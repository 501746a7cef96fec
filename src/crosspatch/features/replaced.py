"""What takes the place of features and error terms.

| name | feature | error term | end of the path of integrated gradients |
|---|---|---|---|
| `paired` | its activation on the paired prompt | the paired prompt's | the paired prompt's activation |
| `mean` | mean over corrupt prompts of one template and length, by position | the mean error | the mean activation |
| `mean-all` | mean over all tokens of all corrupt prompts | the mean error | the mean activation |
| `zero` | 0 | 0 | the decoder's bias, not 0; of neurons 0 |
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.attribution.ablation import Paired
from crosspatch.attribution.setup import Setup
from crosspatch.errors import InterventionError
from crosspatch.features.basis import Bases, Basis
from crosspatch.model.run import Key

ReplacementName = Literal["paired", "mean", "mean-all", "zero"]
Group = tuple[str, int]


@dataclass(frozen=True)
class Means:
    """Means of one group of prompts at one place, by position (or one for all).

    Attributes:
        features: of the activations of features. (Not the features of the mean activation.)
        x: of the activation.
    """

    features: Float[Tensor, "position feature"]
    x: Float[Tensor, "position d"]


@dataclass(frozen=True, eq=False)
class Replacement:
    """What takes the place of nodes; make it with `replacement`.

    Attributes:
        name: one of the table above.
        means: by group of prompts (None: all of them) and place.
    """

    name: ReplacementName
    means: dict[Group | None, dict[str, Means]] = field(default_factory=dict)


@dataclass(eq=False)
class Values:
    """The clean activations of some examples of equal length, and what replaces them.

    Attributes:
        part: the examples.
        at: clean activations by place, `[token, d]`, packed.
        metric: of each example.
        replacement: which one.
    """

    part: Setup
    at: dict[str, Float[Tensor, "token d"]]
    metric: Float[Tensor, " example"]
    replacement: Replacement
    paired: dict[str, Float[Tensor, "token d"]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.part)

    @property
    def length(self) -> int:
        return len(self.part.clean[0])

    def whole(self, basis: Basis) -> Float[Tensor, "token d"]:
        """The activation with every node replaced."""
        x = self.at[basis.place]
        if self.replacement.name == "zero":
            return basis.compose(x.new_zeros(len(x), basis.width)).to(x)
        if self.replacement.name == "paired":
            return self.paired[basis.place]
        return torch.cat([means.x.expand(self.length, -1) for means in self._means(basis)]).to(x)

    def features(self, basis: Basis, index: Int[Tensor, " node"] | None = None) -> Float[Tensor, "token node"]:
        """What the features, or some of them, are replaced by."""
        x = self.at[basis.place]
        if self.replacement.name == "zero":
            return x.new_zeros(len(x), basis.width if index is None else len(index))
        if self.replacement.name == "paired":
            whole = self.whole(basis)
            return basis.features(whole) if index is None else basis.only(whole, index)
        columns = slice(None) if index is None else index
        return torch.cat([means.features[:, columns].expand(self.length, -1) for means in self._means(basis)])

    def change(self, basis: Basis, rows: Int[Tensor, " row"]) -> Float[Tensor, "row feature"]:
        """Clean minus replaced value of all features at some tokens."""
        x = self.at[basis.place][rows]
        if self.replacement.name == "zero":
            return basis.features(x)
        if self.replacement.name == "paired":
            return basis.features(x) - basis.features(self.paired[basis.place][rows])
        return basis.features(x) - self.features(basis)[rows]

    def error(self, basis: Basis) -> Float[Tensor, "token d"]:
        """What the error term is replaced by."""
        return basis.error(self.whole(basis), self.features(basis))

    def _means(self, basis: Basis) -> list[Means]:
        table = self.replacement.means
        groups: list[Group | None] = [(name, self.length) for name in self.part.clusters]
        if self.replacement.name == "mean-all":
            groups = [None] * self.n
        unknown = [group for group in groups if basis.place not in table.get(group, {})]
        if unknown:
            raise InterventionError(
                f"no mean of {basis.place} was taken over prompts of template and length {unknown[0]}",
                where=f"replacement {self.replacement.name!r}",
                fix="use replacement='mean-all', or take means over pairs of equal length at all places",
            )
        return [table[group][basis.place] for group in groups]


def natural(setup: Setup, key: Key, x: Float[Tensor, "token d"]) -> Tensor:
    """An activation in the form that runs keep it in."""
    return x.unflatten(-1, (setup.model.shape.n_heads, -1)) if key[1] == "z" else x


@torch.no_grad()
def values_of(
    part: Setup,
    bases: Bases,
    replacement: Replacement,
    at: dict[Key, Tensor],
    hidden: Float[Tensor, "read d_model"],
) -> Values:
    """The values of examples of equal length.

    Args:
        at: their clean activations by key.
        hidden: what their logits are computed from.
    """
    found = {basis.place: at[basis.key].flatten(1) for basis in bases}
    values = Values(part, found, part.measure(hidden.detach()), replacement)
    if replacement.name == "paired":
        store = Paired().store(part, range(len(part)), {basis.key: at[basis.key] for basis in bases})
        values.paired = {basis.place: store[basis.key].flatten(1) for basis in bases}
    return values


def replacement(setup: Setup, bases: Bases, how: ReplacementName | Replacement, chunk: int = 16) -> Replacement:
    """A replacement from its name. Means are taken over the corrupt prompts of `setup`.

    Means by position hold one number for each position of a template and feature; they are kept in single precision
    unless the model computes in double.

    Raises:
        InterventionError: an unknown name; a mean over a single prompt.
    """
    if isinstance(how, Replacement):
        return how
    if how not in get_args(ReplacementName):
        names = ", ".join(get_args(ReplacementName))
        raise InterventionError(f"unknown replacement {how!r}", where="replacement", fix=f"use one of {names}")
    return Replacement(how, _means(setup, bases, how == "mean", chunk) if how.startswith("mean") else {})


@torch.no_grad()
def _means(setup: Setup, bases: Bases, by_position: bool, chunk: int) -> dict[Group | None, dict[str, Means]]:
    sums: dict[Group | None, dict[str, list[Tensor]]] = {}
    counts: dict[Group | None, int] = defaultdict(int)
    different: dict[Group | None, set[tuple[int, ...]]] = defaultdict(set)
    for examples in setup.chunks(chunk):
        part = setup.select(examples)
        run = part.record_corrupt([basis.key for basis in bases])
        groups: list[Group | None] = [
            (name, len(ids)) if by_position else None for name, ids in zip(part.clusters, part.corrupt, strict=True)
        ]
        for group, ids in zip(groups, part.corrupt, strict=True):
            different[group].add(tuple(ids))
            counts[group] += 1 if by_position else len(ids)
        for basis in bases:
            x = run.packed(basis.key).flatten(1)
            both = [basis.features(x), x]
            for i, group in enumerate(groups):
                rows = [y[run.offset[i] : run.offset[i + 1]] for y in both]
                rows = [y if by_position else y.sum(0, keepdim=True) for y in rows]
                kept = sums.setdefault(group, {}).setdefault(basis.place, [torch.zeros_like(y) for y in rows])
                for total, y in zip(kept, rows, strict=True):
                    total += y
    lonely = [group for group, prompts in different.items() if len(prompts) < 2]
    if by_position and lonely:
        raise InterventionError(
            f"only one prompt of template and length {lonely[0]}, so that its mean is itself",
            where="replacement 'mean'",
            fix="use replacement='mean-all', or more pairs",
        )
    return {
        group: {place: Means(f / counts[group], x / counts[group]) for place, (f, x) in places.items()}
        for group, places in sums.items()
    }
