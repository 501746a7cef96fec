"""What every reader is given, and how it says where a dictionary belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosspatch.dictionaries.load.hooks import place_of
from crosspatch.errors import DictionaryError


@dataclass
class Source:
    """One dictionary on disk and what the user says of it.

    Args:
        path: a folder or file.
        reads, writes: places given by the user, which win over what the files say.
        input_scale: factor that the input was multiplied by in training, where the files do not say.
        notes: what a user should know of how it was read; filled by the reader.
    """

    path: Path
    reads: tuple[str, ...] | None = None
    writes: tuple[str, ...] | None = None
    input_scale: float | None = None
    notes: list[str] = field(default_factory=list)

    def file(self, *names: str) -> Path:
        """The first of these files that is in the folder; the path itself if it is a file.

        Raises:
            DictionaryError: there is none.
        """
        if self.path.is_file():
            return self.path
        for name in names:
            if (self.path / name).is_file():
                return self.path / name
        raise DictionaryError(f"has no {' or '.join(names)}", where=str(self.path), fix="check path and format")

    def places(
        self, read: Sequence[str | None] | None, write: Sequence[str | None] | None = None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Where it reads and writes.

        Args:
            read, write: names that the files give, as hooks, module paths or places; None = they give none. Without
                `write` it writes where it reads.

        Raises:
            DictionaryError: not known and not given.
        """
        reads = self.reads or self._known(read, "reads")
        if self.writes is not None:
            return reads, self.writes
        return reads, reads if write is None else self._known(write, "writes")

    def meta(self, format_name: str, **more: Any) -> dict[str, Any]:
        """Where it comes from, as plain data."""
        given = {key: value for key, value in more.items() if value is not None}
        return {"format": format_name, "path": str(self.path), **given, "notes": list(self.notes)}

    def _known(self, names: Sequence[str | None] | None, which: str) -> tuple[str, ...]:
        found = []
        for name in names or (None,):
            place = None if name is None else place_of(name)
            if place is None:
                what = "do not say" if name is None else f"name {name!r}, which is not known, as the place"
                raise DictionaryError(
                    f"the files {what} where it {which}",
                    where=str(self.path),
                    fix=f"pass {which}='r3.post' (or a3.z, m3, m3.in, ...)",
                )
            found.append(place)
        return tuple(found)
