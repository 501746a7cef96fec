"""The embedded model: what its card says of it is true, and its text is what the card says it is."""

import json
import random
import re
from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.stats import binom, binomtest, chi2_contingency
from transformers import AutoModelForCausalLM, AutoTokenizer

from crosspatch.embedded import card, corpus, embedded_path
from crosspatch.embedded import train as trainer
from crosspatch.embedded.evaluate import prompts, score, wilson
from crosspatch.embedded.tokenizer import build_tokenizer
from crosspatch.tasks import words

MIB = 2**20


@pytest.fixture(scope="module")
def shipped():
    folder = embedded_path()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder), json.loads((folder / "card.json").read_text())


@pytest.fixture(scope="module")
def documents():
    return list(islice(corpus.documents(0), 20_000))


# ------------------------------------------------------------------------------------------------- shipped weights


@pytest.mark.parametrize("behaviour", corpus.BEHAVIOURS)
def test_shipped_accuracy_is_the_cards(shipped, behaviour):
    """On fresh held-out prompts the number of right answers is a likely one for the interval that the card gives."""
    model, tokenizer, stated = shipped
    stated = stated["held_out"][behaviour]
    fresh = prompts(behaviour, 40, tokenizer, seed=7)
    assert len(fresh) >= 20
    right = round(score(model, tokenizer, behaviour, fresh).accuracy * len(fresh))
    assert binom.cdf(right, len(fresh), stated["low"]) > 1e-3, "worse than the card says"
    assert binom.sf(right - 1, len(fresh), stated["high"]) > 1e-3, "better than the card says"


