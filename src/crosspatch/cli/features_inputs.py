"""From what was typed to places, text and dictionaries: what all commands on features begin with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspatch.errors import DictionaryError

if TYPE_CHECKING:
    from crosspatch.dictionaries import Dictionary
    from crosspatch.dictionaries.text import Text
    from crosspatch.model import Model

SHIPPED = "shipped"
RUN_CARD = "card.json"
"""What `crosspatch features train` records beside its dictionaries."""
ALL = ("input", "a*", "m*", "r*.post")
"""What `--places all` means."""

Dictionaries = Annotated[
    list[str] | None,
    typer.Option(
        "--dictionaries",
        "-d",
        help="shipped (of the embedded model, the default there), a folder of `crosspatch features train` or of one "
        "dictionary in any format, or PLACE=PATH where the files do not say the place; repeat for several.",
    ),
]


def load_dictionaries(model: Model, given: Sequence[str] | None) -> dict[str, Dictionary]:
    """Dictionaries by the place that they read, on the model's device.

    Args:
        model: what they are for; widths are checked.
        given: `shipped`, folders, `PLACE=PATH` (see `Dictionaries`); None or empty = `shipped` for the embedded model.

    Raises:
        DictionaryError: nothing given for another model, nothing readable there, one place twice, or another width than
            the model's.
        AddressError: a place that the model does not have.
    """
    from crosspatch.dictionaries import place_width, shipped

    if not given:
        if not is_embedded(model):
            raise DictionaryError(
                f"no dictionaries were given for {model.name}",
                where="--dictionaries",
                fix=f"give a folder; crosspatch features train --model {model.name} --text FILE --out FOLDER makes one",
            )
        given = [SHIPPED]
    found: dict[str, Dictionary] = {}
    for text in given:
        loaded = shipped().values() if text == SHIPPED else [dictionary for _, dictionary in _read(text)]
        for dictionary in loaded:
            place = " ".join(dictionary.reads)
            if place in found:
                raise DictionaryError(
                    f"a second dictionary of {place}", where=text, fix="give one for each place; PATH/NAME picks one"
                )
            found[place] = dictionary.to(model.device)
    for dictionary in found.values():
        for places, width in ((dictionary.reads, dictionary.d_in), (dictionary.writes, dictionary.d_out)):
            if (have := sum(place_width(model, place) for place in places)) != width:
                what = f"has {width} numbers per token at {' '.join(places)}, {model.name} has {have}"
                raise DictionaryError(what, where=repr(dictionary), fix="give dictionaries of this model")
    return found


def dictionary_folders(path: Path) -> list[Path]:
    """The folders of single dictionaries in a folder of `crosspatch features train`, or the path itself.

    Raises:
        DictionaryError: the folder's record was damaged.
    """
    if not (path / RUN_CARD).is_file():
        return [path]
    from crosspatch.results.files import read_json

    names = read_json(path / RUN_CARD).get("dictionaries")
    if not isinstance(names, dict) or not all(re.fullmatch(r"[\w.+-]+", name) for name in names):
        raise DictionaryError("lists no dictionaries", where=str(path / RUN_CARD), fix="give a dictionary's own folder")
    return [path / name for name in names]


def _read(text: str) -> Iterator[tuple[Path, Dictionary]]:
    """The dictionaries of one `--dictionaries`."""
    from crosspatch.dictionaries import load_dictionary

    place, given, name = text.rpartition("=")
    # A folder's own name may have an equals sign in it.
    path, reads = (Path(text), None) if not given or Path(text).exists() else (Path(name), place)
    for folder in dictionary_folders(path):
        yield folder, load_dictionary(folder, reads=reads)


def writable(dictionary: Dictionary) -> bool:
    """Whether its reconstruction can be put into a model (`m3.in` can only be read)."""
    return not any(place.endswith((".in", ".norm")) for place in dictionary.writes)


def is_embedded(model: Model) -> bool:
    """Whether it is the model that ships with the package."""
    from crosspatch.embedded import embedded_path

    return model.name == "embedded" or Path(model.name).absolute() == embedded_path()


def places_of(model: Model, asked: Sequence[str]) -> list[tuple[str, str]]:
    """Places to read and to write, `*` for every layer; `all` means `ALL`, `m3.in:m3` a transcoder.

    Raises:
        AddressError: not a place, or none of the model's.
        DictionaryError: nothing asked for, or one place twice.
    """
    from crosspatch.dictionaries import place_width

    found: list[tuple[str, str]] = []
    for text in (part for given in asked for part in re.split(r"[,\s]+", given) if part):
        for pattern in [one for one in ALL if one != "m*" or model.shape.has_mlp] if text == "all" else [text]:
            layers = range(model.shape.n_layers) if "*" in pattern else (0,)
            for layer in layers:
                read, _, write = pattern.replace("*", str(layer)).partition(":")
                found.append((read, write or read))
    for pair in found:
        for place in pair:
            place_width(model, place)
        if found.count(pair) > 1:
            raise DictionaryError(f"{pair[0]} twice", where="--places", fix="name each place once")
    if not found:
        raise DictionaryError("no place", where="--places", fix="use all, or a list such as r*.post,m2")
    return found


def text_of(model: Model, source: str | None, *, context: int, tokens: int, held_out: int, seed: int) -> Text:
    """Text for a model: what was asked for, or its own corpus where it is the embedded model.

    Raises:
        DictionaryError: none was given for another model, or it cannot be read.
    """
    from crosspatch.dictionaries.text import EMBEDDED, read_text

    if source is None:
        if not is_embedded(model):
            raise DictionaryError(
                f"no text was given for {model.name}", where="--text", fix="give a file or a folder of .txt or .jsonl"
            )
        source = EMBEDDED
    return read_text(model.tokenizer, source, context=context, tokens=tokens, held_out=held_out, seed=seed)
