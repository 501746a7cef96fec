"""The text that the embedded model is trained on: a seeded generator of simple English, and its held-out part.

Each behaviour is a function ``Random -> Example``. Training documents and evaluation prompts come from the same
functions: :func:`reserved` keeps about one content combination in ten (a pair of names, a noun with its starting
year, a pair of nouns, ...) out of every training document, and evaluation draws from those only.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from random import Random

from crosspatch.tasks import words as w

#: One content combination in this many is kept for evaluation.
RESERVE_ONE_IN = 10
#: The same for agreement right after the subject, where one noun is the whole content and there are few of them.
RESERVE_ONE_NOUN_IN = 4

#: Stands in a training text before a word that its context determines. Never reaches the tokenizer.
MARK = "\x01"

LEMMA = {form: singular for singular, plural in w.NOUNS for form in (singular, plural)}
_THINGS = tuple(singular for singular, _ in w.THINGS)
GENDER = dict.fromkeys(w.MALE_NAMES, "he") | dict.fromkeys(w.FEMALE_NAMES, "she")


@dataclass(frozen=True)
class Example:
    """One prompt with its answers, and the document that it opens.

    ``answers`` and ``wrong`` are continuations with their leading space. ``text`` starts with ``prompt``; in it a
    ``MARK`` stands before every word that the words before it determine (the trainer gives those more weight).
    """

    behaviour: str
    prompt: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    text: str


def _example(behaviour: str, prompt: str, answer: str, wrong: str | tuple[str, ...], rest: str) -> Example:
    others = (wrong,) if isinstance(wrong, str) else wrong
    return Example(behaviour, prompt, (f" {answer}",), tuple(f" {x}" for x in others), f"{prompt}{MARK} {answer}{rest}")


# ------------------------------------------------------------------------------------------------ held-out part

_WORD = re.compile(r"[A-Za-z]+|\d{4}")


def reservation_keys(behaviour: str, prompt: str) -> list[str]:
    """The content combinations of a prompt; the prompt is held out when one of them is.

    Works on any prompt of the behaviour, whatever its wording, so that prompts of other generators can be sorted
    into seen and held-out too. Where the behaviour has no natural combination the whole prompt is the key.
    """
    found = _WORD.findall(prompt)
    if behaviour == "ioi":
        names = sorted({x for x in found if x in GENDER})
        return [f"{a}+{b}" for a, b in combinations(names, 2)]
    if behaviour == "greater-than":
        noun = next((x for x in found if x in w.DURATIONS), "")
        year = next((x for x in found if x.isdigit()), "")
        return [f"{noun}+{year}"]
    if behaviour.startswith("agreement"):
        return ["+".join(LEMMA[x] for x in found if x in LEMMA)]
    if behaviour.startswith("docstring"):
        return [prompt.partition("\n")[0]]
    if behaviour == "counting":
        return [prompt.split()[0]]
    return [prompt]


def reserved(behaviour: str, prompt: str) -> bool:
    """Whether this prompt belongs to the held-out part (by a hash of its content, so without any state)."""
    family = behaviour.partition("-")[0]
    keys = reservation_keys(behaviour, prompt)
    one_in = RESERVE_ONE_NOUN_IN if family == "agreement" and "+" not in keys[0] else RESERVE_ONE_IN
    return any(zlib.crc32(f"{family}|{key}".encode()) % one_in == 0 for key in keys)


# -------------------------------------------------------------------------------------------- indirect object

_OPENINGS = (
    "When {A} and {B} went to the {PLACE},",
    "After {A} and {B} went to the {PLACE},",
    "When {A} and {B} were at the {PLACE},",
    "While {A} and {B} were working at the {PLACE},",
    "Then, {A} and {B} went to the {PLACE}.",
    "Then, {A} and {B} were at the {PLACE} with a {OTHER}.",
    "{A} and {B} met at the {PLACE}.",
    "Yesterday {A} saw {B} at the {PLACE} and",
    "Once, {A} and {B} had lunch near the {PLACE}. Afterwards,",
    "The {PLACE} was open, so {A} and {B} went there, and",
)
_GIVINGS = (
    "{S} gave a {OBJECT} to",
    "{S} gave the {OBJECT} to",
    "{S} handed a {OBJECT} to",
    "{S} wanted to give a {OBJECT} to",
    "{S} decided to give the {OBJECT} to",
    "{S} passed the {OBJECT} to",
    "{S} offered a {OBJECT} to",
    "{S} sold the {OBJECT} to",
    "{S} said to",
)
_AFTER_GIVING = (".", ".", " and left.", " with a smile.", " before going home.")


def ioi(rng: Random) -> Example:
    """Indirect object identification in the orders ABB and BAB (Wang et al. 2023)."""
    first, second, third = rng.sample(w.NAMES, 3)
    subject = rng.choice((first, second))
    other = second if subject == first else first
    frame = rng.choice(w.IOI_FRAMES) if rng.random() < 0.6 else f"{rng.choice(_OPENINGS)} {rng.choice(_GIVINGS)}"
    if rng.random() < 0.08:  # a third person gives: no name is repeated, either of the two can receive
        subject, other = third, rng.choice((first, second))
    gift, carried = rng.sample(w.OBJECTS, 2)
    fields = {"A": first, "B": second, "S": subject, "PLACE": rng.choice(w.PLACES), "OBJECT": gift, "OTHER": carried}
    return _example("ioi", frame.format(**fields), other, subject, rng.choice(_AFTER_GIVING))


# ----------------------------------------------------------------------------------------------- greater-than


def greater_than(rng: Random) -> Example:
    """End year after the start year, within the century (Hanna et al. 2023)."""
    noun, century = rng.choice(w.DURATIONS), rng.choice(w.CENTURIES)
    start = rng.randint(1, 98)
    prompt = rng.choice(w.GREATER_THAN_FRAMES).format(NOUN=noun, CENTURY=century, YEAR=f"{start:02d}")
    later = w.TWO_DIGITS[start + 1 :]
    end = rng.choice(later)
    return Example("greater-than", prompt, later, w.TWO_DIGITS[: start + 1], f"{prompt}{MARK}{end}.")


# --------------------------------------------------------------------------------------- subject-verb agreement


def _verb_rest(rng: Random, verb: str) -> str:
    if verb in ("is", "are", "was", "were"):
        return f" {rng.choice(('very ', 'not ', '', ''))}{rng.choice(w.TRAITS)}."
    if verb in ("has", "have"):
        return f" a {rng.choice(w.OBJECTS)}."
    return f" not {rng.choice(w.TRANSITIVE_VERBS)[1]} the {rng.choice(rng.choice(w.NOUNS))}."


_INNER = ("looking for", "waiting for", "talking to")


def _inner_rest(rng: Random, verb: str) -> str:
    """What follows an auxiliary inside the relative clause: "that the chefs have / liked"."""
    if verb in ("is", "are", "was", "were"):
        return f" {rng.choice(_INNER)}"
    column = 2 if verb in ("has", "have") else 1
    return f" {rng.choice(w.TRANSITIVE_VERBS[:4])[column]}"


def agreement(rng: Random) -> Example:
    """Subject-verb agreement in the four variants of Marks et al. (2024)."""
    variant, frame = rng.choice(w.AGREEMENT_FRAMES)
    first = rng.choice(w.NOUNS if variant in ("simple", "nounpp") else w.PEOPLE)
    second = rng.choice([noun for noun in (w.NOUNS if variant == "nounpp" else w.PEOPLE) if noun != first])
    number, other = rng.randint(0, 1), rng.randint(0, 1)
    pair = rng.choice(w.AGREEMENT_VERBS)
    inner = rng.choice(w.TRANSITIVE_VERBS)
    # A past form says nothing of the number, so that the noun itself must be found.
    inner_form = inner[2] if rng.random() < 0.25 else inner[other]
    fields = {"N1": first[number], "N2": second[other], "P": rng.choice(w.PREPOSITIONS), "V": inner_form}
    prompt = frame.format(**fields)
    if variant != "within_rc":
        rest = _verb_rest(rng, pair[number])
        return _example(f"agreement-{variant.replace('_', '-')}", prompt, pair[number], pair[1 - number], rest)
    main = rng.choice(w.AGREEMENT_VERBS)[number]
    rest = f"{_inner_rest(rng, pair[other])}{MARK} {main}{_verb_rest(rng, main)}"
    return _example("agreement-within-rc", prompt, pair[other], pair[1 - other], rest)


# -------------------------------------------------------------------------------------------- gendered pronoun

_PRONOUN_REST = (
    ("isn't", ("?",)),
    ("and", (" is busy today.", " was happy.", " likes the garden.")),
    ("because", (" was happy.", " is very kind.", " was not busy.")),
    ("but", (" was busy.", " is not here.", " went home.")),
)


def pronoun(rng: Random) -> Example:
    """He or she, by the name alone (Mathwin et al. 2023)."""
    name = rng.choice(w.NAMES)
    frame = w.PRONOUN_FRAMES[0] if rng.random() < 0.4 else rng.choice(w.PRONOUN_FRAMES)
    prompt = frame.format(NAME=name, TRAIT=rng.choice(w.TRAITS), ROLE=rng.choice(w.ROLES))
    right = GENDER[name]
    rest = next(rests for ending, rests in _PRONOUN_REST if prompt.endswith(ending))
    return _example("pronoun", prompt, right, "she" if right == "he" else "he", rng.choice(rest))


# --------------------------------------------------------------------------------------------------- docstring


def _description(rng: Random) -> str:
    return f"{rng.choice(w.DESCRIPTIONS)} {rng.choice(w.DESCRIPTION_NOUNS)}"


def docstring(rng: Random) -> Example:
    """Arguments are documented in the order of the definition (Heimersheim and Janiak 2023).

    The first argument to be documented varies and so does the number of arguments; the task's own frame (six
    arguments, the third and fourth documented, the fifth asked for) is one of them. That one alone could be solved
    by position; the others, named ``docstring-varied``, cannot.
    """
    n = 6 if rng.random() < 0.5 else rng.randint(3, 5)
    args = rng.sample(w.ARGUMENTS, n)
    start = 2 if n == 6 else rng.randint(0, n - 2)
    asked = rng.randint(start + 1, n - 1) if n < 6 else 4
    head = f'def {rng.choice(w.FUNCTION_NAMES)}(self, {", ".join(args)}):\n    """{_description(rng)}\n\n'
    lines = [f"    :param{MARK if i else ''} {arg}: {_description(rng)}\n" for i, arg in enumerate(args[start:])]
    prompt = head + "".join(lines[: asked - start]).replace(MARK, "") + "    :param"
    document = head + "".join(lines) + '    """\n'
    others = tuple(f" {x}" for x in args if x != args[asked])
    name = "docstring" if n == 6 else "docstring-varied"
    return Example(name, prompt, (f" {args[asked]}",), others, document)


