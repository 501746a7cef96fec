"""Gendered pronouns (Mathwin et al. 2023, "Identifying a preliminary circuit for predicting gendered pronouns in GPT-2
small").

"So Mary is a really great friend, isn't" -> " she".
"""

from __future__ import annotations

from random import Random

from crosspatch.tasks.generate.base import Behaviour, Corruption, Vocabulary, fill
from crosspatch.tasks.pairs import Pair
from crosspatch.tasks.words import FEMALE_NAMES, MALE_NAMES, PRONOUN_FRAMES, PRONOUNS, ROLES, TRAITS

CORRUPTIONS = {
    "gender": Corruption("the name, and with it the gender that it suggests", "the rest of the sentence", True),
    "name": Corruption(
        "the name, but not the gender that it suggests; the answer stays: a control, which the behaviour gate refuses",
        "the rest of the sentence, and the gender",
    ),
}


def draw(rng: Random, corruption: str, words: Vocabulary) -> Pair:
    names = [words.whole(MALE_NAMES, "male names"), words.whole(FEMALE_NAMES, "female names")]
    gender, frame = rng.randint(0, 1), rng.choice(PRONOUN_FRAMES)
    name, same = rng.sample(names[gender], 2)
    other = rng.choice(names[1 - gender])
    rest = {"TRAIT": rng.choice(words.whole(TRAITS, "traits")), "ROLE": rng.choice(words.whole(ROLES, "roles"))}
    clean, places = fill(frame, {"NAME": name} | rest)
    corrupt, corrupt_places = fill(frame, {"NAME": other if corruption == "gender" else same} | rest)
    spans, corrupt_spans = ({field.lower(): at[0] for field, at in p.items()} for p in (places, corrupt_places))
    right, wrong = PRONOUNS[gender], PRONOUNS[1 - gender]
    meta = {"case": ("male", "female")[gender]}
    return Pair(clean, corrupt, (f" {right}",), (f" {wrong}",), spans, corrupt_spans, frame, corruption, meta)


PRONOUN = Behaviour(
    "pronoun",
    "refers to a person by the pronoun of the name: 'So Mary is a really great friend, isn't' -> ' she'",
    "Mathwin et al. 2023",
    CORRUPTIONS,
    draw,
)
