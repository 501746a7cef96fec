"""From text to tokens: what stands before the text, answers that continue it, spans, and readable tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_tokenizers import SlowWords, bpe, embedded, stories

from crosspatch.errors import TaskError
from crosspatch.tasks import Pair, Task, make_task
from crosspatch.tasks.encode import Encoder
from crosspatch.tasks.tokenize import token_span

PAIR = Pair("The cat sat near Mary and", "The dog sat near Mary and", (" John",), (" Mary",), spans={"animal": "cat"})
TASK = Task("t", (PAIR,))
WORDS = st.lists(
    st.sampled_from(["the", "John", "Mary", "store", "dogs", "gave", "éa", "1732", "x,", "(self"]),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("tokenizer", [embedded, bpe, stories, SlowWords])
def test_tokens_are_the_tokenizers_own(tokenizer: Any) -> None:
    tok = tokenizer()
    tokenized = TASK.tokenize(tok)
    own = tok(PAIR.clean)["input_ids"]
    assert tokenized.clean[0] == [i for i in own if i != tok.eos_token_id or i == tok.bos_token_id]
    assert tokenized.spans[0]["END"] == (len(tokenized.clean[0]) - 1, len(tokenized.clean[0]))
    start, end = tokenized.spans[0]["animal"]
    assert "".join(tokenized.strings(0)[start:end]).strip() == "cat"


def test_bos_follows_the_tokenizer_unless_overruled() -> None:
    with_bos, without = embedded(), bpe()
    assert TASK.tokenize(with_bos).bos.to_dict() == {"policy": "tokenizer", "ids": (0,), "tokens": ("<|bos|>",)}
    assert TASK.tokenize(without).bos.ids == ()
    removed = TASK.tokenize(with_bos, add_bos=False)
    assert removed.bos.policy == "removed"
    assert removed.clean[0] == TASK.tokenize(with_bos).clean[0][1:]
    assert removed.spans[0]["animal"][0] == TASK.tokenize(with_bos).spans[0]["animal"][0] - 1
    with pytest.raises(TaskError, match="no beginning-of-text token"):
        TASK.tokenize(without, add_bos=True)


def test_a_closing_token_is_left_off() -> None:
    tok = SlowWords()
    assert tok("a b")["input_ids"][-1] == tok.eos_token_id
    assert tok.eos_token_id not in TASK.tokenize(tok).clean[0]


@pytest.mark.parametrize("tokenizer", [embedded, bpe, stories])
@settings(deadline=None, max_examples=40)
@given(words=WORDS, answer=st.sampled_from([" John", " the", " 17", " xyz"]))
def test_prompt_and_answer_tokens_spell_prompt_and_answer(tokenizer: Any, words: list[str], answer: str) -> None:
    tok = tokenizer()
    prompt = " ".join(words)
    tokenized = Task("t", (Pair(prompt, prompt + " z", (answer,)),)).tokenize(tok)
    ids = tokenized.encoder.core(prompt) + tokenized.answer_tokens[0][0]
    assert tok.decode(ids, skip_special_tokens=True).strip() == prompt + answer


@pytest.mark.parametrize("tokenizer", [embedded, bpe, stories, SlowWords])
@settings(deadline=None, max_examples=40)
@given(words=WORDS, data=st.data())
def test_spans_hold_their_words_and_do_not_overlap(tokenizer: Any, words: list[str], data: Any) -> None:
    tok = tokenizer()
    at, spans = 0, {}
    for i, word in enumerate(words):
        spans[f"w{i}"] = (at, at + len(word))
        at += len(word) + 1
    tokenized = Task("t", (Pair(" ".join(words), "other", (" x",), spans=spans),)).tokenize(tok)
    strings = tokenized.strings(0)
    found = [tokenized.spans[0][f"w{i}"] for i in range(len(words))]
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    for word, (start, end) in zip(words, found, strict=True):
        if word.isascii():
            assert "".join(strings[start:end]).strip() == word


def test_offsets_by_prefixes_agree_with_the_tokenizers_own() -> None:
    class NoOffsets:
        def __init__(self, tok: Any) -> None:
            self.tok = tok

        is_fast = False

        def __call__(self, text: Any, **kwargs: Any) -> Any:
            return self.tok(text, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.tok, name)

    task = make_task("ioi", n=8)
    for tok in (embedded(), bpe()):
        assert task.tokenize(NoOffsets(tok)).spans == task.tokenize(tok).spans


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    class Lossy(SlowWords):
        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            return "?"

    with pytest.raises(TaskError, match="cannot be matched to tokens"):
        TASK.tokenize(Lossy())


def test_an_answer_that_merges_with_the_prompt_is_reported() -> None:
    # The embedded tokenizer cuts " 1732" into " 17" and "32", so that "1" is no token of its own there.
    task = Task("t", (Pair("the year 1", "the year 2", ("732",), ("9",)),))
    tokenized = task.tokenize(embedded())
    finding = next(f for f in tokenized.findings if f.code == "answer-merges")
    assert finding.examples == (0,)
    assert "merges the end of the prompt" in finding.message


def test_answer_without_a_space_is_reported() -> None:
    tokenized = Task("t", (Pair("John gave it to", "Mary gave it to", ("Mary",)),)).tokenize(embedded())
    finding = next(f for f in tokenized.findings if f.code == "answer-without-space")
    assert "toMary" in finding.shown[0]
    assert TASK.tokenize(embedded()).findings == ()


def test_control_tokens_spelt_in_a_prompt_are_reported() -> None:
    tokenized = Task("t", (Pair("<|bos|>John", "<|bos|>Mary", (" x",)),)).tokenize(embedded())
    assert [f.code for f in tokenized.findings] == ["special-tokens"]
    assert tokenized.findings[0].level == "warning"


def test_answer_sets_keep_first_tokens_without_repeats() -> None:
    pair = Pair("The cat sat near", "The dog sat near", (" John", " Mary", " John"), (" Ruth",))
    tokenized = Task("t", (pair,)).tokenize(embedded())
    assert len(tokenized.answers[0]) == 2
    assert [len(a) for a in tokenized.answer_tokens[0]] == [1, 1, 1]


def test_corrupt_spans_default_to_the_clean_tokens_only_at_equal_length() -> None:
    equal = Task("t", (Pair("The cat sat", "The dog sat", " x", spans={"s": "cat"}),)).tokenize(bpe())
    if len(equal.clean[0]) == len(equal.corrupt[0]):
        assert equal.corrupt_spans[0]["s"] == equal.spans[0]["s"]
    longer = Task("t", (Pair("The cat sat", "The big dog sat", " x", spans={"s": "cat"}),)).tokenize(bpe())
    assert set(longer.corrupt_spans[0]) == {"END"}


def test_a_space_token_belongs_to_the_word_after_it() -> None:
    offsets = [(0, 2), (2, 3), (3, 5), (5, 6)]  # "to" " " "Ma" "r"
    assert token_span(offsets, (3, 6), "to Mar") == (1, 4)
    assert token_span(offsets, (0, 2), "to Mar") == (0, 1)
    assert token_span([(0, 2), (2, 6)], (3, 6), "to Mar") == (1, 2)
    assert token_span([(0, 2), (2, 3), (3, 6)], (3, 6), "to\nMar") == (2, 3)
    assert token_span([(0, 0)], (0, 1), "x") is None


def test_span_of_nothing_is_refused() -> None:
    class Dropping(SlowWords):
        def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
            return ["a"]

        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            return "a" if tokens else ""

    with pytest.raises(TaskError, match=r"no token holds the characters \(1, 2\)"):
        Task("t", (Pair("a ", "a", " x", spans={"s": (1, 2)}),)).tokenize(Dropping())


def test_select_strings_and_cluster() -> None:
    task = make_task("ioi", n=6, tokenizer=embedded())
    tokenized = task.tokenize(embedded())
    chosen = tokenized.select([4, 1])
    assert chosen.clean == [tokenized.clean[4], tokenized.clean[1]]
    assert chosen.clusters == [task.pairs[4].template, task.pairs[1].template]
    assert "".join(tokenized.strings(0)[1:]) == task.pairs[0].clean
    assert tokenized.display(0).startswith("<|bos|>|")
    assert tokenized.span_names()[-1] == "END"


def test_cut_characters_stay_readable() -> None:
    encoder = Encoder(bpe())
    ids = encoder.core("naïve 雪")
    assert all(encoder.readable(i) and "\ufffd" not in encoder.readable(i) for i in ids)


def test_no_tokenizer_is_refused() -> None:
    with pytest.raises(TaskError, match="no tokenizer"):
        TASK.tokenize(None)
