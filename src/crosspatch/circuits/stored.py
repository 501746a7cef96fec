"""Results of circuit evaluation as a folder: one JSON file, and one Parquet file with all arrays.

The Parquet file carries its checksum in its name, and `result.json` names it, so that replacing `result.json` is the
one step that makes a new result valid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from crosspatch.circuits.circuit import Circuit
from crosspatch.errors import ResultError
from crosspatch.results.files import (
    REPAIR,
    digest,
    drop_tables,
    read_json,
    read_parquet,
    to_parquet,
    write_atomic,
    write_json,
)
from crosspatch.tasks.findings import GateFinding

VERSION = 1
SIDECAR = "result.json"
_DTYPES = ("float64", "int64", "bool")


class Stored:
    """Base of result dataclasses: arrays with named dimensions, circuits, findings, and JSON values.

    Attributes:
        dims: names of the dimensions of every array field; equal names mean equal lengths.
    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def check(self) -> None:
        """Whether the arrays fit each other.

        Raises:
            ResultError: names the array and the dimension.
        """
        lengths: dict[str, int] = {}
        for name, dims in self.dims.items():
            shape = getattr(self, name).shape
            if len(shape) != len(dims):
                raise ResultError(f"{name} has shape {shape}, expected {dims}", where=type(self).__name__, fix=REPAIR)
            for dim, length in zip(dims, shape, strict=True):
                if lengths.setdefault(dim, length) != length:
                    raise ResultError(
                        f"{name} has {length} of {dim}, another array {lengths[dim]}",
                        where=type(self).__name__,
                        fix=REPAIR,
                    )

    def save(self, folder: str | Path) -> Path:
        """Write into `folder` (made if needed), over the result that is there; atomic.

        Returns:
            The folder.
        """
        folder = Path(folder)
        self.check()
        arrays, rest = {}, {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name in self.dims:
                arrays[field.name] = value
            else:
                rest[field.name] = _encode(value)
        data = to_parquet(_table(arrays))
        name = f"arrays-{digest(data)[:12]}.parquet"
        write_atomic(folder / name, data)
        kind = type(self).__name__
        write_json(
            folder / SIDECAR,
            {
                "format": f"crosspatch-{kind}",
                "version": VERSION,
                "arrays": name,
                "sha256": digest(data),
                "fields": rest,
            },
        )
        drop_tables(folder, ["arrays"], [{"file": name}])
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ResultError: missing, damaged, or another kind of result; names the file.
        """
        path = Path(folder) / SIDECAR
        data = read_json(path)
        wanted = f"crosspatch-{cls.__name__}"
        if data.get("format") != wanted or data.get("version") != VERSION:
            what = f"is {data.get('format')!r} version {data.get('version')!r}, expected {wanted!r} version {VERSION}"
            raise ResultError(what, where=str(path), fix="open it with the class that wrote it")
        fields, name, sha = data.get("fields"), data.get("arrays"), data.get("sha256")
        if not isinstance(fields, dict) or not isinstance(sha, str) or len(sha) != 64:
            raise ResultError("lacks its fields or checksum", where=str(path), fix=REPAIR)
        if not isinstance(name, str) or name != f"arrays-{sha[:12]}.parquet":
            raise ResultError(f"names {name!r} as its arrays", where=str(path), fix=REPAIR)
        expected = {field.name for field in dataclasses.fields(cls)} - set(cls.dims)  # type: ignore[arg-type]
        if set(fields) != expected:
            odd = sorted(set(fields) ^ expected)[0]
            raise ResultError(f"field {odd!r} is missing or unknown", where=str(path), fix=REPAIR)
        arrays = _arrays(read_parquet(Path(folder) / name, sha), str(Path(folder) / name))
        if set(arrays) != set(cls.dims):
            odd = sorted(set(arrays) ^ set(cls.dims))[0]
            raise ResultError(f"array {odd!r} is missing or unknown", where=str(Path(folder) / name), fix=REPAIR)
        found = cls(**arrays, **{key: _decode(value, f"{path}, {key}") for key, value in fields.items()})
        found.check()
        return found


def _encode(value: Any) -> Any:
    if isinstance(value, Circuit):
        return {"circuit": value.to_json()}
    if isinstance(value, list) and value and isinstance(value[0], Circuit):
        return {"circuits": [one.to_json() for one in value]}
    if isinstance(value, list) and value and isinstance(value[0], GateFinding):
        return {"findings": [one.to_dict() for one in value]}
    return {"json": value}


def _decode(value: Any, where: str) -> Any:
    try:
        ((kind, data),) = value.items()
        if kind == "circuit":
            return Circuit.from_json(data, where)
        if kind == "circuits":
            return [Circuit.from_json(one, f"{where}[{i}]") for i, one in enumerate(data)]
        if kind == "findings":
            return [
                GateFinding(**{**one, "examples": tuple(one["examples"]), "shown": tuple(one["shown"])}) for one in data
            ]
        if kind == "json":
            return data
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultError(f"cannot be read ({type(error).__name__}: {error})", where=where, fix=REPAIR) from error
    raise ResultError(f"holds {kind!r}", where=where, fix=REPAIR)


def _table(arrays: Mapping[str, np.ndarray]) -> pa.Table:
    return pa.table(
        {
            "name": pa.array(list(arrays), pa.string()),
            "dtype": pa.array([str(a.dtype) for a in arrays.values()], pa.string()),
            "shape": pa.array([list(a.shape) for a in arrays.values()], pa.list_(pa.int64())),
            "values": pa.array([a.astype(np.float64).ravel() for a in arrays.values()], pa.large_list(pa.float64())),
        }
    )


def _arrays(table: pa.Table, where: str) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    try:
        for row in range(len(table)):
            name, dtype, shape = (table[column][row].as_py() for column in ("name", "dtype", "shape"))
            values = table["values"][row].values.to_numpy(zero_copy_only=False)
            if dtype not in _DTYPES:
                raise ValueError(f"array of {dtype}")
            found[name] = values.reshape(shape).astype(dtype)
    except (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise ResultError(f"cannot be read ({error})", where=where, fix=REPAIR) from error
    return found
