"""The dictionaries of the embedded model that ship with the package.

Trained by `crosspatch features train` (the command and the measures are in the folder's `README.md` and `card.json`).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.load import load_dictionary
from crosspatch.errors import DictionaryError


def shipped_path() -> Path:
    """Their folder: one folder in SAELens' layout for each place, `card.json` and `README.md`."""
    return Path(str(files("crosspatch.embedded"))) / "dictionaries"


def shipped() -> dict[str, Dictionary]:
    """Place -> dictionary, in float32 and in the order of the computation.

    The places are `input` and, of each of the four blocks, what attention adds, what the MLP adds, and the stream after
    it: `a0`, `m0`, `r0.post`, ... Decoder rows have length 1.

    Raises:
        DictionaryError: a file was damaged.
    """
    found = [load_dictionary(path) for path in shipped_path().iterdir() if path.is_dir()]
    by_place = {dictionary.reads[0]: dictionary for dictionary in found}
    places = ["input", *(place for layer in range(4) for place in (f"a{layer}", f"m{layer}", f"r{layer}.post"))]
    if missing := [place for place in places if place not in by_place]:
        raise DictionaryError(f"{missing[0]} is missing", where=str(shipped_path()), fix="install the package again")
    return {place: by_place[place] for place in places}
