"""Public sets of clean and corrupt prefixes: greater-than, subject-verb agreement, story tasks, BLiMP."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from crosspatch.errors import TaskError
from crosspatch.tasks.changes import mark_changes
from crosspatch.tasks.generate import agreement, greater_than
from crosspatch.tasks.generate.base import Vocabulary
from crosspatch.tasks.pairs import Pair, Task
from crosspatch.tasks.public.source import Source, json_lines, left_out
from crosspatch.tasks.words import TWO_DIGITS

#: Paradigms of BLiMP with two prefixes and one word that follows either.
TWO_PREFIX = (
    "animate_subject_trans", "coordinate_structure_constraint_complex_left_branch", "determiner_noun_agreement_2",
    "determiner_noun_agreement_irregular_2", "determiner_noun_agreement_with_adj_2",
    "determiner_noun_agreement_with_adj_irregular_2", "existential_there_object_raising", "expletive_it_object_raising",
    "irregular_past_participle_adjectives", "irregular_plural_subject_verb_agreement_2",
    "left_branch_island_echo_question", "matrix_question_npi_licensor_present", "only_npi_licensor_present",
    "only_npi_scope", "principle_A_domain_3", "regular_plural_subject_verb_agreement_2",
    "sentential_negation_npi_licensor_present", "sentential_negation_npi_scope", "superlative_quantifiers_2",
    "transitive",
)  # fmt: skip
_STORIES = ("pronoun_noun", "pronoun_name", "number_simple", "number_pp", "name_copy", "ioi_story")


def sources(folder: Path) -> Iterator[Source]:
    hanna = "github.com/hannamw/EAP-IG, MIT licence; Hanna et al. 2023 (arXiv 2305.00586)"
    yield Source("greater-than", folder / "greater-than" / "greater_than.csv", hanna, _greater_than, ("01",))
    marks = "github.com/saprmarks/feature-circuits, MIT licence; Marks et al. 2024 (arXiv 2403.19647)"
    own = "generated in the format of Marks et al. 2024 from other word lists, free to use; not the paper's set"
    place = folder / "subject-verb-agreement"
    for path in sorted(place.glob("*_*.jsonl*")) if place.is_dir() else ():
        kind = path.name.split(".")[0]
        provenance = own if kind.startswith("rc_generated") else marks
        yield Source(f"agreement/{kind}", path, provenance, _agreement, ("subject",))
    for kind in _STORIES:
        provenance = "generated in the vocabulary of children's stories, free to use"
        yield Source(f"story/{kind}", folder / "story-tasks" / f"{kind}.jsonl", provenance, _story, ("symmetric",))
    warstadt = "github.com/alexwarstadt/blimp, CC-BY 4.0; Warstadt et al. 2020 (arXiv 1912.00582)"
    for uid in TWO_PREFIX:
        read = partial(_blimp, uid=uid)
        yield Source(f"blimp/{uid}", folder / "blimp" / "blimp.jsonl.xz", warstadt, read, ("bad-prefix",))


def _greater_than(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None) -> Task:
    single = greater_than.digits_per_token(words) == 1
    pairs, rows = [], 0
    with path.open(encoding="utf-8", newline="") as f:
        for number, row in enumerate(csv.DictReader(f), 2):
            rows += 1
            clean, corrupt, year = row["clean"], row["corrupted"], int(row["label"])
            match = re.search(r"^The (?P<noun>\w+) .*?(?P<XX>\d\d)(?P<YY>\d\d)\b", clean)
            if match is None or match["YY"] != f"{year:02d}":
                raise TaskError(
                    f"no start year ends in {year:02d}", where=f"{path}, line {number}", fix="use the original file"
                )
            answers, wrong = TWO_DIGITS[year + 1 :], TWO_DIGITS[: year + 1]
            if single:  # one token a digit: the tens digit, see generate/greater_than.py
                answers = tuple(str(d) for d in range(year // 10 + 1, 10))
                wrong = tuple(str(d) for d in range(year // 10))
            if answers and wrong:
                spans = {name: match.span(name) for name in ("noun", "XX", "YY")}
                pairs.append(Pair(clean, corrupt, answers, wrong, spans, spans, _year_template(clean), "01"))
    kind = greater_than.CORRUPTIONS["01"]
    note = left_out(rows - len(pairs), "every end year would be right, or none")
    return Task("greater-than", tuple(pairs), note, kind.varies, kind.holds, greater_than.GREATER_THAN.description)


def _year_template(text: str) -> str:
    return re.sub(r"\d\d\b", "{CENTURY}", re.sub(r"\d{4}", "{YEAR}", re.sub(r"^The \w+", "The {NOUN}", text)))


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in enumerate(json_lines(path), 1):
        where = f"{path}, line {number}"
        for field in ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"):
            if not isinstance(row.get(field), str):
                raise TaskError(f"field {field!r} is missing or no text", where=where, fix="use the original file")
        yield where, row


def _grouped(path: Path) -> list[Pair]:
    """Rows with the same two prefixes become one pair with sets of answers."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for _, row in _rows(path):
        groups.setdefault((row["clean_prefix"], row["patch_prefix"]), []).append(row)
    pairs = []
    for (clean, corrupt), rows in groups.items():
        answers = tuple(dict.fromkeys(r["clean_answer"] for r in rows))
        wrong = tuple(dict.fromkeys(r["patch_answer"] for r in rows))
        meta = {"case": rows[0].get("case", "")}
        pairs.append(Pair(clean, corrupt, answers, wrong, template=str(rows[0].get("template", "")), meta=meta))
    return pairs


