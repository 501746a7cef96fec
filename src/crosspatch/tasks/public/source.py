"""One public set: where it is, whose it is, and how it is read."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspatch.errors import TaskError
from crosspatch.tasks.generate.base import Vocabulary
from crosspatch.tasks.pairs import Task
from crosspatch.tasks.readers import MAX_BYTES

#: (file, corruption, seed, words, wanted pairs or None) -> task. Name and provenance are filled in by `load_public`.
Reader = Callable[[Path, str, int, Vocabulary, int | None], Task]


@dataclass(frozen=True)
class Source:
    """A public set.

    Args:
        name: for `load_public`.
        path: its file.
        provenance: repository, licence and paper.
        read: makes the task.
        corruptions: names; the first is the default.
    """

    name: str
    path: Path
    provenance: str
    read: Reader
    corruptions: tuple[str, ...]


def left_out(n: int, why: str) -> str:
    """For a task's provenance: nothing is dropped without saying so."""
    return f"; {n} left out ({why})" if n else ""


def read_json(path: Path) -> Any:
    """A JSON file. Raises TaskError naming the file."""
    if path.stat().st_size > MAX_BYTES:
        raise TaskError(f"larger than {MAX_BYTES >> 20} MiB", where=str(path), fix="use the original file")
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TaskError(f"not JSON: {error}", where=str(path), fix="use the original file") from error


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file, xz-packed or not. Raises TaskError naming file and line."""
    left = MAX_BYTES
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            left -= len(line)
            if left < 0:
                raise TaskError(f"larger than {MAX_BYTES >> 20} MiB", where=str(path), fix="use the original file")
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TaskError(
                    f"not JSON: {error}", where=f"{path}, line {number}", fix="use the original file"
                ) from error
            if not isinstance(row, dict):
                raise TaskError("not an object", where=f"{path}, line {number}", fix="use the original file")
            yield row
