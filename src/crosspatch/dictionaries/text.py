"""Text to train and measure dictionaries on: the embedded model's own corpus, or files, a part of it held out."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from jaxtyping import Int
from torch import Tensor

from crosspatch.dictionaries.train.stream import contexts
from crosspatch.errors import DictionaryError
from crosspatch.tasks.encode import Encoder

EMBEDDED = "embedded"
"""The name of the embedded model's corpus."""
SUFFIXES = (".txt", ".jsonl")
"""Files that hold text; each may also end in `.xz` or `.gz`. Lines of `.jsonl` are objects with a `text`."""
SEPARATOR = "<|endoftext|>"
"""A line that stands between two documents of one file."""
PIECE = 4000
"""Characters after which a document is cut, at the next end of a line, so that a part of every book is held out."""
HELD_OUT_ONE_IN = 20

Prompts = Sequence[Sequence[int]] | Int[Tensor, "prompt position"]


@dataclass(frozen=True, eq=False)
class Text:
    """Prompts of one source.

    Args:
        train, held_out: token ids; nothing of `held_out` is in `train`.
        about: where they come from, as plain data, with a SHA-256 of the token ids.
    """

    train: Prompts
    held_out: Prompts
    about: dict[str, Any] = field(default_factory=dict)


def read_text(
    tokenizer: Any,
    source: str | Path,
    *,
    context: int = 128,
    tokens: int = 1_000_000,
    held_out: int = 20_000,
    seed: int = 0,
) -> Text:
    """Prompts from the embedded corpus or from files.

    The embedded corpus gives one document per prompt after the beginning-of-text token, which is what the embedded
    model read in training. Files are cut into pieces; every twentieth is held out; the others, one after another,
    make prompts of `context` tokens, each after what the tokenizer puts before a text.

    Args:
        tokenizer: of the model.
        source: `embedded`, a file, or a folder (see `SUFFIXES`), read from the beginning as far as needed.
        context: tokens of a prompt.
        tokens, held_out: about so many tokens of either part, fewer where there is less text; 0 = none. What is held
            out does not depend on `tokens`.
        seed: of the embedded corpus's documents; files have none.

    Raises:
        DictionaryError: no tokenizer, no such file, not text, or too little of it.
    """
    if tokenizer is None:
        raise DictionaryError("the model has no tokenizer", where=str(source), fix="load it with one")
    train: Prompts
    kept: Prompts
    if str(source) == EMBEDDED:
        train, kept = _generated(tokenizer, seed, context, tokens, held_out)
        about: dict[str, Any] = {"source": EMBEDDED, "seed": seed, "prompts": "one document each"}
    else:
        train, kept = _from_files(tokenizer, Path(source), context, tokens, held_out)
        about = {"source": str(source), "prompts": f"{context} tokens each"}
    sizes = {"tokens": sum(map(len, train)), "held_out_tokens": sum(map(len, kept))}
    return Text(train, kept, {**about, **sizes, "sha256": digest(train), "held_out_sha256": digest(kept)})


def digest(prompts: Prompts) -> str:
    """SHA-256 of token ids."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(torch.as_tensor(prompt, dtype=torch.int64).numpy().tobytes() + b"|")
    return found.hexdigest()


def documents(path: Path) -> Iterator[str]:
    """The documents of a file or of all files in a folder, in the order of their names.

    Raises:
        DictionaryError: no such file, none that holds text, or a file that is not text.
    """
    for file in _files(path):
        try:
            with _open(file) as lines:
                yield from _objects(lines, file) if ".jsonl" in file.suffixes[-2:] else _separated(lines)
        except (OSError, UnicodeDecodeError, EOFError, lzma.LZMAError) as error:
            raise DictionaryError(f"cannot be read as text ({error})", where=str(file), fix="give UTF-8") from error


def _generated(
    tokenizer: Any, seed: int, context: int, tokens: int, held_out: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Documents of the generator; those held out are of another seed, and none of them is in the other part."""
    from crosspatch.embedded import corpus

    [bos] = Encoder(tokenizer).bos.ids or [tokenizer.bos_token_id]

    def take(source: Iterator[str], wanted: int, without: set[tuple[int, ...]]) -> list[list[int]]:
        found: list[list[int]] = []
        n = 0
        while n < wanted:
            texts = [document.replace(corpus.MARK, "") for document in islice(source, 1024)]
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                row = [bos, *ids][:context]
                if n < wanted and tuple(row) not in without:
                    found.append(row)
                    n += len(row)
        return found

    kept = take(corpus.documents(f"{seed} held out"), held_out, set())
    return take(corpus.documents(seed), tokens, set(map(tuple, kept))), kept


def _from_files(tokenizer: Any, path: Path, context: int, tokens: int, held_out: int) -> tuple[Prompts, Prompts]:
    bos = Encoder(tokenizer).bos.ids

    def part(kept: bool, wanted: int) -> Prompts:
        pieces = enumerate(_pieces(documents(path)))
        texts = (piece for i, piece in pieces if (i % HELD_OUT_ONE_IN == 0) == kept)
        limit = max(1, wanted // context)
        return contexts(tokenizer, texts, context, bos=bos[0] if bos else None, limit=limit) if wanted else []

    return part(False, tokens), part(True, held_out)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Documents, long ones cut at the ends of lines."""
    for text in texts:
        at = 0
        while at < len(text):
            end = text.find("\n", at + PIECE)
            end = len(text) if end < 0 else end + 1
            yield text[at:end]
            at = end


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DictionaryError("no such file or folder", where=str(path), fix="give a text file, a folder of them")
    found = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and any(f".{part}" in SUFFIXES for part in file.name.split(".")[-2:])
    )
    if not found:
        raise DictionaryError("no text in the folder", where=str(path), fix=f"files end in {', '.join(SUFFIXES)}")
    return found


def _open(file: Path) -> IO[str]:
    opened = {".xz": lzma.open, ".gz": gzip.open}.get(file.suffix, open)
    return opened(file, "rt", encoding="utf-8")  # type: ignore[operator]


def _objects(lines: Iterable[str], file: Path) -> Iterator[str]:
    for i, line in enumerate(lines, 1):
        try:
            text = json.loads(line)["text"] if line.strip() else ""
        except (ValueError, KeyError, TypeError) as error:
            raise DictionaryError("is no object with a text", where=f"{file} line {i}") from error
        if not isinstance(text, str):
            raise DictionaryError("is no object with a text", where=f"{file} line {i}")
        yield text


def _separated(lines: Iterable[str]) -> Iterator[str]:
    kept: list[str] = []
    for line in lines:
        if line.strip() == SEPARATOR:
            yield "".join(kept)
            kept = []
        else:
            kept.append(line)
    if kept:
        yield "".join(kept)
