"""Samples: which tokens are kept, what is dropped, and that files give back what was written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import crosspatch as cp
from crosspatch.discover import Document, Samples, draw_samples, load_samples, read_documents, setup_of_samples
from crosspatch.discover.draw import repeats
from crosspatch.discover.text import SHOWN, embedded_documents
from crosspatch.errors import CrosspatchError, DictionaryError, ResultError, TaskError

SURE = 1e9
"""Every token is below it: what is left of the filters are their rules."""


@pytest.fixture(scope="module")
def model() -> cp.Model:
    return cp.load("embedded")


@pytest.fixture(scope="module")
def samples(model) -> Samples:
    return draw_samples(model, read_documents("embedded", "test"), 60, text="embedded")


def kept(model, text: str, **options) -> list[str]:
    """Answers of one text, every token of which is sure."""
    found = draw_samples(model, [text], 100, threshold=SURE, per_document=100, **options)
    return [found.word(i) for i in range(len(found))]


# ------------------------------------------------------------------------------------------------------------- rules


def test_a_repeated_bigram_is_induction(model) -> None:
    text = " Mary gave the key to Mary gave the"
    assert kept(model, text, induction="keep") == [" gave", " the", " key", " to", " Mary", " gave", " the"]
    # The second "gave" and "the" followed the same word before; the second "Mary" came after another one.
    assert kept(model, text) == [" gave", " the", " key", " to", " Mary"]


def test_a_trigram_needs_two_equal_words_before(model) -> None:
    text = " Mary gave the key to Mary gave the"
    assert kept(model, text, induction="trigram") == [" gave", " the", " key", " to", " Mary", " gave"]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 3))
def test_repeats_is_what_it_says(ids, n) -> None:
    at = len(ids) - 1
    windows = [ids[i : i + n + 1] for i in range(len(ids) - n)]
    assert repeats(ids, at, n) == (len(windows) > 1 and windows[-1] in windows[:-1])


def test_at_most_so_many_of_a_document_and_every_so_many(model) -> None:
    texts = [" Mary gave the key to John.", " Mary and John went to the store."] * 3
    capped = draw_samples(model, texts, 100, threshold=SURE, per_document=2)
    assert np.bincount(capped.documents).tolist() == [2] * 6
    whole = draw_samples(model, texts, 100, threshold=SURE, per_document=100)
    third = draw_samples(model, texts, 100, threshold=SURE, per_document=100, every=3)
    assert third.digests == whole.digests[::3]
    assert capped.origin["counts"]["capped"] == len(whole) - len(capped)


def test_the_choice_within_a_document_does_not_depend_on_others(model) -> None:
    texts = [" Mary gave the key to John.", " Mary and John went to the store."]
    alone = draw_samples(model, texts[:1], 9, threshold=SURE)
    both = draw_samples(model, texts, 9, threshold=SURE)
    assert both.digests[0] == alone.digests[0]


def test_losses_are_the_models_own_and_below_the_threshold(model, samples) -> None:
    for i in range(0, 60, 7):
        with torch.no_grad():
            logits = model.hf(input_ids=torch.tensor([samples.contexts[i]])).logits[0, -1]
        assert -logits.log_softmax(-1)[samples.answers[i]].item() == pytest.approx(samples.losses[i], abs=1e-5)
    assert samples.losses.max() < 0.3
    assert not any(
        repeats([*context, answer], len(context), 1)
        for context, answer in zip(samples.contexts, samples.answers.tolist(), strict=True)
    )


def test_samples_are_the_same_again_and_do_not_depend_on_batches(model, samples) -> None:
    again = draw_samples(model, read_documents("embedded", "test"), 60, text="embedded", tokens_per_pass=200)
    assert again.hash == samples.hash
    other = draw_samples(model, read_documents("embedded", "test"), 60, text="embedded", seed=1)
    assert other.hash != samples.hash


def test_long_documents_are_cut_and_every_piece_begins_as_a_text(model) -> None:
    text = " Mary and John went to the store." * 10
    found = draw_samples(model, [text], 1000, threshold=SURE, per_document=1000, induction="keep", length=12)
    assert max(map(len, found.contexts)) == 11
    assert {context[0] for context in found.contexts} == {model.tokenizer.bos_token_id}
    assert set(found.documents.tolist()) == {0}


# ------------------------------------------------------------------------------------------------------------- truth


def test_the_generator_says_what_each_word_belongs_to(samples) -> None:
    assert samples.labels is not None
    assert any(label.endswith(SHOWN) for label in samples.labels)
    assert not all(label.endswith(SHOWN) for label in samples.labels)


def test_determined_words_are_those_that_the_generator_marks() -> None:
    from itertools import islice

    from crosspatch.embedded import corpus

    for document, text in zip(islice(embedded_documents(3), 200), corpus.documents(3), strict=False):
        assert document.text == text.replace(corpus.MARK, "")
        pieces = text.split(corpus.MARK)
        at = np.cumsum([len(piece) for piece in pieces])[:-1]
        for start in at.tolist():
            label = document.label_at(start + 1)  # inside the word, past its space
            assert label is not None
            assert not label.endswith(SHOWN)
        assert str(document.label_at(0)).endswith(SHOWN)


def test_text_without_labels_has_none(model) -> None:
    found = draw_samples(model, [" Mary gave the key to John."], 5, threshold=SURE)
    assert found.labels is None


# ------------------------------------------------------------------------------------------------------------- files


def test_saved_samples_come_back(samples, tmp_path) -> None:
    again = load_samples(samples.save(tmp_path))
    assert again.hash == samples.hash
    assert again.labels == samples.labels
    assert again.origin == samples.origin
    assert np.array_equal(again.losses, samples.losses)
    assert again.words(3) == samples.words(3)


@pytest.mark.parametrize("damage", ["table", "json", "other", "gone"])
def test_damaged_samples_are_refused(samples, tmp_path, damage) -> None:
    samples.save(tmp_path)
    [table] = tmp_path.glob("*.parquet")
    path = tmp_path / "samples.json"
    if damage == "table":
        table.write_bytes(table.read_bytes()[:-9])
    elif damage == "json":
        path.write_text(path.read_text("utf-8")[:40], "utf-8")
    elif damage == "other":
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"hash": "0"}), "utf-8")
    else:
        table.unlink()
    with pytest.raises(ResultError):
        load_samples(tmp_path)


def test_documents_of_files_and_folders(tmp_path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n', "utf-8")
    (tmp_path / "a.txt").write_text("one\n" * 900, "utf-8")
    found = [document.text for document in read_documents(tmp_path)]
    assert found[-1] == "two"
    assert len(found) == 3  # 3,600 characters are cut once
    assert "\n".join(found[:2]) == "\n".join(["one"] * 900)


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "options", [{"n": 0}, {"threshold": 0}, {"threshold": float("nan")}, {"induction": "fourgram"}, {"every": 0},
                {"per_document": 0}, {"length": 2}], ids=str,
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(model, options) -> None:
    with pytest.raises(TaskError):
        draw_samples(model, [" Mary gave"], **{"n": 5, **options})


def test_a_text_without_a_sample_says_why(model) -> None:
    with pytest.raises(TaskError, match="were sure"):
        draw_samples(model, [" Mary gave the key"], 5, threshold=1e-12)


def test_a_text_without_end_is_given_up(model) -> None:
    from itertools import repeat

    with pytest.raises(TaskError, match="none of"):
        draw_samples(model, repeat(" Mary gave the key"), 5, threshold=1e-12, most_tokens=5000)


def test_no_such_text(tmp_path) -> None:
    with pytest.raises(DictionaryError):
        next(read_documents(tmp_path / "nothing.txt"))
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CrosspatchError):
        list(read_documents(tmp_path / "x.txt"))


def test_parts_of_different_lengths_are_refused() -> None:
    with pytest.raises(TaskError, match="losses"):
        Samples([(1,)], np.array([2]), np.array([0.1, 0.2]), np.array([0]), None, {})
    with pytest.raises(TaskError, match="empty"):
        Samples([()], np.array([2]), np.array([0.1]), np.array([0]), None, {})


def test_samples_of_another_model_are_refused(model) -> None:
    strange = Samples([(1, 10**6)], np.array([2]), np.array([0.1]), np.array([0]), None, {})
    with pytest.raises(TaskError, match="own model"):
        setup_of_samples(model, strange)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 30), st.text("ab", max_size=2)), max_size=5), st.integers(0, 40))
def test_a_label_holds_up_to_the_next_one(labels, character) -> None:
    ordered = tuple(sorted(labels, key=lambda pair: pair[0]))
    before = [label for start, label in ordered if start <= character]
    assert Document("x", ordered).label_at(character) == (before[-1] if before else None)
