"""Texts with two labels: the one that a classifier is for, and one that goes with it where labels are scarce.

In the *ambiguous* set the two coincide, so that it does not say which of them is meant; in a *balanced* set all four
combinations are equally frequent (Marks et al. 2025, arXiv 2403.19647, section 4; De-Arteaga et al. 2019 for the
biographies). The classifier is trained on the first and judged on texts of the second kind that nothing was fitted to.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int

from crosspatch.embedded.corpus import GENDER, biography
from crosspatch.errors import TaskError
from crosspatch.tasks import words

Cue = Literal["both", "pronouns", "names"]
"""What tells the gender in the generator's biographies."""
PATIENCE = 20_000
"""Draws without a new text after which there are no more."""
GROUPS = ((0, 0), (0, 1), (1, 0), (1, 1))
GENDERED = (
    "he", "him", "his", "himself", "she", "her", "hers", "herself", "mr", "mrs", "ms", "miss", "sir", "madam",
    "man", "men", "woman", "women", "boy", "boys", "girl", "girls", "male", "female", "husband", "wife", "son",
    "daughter", "father", "mother", "brother", "sister", "king", "queen", "lady", "ladies", "gentleman", "gentlemen",
)  # fmt: skip
"""English words that tell gender."""


@dataclass(frozen=True)
class Labelled:
    """Texts with two attributes of two values each.

    Attributes:
        texts: the texts.
        labels: what the classifier is for, 0 or 1.
        spurious: what it should not depend on, 0 or 1. In ambiguous sets it equals the label.
        label_names, spurious_names: of the two values.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    spurious: tuple[int, ...]
    label_names: tuple[str, str]
    spurious_names: tuple[str, str]

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.labels) == len(self.spurious):
            raise TaskError(f"{len(self.texts)} texts, {len(self.labels)} labels, {len(self.spurious)} of the other")
        if not {*self.labels, *self.spurious} <= {0, 1}:
            raise TaskError("labels are 0 and 1", where="Labelled")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def groups(self) -> Int[np.ndarray, " text"]:
        """Number of the group in `GROUPS` that each text belongs to."""
        return 2 * np.asarray(self.labels) + np.asarray(self.spurious)

    def group_name(self, group: int) -> str:
        """A group in words."""
        label, other = GROUPS[group]
        return f"{self.spurious_names[other]} {self.label_names[label]}"

    def counts(self) -> dict[str, int]:
        """Texts of each group."""
        found = Counter(self.groups.tolist())
        return {self.group_name(g): found[g] for g in range(4)}

    def select(self, index: Sequence[int]) -> Labelled:
        """These texts only, in this order."""
        lists = {name: tuple(getattr(self, name)[i] for i in index) for name in ("texts", "labels", "spurious")}
        return replace(self, **lists)

    def without(self, cues: Sequence[str]) -> Labelled:
        """The same texts with some words taken out, whatever their case. A text is never left empty."""
        pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(cues, key=len, reverse=True)))})\b", re.IGNORECASE)
        taken = [re.sub(r" {2,}", " ", pattern.sub("", text)).strip() for text in self.texts]
        return replace(self, texts=tuple(new or old for new, old in zip(taken, self.texts, strict=True)))


@dataclass(frozen=True)
class Splits:
    """What SHIFT and its baselines are given.

    Attributes:
        ambiguous: label and other attribute coincide: what the classifier is trained on.
        balanced: all four groups, for what is allowed to know both (skylines, oracle, the probe-based judge).
        test: all four groups; nothing is fitted or chosen on it.
        origin: where the texts come from, and what keeps `test` apart.
        cues: words that tell the other attribute, for the token-list judge and the control without them.
        concepts: words of the labels, for the concept bottleneck.
    """

    ambiguous: Labelled
    balanced: Labelled
    test: Labelled
    origin: str
    cues: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("balanced", "test"):
            if missing := [group for group, n in getattr(self, name).counts().items() if not n]:
                raise TaskError(
                    f"no text of the group {missing[0]!r}",
                    where=f"{name} set",
                    fix="all four combinations of the two attributes are needed there",
                )
        both = [group for group, n in self.ambiguous.counts().items() if n]
        if both != [self.ambiguous.group_name(0), self.ambiguous.group_name(3)]:
            raise TaskError(
                f"has the groups {', '.join(both) or '(none)'}",
                where="ambiguous set",
                fix="it takes the two in which label and other attribute coincide, and both of them",
            )
        if shared := set(self.test.texts) & {*self.ambiguous.texts, *self.balanced.texts}:
            raise TaskError(f"{len(shared)} texts are in the training sets too", where="test set", fix="leave them out")


def biographies(
    professions: tuple[str, str] = ("professor", "nurse"),
    n: int = 100,
    *,
    activities: Literal[1, 2] = 1,
    cue: Cue = "both",
    seed: int = 0,
) -> Splits:
    """Biographies of the embedded generator: gender follows from name and pronouns, the profession from the work told.

    The ambiguous set is of male persons of the first profession and female ones of the second. Names, traits and
    activities (pairs of them, where two are told) of the test set occur in no training text. With one activity, which
    in a test text is one that the classifier has not met, a profession is harder to see than a gender.

    Args:
        professions: two of `tasks.words.PROFESSIONS`.
        n: texts of each group in each set.
        activities: how many are told, 1 or 2.
        cue: `both`; `pronouns`: the name becomes "The student" or the like; `names`: pronouns become the name.
        seed: of the texts and of what is held out.

    Raises:
        TaskError: an unknown profession or cue, twice the same, or more texts than there are.
    """
    unknown = [name for name in professions if name not in words.PROFESSIONS]
    if unknown or len(set(professions)) != 2:
        raise TaskError(
            f"professions {', '.join(professions)}",
            where="biographies",
            fix=f"use two different ones of {', '.join(words.PROFESSIONS)}",
        )
    if cue not in get_args(Cue) or n < 1 or activities not in (1, 2):
        raise TaskError(
            f"cue {cue!r}, {n} texts, {activities} activities",
            where="biographies",
            fix=f"cues are {', '.join(get_args(Cue))}; 1 or 2 activities",
        )
    rng = Random(f"crosspatch shift {seed}")
    held = _held_out(rng, professions, activities)
    found: dict[bool, dict[int, dict[str, None]]] = {side: {g: {} for g in range(4)} for side in (False, True)}
    idle = 0
    while any(len(texts) < n for side in found.values() for texts in side.values()):
        if (idle := idle + 1) > PATIENCE:
            raise TaskError(
                f"there are not {n} different texts of each group", where="biographies", fix="ask for fewer"
            )
        example = biography(rng)
        profession = example.answers[0].strip()
        if profession not in professions:
            continue
        name, trait, told = _content_of(example.prompt, profession, activities)
        sides = {part in held for part in (name, trait, frozenset(told))}
        if len(sides) != 1:
            continue  # a mixture of what is held out and what is not
        texts = found[sides.pop()][2 * professions.index(profession) + (GENDER[name] == "she")]
        if len(texts) < n:
            lead, _, rest = example.prompt.partition(".")
            end = rest.partition(".")[2]
            subject = "She" if GENDER[name] == "she" else "He"
            text = _with_cue(f"{lead}. {subject} {' and '.join(told)}.{end}", name, cue, rng)
            idle = idle if text in texts else 0
            texts[text] = None
    train, test = (
        _labelled([(text, *GROUPS[g]) for g in range(4) for text in texts[g]], professions, ("male", "female"))
        for texts in (found[False], found[True])
    )
    phrases = [phrase for name in professions for phrase in words.PROFESSION_WORK[words.PROFESSIONS.index(name)]]
    changed = {"both": "", "pronouns": ", names replaced by roles", "names": ", pronouns replaced by names"}[cue]
    return Splits(
        train.select(np.flatnonzero(np.isin(train.groups, (0, 3))).tolist()),
        train,
        test,
        f"biographies of the embedded generator, {activities} of each person's activities told{changed}; names, traits "
        f"and {'activities' if activities == 1 else 'pairs of activities'} of the test set occur in no training text; "
        f"seed {seed}",
        cues=("he", "she", *words.NAMES),
        concepts=(*professions, *dict.fromkeys(x for phrase in phrases for x in re.findall(r"[a-z]{4,}", phrase))),
    )


def _held_out(rng: Random, professions: tuple[str, str], activities: int) -> set[Any]:
    """What belongs to the test set: half of the names and traits, one activity or pair of each profession."""
    held: set[Any] = set()
    for many in (words.MALE_NAMES, words.FEMALE_NAMES, words.TRAITS):
        held.update(rng.sample(many, len(many) // 2))
    for name in professions:
        held.add(frozenset(rng.sample(words.PROFESSION_WORK[words.PROFESSIONS.index(name)], activities)))
    return held


def _content_of(prompt: str, profession: str, activities: int) -> tuple[str, str, list[str]]:
    """Name, trait, and the activities told first."""
    lead = re.findall(r"\w+", prompt.partition(".")[0])
    work = words.PROFESSION_WORK[words.PROFESSIONS.index(profession)]
    told = sorted((phrase for phrase in work if phrase in prompt), key=prompt.index)
    return lead[0], next(x for x in lead if x in words.TRAITS), told[:activities]


def _with_cue(text: str, name: str, cue: Cue, rng: Random) -> str:
    if cue == "pronouns":
        return f"The {rng.choice(words.ROLES)}{text.removeprefix(name)}"
    return re.sub(r"\b(He|She)\b", name, text) if cue == "names" else text


def _labelled(
    rows: Sequence[tuple[str, int, int]], label_names: tuple[str, str], spurious_names: tuple[str, str]
) -> Labelled:
    texts, labels, spurious = zip(*rows, strict=True) if rows else ((), (), ())
    return Labelled(tuple(texts), tuple(labels), tuple(spurious), label_names, spurious_names)


def read_texts(path: str | Path) -> list[tuple[str, str, str]]:
    """(text, label, spurious) of every line of a JSONL file; values may be words or numbers.

    Raises:
        TaskError: not there, a line that is not such an object, or an empty text.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot be read ({error})", where=str(path), fix="give a JSONL file") from error
    found = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, label, other = (row[name] for name in ("text", "label", "spurious"))
            if not isinstance(text, str) or not text.strip() or any(isinstance(x, dict | list) for x in (label, other)):
                raise ValueError("no text")
        except (ValueError, KeyError, TypeError) as error:
            raise TaskError(
                f"is no object with text, label and spurious ({error})",
                where=f"{path}, line {i}",
                fix='write one {"text": "...", "label": "professor", "spurious": "male"} a line',
            ) from error
        found.append((text, str(label), str(other)))
    return found


