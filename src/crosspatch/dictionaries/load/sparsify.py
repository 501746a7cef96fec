"""sparsify (EleutherAI, `eai-sparsify`): per hook point a folder with `cfg.json` and `sae.safetensors`.

The folder's name is the module path; a transcoder reads that module's input and writes its output.
"""

from __future__ import annotations

import re

import torch

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.load.hooks import place_of
from crosspatch.dictionaries.load.reading import expect_size, read_config, read_tensors, text, whole
from crosspatch.dictionaries.load.source import Source
from crosspatch.errors import DictionaryError


def read(source: Source) -> Dictionary:
    """The folder of one hook point.

    Raises:
        DictionaryError: see `load_dictionary`.
    """
    weights = read_tensors(source.file("sae.safetensors"))
    config_path = weights.path.parent / "cfg.json"
    config = read_config(config_path)
    encoder = weights.take("encoder.weight", None, None)
    width, d_in = encoder.shape
    expect_size(d_in, config, "d_in", config_path)
    if config.get("num_latents"):
        expect_size(width, config, "num_latents", config_path)
    decoder = weights.take("W_dec", width, d_in)  # [feature, d]: not a matrix to be transposed
    decoder_bias = weights.take("b_dec", d_in)
    selection = text(config, "activation", config_path) or "topk"
    if selection not in ("topk", "groupmax") or config.get("signed"):
        what = f"activation {selection!r} (signed: {config.get('signed', False)}) is not read"
        raise DictionaryError(what, where=str(config_path))
    transcode = bool(config.get("transcode"))
    hook = weights.path.parent.name
    if transcode:
        match = re.fullmatch(r"m(\d+)", place_of(hook) or "")
        if match is None and (source.reads is None or source.writes is None):
            raise DictionaryError(
                f"a transcoder of {hook!r}", where=str(source.path), fix="pass reads= and writes= (m3.in and m3, say)"
            )
        reads, writes = source.places([f"blocks.{match[1]}.mlp.hook_in" if match else None], [hook])
    else:
        reads, writes = source.places([hook])
    return Dictionary(
        encoder,
        weights.take("encoder.bias", width),
        decoder,
        decoder_bias,
        torch.zeros(width),
        reads,
        writes,
        architecture=("skip_" if "W_skip" in weights else "") + ("transcoder" if transcode else "topk"),
        input_bias=None if transcode else decoder_bias,
        skip=weights.take("W_skip", d_in, d_in) if "W_skip" in weights else None,
        selection=selection,
        k=whole(config, "k", config_path),
        meta=source.meta("sparsify"),
    )
