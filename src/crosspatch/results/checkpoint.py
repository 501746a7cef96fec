"""What a sweep has finished so far, so that a stopped one goes on where it was.

`folder/parts/` holds one Parquet file per finished block of rows and `methodology.json`, which says what they are parts
of. Each part carries its checksum in its name and appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from crosspatch.errors import ResultError
from crosspatch.results.files import (
    REPAIR,
    digest,
    lists_to_rows,
    read_json,
    read_parquet,
    rows_to_lists,
    to_parquet,
    write_atomic,
    write_json,
)
from crosspatch.results.methodology import COMPARED, Methodology, differences

_PART = re.compile(r"part-([0-9]{6})-([0-9a-f]{12})\.parquet")


class Parts:
    """Finished rows of some work, one file per block.

    Args:
        folder: where the result will be; the parts go into `folder/parts`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / "parts"
        self.header = self.folder / "methodology.json"

    def append(self, keys: Sequence[str], values: Mapping[str, Float[np.ndarray, "row column"]]) -> None:
        """Store a finished block.

        Args:
            keys: one name per row, unique in the work (direction, address and control, say).
            values: name -> numbers, one list per row.
        """
        table = pa.table({"key": pa.array(list(keys), pa.string()), **{m: rows_to_lists(v) for m, v in values.items()}})
        data = to_parquet(table)
        write_atomic(self.folder / f"part-{len(self._parts()):06d}-{digest(data)[:12]}.parquet", data)

    def rows(
        self, names: Sequence[str], width: int | None = None
    ) -> dict[str, dict[str, Float[np.ndarray, " column"]]]:
        """Key -> name -> numbers of every row that was stored; lists of `width` numbers, or of any length.

        Raises:
            ResultError: a part that was changed since it was written, or holds something else.
        """
        found: dict[str, dict[str, np.ndarray]] = {}
        for path, checksum in self._parts():
            table = read_parquet(path, checksum)
            columns = {name: lists_to_rows(table, name, width, str(path)) for name in names}
            if "key" not in table.column_names or not pa.types.is_string(table["key"].type):
                raise ResultError("has no column 'key'", where=str(path), fix=REPAIR)
            for row, key in enumerate(table["key"].to_pylist()):
                found[key] = {name: columns[name][row] for name in names}
        return found

    def drop(self) -> None:
        """Remove the rows, and keep what says what they were parts of."""
        for path, _ in self._parts():
            path.unlink()

    def clear(self) -> None:
        """Remove everything, once the result itself has been saved."""
        remove_parts(self.folder.parent)

    def _parts(self) -> list[tuple[Path, str]]:
        return _parts(self.folder)


class Checkpoint(Parts):
    """Finished rows of one sweep: for every metric the values of the patched run.

    Args:
        folder: where the sweep's result will be; the parts go into `folder/parts`.
        methodology: of the sweep; parts of another methodology are refused.

    Raises:
        ResultError: the folder holds parts of another sweep; names the fields that differ.
    """

    def __init__(self, folder: str | Path, methodology: Methodology) -> None:
        super().__init__(folder)
        self.methodology = methodology
        if self.header.exists():
            _require_same(methodology, Methodology.from_json(read_json(self.header), str(self.header)), self.folder)
        else:
            write_json(self.header, methodology.to_json())

    def finished(self) -> dict[str, dict[str, Float[np.ndarray, " example"]]]:
        """Key -> metric -> values of every row that was stored.

        Raises:
            ResultError: a part that was changed since it was written.
        """
        return self.rows(self.methodology.metrics, self.methodology.n_examples)


def remove_parts(folder: Path) -> None:
    """Remove what `Parts` of `folder` hold, if there is any; nothing else in it."""
    parts = folder / "parts"
    if not parts.is_dir():
        return
    for path, _ in _parts(parts):
        path.unlink()
    (parts / "methodology.json").unlink(missing_ok=True)
    for stray in parts.glob(".writing-*"):
        stray.unlink()
    with contextlib.suppress(OSError):  # something of the user's is in it
        parts.rmdir()


def _parts(folder: Path) -> list[tuple[Path, str]]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    named = [(path, _PART.fullmatch(path.name)) for path in found]
    return [(path, match[2]) for path, match in named if match]


def _require_same(wanted: Methodology, found: Methodology, folder: Path) -> None:
    if wanted.hash() == found.hash():
        return
    differing = [*differences(wanted, found)]
    a, b = wanted.to_json(), found.to_json()
    differing += [name for name in a if name not in COMPARED and a[name] != b[name]]
    raise ResultError(
        f"the unfinished sweep stored here was made in another way ({', '.join(differing)} differ)",
        where=str(folder),
        fix="use another folder, or delete this one to start anew",
    )
