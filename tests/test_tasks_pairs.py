"""Pairs and tasks: validation, JSON round trips, samples, and splits without leakage."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.errors import TaskError
from crosspatch.tasks import Pair, Task, concat, make_task, mark_changes

PROMPTS = st.sampled_from([f"prompt {i}" for i in range(12)])
PAIRS = st.builds(
    Pair,
    clean=PROMPTS,
    corrupt=PROMPTS,
    answers=st.just((" a",)),
    wrong=st.just((" b",)),
    template=st.sampled_from(["t0", "t1", "t2", "t3"]),
)


def prompts(task: Task) -> set[str]:
    return {text for p in task.pairs for text in (p.clean, p.corrupt)}


@given(st.lists(PAIRS, min_size=2, max_size=20), st.floats(0.05, 0.95), st.integers(0, 5))
def test_no_prompt_is_on_both_sides_of_a_split(pairs: list[Pair], held_out: float, seed: int) -> None:
    task = Task("t", tuple(pairs))
    for by in ("template", "pair", None):
        try:
            train, test = task.split(held_out, seed, by)
        except TaskError as error:
            assert "hang together" in error.what
            continue
        assert not prompts(train) & prompts(test)
        assert sorted(map(repr, train.pairs + test.pairs)) == sorted(map(repr, pairs))
        if by == "template":
            assert not {p.template for p in train.pairs} & {p.template for p in test.pairs}


def test_a_split_that_must_leak_is_refused() -> None:
    chain = Task("chain", tuple(Pair(f"p{i}", f"p{i + 1}", " a") for i in range(6)))
    with pytest.raises(TaskError, match="hang together"):
        chain.split()


def test_split_is_by_template_when_there_are_several_and_near_the_wanted_share() -> None:
    task = make_task("ioi", n=200)
    train, test = task.split(held_out=0.25, seed=3)
    assert not {p.template for p in train.pairs} & {p.template for p in test.pairs}
    assert 0.1 < len(test) / len(task) < 0.4
    assert test.name == "ioi-held-out"
    assert task.split(seed=3)[1].hash == test.hash
    assert task.split(seed=4)[1].hash != test.hash


def test_split_falls_back_to_pairs_with_one_template() -> None:
    task = make_task("agreement-simple", n=60)
    train, test = task.split()
    assert not prompts(train) & prompts(test)
    assert 0.15 < len(test) / len(task) < 0.35
    with pytest.raises(TaskError, match="by='pair'"):
        task.split(by="template")


def test_json_round_trip_keeps_everything_and_the_hash() -> None:
    for name in ("ioi", "greater-than", "docstring"):
        task = make_task(name, n=8)
        again = Task.from_dict(json.loads(json.dumps(task.to_dict())))
        assert again == task
        assert again.hash == task.hash


def test_hash_sees_every_part_of_a_pair() -> None:
    base = {"clean": "a b", "corrupt": "a c", "answers": (" x",), "wrong": (" y",), "spans": {"s": (2, 3)}}
    changes = [{"clean": "a d"}, {"corrupt": "a d"}, {"answers": (" z",)}, {"wrong": ()}, {"spans": {"s": (0, 1)}}]
    changes += [{"template": "t"}, {"corruption": "c"}, {"meta": {"k": 1}}]
    hashes = {Task("t", (Pair(**(base | change)),)).hash for change in [{}, *changes]}
    assert len(hashes) == len(changes) + 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"clean": ""}, "the clean prompt is ''"),
        ({"answers": ()}, "at least one right answer"),
        ({"answers": ("",)}, "no empty text"),
        ({"spans": {"s": (2, 9)}}, "does not lie in a text of 3 characters"),
        ({"spans": {"s": (2, 2)}}, "half-open range"),
        ({"spans": {"s": "a"}, "clean": "a a"}, "occurs 2 times"),
        ({"spans": {"s": "zz"}}, "occurs 0 times"),
        ({"spans": {"END": (0, 1)}}, "END is defined for every prompt"),
        ({"corrupt_spans": {"s": "b"}}, "of the corrupt prompt 'a c'"),
    ],
)
def test_bad_pairs_are_refused_with_the_reason(fields: dict, text: str) -> None:
    with pytest.raises(TaskError) as error:
        Pair(**({"clean": "a b", "corrupt": "a c", "answers": (" x",)} | fields))
    assert text in str(error.value)
    assert error.value.fix


def test_one_answer_may_be_given_as_a_plain_text() -> None:
    assert Pair("a", "b", " Mary", " John").answers == (" Mary",)
    assert Pair("a", "b", " Mary", " John").wrong == (" John",)


def test_span_text_is_found() -> None:
    assert Pair("the cat sat", "the dog sat", " x", spans={"s": "cat"}).char_spans("clean") == {"s": (4, 7)}


def test_lists_that_do_not_pair_up_are_refused_not_broadcast() -> None:
    with pytest.raises(TaskError, match="1 clean, 4 corrupt, 1 answers, 1 wrong"):
        Task.from_lists("t", ["a"], ["b", "c", "d", "e"], [" x"])
    with pytest.raises(TaskError, match="one entry per pair"):
        Task.from_lists("t", "a", "b", "c")
    task = Task.from_lists("t", ["a", "b"], ["c", "d"], [" x", [" y", " z"]], [" n", " m"], varies="v")
    assert task.pairs[1] == Pair("b", "d", (" y", " z"), (" m",))
    assert task.varies == "v"


def test_sample_filter_concat() -> None:
    task = make_task("ioi", n=20)
    assert len(task.sample(5, seed=1)) == 5
    assert task.sample(5, seed=1) == task.sample(5, seed=1)
    assert set(task.sample(5, seed=1).pairs[0].answers) <= {p.answers[0] for p in task.pairs}
    with pytest.raises(TaskError, match="cannot sample 21 of 20"):
        task.sample(21)
    assert all(p.meta["order"] == "ABB" for p in task.filter(lambda p: p.meta["order"] == "ABB").pairs)
    with pytest.raises(TaskError, match="no pairs"):
        task.filter(lambda p: False)
    both = concat([task, make_task("ioi", n=20, corruption="abc")])
    assert both.corruptions == ("symmetric", "abc")
    assert len(both) == 40
    assert " / " in both.varies


def test_changed_words_become_spans() -> None:
    task = Task(
        "t",
        (
            Pair("Tim ran. Tim fell.", "Emma ran. Emma fell.", " x"),
            Pair("the big dog sat", "the small cats sat", " x"),
            Pair("one two", "one", " x"),
            Pair("a b", "a c", " x", spans={"own": (0, 1)}),
        ),
    )
    marked = mark_changes(task).pairs
    assert marked[0].spans == {"changed1": (0, 3), "changed2": (9, 12)}
    assert marked[0].corrupt_spans == {"changed1": (0, 4), "changed2": (10, 14)}
    assert marked[1].spans == {"changed": (4, 11)}
    assert marked[2].spans == {}
    assert marked[3].spans == {"own": (0, 1)}
