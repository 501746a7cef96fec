"""The gates refuse experiments that would mislead, and say which examples, in tokens, and what to do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from task_tokenizers import SHARED, bpe, embedded, stories

from crosspatch.errors import GateError
from crosspatch.tasks import (
    GateFinding,
    GateReport,
    Pair,
    Task,
    align,
    behaviour,
    gates,
    load_public,
    make_task,
    preference,
    static_gates,
)

GOOD = Pair("The cats near the car", "The cat near the car", (" are", " were"), (" is", " was"), {"subject": "cats"})


def found(pairs: list[Pair], code: str, **options: Any) -> GateFinding:
    tokenized = Task("t", tuple(pairs)).tokenize(embedded())
    return next(f for f in static_gates(tokenized, **options) if f.code == code)


def random_model(vocab: int, context: int = 128, seed: int = 0) -> Any:
    from crosspatch.model import load

    torch.manual_seed(seed)
    config = tf.GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=vocab, n_positions=context, initializer_range=0.2,
        attn_implementation="eager",
    )  # fmt: skip
    return load(tf.GPT2LMHeadModel(config).eval(), tokenizer=bpe(), name="random")


# ----------------------------------------------------------------- rows of the bad-input table that concern tasks


def test_a_good_task_passes_all_static_gates() -> None:
    tokenized = make_task("ioi", n=16, tokenizer=embedded()).tokenize(embedded())
    assert {f.level for f in static_gates(tokenized, context=128, vocab=5000)} == {"info"}


@pytest.mark.parametrize("longer", ["clean", "corrupt"])
def test_unequal_lengths_are_refused_with_both_prompts_in_tokens(longer: str) -> None:
    short, long = "The cat near the car", "The cat and the dog near the car"
    clean, corrupt = (long, short) if longer == "clean" else (short, long)
    finding = found([GOOD, Pair(clean, corrupt, (" is",), (" are",))], "alignment")
    assert finding.level == "failure"
    assert finding.examples == (1,)
    text = str(finding)
    assert "|The| cat| near| the| car" in text.replace("    ", "")
    assert ("9 tokens" in text) or ("(6 and 9 tokens)" in text)
    assert "spans=" in str(finding.fix)


def test_clean_equal_to_corrupt_is_refused() -> None:
    finding = found([GOOD, Pair("The cat", "The cat", (" is",), (" are",))], "clean-differs")
    assert (finding.level, finding.examples) == ("failure", (1,))
    assert finding.shown == ("1: <|bos|>|The| cat",)
    assert "no patch can have an effect" in finding.message


def test_answers_of_several_tokens_are_refused_unless_the_metric_does_not_read_them() -> None:
    pairs = [GOOD, Pair("The cat", "The cats", (" xylophonic",), (" are",))]
    finding = found(pairs, "single-token-answers")
    assert (finding.level, finding.examples) == ("failure", (1,))
    assert "|" in finding.shown[0]
    tokenized = Task("t", tuple(pairs)).tokenize(embedded())
    assert "single-token-answers" not in {f.code for f in static_gates(tokenized, answer_tokens_matter=False)}


def test_right_and_wrong_answers_with_one_first_token_are_refused() -> None:
    finding = found([GOOD, Pair("The cat", "The cats", (" is", " was"), (" are", " was"))], "answers-differ")
    assert (finding.level, finding.examples) == ("failure", (1,))
    assert "' was'" in finding.shown[0]


def test_duplicates_are_a_warning() -> None:
    finding = found([GOOD, Pair("The cat", "The cats", (" is",), (" are",)), GOOD], "duplicates")
    assert (finding.level, finding.examples) == ("warning", (2,))


def test_prompts_beyond_the_context_are_refused() -> None:
    finding = found([GOOD, Pair("The cat", "The cats", (" is",), (" are",))], "context", context=4)
    assert (finding.level, finding.examples) == ("failure", (0,))
    assert "context of 4 tokens" in finding.message


def test_token_ids_of_another_tokenizer_are_refused() -> None:
    finding = found([GOOD], "vocabulary", vocab=10)
    assert finding.level == "failure"
    assert "model's own tokenizer" in str(finding.fix)


# ------------------------------------------------------------------------------------------- behaviour, on arrays


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=30),
    st.floats(-3, 3),
    st.floats(0.5, 4),
    st.sampled_from(["higher", "lower"]),
)
def test_behaviour_gate_is_a_paired_test(corrupt: list[float], shift: float, k: float, better: Any) -> None:
    base = np.array(corrupt)
    clean = base + shift + 0.1 * np.sin(np.arange(len(base)))
    gap = (clean - base) * (1 if better == "higher" else -1)
    passes = gap.mean() > 0 and gap.mean() > k * gap.std(ddof=1) / np.sqrt(len(gap))
    levels = {f.level for f in behaviour(clean, base, k, better)}
    assert ("failure" not in levels) == passes


def test_behaviour_gate_names_weak_examples() -> None:
    finding = behaviour(np.array([0.0, 1.0, -1.0]), np.array([0.1, 0.9, 0.0]), shown=["x", "y", "z"])[0]
    assert (finding.level, finding.examples, finding.shown) == ("failure", (0, 2), ("0: x", "2: z"))
    assert "2 standard errors" in finding.message
    clean = np.array([3.0, 3.1, 2.9, 3.0, 0.9])
    weak = behaviour(clean, np.ones(5))
    assert [(f.level, f.examples) for f in weak] == [("info", ()), ("warning", (4,))]


def test_behaviour_of_one_example_is_a_warning_and_of_nan_a_failure() -> None:
    assert [f.level for f in behaviour(np.array([1.0]), np.array([0.0]))] == ["warning"]
    assert [f.level for f in behaviour(np.array([0.0]), np.array([1.0]))] == ["failure"]
    bad = behaviour(np.array([1.0, np.nan]), np.array([0.0, 0.0]))[0]
    assert (bad.level, bad.examples) == ("failure", (1,))


@pytest.mark.parametrize(
    ("right", "n", "chance", "level"),
    [
        (20, 20, 0.5, "info"),
        (16, 20, 0.5, "warning"),  # above chance, four examples fail
        (12, 20, 0.5, "failure"),
        (0, 20, 0.5, "failure"),
        (3, 3, 0.5, "warning"),  # too few to tell
        (2, 3, 0.5, "failure"),
        (8, 20, 0.17, "warning"),
        (10, 20, None, "warning"),
        (9, 20, None, "failure"),
    ],
)
def test_accuracy_against_chance(right: int, n: int, chance: float | None, level: str) -> None:
    prefers = np.arange(n) < right
    finding = preference(prefers, chance)[0]
    assert finding.level == level
    if right < n:
        assert finding.examples == tuple(range(right, n))


# ------------------------------------------------------------------------------------------------- with a model


def test_a_random_model_is_refused_and_force_marks() -> None:
    tokenizer = bpe()
    tokenized = make_task("ioi", n=32, tokenizer=tokenizer).tokenize(tokenizer)
    report = gates(random_model(len(tokenizer)), tokenized)
    assert not report.ok
    assert {f.code for f in report.failures} <= {"behaviour", "accuracy"}
    with pytest.raises(GateError) as error:
        report.require()
    message = str(error.value)
    assert "task 'ioi'" in message
    assert "force=True" in message
    assert "| to\n" in message  # the failing prompts, in tokens
    forced = report.require(force=True)
    assert forced.forced
    assert not report.forced
    assert "forced" in str(forced)
    assert json.loads(json.dumps(forced.to_dict()))["forced"] is True


def test_random_models_are_refused_at_about_the_stated_rate() -> None:
    tokenizer = bpe()
    tokenized = make_task("agreement-nounpp", n=24, tokenizer=tokenizer).tokenize(tokenizer)
    passed = [gates(random_model(len(tokenizer), seed=s), tokenized).ok for s in range(12)]
    assert sum(passed) <= 2


def test_numbers_are_those_of_the_untouched_model() -> None:
    tokenizer = bpe()
    tokenized = make_task("greater-than", n=6, tokenizer=tokenizer).tokenize(tokenizer)
    model = random_model(len(tokenizer))
    report = gates(model, tokenized)
    for i in range(len(tokenized)):
        logits = model.hf(torch.tensor([tokenized.clean[i]])).logits[0, -1]
        right, wrong = logits[tokenized.answers[i]], logits[tokenized.wrong[i]]
        assert report.prefers[i] == bool(right.max() > wrong.max())
        assert report.clean[i] == pytest.approx((right.mean() - wrong.mean()).item(), abs=1e-4)


def test_metrics_of_another_kind() -> None:
    tokenizer = bpe()
    tokenized = make_task("agreement-simple", n=6, tokenizer=tokenizer).tokenize(tokenizer)
    model = random_model(len(tokenizer))
    kl = gates(model, tokenized, metric="kl")
    assert np.allclose(kl.clean, 0, atol=1e-6)
    assert (kl.corrupt > 0).all()
    assert "accuracy" not in {f.code for f in kl.findings}
    text = gates(model, tokenized, metric="cross_entropy")
    assert np.isfinite(text.clean).all()


def test_prompts_too_long_for_the_model_are_not_run() -> None:
    tokenizer = bpe()
    tokenized = make_task("docstring", n=4, tokenizer=tokenizer).tokenize(tokenizer)
    report = gates(random_model(len(tokenizer), context=16), tokenized)
    assert report.clean.size == 0
    assert report.accuracy is None
    assert "context" in {f.code for f in report.failures}
    assert report.passing == []


def test_a_trained_model_passes_on_what_it_can_do() -> None:
    stories()
    from crosspatch.model import load

    model = load(SHARED / "models" / "stories-260k")
    task = load_public("story/pronoun_noun", tokenizer=model.tokenizer)
    report = gates(model, task.tokenize(model.tokenizer)).require()
    assert report.accuracy is not None
    assert report.accuracy > 0.9
    assert report.passing == list(range(len(task)))
    assert any("mostly flips the answer" in f.message for f in report.findings)


def test_report_lists_the_examples_that_are_left() -> None:
    pairs = (GOOD, Pair("The cat", "The cat", (" is",), (" are",)))
    tokenized = Task("t", pairs).tokenize(embedded())
    positions = align(tokenized)
    none = np.zeros(0)
    report = GateReport(tuple(static_gates(tokenized)), positions, "m", 2, none, none, none > 0, none > 0)
    assert report.passing == [0]
    assert len(tokenized.select(report.passing)) == 1
