"""Sources that draw on a set of prompts: its mean, or a random one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.errors import InterventionError
from crosspatch.graph import Site
from crosspatch.model import Edit, FromRun, Run, record
from crosspatch.patching.positions import Spot
from crosspatch.patching.sources import Bound, Direction, Setting, Source, seed_of
from crosspatch.tasks.pairs import Task
from crosspatch.tasks.tokenize import TokenizedTask

Over = Literal["clean", "corrupt"] | Task | Sequence[Sequence[int]]
"""A side of the task, another task (its clean prompts), or prompts as token ids."""


@dataclass(frozen=True)
class Mean(Source):
    """The mean over a set of prompts.

    Args:
        over: "clean" or "corrupt" prompts of the task, another `Task` (its clean prompts), or lists of token ids.
        per: "position": same place in the prompt, over prompts of the same template where there are any; "span": one
            mean over all tokens of the span; "all": one mean over all tokens of all prompts.
    """

    over: Over = "corrupt"
    per: Literal["position", "span", "all"] = "position"
    caution = "a mean depends on its set of prompts and keeps whatever that set shares"

    def __post_init__(self) -> None:
        if self.per not in ("position", "span", "all"):
            raise InterventionError(f"per={self.per!r}", where="Mean", fix="per is 'position', 'span' or 'all'")

    def allows(self, direction: Direction) -> bool:
        return direction == "noise" or self.over == "clean"

    def bind(self, setting: Setting, sites: Sequence[Site]) -> Bound:
        return _Mean(Reference.of(self.over, setting, sites), self.per)

    def describe(self) -> dict[str, Any]:
        return {"source": "mean", "over": _over_name(self.over), "per": self.per}


@dataclass(frozen=True)
class Resample(Source):
    """The value on a random other prompt of a set, at the same place.

    Args:
        over: as in `Mean`.
        draws: prompts drawn per example, without replacement.
        seed: of the draws.
    """

    over: Over = "corrupt"
    draws: int = 5
    seed: int = 0
    caution = "an unpaired prompt differs in more than the thing that is studied"

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InterventionError(f"draws={self.draws}", where="Resample", fix="use at least one draw")

    def allows(self, direction: Direction) -> bool:
        return direction == "noise" or self.over == "clean"

    def bind(self, setting: Setting, sites: Sequence[Site]) -> Bound:
        return _Resample(Reference.of(self.over, setting, sites), self.draws, self.seed)

    def describe(self) -> dict[str, Any]:
        return {"source": "resample", "over": _over_name(self.over), "draws": self.draws, "seed": self.seed}


def _over_name(over: Over) -> str:
    if isinstance(over, str):
        return over
    return f"task {over.name} ({over.hash})" if isinstance(over, Task) else f"{len(over)} prompts given as token ids"


@dataclass
class Reference:
    """A recorded set of prompts, searched for places that match a spot of the task.

    Attributes:
        own: the set is a side of the task itself, so example i is its own i-th prompt.
        spans: per prompt, where its roles are; empty for prompts given as token ids.
    """

    run: Run
    spans: list[dict[str, tuple[int, int]]]
    templates: list[str]
    task: TokenizedTask
    own: bool
    _cache: dict[tuple[int, Spot, bool], list[tuple[int, tuple[int, ...]]]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, over: Over, setting: Setting, sites: Sequence[Site]) -> Reference:
        """Record the set, or take a run that exists."""
        tokenized = setting.tokenized
        if isinstance(over, str):
            if over not in ("clean", "corrupt"):
                raise InterventionError(
                    f"over={over!r}", where="source", fix="use 'clean', 'corrupt', a Task, or lists of token ids"
                )
            spans = tokenized.spans if over == "clean" else tokenized.corrupt_spans
            return cls(setting.runs[over], spans, tokenized.clusters, tokenized, True)
        if isinstance(over, Task):
            other = over.tokenize(setting.model.tokenizer)
            run = record(setting.model, other.clean, sites, budget_mib=setting.budget_mib)
            return cls(run, other.spans, other.clusters, tokenized, False)
        run = record(setting.model, over, sites, budget_mib=setting.budget_mib)
        return cls(run, [{} for _ in over], ["" for _ in over], tokenized, False)

    def matches(self, example: int, spot: Spot, others_only: bool = False) -> list[tuple[int, tuple[int, ...]]]:
        """Prompts of the set with the positions that correspond to a spot, same template first choice.

        Raises:
            InterventionError: no prompt of the set has a place like this one.
        """
        key = (example, spot, others_only)
        if key not in self._cache:
            found = [(i, at) for i in range(len(self.run)) if (at := self._place(i, spot)) is not None]
            if others_only and self.own:
                found = [(i, at) for i, at in found if i != example]
            same = [(i, at) for i, at in found if self.templates[i] == self.task.clusters[example]]
            self._cache[key] = same or found
        if not self._cache[key]:
            raise InterventionError(
                f"none of the {len(self.run)} reference prompts has a place like {spot.name!r} "
                f"({len(spot.positions)} tokens) of example {example}",
                where="source",
                fix="use reference prompts with the same spans or the same number of tokens, or Mean(per='all')",
            )
        return self._cache[key]

    def _place(self, prompt: int, spot: Spot) -> tuple[int, ...] | None:
        """Positions of one reference prompt that correspond to a spot: by span if it has it, else by index."""
        span = self.spans[prompt].get(spot.name) if isinstance(spot.name, str) else None
        if span is not None:
            at = tuple(range(*span))
            return at if len(at) == len(spot.positions) else None
        length = len(self.run.tokens[prompt])
        return spot.positions if all(p < length for p in spot.positions) else None


@dataclass
class _Mean(Bound):
    reference: Reference
    per: str
    _cache: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False)

    def edit(self, direction: Direction, site: Site, example: int, spot: Spot, draw: int) -> Edit | None:
        return Edit(site, spot.positions, self._mean(site, example, spot)) if spot.positions else None

    def _mean(self, site: Site, example: int, spot: Spot) -> Float[Tensor, "position width"]:
        run = self.reference.run
        if self.per == "all":
            places = [(i, tuple(range(len(ids)))) for i, ids in enumerate(run.tokens)]
        else:
            places = self.reference.matches(example, spot)
        key = (site, self.per, tuple(places))
        if key not in self._cache:
            values = [run.value(site, i)[list(at)].double() for i, at in places]
            if site.kind == "pattern" and len({value.shape for value in values}) > 1:
                raise InterventionError(
                    "attention patterns of prompts of unequal length have no mean",
                    where=str(site),
                    fix="patch q or k instead",
                )
            mean = torch.stack(values).mean(0) if self.per == "position" else torch.cat(values).mean(0)
            self._cache[key] = mean.to(values[0].device, run.value(site, 0).dtype)
        return self._cache[key]


@dataclass
class _Resample(Bound):
    reference: Reference
    draws: int
    seed: int

    def edit(self, direction: Direction, site: Site, example: int, spot: Spot, draw: int) -> Edit | None:
        if not spot.positions:
            return None
        found = self.reference.matches(example, spot, others_only=True)
        # The same prompt at every site of a row: a joint patch must come from one run.
        order = torch.randperm(
            len(found), generator=torch.Generator().manual_seed(seed_of(self.seed, example))
        ).tolist()
        prompt, at = found[order[draw % len(order)]]
        return Edit(site, spot.positions, FromRun(self.reference.run, prompt, at))
