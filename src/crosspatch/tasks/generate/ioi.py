"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593).

"When Mary and John went to the store, John gave a drink to" -> " Mary". The indirect object (IO) is named once, the
subject twice (S1, S2). In the order ABB the indirect object comes first, in BAB second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from crosspatch.tasks.generate.base import Behaviour, Corruption, Vocabulary, fill, next_word
from crosspatch.tasks.pairs import Pair
from crosspatch.tasks.words import IOI_FRAMES, NAMES, OBJECTS, PLACES

_REST = "the sentence, its place and object, and the number of names"

CORRUPTIONS = {
    "symmetric": Corruption(
        "which of the two names is repeated (S2 becomes the indirect object)", f"{_REST}; both names", True
    ),
    "abc": Corruption("all three names are new and different, so that none is repeated", _REST),
    "s2-new": Corruption("the repeated name S2 is a new name, so that none is repeated", f"{_REST}; the first clause"),
    "s1-new": Corruption("the first mention of the subject, S1, is a new name", f"{_REST}; the indirect object and S2"),
    "io-new": Corruption(
        "the indirect object is a new name, which becomes the right answer", f"{_REST}; the repeated name"
    ),
    "s1-io-new": Corruption("both names of the first clause are new, so that none is repeated", f"{_REST}; S2"),
    "order": Corruption(
        "the order of the two names in the first clause (ABB becomes BAB); the answer stays: a control, "
        "which the behaviour gate refuses",
        f"{_REST}; both names and which is repeated",
    ),
    "swap": Corruption(
        "the two names trade places everywhere: which name is right, not which position",
        f"{_REST}; the order of roles",
        True,
    ),
    "names": Corruption("all names are new; the order of roles stays, so the new indirect object is right", _REST),
}


def roles(corruption: str, io: str, s: str, new: list[str]) -> tuple[tuple[str, str, str], str | None]:
    """The names at (IO, S1, S2) in the corrupt prompt, and its right answer, if it has one."""
    p, q, r = new
    return {
        "symmetric": ((io, s, io), s),
        "abc": ((p, q, r), None),
        "s2-new": ((io, s, p), None),
        "s1-new": ((io, p, s), None),
        "io-new": ((p, s, s), p),
        "s1-io-new": ((p, q, s), None),
        "order": ((s, io, s), io),
        "swap": ((s, io, io), s),
        "names": ((p, q, q), p),
    }[corruption]


@dataclass(frozen=True)
class Material:
    """The words and frames that prompts are made of."""

    frames: Sequence[str] = IOI_FRAMES
    names: Sequence[str] = NAMES
    places: Sequence[str] = PLACES
    objects: Sequence[str] = OBJECTS


def draw(rng: Random, corruption: str, words: Vocabulary, material: Material = Material()) -> Pair:
    """One pair. The clean prompt does not depend on the corruption."""
    names = rng.sample(words.whole(material.names, "names", 5), 5)
    io, s, new = names[0], names[1], names[2:]
    frame, io_first = rng.choice(material.frames), rng.random() < 0.5
    places, objects = words.whole(material.places, "places"), words.whole(material.objects, "objects")
    things = {"PLACE": rng.choice(places), "OBJECT": rng.choice(objects)}
    slots = ("A", "B", "S") if io_first else ("B", "A", "S")  # the frame's fields of IO, S1, S2
    corrupt_names, corrupt_answer = roles(corruption, io, s, new)
    clean, spans = _prompt(frame, slots, (io, s, s), things)
    corrupt, corrupt_spans = _prompt(frame, slots, corrupt_names, things)
    return Pair(
        clean,
        corrupt,
        answers=(f" {io}",),
        wrong=(f" {s}",),
        spans=spans,
        corrupt_spans=corrupt_spans,
        template=frame,
        corruption=corruption,
        meta={
            "order": "ABB" if io_first else "BAB",
            "corrupt_answer": f" {corrupt_answer}" if corrupt_answer else None,
        },
    )


def _prompt(
    frame: str, slots: tuple[str, str, str], names: tuple[str, str, str], things: dict[str, str]
) -> tuple[str, dict[str, tuple[int, int]]]:
    text, places = fill(frame, things | dict(zip(slots, names, strict=True)))
    spans = {role: places[slot][0] for role, slot in zip(("IO", "S1", "S2"), slots, strict=True)}
    spans["S1+1"] = next_word(text, spans["S1"][1])
    spans |= {field.lower(): places[field][0] for field in ("PLACE", "OBJECT") if field in places}
    return text, dict(sorted(spans.items(), key=lambda item: item[1]))


IOI = Behaviour(
    "ioi",
    "names the person who has not acted: 'When Mary and John went to the store, John gave a drink to' -> ' Mary'",
    "Wang et al. 2022 (arXiv 2211.00593); corruptions also after Zhang & Nanda 2023 (arXiv 2309.16042)",
    CORRUPTIONS,
    draw,
)
