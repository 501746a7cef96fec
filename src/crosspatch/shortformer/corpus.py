"""The text that the induction model is trained on: a seeded generator in which copying from the context pays.

Every document is about a cast of its own: people and places with made-up names of two to four syllables (" Ka-ro-vin",
one token a syllable), things that keep their adjective ("the amber lantern"), and a few nouns, verbs and adjectives
that recur. So three ways of copying lower the loss, as they do in natural text:

- induction: after " Ka" comes what came after " Ka" before;
- longer induction: two names often share a syllable, and only the one before it tells them apart;
- repeating a word merely because it occurred ("parroting"): the topic's words, in whatever company.

Rows of repeated random tokens are mixed in. Text rows for evaluation have names that no training row has.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Literal

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from crosspatch.embedded.tokenizer import BOS, split_by, whole_pieces
from crosspatch.errors import TaskError

ROW = 161
"""Tokens of a row, BOS first: 160 inputs and, one later, 160 targets."""
HELD_OUT_ONE_IN = 10
"""One made-up name in this many occurs in evaluation rows only."""

Kind = Literal["text", "repeat", "chunks"]
SHARES: dict[Kind, float] = {"text": 0.7, "repeat": 0.15, "chunks": 0.15}
"""Share of each kind of row in training; see :func:`rows`."""

# ------------------------------------------------------------------------------------------------------- the words

STARTS = tuple(
    f"{a}{b}".capitalize()
    for a, b in product(("b", "d", "f", "g", "k", "l", "m", "n", "r", "s", "t", "v", "z", "br", "st"), "aeiou")
)
SYLLABLES = tuple(f"{a}{b}{c}" for a, b, c in product("bdgklmnrstv", "aeiou", ("", "n", "r", "l")))
TITLES = (
    "Captain", "Doctor", "Queen", "King", "Judge", "Professor", "Lady", "Lord", "Sister", "Brother", "Uncle", "Aunt",
    "Mayor", "General",
)  # fmt: skip
PLACE_WORDS = (
    "Lake", "Port", "Mount", "Fort", "Castle", "Cape",
)  # fmt: skip
NOUNS = (
    "lantern", "bridge", "garden", "letter", "river", "engine", "mirror", "basket", "ladder", "window", "hammer",
    "candle", "curtain", "barrel", "ribbon", "wagon", "statue", "violin", "carpet", "kettle", "blanket", "anchor",
    "feather", "bottle", "pencil", "jacket", "bucket", "shovel", "saddle", "cradle", "drawer", "helmet", "needle",
    "pillow", "pocket", "rocket", "shelter", "tunnel", "turtle", "rabbit", "spider", "falcon", "donkey", "salmon",
    "kitten", "monkey", "beetle", "parrot", "orchard", "meadow", "harbor", "valley", "forest", "island", "desert",
    "canyon", "village", "market", "temple", "palace", "prison", "tavern", "stable", "chapel", "library", "station",
    "theater", "museum", "kitchen", "cellar", "attic", "balcony", "corridor", "staircase", "fountain", "courtyard",
    "tower", "gate", "wall", "apple", "pepper", "carrot", "onion", "lemon", "cherry", "honey", "butter", "cheese",
    "bread", "pudding", "soup", "song", "story", "poem", "riddle", "secret", "promise", "map", "coin", "ring", "crown",
    "sword", "shield", "arrow", "rope", "chain", "key", "clock", "drum", "flute", "bell", "book", "box", "cup", "plate",
    "lamp", "stone", "flag", "tent",
)  # fmt: skip
VERBS = (
    "carried", "found", "painted", "opened", "repaired", "admired", "described", "borrowed", "buried", "burned",
    "bought", "sold", "lost", "stole", "cleaned", "closed", "covered", "dropped", "emptied", "filled", "followed",
    "guarded", "hated", "ignored", "inspected", "lifted", "loved", "measured", "missed", "moved", "noticed", "polished",
    "praised", "protected", "pushed", "remembered", "returned", "saved", "searched", "shared", "sketched", "studied",
    "touched", "trusted", "used", "visited", "wanted", "washed", "watched", "weighed", "wrapped",
)  # fmt: skip
ADJECTIVES = (
    "amber", "ancient", "bitter", "blue", "brave", "bright", "broken", "bronze", "calm", "cheap", "clever", "cold",
    "crooked", "dark", "dusty", "empty", "faded", "famous", "fragile", "frozen", "gentle", "golden", "green", "grey",
    "heavy", "hidden", "hollow", "holy", "humble", "iron", "ivory", "large", "lonely", "narrow", "noble", "old",
    "orange", "pale", "plain", "purple", "quiet", "red", "round", "rusty", "sacred", "scarlet", "sharp", "silent",
    "silver", "simple", "small", "smooth", "square", "strange", "sweet", "tall", "tiny", "velvet", "warm", "white",
    "wild", "wooden", "yellow",
)  # fmt: skip
FRAMES = tuple(
    line.strip()
    for line in """
    {P} {V} the {O} .
    {P} {V} the {O} near the {N} .
    {P} met {Q} in {L} .
    {P} {V} the {A} {N} before {Q} came .
    In {L} , {P} {V} a {N} .
    {P} and {Q} {V} the {O} together .
    {P} said that {Q} {V} the {N} .
    {P} asked {Q} about the {O} .
    The {O} was in {L} when {P} {V} it .
    After the {N} , {P} went to {L} with {Q} .
    Nobody in {L} {V} the {N} of {P} .
    {Q} gave the {O} to {P} .
    It was {P} who {V} the {A} {N} .
    The {N} of {P} was {A} and {A} .
    {P} did not like {L} , but {Q} did .
    When {P} left {L} , {Q} {V} a {A} {N} .
    Every {N} in {L} was {A} .
    Then {P} {V} the {O} again .
    {P} wrote to {Q} from {L} .
    The {O} and the {N} were {A} .
    People say that {P} {V} {L} for the {O} .
    {P} waited for {Q} near the {O} .
    """.strip().splitlines()
)


def is_held_out(name: str) -> bool:
    """Whether a made-up name is kept for evaluation (by its hash, so without any state)."""
    return zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0


def _name(rng: Random, held_out: bool, start: str | None = None, second: str | None = None) -> str:
    while True:
        length = rng.choice((2, 3, 3, 4))
        parts = [start or rng.choice(STARTS), *(rng.choice(SYLLABLES) for _ in range(length - 1))]
        if second is not None:
            parts[1] = second
        name = "-".join(parts)
        if is_held_out(name) == held_out:
            return name


@dataclass(frozen=True)
class _Cast:
    """What one document is about."""

    people: list[str]
    places: list[str]
    things: list[str]
    nouns: list[str]
    verbs: list[str]
    adjectives: list[str]


def _cast(rng: Random, held_out: bool) -> _Cast:
    names = [_name(rng, held_out)]
    for _ in range(rng.choice((3, 3, 4))):
        start, second, *_ = names[rng.randrange(len(names))].split("-")
        draw = rng.random()
        if draw < 0.2:  # the same start: nothing but the topic tells which name it will be
            names.append(_name(rng, held_out, start=start))
        elif draw < 0.6:  # the same second syllable: the first one tells how it goes on
            names.append(_name(rng, held_out, second=second))
        else:
            names.append(_name(rng, held_out))
    rng.shuffle(names)
    places, people = names[:2], names[2:]
    adjectives = rng.sample(ADJECTIVES, 5)
    nouns = rng.sample(NOUNS, 8)
    return _Cast(
        people=[f"{rng.choice(TITLES)} {name}" if rng.random() < 0.4 else name for name in people],
        places=[f"{rng.choice(PLACE_WORDS)} {name}" if rng.random() < 0.4 else name for name in places],
        things=[f"{rng.choice(adjectives[:3])} {noun}" for noun in nouns[:3]],
        nouns=nouns,
        verbs=rng.sample(VERBS, 5),
        adjectives=adjectives,
    )


def document(rng: Random, *, held_out: bool = False) -> str:
    """One text of 24 sentences (more tokens than a row takes), with names that are held out or are not."""
    cast = _cast(rng, held_out)

    def word(own: list[str], everything: tuple[str, ...]) -> str:
        return rng.choice(own) if rng.random() < 0.8 else rng.choice(everything)

    sentences = []
    for _ in range(24):
        first, second = rng.sample(cast.people, 2) if len(cast.people) > 1 else cast.people * 2
        fields = {
            "P": first,
            "Q": second,
            "L": rng.choice(cast.places),
            "O": rng.choice(cast.things),
            "N": word(cast.nouns, NOUNS),
            "V": word(cast.verbs, VERBS),
            "A": word(cast.adjectives, ADJECTIVES),
        }
        sentences.append(rng.choice(FRAMES).format(**fields).replace(" ,", ",").replace(" .", "."))
    return " " + " ".join(sentences)


# --------------------------------------------------------------------------------------------------- the tokenizer

_PATTERN = r""" ?-?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word and per syllable (both with what stands before them), bytes for everything else.

    A byte-level BPE without merges that takes a pre-token of its vocabulary as it is; ``encode`` puts BOS first.
    """
    framing = {word for frame in FRAMES for word in frame.split() if word[0] not in "{,."}
    words = [*STARTS, *TITLES, *PLACE_WORDS, *NOUNS, *VERBS, *ADJECTIVES, *sorted(framing)]
    pieces = [*(f"Ġ{word}" for word in words), *(f"-{syllable}" for syllable in SYLLABLES)]
    return whole_pieces(split_by(_PATTERN), pieces, ROW - 1)


def words_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the whole words and syllables: everything but BOS and the single bytes."""
    return sorted(i for token, i in tokenizer.get_vocab().items() if token != BOS and len(token) > 1)


