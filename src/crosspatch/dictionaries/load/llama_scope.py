"""Llama Scope (arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`.

Activations are multiplied by sqrt(d_model) / (their mean norm over the data set), inputs and outputs each by their own
factor, which `hyperparams.json` holds. By the release's own library a feature is active where its pre-activation *times
its decoder's norm* is above the threshold (`sparsity_include_decoder_norm`). SAELens multiplies the threshold by the
input factor instead. `top_k` of the hyper-parameters is the mean L0 to expect; measure it before relying on either.
"""

from __future__ import annotations

import torch

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.load.reading import expect_size, positive, read_config, read_tensors, section, text
from crosspatch.dictionaries.load.source import Source
from crosspatch.errors import DictionaryError


def read(source: Source) -> Dictionary:
    """The folder of one dictionary.

    Raises:
        DictionaryError: see `load_dictionary`.
    """
    config_path = source.path / "hyperparams.json"
    config = read_config(config_path)
    weights = read_tensors(source.file("checkpoints/final.safetensors", "final.safetensors"))
    encoder = weights.take("encoder.weight", None, None)
    width, d_in = encoder.shape
    decoder = weights.take("decoder.weight", None, width).T.contiguous()
    d_out = decoder.shape[1]
    expect_size(width, config, "d_sae", config_path)
    expect_size(d_in, config, "d_model", config_path)
    activation = text(config, "act_fn", config_path) or "jumprelu"
    if activation not in ("jumprelu", "relu"):
        raise DictionaryError(f"act_fn {activation!r} is not read", where=str(config_path), fix="jumprelu or relu")
    threshold = torch.zeros(width)
    if activation == "jumprelu":
        threshold = threshold + positive(config, "jump_relu_threshold", config_path)
        if config.get("sparsity_include_decoder_norm", True):
            threshold = threshold / decoder.norm(dim=1).clamp(min=1e-12)
    decoder_bias = weights.take("decoder.bias", d_out) if config.get("use_decoder_bias", True) else torch.zeros(d_out)
    hook, out = text(config, "hook_point_in", config_path), text(config, "hook_point_out", config_path)
    reads, writes = source.places([hook], None if out in (None, hook) else [out])
    normalised = text(config, "norm_activation", config_path) or "dataset-wise"
    if normalised not in ("dataset-wise", "inference", "token-wise"):
        raise DictionaryError(f"norm_activation {normalised!r} is not read", where=str(config_path))
    if activation == "jumprelu":
        source.notes.append("thresholds are compared with the pre-activation times the decoder's norm; SAELens differs")
    dictionary = Dictionary(
        encoder,
        weights.take("encoder.bias", width),
        decoder,
        decoder_bias,
        threshold,
        reads,
        writes,
        architecture=activation,
        input_bias=decoder_bias if config.get("apply_decoder_bias_to_pre_encoder", False) else None,
        normalise="constant_norm" if normalised == "token-wise" else "none",
        meta=source.meta("llama_scope", expected_l0=config.get("top_k")),
    )
    if normalised != "dataset-wise":
        return dictionary
    norms = section(config, "dataset_average_activation_norm", config_path)
    by_in, by_out = (positive(norms, key, config_path) for key in ("in", "out"))
    return dictionary.rescaled(d_in**0.5 / by_in, d_out**0.5 / by_out)
