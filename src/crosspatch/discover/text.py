"""Documents to read: the embedded model's generator, which says what it is doing, or files of plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crosspatch.dictionaries.text import EMBEDDED, documents

SHOWN = " (frame)"
"""Follows the behaviour in the label of a word that the behaviour does not determine."""
PIECE = 2000
"""Characters after which a document is cut, at the next end of a line: of a book more than one sample is wanted."""
_WORD = re.compile(r" ?(?:\w+|[^\w\s]+)")


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: as it is tokenised.
        labels: (first character, label) in order; each holds up to the next one. Empty where nobody knows.
    """

    text: str
    labels: tuple[tuple[int, str], ...] = ()

    def label_at(self, character: int) -> str | None:
        """What the generator was doing at a character."""
        found = [label for start, label in self.labels if start <= character]
        return found[-1] if found else None


def read_documents(source: str | Path, seed: int | str = 0) -> Iterator[Document]:
    """Documents of a text.

    Args:
        source: `embedded` (the embedded model's generator, without end), a file, or a folder of files (see
            `dictionaries.text.documents`).
        seed: of the generator.

    Raises:
        DictionaryError: no such file, nothing in the folder, a file that is no text; when the first one is asked for.
    """
    if str(source) == EMBEDDED:
        return embedded_documents(seed)
    return (Document(piece) for text in documents(Path(source)) for piece in _pieces(text))


def embedded_documents(seed: int | str = 0) -> Iterator[Document]:
    """What the embedded model was trained on, labelled by the behaviour that each word belongs to.

    A word that the behaviour determines (the indirect object, the verb that agrees) has its name for a label; all
    others, which are sure for being part of a fixed sentence, have `SHOWN` behind it.
    """
    from crosspatch.embedded import corpus

    for parts in corpus.document_parts(seed):
        text, labels = "", []
        for part in parts:
            labels.append((len(text), part.behaviour + SHOWN))
            text += " " if text else ""
            pieces = part.text.split(corpus.MARK)
            text += pieces[0]
            for piece in pieces[1:]:
                word = _WORD.match(piece)
                labels.append((len(text), part.behaviour))
                labels.append((len(text) + (word.end() if word else 0), part.behaviour + SHOWN))
                text += piece
        yield Document(text, tuple(labels))


def _pieces(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        end = text.find("\n", at + PIECE)
        end = len(text) if end < 0 else end + 1
        if text[at:end].strip():
            yield text[at:end].strip("\n")
        at = end
