"""One entry for all formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.load import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    sae_lens,
    sparsify,
)
from crosspatch.dictionaries.load.reading import read_tensors
from crosspatch.dictionaries.load.source import Source
from crosspatch.errors import DictionaryError

FORMATS: dict[str, Callable[[Source], Dictionary]] = {
    "sae_lens": sae_lens.read,
    "sparsify": sparsify.read,
    "llama_scope": llama_scope.read,
    "dictionary_learning": dictionary_learning.read,
    "gemma_scope": gemma_scope.read,
    "circuit_tracer": circuit_tracer.read,
}
"""Format -> its reader."""

_MARKS = {
    "sae_lens": ("sae_weights.safetensors",),
    "sparsify": ("sae.safetensors",),
    "llama_scope": ("hyperparams.json",),
    "dictionary_learning": ("ae.pt",),
    "gemma_scope": ("params.npz", "params.safetensors"),
}


def load_dictionary(
    path: str | Path,
    format: str | None = None,
    *,
    reads: str | Sequence[str] | None = None,
    writes: str | Sequence[str] | None = None,
    input_scale: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Dictionary:
    """Read a dictionary from disk, in the units of whoever trained it (`.fold()` makes decoder rows unit length).

    Args:
        path: the folder that holds it, or the file.
        format: one of `FORMATS`; default: the one whose file names are found. `meta["format"]` of the result says which
            was taken, `meta["notes"]` what there is to know.
        reads, writes: where it belongs, if the files do not say or say it wrongly.
        input_scale: factor that activations were multiplied by in training; asked for where it matters and is not in
            the files.

    Raises:
        DictionaryError: cannot be read, is of an unknown format, or its tensors do not have the shapes they must have;
            names file, key, expected shape and what to do.
    """
    source = Source(Path(path), _tuple(reads), _tuple(writes), input_scale)
    if not source.path.exists():
        raise DictionaryError("does not exist", where=str(path), fix="give a local folder or file")
    if format is None:
        format = guess_format(source.path)
    if format not in FORMATS:
        raise DictionaryError(f"format {format!r} is unknown", where=str(path), fix=f"one of {', '.join(FORMATS)}")
    return FORMATS[format](source).to(device, dtype)


def guess_format(path: Path) -> str:
    """The format of a folder or file, by the names in it.

    Raises:
        DictionaryError: no known one, or several.
    """
    if path.is_dir():
        found = [name for name, marks in _MARKS.items() if any((path / mark).is_file() for mark in marks)]
        if len(found) == 1:
            return found[0]
        what = f"looks like {' and '.join(found)}" if found else "is of no known format"
        raise DictionaryError(what, where=str(path), fix=f"pass format=, one of {', '.join(FORMATS)}")
    by_name = [name for name, marks in _MARKS.items() if path.name in marks]
    if by_name:
        return by_name[0]
    if path.suffix in (".npz", ".pt"):
        return "gemma_scope" if path.suffix == ".npz" else "dictionary_learning"
    keys = read_tensors(path)
    if "w_enc" in keys:
        return "gemma_scope"
    if "W_enc" in keys and "b_dec" in keys:
        return "circuit_tracer"
    raise DictionaryError("is of no known format", where=str(path), fix=f"pass format=, one of {', '.join(FORMATS)}")


def _tuple(places: str | Sequence[str] | None) -> tuple[str, ...] | None:
    return (places,) if isinstance(places, str) else None if places is None else tuple(places)
