"""Can latents change one attribute of an entity and leave another? (RAVEL, Huang et al. 2024, arXiv 2402.17700.)

Latents of attribute A of a base entity are given the values they have for a source entity (`interchange`).
With the model's most probable token as its answer, over held-out pairs whose answers differ:

- cause(A): share of pairs at which a question about A is now answered as for the source;
- isolation(A, B): share at which a question about B is still answered as for the base;
- D = (cause(A) + cause(B) + isolation(A, B) + isolation(B, A)) / 4 (SAEBench's form).

The latents of an attribute are found on other entities, in one of two ways:

- `mask`: a binary mask learned as sigmoid(theta / T) with T falling, for both aims at once (the MDBM of the paper, over
  latents): gradients pass the model, no latent's weight is regularised;
- `difference`: latents whose values vary most between answers, as many (of `SIZES`) as give the best training score.

D of patching nothing is 0.5 (cause 0, isolation 1), and so is D of swapping an activation that decides everything.
Beside the latents stand `all latents`, the `whole activation`, and `random latents` (as many as were found, among those
that are ever active). The cause of `whole activation` is the most that any latents of this place can reach: late in
the model it is 0, since nothing reads the entity there; D is then not defined, as isolation comes for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.dictionaries.bench.entities import Entities
from crosspatch.dictionaries.bench.interchange import (
    Answers,
    Pairs,
    ask,
    log_probabilities,
    pairs_of,
    patched_values,
    said_after,
)
from crosspatch.dictionaries.bench.own_data import own_entities
from crosspatch.dictionaries.bench.result import Result, Row, estimate
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.measure import Estimate
from crosspatch.errors import DictionaryError
from crosspatch.model import Model

DEFINITION = "D = (cause A + cause B + isolation A-B + isolation B-A) / 4 over held-out pairs of entities"
SIZES = (1, 2, 5, 10, 20, 50, 100)
CEILING = 0.1
"""With a smaller cause of the whole activation, the place does not decide the attribute."""
How = Literal["mask", "difference"]


@dataclass(frozen=True, eq=False)
class _Side:
    """One attribute: its prompts, and pairs to learn from and to be judged on."""

    name: str
    answers: Answers
    train: Pairs
    test: Pairs


def ravel(
    model: Model,
    dictionary: Dictionary,
    data: Sequence[Entities] | None = None,
    *,
    how: How = "mask",
    pairs: int = 128,
    prompts: int = 400,
    steps: int = 100,
    batch: int = 32,
    lr: float = 0.1,
    seed: int = 0,
) -> Result:
    """Cause and isolation of the latents of two attributes (see the module).

    Args:
        model, dictionary: the two.
        data: entities; of each the first two attributes count. None = the project's own.
        how: the way latents are found.
        pairs: pairs to learn from, and pairs to be judged on, for each attribute.
        prompts: at most so many are asked for each attribute.
        steps, batch, lr: of the mask; a step takes `batch` pairs of each of its two aims.
        seed: of all draws.

    Raises:
        DictionaryError: a dictionary of another model, or one that writes where nothing can be put.
    """
    folded = dictionary.fold()
    rows: list[Row] = []
    notes: list[str] = []
    details: dict[str, object] = {}
    for entities in own_entities() if data is None else data:
        try:
            sides = _sides(model, folded, entities, pairs, prompts, seed)
        except DictionaryError as error:
            notes.append(f"{entities.name}: not measured, {error.what}")
            continue
        masks = [_found(folded, sides[i], sides[1 - i], how, (steps, batch, lr, seed)) for i in (0, 1)]
        more = _judge(folded, entities.name, sides, masks, seed)
        rows += more
        details[entities.name] = {
            side.name: {
                "latents": torch.nonzero(mask).flatten().tolist(),
                "prompts answered": [len(side.answers.asked), side.answers.of],
            }
            for side, mask in zip(sides, masks, strict=True)
        }
        low = [
            row.what
            for row in more
            if row.by == "whole activation" and "cause" in row.what and row.value.value < CEILING
        ]
        notes += [f"{what}: not even the whole activation changes the answer, so that D is not defined" for what in low]
    if not rows:
        raise DictionaryError(f"nothing could be measured: {'; '.join(notes)}", where="ravel")
    return Result("ravel", DEFINITION, tuple(rows), tuple(notes), details)


def _sides(
    model: Model, dictionary: Dictionary, entities: Entities, pairs: int, prompts: int, seed: int
) -> tuple[_Side, _Side]:
    """Both attributes, on the same halves of the entities that the model knows both of."""
    names = list(entities.values)[:2]
    answers = [ask(model, dictionary, entities, name, prompts, seed) for name in names]
    known = sorted(set.intersection(*({prompt.entity for prompt in a.asked} for a in answers)))
    order = np.random.default_rng(seed).permutation(len(known))
    halves = [[known[i] for i in order[half::2]] for half in (0, 1)]
    made = []
    for name, answer in zip(names, answers, strict=True):
        train, test = (pairs_of(answer, half, pairs, seed) for half in halves)
        if not train or not test:
            raise DictionaryError(f"too few entities ({len(known)}) have both answers", where=entities.name)
        made.append(_Side(name, answer, train, test))
    return made[0], made[1]


def _found(
    dictionary: Dictionary, mine: _Side, other: _Side, how: How, learning: tuple[int, int, float, int]
) -> Tensor:
    """The latents that carry `mine` and not `other`: ones and zeros."""
    if how == "mask":
        return _learned_mask(dictionary, mine, other, *learning)
    if how != "difference":
        raise DictionaryError(f"{how!r} is unknown", where="how", fix="mask or difference")
    order = _variation(mine.answers, mine.train).argsort(descending=True)
    best, chosen = -1.0, torch.zeros(dictionary.width)
    for size in SIZES:
        mask = torch.zeros(dictionary.width)
        mask[order[:size].cpu()] = 1
        reached = (
            _changed(dictionary, mine, mine.train, mask).mean() + _stayed(dictionary, other, other.train, mask).mean()
        )
        if reached > best:
            best, chosen = float(reached), mask
    return chosen


def _learned_mask(
    dictionary: Dictionary, mine: _Side, other: _Side, steps: int, batch: int, lr: float, seed: int
) -> Tensor:
    rng = np.random.default_rng(seed)
    theta = torch.zeros(dictionary.width, device=dictionary.device, dtype=dictionary.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=lr)
    for step in range(steps):
        heat = 0.02 ** (step / max(steps - 1, 1))  # from 1 down to where the mask is as good as binary
        mask = torch.sigmoid(theta / heat)
        changed, kept = ([side.train[i] for i in rng.permutation(len(side.train))[:batch]] for side in (mine, other))
        loss = -log_probabilities(mine.answers, dictionary, changed, mask, source=True).mean()
        loss = loss - log_probabilities(other.answers, dictionary, kept, mask, source=False).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (theta.detach() > 0).to(torch.float32).cpu()


def _variation(answers: Answers, pairs: Pairs) -> Float[Tensor, " feature"]:
    """Spread of each latent's mean between answers (decoder rows have length 1)."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in sorted({i for pair in pairs for i in pair}):
        groups.setdefault(answers.asked[i].right, []).append(i)
    return torch.stack([answers.features[rows].mean(0) for rows in groups.values()]).std(0)