# -------------------------------------------------------------------------------------------------------- the rows


def rows(
    tokenizer: PreTrainedTokenizerBase, n: int, seed: int | str, *, kind: Kind = "text", held_out: bool = True
) -> list[list[int]]:
    """``n`` rows of ``ROW`` token ids, BOS first.

    Args:
        tokenizer: the induction model's.
        seed: another seed gives other rows; training and held-out rows of one seed differ too.
        kind: ``text``: one document, cut off at the end. ``repeat``: a sequence of 10 to 80 random tokens, over and
            over. ``chunks``: random chunks of 4 to 24 tokens, of which every other one on average is a copy of an
            earlier one.
        held_out: text whose made-up names are in no training row.

    Raises:
        TaskError: an unknown kind.
    """
    rng = Random(f"crosspatch induction {kind} {held_out} {seed}")
    if kind == "text":
        texts = [document(rng, held_out=held_out) for _ in range(n)]
        return list(tokenizer(texts, truncation=True, max_length=ROW)["input_ids"])
    if kind not in SHARES:
        raise TaskError(f"unknown kind of rows {kind!r}", where="rows", fix=f"use one of {', '.join(SHARES)}")
    words = words_of(tokenizer)
    make = _repeat if kind == "repeat" else _chunks
    return [[tokenizer.bos_token_id, *make(rng, words)] for _ in range(n)]


