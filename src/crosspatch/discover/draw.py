"""From text to samples: where the model is sure of the next token, and not because it saw the same thing before.

Marks et al. 2025 (arXiv 2403.19647, section 5) keep tokens of a cross-entropy below 0.1 or 0.3 nats and drop induction:
answers that followed the same token earlier in the context (their other filter: the same two tokens).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from crosspatch.discover.samples import Samples
from crosspatch.discover.text import Document
from crosspatch.errors import TaskError
from crosspatch.model import Model, record
from crosspatch.tasks.encode import Encoder

Induction = Literal["bigram", "trigram", "keep"]
"""What counts as induction and is dropped: the answer followed the same last token, or the same last two tokens,
earlier in the context; or nothing is dropped."""
TOKENS_EACH = 5000
"""Tokens that are read for one sample before it is given up."""
READS_PER_CHUNK = 2048
"""Rows of logits that exist at one time."""


@dataclass(frozen=True)
class Piece:
    """Token ids of a part of a document, with the label of each token."""

    ids: list[int]
    labels: list[str | None]
    document: int


def repeats(ids: Sequence[int], at: int, n: int) -> bool:
    """Whether the token at `at` and the `n` before it stand together earlier, too."""
    if at < n:
        return False
    tail = tuple(ids[at - n : at + 1])
    return any(tuple(ids[end - n : end + 1]) == tail for end in range(n, at))


def draw_samples(
    model: Model,
    documents: Iterable[Document | str],
    n: int,
    *,
    threshold: float = 0.3,
    induction: Induction = "bigram",
    per_document: int = 1,
    every: int = 1,
    length: int = 64,
    seed: int = 0,
    text: str = "",
    tokens_per_pass: int = 4096,
    most_tokens: int | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> Samples:
    """Read documents until there are `n` samples, or no more documents.

    Args:
        model: with a tokenizer.
        documents: texts, as `read_documents` gives them.
        threshold: largest cross-entropy of the answer, in nats.
        induction: see `Induction`.
        per_document: at most so many samples of one document, chosen at random among those that pass.
        every: keep every so many-th of what passes all other filters.
        length: tokens of the longest context and its answer; longer documents are cut into pieces.
        seed: of the choice within a document.
        text: a name for the text.
        tokens_per_pass: how many tokens go through the model together.
        most_tokens: give up after so many, for a text may have no end; None: `TOKENS_EACH` for every sample wanted, and
            a million at least.
        progress: called with (samples found, n).

    Raises:
        TaskError: settings that are not numbers of the kind, no tokenizer, or not one sample in the whole text.
    """
    _check(n, threshold, induction, per_document, every, length)
    if model.tokenizer is None:
        raise TaskError("the model has no tokenizer", where=model.name, fix="load it with one")
    limit = length if model.context is None else min(length, model.context)
    most = max(10**6, TOKENS_EACH * n) if most_tokens is None else most_tokens
    encoder = Encoder(model.tokenizer)
    order = {"bigram": 1, "trigram": 2, "keep": 0}[induction]
    kept: list[tuple[Piece, int, float]] = []
    counts = Counter(tokens=0, sure=0, induction=0, capped=0, documents=0, passed=0)
    for batch in _batches(_pieces(encoder, documents, limit), tokens_per_pass):
        found: dict[int, list[tuple[Piece, int, float]]] = {}
        for piece, losses in zip(batch, _losses(model, batch), strict=True):
            counts["tokens"] += len(losses)
            chosen = found.setdefault(piece.document, [])
            # What stands before the text is no context.
            for at in range(max(1, len(encoder.bos.ids)) + 1, len(piece.ids)):
                if losses[at - 1] >= threshold:
                    continue
                counts["sure"] += 1
                if order and repeats(piece.ids, at, order):
                    counts["induction"] += 1
                else:
                    chosen.append((piece, at, float(losses[at - 1])))
        for document, chosen in found.items():
            counts["documents"] += 1
            draw = _generator(seed, document)
            picked = sorted(draw.permutation(len(chosen))[:per_document].tolist())
            counts["capped"] += len(chosen) - len(picked)
            for i in picked:
                if counts["passed"] % every == 0 and len(kept) < n:
                    kept.append(chosen[i])
                counts["passed"] += 1
        if progress is not None:
            progress(len(kept), n)
        if len(kept) >= n or counts["tokens"] >= most:
            break
    if not kept:
        raise TaskError(
            f"none of {counts['tokens']} tokens has a loss below {threshold} nats and is no induction "
            f"({counts['sure']} were sure, {counts['induction']} of them induction)",
            where=text or "text",
            fix="raise the threshold, give more text, or keep induction",
        )
    origin = {
        "text": text,
        "model": model.name,
        "threshold": threshold,
        "induction": induction,
        "per_document": per_document,
        "every": every,
        "length": length,
        "seed": seed,
        "bos": list(encoder.bos.ids),
        "counts": dict(counts),
    }
    return _samples(kept, encoder, origin)


def _check(n: int, threshold: float, induction: str, per_document: int, every: int, length: int) -> None:
    for name, value, least in (
        ("n", n, 1),
        ("per_document", per_document, 1),
        ("every", every, 1),
        ("length", length, 3),
    ):
        if value < least:
            raise TaskError(f"{name}={value}", where="draw_samples", fix=f"give at least {least}")
    if not threshold > 0:
        raise TaskError(f"threshold={threshold}", where="draw_samples", fix="give nats, more than 0")
    if induction not in get_args(Induction):
        names = ", ".join(get_args(Induction))
        raise TaskError(f"induction={induction!r}", where="draw_samples", fix=f"use one of {names}")


def _generator(seed: int, document: int) -> np.random.Generator:
    """A draw that depends on the document, not on what was read before it."""
    return np.random.default_rng([seed, document])


def _pieces(encoder: Encoder, documents: Iterable[Document | str], length: int) -> Iterator[Piece]:
    """Documents as token ids, cut where they are too long; each piece begins as a text does."""
    bos = list(encoder.bos.ids)
    body = length - len(bos)
    for number, given in enumerate(documents):
        document = Document(given) if isinstance(given, str) else given
        fast = bool(document.labels) and getattr(encoder.tokenizer, "is_fast", False)
        out: Any = encoder.tokenizer(
            document.text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False
        )
        ids = list(out["input_ids"])
        labels = [document.label_at(start) for start, _ in out["offset_mapping"]] if fast else [None] * len(ids)
        for at in range(0, len(ids), body):
            if len(ids[at : at + body]) > 1:
                yield Piece([*bos, *ids[at : at + body]], [*[None] * len(bos), *labels[at : at + body]], number)


def _batches(pieces: Iterator[Piece], tokens: int) -> Iterator[list[Piece]]:
    """Pieces that go through the model together; those of one document are never apart."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        if size >= tokens and piece.document != batch[-1].document:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece.ids)
    if batch:
        yield batch