# ------------------------------------------------------------------------------------------- induction, counting


def _listed_words() -> tuple[str, ...]:
    """Every word of ``words.py`` and of this module's sentences, once, in the order of the files."""
    found: dict[str, None] = {}

    def collect(value: object) -> None:
        if isinstance(value, str):
            found.update(dict.fromkeys(re.findall(r"\b(?:[A-Za-z]+|\d\d)\b", re.sub(r"{\w+}|'\w+", "", value))))
        elif isinstance(value, tuple):
            for item in value:
                collect(item)

    for name, value in (*vars(w).items(), *globals().items()):
        if name.strip("_").isupper():
            collect(value)
    return tuple(found)


def induction(rng: Random) -> Example:
    """A random sequence of words, repeated: the next word is the one that followed last time (Olsson et al. 2022)."""
    sequence = rng.sample(LISTED_WORDS, k=rng.randint(3, 12) if rng.random() < 0.8 else rng.randint(13, 20))
    cut = rng.randint(1, len(sequence) - 1)
    prompt = " " + " ".join(sequence + sequence[:cut])
    answer = sequence[cut]
    others = tuple(f" {x}" for x in sequence if x != answer)
    again = sequence[1:] + sequence * rng.randint(0, 1)
    text = " " + " ".join(sequence + sequence[:1]) + "".join(f"{MARK} {word}" for word in again)
    return Example("induction", prompt, (f" {answer}",), others, text)


