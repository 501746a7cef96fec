"""Contexts with the token that the model is sure of after them, as they were found. Plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from crosspatch.errors import ResultError, TaskError
from crosspatch.results.files import REPAIR, drop_tables, read_json, read_table, write_json, write_table

FORMAT, VERSION, FILE = "crosspatch-samples", 1, "samples.json"


@dataclass(frozen=True, eq=False)
class Samples:
    """Confident predictions of a model; make them with `draw_samples`.

    Attributes:
        contexts: token ids, as the model read them.
        answers: the token that followed.
        losses: its cross-entropy, in nats.
        documents: number of the document that each came from, in the order of the text. Samples of one document are
            not independent: intervals resample documents.
        labels: what the text's generator was doing there, where it says so. Only for judging a clustering; nothing
            that makes one looks at it.
        tokens: readable text of every token id that occurs.
        origin: JSON values: text, model, filters, and how many tokens each filter took.
    """

    contexts: list[tuple[int, ...]]
    answers: Int[np.ndarray, " sample"]
    losses: Float[np.ndarray, " sample"]
    documents: Int[np.ndarray, " sample"]
    labels: list[str] | None
    tokens: Mapping[int, str]
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.contexts)
        sizes = {
            "answers": len(self.answers),
            "losses": len(self.losses),
            "documents": len(self.documents),
            "labels": n if self.labels is None else len(self.labels),
        }
        if wrong := [name for name, size in sizes.items() if size != n]:
            raise TaskError(f"{n} contexts, but {sizes[wrong[0]]} {wrong[0]}", where="Samples")
        if not all(self.contexts):
            raise TaskError("an empty context", where="Samples", fix="give at least one token before every answer")

    def __len__(self) -> int:
        return len(self.contexts)

    def __repr__(self) -> str:
        return f"<Samples: {len(self)} of {len(set(self.documents.tolist()))} documents, {self.origin.get('text')}>"

    @cached_property
    def digests(self) -> list[str]:
        """A short name for every context with its answer."""
        pairs = zip(self.contexts, self.answers.tolist(), strict=True)
        return [hashlib.sha256(repr((list(a), b)).encode()).hexdigest()[:16] for a, b in pairs]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all samples: whether vectors and clusters are of these."""
        return hashlib.sha256(" ".join(self.digests).encode()).hexdigest()

    def select(self, chosen: Sequence[int] | Int[np.ndarray, " sample"]) -> Samples:
        """These only, in this order."""
        index = np.asarray(chosen, dtype=np.int64)
        labels = None if self.labels is None else [self.labels[i] for i in index]
        return replace(
            self,
            contexts=[self.contexts[i] for i in index],
            answers=self.answers[index],
            losses=self.losses[index],
            documents=self.documents[index],
            labels=labels,
        )

    def words(self, sample: int) -> list[str]:
        """The tokens of a context as text."""
        return [self.tokens[token] for token in self.contexts[sample]]

    def word(self, sample: int) -> str:
        """The answer as text."""
        return self.tokens[int(self.answers[sample])]

    def save(self, folder: str | Path) -> Path:
        """Write `samples.json` and its table, atomically.

        Returns:
            The folder.
        """
        folder = Path(folder)
        table = pa.table(
            {
                "context": pa.array([list(ids) for ids in self.contexts], pa.list_(pa.int32())),
                "answer": pa.array(self.answers.astype(np.int32)),
                "loss": pa.array(self.losses.astype(np.float64)),
                "document": pa.array(self.documents.astype(np.int64)),
                "label": pa.array([None] * len(self) if self.labels is None else self.labels, pa.string()),
            }
        )
        told = write_table(folder, "samples", table)
        about = {"format": FORMAT, "version": VERSION, "table": told}
        words = {str(token): text for token, text in sorted(self.tokens.items())}
        write_json(folder / FILE, {**about, "hash": self.hash, "origin": self.origin, "tokens": words})
        drop_tables(folder, ["samples"], [told])
        return folder


def load_samples(folder: str | Path) -> Samples:
    """Read what `Samples.save` wrote.

    Raises:
        ResultError: a file that is missing, cut off, edited, or something else.
    """
    folder = Path(folder)
    where = str(folder / FILE)
    data = read_json(folder / FILE)
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise ResultError(f"is not a file of the format {FORMAT} {VERSION}", where=where, fix=REPAIR)
    try:
        table = read_table(folder, data["table"])
        if empty := [name for name in ("answer", "loss", "document") if table[name].null_count]:
            raise ValueError(f"empty cells in {empty[0]}")
        labels = table["label"].to_pylist()
        made = Samples(
            [tuple(ids) for ids in table["context"].to_pylist()],
            table["answer"].to_numpy().astype(np.int64),
            table["loss"].to_numpy().astype(np.float64),
            table["document"].to_numpy().astype(np.int64),
            None if None in labels else labels,
            {int(token): str(text) for token, text in data["tokens"].items()},
            dict(data["origin"]),
        )
    except ResultError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, TaskError) as error:
        raise ResultError(f"cannot be read ({error})", where=where, fix=REPAIR) from error
    unknown = set(made.answers.tolist()).union(*made.contexts) - set(made.tokens)
    if unknown or not np.isfinite(made.losses).all():
        what = f"token {min(unknown)} has no text" if unknown else "a loss is not a number"
        raise ResultError(f"cannot be read ({what})", where=where, fix=REPAIR)
    if made.hash != data.get("hash"):
        raise ResultError("holds other samples than were written", where=where, fix=REPAIR)
    return made
