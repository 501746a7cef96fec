"""Vectors: hashing keeps inner products, gradients are those of single samples, and a stopped run goes on exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from attribution_setups import family_setup
from families import FAMILIES, make
from feature_cases import random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspatch.attribution.setup import Setup
from crosspatch.discover import (
    KINDS,
    Samples,
    gradient_hashes,
    hash_of,
    hashed_gradients,
    load_vectors,
    sample_vectors,
    setup_of_samples,
)
from crosspatch.discover.gradients import linear_layers
from crosspatch.errors import ModelError, ResultError, TaskError
from crosspatch.features import bases_of, feature_effects
from crosspatch.metrics import LogProb
from crosspatch.model import load

PLACES = ("input", "a0", "m1", "r1.post")


def toy(family: str = "llama", dtype: torch.dtype = torch.float32):
    return load(make(family, dtype=dtype), name=family)


def some_samples(n: int = 9, seed: int = 0, longest: int = 8) -> Samples:
    draw = np.random.default_rng(seed)
    contexts = [tuple(draw.integers(1, 90, draw.integers(2, longest)).tolist()) for _ in range(n)]
    answers = draw.integers(1, 90, n)
    tokens = {i: f" {i}" for i in range(90)}
    return Samples(contexts, answers, draw.random(n), np.arange(n), None, tokens)


# ----------------------------------------------------------------------------------------------------------- hashing


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 16), st.integers(0, 5))
def test_every_entry_goes_to_its_bucket_with_its_sign(rows, columns, dims, seed) -> None:
    one = hash_of("x", rows, columns, dims, seed)
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randint(-9, 9, (1, rows, columns), generator=draw).float()
    into = torch.zeros(1, dims)
    one.add_matrices(into, matrix)
    wanted = np.zeros(dims)
    for i in range(rows):
        for j in range(columns):
            bucket = (int(one.shift[i]) + j) % dims
            wanted[bucket] += float(matrix[0, i, j]) * float(one.row_sign[i]) * float(one.column_sign[j])
    assert np.array_equal(into[0].numpy(), wanted)
    assert {abs(float(sign)) for sign in (*one.row_sign, *one.column_sign)} == {1.0}


def test_inner_products_are_kept_on_average_and_better_with_more_dimensions() -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(1, 12, 20, generator=draw)
    b = 0.5 * a + torch.randn(1, 12, 20, generator=draw)
    true = float((a * b).sum())
    size = float(a.norm() * b.norm())
    spread = {}
    for dims in (64, 1024):
        found = []
        for seed in range(400):
            one, into = hash_of("x", 12, 20, dims, seed), torch.zeros(2, dims)
            one.add_matrices(into, torch.cat([a, b]))
            found.append(float(into[0] @ into[1]))
        spread[dims] = np.std(found)
        assert abs(np.mean(found) - true) < 4 * spread[dims] / 20  # four standard errors of 400 draws
        assert spread[dims] < 2 * size / dims**0.5
    assert spread[1024] < spread[64] / 2


def test_a_hash_is_a_function_of_its_arguments() -> None:
    a, b, c = (hash_of("x", 5, 6, 100, seed) for seed in (3, 3, 4))
    assert torch.equal(a.bucket, b.bucket)
    assert torch.equal(a.column_sign, b.column_sign)
    assert not torch.equal(a.bucket, c.bucket)
    assert not torch.equal(a.bucket, hash_of("y", 5, 6, 100, 3).bucket)


def test_a_hash_needs_somewhere_to_go() -> None:
    with pytest.raises(TaskError):
        hash_of("x", 2, 2, 0)


# --------------------------------------------------------------------------------------------------------- gradients


def one_by_one(setup: Setup, dims: int) -> torch.Tensor:
    """The model's own backward pass for every sample, its gradients hashed in plain loops over rows."""
    model, hashes = setup.model, gradient_hashes(setup.model, dims)
    out = torch.zeros(len(setup), dims, dtype=torch.float64)
    for s, (ids, answer) in enumerate(zip(setup.clean, setup.targets.answers[:, 0].tolist(), strict=True)):
        model.hf.zero_grad()
        logits = model.hf(input_ids=torch.tensor([ids])).logits[0, setup.read[s][0]]
        (-logits.log_softmax(-1)[answer]).backward()
        for name, layer in linear_layers(model).items():
            g = layer.weight.grad if isinstance(layer, torch.nn.Linear) else layer.weight.grad.T
            if layer.bias is not None:
                g = torch.cat([g, layer.bias.grad[:, None]], 1)
            one = hashes[name]
            for i, row in enumerate(g):
                at = (int(one.shift[i]) + torch.arange(len(row))) % dims
                out[s].index_add_(0, at, (row * one.row_sign[i] * one.column_sign).double())
    return out


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2", "qwen3", "phi3", "opt"])
def test_hashed_gradients_are_those_of_single_samples(family) -> None:
    setup = family_setup(family, lengths=(5, 5, 5), metric=LogProb())
    found = hashed_gradients(setup, gradient_hashes(setup.model, 257))
    wanted = one_by_one(setup, 257)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_only_weights_inside_blocks_are_in_the_gradient() -> None:
    names = set(linear_layers(toy("gpt2")))
    assert all(".h." in name for name in names)
    assert len(names) == 4 * toy("gpt2").shape.n_layers


def test_weights_that_are_no_linear_layer_are_refused() -> None:
    model = toy("llama")
    model.anatomy.blocks[0].layer.extra = torch.nn.Embedding(3, 4)
    with pytest.raises(ModelError, match="no plain linear layer"):
        linear_layers(model)


# ----------------------------------------------------------------------------------------------------------- vectors