def counting(rng: Random) -> Example:
    """Number words or numerals that go up by one."""
    numbers = w.NUMBER_WORDS if rng.random() < 0.5 else tuple(str(n) for n in range(10, 100))
    given = rng.randint(2, 6)
    start = rng.randint(0, len(numbers) - given - 1)
    separator = rng.choice((" ", ", "))
    prompt = separator.join(numbers[start : start + given]) + separator.rstrip()
    answer = numbers[start + given]
    further = numbers[start + given : start + given + rng.randint(1, 4)]
    wrong = tuple(f" {x}" for x in numbers[max(0, start - 5) : start + given + 5] if x != answer)
    text = separator.join(numbers[start : start + given]) + "".join(
        f"{separator.rstrip()}{MARK} {number}" for number in further
    )
    return Example("counting", prompt, (f" {answer}",), wrong, text)


# --------------------------------------------------------------------------------------------- facts, biographies

_FACT_LEADS = ("", "Everyone knows this. ", "We read it in a book. ", "{NAME} said it at school. ", "{NAME} knows it. ")


def fact(rng: Random) -> Example:
    """A fact of a closed set of relations. All facts are in the training text; only the lead-in is held out."""
    _, frame, pairs = rng.choice(w.FACTS)
    subject, value = rng.choice(pairs)
    prompt = rng.choice(_FACT_LEADS).format(NAME=rng.choice(w.NAMES)) + frame.format(X=subject, Y=value)
    column = 1 if "{X}" in frame else 0
    answer = (subject, value)[column]
    wrong = tuple(dict.fromkeys(pair[column] for pair in pairs if pair[column] != answer))
    return _example("fact", prompt, answer, wrong, ".")


