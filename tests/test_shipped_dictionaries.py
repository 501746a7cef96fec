"""The shipped dictionaries: complete, small, and worth what their card says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

import crosspatch as cp
from crosspatch.cli.features_train import readme as write
from crosspatch.dictionaries import measure, read_text, shipped, shipped_path

CARD = json.loads((shipped_path() / "card.json").read_text())
PLACES = ["input", *(place for layer in range(4) for place in (f"a{layer}", f"m{layer}", f"r{layer}.post"))]


@pytest.fixture(scope="module")
def model():
    return cp.load("embedded")


@pytest.fixture(scope="module")
def held_out(model):
    about = CARD["text"]
    text = read_text(model.tokenizer, "embedded", tokens=0, held_out=10_000, seed=about["seed"])
    assert text.about["held_out_sha256"] == about["held_out_sha256"]
    return text.held_out


def test_there_is_one_for_every_place_in_twelve_megabytes() -> None:
    found = shipped()
    assert list(found) == PLACES
    for place, dictionary in found.items():
        assert dictionary.reads == dictionary.writes == (place,)
        assert (dictionary.width, dictionary.d_in, dictionary.dtype) == (1024, 128, torch.float32)
        torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(1024), atol=2e-3, rtol=0)
    assert sum(path.stat().st_size for path in shipped_path().rglob("*")) < 12 * 2**20


def test_card_says_how_they_were_made() -> None:
    assert CARD["command"][:2] == ["features", "train"] and CARD["precision"] == "float16"
    assert sorted(CARD["dictionaries"]) == sorted(PLACES)
    readme = (shipped_path() / "README.md").read_text()
    assert readme == write(CARD) and f"crosspatch {shlex.join(CARD['command'])}" in readme
    for place, about in CARD["dictionaries"].items():
        assert f"| {place} |" in readme
        for name in ("l0", "fvu", "loss_recovered", "ce_increase"):
            value = about["measures"][name]
            assert value["low"] <= value["value"] <= value["high"]


@pytest.mark.parametrize("place", ["input", "a0", "m2", "r1.post", "r3.post"])
def test_they_are_worth_what_the_card_says(model, held_out, place: str) -> None:
    """On the card's own text the files that ship give the numbers that ship."""
    found = measure(model, shipped()[place], held_out, ce=False)
    said = CARD["dictionaries"][place]["measures"]
    assert found.l0.value == pytest.approx(said["l0"]["value"], rel=1e-3)
    assert found.fvu.value == pytest.approx(said["fvu"]["value"], rel=1e-3)
    assert found.dead == pytest.approx(said["dead"], abs=2 / 1024)


@pytest.mark.parametrize("place", PLACES)
def test_the_model_works_with_each_reconstruction_in_place(model, held_out, place: str) -> None:
    found = measure(model, shipped()[place], held_out[:60])
    said = CARD["dictionaries"][place]["measures"]
    assert said["loss_recovered"]["value"] > 0.95 and said["fvu"]["value"] < 0.15 and said["dead"] < 0.6
    assert found.fvu.value < 2 * said["fvu"]["value"]
    assert found.ce_increase.value == pytest.approx(said["ce_increase"]["value"], abs=0.1)


def test_the_folder_ships_no_checkpoint() -> None:
    names = {path.name for path in Path(shipped_path()).iterdir() if path.is_file()}
    assert names == {"card.json", "README.md"}
