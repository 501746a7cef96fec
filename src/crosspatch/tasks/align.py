"""Which token of the corrupt prompt stands where a token of the clean prompt stood.

Two prompts of equal length align token by token. Prompts of unequal length (or whose named spans do not sit at the same
tokens) align by spans: the text between two spans must have equal length on both sides and aligns token by token;
inside a span, equal lengths align token by token, and of unequal lengths only the **last** tokens are matched with each
other, because that is where a causal model has read the whole span. The other tokens of such a span have no partner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from crosspatch.tasks.tokenize import SHOWN, TokenizedTask, TokenSpan, show


@dataclass(frozen=True)
class PairMap:
    """Alignment of one pair.

    Args:
        kind: "tokens" (equal length), "spans", or "none" where the pair does not align.
        to_corrupt: per clean position the corrupt position, or None for a token without a partner.
        first_difference: first clean position from which the runs can differ; None if the prompts are the same.
        problem: why the pair does not align.
    """

    kind: Literal["tokens", "spans", "none"]
    to_corrupt: tuple[int | None, ...]
    first_difference: int | None
    problem: str | None = None

    def to_clean(self, position: int) -> int | None:
        """The clean position whose partner is this corrupt position."""
        return self.to_corrupt.index(position) if position in self.to_corrupt else None


@dataclass(frozen=True)
class PositionMap:
    """Alignment of a task: one `PairMap` per example."""

    pairs: tuple[PairMap, ...]
    tokenized: TokenizedTask

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, example: int) -> PairMap:
        return self.pairs[example]

    @property
    def failing(self) -> tuple[int, ...]:
        """Examples that do not align."""
        return tuple(i for i, p in enumerate(self.pairs) if p.problem is not None)


FIX = (
    "give both prompts the same number of tokens (make_task(..., tokenizer=...) does), or name the parts that "
    "differ with spans= and corrupt_spans=, so that the text between them has equal length"
)


def align(tokenized: TokenizedTask) -> PositionMap:
    """Align every pair; pairs that fail are marked, not dropped (see `PositionMap.failing`)."""
    sides = zip(tokenized.clean, tokenized.corrupt, tokenized.spans, tokenized.corrupt_spans, strict=True)
    return PositionMap(tuple(align_pair(*side) for side in sides), tokenized)


def align_pair(
    clean: Sequence[int],
    corrupt: Sequence[int],
    spans: Mapping[str, TokenSpan],
    corrupt_spans: Mapping[str, TokenSpan],
) -> PairMap:
    """Align two prompts given as token ids, with their named token spans."""
    shared = [name for name in spans if name in corrupt_spans and name != "END"]  # the last tokens match in any case
    same_places = all(spans[name] == corrupt_spans[name] for name in shared)
    if len(clean) == len(corrupt) and same_places:
        return PairMap("tokens", tuple(range(len(clean))), first_difference(clean, corrupt))
    if not shared:
        problem = f"clean has {len(clean)} tokens, corrupt has {len(corrupt)}, and no span names what differs"
        return PairMap("none", (None,) * len(clean), None, problem)
    problem_or_map = _by_spans(spans, corrupt_spans, shared, len(clean), len(corrupt))
    if isinstance(problem_or_map, str):
        return PairMap("none", (None,) * len(clean), None, problem_or_map)
    moved = first_difference(clean, corrupt)
    return PairMap("spans", problem_or_map, moved)


def _by_spans(
    spans: Mapping[str, TokenSpan], corrupt_spans: Mapping[str, TokenSpan], names: list[str], n: int, m: int
) -> tuple[int | None, ...] | str:
    """Cut both prompts at the span boundaries and match piece by piece."""
    cuts: dict[int, int] = {0: 0, n: m}
    for name in names:
        for c, d in zip(spans[name], corrupt_spans[name], strict=True):
            if cuts.setdefault(c, d) != d:
                return f"span {name!r} puts the boundary before clean token {c} at corrupt tokens {cuts[c]} and {d}"
    pieces = sorted(cuts.items())
    if any(d1 > d2 for (_, d1), (_, d2) in pairwise(pieces)):
        return "the spans stand in another order in the corrupt prompt"
    out: list[int | None] = [None] * n
    for (c1, d1), (c2, d2) in pairwise(pieces):
        if c2 - c1 == d2 - d1:
            out[c1:c2] = range(d1, d2)
            continue
        inside = [name for name in names if spans[name][0] <= c1 and c2 <= spans[name][1]]
        if not inside:
            return f"clean has {c2 - c1} tokens at {c1}:{c2}, corrupt {d2 - d1} at {d1}:{d2}, and no span names them"
        if d2 == d1:
            return f"span {inside[0]!r} has tokens in the clean prompt only"
        out[c2 - 1] = d2 - 1
    return tuple(out)


def first_difference(clean: Sequence[int], corrupt: Sequence[int]) -> int | None:
    """First position at which the ids differ; the shorter length if one prompt begins the other; None if equal."""
    for i, (a, b) in enumerate(zip(clean, corrupt, strict=False)):
        if a != b:
            return i
    return None if len(clean) == len(corrupt) else min(len(clean), len(corrupt))


def token_diff(tokenized: TokenizedTask, example: int) -> str:
    """Both prompts of one example in tokens, three lines: clean, corrupt, and marks under the tokens that differ."""
    rows = [[show([t]) for t in tokenized.strings(example, side)] for side in ("clean", "corrupt")]
    n = max(map(len, rows))
    clean, corrupt = (row + [""] * (n - len(row)) for row in rows)
    widths = [max(len(a), len(b), 1) for a, b in zip(clean, corrupt, strict=True)]
    marks = ["^" * w if a != b else " " * w for a, b, w in zip(clean, corrupt, widths, strict=True)]
    lines = [
        f"{label:<8}" + "|".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip()
        for label, row in (("clean", clean), ("corrupt", corrupt))
    ]
    lengths = f"({len(rows[0])} and {len(rows[1])} tokens)"
    return "\n".join([*lines, f"{'':<8}" + " ".join(marks).rstrip() + f"  {lengths}"])


def alignment_problems(positions: PositionMap) -> list[str]:
    """For the first few failing examples: the problem and both prompts in tokens."""
    shown = positions.failing[:SHOWN]
    return [f"{i}: {positions[i].problem}\n{token_diff(positions.tokenized, i)}" for i in shown]
