"""Gemma Scope: `params.npz` (arXiv 2408.05147); Gemma Scope 2: `params.safetensors`, the same in lower case.

The encoder does not subtract the decoder bias. Which site it is says only the folder's name.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.load.reading import Tensors, read_tensors
from crosspatch.dictionaries.load.source import Source

_FOLDERS = [
    (r"transcoder|clt", "blocks.{}.ln2.hook_normalized", "blocks.{}.hook_mlp_out"),
    (r"-res\b|resid_post", "blocks.{}.hook_resid_post", None),
    (r"-att\b|attn_out", "blocks.{}.attn.hook_z", None),
    (r"-mlp\b|mlp_out", "blocks.{}.hook_mlp_out", None),
]


def read(source: Source) -> Dictionary:
    """One `params` file, or the folder that holds it.

    Raises:
        DictionaryError: see `load_dictionary`.
    """
    found = read_tensors(source.file("params.npz", "params.safetensors"))
    weights = Tensors(found.path, {_upper(key): value for key, value in found.values.items()})
    encoder = weights.take("W_enc", None, None).T.contiguous()
    width, d_in = encoder.shape
    decoder = weights.take("W_dec", width, None)
    d_out = decoder.shape[1]
    skip = weights.take("affine_skip_connection", d_in, d_out).T if "affine_skip_connection" in weights else None
    hooks = hooks_of_folder(found.path)
    reads, writes = source.places(*hooks)
    if hooks[0] != [None] and source.reads is None:
        source.notes.append("where it belongs was taken from the folder's name")
    dictionary = Dictionary(
        encoder,
        weights.take("b_enc", width),
        decoder,
        weights.take("b_dec", d_out),
        weights.take("threshold", width),
        reads,
        writes,
        architecture="jumprelu",
        skip=None if skip is None else skip.contiguous(),
    )
    if "embedding" in str(found.path) and reads == ("input",):
        # Trained on the embedding before Gemma multiplies it by sqrt(d_model); `input` comes after.
        dictionary = dictionary.rescaled(d_in**-0.5, d_in**-0.5)
        source.notes.append("rescaled by sqrt(d_model): `input` is the embedding as the first block reads it")
    return replace(dictionary, meta=source.meta("gemma_scope"))


def hooks_of_folder(path: Path) -> tuple[list[str | None], list[str | None] | None]:
    """The hooks that a folder of the release names, from its parts such as `...-pt-res/layer_20/width_16k`."""
    text = str(path)
    if "embedding" in text:
        return ["hook_embed"], None
    layer = re.search(r"layer_(\d+)", text)
    for pattern, read_at, written in _FOLDERS:
        if layer and re.search(pattern, text):
            return [read_at.format(layer[1])], None if written is None else [written.format(layer[1])]
    return [None], None


def _upper(key: str) -> str:
    return "W_" + key[2:] if key.startswith("w_") else key
