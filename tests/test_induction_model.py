"""The shipped induction model: its text is what its card says, and so are its numbers."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import crosspatch as cp
from crosspatch.errors import TaskError
from crosspatch.shortformer import ShortformerForCausalLM, corpus, induction_path
from crosspatch.shortformer.evaluate import attention_by_offset, copied, head_table, induction_scores, measure
from crosspatch.shortformer.train import learning_rate, train
from crosspatch.tasks import Pair, Task

MIB = 2**20
TOKENIZER = corpus.build_tokenizer()


@pytest.fixture(scope="module")
def model() -> cp.Model:
    return cp.load("induction-2l")


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads((induction_path() / "card.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize("kind", corpus.SHARES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_rows_are_full_and_seeded(kind: corpus.Kind, seed: int) -> None:
    rows = corpus.rows(TOKENIZER, 3, seed, kind=kind)
    assert rows == corpus.rows(TOKENIZER, 3, seed, kind=kind)
    assert rows != corpus.rows(TOKENIZER, 3, seed + 1, kind=kind)
    assert all(len(row) == corpus.ROW and row.count(TOKENIZER.bos_token_id) == 1 for row in rows)
    assert all(row[0] == TOKENIZER.bos_token_id for row in rows)


def test_an_unknown_kind_of_rows_is_refused() -> None:
    with pytest.raises(TaskError, match="use one of text, repeat, chunks"):
        corpus.rows(TOKENIZER, 1, 0, kind="poem")  # type: ignore[arg-type]


def names(held_out: bool, n: int = 150) -> set[str]:
    rng = Random(5)
    words = " ".join(corpus.document(rng, held_out=held_out) for _ in range(n)).replace(".", " ").replace(",", " ")
    return {word for word in words.split() if "-" in word}


def test_held_out_text_has_no_name_of_the_training_text() -> None:
    seen, kept = names(False), names(True)
    assert len(seen) > 300 and len(kept) > 300
    assert not any(map(corpus.is_held_out, seen))
    assert all(map(corpus.is_held_out, kept))


def test_every_word_is_one_token_and_text_survives() -> None:
    text = corpus.document(Random(0))
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids[1:]) == text
    known = {*corpus.words_of(TOKENIZER), *TOKENIZER.convert_tokens_to_ids([".", ","]), TOKENIZER.bos_token_id}
    assert set(ids) <= known
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode(" Ka-ron-vi met")[1:]) == ["ĠKa", "-ron", "-vi", "Ġmet"]


def test_repeats_repeat() -> None:
    for row in corpus.repeated(TOKENIZER, 4, 0):
        assert len(row) == corpus.ROW and row[1:81] == row[81:]
    for row in corpus.rows(TOKENIZER, 8, 1, kind="repeat"):
        assert any(row[1 : corpus.ROW - period] == row[1 + period :] for period in range(10, 81))


def test_copied_finds_what_was_spelled_out_before_and_says_where_one_token_does_not_suffice() -> None:
    text = " Ka-ron-vi met Ti-ron-sa. Ka-ron-vi met Ti-ron. Ka-ba"
    row = TOKENIZER.encode(text)
    tokens = TOKENIZER.convert_ids_to_tokens(row)
    found = [(tokens[i], ambiguous) for i, ambiguous in copied(TOKENIZER, row)]
    assert found == [("-ron", False), ("-vi", True), ("-ron", False)]


def test_training_rows_are_those_of_the_card(card: dict) -> None:
    assert corpus.digest(TOKENIZER, card["training"]["seed"]) == card["training"]["rows_sha256"]


def test_a_run_writes_everything_and_the_seed_decides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosspatch.shortformer.evaluate.ROWS", 4)
    monkeypatch.setattr(corpus, "training_rows", partial(corpus.training_rows, pool=8))
    settings = {"steps": 2, "peak": 1e-3, "size": 2, "threads": 1, "device": "cpu", "every": 3}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, seed=seed, **settings)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in "abc"]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])
    written = json.loads((tmp_path / "a" / "card.json").read_text(encoding="utf-8"))
    assert written["training"]["tokens"] == 2 * 2 * 160
    assert f"| loss, text | {written['scores']['text_loss']:.3f} |" in (tmp_path / "a" / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}
    assert cp.load(tmp_path / "a").tokenizer.get_vocab() == TOKENIZER.get_vocab()


def test_the_learning_rate_warms_up_and_goes_to_zero() -> None:
    rates = [learning_rate(step, 50, 1e-3, warmup=10) for step in range(50)]
    assert rates.index(max(rates)) in (9, 10) and max(rates) == 1e-3
    assert rates[-1] < 1e-5


# ---------------------------------------------------------------------------------------------------- the weights


def test_it_loads_by_its_name_and_is_small(model: cp.Model, card: dict) -> None:
    assert type(model.hf) is ShortformerForCausalLM
    assert (model.shape.n_layers, model.shape.n_heads, model.shape.has_mlp) == (2, 8, False)
    assert model.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    files = {path.name: path.stat().st_size for path in induction_path().iterdir()}
    assert sum(files.values()) <= 6 * MIB and not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    stored = load_file(induction_path() / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16} and model.dtype == torch.float32
    assert sum(p.numel() for p in model.hf.parameters()) == card["parameters"]
    assert cp.check(model).passed


def test_its_numbers_are_those_of_the_card(model: cp.Model, card: dict) -> None:
    measured = asdict(measure(model, card["rows"], card["seed"]))
    assert measured == pytest.approx(card["scores"], abs=2e-3)
    readme = (induction_path() / "README.md").read_text(encoding="utf-8")
    assert f"| loss, text | {card['scores']['text_loss']:.3f} |" in readme
    assert f"| loss, random tokens, second time | {card['scores']['second_loss']:.3f} |" in readme


def test_its_heads_are_those_of_the_card(model: cp.Model, card: dict) -> None:
    table = head_table(model, card["rows"] // 2, card["seed"])
    for name, rows in card["heads"].items():
        assert torch.allclose(torch.tensor(table[name]), torch.tensor(rows), atol=5e-3), name


def test_it_shows_induction(model: cp.Model) -> None:
    """On rows that no number of the card was measured on."""
    scores = measure(model, 24, "fresh")
    assert scores.second_loss < scores.first_loss / 2
    assert scores.second_accuracy > 0.6 and scores.copied_accuracy > 0.8
    assert attention_by_offset(model, corpus.rows(TOKENIZER, 8, "fresh"))[:, 1].max() > 0.5
    assert induction_scores(model, corpus.repeated(TOKENIZER, 8, "fresh")).max() > 0.4


def test_scores_of_heads_on_patterns_that_are_known(model: cp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted patterns: one token back; and, at distance 79, the token after the first occurrence."""
    n = corpus.ROW - 1
    planted = {0: torch.eye(n).roll(-1, 1), 1: torch.eye(n).roll(-79, 1)}

    class Run:
        def value(self, site: cp.Site, example: int) -> torch.Tensor:
            return planted[site.layer].tril()

    monkeypatch.setattr("crosspatch.shortformer.evaluate.record", lambda *args, **kwargs: Run())
    rows = corpus.repeated(TOKENIZER, 2, 0)
    assert attention_by_offset(model, rows, 0).tolist() == [[0, 1, 0, 0, 0]] * 8
    assert induction_scores(model, rows, 1).tolist() == [1] * 8
    assert induction_scores(model, rows, 0).tolist() == [0] * 8


