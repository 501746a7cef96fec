"""Results of path patching as JSON, every pair's numbers included, and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crosspatch.errors import ResultError
from crosspatch.paths.attribute import Attribution
from crosspatch.paths.decohere import Decohering
from crosspatch.paths.mediate import Mediation
from crosspatch.paths.refine import Refinement
from crosspatch.paths.scores import PathTest
from crosspatch.paths.sender import SenderEffects
from crosspatch.results.files import read_json, write_json

Result = PathTest | Attribution | SenderEffects | Mediation | Refinement | Decohering
KINDS: dict[str, type[Result]] = {
    "test": PathTest,
    "attribution": Attribution,
    "senders": SenderEffects,
    "mediation": Mediation,
    "refinement": Refinement,
    "decohering": Decohering,
}


def save(result: Result, path: str | Path, **more: Any) -> Path:
    """Write a result as one JSON file, atomically.

    Args:
        more: further entries of the file, which `load` leaves out.
    """
    path = Path(path)
    write_json(path, to_json(result) | _plain(more))
    return path


def load(path: str | Path) -> Result:
    """Read what `save` wrote.

    Raises:
        ResultError: anything else.
    """
    return from_json(read_json(Path(path)), str(path))


def to_json(result: Result) -> dict[str, Any]:
    """JSON values: one entry per field, and `kind`."""
    kind = next(name for name, made in KINDS.items() if type(result) is made)
    return {"kind": kind} | {f.name: _plain(getattr(result, f.name)) for f in dataclasses.fields(result)}


def from_json(data: Any, where: str = "result") -> Result:
    """Read what `to_json` made.

    Raises:
        ResultError: anything else.
    """
    try:
        made = KINDS[data["kind"]]
        values = {f.name: _read(str(f.type), data[f.name], where) for f in dataclasses.fields(made)}
    except (KeyError, TypeError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ResultError(
            f"is no result of path patching ({what})", where=where, fix="run the command that made it again"
        ) from error
    return made(**values)


def _read(kind: str, value: Any, where: str) -> Any:
    """A field from its JSON value; `kind` is its annotation."""
    if "np.ndarray" in kind:
        return np.array(value, dtype=np.float64)  # null becomes NaN
    if kind == "pd.DataFrame":
        return pd.DataFrame(value)
    if kind == "SenderEffects":
        return from_json(value, where)
    wanted = {"tuple": list, "list": list, "dict": dict, "str": str}[kind.split("[")[0]]
    if not isinstance(value, wanted):
        raise TypeError(f"{value!r:.40} where a {wanted.__name__} should be")
    return tuple(value) if kind.startswith("tuple") else value


def _plain(value: Any) -> Any:
    """The value with plain numbers; JSON has no NaN."""
    if isinstance(value, pd.DataFrame):
        return _plain(value.to_dict("records"))
    if isinstance(value, SenderEffects):
        return to_json(value)
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(name): _plain(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inside) for inside in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