def _agreement(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None) -> Task:
    pairs = []
    for pair in _grouped(path):
        nouns, corrupt_nouns = (
            [m.span(1) for m in re.finditer(r"\b[Tt]he (\w+)", t)] for t in (pair.clean, pair.corrupt)
        )
        changed = [i for i, (a, b) in enumerate(zip(nouns, corrupt_nouns, strict=True))
                   if pair.clean[slice(*a)] != pair.corrupt[slice(*b)]]  # fmt: skip
        if len(changed) != 1:
            raise TaskError(f"{pair.clean!r} and {pair.corrupt!r} differ in {len(changed)} nouns", where=str(path),
                            fix="use the original file")  # fmt: skip
        names = ["subject" if i in changed else "attractor" for i in range(len(nouns))]
        frame = re.sub(r"\b([Tt]he) \w+", r"\1 {N}", pair.clean)
        spans, corrupt_spans = dict(zip(names, nouns, strict=True)), dict(zip(names, corrupt_nouns, strict=True))
        pairs.append(
            dataclasses.replace(pair, spans=spans, corrupt_spans=corrupt_spans, template=frame, corruption=corruption)
        )
    kind = agreement.SUBJECT
    return Task("agreement", tuple(pairs), "", kind.varies, kind.holds, "makes the verb agree with its subject")


def _story(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None) -> Task:
    pairs = tuple(dataclasses.replace(p, corruption=corruption) for p in _grouped(path))
    task = Task(path.stem, pairs, "", "the decisive word", "the rest of the story", "continues a children's story")
    return mark_changes(task)


def _blimp(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None, uid: str) -> Task:
    """The same word after a prefix that allows it and one that does not. There is no wrong answer: use log_prob."""
    pairs, rows = [], 0
    for row in json_lines(path):
        if row["UID"] == uid:
            rows += 1
            good, bad, word = (row[f"two_prefix_{key}"] for key in ("prefix_good", "prefix_bad", "word"))
            answer = word if word.startswith(" ") else f" {word}"
            if good != bad:
                pairs.append(
                    Pair(good, bad, (answer,), template=uid, corruption=corruption, meta={"pairID": row["pairID"]})
                )
    varies = "the prefix, which allows the next word in the clean prompt only"
    note = left_out(rows - len(pairs), "the same prefix twice")
    return mark_changes(Task(uid, tuple(pairs), note, varies, "the next word", f"grammar: {uid.replace('_', ' ')}"))
