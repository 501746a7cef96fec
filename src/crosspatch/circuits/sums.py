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
    """Changes that are kept at one place, as rows of one matrix: what a sender writes beyond its replacement.

    Changes that streams of one mask are made of lie together, in the order of computation, so that these streams are
    one product with consecutive rows. A copy that streams of several masks need is there several times.

    Attributes:
        number: of rows.
        of_copy: the rows that hold a copy's change.
        of_clean: the same of the clean run's value of a sender.
        start: the first row of each mask that has any.
    """

    number: int
    of_copy: dict[int, list[int]]
    of_clean: dict[int, list[int]]
    start: dict[int, int]


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
        used: list[list[np.ndarray]] = [[], []]  # by place: mask, sender and class in one number
        n_senders, spread = len(classes.table.senders), len(classes.copies) - CUT
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
            used[place].append((mask * n_senders + senders) * spread + ones - CUT)
            found.append((kinds, senders, used[place][-1]))
        codes = [np.unique(np.concatenate(each)) if each else np.zeros(0, dtype=int) for each in used]
        places = [self._columns(each, spread) for each in codes]
        self.columns = tuple(columns for columns, _ in places)
        self.terms = []
        for number, (kinds, senders, code) in enumerate(found):
            place = self.place(number)
            columns = places[place][1][np.searchsorted(codes[place], code)]
            sign, first = 1 if self.base[number] == CUT else -1, classes.streams[number].row[:, 0] != CUT
            self.terms.append(Terms(kinds, senders, columns, sign, first.tolist()))

    def place(self, stream: int) -> int:
        """Where a stream is needed."""
        return WIDE if self.classes.wide_streams[stream] else TAIL

    def _full_rows(self, place: int) -> Int[np.ndarray, "mask sender"]:
        of, wide = self.classes.of, self.classes.wide_copies
        if place == TAIL or not len(wide):
            return of
        return np.where((of < 0) | wide[np.maximum(of, 0)], of, CUT)

    def _columns(self, codes: Int[np.ndarray, " change"], spread: int) -> tuple[Columns, Int[np.ndarray, " change"]]:
        """(columns, the column of every change)."""
        of_copy: dict[int, list[int]] = {}
        of_clean: dict[int, list[int]] = {}
        start: dict[int, int] = {}
        columns = []
        for i, code in enumerate(codes.tolist()):
            mask, sender = divmod(code // spread, len(self.classes.table.senders))
            start.setdefault(mask, i + len(start) * BASES)
            columns.append(i + len(start) * BASES)
            one = code % spread + CUT
            (of_clean.setdefault(sender, []) if one == CLEAN else of_copy.setdefault(one, [])).append(columns[-1])
        return Columns(len(codes) + len(start) * BASES, of_copy, of_clean, start), np.array(columns, dtype=int)
