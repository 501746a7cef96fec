"""Where the positions that path sets name lie in the prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosspatch.errors import AddressError
from crosspatch.paths.automaton import Vocabulary
from crosspatch.paths.compile import Atoms
from crosspatch.paths.pairs import Pairs


def resolve(position: int | str, pairs: Pairs, example: int) -> range:
    """Token positions of one example.

    Raises:
        AddressError: the prompt has no such token or span.
    """
    length = len(pairs.reference[example])
    if isinstance(position, int):
        if not -length <= position < length:
            raise AddressError(
                f"position {position} does not exist",
                where=f"example {example}",
                fix=f"it has {length} tokens: use 0 to {length - 1}, -{length} to -1, or the name of a span",
            )
        return range(position % length, position % length + 1)
    spans = pairs.spans[example] | {"END": (length - 1, length)}
    if position not in spans:
        raise AddressError(
            f"there is no span {position!r}",
            where=f"example {example}",
            fix=f"use one of {', '.join(sorted(spans))}, or a token index",
        )
    return range(*spans[position])


def first_difference(sides: Sequence[Sequence[Sequence[int]]]) -> int:
    """First position at which prompts, by side, differ in any pair; the last position where none does."""
    return min(
        next((at for at, tokens in enumerate(zip(*prompts, strict=True)) if len(set(tokens)) > 1), len(prompts[0]) - 1)
        for prompts in zip(*sides, strict=True)
    )


def find_atoms(words: Vocabulary, pairs: Pairs) -> tuple[Atoms, list[list[int]]]:
    """The kinds of position and offset that occur, and the kind of every token of every example."""
    places: dict[frozenset[int | str], int] = {}
    kinds = []
    for example, ids in enumerate(pairs.reference):
        names: list[set[int | str]] = [set() for _ in ids]
        for position in words.positions:
            for at in resolve(position, pairs, example):
                names[at].add(position)
        kinds.append([places.setdefault(frozenset(found), len(places)) for found in names])
    longest = max(map(len, pairs.reference))
    offsets = dict.fromkeys(windows_at(words, longest))
    return Atoms(tuple(places), tuple(offsets)), kinds


def windows_at(words: Vocabulary, length: int) -> list[frozenset[tuple[int, int]]]:
    """Which windows a token lies in, `[back]`, for each number of tokens that it is back from the one that reads it.

    Where attention is bidirectional the list goes on with the tokens ahead, so that `[-1]` is the next one.
    """
    backs = [*range(length), *(() if words.shape.causal else range(1 - length, 0))]
    return [frozenset(window for window in words.windows if window[0] <= -back <= window[1]) for back in backs]


def offset_masks(
    atoms: Atoms, words: Vocabulary, queries: Sequence[int], n_keys: int
) -> list[Bool[Tensor, "query key"]]:
    """For each kind of offset, where a query reads a key at such an offset."""
    back = torch.tensor(queries)[:, None] - torch.arange(n_keys)[None]
    inside = {(low, high): (back <= -low) & (back >= -high) for low, high in words.windows}
    masks = []
    for windows in atoms.offsets:
        mask = torch.ones_like(back, dtype=torch.bool)
        for window, where in inside.items():
            mask &= where if window in windows else ~where
        masks.append(mask)
    return masks


def kind_tensor(kinds: Sequence[Sequence[int]]) -> Int[Tensor, "pair position"]:
    return torch.tensor([list(row) for row in kinds], dtype=torch.long)
