"""dictionary_learning: `ae.pt` (a state dict, read without running code in it) and `config.json`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.load.reading import Tensors, expect_size, read_config, read_tensors, section, text, whole
from crosspatch.dictionaries.load.source import Source
from crosspatch.errors import DictionaryError

CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
    "CrossCoder",
)


def read(source: Source) -> Dictionary:
    """The folder of one dictionary, or its `ae.pt`. Without a config the class is read off the tensors.

    Raises:
        DictionaryError: see `load_dictionary`.
    """
    weights = read_tensors(source.file("ae.pt"))
    config_path = weights.path.parent / "config.json"
    config: dict[str, Any] = {}
    if config_path.is_file():
        config = section(read_config(config_path), "trainer", config_path)
    kind = text(config, "dict_class", config_path) or _class_of(weights)
    if kind not in CLASSES:
        raise DictionaryError(f"class {kind!r} is not read", where=str(config_path), fix=f"one of {', '.join(CLASSES)}")
    if kind == "CrossCoder":
        return _crosscoder(source, weights)
    own = kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")  # matrices stored as [d, feature] and [feature, d]
    encoder = weights.take("W_enc", None, None).T.contiguous() if own else weights.take("encoder.weight", None, None)
    width, d = encoder.shape
    decoder = weights.take("W_dec", width, d) if own else weights.take("decoder.weight", d, width).T.contiguous()
    expect_size(width, config, "dict_size", config_path)
    expect_size(d, config, "activation_dim", config_path)
    decoder_bias = weights.take(_DECODER_BIAS.get(kind, "b_dec"), d)
    threshold, bias = torch.zeros(width), None
    if kind == "GatedAutoEncoder":
        gain, bias = weights.take("r_mag", width).exp(), weights.take("mag_bias", width)
        encoder, threshold = encoder * gain[:, None], bias - gain * weights.take("gate_bias", width)
    elif kind == "JumpReluAutoEncoder":
        threshold = weights.take("threshold", width)
    elif kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        threshold = _one_threshold(weights, width)
    k: int | None = None
    if kind == "AutoEncoderTopK":
        k = whole({"k": float(weights.take("k"))} if "k" in weights else config, "k", config_path)
    reads, writes = source.places([_place(config)])
    source.notes.append("a factor that activations were multiplied by in training is not in this format")
    plain = kind in ("JumpReluAutoEncoder", "AutoEncoderNew")  # these do not subtract the decoder bias
    return Dictionary(
        encoder,
        bias if bias is not None else weights.take("b_enc" if own else "encoder.bias", width),
        decoder,
        decoder_bias,
        threshold,
        reads,
        writes,
        architecture=_ARCHITECTURE[kind],
        input_bias=None if plain else decoder_bias,
        selection="all" if k is None else "topk",
        k=k,
        meta=source.meta("dictionary_learning", model_name=config.get("lm_name"), dict_class=kind),
    )


_DECODER_BIAS = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
_ARCHITECTURE = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
    "JumpReluAutoEncoder": "jumprelu",
}


def _one_threshold(weights: Tensors, width: int) -> Tensor:
    threshold = weights.take("threshold")
    if threshold < 0:
        raise DictionaryError(
            f"the threshold is {float(threshold):g}: training ended before it was measured, and without it the "
            "dictionary would silently be a plain ReLU",
            where=str(weights.path),
            fix="train for longer than threshold_start_step, or set it in the file",
        )
    return threshold.expand(width).clone()


def _crosscoder(source: Source, weights: Tensors) -> Dictionary:
    """Matrices per layer; the features of all layers' inputs are added up."""
    encoder = weights.take("encoder.weight", None, None, None)
    n, d, width = encoder.shape
    decoder = weights.take("decoder.weight", n, width, d)
    if source.reads is None or len(source.reads) != n:
        what = f"a crosscoder of {n} places does not say which"
        raise DictionaryError(what, where=str(weights.path), fix="pass reads=('r1', 'r2', ...)")
    return Dictionary(
        encoder.permute(2, 0, 1).reshape(width, n * d),
        weights.take("encoder.bias", width),
        decoder.permute(1, 0, 2).reshape(width, n * d),
        weights.take("decoder.bias", n, d).flatten(),
        torch.zeros(width),
        *source.places(None),
        architecture="crosscoder",
        meta=source.meta("dictionary_learning", dict_class="CrossCoder"),
    )


def _place(config: dict[str, Any]) -> str | None:
    """`submodule_name` such as `resid_post_layer_3`; the layer alone means the residual stream after it."""
    if config.get("submodule_name"):
        return str(config["submodule_name"])
    layer = config.get("layer")
    return f"resid_post_layer_{layer}" if isinstance(layer, int) else None


def _class_of(weights: Tensors) -> str:
    if "r_mag" in weights:
        return "GatedAutoEncoder"
    if "group_sizes" in weights:
        return "MatryoshkaBatchTopKSAE"
    if "W_enc" in weights:
        return "JumpReluAutoEncoder"
    if "bias" in weights:
        return "AutoEncoder"
    if "decoder.bias" in weights:
        return "CrossCoder" if weights.values["decoder.bias"].dim() == 2 else "AutoEncoderNew"
    raise DictionaryError(
        "there is no config.json, and the tensors of TopK and BatchTopK look alike",
        where=str(weights.path),
        fix="put the config.json beside it",
    )
