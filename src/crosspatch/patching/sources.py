"""Where an inserted value comes from.

The default is the paired prompt, which changes only what the two prompts do not share (rule A2 of the method).
Every other source is a choice to be named, and says what it adds of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from crosspatch.errors import InterventionError
from crosspatch.graph import Site
from crosspatch.model import Edit, FromRun, Model, Run
from crosspatch.patching.positions import OTHER, Side, Spot
from crosspatch.tasks.tokenize import TokenizedTask

Direction = Literal["denoise", "noise"]
DIRECTIONS: tuple[Direction, ...] = ("denoise", "noise")
BASE: dict[Direction, Side] = {"denoise": "corrupt", "noise": "clean"}
"""The run that is intervened on."""


@dataclass(frozen=True)
class Setting:
    """What a source may draw on: the model, the task and its two runs."""

    model: Model
    tokenized: TokenizedTask
    runs: Mapping[Side, Run]
    budget_mib: float | None = None


class Source(ABC):
    """Where inserted values come from.

    Attributes:
        directions: directions in which it makes sense; `direction="both"` means these.
        draws: number of values per example; metrics are averaged over them.
        caution: what it adds of its own; empty for the paired prompt.
    """

    directions: ClassVar[tuple[Direction, ...]] = ("noise",)
    caution: ClassVar[str] = ""
    draws: int = 1

    @abstractmethod
    def bind(self, setting: Setting, sites: Sequence[Site]) -> Bound:
        """Do what has to be done once (record a reference set, say) and return what makes the edits."""

    def allows(self, direction: Direction) -> bool:
        return direction in self.directions

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """For the methodology: JSON values."""


class Bound(ABC):
    """A source ready to make edits."""

    @abstractmethod
    def edit(self, direction: Direction, site: Site, example: int, spot: Spot, draw: int) -> Edit | None:
        """The edit of one site at one spot of one example; None when there is nothing to insert."""


@dataclass(frozen=True)
class OtherRun(Source):
    """The paired prompt's value at the same place: the corrupt run's when noising, the clean run's when denoising."""

    directions = DIRECTIONS

    def bind(self, setting: Setting, sites: Sequence[Site]) -> Bound:
        return _OtherRun(setting.runs)

    def describe(self) -> dict[str, Any]:
        return {"source": "other run"}


@dataclass(frozen=True)
class _OtherRun(Bound):
    runs: Mapping[Side, Run]

    def edit(self, direction: Direction, site: Site, example: int, spot: Spot, draw: int) -> Edit | None:
        if not spot.paired:
            return None
        run = self.runs[OTHER[BASE[direction]]]
        return Edit(site, spot.paired, FromRun(run, example, spot.partners))


@dataclass(frozen=True)
class Zero(Source):
    """Zero: removes the whole contribution."""

    caution = (
        "zero lies off the distribution: an effect may come from the strange value rather than from what was removed"
    )

    def bind(self, setting: Setting, sites: Sequence[Site]) -> Bound:
        return _Fixed(lambda site, example, spot, draw: torch.zeros(1))

    def describe(self) -> dict[str, Any]:
        return {"source": "zero"}


@dataclass(frozen=True)
class Given(Source):
    """A value of your own.

    Args:
        value: `[width]` or `[position, width]` for every site, or a mapping from a site's name to such a tensor.
    """

    value: Tensor | Mapping[str, Tensor]
    directions = DIRECTIONS
    caution = "a given value may lie off the distribution"

    def bind(self, setting: Setting, sites: Sequence[Site]) -> Bound:
        value = self.value
        if isinstance(value, Tensor):
            return _Fixed(lambda site, example, spot, draw: value)
        lacking = [str(site) for site in sites if str(site) not in value]
        if lacking:
            raise InterventionError(
                f"no value is given for {', '.join(lacking[:5])}",
                where="Given",
                fix=f"the mapping has {', '.join(list(value)[:5])}; patch those sites only, or add the missing ones",
            )
        return _Fixed(lambda site, example, spot, draw: value[str(site)])

    def describe(self) -> dict[str, Any]:
        given = {"*": self.value} if isinstance(self.value, Tensor) else self.value
        return {"source": "given", "shapes": {name: list(value.shape) for name, value in given.items()}}


