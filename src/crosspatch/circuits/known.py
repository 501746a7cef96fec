"""Compiled transformers as test cases: their examples as pairs, and the edges that a method has to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from crosspatch.attribution.setup import Setup
from crosspatch.compiled import KnownCircuit
from crosspatch.metrics import AnswerLogit, LogitDiff, LogitDistance, Targets, pad
from crosspatch.model import Model

PAIRINGS = (1, 7, 23)
"""Example i against example i + n: the pairings with which the known effects were measured."""


def program_setup(model: Model, known: KnownCircuit, pairings: Sequence[int] = PAIRINGS) -> Setup:
    """One row for each position of each example and pairing: the program's answer there against all other outputs.

    Rows have single positions, because effects of opposite sign at two positions must not cancel. A program whose
    output is a number is measured by that number.
    """
    tokens = known.tokens()
    n = len(tokens)
    rows = [(i, (i + shift) % n, p) for shift in pairings for i in range(n) for p in range(1, len(tokens[i]))]
    outputs = [np.asarray(known.examples[i].output[p]) for i, _, p in rows]
    answers = [[int(output.argmax())] for output in outputs]
    wrong = [[j for j in range(len(output)) if j != best[0]] for output, best in zip(outputs, answers, strict=True)]
    return Setup(
        model,
        [tokens[i] for i, _, _ in rows],
        [tokens[j] for _, j, _ in rows],
        [(p,) for *_, p in rows],
        [tuple(range(len(tokens[i]))) for i, *_ in rows],
        LogitDiff() if wrong[0] else AnswerLogit(),
        Targets(pad(answers), pad(wrong)),
        [{} for _ in rows],
        [known.program.name for _ in rows],
        {"task": known.program.name, "pairings": list(pairings)},
    )


def distance_setup(model: Model, known: KnownCircuit, shift: int = 1) -> Setup:
    """One row for each position of each example, measured by how far all outputs are from the clean run's.

    A distance cannot cancel between rows, so that a search by mean change (ACDC) sees every change of an output.
    """
    setup = program_setup(model, known, (shift,))
    targets = replace(setup.targets, clean_logits=setup.record_clean().logits())
    return replace(setup, metric=LogitDistance(), targets=targets)


def needed_edges(known: KnownCircuit, ablation: str) -> Bool[np.ndarray, " edge"]:
    """The edges whose cut alone changes an output, under the ablation of the same name ("paired": resample)."""
    return known.mask(known.necessary("resample" if ablation == "paired" else ablation))
