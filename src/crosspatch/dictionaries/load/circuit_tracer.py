"""circuit-tracer: transcoders of one layer (`layer_3.safetensors`) and cross-layer transcoders, beside a `config.yaml`.

circuit-tracer sets all features at position 0 to zero before it uses them; these dictionaries do not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml

from crosspatch.dictionaries.dictionary import CrossLayer, Dictionary
from crosspatch.dictionaries.load.hooks import place_of
from crosspatch.dictionaries.load.reading import read_tensors, text, whole
from crosspatch.dictionaries.load.source import Source
from crosspatch.errors import DictionaryError


def read(source: Source) -> Dictionary:
    """One layer's file.

    Raises:
        DictionaryError: see `load_dictionary`.
    """
    if source.path.is_dir():
        raise DictionaryError(
            "is a folder of several transcoders",
            where=str(source.path),
            fix="give one file (layer_3.safetensors); load_cross_layer(folder) reads a cross-layer transcoder",
        )
    weights = read_tensors(source.path)
    config = read_yaml(source.path.parent)
    encoder = weights.take("W_enc", None, None)  # [feature, d], as for no other format
    width, d_in = encoder.shape
    if "b_enc" in weights and weights.values["b_enc"].shape != (width,):
        raise DictionaryError(
            f"'W_enc' has shape {[width, d_in]} and 'b_enc' {list(weights.values['b_enc'].shape)}: it is stored as "
            "[d, feature]",
            where=str(source.path),
            fix="pass format='gemma_scope', which stores it so",
        )
    decoder = weights.take("W_dec", width, None)
    d_out = decoder.shape[1]
    key = "activation_function.threshold" if "activation_function.threshold" in weights else "threshold"
    threshold = weights.flat(key, width) if key in weights else torch.zeros(width)
    topk = config.get("activation") == "topk" or "k" in weights
    k = float(weights.take("k")) if "k" in weights else config.get("k")
    layer = re.search(r"(\d+)", source.path.stem)
    hooks = [text(config, key, source.path) for key in ("feature_input_hook", "feature_output_hook")]
    named = [f"blocks.{layer[1]}.{hook}" if layer and hook else None for hook in hooks]
    reads, writes = source.places([named[0]], [named[1]])
    source.notes.append("circuit-tracer sets the features of position 0 to zero; this does not")
    return Dictionary(
        encoder,
        weights.take("b_enc", width),
        decoder,
        weights.take("b_dec", d_out),
        threshold,
        reads,
        writes,
        architecture="skip_transcoder" if "W_skip" in weights else "transcoder",
        skip=weights.take("W_skip", d_out, d_in) if "W_skip" in weights else None,
        selection="topk" if topk else "all",
        k=whole({"k": k}, "k", source.path) if topk else None,
        meta=source.meta("circuit_tracer", model_name=config.get("model_name")),
    )


def load_cross_layer(folder: str | Path, *, reads: str = "r{}.mid", writes: str = "m{}") -> CrossLayer:
    """A cross-layer transcoder in circuit-tracer's layout: `W_enc_3.safetensors`, `W_dec_3.safetensors`, ...

    Args:
        folder: holds the files of all layers.
        reads, writes: places with `{}` for the layer, if the folder has no `config.yaml` that says them.

    Raises:
        DictionaryError: a layer is missing, or tensors do not have the shapes they must have.
    """
    folder = Path(folder)
    n = len(list(folder.glob("W_enc_*.safetensors")))
    if n == 0:
        raise DictionaryError("has no W_enc_0.safetensors", where=str(folder), fix="check the folder")
    config = read_yaml(folder)
    read_at = _places(folder, text(config, "feature_input_hook", folder), reads, n)
    written = _places(folder, text(config, "feature_output_hook", folder), writes, n)
    layers = []
    for i in range(n):
        weights, decoders = (read_tensors(folder / f"W_{part}_{i}.safetensors") for part in ("enc", "dec"))
        encoder = weights.take(f"W_enc_{i}", None, None)
        width = len(encoder)
        decoder = decoders.take(f"W_dec_{i}", width, n - i, None)
        d_out = decoder.shape[-1]
        bias = torch.zeros(n - i, d_out)
        bias[0] = weights.take(f"b_dec_{i}", d_out)
        key = f"threshold_{i}"
        layers.append(
            Dictionary(
                encoder,
                weights.take(f"b_enc_{i}", width),
                decoder.flatten(1),
                bias.flatten(),
                weights.flat(key, width) if key in weights else torch.zeros(width),
                (read_at[i],),
                written[i:],
                architecture="cross_layer",
                meta=Source(folder).meta("circuit_tracer", model_name=config.get("model_name")),
            )
        )
    return CrossLayer(tuple(layers))


def read_yaml(folder: Path) -> dict[str, Any]:
    """`config.yaml` of a folder; empty if there is none.

    Raises:
        DictionaryError: not readable as plain data.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DictionaryError(f"cannot be read ({error})", where=str(path)) from error
    if not isinstance(data, dict):
        raise DictionaryError("is not a mapping", where=str(path))
    return data


def _places(folder: Path, hook: str | None, template: str, n: int) -> tuple[str, ...]:
    """The place of every layer: from the config's hook, or from the user's template."""
    if hook is None:
        return tuple(template.format(i) for i in range(n))
    found = [place_of(f"blocks.{i}.{hook}") for i in range(n)]
    if None in found:
        raise DictionaryError(f"hook {hook!r} is not known", where=str(folder / "config.yaml"))
    return tuple(place for place in found if place is not None)
