"""Argument order in a docstring (Heimersheim & Janiak 2023, "A circuit for Python docstrings in a 4-layer
attention-only transformer"), simplified.

The definition lists arguments A to F; the docstring documents C, then D, and the next one, E, is asked for. Every other
argument of the definition is a wrong answer.
"""

from __future__ import annotations

from random import Random

from crosspatch.tasks.generate.base import Behaviour, Corruption, Vocabulary, fill
from crosspatch.tasks.pairs import Pair
from crosspatch.tasks.words import ARGUMENTS, DESCRIPTION_NOUNS, DESCRIPTIONS, DOCSTRING_FRAMES, FUNCTION_NAMES

CORRUPTIONS = {
    "symmetric": Corruption(
        "which of the last two arguments (E, F) comes first in the definition", "all words; the docstring", True
    ),
    "answer-new": Corruption(
        "the argument to be named (E) is another word in the definition", "the other arguments; the docstring"
    ),
    "def-new": Corruption("all arguments in the definition are other words", "the docstring; the form of the code"),
    "doc-new": Corruption(
        "the documented arguments are other words than the definition's", "the definition; the descriptions"
    ),
    "def-doc-new": Corruption(
        "all arguments, in the definition and in the docstring, are other words", "the form; the descriptions"
    ),
}
_LETTERS = "ABCDEF"


def draw(rng: Random, corruption: str, words: Vocabulary) -> Pair:
    frame = rng.choice(DOCSTRING_FRAMES)
    arguments = words.whole(ARGUMENTS, "argument names", 14)
    drawn = rng.sample(arguments, 14)
    args, new, doc_new = drawn[:6], drawn[6:12], drawn[12:]
    adjectives, nouns = words.whole(DESCRIPTIONS, "adjectives"), words.whole(DESCRIPTION_NOUNS, "nouns")
    rest = {f"TEXT{i}": f"{rng.choice(adjectives)} {rng.choice(nouns)}" for i in range(3)}
    rest["FUNCTION"] = rng.choice(words.whole(FUNCTION_NAMES, "function names"))
    definition, documented = {
        "symmetric": ([*args[:4], args[5], args[4]], args[2:4]),
        "answer-new": ([*args[:4], new[4], args[5]], args[2:4]),
        "def-new": (new, args[2:4]),
        "doc-new": (args, doc_new),
        "def-doc-new": (new, doc_new),
    }[corruption]
    clean, spans = _prompt(frame, args, args[2:4], rest)
    corrupt, corrupt_spans = _prompt(frame, definition, documented, rest)
    answers, wrong = (f" {args[4]}",), tuple(f" {a}" for i, a in enumerate(args) if i != 4)
    # The wrong answer that a symmetric corruption makes right comes first.
    wrong = (f" {args[5]}", *(w for w in wrong if w != f" {args[5]}"))
    return Pair(clean, corrupt, answers, wrong, spans, corrupt_spans, frame, corruption)


def _prompt(
    frame: str, definition: list[str], documented: list[str], rest: dict[str, str]
) -> tuple[str, dict[str, tuple[int, int]]]:
    """The frame names C and D twice: first in the definition, then in the docstring, where another word may stand."""
    head, quotes, tail = frame.partition('"""')
    text, places = fill(head, dict(zip(_LETTERS, definition, strict=True)) | rest)
    doc, doc_places = fill(quotes + tail, dict(zip("CD", documented, strict=True)) | rest)
    spans = {f"{letter}_def": places[letter][0] for letter in _LETTERS}
    for letter in "CD":
        start, end = doc_places[letter][0]
        spans[f"{letter}_doc"] = (start + len(text), end + len(text))
    return text + doc, spans


DOCSTRING = Behaviour(
    "docstring",
    "documents arguments in the order of the definition: after ':param' comes the next one",
    "Heimersheim & Janiak 2023",
    CORRUPTIONS,
    draw,
)
