"""Transcoders, crosscoders, cross-layer transcoders and dictionaries of z: true directions, gradients, resuming.

The variants of training have the same tests in `test_dictionaries_train`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_dictionaries_train import (
    SETTINGS,
    TRUE,
    VARIANTS,
    D,
    fvu,
    interrupted,
    job,
    planted,
    recall,
    same,
)
from test_dictionaries_train import coder as make_coder
from torch import Tensor, nn
from toys import random_network, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from crosspatch.dictionaries.dictionary import CrossLayer
from crosspatch.dictionaries.places import read_place
from crosspatch.dictionaries.train import Activations, Arrays, BatchTopK, Settings, Standard, TopK, train
from crosspatch.dictionaries.train.coder import Coder, Moment
from crosspatch.dictionaries.train.topk import auxiliary
from crosspatch.model import load, record


def unit(rows: int, d: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, d, generator=g), dim=1)


def codes(seed: int, offset: float) -> tuple[Tensor, Tensor, Tensor]:
    """True directions, activations, and how active each direction is, as a map of the activations has it."""
    true, x = planted(seed, offset=offset)
    return true, x, torch.relu((x - x.mean(0)) @ true.T - 0.8)


# -- true directions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "skip"), [("standard", False), ("topk", False), ("topk", True), ("jumprelu", True)])
def test_transcoders_find_what_is_written(name: str, skip: bool) -> None:
    """Directions that a map writes, beside a linear part where there is a skip connection; none is in the input."""
    _, x, code = codes(0, offset=0.5)
    out = unit(TRUE, 20, seed=5)
    linear = 0.2 * unit(20, D, seed=6)
    y = 4 * code @ out + 2 + (x @ linear.T if skip else 0)
    variant = replace(VARIANTS[name], **({"k": 4} if hasattr(VARIANTS[name], "k") else {}))
    made = job(variant, reads="m1.in", writes="m1", skip=skip, width=48)
    [found] = train(Arrays({"m1.in": x, "m1": y}), made, replace(SETTINGS, steps=600))
    assert recall(found.decoder, out) >= 0.9
    assert (found.skip is not None) == skip and found.input_bias is not None
    assert fvu(found, x, y) < 0.35


@pytest.mark.parametrize("name", ["standard", "topk"])
def test_crosscoders_find_every_feature_at_every_place(name: str) -> None:
    """Three places with directions of their own, in other units."""
    true, x = planted(0, offset=0.0)
    maps = [torch.linalg.qr(unit(D, D, seed))[0] for seed in (2, 3, 4)]
    values = {f"r{i}": scale * x @ a for i, (a, scale) in enumerate(zip(maps, (1.0, 20.0, 0.1), strict=True))}
    made = job(VARIANTS[name], reads=("r0", "r1", "r2"), width=48)
    [found] = train(Arrays(values), made, SETTINGS)
    for place, a in zip(values, maps, strict=True):
        assert recall(found.decoder_at(place), true @ a) >= 0.9
    assert fvu(found, torch.cat(list(values.values()), 1)) < 0.25


def test_cross_layer_transcoders_find_what_each_layer_adds() -> None:
    """Directions of layer 0 at both places and those of layer 1 at its own; none of layer 1 at place 0."""
    _, x, code = codes(0, offset=0.0)
    _, x2, code2 = codes(1, offset=0.5)
    first, again, second = unit(TRUE, 24, 5), unit(TRUE, 24, 6), unit(TRUE, 24, 7)
    values = {"r0.mid": x, "r1.mid": x2, "m0": code @ first, "m1": code @ again + code2 @ second + 3}
    made = job(Standard(l1=0.1), reads=("r0.mid", "r1.mid"), writes=("m0", "m1"), width=80, cross_layer=True)
    [whole] = train(Arrays(values), made, replace(SETTINGS, steps=600))
    below, above = CrossLayer.split(whole).layers
    assert recall(below.decoder_at("m0"), first) >= 0.9
    assert recall(below.decoder_at("m1"), again) >= 0.9
    assert recall(above.decoder_at("m1"), second) >= 0.9
    assert above.writes == ("m1",)


def test_dictionaries_of_z_find_directions_that_lie_across_heads() -> None:
    """One-token prompts, whose heads' outputs are the token's values: planted activations, through the model."""
    true, x = planted(0, n=3000)
    words = tokenizer([f"t{i}" for i in range(len(x))])
    config = LlamaConfig(
        vocab_size=len(x), hidden_size=D, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=D // 2, tie_word_embeddings=False, max_position_embeddings=8,
    )  # fmt: skip
    hf = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        hf.model.embed_tokens.weight.copy_(x)
        hf.model.layers[0].self_attn.v_proj.weight.copy_(torch.eye(D))
    hf.model.layers[0].input_layernorm = nn.Identity()
    z = read_place(record(load(hf, words), [[i] for i in range(len(x))]), ["a0.z"])
    [found] = train(Arrays({"a0.z": z}), job(TopK(k=2), reads="a0.z", width=48), SETTINGS)
    assert found.reads == found.writes == ("a0.z",)
    assert recall(found.decoder, true) >= 0.9
    in_head = true[:, : D // 2].norm(dim=1)
    assert (in_head > 0.2).all() and (in_head < 0.98).all()  # not one direction lies in one head


# -- gradients ---------------------------------------------------------------------------------------------------------


def kinds(kind: str) -> tuple[Coder, Tensor, Tensor]:
    """Parameters of a kind, input and target."""
    made, _ = make_coder(Standard())
    g = torch.Generator().manual_seed(4)
    x = torch.randn(7, 5, generator=g, dtype=torch.float64)
    if kind == "autoencoder":
        return made, x, x
    y = torch.randn(7, 6, generator=g, dtype=torch.float64)
    params = {name: value.detach() for name, value in made.params.items()}
    params["decoder"] = torch.nn.functional.normalize(torch.randn(8, 6, generator=g, dtype=torch.float64), dim=1)
    params["decoder_bias"] = torch.randn(6, generator=g, dtype=torch.float64)
    if kind == "skip":
        params["skip"] = torch.randn(6, 5, generator=g, dtype=torch.float64)
    if kind == "crosscoder":
        y = x = torch.randn(7, 6, generator=g, dtype=torch.float64)
        params["encoder"] = torch.randn(8, 6, generator=g, dtype=torch.float64)
    for value in params.values():
        value.requires_grad_()
    return Coder(params, 2 if kind in ("crosscoder", "cross_layer") else 1, tied=kind == "crosscoder"), x, y


def check_gradients(params: dict[str, Tensor], loss: Callable[[], Tensor]) -> None:
    for value in params.values():
        value.grad = None
    loss().backward()
    for name, value in params.items():
        assert value.grad is not None, name
        for index in range(value.numel()):
            flat, step = value.data.view(-1), 1e-6
            flat[index] += step
            up = loss().item()
            flat[index] -= 2 * step
            down = loss().item()
            flat[index] += step
            found = value.grad.view(-1)[index].item()
            assert (up - down) / (2 * step) == pytest.approx(found, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("kind", ["transcoder", "skip", "crosscoder", "cross_layer"])
@pytest.mark.parametrize("name", ["standard", "topk", "batch_topk", "matryoshka", "p_anneal"])
def test_gradients_of_every_kind_are_those_of_finite_differences(kind: str, name: str) -> None:
    made, x, y = kinds(kind)
    variant = VARIANTS[name]
    variant.prepare(made)
    at = Moment(500, 1000, 1.0, torch.zeros(8, dtype=torch.bool))
    variant.terms(made, x, y, at)  # p has fallen already: where it falls, the penalty is held at its value
    state = dict(made.state)

    def loss() -> Tensor:
        made.state = dict(state)
        return variant.terms(made, x, y, at).loss

    check_gradients(made.params, loss)


@pytest.mark.parametrize("kind", ["autoencoder", "skip"])
@pytest.mark.parametrize("name", ["topk", "batch_topk", "matryoshka"])
def test_gradients_of_auxk_are_those_of_finite_differences(kind: str, name: str) -> None:
    """The error that dead features reconstruct is held at its value; the loss is the plain one plus theirs."""
    made, x, y = kinds(kind)
    weight = 0.7
    variant = replace(VARIANTS[name], auxk=weight)  # type: ignore[call-arg]
    plain = replace(variant, auxk=0.0)  # type: ignore[call-arg]
    variant.prepare(made)
    at = Moment(500, 1000, 1.0, torch.tensor([True, False, False, True, False, False, True, False]))
    terms = variant.terms(made, x, y, at)
    error = (y - terms.reconstruction).detach()
    grads = torch.autograd.grad(terms.loss, list(made.params.values()))

    def loss() -> Tensor:
        return plain.terms(made, x, y, at).loss + weight * auxiliary(made, made.pre(x), error, 2, at)

    assert loss().item() == pytest.approx(terms.loss.item())
    assert auxiliary(made, made.pre(x), error, 2, at) > 0
    check_gradients(made.params, loss)
    for value, grad in zip(made.params.values(), grads, strict=True):
        torch.testing.assert_close(value.grad, grad)


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_every_kind_resumes_exactly(tmp_path: Path) -> None:
    """On a model, in one run: all share its passes and the buffer."""
    model, _ = random_network()
    g = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 200, (9,), generator=g).tolist() for _ in range(40)]

    def stream() -> Activations:
        return Activations(model, texts, buffer=200, tokens_per_pass=100)

    jobs = [
        job(TopK(k=3), reads="m1.in", writes="m1", width=48),
        job(VARIANTS["jumprelu"], reads="m1.in", writes="m1", skip=True, width=48),
        job(VARIANTS["gated"], reads=("r1", "r2"), width=48),
        job(BatchTopK(k=3), reads=("r0.mid", "r1.mid"), writes=("m0", "m1"), cross_layer=True, width=48),
        job(VARIANTS["p_anneal"], reads=("r0.mid", "r1.mid"), writes=("m0", "m1"), cross_layer=True, width=48),
        job(VARIANTS["matryoshka"], reads="a1.z", width=48),
    ]  # fmt: skip
    settings: Settings = replace(SETTINGS, steps=50, batch=32, dead_after=300, resample_every=10)
    whole = train(stream(), jobs, settings)
    for a, b in zip(whole, interrupted(stream, jobs, settings, tmp_path / "run.pt"), strict=True):
        same(a, b)
    for i in (3, 4):
        assert len(CrossLayer.split(whole[i]).layers) == 2  # replaced features stay within their layer
