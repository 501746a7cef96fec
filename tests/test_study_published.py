"""The scripts for published dictionaries run on tiny random models, with dictionaries in the published layout."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import make
from feature_cases import random_dictionary
from toys import tokenizer

from crosspatch.errors import TaskError
from crosspatch.model import Model, load

STUDY = Path(__file__).parents[1] / "studies" / "published-dictionaries"
WORDS = ["The", "boy", "boys", "girl", "girls", "king", "kings", "near", "that", "like", "likes", "is", "are"]
WORDS += ["he", "she", "nurse", "professor", "teaches", "helps", "now", "then", "here", "there"]


@pytest.fixture(autouse=True)
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(STUDY))
    yield
    for name in ("agreement", "biographies", "pythia_70m", "gemma_2_2b"):
        sys.modules.pop(name, None)


def small(family: str) -> Model:
    """A random model whose tokens are words."""
    return load(make(family), tokenizer(["<pad>", "?", *WORDS]), name=family)


def write_data(folder: Path) -> None:
    """Rows as the authors', in the four sets; the test file of `simple` repeats a training row."""
    frames = {"rc": "The {0} that The king likes", "nounpp": "The {0} near The king", "simple": "The {0}"}
    for name, frame in (*frames.items(), ("within_rc", "The king that The {0}")):
        rows = []
        for one, many in (("boy", "boys"), ("girl", "girls"), ("king", "kings")):
            for clean, patch, verbs in ((one, many, (" is", " are")), (many, one, (" are", " is"))):
                prefixes = {"clean_prefix": frame.format(clean), "patch_prefix": frame.format(patch)}
                rows.append(prefixes | {"clean_answer": verbs[0], "patch_answer": verbs[1], "case": "x"})
        stem = "rc_generated" if name == "rc" else name
        for part, some in (("train", [*rows[:3], rows[0]]), ("test", [rows[0], *rows[3:]])):
            (folder / f"{stem}_{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


def numbers(model: Model, place: str, seed: int) -> dict[str, torch.Tensor]:
    d = random_dictionary(model, place, seed=seed)
    return {"encoder": d.encoder, "bias": d.encoder_bias, "decoder": d.decoder, "decoder bias": d.decoder_bias}


def write_pythia(model: Model, folder: Path) -> None:
    for i, place in enumerate(["input", *(f"{kind}{n}" for n in range(3) for kind in "amr")]):
        kinds = {"a": "attn", "m": "mlp", "r": "resid"}
        name = "embed" if place == "input" else f"{kinds[place[0]]}_out_layer{place[1]}"
        own = numbers(model, f"{place}.post" if place[0] == "r" else place, i)
        (folder / name / "10_32768").mkdir(parents=True)
        state = {"bias": own["decoder bias"], "encoder.weight": own["encoder"], "encoder.bias": own["bias"]}
        torch.save({**state, "decoder.weight": own["decoder"].T}, folder / name / "10_32768" / "ae.pt")


def write_gemma(model: Model, folder: Path) -> None:
    for layer in range(3):
        for i, (site, place) in enumerate((("att", f"a{layer}.z"), ("mlp", f"m{layer}"), ("res", f"r{layer}.post"))):
            own = {key: value.numpy() for key, value in numbers(model, place, 3 * layer + i).items()}
            arrays = {"W_enc": own["encoder"].T, "b_enc": own["bias"], "W_dec": own["decoder"]}
            arrays |= {"b_dec": own["decoder bias"], "threshold": np.full(24, 0.01, np.float32)}
            for l0 in (7, 93, 240):
                at = folder / f"gemma-scope-2b-pt-{site}" / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}"
                at.mkdir(parents=True)
                np.savez(at / "params.npz", **arrays if l0 == 93 else {})


