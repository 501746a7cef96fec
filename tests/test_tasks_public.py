"""Public prompt sets, read from where they are; skipped where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from task_tokenizers import SHARED, embedded, stories

from crosspatch.errors import TaskError
from crosspatch.tasks import align, list_public, load_public, static_gates
from crosspatch.tasks.public import find_data

DATA = SHARED / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no public data at {DATA}")
COUNTS = {
    "ioi/eap_ig": 499,
    "ioi/dpa": 841,
    "greater-than": 1000,
    "agreement/simple_train": 40,
    "agreement/nounpp_test": 436,
    "agreement/within_rc_test": 767,
    "agreement/rc_generated_test": 499,
    "story/pronoun_noun": 80,
    "story/ioi_story": 480,
    "mcqa/colors": 180,
    "blimp/determiner_noun_agreement_2": 1000,
}


@needs_data
@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_statements(name: str) -> None:
    task = load_public(name, DATA)
    assert len(task) == COUNTS[name]
    assert task.varies
    assert (
        "licence" in task.provenance
        or "free to use" in task.provenance
        or "CC-BY" in task.provenance
        or ("Apache-2.0" in task.provenance)
    )
    assert task.name == name.replace("/", "-")


ALIGNED = ["ioi/eap_ig", "ioi/dpa", "ioi/mib", "agreement/simple_test", "agreement/nounpp_test", "story/name_copy",
           "story/ioi_story", "known-facts", "relations/city_in_country", "ravel/city/country", "mcqa/colors",
           "function/country-capital"]  # fmt: skip


@needs_data
@pytest.mark.parametrize("name", ALIGNED)
def test_pairs_align_by_spans_where_words_are_split(name: str) -> None:
    task = load_public(name, DATA, n=60)
    assert 30 < len(task) <= 60
    assert align(task.tokenize(stories())).failing == ()


@needs_data
@pytest.mark.parametrize("name", ["ioi/eap_ig", "ioi/mib", "relations/fruit_inside_color", "story/pronoun_noun"])
def test_with_a_tokenizer_only_aligned_pairs_are_kept_and_counted(name: str) -> None:
    tok = embedded() if name != "story/pronoun_noun" else stories()
    task = load_public(name, DATA, tokenizer=tok)
    assert "pairs kept" in task.provenance
    tokenized = task.tokenize(tok)
    assert {p.kind for p in align(tokenized).pairs} == {"tokens"}
    assert not [f for f in static_gates(tokenized) if f.level == "failure"]


@needs_data
def test_ioi_names_come_from_the_text() -> None:
    for corruption in ("symmetric", "s2-new"):
        for pair in load_public("ioi/eap_ig", DATA, corruption=corruption).pairs:
            spans = {k: pair.clean[slice(*v)] for k, v in pair.char_spans("clean").items()}
            other = {k: pair.corrupt[slice(*v)] for k, v in pair.char_spans("corrupt").items()}
            assert spans["S1"] == spans["S2"] == pair.wrong[0].strip()
            assert spans["IO"] == pair.answers[0].strip()
            assert (other["S2"] == spans["IO"]) == (corruption == "symmetric")
            assert (other["IO"], other["S1"]) == (spans["IO"], spans["S1"])
    templates = {p.template for p in load_public("ioi/eap_ig", DATA).pairs}
    assert len(templates) < 15


@needs_data
def test_repeated_prefixes_become_answer_sets() -> None:
    task = load_public("agreement/simple_train", DATA)
    assert len({p.clean for p in task.pairs}) == len(task)
    assert max(len(p.answers) for p in task.pairs) == 4
    assert all(len(p.answers) == len(p.wrong) for p in task.pairs)


@needs_data
def test_facts_have_partners_of_the_same_sentence() -> None:
    for pair in load_public("known-facts", DATA).pairs:
        a, b = pair.char_spans("clean")["subject"], pair.char_spans("corrupt")["subject"]
        assert pair.clean[: a[0]] == pair.corrupt[: b[0]]
        assert pair.clean[a[1] :] == pair.corrupt[b[1] :]
        assert pair.answers != pair.wrong
    assert "left out (no partner)" in load_public("known-facts", DATA).provenance
    train, test = load_public("relations/city_in_country", DATA).split(by="pair")
    assert len(test) > 0.1 * len(train)


@needs_data
def test_sets_of_every_kind_can_be_read() -> None:
    kinds = {"/".join(name.split("/")[:-1]) or name: name for name in list_public(DATA)}
    assert len(kinds) >= 13
    for name in kinds.values():
        assert 1 <= len(load_public(name, DATA, n=3)) <= 3, name


@needs_data
def test_what_is_not_there_is_named() -> None:
    with pytest.raises(TaskError, match="did you mean 'ioi/eap_ig'"):
        load_public("ioi/eap-ig", DATA)
    with pytest.raises(TaskError, match="use symmetric, s2-new"):
        load_public("ioi/eap_ig", DATA, corruption="abc")
    with pytest.raises(TaskError, match=r"none of \d+ pairs aligns"):
        load_public("function/country-currency", DATA, tokenizer=stories())


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_public(tmp_path) == []
    with pytest.raises(TaskError, match="no such folder"):
        find_data(tmp_path / "absent")
    monkeypatch.setenv("CROSSPATCH_DATA", str(tmp_path))
    assert find_data() == tmp_path
    with pytest.raises(TaskError, match="no public set"):
        load_public("greater-than")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ioi").mkdir()
    path = tmp_path / "ioi" / "ioi_dpa.jsonl"
    path.write_text('{"prompt": "When Amy and Bob met, Bob gave it to", "answer": "Amy"}\n{"prompt": \n')
    with pytest.raises(TaskError, match="line 2: not JSON"):
        load_public("ioi/dpa", tmp_path)
    path.write_text('{"prompt": "Nobody gave it to", "answer": "Amy"}\n')
    with pytest.raises(TaskError, match="one name must be said once and one twice"):
        load_public("ioi/dpa", tmp_path)
