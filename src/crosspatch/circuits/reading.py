"""Reading files that somebody else may have written: bounded, typed, and every refusal names the place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from crosspatch.errors import CircuitError

LARGEST = 2**29
"""Bytes of a file that is read: an attribution graph of a few million links."""
MOST_CELLS = 2**28
"""Senders times receivers of a model that a file may ask for."""
EDITED = "the file was cut off or edited, or is of another kind"

T = TypeVar("T", str, int, float, bool, list, dict)


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        CircuitError: not there, or larger than `LARGEST`.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            what = f"is {size / 2**20:,.0f} MiB large; at most {LARGEST // 2**20} are read"
            raise CircuitError(what, where=str(path), fix="prune the graph before it is written")
        return path.read_bytes()
    except OSError as error:
        raise CircuitError(f"cannot be read ({error.strerror})", where=str(path), fix="check the path") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CircuitError: cannot be read, or is none.
    """
    try:
        data = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise CircuitError(f"is not JSON ({error})", where=str(path), fix=EDITED) from error
    return expect(data, dict, str(path))


def expect(value: object, kind: type[T], where: str) -> T:
    """`value`, which must be of this type; a float may be written as an integer and must be finite.

    Raises:
        CircuitError: another type.
    """
    if kind is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        names = {
            dict: "an object",
            list: "a list",
            str: "text",
            int: "an integer",
            float: "a number",
            bool: "a truth value",
        }
        raise CircuitError(f"{value!r:.60} is not {names[kind]}", where=where, fix=EDITED)
    return value


def entry(data: dict[str, Any], key: str, kind: type[T], where: str) -> T:
    """`data[key]`, which must be there and of this type.

    Raises:
        CircuitError: missing, or another type.
    """
    if key not in data:
        raise CircuitError(f"{key!r} is missing", where=where, fix=EDITED)
    return expect(data[key], kind, f"{where}, {key}")
