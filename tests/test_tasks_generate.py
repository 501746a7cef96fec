"""Every generator with every corruption: aligned, single-token answers, and the corruption does what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from task_tokenizers import bpe, embedded, stories

from crosspatch.errors import TaskError
from crosspatch.tasks import Task, align, corruptions, list_tasks, make_task, static_gates
from crosspatch.tasks.words import NAMES

CASES = [(info.name, corruption) for info in list_tasks() for corruption in info.corruptions]


@pytest.mark.parametrize(("name", "corruption"), CASES)
@pytest.mark.parametrize("tokenizer", [embedded, bpe])
def test_aligned_token_by_token_with_single_token_answers(tokenizer: Any, name: str, corruption: str) -> None:
    tok = tokenizer()
    task = make_task(name, n=24, seed=5, corruption=corruption, tokenizer=tok)
    tokenized = task.tokenize(tok)
    assert len(task) == 24
    assert {p.kind for p in align(tokenized).pairs} == {"tokens"}
    assert [str(f) for f in static_gates(tokenized) if f.level != "info"] == []
    assert tokenized.spans == tokenized.corrupt_spans
    assert all(p.corruption == corruption and p.template for p in task.pairs)


# Where a whole half of the words is new, too many change to be spans of their own: induction needs the tokenizer there.
BY_ROLES = [case for case in CASES if case not in {("induction", "first-half"), ("induction", "second-half")}]


@pytest.mark.parametrize(("name", "corruption"), BY_ROLES)
def test_without_a_tokenizer_pairs_align_by_their_roles(name: str, corruption: str) -> None:
    tokenized = make_task(name, n=24, seed=5, corruption=corruption).tokenize(stories())
    assert align(tokenized).failing == ()


def test_induction_words_come_from_the_tokenizers_vocabulary() -> None:
    tok = stories()
    for corruption in corruptions("induction"):
        tokenized = make_task("induction", n=24, corruption=corruption, tokenizer=tok).tokenize(tok)
        assert {p.kind for p in align(tokenized).pairs} == {"tokens"}
        assert [f for f in static_gates(tokenized) if f.level != "info"] == []


@pytest.mark.parametrize("name", [i.name for i in list_tasks() if i.name != "induction"])
def test_a_tokenizer_without_the_words_is_told(name: str) -> None:
    with pytest.raises(TaskError) as error:
        make_task(name, tokenizer=stories())
    assert "single tokens" in str(error.value)
    assert "leave the tokenizer out" in str(error.value)


@pytest.mark.parametrize("name", [i.name for i in list_tasks()])
def test_one_seed_gives_the_same_clean_prompts_for_every_corruption(name: str) -> None:
    tasks = [make_task(name, n=16, seed=2, corruption=c) for c in corruptions(name)]
    assert len({tuple(p.clean for p in t.pairs) for t in tasks}) == 1
    assert len({tuple(p.answers for p in t.pairs) for t in tasks}) == 1
    assert make_task(name, n=16, seed=2).hash == tasks[0].hash
    assert make_task(name, n=16, seed=3).hash != tasks[0].hash


@pytest.mark.parametrize(("name", "corruption"), CASES)
def test_statements_and_distinct_pairs(name: str, corruption: str) -> None:
    task = make_task(name, n=40, corruption=corruption)
    assert task.varies
    assert task.holds
    assert "seed 0" in task.provenance
    assert len({(p.clean, p.corrupt) for p in task.pairs}) == 40
    assert all(p.clean != p.corrupt for p in task.pairs)
    assert Task.from_dict(task.to_dict()) == task


def roles(pair: Any, side: str) -> dict[str, str]:
    text = getattr(pair, side)
    return {name: text[slice(*span)] for name, span in pair.char_spans(side).items()}


def test_ioi_roles() -> None:
    for pair in make_task("ioi", n=100).pairs:
        clean, corrupt = roles(pair, "clean"), roles(pair, "corrupt")
        assert clean["S1"] == clean["S2"] != clean["IO"]
        assert (pair.answers, pair.wrong) == ((f" {clean['IO']}",), (f" {clean['S1']}",))
        assert corrupt["S2"] == clean["IO"]
        assert (corrupt["IO"], corrupt["S1"]) == (clean["IO"], clean["S1"])
        assert pair.meta["corrupt_answer"] == pair.wrong[0]
        assert clean["S1+1"] == re.findall(r"\w+|[^\w\s]+", pair.clean[pair.char_spans("clean")["S1"][1] :])[0]
        assert (pair.meta["order"] == "ABB") == (pair.clean.index(clean["IO"]) < pair.clean.index(clean["S1"]))
    assert {p.meta["order"] for p in make_task("ioi", n=40).pairs} == {"ABB", "BAB"}


@pytest.mark.parametrize(
    ("corruption", "new", "repeated"),
    [("abc", 3, False), ("s2-new", 1, False), ("s1-new", 1, False), ("io-new", 1, True), ("s1-io-new", 2, False),
     ("order", 0, True), ("swap", 0, True), ("names", 2, True), ("symmetric", 0, True)],
)  # fmt: skip
def test_ioi_corruptions(corruption: str, new: int, repeated: bool) -> None:
    for pair in make_task("ioi", n=40, corruption=corruption).pairs:
        clean, corrupt = ([w for w in re.findall(r"\w+", t) if w in NAMES] for t in (pair.clean, pair.corrupt))
        assert len(set(corrupt) - set(clean)) == new
        assert (len(set(corrupt)) == 2) == repeated
        answer = pair.meta["corrupt_answer"]
        once = [f" {name}" for name in corrupt if corrupt.count(name) == 1]
        assert (once == [answer]) if repeated else answer is None


def test_greater_than_answers() -> None:
    for pair in make_task("greater-than", n=60).pairs:
        year = int(re.findall(r"\d{4}", pair.clean)[0][2:])
        assert {int(a) for a in pair.answers} == set(range(year + 1, 100))
        assert {int(a) for a in pair.wrong} == set(range(year + 1))
        assert re.search(r"\d\d01 to the year", pair.corrupt)


def test_greater_than_on_digits_asks_for_the_tens() -> None:
    for corruption in ("01", "random"):
        for pair in make_task("greater-than", n=40, corruption=corruption, tokenizer=bpe()).pairs:
            tens = int(re.findall(r"\d{4}", pair.clean)[0][2])
            assert {int(a) for a in pair.answers} == set(range(tens + 1, 10))
            assert {int(a) for a in pair.wrong} == set(range(tens))
            assert int(re.findall(r"\d{4}", pair.corrupt)[0][2]) != tens


@pytest.mark.parametrize("variant", ["simple", "nounpp", "within-rc", "rc"])
def test_agreement_number(variant: str) -> None:
    name = f"agreement-{variant}"
    for corruption, kind in corruptions(name).items():
        for pair in make_task(name, n=40, corruption=corruption).pairs:
            clean, corrupt = roles(pair, "clean"), roles(pair, "corrupt")
            assert (" are" in pair.answers) == (clean["subject"].endswith("s") and " is" in pair.wrong)
            assert (clean["subject"] != corrupt["subject"]) == kind.flips
            assert (clean.get("attractor") != corrupt.get("attractor")) == (corruption in ("attractor", "both"))


def test_pronoun_gender() -> None:
    for corruption in ("gender", "name"):
        for pair in make_task("pronoun", n=40, corruption=corruption).pairs:
            gendered = [(roles(pair, side)["name"] in NAMES[len(NAMES) // 2 :]) for side in ("clean", "corrupt")]
            assert (pair.answers == (" she",)) == gendered[0]
            assert (gendered[0] != gendered[1]) == (corruption == "gender")


def test_docstring_order() -> None:
    for pair in make_task("docstring", n=40).pairs:
        args = re.findall(r"\w+", pair.clean.split("(self, ")[1].split(")")[0])
        documented = re.findall(r":param (\w+):", pair.clean)
        assert documented == args[2:4]
        assert pair.answers == (f" {args[4]}",)
        assert {w.strip() for w in pair.wrong} == set(args) - {args[4]}
        assert re.findall(r"\w+", pair.corrupt.split("(self, ")[1].split(")")[0]) == [*args[:4], args[5], args[4]]


def test_induction_repeats() -> None:
    for pair in make_task("induction", n=40, tokenizer=embedded()).pairs:
        words, corrupt = pair.clean.split(), pair.corrupt.split()
        at = words.index(words[-1])
        assert words[: at + 1] == words[-(at + 1) :]
        assert pair.answers == (f" {words[at + 1]}",)
        assert pair.wrong == (f" {corrupt[at + 1]}",)
        assert sorted(words) == sorted(corrupt)
    for pair in make_task("induction", n=20, corruption="first-half", tokenizer=embedded()).pairs:
        words = pair.corrupt.split()
        assert len(set(words)) == len(words)


def test_mistakes_are_named() -> None:
    with pytest.raises(TaskError, match="did you mean 'greater-than'"):
        make_task("greater_than")
    with pytest.raises(TaskError, match="unknown corruption 'abd'") as error:
        make_task("ioi", corruption="abd")
    assert "abc" in str(error.value)
    with pytest.raises(TaskError, match="n=0"):
        make_task("ioi", n=0)
    with pytest.raises(TaskError, match="different pairs could be made, 1000 were asked for") as error:
        make_task("agreement-simple", n=1000)
    assert "n=140" in str(error.value)