@dataclass(frozen=True)
class Function(Source):
    """A function of the present value: `fn([position, width]) -> [position, width]`, applied in the base run."""

    fn: Callable[[Tensor], Tensor]
    directions = DIRECTIONS
    caution = "the value is whatever the function makes of it"

    def bind(self, setting: Setting, sites: Sequence[Site]) -> Bound:
        return _Fixed(lambda site, example, spot, draw: self.fn)

    def describe(self) -> dict[str, Any]:
        return {"source": "function", "function": getattr(self.fn, "__qualname__", repr(self.fn))}


@dataclass(frozen=True)
class _Fixed(Bound):
    """Values that need nothing but the place they go to."""

    value: Callable[[Site, int, Spot, int], Any]

    def edit(self, direction: Direction, site: Site, example: int, spot: Spot, draw: int) -> Edit | None:
        return Edit(site, spot.positions, self.value(site, example, spot, draw)) if spot.positions else None


@dataclass(frozen=True)
class GaussianNoise(Source):
    """The present value plus normal noise of `scale` times the standard deviation of the token embeddings.

    Meng et al. 2022 (arXiv 2202.05262) add it to the subject's embeddings, with scale 3 and 10 draws.

    Args:
        scale: in standard deviations of the token embeddings.
        draws: number of draws per example.
        seed: of the noise. Equal sites, examples and draws get equal noise.
    """

    scale: float = 3.0
    draws: int = 10
    seed: int = 0
    caution = "noise lies off the distribution and breaks parts that a paired prompt leaves alone"

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.draws < 1:
            raise InterventionError(
                f"scale={self.scale}, draws={self.draws}",
                where="GaussianNoise",
                fix="use scale > 0 and at least one draw",
            )

    def bind(self, setting: Setting, sites: Sequence[Site]) -> Bound:
        size = self.scale * embedding_std(setting.model)
        return _Fixed(lambda site, example, spot, draw: self.adder(size, site, example, draw))

    def adder(self, size: float, site: Site, example: int, draw: int) -> Callable[[Tensor], Tensor]:
        """The function that adds this draw's noise."""

        def add(present: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(seed_of(self.seed, str(site), example, draw))
            noise = torch.randn(present.shape, generator=generator)
            return present + (size * noise).to(present)

        return add

    def describe(self) -> dict[str, Any]:
        return {"source": "gaussian noise", "scale": self.scale, "draws": self.draws, "seed": self.seed}


def seed_of(*parts: object) -> int:
    """A seed that depends on every part and on nothing else (Python's `hash` differs between processes)."""
    seed = 0
    for byte in "/".join(map(str, parts)).encode():
        seed = (seed * 1_000_003 + byte) % (2**63 - 1)
    return seed


def embedding_std(model: Model, sample: int = 512) -> float:
    """Standard deviation of the token embeddings as the first block reads them.

    Over `sample` tokens spread evenly over the vocabulary, each alone at the first position; what all tokens share
    (a position embedding, say) is taken out.
    """
    step = max(1, model.n_tokens // sample)
    embedded = model.embed([[token] for token in range(0, model.n_tokens, step)]).float()
    return float((embedded - embedded.mean(0)).std())


def as_source(source: Any) -> Source:
    """Refuse what is not a source, with the source that was probably meant.

    Raises:
        InterventionError: no source, or something else.
    """
    if isinstance(source, Source):
        return source
    meant = "OtherRun() for the paired prompt's value"
    if isinstance(source, Tensor):
        meant = "Given(tensor)"
    elif isinstance(source, type) and issubclass(source, Source):
        meant = f"{source.__name__}(...)"
    elif callable(source):
        meant = "Function(fn)"
    got = "no source was given" if source is None else f"{type(source).__name__} is not a source"
    raise InterventionError(got, where="source", fix=f"use {meant}; others are Mean, Zero, GaussianNoise, Resample")
