"""Public sets of facts: an entity is exchanged for another of the same kind, and the answer changes with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from crosspatch.errors import TaskError
from crosspatch.tasks.generate.base import Vocabulary
from crosspatch.tasks.pairs import Pair, Task
from crosspatch.tasks.public.source import Source, json_lines, left_out, read_json

FACTS_PER_PAIR = 50  # facts that are looked at for each pair that is wanted


@dataclass(frozen=True)
class Fact:
    """`before` + subject + `after` is a prompt whose answer is `answer` (with its leading space, where it has one)."""

    before: str
    subject: str
    after: str
    answer: str

    @property
    def prompt(self) -> str:
        return self.before + self.subject + self.after


def sources(folder: Path) -> Iterator[Source]:
    corruptions = ("subject",)
    meng = "github.com/kmeng01/rome, MIT licence; Meng et al. 2022 (arXiv 2202.05262); partners drawn here"
    yield Source("known-facts", folder / "known-facts" / "known_1000.jsonl", meng, _known, corruptions)
    hernandez = (
        "github.com/evandez/relations, MIT licence; Hernandez et al. 2023 (arXiv 2308.09124); partners drawn here"
    )
    place = folder / "relations"
    for path in sorted(place.glob("*/*.json")) if place.is_dir() else ():
        yield Source(f"relations/{path.stem}", path, hernandez, _relation, corruptions)
    huang = "github.com/explanare/ravel, MIT licence; Huang et al. 2024 (arXiv 2402.17700); partners drawn here"
    place = folder / "ravel"
    for path in sorted(place.glob("ravel_*_attribute_to_prompts.json")) if place.is_dir() else ():
        kind = path.name.removeprefix("ravel_").removesuffix("_attribute_to_prompts.json")
        for attribute in _ravel_attributes(path):
            name = f"ravel/{kind}/{attribute.lower().replace(' ', '_')}"
            yield Source(name, path, huang, partial(_ravel, attribute=attribute), corruptions)


def _known(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None) -> Task:
    facts = []
    for row in json_lines(path):
        before, found, after = row["prompt"].partition(row["subject"])
        if found:
            facts.append(Fact(before, row["subject"], after, f" {row['attribute']}"))
    return _task(facts, "known-facts", "completes a fact", seed, words, path)


def _relation(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None) -> Task:
    data = read_json(path)
    facts = []
    for template in data["prompt_templates"]:
        before, _, after = template.partition("{}")
        facts += [Fact(before, s["subject"], after, f" {s['object']}") for s in data["samples"]]
    return _task(facts, data["name"], f"completes the relation '{data['name']}'", seed, words, path)


def _ravel_attributes(path: Path) -> list[str]:
    prompts = set(read_json(path))
    entities = read_json(path.with_name(path.name.replace("attribute_to_prompts", "entity_attributes")))
    return sorted(prompts & {key for values in entities.values() for key in values})


def _ravel(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None, attribute: str) -> Task:
    entities = read_json(path.with_name(path.name.replace("attribute_to_prompts", "entity_attributes")))
    known = [(entity, values[attribute]) for entity, values in entities.items() if values.get(attribute)]
    # An entity named twice has no single span; a trailing space leaves no token to predict.
    templates = [t for t in read_json(path)[attribute] if t.count("%s") == 1 and not t[-1].isspace()]
    chosen: Iterable[int] = range(len(templates) * len(known))
    if n is not None and len(templates) * len(known) > FACTS_PER_PAIR * n:
        chosen = Random(f"{seed}/{attribute}").sample(range(len(templates) * len(known)), FACTS_PER_PAIR * n)
    facts = []
    for i in chosen:
        template, (entity, value) = templates[i % len(templates)], known[i // len(templates)]
        before, _, after = template.partition("%s")
        space = "" if template[-1] in "\"'/[" else " "  # the answer continues an open quotation
        facts.append(Fact(before, entity, after, space + value))
    if not facts:
        raise TaskError(
            f"no prompt of {attribute!r} names its entity once", where=str(path), fix="use another attribute"
        )
    return _task(facts, attribute, f"recalls the attribute '{attribute}'", seed, words, path)


def _task(facts: Iterable[Fact], name: str, description: str, seed: int, words: Vocabulary, path: Path) -> Task:
    """Each fact with a partner that has the same sentence and another answer; with a tokenizer, one of equal length.

    Facts are coupled where possible (each is the other's partner), so that few pairs share a prompt and splits stay
    small.
    """
    groups: dict[tuple[str, str, int], list[Fact]] = defaultdict(list)
    facts = list(facts)
    drawn = len(facts)
    if words.encoder is not None:
        words.encoder.prime(f.prompt for f in facts)
        facts = [f for f in facts if len(words.encoder.continuation(f.prompt, f.answer).ids) == 1]
    for fact in facts:
        length = len(words.encoder.core(fact.prompt)) if words.encoder is not None else 0
        groups[fact.before, fact.after, length].append(fact)
    pairs = []
    for (before, after, _), group in groups.items():
        pairs += _couple(group, Random(f"{seed}/{before}/{after}"))
    if not pairs:
        raise TaskError(
            "no two facts share a sentence and differ in the answer", where=str(path), fix="use another set"
        )
    varies, holds = "the subject of the fact, and with it the answer", "the sentence around the subject"
    why = "no partner" if words.encoder is None else "no partner of equal length, or an answer of several tokens"
    return Task(name, tuple(pairs), left_out(drawn - len(pairs), why), varies, holds, description)


def _couple(facts: list[Fact], rng: Random) -> list[Pair]:
    """Couples of facts with different answers, both ways round; those left over get a partner that has one already."""
    shuffled = rng.sample(facts, len(facts))
    counts = Counter(f.answer for f in shuffled)
    # Sorted by answer, a fact and the one half the list further on share their answer only if it has more than half
    # of all.
    ordered = sorted(shuffled, key=lambda f: (-counts[f.answer], f.answer))
    half = len(ordered) // 2
    pairs, left = [], ordered[2 * half :]
    for a, b in zip(ordered[:half], ordered[half : 2 * half], strict=True):
        if a.answer == b.answer:
            left += [a, b]
        else:
            pairs += [_pair(a, b), _pair(b, a)]
    for fact in left:
        others = [f for f in ordered if f.answer != fact.answer]
        if others:
            pairs.append(_pair(fact, rng.choice(others)))
    return pairs


def _pair(fact: Fact, other: Fact) -> Pair:
    spans, corrupt_spans = ({"subject": (len(f.before), len(f.before) + len(f.subject))} for f in (fact, other))
    template = fact.before + "{}" + fact.after
    return Pair(fact.prompt, other.prompt, (fact.answer,), (other.answer,), spans, corrupt_spans, template, "subject")
