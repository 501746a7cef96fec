"""Induction on random tokens (Olsson et al. 2022, arXiv 2209.11895).

A sequence of random words is repeated and cut off; the next word is the one that followed last time. The words are
drawn from the tokenizer's own vocabulary, each one token, so that nothing but the repetition predicts the answer.
"""

from __future__ import annotations

from random import Random

from crosspatch.tasks.generate.base import Behaviour, Corruption, Vocabulary
from crosspatch.tasks.pairs import Pair

LENGTH = 10  # words in the sequence that is repeated
_REST = "the number of words and the other words"

CORRUPTIONS = {
    "symmetric": Corruption(
        "which of two words of the first half follows the earlier occurrence", f"{_REST}; the second half", True
    ),
    "answer-new": Corruption("the word after the earlier occurrence is a new one", f"{_REST}; the second half"),
    "match-new": Corruption(
        "the earlier occurrence of the last word is a new one, so there is nothing to match",
        f"{_REST}; the second half",
    ),
    "first-half": Corruption(
        "all words of the first half are new, so that nothing is repeated", "the number of words; the second half"
    ),
    "second-half": Corruption(
        "all words of the second half are new, so that nothing is repeated", "the number of words; the first half"
    ),
}


def draw(rng: Random, corruption: str, words: Vocabulary) -> Pair | None:
    drawn = rng.sample(words.random_words(), 3 * LENGTH)
    first, new = drawn[:LENGTH], drawn[LENGTH:]
    last = rng.randint(1, LENGTH - 3)  # index of the word that the prompt ends with
    foil = rng.randint(last + 2, LENGTH - 1)  # index of the wrong answer: not yet repeated either
    second = first[: last + 1]
    corrupt_first, corrupt_second = list(first), list(second)
    if corruption == "symmetric":
        corrupt_first[last + 1], corrupt_first[foil] = first[foil], first[last + 1]
    elif corruption == "answer-new":
        corrupt_first[last + 1] = new[0]
    elif corruption == "match-new":
        corrupt_first[last] = new[0]
    elif corruption == "first-half":
        corrupt_first = new[:LENGTH]
    else:
        corrupt_second = new[: len(second)]
    if not (_repeats(words, first, second) and _repeats(words, corrupt_first, corrupt_second)):
        return None
    clean, spans = _prompt(first + second)
    corrupt, corrupt_spans = _prompt(corrupt_first + corrupt_second)
    named = {"match": last, "target": last + 1, "foil": foil}
    return Pair(
        clean,
        corrupt,
        answers=(f" {first[last + 1]}",),
        wrong=(f" {first[foil]}",),
        spans={name: spans[i] for name, i in named.items()},
        corrupt_spans={name: corrupt_spans[i] for name, i in named.items()},
        template=f"{LENGTH} words, {last + 1} repeated",
        corruption=corruption,
    )


def _prompt(words: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """All words with a leading space, the first too: a word must be the same token both times."""
    text, spans = "", []
    for word in words:
        spans.append((len(text) + 1, len(text) + 1 + len(word)))
        text += f" {word}"
    return text, spans


def _repeats(words: Vocabulary, first: list[str], second: list[str]) -> bool:
    """Every word is one token, the same at every occurrence."""
    if words.encoder is None:
        return True
    sequence = first + second
    ids = words.encoder.core(_prompt(sequence)[0])[-len(sequence) :]
    return [words.encoder.readable(t) for t in ids] == [f" {w}" for w in sequence]


INDUCTION = Behaviour(
    "induction",
    "goes on with a repeated sequence of random words",
    "Olsson et al. 2022 (arXiv 2209.11895)",
    CORRUPTIONS,
    draw,
)
