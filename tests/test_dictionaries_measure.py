"""Measures and feature cards against numbers worked out in the plainest way."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_dictionaries import make
from torch import Tensor
from toys import random_network

from crosspatch.dictionaries.cards import feature_cards
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.measure import Measures, max_cosines, measure
from crosspatch.dictionaries.places import read_place
from crosspatch.errors import DictionaryError
from crosspatch.model import Model, record

G = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(0, 200, (int(n),), generator=G).tolist() for n in torch.randint(3, 9, (12,), generator=G)]


def random_dictionary(place: str, writes: str | None = None, width: int = 40, d: int = 32, seed: int = 0) -> Dictionary:
    g = torch.Generator().manual_seed(seed)
    decoder = torch.randn(width, d, generator=g) / d**0.5
    return Dictionary(
        decoder.clone(), -0.1 * torch.rand(width, generator=g), decoder, 0.1 * torch.randn(d, generator=g),
        0.2 * torch.rand(width, generator=g), place, writes or place, architecture="jumprelu",
    )  # fmt: skip


def identity(place: str, d: int) -> Dictionary:
    """Reconstructs exactly, with one feature for each sign of each dimension."""
    rows = torch.cat([torch.eye(d), -torch.eye(d)])
    return Dictionary(rows, torch.zeros(2 * d), rows, torch.zeros(d), torch.zeros(2 * d), place, place)


def tokens_of(model: Model, place: str, drop_first: int = 1) -> list[Tensor]:
    return [read_place(record(model, [prompt]), [place])[drop_first:] for prompt in PROMPTS]


def test_l0_fvu_and_density_by_hand() -> None:
    model, _ = random_network()
    dictionary = random_dictionary("r1")
    found = measure(model, dictionary, PROMPTS, ce=False, tokens_per_pass=20)
    x = torch.cat(tokens_of(model, "r1"))
    f = dictionary.encode(x)
    assert found.l0.value == pytest.approx(float((f > 0).sum(1).double().mean()))
    fvu = (x - dictionary.decode(f)).double().pow(2).sum() / (x - x.mean(0)).double().pow(2).sum()
    assert found.fvu.value == pytest.approx(float(fvu), rel=1e-5)
    np.testing.assert_allclose(found.density, (f > 0).double().mean(0).numpy())
    assert found.dead == pytest.approx(float((f == 0).all(0).double().mean()))
    counts, edges = found.density_histogram(bins=7)
    assert counts.sum() == (found.firing > 0).sum() and len(edges) == 8
    assert found.l0.low < found.l0.value < found.l0.high
    json.dumps(found.summary(), allow_nan=False)
    found.require(l0=found.l0.value * 1.04, fvu=found.fvu.value)
    with pytest.raises(DictionaryError, match="l0 is"):
        found.require(l0=found.l0.value * 1.1)
    with pytest.raises(DictionaryError, match="ce=True"):
        _ = found.loss_recovered


def test_fvu_is_1_for_the_mean_and_0_for_everything() -> None:
    model, _ = random_network()
    x = torch.cat(tokens_of(model, "r1"))
    exact = identity("r1", 32)
    assert measure(model, exact, PROMPTS, ce=False).fvu.value == pytest.approx(0, abs=1e-9)
    nothing = replace(exact, encoder_bias=torch.full((64,), -1e6), decoder_bias=x.mean(0))
    assert measure(model, nothing, PROMPTS, ce=False).fvu.value == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("place", ["r1", "a1.z", "m2", "input", "m0.act"])
def test_an_exact_dictionary_recovers_all_of_the_loss(place: str) -> None:
    model, _ = random_network()
    found = measure(model, identity(place, 48 if place == "m0.act" else 32), PROMPTS, tokens_per_pass=25)
    assert found.loss_recovered.value == pytest.approx(1, abs=1e-4)
    assert found.ce_increase.value == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize(("reads", "writes"), [("r1.mid", "r1.mid"), ("m1.in", "m1")])
def test_cross_entropy_by_hand(reads: str, writes: str, ablation: str) -> None:
    """Against a forward pass of the model with a hook."""
    model, _ = random_network()
    dictionary = random_dictionary(reads, writes)
    found = measure(model, dictionary, PROMPTS, ablation=ablation, tokens_per_pass=20)
    mean = torch.cat(tokens_of(model, writes)).mean(0)
    layer = model.hf.model.layers[1]
    module = layer.mlp if writes == "m1" else layer.self_attn

    def loss(prompt: list[int], new: Tensor | None) -> float:
        def hook(module: object, args: object, out: object) -> object:
            if new is None:
                return out
            if writes == "m1":
                return torch.cat([out[:, :1], new[None]], 1)  # type: ignore[index]
            resid = record(model, [prompt]).value("r1", 0)  # attention's output such that the stream becomes `new`
            return torch.cat([out[0][:, :1], (new - resid[1:])[None]], 1), *out[1:]  # type: ignore[index]

        handle = module.register_forward_hook(hook)
        try:
            logits = model.hf(torch.tensor([prompt])).logits[0]
        finally:
            handle.remove()
        return float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(prompt[1:]), reduction="sum"))

    with torch.no_grad():
        xs = tokens_of(model, reads)
        wanted = {
            "model": [loss(p, None) for p in PROMPTS],
            "dictionary": [loss(p, dictionary.reconstruct(x)) for p, x in zip(PROMPTS, xs, strict=True)],
            "ablated": [
                loss(p, (mean if ablation == "mean" else torch.zeros(32)).expand(len(p) - 1, -1)) for p in PROMPTS
            ],
        }
    for name, values in wanted.items():
        np.testing.assert_allclose(found.ce[name], values, rtol=1e-4, atol=1e-4)
    a, d, m = (sum(wanted[name]) for name in ("ablated", "dictionary", "model"))
    assert found.loss_recovered.value == pytest.approx((a - d) / (a - m), rel=1e-3)
    assert found.ablation == ablation


def test_chunks_do_not_matter() -> None:
    model, _ = random_network()
    dictionary = random_dictionary("r1")
    small, large = (measure(model, dictionary, PROMPTS, tokens_per_pass=n) for n in (1, 10_000))
    for name in ("tokens", "active", "squared_error", "deviation", "predictions"):
        np.testing.assert_allclose(getattr(small, name), getattr(large, name), rtol=1e-5)
    np.testing.assert_allclose(small.ce["dictionary"], large.ce["dictionary"], rtol=1e-5)


def test_decoder_cosines() -> None:
    rows = torch.tensor([[1.0, 0], [1, 1], [0, -3]])
    torch.testing.assert_close(max_cosines(rows), torch.tensor([0.5**0.5, 0.5**0.5, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(max_cosines(torch.randn(50, 4), block=7).shape, torch.Size([50]))


def test_one_prompt_has_no_interval() -> None:
    model, _ = random_network()
    found: Measures = measure(model, random_dictionary("r1"), PROMPTS[:1], ce=False)
    assert np.isnan(found.l0.low) and np.isfinite(found.l0.value)


def test_a_dictionary_of_another_model_is_refused() -> None:
    model, _ = random_network()
    with pytest.raises(DictionaryError, match="6 numbers per token, the model has 32"):
        measure(model, make("standard").to(dtype=torch.float32), PROMPTS)
    with pytest.raises(DictionaryError, match="no prompt has more than 1"):
        measure(model, random_dictionary("r1"), [[3]])
    with pytest.raises(DictionaryError, match="feature 40 does not exist"):
        feature_cards(model, random_dictionary("r1"), PROMPTS, [40])


def test_feature_cards() -> None:
    model, _ = random_network()
    dictionary = random_dictionary("r1")
    features = [3, 17, 5]
    cards = feature_cards(model, dictionary, PROMPTS, features, top=4, around=2, tokens=6, tokens_per_pass=20)
    per_prompt = [dictionary.encode(x)[:, features] for x in tokens_of(model, "r1")]
    values = torch.cat(per_prompt)
    for i, card in enumerate(cards):
        active = values[:, i][values[:, i] > 0]
        assert card.feature == features[i]
        assert card.density == pytest.approx(len(active) / len(values))
        assert card.mean == pytest.approx(float(active.mean()), rel=1e-5)
        assert card.maximum == pytest.approx(float(active.max()), rel=1e-5)
        assert sum(card.histogram[0]) == len(active)
        peaks = sorted((float(v[:, i].max()) for v in per_prompt if v[:, i].max() > 0), reverse=True)[:4]
        np.testing.assert_allclose([context.values[context.at] for context in card.top], peaks, rtol=1e-4)
        for context in card.top:
            prompt = PROMPTS[context.prompt]
            assert context.tokens[context.at] == f"t{prompt[context.position]}"
            assert len(context.tokens) == len(context.values) <= 5
        scores = dictionary.decoder[features[i]] * model.hf.model.norm.weight @ model.hf.lm_head.weight.T
        order = scores.argsort(descending=True)
        assert [token for token, _ in card.promoted] == [f"t{int(t)}" for t in order[:6]]
        assert [token for token, _ in card.suppressed] == [f"t{int(t)}" for t in order.flip(0)[:6]]
        json.dumps(card.plain(), allow_nan=False)


def test_a_feature_that_is_never_active_has_a_card() -> None:
    model, _ = random_network()
    silent = replace(random_dictionary("r1"), threshold=torch.full((40,), 1e6))
    [card] = feature_cards(model, silent, PROMPTS, [0])
    assert card.density == 0 and card.top == () and np.isnan(card.mean)
    assert card.plain()["mean"] is None
    json.dumps(card.plain(), allow_nan=False)


def test_words_keep_their_space() -> None:
    from pathlib import Path

    import crosspatch as cp

    folder = Path(__file__).parents[2] / "shared" / "models" / "stories-260k"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    model = cp.load(folder)
    ids = model.tokenizer("Lily wanted to go", add_special_tokens=False)["input_ids"]
    d = model.shape.d_model
    [card] = feature_cards(model, identity("r1", d), [ids, ids], [0], top=1, around=20, drop_first=0)
    assert "".join(card.top[0].tokens).strip() == "Lily wanted to go"


def test_from_text_to_a_saved_dictionary(tmp_path) -> None:
    """The shipped model: train, watch loss recovered, save, read, measure the same."""
    from itertools import islice

    import crosspatch as cp
    from crosspatch.dictionaries import load_dictionary, save_dictionary
    from crosspatch.dictionaries.train import Activations, Job, Report, Settings, TopK, contexts, train
    from crosspatch.embedded import corpus

    model = cp.load("embedded")
    texts = [text.replace(corpus.MARK, "") for text in islice(corpus.documents(0), 600)]
    prompts = contexts(model.tokenizer, texts, 24, bos=model.tokenizer.bos_token_id)
    fitted, held_out = prompts[:-20], prompts[-20:]
    recovered: list[float] = []

    def watch(report: Report) -> None:
        recovered.append(measure(model, report.dictionary(0), held_out).loss_recovered.value)

    settings = Settings(steps=120, batch=256, lr_warmup=10, dead_after=20_000)
    stream = Activations(model, fitted, buffer=4096)
    [found] = train(stream, Job(TopK(k=16), "r2", 256, lr=5e-3), settings, progress=watch, every=20)
    assert recovered[-1] > 0.8 and recovered[-1] > recovered[0]
    again = load_dictionary(save_dictionary(found, tmp_path / "r2"))
    assert again.reads == ("r2",) and again.meta["trained_as"]["k"] == 16
    measured = measure(model, again, held_out)
    assert measured.loss_recovered.value == pytest.approx(recovered[-1], abs=1e-3)
    assert measured.l0.value == pytest.approx(16, abs=0.5)
