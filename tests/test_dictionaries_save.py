"""Saving in SAELens' layout: read back here, and by SAELens itself where it is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.load import load_dictionary
from crosspatch.dictionaries.save import save_dictionary
from crosspatch.errors import DictionaryError

D, F = 6, 10
X = 2 * torch.randn(50, D, generator=torch.Generator().manual_seed(7)) + 0.3


def make(kind: str) -> Dictionary:
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    transcoder = "transcoder" in kind
    bias, place = normal(D), "a3.z" if kind == "z" else "r3.post"
    jump = "jumprelu" in kind or kind in ("batch_topk", "gated")
    return Dictionary(
        normal(F, D), normal(F), normal(F, D), bias,
        normal(F) if jump else torch.zeros(F),
        "m3.in" if transcoder else place, "m3" if transcoder else place,
        architecture=kind,
        input_bias=None if transcoder or kind == "free" else normal(D) if kind == "own_bias" else bias,
        skip=normal(D, D) if "skip" in kind else None,
        selection="topk" if "topk" in kind and kind != "batch_topk" else "all",
        k=3 if "topk" in kind and kind != "batch_topk" else None,
        normalise="layer_norm" if kind == "layer_norm" else "none",
        meta={"model_name": "toy"},
    )  # fmt: skip


KINDS = (
    "standard", "free", "own_bias", "gated", "jumprelu", "batch_topk", "topk", "layer_norm", "z", "transcoder",
    "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read_back(tmp_path: Path, kind: str, folded: bool) -> None:
    dictionary = make(kind).fold() if folded else make(kind)
    found = load_dictionary(save_dictionary(dictionary, tmp_path / "d"))
    assert (found.reads, found.writes, found.architecture) == (dictionary.reads, dictionary.writes, kind)
    assert found.meta["model_name"] == "toy"
    torch.testing.assert_close(found.reconstruct(X), dictionary.reconstruct(X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.fold().encode(X), dictionary.fold().encode(X), rtol=1e-4, atol=1e-5)
    if folded:
        units = found.fold() if kind == "topk" else found  # TopK is saved in the units in which it selects
        torch.testing.assert_close(units.unfold().decoder, dictionary.unfold().decoder, rtol=1e-4, atol=1e-5)


def test_saving_again_leaves_no_old_scale(tmp_path: Path) -> None:
    save_dictionary(make("standard").fold(), tmp_path)
    save_dictionary(make("standard"), tmp_path)
    assert load_dictionary(tmp_path).scale is None


def test_what_sae_lens_has_no_class_for_is_refused(tmp_path: Path) -> None:
    base = make("standard")
    with pytest.raises(DictionaryError, match="a crosscoder"):
        save_dictionary(replace(base, reads=("r1", "r2"), writes=("r1", "r2")), tmp_path)
    with pytest.raises(DictionaryError, match="a group maximum"):
        save_dictionary(replace(base, selection="groupmax", k=2), tmp_path)
    with pytest.raises(DictionaryError, match="a transcoder with TopK"):
        save_dictionary(replace(make("transcoder"), selection="topk", k=2), tmp_path)
    with pytest.raises(DictionaryError, match="an autoencoder with a skip"):
        save_dictionary(replace(base, skip=torch.eye(D)), tmp_path)
    with pytest.raises(DictionaryError, match="cannot compare"):
        save_dictionary(replace(make("topk"), rank=torch.arange(1.0, F + 1)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sae_lens_reads_it(tmp_path: Path, kind: str, folded: bool) -> None:
    sae_lens: Any = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    dictionary = make(kind).fold() if folded else make(kind)
    save_dictionary(dictionary, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    x = X.view(50, 2, 3) if kind == "z" else X
    with torch.no_grad():
        out = theirs(x)
    torch.testing.assert_close(out.reshape(50, D), dictionary.reconstruct(X), rtol=1e-4, atol=1e-5)


def test_what_sae_lens_saves_is_read(tmp_path: Path) -> None:
    sae_lens: Any = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    config = sae_lens.JumpReLUSAEConfig(
        d_in=D, d_sae=F, metadata=sae_lens.saes.sae.SAEMetadata(hook_name="blocks.1.hook_resid_post")
    )
    theirs = sae_lens.JumpReLUSAE(config)
    with torch.no_grad():
        for i, value in enumerate(theirs.parameters()):
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(i)))
    theirs.save_model(tmp_path)
    found = load_dictionary(tmp_path)
    assert found.reads == ("r1.post",)
    torch.testing.assert_close(found.encode(X), theirs.encode(X).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.reconstruct(X), theirs(X).detach(), rtol=1e-4, atol=1e-5)