def test_shipped_folder_is_small_and_has_no_pickle(shipped):
    files = {path.name: path.stat().st_size for path in embedded_path().iterdir()}
    assert sum(files.values()) <= 6 * MIB
    assert set(files) == {
        "README.md", "card.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    model, _, stated = shipped
    assert model.num_parameters() == stated["parameters"]
    assert 1e6 <= model.num_parameters() <= 3e6


def test_shipped_weights_load_in_float32_without_loss(shipped):
    model, _, _ = shipped
    stored = load_file(embedded_path() / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert model.dtype == torch.float32
    assert all(torch.equal(model.state_dict()[name], tensor.float()) for name, tensor in stored.items())


def test_card_states_every_behaviour_in_both_files(shipped):
    _, _, stated = shipped
    assert set(stated["held_out"]) == set(corpus.BEHAVIOURS)
    readme = (embedded_path() / "README.md").read_text()
    for behaviour, numbers in stated["held_out"].items():
        assert f"| {behaviour} | {numbers['n']} | {numbers['accuracy']:.3f} |" in readme
    assert stated["training"]["wall_s"] < 3600
    assert stated["training"]["threads"] <= 2


def test_shipped_weights_belong_to_this_generator_and_tokenizer(shipped):
    _, tokenizer, stated = shipped
    seed = stated["training"]["seed"]
    assert corpus.digest(seed) == stated["training"]["corpus_sha256"], "the generator changed: train again"
    assert build_tokenizer(seed).get_vocab() == tokenizer.get_vocab()


# --------------------------------------------------------------------------------------------------------- tokenizer


def test_every_listed_word_is_one_token(shipped):
    _, tokenizer, _ = shipped
    split = [word for word in corpus.LISTED_WORDS if len(tokenizer.encode(f" {word}", add_special_tokens=False)) != 1]
    assert split == []


def test_years_are_two_tokens_and_bos_comes_first(shipped):
    _, tokenizer, _ = shipped
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("The year 1732")) == [
        "<|bos|>", "The", "Ġyear", "Ġ17", "32",
    ]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(shipped, text):
    _, tokenizer, _ = shipped
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


# ------------------------------------------------------------------------------------------------------------ corpus


def test_corpus_is_a_function_of_its_seed(documents):
    assert list(islice(corpus.documents(0), 500)) == documents[:500]
    assert list(islice(corpus.documents(1), 500)) != documents[:500]


@pytest.mark.parametrize("behaviour", corpus.BEHAVIOURS)
def test_no_held_out_prompt_is_in_the_training_text(documents, shipped, behaviour):
    _, tokenizer, _ = shipped
    texts = [document.replace(corpus.MARK, "") for document in documents]
    joined = "\n\n".join(texts)
    for example in prompts(behaviour, 40, tokenizer, seed=3):
        if behaviour in ("fact", "counting"):  # held out as the start of a document only, as the card says
            assert not any(text.startswith(example.prompt) for text in texts)
        else:
            assert not any(example.prompt + answer in joined for answer in example.answers + example.wrong)


@pytest.mark.parametrize(
    ("behaviour", "pattern", "at_least"),
    [
        ("ioi", rf"[^{corpus.MARK}]* to(?={corpus.MARK} [A-Z]\w+)", 1000),
        ("greater-than", r"The \w+ lasted from the year \d{4}", 500),
        ("agreement-nounpp", rf"The \w+ (?:{'|'.join(words.PREPOSITIONS)}) the \w+(?={corpus.MARK})", 200),
        ("agreement-rc", rf"The \w+ that the \w+ \w+(?={corpus.MARK} \w+)", 200),
        ("agreement-simple", rf"The \w+(?={corpus.MARK})", 40),
    ],
)
def test_training_text_has_the_behaviour_with_other_content(documents, behaviour, pattern, at_least):
    """Many content combinations are in the training text, and none of those that are kept for evaluation."""
    found = [match[0] for document in documents for match in [re.match(pattern, document)] if match]
    # Several pairs of names: an indirect object after another sentence. Its own pair cannot be told from the text.
    seen = [prompt for prompt in found if len(corpus.reservation_keys(behaviour, prompt)) == 1]
    assert len({corpus.reservation_keys(behaviour, prompt)[0] for prompt in seen}) >= at_least
    assert not any(corpus.reserved(behaviour, prompt) for prompt in seen)


def test_reservation_looks_at_content_not_at_wording():
    one = "When Mary and John went to the store, John gave a drink to"
    other = "Friends John and Mary found a ring at the park. Mary gave it to"
    assert corpus.reservation_keys("ioi", one) == corpus.reservation_keys("ioi", other) == ["John+Mary"]
    assert corpus.reservation_keys("agreement-rc", "The pilots that the boy likes") == ["pilot+boy"]
    assert corpus.reservation_keys("greater-than", "The war lasted from the year 1732 to the year 17") == ["war+1732"]


@given(seed=st.integers(0, 10**6), behaviour=st.sampled_from(sorted(corpus.BEHAVIOURS)))
def test_examples_are_well_formed(seed, behaviour):
    example = corpus.BEHAVIOURS[behaviour](random.Random(seed))
    assert corpus.MARK not in example.prompt
    assert example.text.replace(corpus.MARK, "").startswith(example.prompt)
    assert example.answers
    assert not set(example.answers) & set(example.wrong)


def test_indirect_object_is_first_and_second_equally_often():
    rng = random.Random(0)
    first = Counter()
    for _ in range(2000):
        example = corpus.ioi(rng)
        if example.prompt.count(example.wrong[0].strip()) == 2:
            first[example.prompt.find(example.answers[0].strip()) < example.prompt.find(example.wrong[0].strip())] += 1
    assert binomtest(first[True], first.total()).pvalue > 1e-3


def test_profession_and_gender_are_independent_in_biographies():
    rng = random.Random(0)
    table = Counter()
    for _ in range(4000):
        example = corpus.biography(rng)
        table[corpus.GENDER[example.prompt.split()[0]], example.answers[0]] += 1
    counts = [[table[gender, f" {job}"] for job in words.PROFESSIONS] for gender in words.PRONOUNS]
    assert min(map(min, counts)) > 150
    assert chi2_contingency(counts).pvalue > 1e-3


# ---------------------------------------------------------------------------------------------------------- training


def test_marked_text_has_the_tokens_of_the_plain_text(documents, shipped):
    _, tokenizer, _ = shipped
    sample = documents[:2000]
    plain = tokenizer([document.replace(corpus.MARK, "") for document in sample])["input_ids"]
    for (ids, weight), whole, document in zip(trainer.encode(tokenizer, sample), plain, sample, strict=True):
        assert ids == [*whole, tokenizer.bos_token_id]
        assert len(weight) == len(ids)
        marks = document.count(corpus.MARK)
        plain_tokens = len(ids) - 1 - marks
        assert sum(weight) == pytest.approx(bool(marks) + plain_tokens * trainer.PLAIN_WEIGHT)


def test_batches_shift_targets_and_ignore_padding(shipped):
    _, tokenizer, _ = shipped
    for inputs, targets, weight in islice(trainer.batches(tokenizer, seed=0, tokens=512, pool=256), 20):
        assert inputs.shape == targets.shape == weight.shape
        assert inputs.numel() <= 512
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert (inputs[:, 0] == tokenizer.bos_token_id).all()
        lengths = (weight > 0).sum(1)
        assert (weight.gt(0) == (torch.arange(weight.shape[1]) < lengths[:, None])).all()


def test_training_is_reproducible_and_ships_a_complete_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "PROMPTS", 2)
    monkeypatch.setattr("crosspatch.embedded.tokenizer._SAMPLE", 2000)
    monkeypatch.setattr(corpus, "BEHAVIOURS", {"ioi": corpus.ioi, "fact": corpus.fact})
    options = {"steps": 3, "seed": 5, "peak": 1e-3, "tokens": 256, "threads": 1, "device": "cpu", "every": 3}
    for name in ("one", "two"):
        trainer.train(tmp_path / name, **options)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in embedded_path().iterdir()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    stated = json.loads((tmp_path / "one" / "card.json").read_text())
    assert stated["training"]["steps"] == 3
    assert stated["training"]["tokens"] > 300


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [trainer.learning_rate(step, 100, 1.0, 10) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0)


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_interval(n, share):
    successes = round(share * n)
    expected = binomtest(successes, n).proportion_ci(0.95, "wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
