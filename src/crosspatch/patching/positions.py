"""Where a patch goes: one position of an address, example by example, in the base run and in the source run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crosspatch.errors import AddressError, TaskError
from crosspatch.graph import ALL
from crosspatch.tasks.align import FIX, PositionMap, token_diff
from crosspatch.tasks.tokenize import TokenizedTask

Side = Literal["clean", "corrupt"]
SIDES: tuple[Side, Side] = ("clean", "corrupt")
OTHER: dict[Side, Side] = {"clean": "corrupt", "corrupt": "clean"}
END = "END"
"""The last token: the position where the answer is read (`TokenizedTask.spans` always has it)."""
REST = "rest"
"""The position made of every token that lies in none of the task's spans."""


@dataclass(frozen=True)
class Spot:
    """One position of an address in one example.

    Attributes:
        name: the position as it was asked for.
        positions: token positions in the base run.
        paired: those of them that have a partner in the other run.
        partners: the partners, one for each of `paired`.
    """

    name: int | str
    positions: tuple[int, ...]
    paired: tuple[int, ...]
    partners: tuple[int, ...]


def roles(tokenized: TokenizedTask) -> list[str]:
    """Names that a per-role sweep has positions for, in the order of the first prompt: spans, `rest`, `END`.

    `rest` completes the spans, so that the roles together cover every token. It is left out when nothing is left.
    """
    names = [name for name in tokenized.span_names() if name != END]
    names.sort(key=lambda name: tokenized.spans[0][name])
    rest = [REST] if names and any(_rest(tokenized, "clean", i) for i in range(len(tokenized))) else []
    return [*names, *rest, END]


def _rest(tokenized: TokenizedTask, side: Side, example: int) -> tuple[int, ...]:
    spans = (tokenized.spans if side == "clean" else tokenized.corrupt_spans)[example]
    taken = {position for start, end in spans.values() for position in range(start, end)}
    return tuple(i for i in range(len(tokenized.ids(side)[example])) if i not in taken)


@dataclass
class Spots:
    """Looks positions up in the prompts of a task.

    Args:
        tokenized: the task.
        alignment: which token of one prompt stands for which of the other.
    """

    tokenized: TokenizedTask
    alignment: PositionMap
    _cache: dict[tuple[Side, int, int | str], Spot] = field(default_factory=dict, repr=False)

    def spot(self, base: Side, example: int, position: int | str) -> Spot:
        """A position of one example, with the base run on the given side.

        Raises:
            AddressError: the prompt has no such token or span.
            TaskError: the pair does not align.
        """
        key = (base, example, position)
        if key not in self._cache:
            found = self._find(base, example, position)
            pairs = [(p, partner) for p in found if (partner := self._partner(base, example, p)) is not None]
            self._cache[key] = Spot(position, found, tuple(p for p, _ in pairs), tuple(q for _, q in pairs))
        return self._cache[key]

    def _find(self, side: Side, example: int, position: int | str) -> tuple[int, ...]:
        length = len(self.tokenized.ids(side)[example])
        if isinstance(position, int):
            if not -length <= position < length:
                raise AddressError(
                    f"position {position} does not exist",
                    where=f"example {example}, {side} prompt",
                    fix=f"it has {length} tokens: use 0 to {length - 1}, -{length} to -1, or the name of a span",
                )
            return (position % length,)
        if position == ALL:
            return tuple(range(length))
        if position == REST and REST not in self.tokenized.spans[example]:
            return _rest(self.tokenized, side, example)
        spans = (self.tokenized.spans if side == "clean" else self.tokenized.corrupt_spans)[example]
        if position not in spans:
            raise AddressError(
                f"there is no span {position!r}",
                where=f"example {example}, {side} prompt",
                fix=f"use one of {', '.join(sorted(spans))}, {REST}, a token index, or *",
            )
        return tuple(range(*spans[position]))

    def _partner(self, base: Side, example: int, position: int) -> int | None:
        pair = self.alignment[example]
        if pair.problem is not None:
            raise TaskError(pair.problem, where=f"example {example}\n{token_diff(self.tokenized, example)}", fix=FIX)
        return pair.to_corrupt[position] if base == "clean" else pair.to_clean(position)
