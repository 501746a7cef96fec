"""The file that says what a command was asked for, and by which commands its folder was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
