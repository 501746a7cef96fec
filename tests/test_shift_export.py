"""An exported ablation: the same numbers wherever `transformers` runs it, and nothing unpickled on the way."""

from __future__ import annotations

import json

import pytest
import shift_toys
import torch
from families import VOCAB, make
from feature_cases import random_dictionary
from transformers import AutoModelForCausalLM

import crosspatch as cp
from crosspatch.errors import DictionaryError, ModelError, ResultError
from crosspatch.features import NodeSet, bases_of
from crosspatch.model import load
from crosspatch.shift import Probe, export, feature_set, load_exported, pooled_without, probe_setup, probed
from crosspatch.shift.probe import Prompts, prompts_of


def padded(ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, ids))
    rows = torch.zeros(len(ids), length, dtype=torch.long)
    mask = torch.zeros_like(rows)
    for i, each in enumerate(ids):
        rows[i, : len(each)], mask[i, : len(each)] = torch.tensor(each), 1
    return rows, mask


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2", "qwen3", "phi3"])
def test_an_exported_model_computes_what_the_ablated_run_does(name: str, tmp_path) -> None:
    model = load(make(name), name=name)
    draw = torch.Generator().manual_seed(2)
    probe = Probe(1, torch.randn(model.shape.d_model, generator=draw), -0.2)
    prompts = Prompts([torch.randint(1, VOCAB, (n,), generator=draw).tolist() for n in (5, 7)], 0)
    cut = probed(model, probe)
    places = ["input", *(p for i in range(2) for p in (f"a{i}", f"a{i}.z", f"m{i}", f"m{i}.act", f"r{i}.post"))]
    bases = bases_of(cut, [random_dictionary(cut, p, width=12, seed=i) for i, p in enumerate(places)])
    chosen = feature_set(bases, [(basis.place, i) for basis in bases for i in (0, 3, 5)])
    want = pooled_without(probe_setup(cut, prompts, (0, 1)), bases, [chosen])[0]
    before = {key: value.clone() for key, value in model.hf.state_dict().items()}
    made = load_exported(export(model, bases, chosen, tmp_path / "kept", probe=probe))
    for ids, mean in zip(prompts.ids, want, strict=True):  # one by one: some tiny models have no padding
        found = made.classify(torch.tensor([ids]))
        assert float(found[0]) == pytest.approx(float(probe.logits(mean[None])[0]), abs=1e-5)
    with torch.no_grad():
        ids = torch.tensor([prompts.ids[0]])
        assert not torch.allclose(made(ids).logits, model.hf(ids).logits, atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in model.hf.state_dict().items())


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The embedded model without a few features of random dictionaries."""
    model = cp.load("embedded")
    probe = Probe(2, torch.linspace(-1, 1, model.shape.d_model), 0.1)
    cut = probed(model, probe)
    topk = random_dictionary(cut, "r0.post", width=32, seed=9, selection="topk", k=4)
    bases = bases_of(cut, [random_dictionary(cut, p, width=32, seed=3) for p in ("input", "a1", "m2")] + [topk])
    chosen = feature_set(bases, [(basis.place, i) for basis in bases for i in range(0, 32, 2)])
    folder = tmp_path_factory.mktemp("kept") / "model"
    export(model, bases, chosen, folder, probe=probe, labels=("professor", "nurse"))
    return model, probe, cut, bases, chosen, folder


TEXTS = ("Tom is kind. He gives lectures at the university.", "Mary is a calm person.")


def test_padded_batches_and_the_token_that_is_left_alone(kept) -> None:
    model, probe, cut, bases, chosen, folder = kept
    prompts = prompts_of(model, TEXTS)
    want = probe.logits(pooled_without(probe_setup(cut, prompts, (0, 1)), bases, [chosen])[0])
    made = load_exported(folder)
    assert torch.allclose(made.classify(*padded(prompts.ids)).double(), want, atol=1e-5)
    assert made.config.classifier["labels"] == ["professor", "nurse"]
    with torch.no_grad():  # nothing is taken out of the first token, and nothing comes before it
        assert torch.allclose(made(torch.tensor([[0]])).logits, model.hf(torch.tensor([[0]])).logits, atol=1e-5)
    with pytest.raises(ModelError, match="cannot be told from embeddings"):
        made(inputs_embeds=torch.zeros(1, 2, model.shape.d_model))


def test_generate_with_and_without_a_cache(kept) -> None:
    model, *_, folder = kept
    made = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, mask = padded(prompts_of(model, TEXTS[:1]).ids)
    runs = [
        made.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=0)
        for cache in (True, False)
    ]
    assert torch.equal(*runs) and runs[0].shape[1] > ids.shape[1]
    step = ids
    with torch.no_grad():
        for token in runs[0][0, ids.shape[1] :]:
            logits = made(step, use_cache=False).logits[0, -1]
            assert logits.argmax() == token
            step = torch.cat([step, token[None, None]], 1)


def test_the_folder_holds_no_code_and_no_pickle(kept) -> None:
    *_, folder = kept
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


def test_saving_again_and_half_precision(kept, tmp_path) -> None:
    model, *_, folder = kept
    made = load_exported(folder)
    made.save_pretrained(tmp_path / "again")
    ids, _ = padded(prompts_of(model, TEXTS[:1]).ids)
    with torch.no_grad():
        assert torch.equal(load_exported(tmp_path / "again")(ids).logits, made(ids).logits)
        assert made.to(torch.bfloat16)(ids).logits.isfinite().all()


def test_what_cannot_be_exported(kept, tmp_path) -> None:
    model, _, cut, bases, chosen, _ = kept
    errors = NodeSet({k: v.copy() for k, v in chosen.keep.items()}, chosen.has_error, chosen.spans)
    errors.keep["input"][:, -1] = True
    with pytest.raises(DictionaryError, match="error terms"):
        export(model, bases, errors, tmp_path)
    neurons = bases_of(cut, neurons=["m1"])
    with pytest.raises(DictionaryError, match="no dictionary"):
        export(model, neurons, feature_set(neurons, [("m1", 0)]), tmp_path)
    middle = bases_of(cut, [random_dictionary(cut, "r1.mid", width=8)])
    with pytest.raises(ModelError, match=r"r1\.mid"):
        export(model, middle, feature_set(middle, [("r1.mid", 0)]), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ResultError):
        load_exported(tmp_path)
    model.hf.config.save_pretrained(tmp_path)
    with pytest.raises(ResultError, match="'llama' model"):
        load_exported(tmp_path)
    toy = shift_toys.model()
    own = bases_of(toy, [shift_toys.dictionary()])
    with pytest.raises(ModelError, match="modules were not replaced"):
        export(toy, own, feature_set(own, [("input", 2)]), tmp_path / "toy")
    made = load_exported(export(model, bases, chosen, tmp_path / "plain"))
    with pytest.raises(ModelError, match="no classifier"):
        made.classify(torch.tensor([[1]]))