@pytest.mark.parametrize(("family", "script"), [("gpt_neox", "pythia_70m"), ("gemma2", "gemma_2_2b")])
def test_the_script_runs_on_the_published_layout(family: str, script: str, tmp_path: Path) -> None:
    module, common = importlib.import_module(script), importlib.import_module("agreement")
    model = small(family)
    (write_pythia if family == "gpt_neox" else write_gemma)(model, tmp_path / "dictionaries")
    write_data(tmp_path)
    dictionaries = module.dictionaries_in(tmp_path / "dictionaries", 3)
    layers = [("a{}", "m{}", "r{}.post") if family == "gpt_neox" else ("a{}.z", "m{}", "r{}.post")] * 3
    places = [place.format(n) for n, names in enumerate(layers) for place in names]
    assert [d.reads[0] for d in dictionaries] == [*(["input"] if family == "gpt_neox" else []), *places]
    for d in dictionaries:
        torch.testing.assert_close(d.decoder.norm(dim=1), torch.ones(24))
    own = {name: common.Reported(1e-6, 1e-7, nodes=3) for name in module.PLAN.circuits}
    plan = common.Replication(own, start_block=1, feature_nodes=5, neuron_nodes=40)
    said: list[str] = []
    found = common.replicate(model, dictionaries, tmp_path, plan, steps=2, say=said.append)
    common.write(tmp_path / "found.json", found)
    assert json.loads((tmp_path / "found.json").read_text()).keys() == {"rc", "nounpp", "simple", "within_rc"}
    for row in found.values():
        assert row["nodes"] > 5 and row["edges"] > 5 and row["features: nodes"] == 5 and row["neurons: nodes"] == 40
    assert 0 < found["rc"]["shared with nounpp"] <= 1
    text = "\n".join(said)
    assert "3 pairs searched, 3 judged" in text  # repeated rows, and the test row that is a training row, are left out
    assert "rc_generated_train.jsonl is not the paper's set" in text and "paper: 3 nodes" in text


def test_classifiers_are_debiased_beside_table_2(tmp_path: Path) -> None:
    module, common = importlib.import_module("pythia_70m"), importlib.import_module("biographies")
    model = small("gpt_neox")
    write_pythia(model, tmp_path / "dictionaries")
    files = []
    for part, places in (("train", ("now", "then", "here")), ("test", ("there",))):
        rows = [
            {"text": f"{cue} {work} {when} {place} {end}", "label": label, "spurious": gender}
            for place in places for when in ("now", "near", "that") for end in ("boy", "girl")
            for label, work in (("professor", "teaches"), ("nurse", "helps"))
            for gender, cue in (("male", "he"), ("female", "she"))
        ]  # fmt: skip
        files.append(tmp_path / f"{part}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = replace(module.BIOS, layer=1, threshold=1e-4)
    said: list[str] = []
    dictionaries = module.dictionaries_in(tmp_path / "dictionaries", 3)
    found = common.debias(model, dictionaries, tuple(files), plan, say=said.append)
    assert found["features"] > 0 and {"Original", "SHIFT", "Oracle"} <= found.keys() <= {"features", *plan.reported}
    assert all(0 <= value <= 100 for name in plan.reported if name in found for value in found[name])
    text = "\n".join(said)
    assert "paper: 61.9" in text and "not a person" in text and "paper: 67" in text


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    agreement = importlib.import_module("agreement")
    model = small("gpt_neox")
    with pytest.raises(TaskError, match="no rc_train"):
        agreement.file_of(tmp_path, "rc", "train", print)
    with pytest.raises(TaskError, match="average_l0"):
        agreement.nearest_l0(tmp_path)
    for part in ("train", "test"):
        row = {"clean_prefix": "The boy", "patch_prefix": "The", "clean_answer": " is", "patch_answer": " are"}
        (tmp_path / f"simple_{part}.json").write_text(json.dumps(row) + "\n")
    with pytest.raises(TaskError, match="equal length"):
        agreement.pairs(model, tmp_path, "simple", 4, 4, print)