@torch.no_grad()
def _losses(model: Model, batch: list[Piece]) -> list[Float[np.ndarray, " token"]]:
    """Cross-entropy of every token but the first of each piece, in nats."""
    run = record(model, [piece.ids for piece in batch], read=[range(len(piece.ids) - 1) for piece in batch])
    following = torch.tensor([token for piece in batch for token in piece.ids[1:]], device=run.hidden.device)
    found = []
    for at in range(0, len(following), READS_PER_CHUNK):
        logits = model.unembed(run.hidden[at : at + READS_PER_CHUNK]).float()
        wanted = following[at : at + READS_PER_CHUNK].to(logits.device)
        found.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().cpu())
    losses = torch.cat(found).numpy()
    return np.split(losses, np.cumsum([len(piece.ids) - 1 for piece in batch])[:-1])


def _samples(kept: list[tuple[Piece, int, float]], encoder: Encoder, origin: dict[str, Any]) -> Samples:
    labels = [piece.labels[at] for piece, at, _ in kept]
    contexts = [tuple(piece.ids[:at]) for piece, at, _ in kept]
    answers = np.array([piece.ids[at] for piece, at, _ in kept], dtype=np.int64)
    used = sorted({token for context in contexts for token in context} | set(answers.tolist()))
    return Samples(
        contexts,
        answers,
        np.array([loss for _, _, loss in kept]),
        np.array([piece.document for piece, _, _ in kept], dtype=np.int64),
        None if any(label is None for label in labels) else [str(label) for label in labels],
        {token: encoder.readable(token) for token in used},
        origin,
    )
