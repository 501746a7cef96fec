"""What the generators share: the description of a behaviour, filling a frame with its spans, choosing words that a
tokenizer keeps whole, and drawing until there are enough pairs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from string import Formatter
from typing import Any

from crosspatch.errors import TaskError
from crosspatch.tasks.encode import CharSpan, Encoder
from crosspatch.tasks.pairs import Pair, Task
from crosspatch.tasks.words import NOUNS

STALE = 3000  # draws in a row that bring no new pair before giving up


@dataclass(frozen=True)
class Corruption:
    """One way to make the corrupt prompt.

    Args:
        varies: what differs between the two prompts.
        holds: what both share, to which a result is blind.
        flips: whether the wrong answer is right on the corrupt prompt; where it is not, a corrupt prompt may have
            another right answer (`meta["corrupt_answer"]`), the same one (a control), or none.
    """

    varies: str
    holds: str
    flips: bool = False


class Vocabulary:
    """The words that a tokenizer keeps whole; without a tokenizer, all words."""

    def __init__(self, tokenizer: Any = None) -> None:
        self.encoder = Encoder(tokenizer) if tokenizer is not None else None
        self._words: list[str] | None = None
        self._kept: dict[tuple[tuple[str, ...], ...], list[tuple[str, ...]]] = {}

    def whole(self, words: Sequence[str], what: str, at_least: int = 2) -> list[str]:
        """The words that are one token with a leading space.

        Raises:
            TaskError: fewer than `at_least` of them.
        """
        return [row[0] for row in self.whole_rows([(w,) for w in words], what, at_least)]

    def whole_rows(self, rows: Sequence[tuple[str, ...]], what: str, at_least: int = 2) -> list[tuple[str, ...]]:
        """The rows (singular and plural, say) all of whose words are single tokens. Raises as `whole`."""
        key = tuple(rows)
        if key not in self._kept:
            self._kept[key] = [row for row in rows if all(map(self.has, row))]
        kept = self._kept[key]
        if len(kept) < at_least:
            raise TaskError(
                f"only {len(kept)} of {len(rows)} {what} are single tokens in this tokenizer, {at_least} are needed",
                fix="leave the tokenizer out and align by spans, or use a model with a larger vocabulary",
            )
        return kept

    def has(self, word: str) -> bool:
        return self.encoder is None or self.encoder.is_single(f" {word}")

    def random_words(self) -> list[str]:
        """Words for random sequences: of the tokenizer's own vocabulary, or plain nouns without one."""
        if self._words is None:
            if self.encoder is None:
                self._words = [singular for singular, _ in NOUNS]
            else:
                texts = map(self.encoder.readable, sorted(self.encoder.tokenizer.get_vocab().values()))
                self._words = list(dict.fromkeys(t[1:] for t in texts if re.fullmatch(r" [A-Za-z]{3,}", t)))
        return self._words

    def fits(self, pair: Pair) -> bool:
        """Both prompts have the same number of tokens, every answer is one token, right and wrong ones differ."""
        if self.encoder is None:
            return True
        encoder = self.encoder
        if len(encoder.core(pair.clean)) != len(encoder.core(pair.corrupt)):
            return False
        encoder.prime(pair.clean + a for a in pair.answers + pair.wrong)
        right, wrong = (
            [encoder.continuation(pair.clean, a).ids for a in texts] for texts in (pair.answers, pair.wrong)
        )
        firsts = [ids[0] for ids in right + wrong]
        return all(len(ids) == 1 for ids in right + wrong) and len(set(firsts)) == len(firsts)


@dataclass(frozen=True)
class Behaviour:
    """A standard behaviour and how its pairs are drawn.

    Args:
        name: as in `make_task(name)`.
        description: one sentence.
        source: papers.
        corruptions: name -> what it does; the first is the default.
        draw: (random numbers, corruption, words) -> a pair, or None for a draw that does not fit. The clean prompt
            depends on the random numbers only, so one seed gives the same clean prompts for every corruption.
    """

    name: str
    description: str
    source: str
    corruptions: Mapping[str, Corruption]
    draw: Callable[[Random, str, Vocabulary], Pair | None]

    def make(self, n: int, seed: int, corruption: str, tokenizer: Any = None) -> Task:
        """`n` different pairs.

        Raises:
            TaskError: the words do not give that many.
        """
        words = Vocabulary(tokenizer)
        pairs: dict[tuple[str, str], Pair] = {}
        unfit = stale = attempt = 0
        while len(pairs) < n and stale < STALE:
            pair = self.draw(Random(f"{self.name}/{seed}/{attempt}"), corruption, words)
            attempt += 1
            stale += 1
            if pair is None or pair.clean == pair.corrupt or not words.fits(pair):
                unfit += 1
            elif (pair.clean, pair.corrupt) not in pairs:
                pairs[pair.clean, pair.corrupt] = pair
                stale = 0
        if len(pairs) < n:
            raise TaskError(
                f"only {len(pairs)} different pairs could be made, {n} were asked for ({unfit} draws did not fit)",
                where=f"task {self.name!r}, corruption {corruption!r}",
                fix=f"ask for n={len(pairs)}"
                if pairs
                else "leave the tokenizer out and align by spans, or use another model",
            )
        kind = self.corruptions[corruption]
        provenance = f"generated by crosspatch (seed {seed}), after {self.source}"
        return Task(self.name, tuple(pairs.values()), provenance, kind.varies, kind.holds, self.description)


def fill(frame: str, values: Mapping[str, str]) -> tuple[str, dict[str, list[CharSpan]]]:
    """A format string with its fields filled in, and where each field's values stand in the text."""
    text = ""
    spans: dict[str, list[CharSpan]] = {}
    for literal, name, _, _ in Formatter().parse(frame):
        text += literal
        if name is not None:
            spans.setdefault(name, []).append((len(text), len(text) + len(values[name])))
            text += values[name]
    return text, spans


def next_word(text: str, after: int) -> CharSpan:
    """The word or run of punctuation that comes after a character position."""
    match = re.compile(r"\w+|[^\w\s]+").search(text, after)
    if match is None:
        raise ValueError(f"nothing follows position {after} of {text!r}")
    return match.span()
