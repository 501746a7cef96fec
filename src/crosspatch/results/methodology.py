"""How a result was made, and whether two results may be compared.

A circuit claim depends on granularity, component type, ablation value, token positions, ablation direction and the set
of components ablated (Miller, Chughtai & Saunders 2024, Transformer Circuit Faithfulness Metrics Are Not Robust), on
top of model, data and metric. Results that differ in any of these answer different questions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from crosspatch.errors import ResultError

Mode = Literal["exploratory", "confirmatory"]
UNEDITED = "load a file that crosspatch wrote, unedited"


@dataclass(frozen=True)
class Methodology:
    """Everything that a number in the effect table depends on.

    Attributes:
        granularity: how fine the patched parts are (`residual`, `block`, `head`, `qkv`, `neuron`).
        component: kinds of site that were patched (`z`, `mlp_out`, ...).
        source: what was inserted (the ablation), with its settings: `paired`, `zero`, `mean(...)`, `noise(...)`.
        positions: position names that were patched.
        direction: `denoise`, `noise`, or both.
        window: number of consecutive layers patched together.
        given: addresses that stayed replaced throughout (conditional ablation).
        metrics: names of the metrics, the primary one first.
        task, task_hash, n_examples, split, corruption: the pairs.
        model, config_hash, weights_hash, dtype: the model.
        seeds: name to seed of everything random.
        versions: package to version, see `versions`.
        mode: exploratory (where to look) or confirmatory (one claim, held-out pairs).
        forced: a gate failed and the run went on at the user's word.
    """

    granularity: tuple[str, ...]
    component: tuple[str, ...]
    source: str
    positions: tuple[str, ...]
    direction: tuple[str, ...]
    metrics: tuple[str, ...]
    task: str
    task_hash: str
    n_examples: int
    model: str
    config_hash: str
    weights_hash: str
    dtype: str
    split: str = "all"
    corruption: str = ""
    window: int = 1
    given: tuple[str, ...] = ()
    seeds: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    mode: Mode = "exploratory"
    forced: bool = False

    def hash(self) -> str:
        """SHA-256 of all fields: equal only for runs that must give the same numbers."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {
            f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value
            for f in dataclasses.fields(self)
        }

    @classmethod
    def from_json(cls, data: object, where: str) -> Methodology:
        """Read what `to_json` gave.

        Raises:
            ResultError: a field that is missing, unknown, or of another type; named.
        """
        if not isinstance(data, dict):
            raise ResultError(f"expected an object, found {type(data).__name__}", where=where, fix=UNEDITED)
        types = typing.get_type_hints(cls)
        required = {
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        for name in sorted(required - data.keys()) + sorted(map(str, data.keys() - types.keys())):
            raise ResultError(
                f"{'missing' if name in required else 'unknown'} field {name!r}",
                where=where,
                fix=UNEDITED,
            )
        return cls(**{name: _typed(value, types[name], f"{where}.{name}") for name, value in data.items()})


def _typed(value: Any, expected: Any, where: str) -> Any:
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is tuple:
        good = type(value) is list and all(type(item) is str for item in value)
    elif origin is dict:
        good = type(value) is dict and all(type(item) is args[1] for item in value.values())
    else:
        good = value in args if origin is Literal else type(value) is expected
    if not good:
        kind = expected.__name__ if type(expected) is type else expected
        raise ResultError(f"{value!r} is not {kind}", where=where, fix=UNEDITED)
    return tuple(value) if origin is tuple else value


COMPARED = (
    "granularity",
    "component",
    "source",
    "positions",
    "direction",
    "window",
    "given",
    "metrics",
    "task_hash",
    "n_examples",
    "split",
    "corruption",
    "config_hash",
    "weights_hash",
    "dtype",
)
"""The fields in which comparable results agree. Names, seeds, versions, mode and `forced` are shown, not compared."""


def differences(a: Methodology, b: Methodology, ignore: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """The fields of `COMPARED` in which two methodologies differ, with both values (order does not matter)."""

    def plain(value: Any) -> Any:
        return set(value) if isinstance(value, tuple) else value

    pairs = {name: (getattr(a, name), getattr(b, name)) for name in COMPARED if name not in ignore}
    return {name: (x, y) for name, (x, y) in pairs.items() if plain(x) != plain(y)}


def require_comparable(a: Methodology, b: Methodology, ignore: Collection[str] = ()) -> None:
    """Refuse two results that answer different questions.

    Raises:
        ResultError: names every field of `COMPARED` that differs, with both values; or an unknown name in `ignore`.
    """
    unknown = sorted(set(ignore) - set(COMPARED))
    if unknown:
        raise ResultError(f"unknown field {unknown[0]!r}", where="ignore", fix=f"use some of {', '.join(COMPARED)}")
    differing = differences(a, b, ignore)
    if differing:
        listed = "; ".join(f"{name}: {_show(x)} against {_show(y)}" for name, (x, y) in differing.items())
        raise ResultError(
            f"these results were made in different ways and cannot be set side by side ({listed})",
            where="methodology",
            fix=f"run both the same way; ignore={tuple(differing)!r} compares answers to different questions",
        )


def _show(value: Any) -> str:
    text = ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("crosspatch", "torch", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
