"""Where activations come from: a model that reads text, or arrays.

A stream gives batches of tokens with the activations of all places at once, so that one pass of the model feeds every
dictionary. Its state is plain tensors and numbers: saved and restored, it gives exactly the batches that it would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.dictionaries.places import place_keys, place_width, read_place
from crosspatch.errors import DictionaryError
from crosspatch.model import Model, record

Batch = dict[str, Float[Tensor, "token width"]]


class Stream(Protocol):
    """What `train` draws from."""

    def open(self, places: Sequence[str], batch: int, seed: int) -> None:
        """Get ready to give batches of these places, from the beginning."""

    def sample(self) -> Batch:
        """Many tokens to measure means and spreads on; does not move the stream."""

    def draw(self) -> Batch:
        """The next batch."""

    def state(self) -> dict[str, Any]:
        """Where the stream is."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where a stream of the same data was."""

    def describe(self) -> dict[str, Any]:
        """What a stream must have in common with another one to continue it."""


class Arrays:
    """Fixed activations, in a new order every time through.

    Args:
        values: place -> activations; rows of all places belong to the same tokens.

    Raises:
        DictionaryError: arrays of different lengths.
    """

    def __init__(self, values: Mapping[str, Float[Tensor, "token width"]]) -> None:
        if len({len(value) for value in values.values()}) != 1:
            sizes = {place: len(value) for place, value in values.items()}
            raise DictionaryError(f"lengths differ: {sizes}", where="Arrays", fix="one row for each token")
        self.values = dict(values)

    def open(self, places: Sequence[str], batch: int, seed: int) -> None:
        missing = [place for place in places if place not in self.values]
        if missing:
            raise DictionaryError(
                f"no array for {missing[0]}", where="Arrays", fix=f"there are {', '.join(self.values)}"
            )
        self._kept = {place: self.values[place] for place in places}
        self._n = len(next(iter(self._kept.values())))
        self._batch, self._seed = min(batch, self._n), seed
        self._epoch, self._at = 0, 0
        self._order = _permutation(self._n, seed, 0)

    def sample(self) -> Batch:
        return self._kept

    def draw(self) -> Batch:
        if self._at + self._batch > self._n:
            self._epoch, self._at = self._epoch + 1, 0
            self._order = _permutation(self._n, self._seed, self._epoch)
        rows = self._order[self._at : self._at + self._batch]
        self._at += self._batch
        return {place: value[rows.to(value.device)] for place, value in self._kept.items()}

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "at": self._at}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._at = int(state["epoch"]), int(state["at"])
        self._order = _permutation(self._n, self._seed, self._epoch)

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for place, value in sorted(self._kept.items()):
            digest.update(place.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return {"data": digest.hexdigest(), "tokens": self._n}


class Activations:
    """Activations of a model on prompts, through a shuffling ring buffer.

    The buffer is drawn from in random order. When less than half of it has not been used, what was used is replaced by
    new activations and a new order is drawn: one permutation per refill, none per batch.

    Args:
        model: as `crosspatch.load` gives it.
        prompts: token ids, a list of lists or a matrix; they are gone through in a new random order every time.
        buffer: tokens in the buffer.
        drop_first: positions at the start of each prompt that are left out (the first token's activations are of
            another kind in most models).
        tokens_per_pass: how many tokens go through the model together.
        dtype: of the buffer; None = the model's.

    Raises:
        DictionaryError: no prompts, or prompts with nothing left after `drop_first`.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]] | Int[Tensor, "prompt position"],
        *,
        buffer: int = 2**17,
        drop_first: int = 1,
        tokens_per_pass: int = 8192,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.prompts = model, prompts
        self.buffer, self.drop_first, self.tokens_per_pass, self.dtype = buffer, drop_first, tokens_per_pass, dtype
        if len(prompts) == 0 or max(len(prompt) for prompt in prompts) <= drop_first:
            raise DictionaryError(
                f"no prompt has more than {drop_first} tokens", where="Activations", fix="give longer prompts"
            )

    def open(self, places: Sequence[str], batch: int, seed: int) -> None:
        self._places, self._batch, self._seed = tuple(places), batch, seed
        self._size = max(self.buffer, 2 * batch)
        self._epoch, self._next, self._refills, self._at = 0, 0, 0, 0
        self._order = _permutation(len(self.prompts), seed, 0)
        self._left: Batch = {}
        dtype = self.model.dtype if self.dtype is None else self.dtype
        self._buffer = {
            place: torch.empty(self._size, place_width(self.model, place), dtype=dtype, device=self.model.device)
            for place in places
        }
        self._fill(torch.arange(self._size))

    def sample(self) -> Batch:
        return self._buffer

    def draw(self) -> Batch:
        if self._at + self._batch > self._size // 2:
            self._fill(self._shuffled[: self._at])
        rows = self._shuffled[self._at : self._at + self._batch]
        self._at += self._batch
        return {place: value[rows.to(value.device)] for place, value in self._buffer.items()}

    def state(self) -> dict[str, Any]:
        counters = {"epoch": self._epoch, "next": self._next, "refills": self._refills, "at": self._at}
        return {**counters, "buffer": self._buffer, "left": self._left}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._next = int(state["epoch"]), int(state["next"])
        self._refills, self._at = int(state["refills"]), int(state["at"])
        for place, value in self._buffer.items():
            value.copy_(state["buffer"][place])
        self._left = {place: value.to(self.model.device) for place, value in state["left"].items()}
        self._order = _permutation(len(self.prompts), self._seed, self._epoch)
        self._shuffled = _permutation(self._size, self._seed, -self._refills)

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(torch.as_tensor(prompt, dtype=torch.int64).numpy().tobytes() + b"|")
        return {
            "data": digest.hexdigest(),
            "model": self.model.name,
            "shape": str(self.model.shape),
            "buffer": self._size,
            "drop_first": self.drop_first,
            "dtype": str(next(iter(self._buffer.values())).dtype),
        }

    def _fill(self, rows: Int[Tensor, " row"]) -> None:
        """Put new activations into these rows and draw a new order."""
        done = 0
        while done < len(rows):
            if not self._left:
                self._left = self._pass()
            n = min(len(rows) - done, len(next(iter(self._left.values()))))
            for place, value in self._left.items():
                buffer = self._buffer[place]
                buffer[rows[done : done + n].to(buffer.device)] = value[:n].to(buffer)
            left = {place: value[n:].clone() for place, value in self._left.items()}
            self._left = left if len(next(iter(left.values()))) else {}
            done += n
        self._refills, self._at = self._refills + 1, 0
        self._shuffled = _permutation(self._size, self._seed, -self._refills)

    def _pass(self) -> Batch:
        """The next prompts through the model."""
        prompts: list[list[int]] = []
        tokens = 0
        while tokens < self.tokens_per_pass:
            if self._next == len(self.prompts):
                self._epoch, self._next = self._epoch + 1, 0
                self._order = _permutation(len(self.prompts), self._seed, self._epoch)
            prompt = [int(token) for token in self.prompts[int(self._order[self._next])]]
            self._next += 1
            if len(prompt) > self.drop_first:
                prompts.append(prompt)
                tokens += len(prompt)
        nothing: list[tuple[int, ...]] = [()] * len(prompts)  # no logits: layers above the last place are not run
        run = record(self.model, prompts, read=nothing, keys=place_keys(self.model, self._places))
        keep = torch.cat([torch.arange(len(prompt)) >= self.drop_first for prompt in prompts])
        return {place: read_place(run, [place])[keep.to(self.model.device)] for place in self._places}


def contexts(
    tokenizer: Any, texts: Iterable[str], length: int = 128, *, bos: int | None = None, limit: int | None = None
) -> Int[Tensor, "prompt position"]:
    """Texts as prompts of one length: documents one after another, cut into pieces; the rest at the end is dropped.

    Args:
        tokenizer: of the model.
        texts: documents.
        length: tokens per prompt, with `bos`.
        bos: put first in every prompt; None = nothing.
        limit: at most so many prompts.

    Raises:
        DictionaryError: not one prompt comes out.
    """
    body = length - (bos is not None)
    rows: list[Tensor] = []
    left: list[int] = []
    wanted = limit
    for text in texts:
        ids = left + tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        n = len(ids) // body if wanted is None else min(wanted, len(ids) // body)
        left = ids[n * body :]
        if n:
            rows.append(torch.tensor(ids[: n * body], dtype=torch.int32).view(n, body))
        wanted = None if wanted is None else wanted - n
        if wanted == 0:
            break
    if not rows:
        raise DictionaryError(
            f"the texts have fewer than {length} tokens", where="contexts", fix="give more, or shorter"
        )
    found = torch.cat(rows)
    return found if bos is None else torch.cat([torch.full((len(found), 1), bos, dtype=torch.int32), found], 1)


def _permutation(n: int, seed: int, which: int) -> Int[Tensor, " n"]:
    """The `which`-th order of `n` things: a function of its arguments, so that none has to be stored."""
    return torch.randperm(n, generator=generator(f"{seed} {which} {n}"))


def generator(purpose: str) -> torch.Generator:
    """Random numbers of their own for every purpose.

    Seeded with the plain number, those of a dictionary would be those of activations made up with the same seed.
    """
    number = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)
