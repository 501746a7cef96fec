"""Writing a dictionary in SAELens' layout, so that `SAE.load_from_disk` and this package read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.load.hooks import hook_of
from crosspatch.errors import DictionaryError
from crosspatch.results.files import write_atomic, write_json

LAYOUT = "6.0.0"
"""Version of SAELens whose layout is written."""
_NORMALISE = {"none": "none", "constant_norm": "constant_norm_rescale", "layer_norm": "layer_norm"}


def save_dictionary(
    dictionary: Dictionary, folder: str | Path, *, model_name: str | None = None, dtype: torch.dtype | None = None
) -> Path:
    """Write `cfg.json` and `sae_weights.safetensors`; `crosspatch_scale.safetensors` beside them if it was folded.

    Gated, BatchTopK and Matryoshka dictionaries become JumpReLU ones, which are the same function.

    Args:
        dictionary: any that SAELens has a class for.
        folder: made if need be; files of that name are replaced.
        model_name: recorded for others.
        dtype: precision of the files; None = the dictionary's. In float16 they are half as large, and reconstructions
            differ by about a thousandth.

    Returns:
        the folder.

    Raises:
        DictionaryError: SAELens has no such dictionary; says what.
        OSError: cannot be written.
    """
    folder = Path(folder)
    ready, rank = _comparable(dictionary).to(dtype=dtype), {}
    if ready.selection == "topk" and ready.rank is not None:
        rank = {"rescale_acts_by_decoder_norm": True}
    architecture = _architecture(ready)
    same = ready.input_bias is not None and torch.equal(ready.input_bias, ready.decoder_bias) and ready.autoencoder
    bias = ready.encoder_bias
    if ready.input_bias is not None and not same:
        bias = bias - ready.encoder @ ready.input_bias
    weights = {
        "W_enc": ready.encoder.T,
        "b_enc": bias,
        "W_dec": ready.decoder,
        "b_dec": ready.decoder_bias,
        "threshold": ready.threshold.clamp(min=0) if "jumprelu" in architecture else None,
        "W_skip": ready.skip,
    }
    name = dictionary.meta.get("model_name") if model_name is None else model_name
    metadata: dict[str, Any] = {
        "sae_lens_version": LAYOUT,
        "model_name": name,
        "hook_name": hook_of(ready.reads[0]),
        "crosspatch": {
            "architecture": dictionary.architecture,
            "reads": list(dictionary.reads),  # `input` and `r0` share a hook
            "meta": _plain(dictionary.meta),
        },
    }
    if not ready.autoencoder:
        metadata["hook_name_out"] = hook_of(ready.writes[0])
    config = {
        "architecture": architecture,
        "d_in": ready.d_in,
        "d_sae": ready.width,
        "dtype": str(ready.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": same,
        "normalize_activations": _NORMALISE[ready.normalise],
        "reshape_activations": "hook_z" if ready.reads[0].endswith(".z") else "none",
        **({} if ready.autoencoder else {"d_out": ready.d_out}),
        **({"k": ready.k} if ready.k is not None else {}),
        **rank,
        "metadata": metadata,
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "sae_weights.safetensors", safetensors.torch.save(tensors))
    scale = folder / "crosspatch_scale.safetensors"
    if ready.scale is not None:
        write_atomic(scale, safetensors.torch.save({"scale": ready.scale.detach().cpu().contiguous()}))
    else:
        scale.unlink(missing_ok=True)
    write_json(folder / "cfg.json", config)
    return folder


def _architecture(dictionary: Dictionary) -> str:
    jump = bool((dictionary.threshold > 0).any())
    if dictionary.selection == "topk":
        return "topk"
    if dictionary.autoencoder:
        return "jumprelu" if jump else "standard"
    return f"{'jumprelu_' if jump else ''}{'skip_' if dictionary.skip is not None else ''}transcoder"


def _comparable(dictionary: Dictionary) -> Dictionary:
    """The same function in a form that SAELens has.

    SAELens compares pre-activations of a TopK dictionary either as they are or times the decoder's norms.
    """
    wrong = None
    if len(dictionary.reads) > 1 or len(dictionary.writes) > 1:
        wrong = "a crosscoder"
    elif dictionary.selection == "groupmax":
        wrong = "a group maximum"
    elif dictionary.selection == "topk" and (dictionary.skip is not None or not dictionary.autoencoder):
        wrong = "a transcoder with TopK"
    elif dictionary.selection == "topk" and (dictionary.threshold > 0).any():
        wrong = "TopK with thresholds"
    elif dictionary.autoencoder and dictionary.skip is not None:
        wrong = "an autoencoder with a skip connection"
    if wrong is not None:
        raise DictionaryError(f"SAELens has no class for {wrong}", where=repr(dictionary))
    if dictionary.selection != "topk" or dictionary.rank is None:
        return dictionary
    for candidate in (dictionary, dictionary.unfold()):
        rank = candidate.rank
        assert rank is not None
        for wanted, kept in ((torch.ones_like(rank), None), (candidate.decoder.norm(dim=1), rank)):
            if torch.allclose(rank / rank.mean(), wanted / wanted.mean(), rtol=1e-5):
                return replace(candidate, rank=kept)
    raise DictionaryError("SAELens cannot compare features with these weights", where=repr(dictionary))


def _plain(meta: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(meta).items() if key not in ("notes", "path", "format")}
