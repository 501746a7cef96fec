"""What stands in for a cut part: the paired prompt's value, a mean, zero, or a learned constant.

The choice is part of the question: which circuit there is depends on it (Miller, Chughtai & Saunders 2024).
Biases of the output projections belong to no node and stay. The one input node holds token and position embeddings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from crosspatch.attribution.setup import Setup
from crosspatch.errors import InterventionError
from crosspatch.graph import ModelShape
from crosspatch.model.run import Key

AblationName = Literal["paired", "mean", "mean-all", "zero"]
Store = dict[Key, Tensor]
"""What senders write: `(0, "resid_pre")` is the input `[token, d_model]`, `(layer, "z")` the heads before the output
projection `[token, head, d_head]`, `(layer, "mlp_out")` an MLP `[token, d_model]`; packed, token after token. Other
activations of a run have the same form: `q`, `k` and `v` `[token, head, d_head]`, `mlp_act` `[token, d_mlp]`."""


def sender_keys(shape: ModelShape) -> list[Key]:
    """Where the values of all senders are stored."""
    keys: list[Key] = [(0, "resid_pre")]
    for layer in range(shape.n_layers):
        keys += [(layer, "z")] + ([(layer, "mlp_out")] if shape.has_mlp else [])
    return keys


class Ablation(ABC):
    """Replacement values for every sender of some pairs.

    Attributes:
        name: what it is, for the methodology.
        paired: the replacement of everything at once is the corrupt run.
    """

    name: str
    paired: bool = False

    @abstractmethod
    def store(self, setup: Setup, examples: Sequence[int], clean: Store) -> Store:
        """Replacements at every token of the clean prompts of some examples.

        Args:
            setup: the pairs that the ablation was made for.
            examples: numbers of its examples.
            clean: what the senders write in the clean run of these examples, packed in this order.
        """


class Paired(Ablation):
    """The value on the paired prompt; a token without a partner keeps its own."""

    name = "paired"
    paired = True

    def store(self, setup: Setup, examples: Sequence[int], clean: Store) -> Store:
        part = setup.select(examples)
        run = part.record_corrupt(list(clean))
        found = {key: run.packed(key) for key in clean}
        if part.aligned:
            return found
        to: list[int] = []
        start = 0
        index = []
        for i, (ids, partner) in enumerate(zip(part.clean, part.partner, strict=True)):
            for p, other in enumerate(partner):
                if other is not None:
                    to.append(start + p)
                    index.append(run.offset[i] + other)
            start += len(ids)
        out = {}
        for key, value in clean.items():
            out[key] = value.clone()
            out[key][to] = found[key][index]
        return out


class Zero(Ablation):
    """Zero: removes the whole contribution. Off the distribution."""

    name = "zero"

    def store(self, setup: Setup, examples: Sequence[int], clean: Store) -> Store:
        return {key: torch.zeros_like(value) for key, value in clean.items()}


@dataclass
class Constants(Ablation):
    """One value per sender, whatever the prompt and the position: learned ones (optimal ablation), or your own.

    Args:
        values: by store key, `[head, d_head]` for heads and `[d_model]` for the input and MLPs (as `Store` without
            its tokens).
        name: what they are.
    """

    values: Mapping[Key, Tensor]
    name: str = "constant"

    def store(self, setup: Setup, examples: Sequence[int], clean: Store) -> Store:
        lacking = [key for key in clean if key not in self.values]
        if lacking:
            raise InterventionError(f"no constant for {lacking[0]}", where=self.name, fix="give one for every sender")
        return {key: self.values[key].to(value).expand_as(value) for key, value in clean.items()}


@dataclass
class Mean(Ablation):
    """The mean over the corrupt prompts: at each position of prompts of one template and length, or over all tokens.

    Args:
        means: by group (template and length; `None`: everything) and store key, `[position, ...]` or `[1, ...]`.
    """

    means: dict[tuple[str, int] | None, Store]

    @property
    def name(self) -> str:  # type: ignore[override]
        return "mean-all" if None in self.means else "mean"

    def store(self, setup: Setup, examples: Sequence[int], clean: Store) -> Store:
        known = next(iter(self.means.values()))
        lacking = [key for key in clean if key not in known]
        if lacking:
            raise InterventionError(
                f"no mean of {lacking[0]} was taken", where=self.name, fix="name it in the keys of mean_of"
            )
        if None in self.means:
            return {key: self.means[None][key].to(value).expand_as(value) for key, value in clean.items()}
        groups = [(setup.clusters[i], len(setup.clean[i])) for i in examples]
        unknown = [group for group in groups if group not in self.means]
        if unknown:
            raise InterventionError(
                f"no corrupt prompt of template {unknown[0][0]!r} has {unknown[0][1]} tokens, so that there is no mean "
                "at each position",
                where="mean ablation",
                fix="use ablation='mean-all', or pairs of equal length",
            )
        return {key: torch.cat([self.means[group][key] for group in groups]) for key in clean}


def mean_of(setup: Setup, per_position: bool = True, chunk: int = 32, keys: Sequence[Key] | None = None) -> Mean:
    """The mean of every sender, or of the activations `keys`, over the corrupt prompts of some pairs."""
    keys = sender_keys(setup.model.shape) if keys is None else keys
    totals: dict[tuple[str, int] | None, Store] = {}
    counts: dict[tuple[str, int] | None, int] = defaultdict(int)
    different: dict[tuple[str, int] | None, set[tuple[int, ...]]] = defaultdict(set)
    for examples in setup.chunks(chunk):
        part = setup.select(examples)
        run = part.record_corrupt(keys)
        for i in range(len(part)):
            group = (part.clusters[i], len(part.corrupt[i])) if per_position else None
            span = slice(run.offset[i], run.offset[i + 1])
            values = {key: run.packed(key)[span] for key in keys}
            if not per_position:
                values = {key: value.sum(0, keepdim=True) for key, value in values.items()}
            different[group].add(tuple(part.corrupt[i]))
            counts[group] += 1 if per_position else len(part.corrupt[i])
            sums = totals.setdefault(group, {})
            for key, value in values.items():
                sums[key] = sums[key] + value if key in sums else value.clone()
    lonely = [group for group, prompts in different.items() if len(prompts) < 2]
    if per_position and lonely:
        raise InterventionError(
            f"only one prompt of template {lonely[0][0]!r} has {lonely[0][1]} tokens, so that its mean is itself",  # type: ignore[index]
            where="mean ablation",
            fix="use ablation='mean-all', or more pairs",
        )
    return Mean({group: {key: value / counts[group] for key, value in sums.items()} for group, sums in totals.items()})


def resolve_ablation(ablation: AblationName | Ablation, setup: Setup, keys: Sequence[Key] | None = None) -> Ablation:
    """An ablation from its name. Means are taken over the corrupt prompts of `setup`: of every sender, or of `keys`.

    Raises:
        InterventionError: an unknown name; a mean over a single prompt.
    """
    if isinstance(ablation, Ablation):
        return ablation
    if ablation == "paired":
        return Paired()
    if ablation == "zero":
        return Zero()
    if ablation in ("mean", "mean-all"):
        return mean_of(setup, per_position=ablation == "mean", keys=keys)
    raise InterventionError(
        f"unknown ablation {ablation!r}",
        where="ablation",
        fix=f"use one of {', '.join(get_args(AblationName))}, or an Ablation",
    )
