"""A result as a folder: `result.json` (methodology, findings, checksums) and Parquet files with the values.

The Parquet files that `result.json` refers to carry their checksum in their name, so that replacing `result.json` is
the one step that makes a new result valid: a crash at any point leaves the old result readable. `effects.parquet` is
the derived table for other programs and is never read back.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from crosspatch.errors import ResultError
from crosspatch.results.files import (
    REPAIR,
    digest,
    drop_tables,
    lists_to_rows,
    read_json,
    read_parquet,
    rows_to_lists,
    to_parquet,
    write_atomic,
    write_json,
)
from crosspatch.results.methodology import Methodology
from crosspatch.results.table import COLUMNS, DIRECTIONS, SIDES, Finding, SweepResult

FORMAT, VERSION = "crosspatch-sweep", 1
SIDECAR, EFFECTS = "result.json", "effects.parquet"


def save_result(result: SweepResult, folder: str | Path) -> Path:
    """Write a result into `folder` (made if needed), over the one that is there.

    Returns:
        The folder.
    """
    folder = Path(folder)
    rows = pa.Table.from_pandas(result.rows, preserve_index=False)
    for direction in DIRECTIONS:
        for metric, values in getattr(result, direction).items():
            rows = rows.append_column(f"{direction}/{metric}", rows_to_lists(values))
    examples = pa.table({"cluster": pa.array(result.clusters, pa.string())})
    for side in SIDES:
        for metric, values in getattr(result, side).items():
            examples = examples.append_column(f"{side}/{metric}", pa.array(values))
    tables = {"rows": rows, "examples": examples}
    files, checksums = {}, {}
    for name, table in tables.items():
        data = to_parquet(table)
        checksums[name] = digest(data)
        files[name] = f"{name}-{checksums[name][:12]}.parquet"
        write_atomic(folder / files[name], data)
    write_atomic(folder / EFFECTS, to_parquet(pa.Table.from_pandas(result.wide(), preserve_index=False)))
    sidecar = {
        "format": FORMAT,
        "version": VERSION,
        "metrics": result.metrics,
        "n_rows": len(result.rows),
        "methodology": result.methodology.to_json(),
        "findings": [dataclasses.asdict(f) for f in result.findings],
        "cost": result.cost,
        "files": files,
        "sha256": checksums,
    }
    write_json(folder / SIDECAR, sidecar)
    drop_tables(folder, tables, [{"file": name} for name in files.values()])
    return folder


def load_result(folder: str | Path) -> SweepResult:
    """Read what `save_result` wrote.

    Raises:
        ResultError: a file or field that is missing, malformed, changed since it was written, or of a newer format.
    """
    path = Path(folder) / SIDECAR
    sidecar = read_json(path)
    if sidecar.get("format") != FORMAT:
        raise ResultError(f"format {sidecar.get('format')!r}, expected {FORMAT!r}", where=f"{path}: format", fix=REPAIR)
    version = _field(sidecar, "version", int, path)
    if version > VERSION:
        said = f"version {version} is newer than this crosspatch reads ({VERSION})"
        raise ResultError(said, where=f"{path}: version", fix="upgrade crosspatch")
    methodology = Methodology.from_json(sidecar.get("methodology"), f"{path}: methodology")
    metrics = _field(sidecar, "metrics", list, path)
    if not metrics or not all(type(metric) is str for metric in metrics):
        raise ResultError(f"{metrics!r} are not names of metrics", where=f"{path}: metrics", fix=REPAIR)
    rows, examples = (_table(sidecar, name, path) for name in ("rows", "examples"))
    where = str(path.parent / sidecar["files"]["examples"])
    clusters = _column(examples, "cluster", _is_text, where).to_pylist()
    base = {
        side: {m: _column(examples, f"{side}/{m}", pa.types.is_float64, where).to_numpy().copy() for m in metrics}
        for side in SIDES
    }
    where = str(path.parent / sidecar["files"]["rows"])
    patched = {
        direction: {m: lists_to_rows(rows, f"{direction}/{m}", len(clusters), where) for m in metrics}
        for direction in DIRECTIONS
    }
    named = rows.drop_columns([f"{direction}/{metric}" for direction in DIRECTIONS for metric in metrics])
    for name in COLUMNS:
        number = name in ("layer", "index")
        _column(named, name, pa.types.is_int64 if number else _is_text, where, nullable=number)
    cost = _field(sidecar, "cost", dict, path)
    if not all(type(value) in (int, float) for value in cost.values()):
        raise ResultError("costs are numbers", where=f"{path}: cost", fix=REPAIR)
    return SweepResult(
        rows=named.to_pandas(ignore_metadata=True).assign(**_integers(named)),
        **patched,
        **base,
        clusters=clusters,
        methodology=methodology,
        findings=[
            _finding(item, f"{path}: findings[{i}]") for i, item in enumerate(_field(sidecar, "findings", list, path))
        ],
        cost=cost,
    )


def _field(data: dict[str, Any], name: str, kind: type, path: Path) -> Any:
    if type(data.get(name)) is not kind:
        raise ResultError(f"{data.get(name)!r} is not of type {kind.__name__}", where=f"{path}: {name}", fix=REPAIR)
    return data[name]


def _table(sidecar: dict[str, Any], name: str, path: Path) -> pa.Table:
    """The table that the sidecar names; a name that could lead out of the folder is refused."""
    file, checksum = (_field(sidecar, part, dict, path).get(name) for part in ("files", "sha256"))
    if not isinstance(checksum, str) or not re.fullmatch(r"[0-9a-f]{64}", checksum):
        raise ResultError(f"{checksum!r} is not a checksum", where=f"{path}: sha256.{name}", fix=REPAIR)
    if file != f"{name}-{checksum[:12]}.parquet":
        raise ResultError(f"{file!r} is not the name of a {name} file", where=f"{path}: files.{name}", fix=REPAIR)
    return read_parquet(path.parent / file, checksum)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _column(table: pa.Table, name: str, is_type: Any, where: str, nullable: bool = False) -> pa.ChunkedArray:
    if name not in table.column_names or not is_type(table[name].type) or (table[name].null_count and not nullable):
        found = table[name].type if name in table.column_names else "missing"
        raise ResultError(f"column {name!r} is {found} or has empty cells", where=where, fix=REPAIR)
    return table[name]


def _integers(table: pa.Table) -> dict[str, pd.Series]:
    """Integer columns with gaps, which pandas would turn into floats."""
    return {name: pd.Series(pd.array(table[name].to_pylist(), dtype="Int64")) for name in ("layer", "index")}


def _finding(item: object, where: str) -> Finding:
    fields = {f.name for f in dataclasses.fields(Finding)}
    if not isinstance(item, dict) or item.keys() != fields:
        raise ResultError(f"expected an object with {', '.join(sorted(fields))}", where=where, fix=REPAIR)
    for name, value in item.items():
        wanted = list if name == "rows" else str
        if type(value) is not wanted or (wanted is list and not all(type(row) is int for row in value)):
            raise ResultError(f"{value!r} does not fit", where=f"{where}.{name}", fix=REPAIR)
    return Finding(**item)
