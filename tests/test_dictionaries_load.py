"""Readers: files written by hand in each original layout reconstruct what that layout's own formula says."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, relu

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.load import FORMATS, load_cross_layer, load_dictionary
from crosspatch.dictionaries.load.hooks import hook_of, place_of
from crosspatch.errors import DictionaryError

D, F = 6, 10
X = 2 * torch.randn(50, D, generator=torch.Generator().manual_seed(7)) + 0.3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def tensors(folder: Path, name: str, values: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        safetensors.torch.save_file({key: value.contiguous() for key, value in values.items()}, path)
    elif name.endswith(".npz"):
        np.savez(path, **{key: value.numpy() for key, value in values.items()})
    else:
        torch.save(values, path)


def config(folder: Path, name: str, data: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(data))


def topk(pre: Tensor, k: int) -> Tensor:
    best = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, best.indices, best.values)


W_ENC, B_ENC, W_DEC, B_DEC = normal(D, F, seed=1), normal(F, seed=2), normal(F, D, seed=3), normal(D, seed=4)
THETA = normal(F, seed=5).abs()


# -- SAELens -----------------------------------------------------------------------------------------------------------


def sae_lens(folder: Path, extra: dict[str, Tensor] | None = None, **cfg: Any) -> Path:
    weights = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC} | (extra or {})
    if cfg.get("architecture") == "gated":
        del weights["b_enc"]
    tensors(folder, "sae_weights.safetensors", weights)
    plain = {
        "architecture": "standard", "d_in": D, "d_sae": F, "dtype": "float32", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "metadata": {"hook_name": "blocks.3.hook_resid_pre", "model_name": "toy"},
    }  # fmt: skip
    config(folder, "cfg.json", plain | cfg)
    return folder


def check(path: Path, features: Tensor, reconstruction: Tensor, **given: Any) -> None:
    found = load_dictionary(path, **given)
    torch.testing.assert_close(found.encode(X), features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.reconstruct(X), reconstruction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.fold().reconstruct(X), reconstruction, rtol=1e-4, atol=1e-5)


def test_sae_lens_standard(tmp_path: Path) -> None:
    f = relu((X - B_DEC) @ W_ENC + B_ENC)
    check(sae_lens(tmp_path), f, f @ W_DEC + B_DEC)
    found = load_dictionary(tmp_path)
    assert (found.reads, found.meta["format"], found.meta["model_name"]) == (("r3",), "sae_lens", "toy")


def test_sae_lens_of_version_3(tmp_path: Path) -> None:
    """Everything at the top level, TopK by the name of the activation function."""
    sae_lens(
        tmp_path, architecture="standard", metadata={}, hook_name="blocks.3.hook_mlp_out", activation_fn_str="topk",
        activation_fn_kwargs={"k": 3},
    )  # fmt: skip
    f = relu(topk((X - B_DEC) @ W_ENC + B_ENC, 3))
    check(tmp_path, f, f @ W_DEC + B_DEC)
    assert load_dictionary(tmp_path).reads == ("m3",)


def test_sae_lens_jumprelu(tmp_path: Path) -> None:
    pre = X @ W_ENC + B_ENC
    f = relu(pre) * (pre > THETA)
    sae_lens(tmp_path, {"threshold": THETA}, architecture="jumprelu", apply_b_dec_to_input=False)
    check(tmp_path, f, f @ W_DEC + B_DEC)


def test_sae_lens_gated(tmp_path: Path) -> None:
    gate, size, r = normal(F, seed=6), normal(F, seed=7), normal(F, seed=8)
    sae_lens(tmp_path, {"b_gate": gate, "b_mag": size, "r_mag": r}, architecture="gated")
    product = (X - B_DEC) @ W_ENC
    f = (product + gate > 0) * relu(product * r.exp() + size)
    check(tmp_path, f, f @ W_DEC + B_DEC)


@pytest.mark.parametrize("rescale", [False, True])
def test_sae_lens_topk(tmp_path: Path, rescale: bool) -> None:
    sae_lens(tmp_path, architecture="topk", k=3, rescale_acts_by_decoder_norm=rescale)
    norms = W_DEC.norm(dim=1) if rescale else torch.ones(F)
    f = relu(topk(((X - B_DEC) @ W_ENC + B_ENC) * norms, 3)) / norms
    check(tmp_path, f, f @ W_DEC + B_DEC)


@pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale", "expected_average_only_in"])
def test_sae_lens_normalisation(tmp_path: Path, mode: str) -> None:
    sae_lens(tmp_path, normalize_activations=mode, reshape_activations="none")
    mean, spread, guard, given = torch.zeros(50, 1), X.norm(dim=1, keepdim=True) / D**0.5, 0.0, {}
    if mode == "layer_norm":
        mean, spread, guard = X.mean(1, keepdim=True), X.std(1, keepdim=True), 1e-5
    if mode == "expected_average_only_in":
        with pytest.raises(DictionaryError, match="input_scale"):
            load_dictionary(tmp_path)
        spread, given = torch.full((50, 1), 1 / 3), {"input_scale": 3.0}
    f = relu(((X - mean) / (spread + guard) - B_DEC) @ W_ENC + B_ENC)
    wanted = (f @ W_DEC + B_DEC) * spread + mean
    units = 1 if mode == "expected_average_only_in" else spread  # features in the units of the activations
    check(tmp_path, f * units, wanted, **given)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("jump", [False, True])
def test_sae_lens_transcoders(tmp_path: Path, skip: bool, jump: bool) -> None:
    d_out = 5
    w_dec, b_dec, w_skip = normal(F, d_out), normal(d_out), normal(d_out, D)
    extra = {"W_dec": w_dec, "b_dec": b_dec}
    extra |= {"W_skip": w_skip} if skip else {}
    extra |= {"threshold": THETA} if jump else {}
    names = {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    sae_lens(
        tmp_path, extra, d_out=d_out, apply_b_dec_to_input=False, metadata=names,
        architecture=f"{'jumprelu_' if jump else ''}{'skip_' if skip else ''}transcoder",
    )  # fmt: skip
    pre = X @ W_ENC + B_ENC
    f = relu(pre) * (pre > THETA) if jump else relu(pre)
    check(tmp_path, f, f @ w_dec + b_dec + (X @ w_skip.T if skip else 0))
    found = load_dictionary(tmp_path)
    assert (found.reads, found.writes) == (("m3.in",), ("m3",))


# -- the others --------------------------------------------------------------------------------------------------------


def test_gemma_scope(tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    tensors(folder, "params.npz", {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, "threshold": THETA})
    pre = X @ W_ENC + B_ENC
    f = relu(pre) * (pre > THETA)
    check(folder, f, f @ W_DEC + B_DEC)
    assert load_dictionary(folder).reads == ("r20.post",)
    for name, reads, writes in (
        ("gemma-scope-2b-pt-att", "a7.z", "a7.z"),
        ("gemma-scope-2b-pt-mlp", "m7", "m7"),
        ("gemma-scope-2b-pt-transcoders", "m7.norm", "m7"),
    ):
        moved = folder.parent.parent.parent.parent / name / "layer_7"
        moved.parent.mkdir()
        moved.symlink_to(folder)
        found = load_dictionary(moved)
        assert (found.reads, found.writes) == ((reads,), (writes,))
    (tmp_path / "elsewhere").symlink_to(folder)
    with pytest.raises(DictionaryError, match="pass reads="):
        load_dictionary(tmp_path / "elsewhere")
    assert load_dictionary(tmp_path / "elsewhere", reads="r5").writes == ("r5",)


def test_gemma_scope_of_the_embedding_is_in_the_units_of_the_first_block(tmp_path: Path) -> None:
    folder = tmp_path / "embedding" / "width_4k"
    tensors(folder, "params.npz", {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, "threshold": THETA})
    pre = X / D**0.5 @ W_ENC + B_ENC
    f = relu(pre) * (pre > THETA)
    check(folder, f, (f @ W_DEC + B_DEC) * D**0.5)


def test_gemma_scope_2(tmp_path: Path) -> None:
    skip = normal(D, D, seed=9)
    values = {"w_enc": W_ENC, "b_enc": B_ENC, "w_dec": W_DEC, "b_dec": B_DEC, "threshold": THETA}
    tensors(tmp_path, "params.safetensors", values | {"affine_skip_connection": skip})
    pre = X @ W_ENC + B_ENC
    f = relu(pre) * (pre > THETA)
    check(tmp_path, f, f @ W_DEC + B_DEC + X @ skip, reads="m2.in", writes="m2")


def llama_scope(folder: Path, **cfg: Any) -> Path:
    values = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T, "decoder.bias": B_DEC}
    tensors(folder, "checkpoints/final.safetensors", values)
    plain = {
        "d_model": D, "d_sae": F, "hook_point_in": "blocks.8.hook_resid_post", "act_fn": "jumprelu", "top_k": 50,
        "hook_point_out": "blocks.8.hook_resid_post", "jump_relu_threshold": 0.7, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 6.0, "out": 3.0}, "apply_decoder_bias_to_pre_encoder": False,
    }  # fmt: skip
    config(folder, "hyperparams.json", plain | cfg)
    return folder


@pytest.mark.parametrize("include", [True, False])
def test_llama_scope(tmp_path: Path, include: bool) -> None:
    into, out = D**0.5 / 6, D**0.5 / 3
    pre = X * into @ W_ENC + B_ENC
    f = relu(pre) * (pre * (W_DEC.norm(dim=1) if include else 1) > 0.7)
    llama_scope(tmp_path, sparsity_include_decoder_norm=include)
    check(tmp_path, f, (f @ W_DEC + B_DEC) / out)
    found = load_dictionary(tmp_path)
    assert (found.reads, found.meta["expected_l0"]) == (("r8.post",), 50)


def test_llama_scope_transcoder(tmp_path: Path) -> None:
    llama_scope(tmp_path, hook_point_in="blocks.8.ln2.hook_normalized", hook_point_out="blocks.8.hook_mlp_out")
    found = load_dictionary(tmp_path)
    assert (found.reads, found.writes) == (("m8.norm",), ("m8",))


LINEAR = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T}
MATRICES = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}


def dictionary_learning(folder: Path, kind: str, values: dict[str, Tensor], **cfg: Any) -> Path:
    tensors(folder, "ae.pt", values)
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": F, "layer": 3, "submodule_name": "mlp_out_layer_3"}
    config(folder, "config.json", {"trainer": trainer | cfg, "buffer": {}})
    return folder


@pytest.mark.parametrize("with_config", [True, False])
def test_dictionary_learning_standard(tmp_path: Path, with_config: bool) -> None:
    dictionary_learning(tmp_path, "AutoEncoder", LINEAR | {"bias": B_DEC})
    if not with_config:
        (tmp_path / "config.json").unlink()
    f = relu((X - B_DEC) @ W_ENC + B_ENC)
    check(tmp_path, f, f @ W_DEC + B_DEC, reads=None if with_config else "m3")
    assert load_dictionary(tmp_path, reads=None if with_config else "m3").reads == ("m3",)


def test_dictionary_learning_april(tmp_path: Path) -> None:
    dictionary_learning(tmp_path, "AutoEncoderNew", LINEAR | {"decoder.bias": B_DEC})
    f = relu(X @ W_ENC + B_ENC)
    check(tmp_path, f, f @ W_DEC + B_DEC)


def test_dictionary_learning_topk(tmp_path: Path) -> None:
    values = LINEAR | {"b_dec": B_DEC, "k": torch.tensor(3, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    dictionary_learning(tmp_path, "AutoEncoderTopK", values, k=3)
    f = topk(relu((X - B_DEC) @ W_ENC + B_ENC), 3)
    check(tmp_path, f, f @ W_DEC + B_DEC)


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_dictionary_learning_keeps_the_threshold_of_batch_topk(tmp_path: Path, kind: str) -> None:
    own = LINEAR | {"b_dec": B_DEC} if kind == "BatchTopKSAE" else MATRICES | {"group_sizes": torch.tensor([4, 6])}
    k = {"k": torch.tensor(3, dtype=torch.int)}
    dictionary_learning(tmp_path, kind, own | k | {"threshold": torch.tensor(0.8)}, k=3)
    pre = relu((X - B_DEC) @ W_ENC + B_ENC)
    f = pre * (pre > 0.8)
    check(tmp_path, f, f @ W_DEC + B_DEC)
    dictionary_learning(tmp_path, kind, own | k | {"threshold": torch.tensor(-1.0)}, k=3)
    with pytest.raises(DictionaryError, match="silently be a plain ReLU"):
        load_dictionary(tmp_path)


def test_dictionary_learning_jumprelu(tmp_path: Path) -> None:
    dictionary_learning(tmp_path, "JumpReluAutoEncoder", MATRICES | {"threshold": THETA})
    pre = X @ W_ENC + B_ENC
    f = relu(pre * (pre > THETA))
    check(tmp_path, f, f @ W_DEC + B_DEC)


def test_dictionary_learning_gated(tmp_path: Path) -> None:
    gate, size, r = normal(F, seed=6), normal(F, seed=7), normal(F, seed=8)
    biases = {"decoder_bias": B_DEC, "r_mag": r, "gate_bias": gate, "mag_bias": size}
    values = {key: value for key, value in LINEAR.items() if key != "encoder.bias"} | biases
    dictionary_learning(tmp_path, "GatedAutoEncoder", values)
    product = (X - B_DEC) @ W_ENC
    f = (product + gate > 0) * relu(r.exp() * product + size)
    check(tmp_path, f, f @ W_DEC + B_DEC)


def test_dictionary_learning_crosscoder(tmp_path: Path) -> None:
    enc, dec, b = normal(2, 3, F), normal(2, F, 3), normal(2, 3, seed=9)
    values = {"encoder.weight": enc, "encoder.bias": B_ENC, "decoder.weight": dec, "decoder.bias": b}
    dictionary_learning(tmp_path, "CrossCoder", values)
    x = X.view(50, 2, 3)
    f = relu(torch.einsum("bld,ldf->bf", x, enc) + B_ENC)
    check(tmp_path, f, (torch.einsum("bf,lfd->bld", f, dec) + b).flatten(1), reads=("r1", "r2"))


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip", "groupmax"])
def test_sparsify(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "layers.5.mlp"
    skip = normal(D, D, seed=9)
    values = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
    tensors(folder, "sae.safetensors", values | ({"W_skip": skip} if kind == "skip" else {}))
    transcode = kind in ("transcoder", "skip")
    cfg = {"d_in": D, "k": 2, "num_latents": 0, "expansion_factor": 32, "transcode": transcode}
    config(folder, "cfg.json", cfg | {"activation": "groupmax" if kind == "groupmax" else "topk"})
    pre = relu((X if transcode else X - B_DEC) @ W_ENC + B_ENC)
    f = topk(pre, 2)
    if kind == "groupmax":
        best = pre.unflatten(1, (2, 5)).max(2)
        f = torch.zeros_like(pre).scatter(1, best.indices + torch.tensor([0, 5]), best.values)
    check(folder, f, f @ W_DEC + B_DEC + (X @ skip.T if kind == "skip" else 0))
    found = load_dictionary(folder)
    assert (found.reads, found.writes) == ((("m5.in",), ("m5",)) if transcode else (("m5",), ("m5",)))


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_circuit_tracer(tmp_path: Path, activation: str) -> None:
    skip = normal(D, D, seed=9)
    values = {"W_enc": W_ENC.T, "W_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC, "W_skip": skip}
    pre = X @ W_ENC + B_ENC
    f = relu(pre)
    if activation == "jumprelu":
        values["activation_function.threshold"] = THETA
        f = pre * (pre > THETA)
    if activation == "topk":
        values["k"], f = torch.tensor(3), relu(topk(pre, 3))
    tensors(tmp_path, "layer_4.safetensors", values)
    (tmp_path / "config.yaml").write_text(
        "model_name: toy\nmodel_kind: transcoder_set\nfeature_input_hook: hook_resid_mid\n"
        "feature_output_hook: hook_mlp_out\n"
    )
    check(tmp_path / "layer_4.safetensors", f, f @ W_DEC + B_DEC + X @ skip.T)
    found = load_dictionary(tmp_path / "layer_4.safetensors")
    assert (found.reads, found.writes, found.meta["format"]) == (("r4.mid",), ("m4",), "circuit_tracer")
    with pytest.raises(DictionaryError, match="give one file"):
        load_dictionary(tmp_path, "circuit_tracer")


def test_circuit_tracer_in_the_other_orientation_is_refused(tmp_path: Path) -> None:
    tensors(tmp_path, "layer_4.safetensors", MATRICES)
    with pytest.raises(DictionaryError, match=r"stored as \[d, feature\]"):
        load_dictionary(tmp_path / "layer_4.safetensors", reads="r4.mid", writes="m4")


def test_cross_layer_transcoder(tmp_path: Path) -> None:
    n = 3
    enc, b_enc, b_dec = normal(n, F, D), normal(n, F), normal(n, D)
    dec = [normal(F, n - i, D, seed=i) for i in range(n)]
    for i in range(n):
        first = {f"W_enc_{i}": enc[i], f"b_enc_{i}": b_enc[i], f"b_dec_{i}": b_dec[i]}
        tensors(tmp_path, f"W_enc_{i}.safetensors", first | {f"threshold_{i}": THETA[None]})
        tensors(tmp_path, f"W_dec_{i}.safetensors", {f"W_dec_{i}": dec[i]})
    coder = load_cross_layer(tmp_path)
    xs = [normal(20, D, seed=30 + i) for i in range(n)]
    fs = coder.encode(xs)
    out = coder.decode(fs)
    for j in range(n):
        pre = xs[j] @ enc[j].T + b_enc[j]
        torch.testing.assert_close(fs[j], pre * (pre > THETA))
        wanted = sum(fs[i] @ dec[i][:, j - i] for i in range(j + 1)) + b_dec[j]
        torch.testing.assert_close(out[f"m{j}"], wanted, rtol=1e-4, atol=1e-5)
    assert [layer.reads for layer in coder.layers] == [("r0.mid",), ("r1.mid",), ("r2.mid",)]
    (tmp_path / "W_enc_1.safetensors").rename(tmp_path / "W_enc_7.safetensors")
    with pytest.raises(DictionaryError, match="W_enc_1"):
        load_cross_layer(tmp_path)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_refusals_name_file_key_shape_and_fix(tmp_path: Path) -> None:
    sae_lens(tmp_path, {"b_enc": normal(F + 1)})
    with pytest.raises(
        DictionaryError, match=r"sae_weights.safetensors: 'b_enc' has shape \[11\], expected \[10\]\nFix:"
    ):
        load_dictionary(tmp_path)
    sae_lens(tmp_path, architecture="jumprelu")
    with pytest.raises(DictionaryError, match="'threshold' is missing; the file has W_dec, W_enc, b_dec, b_enc"):
        load_dictionary(tmp_path)
    sae_lens(tmp_path, d_sae=11)
    with pytest.raises(DictionaryError, match="config says d_sae 11, the weights have 10"):
        load_dictionary(tmp_path)
    sae_lens(tmp_path, {"b_enc": torch.full((F,), torch.nan)})
    with pytest.raises(DictionaryError, match="not finite"):
        load_dictionary(tmp_path)
    sae_lens(tmp_path, architecture="temporal")
    with pytest.raises(DictionaryError, match="'temporal' is not read"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    "value", [None, [], [1], {}, {"a": 1}, "x", "", -1, 0, 3.5, 1e300, float("inf"), True], ids=repr
)
def test_no_entry_of_a_config_breaks_a_reader(tmp_path: Path, value: Any) -> None:
    """Whatever stands in a config, a dictionary or a DictionaryError comes out."""
    made = {
        "cfg.json": sae_lens(tmp_path / "a", architecture="topk", k=3, normalize_activations="layer_norm"),
        "hyperparams.json": llama_scope(tmp_path / "b"),
        "config.json": dictionary_learning(tmp_path / "c", "AutoEncoderTopK", LINEAR | {"b_dec": B_DEC}, k=3),
    }
    tensors(tmp_path / "layers.5.mlp", "sae.safetensors", LINEAR | {"W_dec": W_DEC, "b_dec": B_DEC})
    config(tmp_path / "layers.5.mlp", "cfg.json", {"d_in": D, "k": 2, "transcode": True, "activation": "topk"})
    for name, folder in [*made.items(), ("cfg.json", tmp_path / "layers.5.mlp")]:
        plain = json.loads((folder / name).read_text())
        sections = [(), *((key,) for key, inside in plain.items() if isinstance(inside, dict))]
        for path in sections:
            for key in plain if not path else plain[path[0]]:
                broken = json.loads((folder / name).read_text())
                (broken[path[0]] if path else broken)[key] = value
                copy = tmp_path / "copy" / folder.name
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(folder, copy)
                (copy / name).write_text(json.dumps(broken))
                with contextlib.suppress(DictionaryError):
                    assert isinstance(load_dictionary(copy), Dictionary)


def test_files_that_could_run_code_are_not_read(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("ran",))

    torch.save({"bias": Bad()}, tmp_path / "ae.pt")
    with pytest.raises(DictionaryError, match="could run code"):
        load_dictionary(tmp_path, reads="r1")
    np.savez(tmp_path / "params.npz", W_enc=np.array([Bad()], dtype=object))
    with pytest.raises(DictionaryError, match="could run code"):
        load_dictionary(tmp_path / "params.npz", reads="r1")


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"{}"])
@pytest.mark.parametrize("name", ["sae_weights.safetensors", "params.npz", "ae.pt", "sae.safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DictionaryError, match=name):
        load_dictionary(tmp_path, reads="r1")


def test_what_cannot_be_guessed_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="does not exist"):
        load_dictionary(tmp_path / "nothing")
    with pytest.raises(DictionaryError, match="no known format"):
        load_dictionary(tmp_path)
    with pytest.raises(DictionaryError, match="'sae' is unknown"):
        load_dictionary(tmp_path, "sae")
    tensors(tmp_path, "ae.pt", LINEAR | {"b_dec": B_DEC})
    with pytest.raises(DictionaryError, match="TopK and BatchTopK look alike"):
        load_dictionary(tmp_path)
    sae_lens(tmp_path)
    with pytest.raises(DictionaryError, match="sae_lens and dictionary_learning"):
        load_dictionary(tmp_path)
    assert set(FORMATS) >= {"sae_lens", "dictionary_learning"}


@pytest.mark.parametrize("place", ["r3", "r3.mid", "r3.post", "a3", "a3.z", "m3", "m3.act", "m3.in", "m3.norm"])
def test_hook_names_go_back_and_forth(place: str) -> None:
    assert place_of(hook_of(place)) == place


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3", "r3.post"), ("transformer.h.3.mlp", "m3"), ("gpt_neox.layers.12.attention", "a12"),
        ("layers.3.self_attn", "a3"), ("embed_tokens", "input"), ("resid_post_layer_7", "r7.post"), ("nonsense", None),
        ("blocks.3.hook_nonsense", None),
    ],
)  # fmt: skip
def test_module_paths(name: str, place: str | None) -> None:
    assert place_of(name) == place