_BIOGRAPHY_LEADS = ("{NAME} is {TRAIT}.", "{NAME} is a {TRAIT} person.")
_BIOGRAPHY_WORK = "{ONE} and {TWO}. {HE} works as a"
_BIOGRAPHY_SUBJECTS = ("He", "She")


def biography(rng: Random) -> Example:
    """Profession follows from the work that is told, gender from name and pronouns; the two are independent."""
    name = rng.choice(w.NAMES)
    subject = _BIOGRAPHY_SUBJECTS[w.PRONOUNS.index(GENDER[name])]
    which = rng.randrange(len(w.PROFESSIONS))
    one, two = rng.sample(w.PROFESSION_WORK[which], 2)
    lead = rng.choice(_BIOGRAPHY_LEADS).format(NAME=name, TRAIT=rng.choice(w.TRAITS))
    work = _BIOGRAPHY_WORK.format(ONE=one, TWO=two, HE=subject)
    wrong = tuple(f" {x}" for i, x in enumerate(w.PROFESSIONS) if i != which)
    answer = f" {w.PROFESSIONS[which]}"
    text = f"{lead}{MARK} {subject} {work}{MARK}{answer}."
    return Example("biography", f"{lead} {subject} {work}", (answer,), wrong, text)


_FILLERS = (
    ("{NAME} has a {TRAIT}", w.ROLES),
    ("Yesterday {NAME} went to the {PLACE} with the {OBJECT} and the", _THINGS),
    ("{NAME} put the {OBJECT} on the {THING} near the", _THINGS),
)


def filler(rng: Random) -> Example:
    """Plain sentences that ask for nothing."""
    frame, lasts = rng.choice(_FILLERS)
    last, thing = rng.choice(lasts), rng.choice(_THINGS)
    prompt = frame.format(
        NAME=rng.choice(w.NAMES), TRAIT=rng.choice(w.TRAITS), PLACE=rng.choice(w.PLACES), OBJECT=rng.choice(w.OBJECTS),
        THING=thing,
    )  # fmt: skip
    return Example("filler", prompt, (f" {last}",), (), f"{prompt} {last}.")


