"""Subject-verb agreement in four variants (Finlayson et al. 2021, arXiv 2106.06087; Marks et al. 2024, arXiv
2403.19647).

| task | prompt | agrees with |
|---|---|---|
| agreement-simple | The parents | the noun |
| agreement-nounpp | The parents near the car | the first noun |
| agreement-within-rc | The athlete that the managers | the second noun |
| agreement-rc | The athlete that the managers like | the first noun |

All verbs of the right number are right answers, all of the other number are wrong.
"""

from __future__ import annotations

from functools import partial
from random import Random

from crosspatch.tasks.generate.base import Behaviour, Corruption, Vocabulary, fill
from crosspatch.tasks.pairs import Pair
from crosspatch.tasks.words import AGREEMENT_FRAMES, AGREEMENT_VERBS, NOUNS, PEOPLE, PREPOSITIONS, TRANSITIVE_VERBS

SUBJECT = Corruption(
    "the grammatical number of the subject that the verb agrees with", "every word but for its number", True
)
ATTRACTOR = Corruption(
    "the grammatical number of the other noun (and of its verb); the answer stays: a control, which the behaviour "
    "gate refuses",
    "the subject; every word but for its number",
)
BOTH = Corruption("the grammatical number of both nouns (and of the inner verb)", "every word but for its number", True)


def draw(rng: Random, corruption: str, words: Vocabulary, variant: str) -> Pair:
    frame = dict(AGREEMENT_FRAMES)[variant]
    only_people = variant in ("rc", "within_rc")
    nouns = words.whole_rows(PEOPLE if only_people else NOUNS, "nouns (singular and plural)")
    first, second = rng.sample(nouns, 2)
    numbers = [rng.randint(0, 1), rng.randint(0, 1)]  # of the first and the second noun; 0 = singular, 1 = plural
    preposition = rng.choice(words.whole(PREPOSITIONS, "prepositions", 1))
    verb = rng.choice(words.whole_rows([v[:2] for v in TRANSITIVE_VERBS], "verbs (singular and plural)", 1))
    subject = 1 if variant == "within_rc" else 0
    flipped = {"subject": (subject,), "attractor": (1 - subject,), "both": (0, 1)}[corruption]
    corrupt_numbers = [1 - x if i in flipped else x for i, x in enumerate(numbers)]

    def prompt(given: list[int]) -> tuple[str, dict[str, tuple[int, int]]]:
        fields = {"N1": first[given[0]], "N2": second[given[1]], "P": preposition, "V": verb[given[1]]}
        text, places = fill(frame, fields)
        names = {"N1": ("subject", "attractor")[subject], "N2": ("attractor", "subject")[subject]}
        names |= {"P": "preposition", "V": "verb"}
        return text, {names[field]: at[0] for field, at in places.items()}

    clean, spans = prompt(numbers)
    corrupt, corrupt_spans = prompt(corrupt_numbers)
    verbs = words.whole_rows(AGREEMENT_VERBS, "verbs to answer with", 1)
    right = numbers[subject]
    kind = ("singular", "plural")
    case = kind[numbers[0]] if variant == "simple" else f"{kind[numbers[0]]}_{kind[numbers[1]]}"
    return Pair(
        clean,
        corrupt,
        answers=tuple(f" {v[right]}" for v in verbs),
        wrong=tuple(f" {v[1 - right]}" for v in verbs),
        spans=spans,
        corrupt_spans=corrupt_spans,
        template=frame.replace("{P}", preposition).replace("{V}", "/".join(verb)),
        corruption=corruption,
        meta={"case": case},
    )


def _behaviour(name: str, variant: str, example: str) -> Behaviour:
    corruptions = {"subject": SUBJECT}
    if variant != "simple":
        corruptions |= {"attractor": ATTRACTOR, "both": BOTH}
    return Behaviour(
        name,
        f"makes the verb agree with its subject: {example}",
        "Marks et al. 2024 (arXiv 2403.19647) and Finlayson et al. 2021 (arXiv 2106.06087)",
        corruptions,
        partial(draw, variant=variant),
    )


AGREEMENT = (
    _behaviour("agreement-simple", "simple", "'The parents' -> ' are', not ' is'"),
    _behaviour("agreement-nounpp", "nounpp", "'The parents near the car' -> ' are', not ' is'"),
    _behaviour("agreement-within-rc", "within_rc", "'The athlete that the managers' -> ' have', not ' has'"),
    _behaviour("agreement-rc", "rc", "'The athlete that the managers like' -> ' has', not ' have'"),
)