def splits_of(
    rows: Sequence[tuple[str, str, str]],
    test: Sequence[tuple[str, str, str]] | None = None,
    *,
    ambiguous: Sequence[tuple[str, str]] | None = None,
    n: int | None = None,
    held_out: float = 0.4,
    seed: int = 0,
    origin: str = "",
    cues: Sequence[str] = (),
    concepts: Sequence[str] = (),
) -> Splits:
    """Ambiguous, balanced and test set from labelled texts.

    Args:
        rows: (text, label, other attribute), as `read_texts` gives them. Repeated texts count once.
        test: texts to judge on; None: a share of every group of `rows`.
        ambiguous: the two (label, other) that coincide in the ambiguous set; None: the pairing that is more frequent.
        n: at most so many texts of each group; None: as many as the smallest group has.
        held_out: share of the texts for the test set.
        seed: of what is drawn.
        origin: where they come from.
        cues, concepts: see `Splits`.

    Raises:
        TaskError: an attribute that has not two values, a group without texts, or a pairing that does not fit.
    """
    every = [*rows, *(test or ())]
    names = [sorted({row[i] for row in every}) for i in (1, 2)]
    for kind, values in zip(("label", "spurious"), names, strict=True):
        if len(values) != 2:
            raise TaskError(
                f"{kind} has {len(values)} values ({', '.join(values[:5])})", where="texts", fix="two are needed"
            )
    labels, others = names
    if ambiguous is None:
        count = Counter((row[1], row[2]) for row in rows)
        straight = count[labels[0], others[0]] + count[labels[1], others[1]]
        crossed = count[labels[0], others[1]] + count[labels[1], others[0]]
        ambiguous = list(zip(labels, others if straight >= crossed else others[::-1], strict=True))
    if [sorted(x) for x in zip(*ambiguous, strict=True)] != names:
        raise TaskError(
            f"{', '.join('='.join(pair) for pair in ambiguous)} does not pair the values",
            where="ambiguous",
            fix=f"pair each of {', '.join(labels)} with one of {', '.join(others)}",
        )
    (first, one), (second, two) = ambiguous
    number = {first: 0, second: 1}, {one: 0, two: 1}

    def labelled(given: Sequence[tuple[str, str, str]], avoid: set[str]) -> Labelled:
        unique = {text: (number[0][a], number[1][b]) for text, a, b in given if text not in avoid}
        return _labelled([(text, *both) for text, both in unique.items()], (first, second), (one, two))

    if test is None:
        whole = labelled(rows, set())
        judged = whole.select(_balanced(whole, None, held_out, seed, "texts"))
        taken = set(judged.texts)
    else:
        judged = labelled(test, set())
        taken = set(judged.texts)
    train = labelled(rows, taken)
    judged = judged.select(_balanced(judged, n, 1.0, seed, "test texts"))
    balanced = train.select(_balanced(train, n, 1.0, seed, "training texts"))
    coincide = [i for g in (0, 3) for i in np.flatnonzero(train.groups == g).tolist()]
    ambiguous_set = train.select(coincide)
    size = min(n or len(train), *(int((ambiguous_set.groups == g).sum()) for g in (0, 3)))
    return Splits(
        ambiguous_set.select(_draw(ambiguous_set, (0, 3), size, seed)),
        balanced,
        judged,
        origin or "labelled texts",
        tuple(cues),
        tuple(concepts),
    )


def _balanced(data: Labelled, n: int | None, share: float, seed: int, where: str) -> list[int]:
    """Numbers of equally many texts of every group."""
    counts = data.counts()
    smallest = min(counts.values())
    size = min(n or smallest, int(smallest * share))
    if size < 1:
        lacking = min(counts, key=counts.__getitem__)
        raise TaskError(
            f"{counts[lacking]} texts of the group {lacking!r}", where=where, fix="give texts of all four groups"
        )
    return _draw(data, range(4), size, seed)


def _draw(data: Labelled, groups: Sequence[int], size: int, seed: int) -> list[int]:
    """`size` texts of each group. Which ones depends on their content and the seed, not on their order."""
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for group in groups:
        members = sorted(np.flatnonzero(data.groups == group).tolist(), key=lambda i: data.texts[i])
        chosen += rng.permutation(members)[:size].tolist()
    return chosen
