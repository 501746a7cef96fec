"""Labelled texts, and what a model, a dictionary and its neighbouring neurons say of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.places import place_keys, place_layer, read_place
from crosspatch.errors import DictionaryError
from crosspatch.graph import parse_site
from crosspatch.model import Model, record
from crosspatch.tasks.encode import Encoder

Values = Float[np.ndarray, "text column"]
Pool = Literal["mean", "last"]


@dataclass(frozen=True)
class Texts:
    """Texts with labels.

    Args:
        name: what they are.
        texts: the texts.
        labels: attribute -> label of every text.
        pool: which tokens stand for a text: the mean over all of them but the first (`mean`), or the last one.

    Raises:
        DictionaryError: no text, no attribute, or labels that are not one for each text.
    """

    name: str
    texts: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        if not self.texts or not self.labels:
            raise DictionaryError("labelled texts need a text and an attribute", where=self.name)
        for attribute, labels in self.labels.items():
            if len(labels) != len(self.texts):
                raise DictionaryError(
                    f"{len(labels)} labels for {len(self.texts)} texts", where=f"{self.name}/{attribute}"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def classes(self, attribute: str) -> list[str]:
        """Labels of an attribute, sorted.

        Raises:
            DictionaryError: no such attribute.
        """
        if attribute not in self.labels:
            raise DictionaryError(
                f"has no attribute {attribute!r}", where=self.name, fix=f"one of {', '.join(self.labels)}"
            )
        return sorted(set(self.labels[attribute]))

    def split(self, seed: int) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
        """Halves with about the same share of every combination of labels. Equal texts are never on both sides."""
        rng = np.random.default_rng(seed)
        cells: dict[tuple[str, ...], dict[str, list[int]]] = {}
        for i, text in enumerate(self.texts):
            cell = tuple(labels[i] for labels in self.labels.values())
            cells.setdefault(cell, {}).setdefault(text, []).append(i)
        halves: tuple[list[int], list[int]] = ([], [])
        seen: dict[str, int] = {}
        for cell in sorted(cells):
            for at, which in enumerate(rng.permutation(len(cells[cell]))):
                text = list(cells[cell])[which]
                halves[seen.setdefault(text, at % 2)].extend(cells[cell][text])
        train, test = (np.array(sorted(half), dtype=np.int64) for half in halves)
        return train, test


def read_texts(path: str | Path, pool: Pool = "mean") -> Texts:
    """Labelled texts of a JSONL file: `text`, and further fields as attributes.

    Raises:
        DictionaryError: a file that cannot be read, or a line that is not such an object; names file and line.
    """
    path = Path(path)
    texts: list[str] = []
    labels: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DictionaryError(f"cannot be read ({error})", where=str(path), fix="give a UTF-8 JSONL file") from error
    fix = 'one object a line, as {"text": "She cares for patients.", "profession": "nurse", "gender": "female"}'
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DictionaryError(f"is not JSON ({error})", where=where, fix=fix) from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"] or len(row) < 2:
            raise DictionaryError("needs a text and at least one attribute", where=where, fix=fix)
        attributes = {str(key): value for key, value in row.items() if key != "text"}
        if texts and set(attributes) != set(labels):
            raise DictionaryError(f"has attributes {sorted(attributes)}, others {sorted(labels)}", where=where, fix=fix)
        for key, value in attributes.items():
            if not isinstance(value, str | int | bool):
                raise DictionaryError(f"{key} is {value!r}, a label is a word or a number", where=where, fix=fix)
            labels.setdefault(key, []).append(str(value))
        texts.append(row["text"])
    return Texts(path.stem, tuple(texts), {key: tuple(value) for key, value in labels.items()}, pool)


@dataclass(frozen=True, eq=False)
class Pooled:
    """One row of numbers for each text.

    Args:
        reads: the activation that the dictionary reads.
        writes: the activation that it writes.
        features: its features, in units in which decoder rows have length 1.
        neurons: hidden neurons of the nearest MLP that the activation can depend on, or None where there is none.
        decoder: those decoder rows.
    """

    reads: Values
    writes: Values
    features: Values
    neurons: Values | None
    decoder: Float[np.ndarray, "feature d_out"]


@torch.no_grad()
def pooled(model: Model, dictionary: Dictionary, texts: Texts, tokens_per_pass: int = 4096) -> Pooled:
    """Run the texts and pool over tokens what is active in each.

    The mean over tokens is taken of activations and features alike, so that taking pooled features (times their
    directions) off a pooled activation is what ablating them at every token does.

    Raises:
        DictionaryError: a text of one token only (the first does not count), or a dictionary of other widths.
        AddressError: the model has no such place.
    """
    folded = dictionary.fold()
    encoder = Encoder(model.tokenizer)
    prompts = [encoder.encode(text).ids for text in texts.texts]
    for text, ids in zip(texts.texts, prompts, strict=True):
        if len(ids) < 2:
            raise DictionaryError(f"the text {text!r} is one token, and the first does not count", where=texts.name)
    hidden = neurons_near(model, dictionary)
    places = [*dictionary.reads, *dictionary.writes, *([hidden] if hidden else [])]
    keys = place_keys(model, places)
    parts: dict[str, list[np.ndarray]] = {"reads": [], "writes": [], "features": [], "neurons": []}
    at = 0
    while at < len(prompts):
        end, tokens = at, 0
        while end < len(prompts) and (end == at or tokens + len(prompts[end]) <= tokens_per_pass):
            tokens += len(prompts[end])
            end += 1
        run = record(model, prompts[at:end], keys=keys)
        x, y = read_place(run, dictionary.reads), read_place(run, dictionary.writes)
        for name, have, want in (("reads", x, dictionary.d_in), ("writes", y, dictionary.d_out)):
            if have.shape[1] != want:
                raise DictionaryError(
                    f"{name} {want} numbers per token, the model has {have.shape[1]} there", where=repr(dictionary)
                )
        values = {"reads": x, "writes": y, "features": folded.encode(x)}
        if hidden:
            values["neurons"] = read_place(run, [hidden])
        first = 1 if texts.pool == "mean" else None
        for name, value in values.items():
            for i in range(len(run.tokens)):
                mine = value[run.offset[i] : run.offset[i + 1]]
                row = mine[first:].mean(0) if first else mine[-1]
                parts[name].append(row.float().cpu().numpy())
        at = end
    stacked = {name: np.stack(rows).astype(np.float64) for name, rows in parts.items() if rows}
    decoder = folded.decoder.double().cpu().numpy()
    return Pooled(stacked["reads"], stacked["writes"], stacked["features"], stacked.get("neurons"), decoder)


def neurons_near(model: Model, dictionary: Dictionary) -> str | None:
    """`m<layer>.act` of the last MLP that has acted on what the dictionary writes; None where there is none."""
    place = dictionary.writes[-1]
    done = place.endswith(".post") or place.startswith("m")
    layer = place_layer(place) - (0 if done else 1)
    if not model.shape.has_neurons or layer < 0:
        return None
    return str(parse_site(f"m{layer}.act"))


def alive(features: Values) -> Int[np.ndarray, " column"]:
    """Columns that are not zero everywhere."""
    return np.flatnonzero((features != 0).any(0))


def mean_difference(values: Values, positive: np.ndarray) -> Float[np.ndarray, " column"]:
    """Mean over the positive texts minus mean over the others."""
    return values[positive].mean(0) - values[~positive].mean(0)


def check_classes(texts: Texts, attribute: str, chosen: Int[np.ndarray, " text"], least: int = 4) -> list[str]:
    """The attribute's labels that at least `least` of the chosen texts have, and others not."""
    labels = np.array(texts.labels[attribute])[chosen]
    return [c for c in texts.classes(attribute) if least <= (labels == c).sum() <= len(labels) - least]
