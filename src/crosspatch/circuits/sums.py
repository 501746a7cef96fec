"""How the residual streams of some circuits are put together: which changes are added to what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from crosspatch.circuits.classes import CLEAN, CUT, Classes

WIDE, TAIL = 0, 1
"""Where a value is needed: at all tokens that can change, or at those that the logits read."""
BASES = 2
"""Before the changes of each mask lie two streams: the replaced one, and that with the clean input in it."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Changes that are kept at one place, as rows of one matrix: what a copy writes beyond the replacement.

    Copies that belong to one mask lie together, in the order of computation, so that the streams of a mask are one
    product with consecutive rows.

    Attributes:
        of_copy, of_clean: the row of a copy, and of the clean run's value of a sender; -1 where none is needed.
        start: the first row of each mask's; -1 for a mask without any.
        mask: the mask that each row belongs to; -1 for the clean run's.
    """

    of_copy: Int[np.ndarray, " copy"]
    of_clean: Int[np.ndarray, " sender"]
    start: Int[np.ndarray, " mask"]
    mask: Int[np.ndarray, " column"]

    def __len__(self) -> int:
        return len(self.mask)

    def of(self, senders: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Rows of the matrix for classes of senders, none of them `CUT`."""
        return np.where(classes >= 0, self.of_copy[classes], self.of_clean[senders])


@dataclass(frozen=True, eq=False)
class Terms:
    """What a stream is made of, beside the two streams that it can begin with.

    Attributes:
        kind, sender, column: of every change: the kind of token that finds it, who wrote it, and where it is kept.
        sign: whether changes are added or taken away.
        input: for each kind of token whether the stream begins with the clean input.
    """

    kind: Int[np.ndarray, " term"]
    sender: Int[np.ndarray, " term"]
    column: Int[np.ndarray, " term"]
    sign: int
    input: list[bool]


class Sums:
    """How each stream is summed.

    A stream is the replaced stream and the changes of kept senders; or, where most are kept, the mask's *full* stream
    (every sender as it is now) less the changes of cut ones.

    Attributes:
        classes: what is summed.
        columns: of the changes, by place.
        base: for each stream `CUT`, or the mask whose full stream it begins with.
        fulls: for each place the masks whose full streams are needed.
        full_rows: for each place and mask the class of every sender in its full stream.
        terms: of each stream.
    """

    def __init__(self, classes: Classes, subtract: bool) -> None:
        self.classes = classes
        self.base = np.full(len(classes.streams), CUT)
        self.fulls: tuple[set[int], set[int]] = (set(), set())
        self.full_rows = tuple(self._full_rows(place) for place in (WIDE, TAIL))
        # How many of the first senders are in each full stream.
        counts = [np.cumsum(np.pad(rows[:, 1:] != CUT, ((0, 0), (1, 0))), 1) for rows in self.full_rows]
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        used: list[list[np.ndarray]] = [[], []]  # by place: sender and class in one number
        for number, stream in enumerate(classes.streams):
            place, row, mask = self.place(number), stream.row, stream.mask
            present = row[:, 1:] != CUT
            kept, reach = np.count_nonzero(present), row.shape[1]
            if subtract and 3 * (len(row) * counts[place][mask, reach - 1] - kept) < kept:
                self.base[number] = mask
                self.fulls[place].add(mask)
                row = np.where(row == CUT, self.full_rows[place][mask, :reach], CUT)
                present = row[:, 1:] != CUT
            kinds, senders = present.nonzero()
            senders += 1
            ones = row[kinds, senders]
            used[place].append(senders * self._spread + ones - CUT)
            found.append((kinds, senders, ones))
        self.columns = tuple(self._columns(each) for each in used)
        self.terms = []
        for number, (kinds, senders, ones) in enumerate(found):
            columns = self.columns[self.place(number)].of(senders, ones)
            sign, first = 1 if self.base[number] == CUT else -1, classes.streams[number].row[:, 0] != CUT
            self.terms.append(Terms(kinds, senders, columns, sign, first.tolist()))

    @property
    def _spread(self) -> int:
        return len(self.classes.copies) - CUT

    def place(self, stream: int) -> int:
        """Where a stream is needed."""
        return WIDE if self.classes.wide_streams[stream] else TAIL

    def _full_rows(self, place: int) -> Int[np.ndarray, "mask sender"]:
        of, wide = self.classes.of, self.classes.wide_copies
        if place == TAIL or not len(wide):
            return of
        return np.where((of < 0) | wide[np.maximum(of, 0)], of, CUT)

    def _columns(self, used: list[np.ndarray]) -> Columns:
        classes = self.classes
        codes = np.unique(np.concatenate(used)) if used else np.zeros(0, dtype=int)
        pairs = [(code // self._spread, code % self._spread + CUT) for code in codes.tolist()]
        keyed = sorted((classes.copies[c].mask if c >= 0 else CLEAN, sender, c) for sender, c in pairs)
        of_copy = np.full(max(1, len(classes.copies)), -1)
        of_clean = np.full(len(classes.table.senders), -1)
        start = np.full(len(classes.of), -1)
        masks: list[int] = []
        for mask, sender, c in keyed:
            if c < 0:
                of_clean[sender] = len(masks)
            else:
                if start[mask] < 0:
                    start[mask] = len(masks)
                    masks += [mask] * BASES
                of_copy[c] = len(masks)
            masks.append(mask)
        return Columns(of_copy, of_clean, start, np.array(masks, dtype=int))
