"""Alignment of clean and corrupt tokens, by position and by spans."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_tokenizers import bpe, embedded, stories

from crosspatch.tasks import Pair, Task, align, make_task, token_diff
from crosspatch.tasks.align import align_pair, first_difference

IDS = st.lists(st.integers(0, 5), max_size=8)


@given(IDS, IDS)
def test_first_difference(a: list[int], b: list[int]) -> None:
    at = first_difference(a, b)
    if at is None:
        assert a == b
    else:
        assert a[:at] == b[:at]
        assert a[at : at + 1] != b[at : at + 1]


@st.composite
def spanned(draw: st.DrawFn) -> tuple[list[int], list[int], dict, dict]:
    """Two prompts made of shared text and spans in turn; the spans may differ in length."""
    clean: list[int] = []
    corrupt: list[int] = []
    spans, corrupt_spans = {}, {}
    for i in range(draw(st.integers(1, 4))):
        between = draw(st.lists(st.integers(0, 9), max_size=3))
        clean += between
        corrupt += between
        lengths = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        spans[f"s{i}"] = (len(clean), len(clean) + lengths[0])
        corrupt_spans[f"s{i}"] = (len(corrupt), len(corrupt) + lengths[1])
        clean += [100 + i] * lengths[0]
        corrupt += [200 + i] * lengths[1]
    tail = draw(st.lists(st.integers(0, 9), max_size=3))
    return clean + tail, corrupt + tail, spans, corrupt_spans


@given(spanned())
def test_alignment_by_spans(case: tuple[list[int], list[int], dict, dict]) -> None:
    clean, corrupt, spans, corrupt_spans = case
    found = align_pair(clean, corrupt, spans, corrupt_spans)
    assert found.problem is None
    partners = [p for p in found.to_corrupt if p is not None]
    assert partners == sorted(set(partners))  # one to one, order kept
    assert found.to_corrupt[-1] == len(corrupt) - 1
    inside = {p for start, end in spans.values() for p in range(start, end)}
    for c, d in enumerate(found.to_corrupt):
        if c not in inside:
            assert d is not None
            assert clean[c] == corrupt[d]
    for name, (start, end) in spans.items():
        other_start, other_end = corrupt_spans[name]
        assert found.to_corrupt[end - 1] == other_end - 1  # last token to last token
        if end - start == other_end - other_start:
            assert found.to_corrupt[start:end] == tuple(range(other_start, other_end))
        else:
            assert set(found.to_corrupt[start : end - 1]) <= {None}
    for c, d in enumerate(found.to_corrupt):
        if d is not None:
            assert found.to_clean(d) == c


@given(spanned())
def test_equal_lengths_at_equal_places_align_token_by_token(case: tuple[list[int], list[int], dict, dict]) -> None:
    clean, _, spans, _ = case
    found = align_pair(clean, [x + 1 for x in clean], spans, spans)
    assert found.kind == "tokens"
    assert found.to_corrupt == tuple(range(len(clean)))
    assert found.first_difference == 0


@pytest.mark.parametrize(
    ("clean", "corrupt", "spans", "corrupt_spans", "problem"),
    [
        ([1, 2, 3], [1, 2], {}, {}, "clean has 3 tokens, corrupt has 2, and no span names what differs"),
        ([1, 2, 3], [1, 2], {"s": (0, 1)}, {}, "no span names what differs"),
        ([1, 2, 3], [1, 2], {"s": (0, 1)}, {"s": (0, 1)}, "clean has 2 tokens at 1:3, corrupt 1 at 1:2"),
        ([9, 1, 9, 2, 9], [9] * 6, {"a": (1, 2), "b": (3, 4)}, {"a": (3, 4), "b": (1, 2)}, "stand in another order"),
        (
            [1, 2, 3],
            [1, 2, 3, 4],
            {"a": (0, 2), "b": (1, 3)},
            {"a": (0, 3), "b": (0, 4)},
            "tokens in the clean prompt only",
        ),
        (
            [1, 2],
            [1, 5, 2],
            {"a": (0, 1), "b": (1, 2)},
            {"a": (0, 1), "b": (2, 3)},
            "token 1 at corrupt tokens 1 and 2",
        ),
    ],
)
def test_what_does_not_align_says_why(
    clean: list, corrupt: list, spans: dict, corrupt_spans: dict, problem: str
) -> None:
    found = align_pair(clean, corrupt, spans, corrupt_spans)
    assert found.kind == "none"
    assert set(found.to_corrupt) == {None}
    assert problem in str(found.problem)


def test_names_of_unequal_length_align_by_their_roles() -> None:
    """Every name is spelt in pieces here; the roles still align, and no pair is lost."""
    tokenizer = stories()
    kinds = set()
    for corruption in ("symmetric", "abc", "names"):
        tokenized = make_task("ioi", n=40, corruption=corruption).tokenize(tokenizer)
        positions = align(tokenized)
        assert positions.failing == ()
        kinds |= {p.kind for p in positions.pairs}
        for i, found in enumerate(positions.pairs):
            for role in ("IO", "S1", "S2", "END"):
                clean_last = tokenized.spans[i][role][1] - 1
                assert found.to_corrupt[clean_last] == tokenized.corrupt_spans[i][role][1] - 1
    assert kinds == {"tokens", "spans"}


def test_failures_are_marked_not_dropped() -> None:
    task = Task("t", (Pair("a b", "a c", " x"), Pair("the cat", "the cat and the dog", " x")))
    positions = align(task.tokenize(bpe()))
    assert len(positions) == 2
    assert positions.failing == (1,)


def test_token_diff_shows_both_prompts_and_marks_the_difference() -> None:
    task = Task("t", (Pair("The cats near the car", "The cat near the car", " x"),))
    clean, corrupt, marks = token_diff(task.tokenize(embedded()), 0).split("\n")
    assert clean.startswith("clean   <|bos|>|The| cats| near")
    assert corrupt.startswith("corrupt <|bos|>|The| cat ")
    assert marks.index("^") == clean.index(" cats")
    assert marks.count("^") == len(" cats")
    assert marks.endswith("(6 and 6 tokens)")
