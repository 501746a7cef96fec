"""Files: a crash leaves the old one or the new one, and nothing that is read can run code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from crosspatch.errors import ResultError

REPAIR = "the file was cut off or edited; restore it from a copy or run the sweep again"


def write_atomic(path: Path, data: bytes) -> None:
    """Write next to the target, flush to disk, then put it in place in one step.

    The file gets the mode that the umask gives to any new file, so that a result can be shared.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".writing-{secrets.token_hex(8)}"  # not mkstemp, whose files only their owner may read
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def digest(data: bytes) -> str:
    """SHA-256 as hex."""
    return hashlib.sha256(data).hexdigest()


def write_json(path: Path, data: object) -> None:
    """Write standard JSON, atomically.

    Raises:
        ResultError: something that JSON has no word for (NaN, an object of a class).
    """
    try:
        text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ResultError(f"cannot be written as JSON ({error})", where=str(path)) from error
    write_atomic(path, f"{text}\n".encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ResultError: not there, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ResultError(f"cannot be read ({error.strerror})", where=str(path), fix="check the folder") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"is not JSON ({error})", where=str(path), fix=REPAIR) from error
    if not isinstance(data, dict):
        raise ResultError("is not a JSON object", where=str(path), fix=REPAIR)
    return data


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_parquet(path: Path, sha256: str) -> pa.Table:
    """Read a Parquet file whose SHA-256 starts with `sha256`.

    Raises:
        ResultError: not there, another checksum, or not Parquet.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResultError(f"cannot be read ({error.strerror})", where=str(path), fix=REPAIR) from error
    if not digest(data).startswith(sha256):
        raise ResultError("has another checksum than was recorded when it was written", where=str(path), fix=REPAIR)
    try:
        return pq.read_table(pa.BufferReader(data)).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise ResultError(f"is not a Parquet file ({error})", where=str(path), fix=REPAIR) from error


def write_table(folder: Path, name: str, table: pa.Table) -> dict[str, str]:
    """Write a Parquet file named by its checksum, atomically.

    Returns:
        what a JSON file beside it has to keep, for `read_table`.
    """
    data = to_parquet(table)
    file = f"{name}-{digest(data)[:12]}.parquet"
    write_atomic(folder / file, data)
    return {"file": file, "sha256": digest(data)}


def drop_tables(folder: Path, names: Iterable[str], kept: Iterable[Mapping[str, str]] = ()) -> None:
    """Remove tables of these names that `write_table` wrote earlier; call it when the file that names the new ones is
    written. Nothing else in the folder is touched.

    Args:
        kept: what `write_table` returned for those that stay.
    """
    stay = {told["file"] for told in kept}
    ours = re.compile(rf"({'|'.join(map(re.escape, names))})-[0-9a-f]{{12}}\.parquet")
    for path in list(folder.glob("*.parquet")):
        if ours.fullmatch(path.name) and path.name not in stay:
            path.unlink()


def read_table(folder: Path, told: Mapping[str, str]) -> pa.Table:
    """Read what `write_table` wrote; never outside the folder.

    Raises:
        ResultError: see `read_parquet`.
    """
    return read_parquet(folder / Path(str(told["file"])).name, str(told["sha256"]))


def rows_to_lists(values: Float[np.ndarray, "row example"]) -> pa.Array:
    """A matrix as a column with one list per row."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float64).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def lists_to_rows(table: pa.Table, name: str, width: int | None, where: str) -> Float[np.ndarray, "row example"]:
    """A column of lists of `width` numbers as a matrix; None: of whatever width it has.

    Raises:
        ResultError: no such column, or of another type or width.
    """
    if name not in table.column_names:
        raise ResultError(f"has no column {name!r}", where=where, fix=REPAIR)
    column = table[name].combine_chunks()
    fits = pa.types.is_fixed_size_list(column.type) and column.type.value_type == pa.float64()
    if not fits or column.type.list_size != (width or column.type.list_size):
        wanted = pa.list_(pa.float64(), width) if width else "lists of as many doubles in each row"
        raise ResultError(f"column {name!r} is {column.type}, expected {wanted}", where=where, fix=REPAIR)
    width = column.type.list_size
    if column.null_count or column.flatten().null_count:
        raise ResultError(f"column {name!r} has empty cells", where=where, fix=REPAIR)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width).copy()