# --------------------------------------------------------------------------------- the main job without MLPs


def names_task(n: int = 24) -> Task:
    """A name of three syllables, told before: how does it go on? The corrupt prompt told another last syllable."""
    rng = Random("names")
    pairs = []
    for i in range(n):
        first, second, third, other = rng.choice(corpus.STARTS), *rng.sample(corpus.SYLLABLES, 3)
        frame = (
            " {} met Captain Zo-bal in Lake Ti-gur. Then {}-{}",
            " Captain Zo-bal asked {} about the red lantern. The red lantern was in Lake Ti-gur. {}-{}",
        )[i % 2]
        clean, corrupt = (frame.format(f"{first}-{second}-{last}", first, second) for last in (third, other))
        start = clean.index(f"-{third}")
        spans = {"syllable": (start, start + 1 + len(third))}
        corrupt_spans = {"syllable": (start, start + 1 + len(other))}
        pairs.append(Pair(clean, corrupt, f"-{third}", f"-{other}", spans, corrupt_spans, template=f"T{i % 2}"))
    return Task("names", pairs, varies="the last syllable, where it is told", holds="everything else")


def test_the_main_job_runs_on_a_model_without_mlps_and_finds_its_induction_heads(model: cp.Model) -> None:
    found = cp.localize(model, names_task(), held_out=0.0)
    assert not [row for row in found.frame()["address"] if row.startswith("m") or ".mid" in row]
    assert set(found.drill.levels) == {"residual", "block", "head", "qkv"}
    assert found.top(1, "block")["address"].tolist() == ["a1@END"]
    causal = {name for name in found.frame()["address"] if name.startswith("a1.h") and name.endswith("@END")}
    by_attention = induction_scores(model, corpus.repeated(TOKENIZER, 8, 0))
    looking = {f"a1.h{head}@END" for head in (by_attention > 0.5).nonzero().flatten().tolist()}
    strongest = found.top(14, "head")["address"]
    assert {name for name in strongest if name in causal} == looking
