"""The project's own data for these tests: the corpus generator's texts with the labels that it knows.

Everything is drawn from what was kept out of the embedded model's training text, where that can be.
"""

from __future__ import annotations

from random import Random

from crosspatch.dictionaries.bench.entities import Entities
from crosspatch.dictionaries.bench.texts import Texts
from crosspatch.embedded import corpus
from crosspatch.tasks import words as w

PAIRS = tuple(zip(w.PROFESSIONS[::2], w.PROFESSIONS[1::2], strict=True))
"""Professions that `scr` tells apart, two at a time: each in one pair."""


def biographies(seed: int = 0, per_cell: int = 40) -> Texts:
    """Profession by what a person does, gender by name and pronoun; every combination has `per_cell` texts."""
    rng = Random(f"crosspatch bench biographies {seed}")
    cells: dict[tuple[str, str], dict[str, None]] = {
        (profession, gender): {} for profession in w.PROFESSIONS for gender in ("male", "female")
    }
    while any(len(found) < per_cell for found in cells.values()):
        example = corpus.draw(corpus.biography, rng, held_out=True)
        gender = "male" if corpus.GENDER[example.prompt.split()[0]] == "he" else "female"
        found = cells[example.answers[0].strip(), gender]
        if len(found) < per_cell:
            found[example.prompt] = None
    rows = [(text, *cell) for cell, found in cells.items() for text in found]
    texts, professions, genders = zip(*rows, strict=True)
    return Texts("biographies", texts, {"profession": professions, "gender": genders})


def behaviours(seed: int = 0, n: int = 24) -> Texts:
    """Prompts of every behaviour of the generator, with its name."""
    rows = [
        (example.prompt, name.partition("-")[0])
        for name in corpus.BEHAVIOURS
        for example in corpus.held_out(name, n, seed)
    ]
    texts, names = zip(*rows, strict=True)
    return Texts("documents", texts, {"behaviour": names})


def noun_number(seed: int = 0, n: int = 300) -> Texts:
    """Subjects with another noun after them; the number of each, read at the last token (the second noun)."""
    rng = Random(f"crosspatch bench nouns {seed}")
    rows: dict[str, tuple[str, str]] = {}
    numbers = ("singular", "plural")
    for _ in range(4 * n):
        first, second = rng.sample(w.NOUNS, 2)
        a, b = rng.randint(0, 1), rng.randint(0, 1)
        if len(rows) < n:
            rows[f"The {first[a]} {rng.choice(w.PREPOSITIONS)} the {second[b]}"] = (numbers[a], numbers[b])
    subjects, lasts = zip(*rows.values(), strict=True)
    return Texts("nouns", tuple(rows), {"subject": subjects, "last noun": lasts}, pool="last")


def own_texts(seed: int = 0) -> list[Texts]:
    """All of the above."""
    return [biographies(seed), behaviours(seed), noun_number(seed)]


def own_words() -> tuple[str, ...]:
    """Lower-case words of three letters or more."""
    return tuple(dict.fromkeys(x for x in corpus.LISTED_WORDS if x.isalpha() and x.islower() and len(x) > 2))


def own_entities() -> list[Entities]:
    """Names, nouns and countries: a fact that the embedded model knows of each, and which word it is.

    Which word it is is asked by a repeated sequence: what is known of a word can change without changing the word that
    is repeated.
    """
    again = (" window tree %s boat window tree", " cats bridge %s red cats bridge", " table loud %s seven table loud")
    names = {name: (pronoun,) for name, pronoun in corpus.GENDER.items()}
    he_or_she = tuple(
        frame.format(NAME="%s", TRAIT=trait, ROLE=role)
        for frame, trait, role in zip(w.PRONOUN_FRAMES, w.TRAITS, w.ROLES, strict=False)
        if not frame.startswith("{NAME}")
    )
    verbs = tuple(zip(*w.AGREEMENT_VERBS, strict=True))
    nouns = {noun[number]: verbs[number] for noun in w.NOUNS for number in (0, 1)}
    verbed = tuple(f"The %s {preposition} the picture" for preposition in w.PREPOSITIONS[:3])
    capitals = {country: (city,) for country, city in w.CAPITALS}
    capital = tuple(f"{lead}The capital of %s is" for lead in ("", "Everyone knows this. ", "We read it in a book. "))
    rows = (
        ("name", "gender", names, he_or_she),
        ("noun", "number", nouns, verbed),
        ("country", "capital", capitals, capital),
    )
    return [
        Entities(
            kind,
            tuple(facts),
            {attribute: facts, "word": {word: (word,) for word in facts}},
            {attribute: asked, "word": again},
        )
        for kind, attribute, facts, asked in rows
    ]
