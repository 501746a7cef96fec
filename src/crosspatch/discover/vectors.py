"""One vector per sample, to cluster by (Marks et al. 2025, arXiv 2403.19647, section 5).

| kind | entries | at |
|---|---|---|
| `activations` | the model's activations at some places | the last positions, or added up |
| `features` | activations of the features of their dictionaries | the last positions, or added up |
| `dense-effects` | effect of every dimension of the activations on log p(answer), zero ablation | the same |
| `effects` | effect of every feature on log p(answer), zero ablation | the same |
| `gradients` | gradient of the loss with respect to the weights | the whole context |

Vectors that would be longer than `dims` are hashed to that length as they are made (`hashing`); gradients always are.
Rows are written chunk by chunk to a file that is mapped into memory, so that neither the vectors nor the gradients have
to fit, and a stopped run goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.setup import Setup
from crosspatch.discover.gradients import gradient_hashes, hashed_gradients
from crosspatch.discover.hashing import hash_of
from crosspatch.discover.samples import Samples
from crosspatch.discover.setup import last, setup_of_samples
from crosspatch.errors import ResultError, TaskError
from crosspatch.features.basis import Bases, Features
from crosspatch.features.effects import feature_effects
from crosspatch.model import Model
from crosspatch.results.files import REPAIR, digest, read_json, write_json

KINDS = {
    "activations": "activations of the model",
    "features": "activations of features",
    "dense-effects": "effects of the activations' dimensions on the answer",
    "effects": "effects of features on the answer",
    "gradients": "hashed gradients of the loss with respect to the weights",
}
NEEDS_FEATURES, NEEDS_NEURONS = ("features", "effects"), ("activations", "dense-effects")
FORMAT, VERSION, FILE, ARRAY = "crosspatch-vectors", 1, "vectors.json", "vectors.npy"
SAVE_EVERY = 5.0
"""Seconds between two notes of how far the file is."""


@dataclass(eq=False)
class Vectors:
    """One row per sample.

    Attributes:
        values: mapped from a file where there is one.
        about: JSON values: kind, places, positions, hash, samples.
    """

    values: Float[np.ndarray, "sample entry"]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return str(self.about["kind"])


def sample_vectors(
    model: Model,
    samples: Samples,
    kind: str,
    bases: Bases = (),
    *,
    positions: int | None = 1,
    method: str = "ig",
    steps: int = 4,
    dims: int = 16384,
    seed: int = 0,
    folder: str | Path | None = None,
    tokens_per_pass: int = 2048,
    budget_mib: float | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> Vectors:
    """Vectors of one kind.

    Args:
        kind: one of `KINDS`.
        bases: what they are made of: features for `features` and `effects`; neurons (`bases_of(model, neurons=...)`)
            for `activations` and `dense-effects`; nothing for `gradients`. Error terms are not in the vectors.
        positions: the last so many positions of every context, each with entries of its own; None: summed over all.
        method, steps: of effects (see `features.feature_effects`). Where an answer is nearly certain, the gradient at
            the clean run (`atp`) says little of what setting a feature to 0 does.
        dims: longest vector; longer ones are hashed to it. Length of hashed gradients.
        seed: of the hash.
        folder: where to write them; what another call with the same arguments left there is continued. None: in
            memory.
        tokens_per_pass: how many tokens go through the model together.
        budget_mib: memory for the effects of one chunk.

    Raises:
        TaskError: an unknown kind, or bases that it cannot be made of.
        ResultError: the folder holds vectors of something else.
    """
    rows = _rows_of(model, samples, kind, bases, positions, method, steps, dims, seed, budget_mib)
    about = {
        "kind": kind,
        "samples": samples.hash,
        "model": model.name,
        "places": [basis.place for basis in bases],
        "dictionaries": dictionary_digests(bases),
        "positions": None if kind == "gradients" else positions,
        "method": {"name": method, "steps": steps if method == "ig" else 1} if kind.endswith("effects") else None,
        "entries": rows.entries,
        "hashed_to": dims if rows.hashed else None,
        "seed": seed,
        "tokens_per_pass": tokens_per_pass,
    }
    chunks = _chunks(samples, tokens_per_pass)
    shape = (len(samples), dims if rows.hashed else rows.entries)
    values, done = (np.zeros(shape, np.float32), 0) if folder is None else _opened(Path(folder), shape, about)
    noted = time.monotonic()
    try:
        for number in range(done, len(chunks)):
            values[chunks[number]] = rows.make(chunks[number])
            done = number + 1
            if progress is not None:
                progress(done, len(chunks))
            if folder is not None and time.monotonic() - noted > SAVE_EVERY:
                _note(Path(folder), values, about, done, len(chunks))
                noted = time.monotonic()
    finally:
        if folder is not None:
            _note(Path(folder), values, about, done, len(chunks))
    return Vectors(values, about)


def load_vectors(folder: str | Path) -> Vectors:
    """Read finished vectors.

    Raises:
        ResultError: not there, not finished, or not what was written.
    """
    folder = Path(folder)
    data = _read(folder)
    if data["done"] < data["chunks"]:
        raise ResultError(
            f"only {data['done']} of {data['chunks']} chunks are there", where=str(folder), fix="run it with --resume"
        )
    return Vectors(_mapped(folder, tuple(data["shape"]), "r"), dict(data["about"]))


@dataclass(frozen=True, eq=False)
class _Rows:
    """How the rows of some samples of equal length are made."""

    entries: int
    hashed: bool
    make: Callable[[list[int]], Float[np.ndarray, "sample entry"]]


def _rows_of(
    model: Model,
    samples: Samples,
    kind: str,
    bases: Bases,
    positions: int | None,
    method: str,
    steps: int,
    dims: int,
    seed: int,
    budget_mib: float | None,
) -> _Rows:
    if kind not in KINDS:
        raise TaskError(f"unknown kind {kind!r}", where="vectors", fix=f"use one of {', '.join(KINDS)}")
    if positions is not None and positions < 1:
        raise TaskError(f"{positions} positions", where="vectors", fix="give at least 1, or None to add them up")
    if kind == "gradients":
        hashes = gradient_hashes(model, dims, seed)
        count = sum(len(one.row_sign) * len(one.column_sign) for one in hashes.values())

        def gradients(chosen: list[int]) -> np.ndarray:
            return hashed_gradients(setup_of_samples(model, samples, chosen), hashes).cpu().numpy()

        return _Rows(count, True, gradients)
    wanted = kind in NEEDS_FEATURES
    if not bases or any(isinstance(basis, Features) != wanted for basis in bases):
        fix = "give bases_of(model, dictionaries)" if wanted else "give bases_of(model, neurons=['r0.post', ...])"
        raise TaskError(f"{kind} need {'features' if wanted else 'plain activations'}", where="bases", fix=fix)
    widths = [basis.width for basis in bases]
    slots = positions or 1
    entries = slots * sum(widths)
    hashed = entries > dims
    hashes = {b.place: hash_of(b.place, slots, b.width, dims, seed).to(model.device) for b in bases} if hashed else {}
    starts = dict(zip((basis.place for basis in bases), np.cumsum([0, *widths[:-1]]) * slots, strict=True))

    def dense(chosen: list[int]) -> np.ndarray:
        part = setup_of_samples(model, samples, chosen, slots)
        found = _activations(part, bases, positions) if kind in ("activations", "features") else _effects(
            part, bases, positions, method, steps, budget_mib
        )  # fmt: skip
        out = torch.zeros(len(chosen), dims if hashed else entries, device=model.device)
        for place, values in found:
            if hashed:
                hashes[place].add_matrices(out, values)
            else:
                flat = values.flatten(1)
                out[:, starts[place] : starts[place] + flat.shape[1]] = flat.to(out)
        return out.cpu().numpy()

    return _Rows(entries, hashed, dense)


Found = list[tuple[str, Float[Tensor, "sample position entry"]]]


@torch.no_grad()
def _activations(part: Setup, bases: Bases, positions: int | None) -> Found:
    run = part.record_clean([basis.key for basis in bases])
    length = len(part.clean[0])
    found: Found = []
    for basis in bases:
        x = run.packed(basis.key).flatten(1).unflatten(0, (len(part), length))
        if positions is None:
            f = basis.features(x.flatten(0, 1)).unflatten(0, (len(part), length)).sum(1, keepdim=True)
            found.append((basis.place, f))
            continue
        ends = x[:, max(0, length - positions) :].flip(1)  # position 0 is the last one, whatever the length
        f = basis.features(ends.flatten(0, 1)).unflatten(0, ends.shape[:2])
        missing = f.new_zeros(len(part), positions - f.shape[1], f.shape[2])
        found.append((basis.place, torch.cat([f, missing], 1)))
    return found


def _effects(
    part: Setup, bases: Bases, positions: int | None, method: str, steps: int, budget_mib: float | None
) -> Found:
    spans = () if positions is None else last(positions)
    effects = feature_effects(
        part, bases, "zero", method=method, steps=steps, spans=spans, keep=None, budget_mib=budget_mib
    )
    kept = effects.kept
    found: Found = []
    for number, basis in enumerate(bases):
        here = (kept.place == number) & (kept.node < basis.width)
        values = torch.zeros(len(part), max(1, len(spans)), basis.width, device=part.model.device)
        at = [torch.from_numpy(column[here].astype(np.int64)) for column in (kept.example, kept.span, kept.node)]
        values[at[0], at[1], at[2]] = torch.from_numpy(kept.value[here]).to(values)
        found.append((basis.place, values))
    return found


def _chunks(samples: Samples, tokens_per_pass: int) -> list[list[int]]:
    """Samples of equal length that are computed together. Which ones are depends on nothing else, so that a resumed run
    rounds as an uninterrupted one does."""
    by_length: dict[int, list[int]] = {}
    for i, context in enumerate(samples.contexts):
        by_length.setdefault(len(context), []).append(i)
    found = []
    for length in sorted(by_length):
        members, size = by_length[length], max(1, tokens_per_pass // length)
        found += [members[at : at + size] for at in range(0, len(members), size)]
    return found


def dictionary_digests(bases: Bases) -> list[str]:
    """A name for every dictionary that changes with its weights."""
    made = []
    for basis in bases:
        if isinstance(basis, Features):
            parts = (basis.dictionary.encoder, basis.dictionary.encoder_bias, basis.dictionary.decoder)
            made.append(digest(b"".join(p.detach().float().cpu().contiguous().numpy().tobytes() for p in parts))[:16])
    return made


def _opened(folder: Path, shape: tuple[int, int], about: dict[str, Any]) -> tuple[np.ndarray, int]:
    """The array in the folder, and how many chunks are done: one to go on with, or a new one."""
    if (folder / FILE).is_file():
        data = _read(folder)
        if data["about"] != about:
            differing = sorted(k for k in about if data["about"].get(k) != about[k])
            raise ResultError(
                f"the vectors there are of something else ({', '.join(differing)} differ)",
                where=str(folder),
                fix="use another folder",
            )
        return _mapped(folder, shape, "r+"), int(data["done"])
    folder.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(folder / ARRAY, mode="w+", dtype=np.float32, shape=shape), 0


def _note(folder: Path, values: np.ndarray, about: dict[str, Any], done: int, chunks: int) -> None:
    """Say how far the file is, after what it says is on the disk."""
    if isinstance(values, np.memmap):
        values.flush()
    shape = list(values.shape)
    write_json(
        folder / FILE,
        {"format": FORMAT, "version": VERSION, "about": about, "shape": shape, "done": done, "chunks": chunks},
    )


def _mapped(folder: Path, shape: Sequence[int], mode: Any) -> np.ndarray:
    where = str(folder / ARRAY)
    try:
        values = np.lib.format.open_memmap(folder / ARRAY, mode=mode)
    except (OSError, ValueError) as error:
        raise ResultError(f"cannot be read ({error})", where=where, fix=REPAIR) from error
    if values.shape != tuple(shape) or values.dtype != np.float32:
        raise ResultError(f"holds {values.dtype} of shape {values.shape}", where=where, fix=REPAIR)
    return values


def _read(folder: Path) -> dict[str, Any]:
    data = read_json(folder / FILE)
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise ResultError(f"is not a file of the format {FORMAT} {VERSION}", where=str(folder / FILE), fix=REPAIR)
    if not {"about", "shape", "done", "chunks"} <= set(data):
        raise ResultError("is not complete", where=str(folder / FILE), fix=REPAIR)
    return data


def default_places(model: Model) -> list[str]:
    """Where dense vectors are taken: the input and what every attention block, MLP and block gives (Marks et al.)."""
    found = ["input"]
    for layer in range(model.shape.n_layers):
        found += [f"a{layer}", *([f"m{layer}"] if model.shape.has_mlp else []), f"r{layer}.post"]
    return found
