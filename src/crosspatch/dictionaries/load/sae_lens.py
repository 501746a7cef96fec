"""SAELens: `cfg.json` and `sae_weights.safetensors` (versions 3 to 6)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.load.reading import Tensors, expect_size, read_config, read_tensors, section, text, whole
from crosspatch.dictionaries.load.source import Source
from crosspatch.errors import DictionaryError

_NORMALISE = {"none": "none", "constant_norm_rescale": "constant_norm", "layer_norm": "layer_norm"}
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk", *_TRANSCODERS)


def read(source: Source) -> Dictionary:
    """The folder that `SAE.save_model` writes.

    Raises:
        DictionaryError: see `load_dictionary`.
    """
    weights = read_tensors(source.file("sae_weights.safetensors"))
    folder = weights.path.parent
    config_path = folder / "cfg.json"
    config = read_config(config_path)
    about = {**config, **section(config, "meta", config_path), **section(config, "metadata", config_path)}
    architecture = text(config, "architecture", config_path) or "standard"
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    k = config.get("k") or section(config, "activation_fn_kwargs", config_path).get("k")
    if activation == "topk" and architecture == "standard":  # before version 6
        architecture = "topk"
    if architecture not in ARCHITECTURES:
        raise DictionaryError(
            f"architecture {architecture!r} is not read",
            where=str(config_path),
            fix=f"one of {', '.join(ARCHITECTURES)} (BatchTopK and Matryoshka are saved as jumprelu by SAELens)",
        )
    encoder = weights.take("W_enc", None, None).T.contiguous()
    width, d_in = encoder.shape
    transcoder = architecture in _TRANSCODERS
    decoder = weights.take("W_dec", width, None if transcoder else d_in)
    expect_size(width, config, "d_sae", config_path)
    expect_size(d_in, config, "d_in", config_path)
    decoder_bias = weights.take("b_dec", decoder.shape[1])
    threshold, bias = torch.zeros(width), None
    if architecture == "gated":
        # gate: W x + b_gate > 0 is the magnitude exp(r) W x + b_mag above b_mag - exp(r) b_gate
        gain, bias = weights.take("r_mag", width).exp(), weights.take("b_mag", width)
        encoder, threshold = encoder * gain[:, None], bias - gain * weights.take("b_gate", width)
    elif architecture.startswith("jumprelu"):
        threshold = _threshold(weights, width)
    if "scaling_factor" in weights and not torch.allclose(weights.take("scaling_factor", width), torch.ones(width)):
        raise DictionaryError("a fine-tuning scaling factor is not read", where=str(weights.path))
    apply = bool(config.get("apply_b_dec_to_input", not transcoder))
    topk = architecture == "topk"
    hook = text(about, "hook_name", config_path) or text(about, "hook_point", config_path)
    out = text(about, "hook_name_out", config_path) if transcoder else None
    own = section(section(config, "metadata", config_path), "crosspatch", config_path)
    named = "embed" if own.get("reads") == ["input"] else hook  # its hook is also that of `r0`
    reads, writes = source.places([named], [out] if transcoder else None)
    dictionary = Dictionary(
        encoder,
        weights.take("b_enc", width) if bias is None else bias,
        decoder,
        decoder_bias,
        threshold,
        reads,
        writes,
        architecture=architecture,
        input_bias=decoder_bias if apply else None,
        skip=weights.take("W_skip", decoder.shape[1], d_in) if "skip" in architecture else None,
        selection="topk" if topk else "all",
        k=whole({"k": k}, "k", config_path) if topk else None,
        rank=decoder.norm(dim=1) if topk and config.get("rescale_acts_by_decoder_norm") else None,
        **_normalisation(source, config, str(config_path)),
        scale=_scale(folder, width),
    )
    if hook == "hook_embed":
        source.notes.append("hook_embed is the embedding without positions; `input` includes positions a model adds")
    about = {name: about.get(name) for name in ("model_name", "hook_name", "context_size", "prepend_bos")}
    return _scaled(source, config, dictionary, about)


def _threshold(weights: Tensors, width: int) -> torch.Tensor:
    if "log_threshold" in weights:
        return weights.take("log_threshold", width).exp()
    return weights.take("threshold", width)


def _normalisation(source: Source, config: dict[str, Any], where: str) -> dict[str, Any]:
    mode = config.get("normalize_activations", "none")
    if mode is None or isinstance(mode, bool):  # before version 3
        mode = "expected_average_only_in" if mode else "none"
    if mode == "expected_average_only_in":
        if source.input_scale is None:
            raise DictionaryError(
                "activations were scaled by a factor in training that the file does not hold",
                where=where,
                fix="pass input_scale=sqrt(d_in) / (mean norm of the activations)",
            )
        return {}
    if not isinstance(mode, str) or mode not in _NORMALISE:
        raise DictionaryError(f"normalize_activations {mode!r} is not read", where=where)
    return {"normalise": _NORMALISE[mode]}


def _scale(folder: Path, width: int) -> torch.Tensor | None:
    path = folder / "crosspatch_scale.safetensors"
    return read_tensors(path).take("scale", width) if path.is_file() else None


def _scaled(source: Source, config: dict[str, Any], dictionary: Dictionary, about: dict[str, Any]) -> Dictionary:
    own = section(section(config, "metadata", source.path), "crosspatch", source.path)
    meta = {**section(own, "meta", source.path), **source.meta("sae_lens", **about)}
    architecture = text(own, "architecture", source.path) or dictionary.architecture
    found = replace(dictionary, meta=meta, architecture=architecture)
    return found if source.input_scale is None else found.rescaled(source.input_scale, source.input_scale)
