"""Dictionaries: the one form, folding, places of a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import random_network

from crosspatch.dictionaries.dictionary import CrossLayer, Dictionary
from crosspatch.dictionaries.places import final_gain, place_width, read_place, to_residual, write_place
from crosspatch.errors import AddressError, DictionaryError
from crosspatch.model import Row, load, record, replay

KINDS = ("standard", "jumprelu", "topk", "groupmax", "transcoder", "skip", "constant_norm", "layer_norm")


def make(kind: str, seed: int = 0, d: int = 6, width: int = 12) -> Dictionary:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    other = kind in ("transcoder", "skip")
    return Dictionary(
        normal(width, d), normal(width), normal(width, d), normal(d),
        normal(width) if kind == "jumprelu" else torch.zeros(width, dtype=torch.float64),
        "m1.in" if other else "r1", "m1" if other else "r1",
        architecture=kind,
        input_bias=normal(d) if not other else None,
        skip=normal(d, d) if kind == "skip" else None,
        selection=kind if kind in ("topk", "groupmax") else "all",
        k=3 if kind in ("topk", "groupmax") else None,
        normalise=kind if kind.endswith("_norm") else "none",
    )  # fmt: skip


def inputs(seed: int = 1, n: int = 40, d: int = 6) -> Tensor:
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_decomposition_is_exact(kind: str) -> None:
    dictionary, x = make(kind), inputs()
    y = x if dictionary.autoencoder else inputs(2)
    f = dictionary.encode(x)
    parts = f[..., None] * dictionary.decoder
    whole = parts.sum(1) + dictionary.baseline(x) + dictionary.error(x, y)
    torch.testing.assert_close(whole, y, rtol=0, atol=1e-12)
    assert (f >= 0).all() and (f > 0).any()


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_folding_keeps_the_function_and_records_the_scale(kind: str, seed: int) -> None:
    dictionary, x = make(kind, seed), inputs(seed + 1)
    folded = dictionary.fold()
    torch.testing.assert_close(folded.decoder.norm(dim=1), torch.ones(12, dtype=torch.float64))
    assert folded.scale is not None
    torch.testing.assert_close(folded.encode(x), dictionary.encode(x) * folded.scale)
    torch.testing.assert_close(folded.reconstruct(x), dictionary.reconstruct(x))
    torch.testing.assert_close(folded.fold().scale, folded.scale)
    back = folded.unfold()
    for name in ("encoder", "decoder", "threshold", "encoder_bias"):
        torch.testing.assert_close(getattr(back, name), getattr(dictionary, name))


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "transcoder", "skip"])
def test_rescaling_is_a_change_of_units(kind: str) -> None:
    dictionary, x = make(kind), inputs()
    by_in, by_out = torch.linspace(1, 2, 6).double(), torch.linspace(3, 1, 6).double()
    if kind in ("standard", "jumprelu", "topk"):
        by_in = by_out = torch.full((6,), 2.5, dtype=torch.float64)
    raw = dictionary.rescaled(by_in, by_out)
    torch.testing.assert_close(raw.encode(x / by_in), dictionary.encode(x))
    torch.testing.assert_close(raw.reconstruct(x / by_in) * by_out, dictionary.reconstruct(x))


def test_selection_is_what_it_says() -> None:
    x = inputs()
    pre = make("topk").pre_activations(x)
    kept = make("topk").encode(x)
    for row, out in zip(pre, kept, strict=True):
        best = {int(i) for i in row.argsort(descending=True)[:3] if row[i] > 0}
        assert {int(i) for i in out.nonzero()[:, 0]} == best
    kept = make("groupmax").encode(x)
    assert ((kept.unflatten(1, (3, 4)) > 0).sum(2) <= 1).all()
    torch.testing.assert_close(kept.unflatten(1, (3, 4)).sum(2), pre.unflatten(1, (3, 4)).max(2).values.clamp(min=0))


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "skip", "constant_norm", "layer_norm"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    dictionary = make(kind)
    x = inputs(n=4).requires_grad_()  # no pre-activation lies within a step of its threshold
    assert torch.autograd.gradcheck(dictionary.reconstruct, (x,), eps=1e-7, atol=1e-5)


def test_a_crosscoder_is_a_dictionary_of_several_places() -> None:
    base = make("standard", d=6)
    crosscoder = replace(base, reads=("r1", "r2"), writes=("r1", "r2"), architecture="crosscoder")
    assert torch.equal(crosscoder.decoder_at("r2"), base.decoder[:, 3:])
    with pytest.raises(DictionaryError, match="does not write at r3"):
        crosscoder.decoder_at("r3")


def test_cross_layer_sums_what_layers_write() -> None:
    g = torch.Generator().manual_seed(0)
    layers = []
    for i in range(3):
        bias = torch.zeros(3 - i, 4)
        bias[0] = torch.randn(4, generator=g)
        layers.append(
            Dictionary(
                torch.randn(5, 4, generator=g), torch.randn(5, generator=g), torch.randn(5, 4 * (3 - i), generator=g),
                bias.flatten(), torch.zeros(5), f"r{i}.mid", tuple(f"m{j}" for j in range(i, 3)),
            )
        )  # fmt: skip
    coder = CrossLayer(tuple(layers))
    xs = [torch.randn(7, 4, generator=g) for _ in range(3)]
    fs = coder.encode(xs)
    out = coder.decode(fs)
    for j in range(3):
        wanted = sum(fs[i] @ layers[i].decoder_at(f"m{j}") for i in range(j + 1)) + layers[j].decoder_bias[:4]
        torch.testing.assert_close(out[f"m{j}"], wanted)
    with pytest.raises(DictionaryError, match="expected m1 m2"):
        CrossLayer((layers[0], layers[2]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder_bias": torch.zeros(3)}, r"encoder_bias: has shape \[3\], expected \[12\]"),
        ({"selection": "best"}, "'best' is unknown"),
        ({"selection": "topk"}, "k is None"),
        ({"k": 3}, "k is 3 with selection 'all'"),
        ({"selection": "groupmax", "k": 5}, "do not divide into 5 groups"),
        ({"normalise": "layer_norm", "skip": torch.zeros(6, 6)}, "only an autoencoder"),
        ({"reads": ("r1", "r2", "r3", "r4")}, "do not divide"),
        ({"reads": "a1.h0"}, "no dictionary reads or writes a1.h0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, said: str) -> None:
    with pytest.raises(DictionaryError, match=said):
        replace(make("standard"), **change)


def test_unknown_places_and_missing_inputs_are_refused() -> None:
    with pytest.raises(AddressError):
        replace(make("standard"), reads="blocks.1.hook_resid_pre")
    with pytest.raises(DictionaryError, match="pass x as well"):
        make("skip").decode(torch.zeros(1, 12))
    with pytest.raises(DictionaryError, match="pass y"):
        make("transcoder").error(inputs())


PLACES = ("input", "r1", "r1.mid", "r2.post", "a1", "m2", "m0.act", "a1.z", "m1.in", "m1.norm")


def test_places_of_a_model() -> None:
    model, _ = random_network()
    with torch.no_grad():
        for layer in model.hf.model.layers:  # gains that are not 1, or `m1.norm` would be `m1.in`
            layer.post_attention_layernorm.weight.copy_(torch.linspace(0.5, 2, 32))
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6]]
    run = record(model, prompts)
    for place in PLACES:
        assert read_place(run, [place]).shape == (8, place_width(model, place))
    mid = read_place(run, ["r1.mid"])
    norm = model.hf.model.layers[1].post_attention_layernorm
    torch.testing.assert_close(read_place(run, ["m1.in"]), norm(mid))
    rms = mid / (mid.pow(2).mean(1, keepdim=True) + norm.variance_epsilon).sqrt()
    torch.testing.assert_close(read_place(run, ["m1.norm"]), rms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        read_place(run, ["a1.z", "r1"]), torch.cat([read_place(run, ["a1.z"]), run.packed((1, "resid_pre"))], 1)
    )
    assert place_width(model, "a1.z") == 4 * 8
    with pytest.raises(AddressError):
        read_place(run, ["a3.z"])


@pytest.mark.parametrize("place", ["input", "r1", "r1.mid", "r2.post", "a1", "m2", "m0.act", "a1.z"])
def test_what_is_written_arrives(place: str) -> None:
    model, _ = random_network()
    prompts = [[3, 1, 4, 1, 5]]
    read = [range(5)]
    run = record(model, prompts, read=read)
    here = read_place(run, [place])
    logits = []
    same = Row(0, write_place(model, place, range(5), here))
    other = Row(0, write_place(model, place, range(1, 5), here[1:] + 1))
    replay(run, [same, other], lambda r: logits.extend(r.logits))
    unchanged, edited = torch.stack(logits).split(5)
    torch.testing.assert_close(unchanged, run.logits(), rtol=1e-4, atol=1e-5)
    changed = record(model, prompts, read=read, edits=[write_place(model, place, range(1, 5), here[1:] + 1)])
    torch.testing.assert_close(edited, changed.logits(), rtol=1e-4, atol=1e-5)
    assert (edited - unchanged)[-1].abs().max() > 1e-3
    torch.testing.assert_close(read_place(changed, [place])[1:], here[1:] + 1)


def test_inputs_of_an_mlp_are_read_only() -> None:
    model, _ = random_network()
    with pytest.raises(DictionaryError, match="read only"):
        write_place(model, "m1.in", [0], torch.zeros(1, 32))
    with pytest.raises(DictionaryError, match="read only"):
        to_residual(model, "m1.norm", torch.zeros(1, 32))


def test_directions_reach_the_residual_stream() -> None:
    model, _ = random_network()
    layer = model.hf.model.layers[1]
    z, act = torch.randn(3, 32), torch.randn(3, 48)
    torch.testing.assert_close(to_residual(model, "a1.z", z), z @ layer.self_attn.o_proj.weight.T)
    torch.testing.assert_close(to_residual(model, "m1.act", act), act @ layer.mlp.down_proj.weight.T)
    assert torch.equal(to_residual(model, "m1", z), z)


def test_the_gain_of_the_final_norm() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model, _ = random_network()
    with torch.no_grad():
        model.hf.model.norm.weight.copy_(torch.linspace(-1, 2, 32))
    torch.testing.assert_close(final_gain(model), torch.linspace(-1, 2, 32), rtol=1e-5, atol=1e-6)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2)).eval()
    with torch.no_grad():
        gpt2.transformer.ln_f.weight.copy_(torch.linspace(-1, 2, 8))
        gpt2.transformer.ln_f.bias.fill_(3)
    torch.testing.assert_close(final_gain(load(gpt2)), torch.linspace(-1, 2, 8), rtol=1e-5, atol=1e-6)


def test_every_public_name_is_there() -> None:
    import crosspatch.dictionaries as room

    for name in room.__all__:
        assert getattr(room, name) is not None
    assert room.train is not room.measure and callable(room.train) and callable(room.measure)
