"""What `crosspatch circuit` works on: pairs with a metric, and circuits from files of several kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from crosspatch.cli.inputs import load_task
from crosspatch.errors import CircuitError, TaskError

if TYPE_CHECKING:
    from crosspatch.attribution.ablation import Ablation
    from crosspatch.attribution.setup import Setup
    from crosspatch.circuits import Circuit
    from crosspatch.graph import ModelShape
    from crosspatch.model import Model
    from crosspatch.tasks import GateReport

REFERENCE = "reference:"
EVERY_SPAN = "all"


@dataclass(frozen=True)
class Settings:
    """The options that say what the pairs are, what is measured on them and how they are divided."""

    task: str = "ioi"
    model: str = "embedded"
    corruption: str | None = None
    n: int = 64
    metric: str = "logit_diff"
    ablation: str = "paired"
    held_out: float = 0.5
    seed: int = 0
    dtype: str | None = None
    device: str | None = None

    def changed(self, **given: Any) -> Settings:
        """With the options that were given on the command line."""
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, eq=False)
class Given:
    """Pairs that passed their gates.

    Attributes:
        setup: all pairs; `search` is the part that may be searched on.
        ablation: what cut edges carry. Means are taken over all corrupt prompts, constants learned on `search`.
        about: behaviour and data, in words.
        spans: named positions that every pair has, in the order of the first prompt.
    """

    setup: Setup
    search: Setup
    ablation: Ablation
    gates: GateReport
    about: dict[str, str]
    spans: tuple[str, ...]


def pairs_of(model: Model, asked: Settings, force: bool, progress: Any = None) -> Given:
    """Pairs ready for attribution.

    Raises:
        GateError: a gate failed and --force was not given.
        TaskError, MetricError: see `load_task` and `setup_of`.
    """
    from crosspatch.attribution.ablation import resolve_ablation
    from crosspatch.attribution.setup import setup_of
    from crosspatch.tasks import gates
    from crosspatch.tasks.tokenize import tokenize

    task = load_task(asked.task, model.tokenizer, asked.n, asked.seed, asked.corruption)
    tokenized = tokenize(task, model.tokenizer)
    report = gates(model, tokenized).require(force)
    setup = setup_of(model, tokenized, asked.metric)
    search, _ = setup.split(asked.held_out, asked.seed)
    if asked.ablation == "optimal":
        from crosspatch.attribution.optimal import optimal_constants

        ablation: Ablation = optimal_constants(search, seed=asked.seed, progress=progress).ablation
    else:
        ablation = resolve_ablation(asked.ablation, setup)  # type: ignore[arg-type]
    first = setup.spans[0]
    common = [name for name in sorted(first, key=lambda s: first[s]) if all(name in spans for spans in setup.spans)]
    said = {"behaviour": task.description, "varies": task.varies, "held fixed": task.holds, "data": task.provenance}
    about = {name: text for name, text in said.items() if text}
    return Given(setup, search, ablation, report, about, tuple(common))


def spans_of(given: Given, asked: Sequence[str]) -> tuple[str, ...]:
    """The spans that were asked for, in the order of the prompt.

    Raises:
        TaskError: one that not every pair has.
    """
    if EVERY_SPAN in asked:
        return given.spans
    missing = [name for name in asked if name not in given.spans]
    if missing:
        raise TaskError(f"no span {missing[0]!r} in every pair", where="--span", fix=f"use {', '.join(given.spans)}")
    return tuple(name for name in given.spans if name in asked)


def circuit_of(text: str, shape: ModelShape | None = None) -> tuple[Circuit, Float[np.ndarray, " edge"] | None]:
    """A circuit from what was typed, and its edges' scores where the file has any.

    Raises:
        CircuitError: nothing there, or not readable as a circuit.
    """
    from crosspatch.circuits import read_circuit, reference
    from crosspatch.report.circuits_files import CIRCUIT, SCORES

    if text.startswith(REFERENCE):
        return reference(text.removeprefix(REFERENCE), shape).circuit, None
    path = Path(text)
    if path.is_dir():
        if not (path / CIRCUIT).is_file():
            fix = "give a folder of `crosspatch circuit find`, a file, or reference:ioi"
            raise CircuitError(f"the folder holds no {CIRCUIT}", where=text, fix=fix)
        circuit, _ = read_circuit(path / CIRCUIT, shape)
        if (path / SCORES).is_dir():
            from crosspatch.attribution.scores import load_scores

            return circuit, load_scores(path / SCORES).mean
        return circuit, None
    if not path.is_file():
        raise CircuitError("no such file", where=text, fix="give a folder, a file, or reference:ioi")
    return read_circuit(path, shape)