def _judge(
    dictionary: Dictionary, name: str, sides: tuple[_Side, _Side], masks: Sequence[Tensor], seed: int
) -> list[Row]:
    """Rows of cause, isolation and D for the latents and everything they are compared with."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    active = (sides[0].answers.features > 0).any(0) | (sides[1].answers.features > 0).any(0)
    living = torch.nonzero(active.cpu()).flatten().numpy()
    decided = all(_changed(dictionary, side, side.test, None).mean() >= CEILING for side in sides)

    def drawn(mask: Tensor) -> Tensor:
        random = torch.zeros_like(mask)
        random[rng.choice(living, min(int(mask.sum()), len(living)), replace=False)] = 1
        return random

    ways: dict[str, list[Tensor | None]] = {
        "latents": list(masks),
        "random latents": [drawn(m) for m in masks],
        "all latents": [torch.ones_like(m) for m in masks],
        "whole activation": [None, None],
    }
    for by, given in ways.items():
        four = []
        for i, mask in enumerate(given):
            a, b = sides[i], sides[1 - i]
            size = None if mask is None or by == "all latents" else int(mask.sum())
            cause = _changed(dictionary, a, a.test, mask)
            isolation = _stayed(dictionary, b, b.test, mask)
            rows.append(Row(f"{name}: cause {a.name}", by, size, estimate(cause, seed=seed)))
            rows.append(Row(f"{name}: isolation {a.name} from {b.name}", by, size, estimate(isolation, seed=seed)))
            four += [cause, isolation]
        whole = _mean_of_means(four, seed) if decided else Estimate(math.nan, math.nan, math.nan)
        rows.append(Row(f"{name}: D", by, None, whole, overall=True))
    return rows


def _mean_of_means(parts: Sequence[np.ndarray], seed: int) -> Estimate:
    """Mean of four shares; pairs are resampled within their own."""
    rng = np.random.default_rng(seed)
    drawn = np.mean([p[rng.integers(0, len(p), (2000, len(p)))].mean(1) for p in parts], axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(np.mean([p.mean() for p in parts])), float(low), float(high))


def _said(dictionary: Dictionary, side: _Side, pairs: Pairs, mask: Tensor | None) -> np.ndarray:
    values = (
        side.answers.writes[torch.tensor([source for _, source in pairs])]
        if mask is None
        else patched_values(side.answers, dictionary, pairs, mask)
    )
    return said_after(side.answers, dictionary, pairs, values)


def _changed(dictionary: Dictionary, side: _Side, pairs: Pairs, mask: Tensor | None) -> np.ndarray:
    """1 where the answer is now the source's."""
    said = _said(dictionary, side, pairs, mask)
    return np.array([float(t in side.answers.asked[s].right) for t, (_, s) in zip(said, pairs, strict=True)])


def _stayed(dictionary: Dictionary, side: _Side, pairs: Pairs, mask: Tensor | None) -> np.ndarray:
    """1 where the answer is still the base's."""
    said = _said(dictionary, side, pairs, mask)
    return np.array([float(t in side.answers.asked[b].right) for t, (b, _) in zip(said, pairs, strict=True)])