def made_of(model, kind: str):
    if kind == "gradients":
        return ()
    if kind in ("activations", "dense-effects"):
        return bases_of(model, neurons=PLACES)
    return bases_of(model, [random_dictionary(model, place, seed=i) for i, place in enumerate(PLACES)])


def test_activations_are_those_of_the_last_positions() -> None:
    model, samples = toy(), some_samples()
    bases = made_of(model, "activations")
    found = sample_vectors(model, samples, "activations", bases, positions=3).values
    d = model.shape.d_model
    for i, ids in enumerate(samples.contexts):
        setup = setup_of_samples(model, samples, [i])
        run = setup.record_clean([basis.key for basis in bases])
        at = 0
        for basis in bases:
            x = run.packed(basis.key).flatten(1)
            for back in range(1, 4):
                wanted = x[-back] if back <= len(ids) else torch.zeros(d)
                assert np.allclose(found[i, at : at + d], wanted, atol=1e-5)
                at += d


def test_summed_features_are_added_up_over_positions() -> None:
    model, samples = toy(), some_samples()
    bases = made_of(model, "features")
    found = sample_vectors(model, samples, "features", bases, positions=None).values
    run = setup_of_samples(model, samples, [4]).record_clean([basis.key for basis in bases])
    wanted = torch.cat([basis.features(run.packed(basis.key).flatten(1)).sum(0) for basis in bases])
    assert np.allclose(found[4], wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["effects", "dense-effects"])
def test_effects_are_those_of_the_features_room_in_its_order(kind) -> None:
    model, samples = toy(), some_samples(6)
    bases = made_of(model, kind)
    found = sample_vectors(model, samples, kind, bases, positions=None, method="ig", steps=3).values
    effects = feature_effects(setup_of_samples(model, samples), bases, "zero", method="ig", steps=3)
    wanted = np.concatenate([effects.mean[basis.place][0, : basis.width] for basis in bases])
    assert np.allclose(found.mean(0), wanted, atol=1e-6)
    assert np.abs(wanted).max() > 1e-3


def test_effects_at_positions_add_up_to_the_sum() -> None:
    model, samples = toy(), some_samples(longest=5)
    bases = made_of(model, "effects")
    apart = sample_vectors(model, samples, "effects", bases, positions=6).values
    summed = sample_vectors(model, samples, "effects", bases, positions=None).values
    at, start = [], 0
    for basis in bases:
        block = apart[:, start : start + 6 * basis.width].reshape(len(samples), 6, -1)
        at.append(block.sum(1))
        start += 6 * basis.width
    assert np.allclose(np.concatenate(at, 1), summed, atol=1e-5)


def test_wide_vectors_are_hashed_and_keep_their_angles() -> None:
    model, samples = toy(), some_samples(12)
    bases = made_of(model, "activations")
    exact = sample_vectors(model, samples, "activations", bases).values
    found = sample_vectors(model, samples, "activations", bases, dims=exact.shape[1] - 1)
    assert found.values.shape[1] == exact.shape[1] - 1
    assert found.about["hashed_to"] == exact.shape[1] - 1
    assert np.corrcoef((exact @ exact.T).ravel(), (found.values @ found.values.T).ravel())[0, 1] > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(kind, tmp_path) -> None:
    model, samples = toy(), some_samples(14)
    options = {"tokens_per_pass": 12, "dims": 64 if kind == "gradients" else 10**6}
    whole = sample_vectors(model, samples, kind, made_of(model, kind), folder=tmp_path / "whole", **options)

    def stop(done: float, total: float) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_vectors(model, samples, kind, made_of(model, kind), folder=tmp_path / "part", progress=stop, **options)
    with pytest.raises(ResultError, match="chunks"):
        load_vectors(tmp_path / "part")
    seen: list[float] = []
    resumed = sample_vectors(
        model, samples, kind, made_of(model, kind), folder=tmp_path / "part",
        progress=lambda done, total: seen.append(done / total), **options,
    )  # fmt: skip
    assert seen[0] > 0.5
    assert np.array_equal(resumed.values, whole.values)
    assert np.abs(whole.values).max() > 0
    again = load_vectors(tmp_path / "whole")
    assert np.array_equal(again.values, whole.values)
    assert again.about == whole.about


def test_vectors_of_something_else_are_refused(tmp_path) -> None:
    model, samples = toy(), some_samples()
    sample_vectors(model, samples, "activations", made_of(model, "activations"), folder=tmp_path)
    with pytest.raises(ResultError, match="samples"):
        sample_vectors(model, some_samples(seed=1), "activations", made_of(model, "activations"), folder=tmp_path)
    with pytest.raises(ResultError, match="kind"):
        sample_vectors(model, samples, "gradients", folder=tmp_path)
    about = json.loads((tmp_path / "vectors.json").read_text("utf-8"))
    (tmp_path / "vectors.json").write_text(json.dumps(about | {"shape": [1, 2]}), "utf-8")
    with pytest.raises(ResultError, match="shape"):
        load_vectors(tmp_path)


@pytest.mark.parametrize(
    ("kind", "made", "options"),
    [("thoughts", "activations", {}), ("effects", "activations", {}), ("activations", "features", {}),
     ("features", "gradients", {}), ("activations", "activations", {"positions": 0})],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(kind, made, options) -> None:
    model = toy()
    with pytest.raises(TaskError):
        sample_vectors(model, some_samples(), kind, made_of(model, made), **options)


def test_every_family_of_the_gradient_test_exists() -> None:
    assert {"gpt2", "llama", "gpt_neox", "gemma2", "olmo2", "qwen3", "phi3", "opt"} <= set(FAMILIES)
