"""Built-in tasks by name.

>>> make_task("ioi", n=2, tokenizer=None).name
'ioi'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from crosspatch.errors import TaskError
from crosspatch.tasks.generate.agreement import AGREEMENT
from crosspatch.tasks.generate.base import Behaviour, Corruption
from crosspatch.tasks.generate.docstring import DOCSTRING
from crosspatch.tasks.generate.greater_than import GREATER_THAN
from crosspatch.tasks.generate.induction import INDUCTION
from crosspatch.tasks.generate.ioi import IOI
from crosspatch.tasks.generate.pronoun import PRONOUN
from crosspatch.tasks.pairs import Task

BEHAVIOURS: dict[str, Behaviour] = {b.name: b for b in (IOI, GREATER_THAN, *AGREEMENT, PRONOUN, DOCSTRING, INDUCTION)}


@dataclass(frozen=True)
class TaskInfo:
    """A built-in task: what it is, after whom, and its corruptions (the first is the default)."""

    name: str
    description: str
    source: str
    corruptions: tuple[str, ...]


def list_tasks() -> list[TaskInfo]:
    """All built-in tasks."""
    return [TaskInfo(b.name, b.description, b.source, tuple(b.corruptions)) for b in BEHAVIOURS.values()]


def corruptions(name: str) -> Mapping[str, Corruption]:
    """What each corruption of a built-in task varies and holds fixed. Raises TaskError for an unknown task."""
    return _behaviour(name).corruptions


def make_task(name: str, n: int = 64, seed: int = 0, corruption: str | None = None, tokenizer: Any = None) -> Task:
    """Generate a built-in task.

    One seed gives the same clean prompts for every corruption (as long as the tokenizer rejects none), so corruptions
    can be compared on the same sentences.

    Args:
        name: see `list_tasks()`.
        n: number of different pairs.
        seed: of the choice of words and frames.
        corruption: see `corruptions(name)`; by default its first.
        tokenizer: if given, only words that are single tokens in it are used, so that both prompts have the same
            number of tokens and every answer is one token. Without one, tokenizing aligns by spans where it can.

    Raises:
        TaskError: unknown name or corruption, or words that do not suffice.
    """
    behaviour = _behaviour(name)
    chosen = corruption if corruption is not None else next(iter(behaviour.corruptions))
    if chosen not in behaviour.corruptions:
        raise TaskError(
            f"unknown corruption {chosen!r}", where=f"task {name!r}", fix=f"use {', '.join(behaviour.corruptions)}"
        )
    if n < 1:
        raise TaskError(f"n={n}", where=f"task {name!r}", fix="ask for at least one pair")
    return behaviour.make(n, seed, chosen, tokenizer)


def _behaviour(name: str) -> Behaviour:
    if name not in BEHAVIOURS:
        close = get_close_matches(name, BEHAVIOURS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise TaskError(f"unknown task {name!r}", fix=f"{hint}the tasks are {', '.join(BEHAVIOURS)}")
    return BEHAVIOURS[name]
