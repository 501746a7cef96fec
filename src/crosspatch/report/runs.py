"""The file that says what a command was asked for, and by which commands its folder was made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from crosspatch.errors import ResultError
from crosspatch.results.files import read_json


def read_run_file(path: Path, format: str, version: int, command: str, fix: str) -> dict[str, Any]:
    """What was asked for and on what: `settings`, `asked`, `facts`, and in `also` the commands that made the folder.

    Args:
        command: which writes such files.

    Raises:
        ResultError: not there, damaged, or none of ours.
    """
    data = read_json(path)
    known = data.get("format") == format and data.get("version") == version
    fits = all(isinstance(data.get(part), dict) for part in ("settings", "asked", "facts"))
    if not known or not fits or not isinstance(data.get("also"), list):
        raise ResultError(f"is not what `{command}` writes", where=str(path), fix=fix)
    return data


@contextmanager
def written_by(command: str, where: Path, fix: str) -> Iterator[None]:
    """A file that is not what the command writes is named, whatever goes wrong as its values are used.

    Raises:
        ResultError: instead of what came of a value that is missing, or of another kind.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, UndefinedError) as error:
        said = f"is not what `{command}` writes ({type(error).__name__}: {error})"
        raise ResultError(said, where=str(where), fix=fix) from error