def repeated(tokenizer: PreTrainedTokenizerBase, n: int, seed: int | str) -> list[list[int]]:
    """``n`` rows of BOS, 80 random tokens, and the same 80 again: the second half can be copied, the first cannot."""
    rng, words = Random(f"crosspatch induction halves {seed}"), words_of(tokenizer)
    halves = [rng.choices(words, k=(ROW - 1) // 2) for _ in range(n)]
    return [[tokenizer.bos_token_id, *half, *half] for half in halves]


def _repeat(rng: Random, words: list[int]) -> list[int]:
    part = rng.choices(words, k=rng.randrange(10, 81))
    return (part * (ROW // len(part) + 1))[: ROW - 1]


def _chunks(rng: Random, words: list[int]) -> list[int]:
    made: list[list[int]] = [rng.choices(words, k=rng.randrange(4, 25))]
    while sum(map(len, made)) < ROW:
        copy = rng.random() < 0.5
        made.append(rng.choice(made) if copy else rng.choices(words, k=rng.randrange(4, 25)))
    return [token for chunk in made for token in chunk][: ROW - 1]


def training_rows(tokenizer: PreTrainedTokenizerBase, seed: int, pool: int = 4096) -> Iterator[list[list[int]]]:
    """Pools of ``pool`` training rows of all kinds in random order, without end."""
    rng = Random(f"crosspatch induction order {seed}")
    part = 0
    while True:
        mixed = [
            row
            for kind, share in SHARES.items()
            for row in rows(tokenizer, round(pool * share), f"{seed}/{part}", kind=kind, held_out=False)
        ]
        rng.shuffle(mixed)
        yield mixed
        part += 1


def digest(tokenizer: PreTrainedTokenizerBase, seed: int) -> str:
    """SHA-256 of the first pool of training rows: tells whether weights were trained on this generator's rows."""
    first = next(training_rows(tokenizer, seed))
    return hashlib.sha256(repr(first).encode()).hexdigest()
