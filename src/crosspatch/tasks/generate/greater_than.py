"""Greater-than on years (Hanna, Liu & Variengien 2023, arXiv 2305.00586).

"The war lasted from the year 1732 to the year 17" -> any two digits above 32. Tokenizers that keep two digits together
are measured on both digits. Tokenizers with one token a digit are measured on the tens digit: larger ones are right,
smaller ones are wrong, and the same tens digit is neither (the ones digit decides).
"""

from __future__ import annotations

from random import Random

from crosspatch.errors import TaskError
from crosspatch.tasks.generate.base import Behaviour, Corruption, Vocabulary, fill
from crosspatch.tasks.pairs import Pair
from crosspatch.tasks.words import CENTURIES, DURATIONS, GREATER_THAN_FRAMES, TWO_DIGITS

CORRUPTIONS = {
    "01": Corruption("the last two digits of the start year, which become 01, so that every end year is right",
                     "the sentence, the noun and the century"),
    "random": Corruption("the last two digits of the start year, which become another random year",
                         "the sentence, the noun and the century"),
}  # fmt: skip
_PROBE = "The war lasted from the year 1732 to the year 17"


def digits_per_token(words: Vocabulary) -> int:
    """2 if the tokenizer keeps "32" of 1732 together, 1 if it has one token a digit.

    Raises:
        TaskError: it does neither.
    """
    if words.encoder is None:
        return 2
    found = words.encoder.continuation(_PROBE, "32")
    if len(found.ids) not in (1, 2):
        raise TaskError(
            f"the tokenizer splits 1732 into {[words.encoder.readable(t) for t in words.encoder.core(' 1732')]}",
            where="task 'greater-than'",
            fix="use a tokenizer with two-digit or one-digit tokens",
        )
    return 2 if len(found.ids) == 1 else 1


def draw(rng: Random, corruption: str, words: Vocabulary) -> Pair | None:
    frame, century = rng.choice(GREATER_THAN_FRAMES), rng.choice(CENTURIES)
    noun = rng.choice(words.whole(DURATIONS, "nouns"))
    digits = digits_per_token(words)
    years = range(2, 99) if digits == 2 else range(10, 90)  # leave an answer on both sides
    year, other = rng.sample(years, 2)
    if digits == 1 and other // 10 == year // 10:
        return None
    new = "01" if corruption == "01" else f"{other:02d}"
    sides = [fill(frame, {"NOUN": noun, "CENTURY": century, "YEAR": y}) for y in (f"{year:02d}", new)]
    for text, places in sides:
        if not _apart(words, text[: places["YEAR"][0][0]], text[slice(*places["YEAR"][0])], 3 - digits):
            return None
    (clean, places), (corrupt, _) = sides
    spans = {"noun": places["NOUN"][0], "XX": places["CENTURY"][0], "YY": places["YEAR"][0]}
    if digits == 2:
        answers, wrong = TWO_DIGITS[year + 1 :], TWO_DIGITS[: year + 1]
    else:
        tens = year // 10
        answers, wrong = (tuple(str(d) for d in some) for some in (range(tens + 1, 10), range(tens)))
    meta = {"year": f"{century}{year:02d}", "digits_per_token": digits}
    return Pair(clean, corrupt, answers, wrong, spans, spans, frame, corruption, meta)


def _apart(words: Vocabulary, before: str, year: str, tokens: int) -> bool:
    """The year's last two digits are tokens of their own, not merged with the century (as some round years are)."""
    if words.encoder is None:
        return True
    found = words.encoder.continuation(before, year)
    return found.exact and len(found.ids) == tokens


GREATER_THAN = Behaviour(
    "greater-than",
    "ends a span of years after its start: 'The war lasted from the year 1732 to the year 17' -> '33' ... '99'",
    "Hanna et al. 2023 (arXiv 2305.00586)",
    CORRUPTIONS,
    draw,
)
