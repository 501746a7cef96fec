"""The field's public prompt sets, read from where the user has them. Nothing is copied into the package.

The folder has one sub-folder per set (`ioi/`, `greater-than/`, ...), with the files under their original names. It is
the `root` argument, else the environment variable CROSSPATCH_DATA, else `../shared/data` beside a checkout of the
repository.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from crosspatch.errors import TaskError
from crosspatch.tasks.generate.base import Vocabulary
from crosspatch.tasks.pairs import Task
from crosspatch.tasks.public import choices, facts, names, prefixes
from crosspatch.tasks.public.source import Source

REPOSITORY = Path(__file__).resolve().parents[4]


def find_data(root: str | Path | None = None) -> Path | None:
    """The folder of public data, or None. Raises TaskError if a folder was named that does not exist."""
    named = root if root is not None else os.environ.get("CROSSPATCH_DATA")
    if named is not None:
        if not Path(named).is_dir():
            raise TaskError("no such folder", where=str(named), fix="name a folder with ioi/, greater-than/, ...")
        return Path(named)
    beside = REPOSITORY.parent / "shared" / "data"
    return beside if beside.is_dir() else None


def list_public(root: str | Path | None = None) -> list[str]:
    """Names of the public sets that are there, for `load_public`. Empty without a data folder."""
    folder = find_data(root)
    return [] if folder is None else list(_sources(folder))


def load_public(
    name: str,
    root: str | Path | None = None,
    *,
    n: int | None = None,
    seed: int = 0,
    corruption: str | None = None,
    tokenizer: Any = None,
) -> Task:
    """Read a public set as a task.

    Args:
        name: see `list_public()`; e.g. "ioi/eap_ig", "agreement/nounpp_test", "relations/city_in_country".
        root: folder of public data, see the module.
        n: number of pairs, drawn without replacement; default all (for generated sets 64).
        seed: of the draw, and of partners and demonstrations where the set does not fix them.
        corruption: where the set allows several; the error for a wrong one lists them.
        tokenizer: if given, only pairs that align token by token and whose answers are single tokens are kept; the
            task's provenance says how many.

    Raises:
        TaskError: unknown name or corruption, no data, or no pair that fits the tokenizer.
    """
    folder = find_data(root)
    if folder is None:
        raise TaskError(
            "there is no folder of public data",
            where=f"task {name!r}",
            fix="set CROSSPATCH_DATA to a folder with ioi/, greater-than/, ..., or pass root=",
        )
    sources = _sources(folder)
    if name not in sources:
        close = get_close_matches(name, sources, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise TaskError(
            f"no public set {name!r} in {folder}", fix=f"{hint}see `crosspatch tasks`, or list_public() in Python"
        )
    source = sources[name]
    chosen = corruption or source.corruptions[0]
    if chosen not in source.corruptions:
        raise TaskError(f"no corruption {chosen!r}", where=f"task {name!r}", fix=f"use {', '.join(source.corruptions)}")
    words = Vocabulary(tokenizer)
    task = source.read(source.path, chosen, seed, words, n)
    task = dataclasses.replace(task, name=name.replace("/", "-"), provenance=source.provenance + task.provenance)
    if tokenizer is not None:
        fitting = [p for p in task.pairs if words.fits(p)]
        if not fitting:
            raise TaskError(
                f"none of {len(task)} pairs aligns token by token with single-token answers in this tokenizer",
                where=f"task {name!r}",
                fix="use a model with a larger vocabulary, or align by spans: load_public() without tokenizer=",
            )
        note = f"; {len(fitting)} of {len(task)} pairs kept, which align token by token with single-token answers"
        task = dataclasses.replace(task, pairs=tuple(fitting), provenance=task.provenance + note)
    return task.sample(min(n, len(task)), seed) if n is not None else task


def _sources(folder: Path) -> Mapping[str, Source]:
    return {s.name: s for room in (names, prefixes, facts, choices) for s in room.sources(folder) if s.path.exists()}