LISTED_WORDS = _listed_words()


# --------------------------------------------------------------------------------------------------- documents

Generator = Callable[[Random], Example]
#: Share of each generator among the parts of training documents. Induction has the largest: matching any word of the
#: vocabulary takes the most examples to learn, and the docstring task builds on it.
MIX: tuple[tuple[Generator, float], ...] = (
    (ioi, 0.20),
    (greater_than, 0.08),
    (agreement, 0.12),
    (pronoun, 0.07),
    (docstring, 0.11),
    (induction, 0.28),
    (counting, 0.05),
    (fact, 0.05),
    (biography, 0.02),
    (filler, 0.02),
)
#: Behaviours that are documents of their own: never joined to sentences.
_ALONE = ("docstring", "docstring-varied", "induction", "counting")


def draw(generator: Generator, rng: Random, *, held_out: bool) -> Example:
    """One example of the generator that is (or is not) in the held-out part."""
    while True:
        example = generator(rng)
        if reserved(example.behaviour, example.prompt) == held_out:
            return example


def document_parts(seed: int | str) -> Iterator[list[Example]]:
    """Training documents without end, as the examples that each is made of. The same seed gives the same ones on every
    machine.

    Most documents are one sentence, as the tasks' prompts are; every fifth joins two to four.
    """
    rng = Random(f"crosspatch corpus {seed}")
    generators, shares = zip(*MIX, strict=True)
    while True:
        example = draw(rng.choices(generators, shares)[0], rng, held_out=False)
        parts = [example]
        if example.behaviour not in _ALONE and rng.random() < 0.2:
            for generator in rng.choices(generators, shares, k=rng.randint(1, 3)):
                more = draw(generator, rng, held_out=False)
                if more.behaviour not in _ALONE:
                    parts.append(more)
        yield parts


def documents(seed: int | str) -> Iterator[str]:
    """The text (with ``MARK``s) of training documents without end (see `document_parts`)."""
    return (" ".join(part.text for part in parts) for parts in document_parts(seed))


def digest(seed: int | str, n: int = 2000) -> str:
    """SHA-256 of the first ``n`` training documents: tells whether weights were trained on this generator's text."""
    return hashlib.sha256("\n\n".join(islice(documents(seed), n)).encode()).hexdigest()


#: What is measured: name of the behaviour (as of the built-in task, where there is one) -> generator of its examples.
BEHAVIOURS: dict[str, Generator] = {
    "ioi": ioi,
    "greater-than": greater_than,
    "agreement-simple": agreement,
    "agreement-nounpp": agreement,
    "agreement-within-rc": agreement,
    "agreement-rc": agreement,
    "pronoun": pronoun,
    "docstring": docstring,
    "induction": induction,
    "docstring-varied": docstring,
    "counting": counting,
    "fact": fact,
    "biography": biography,
}


def held_out(behaviour: str, n: int, seed: int = 0) -> list[Example]:
    """Up to ``n`` different evaluation examples, none of whose content combinations is in any training document.

    Fewer than ``n`` where the held-out part is small (``agreement-simple`` holds a few dozen).
    """
    rng = Random(f"crosspatch held-out {behaviour} {seed}")
    found: dict[str, Example] = {}
    for _ in range(20 * n):
        if len(found) == n:
            break
        example = draw(BEHAVIOURS[behaviour], rng, held_out=True)
        if example.behaviour == behaviour and (behaviour != "ioi" or _repeats(example)):
            found.setdefault(example.prompt + example.answers[0], example)
    return list(found.values())


def _repeats(example: Example) -> bool:
    """Whether the subject of an indirect-object prompt was mentioned before."""
    return example.prompt.count(example.wrong[0]) + example.prompt.startswith(example.wrong[0].strip()) == 2
