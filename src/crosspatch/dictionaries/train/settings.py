"""What is trained, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from crosspatch.dictionaries.places import check_place
from crosspatch.dictionaries.train.coder import Variant
from crosspatch.errors import DictionaryError


@dataclass(frozen=True)
class Job:
    """One dictionary to train.

    Args:
        variant: `Standard(l1=...)`, `TopK(k=...)`, ...
        reads: the place, or several (a crosscoder).
        width: number of features.
        writes: what it reconstructs; None = what it reads. Another place makes a transcoder.
        skip: with a linear part from input to output (transcoders only).
        cross_layer: a cross-layer transcoder: `reads` and `writes` list the places of all layers, an equal share of the
            features reads each place of `reads` alone and writes the same place of `writes` and those after it.
            `CrossLayer.split` takes the result apart. (The zero blocks are held in memory.)
        lr: learning rate; None = the variant's own.
        name: what reports call it; None = made from the above.

    Raises:
        DictionaryError: sizes that cannot be, or a skip connection in an autoencoder.
    """

    variant: Variant
    reads: str | tuple[str, ...]
    width: int
    writes: str | tuple[str, ...] | None = None
    skip: bool = False
    cross_layer: bool = False
    lr: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or (self.lr is not None and not self.lr > 0):
            raise DictionaryError(f"width {self.width}, lr {self.lr}", where="Job", fix="both must be above 0")
        amount = getattr(self.variant, self.variant.sparsity)
        if not 0 <= amount < float("inf"):
            raise DictionaryError(f"{self.variant.sparsity} is {amount}", where="Job", fix="it must not be below 0")
        k = getattr(self.variant, "k", 1)
        if not 0 < k <= self.width:
            raise DictionaryError(f"k is {k} of {self.width} features", where="Job")
        if self.skip and self.places_in == self.places_out:
            raise DictionaryError("an autoencoder with a skip connection learns nothing", where="Job", fix="skip=False")
        n = len(self.places_in)
        if self.cross_layer and (
            n != len(self.places_out) or self.width % n or self.skip or self.places_in == self.places_out
        ):
            raise DictionaryError(
                f"{n} places read, {len(self.places_out)} written, {self.width} features, skip {self.skip}",
                where="a cross-layer transcoder",
                fix="as many other places written as read, a number of features that they divide, and no skip",
            )
        if self.cross_layer and self.variant.name == "topk":
            raise DictionaryError(
                "TopK would select among the features of all layers at once", where="Job", fix="use BatchTopK"
            )

    @property
    def places_in(self) -> tuple[str, ...]:
        return _places(self.reads)

    @property
    def places_out(self) -> tuple[str, ...]:
        return self.places_in if self.writes is None else _places(self.writes)

    @property
    def label(self) -> str:
        """`topk k=32 r3 512`, or the given name."""
        if self.name is not None:
            return self.name
        knob = self.variant.sparsity
        to = "" if self.writes is None else f" -> {' '.join(self.places_out)}"
        value = getattr(self.variant, knob)
        return f"{self.variant.name} {knob}={value:g} {' '.join(self.places_in)}{to} {self.width}"

    def plain(self) -> dict[str, Any]:
        """As plain data, to compare and to record."""
        own = {f.name: getattr(self.variant, f.name) for f in fields(self.variant)}  # type: ignore[arg-type]
        return {
            "variant": self.variant.name,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in own.items()},
            "reads": list(self.places_in),
            "writes": list(self.places_out),
            "width": self.width,
            "skip": self.skip,
            "cross_layer": self.cross_layer,
            "lr": self.variant.learning_rate(self.width) if self.lr is None else self.lr,
        }


@dataclass(frozen=True)
class Settings:
    """How long and with what schedule.

    Args:
        steps: optimiser steps.
        batch: tokens per step.
        lr_warmup: steps in which the learning rate rises to its value.
        lr_decay: share of the steps, at the end, in which it falls to 0.
        sparsity_warmup: steps in which penalties rise to their value.
        dead_after: tokens without activity after which a feature counts as dead.
        resample_every: steps between replacements of dead features, in variants that replace them; none happen in the
            last fifth of training.
        clip: largest norm of the gradient.
        autocast: compute in bfloat16 where that is safe; parameters stay in float32.
        seed: of initial weights, order and replacements.

    Raises:
        DictionaryError: a number that cannot be.
    """

    steps: int = 10_000
    batch: int = 4096
    lr_warmup: int = 500
    lr_decay: float = 0.2
    sparsity_warmup: int = 1000
    dead_after: int = 2_000_000
    resample_every: int = 2000
    clip: float = 1.0
    autocast: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        low = [name for name in ("steps", "batch", "dead_after", "resample_every", "clip") if getattr(self, name) <= 0]
        low += [name for name in ("lr_warmup", "sparsity_warmup", "lr_decay") if getattr(self, name) < 0]
        if low or self.lr_decay > 1:
            name = low[0] if low else "lr_decay"
            raise DictionaryError(f"{name} is {getattr(self, name)}", where="Settings")

    def lr_factor(self, step: int) -> float:
        """What the learning rate is multiplied by at a step."""
        rise = min(1.0, (step + 1) / (self.lr_warmup + 1))
        left = (self.steps - step) / max(1.0, self.lr_decay * self.steps)
        return rise * min(1.0, left)

    def sparsity_factor(self, step: int) -> float:
        """What penalties are multiplied by at a step."""
        return min(1.0, (step + 1) / (self.sparsity_warmup + 1))


def sweep(job: Job, values: Sequence[float]) -> list[Job]:
    """The same job at several sparsities: one pass of the model then trains them all.

    `values` are of the field that sets the variant's sparsity (`l1`, `k` or `target_l0`).
    """
    knob = job.variant.sparsity
    made = []
    for value in values:
        wanted = int(value) if knob == "k" else float(value)
        variant: Any = replace(job.variant, **{knob: wanted})  # type: ignore[type-var]
        name = None if job.name is None else f"{job.name} {knob}={wanted:g}"
        made.append(replace(job, variant=variant, name=name))
    return made


def _places(places: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(check_place, (places,) if isinstance(places, str) else places))
