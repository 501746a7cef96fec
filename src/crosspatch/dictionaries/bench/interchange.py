"""Prompts about entities, and latents of one entity put into the prompt of another.

At the last token of the entity the activation that the dictionary writes becomes

    y(base) + sum_i m_i (f_i(source) - f_i(base)) decoder_i

with m between 0 and 1: the error term of the base stays. Judged exactly by the executor, learned through the
differentiable run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.attribution.forward import trace
from crosspatch.dictionaries.bench.entities import Entities
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.places import place_keys, read_place, write_place
from crosspatch.errors import DictionaryError
from crosspatch.model import Model, Readout, Row, Run, record, replay
from crosspatch.tasks.encode import Encoder
from crosspatch.tasks.tokenize import token_span


@dataclass(frozen=True, eq=False)
class Asked:
    """One prompt about one entity that the model answers rightly.

    Args:
        entity, frame: which; frames are numbered.
        ids: the prompt.
        position: the entity's last token.
        right: token ids, any of which is the right answer.
    """

    entity: str
    frame: int
    ids: list[int]
    position: int
    right: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Answers:
    """All prompts of an attribute that are answered rightly, with what the dictionary sees at the entity.

    Args:
        asked: the prompts.
        run: them, run once.
        writes, features: at the entity's last token.
        of: how many prompts were asked.
    """

    asked: list[Asked]
    run: Run
    writes: Float[Tensor, "prompt d_out"]
    features: Float[Tensor, "prompt feature"]
    of: int


Pairs = list[tuple[int, int]]
"""Base and source, as numbers of prompts."""


@torch.no_grad()
def ask(model: Model, dictionary: Dictionary, entities: Entities, attribute: str, most: int, seed: int) -> Answers:
    """Ask for an attribute of every entity; keep what the model answers rightly (its most probable token).

    Args:
        dictionary: folded.
        most: at most so many prompts, drawn at random.

    Raises:
        DictionaryError: the model answers none.
    """
    encoder = Encoder(model.tokenizer)
    tried: list[Asked] = []
    known = [e for e in entities.entities if e in entities.values[attribute]]
    which = [(frame, entity) for frame in range(len(entities.prompts[attribute])) for entity in known]
    order = np.random.default_rng(seed).permutation(len(which))[:most]
    for frame, entity in sorted(which[i] for i in order):
        before, after = entities.prompts[attribute][frame].split("%s")
        text = before + entity + after
        encoded = encoder.encode(text)
        span = token_span(encoded.offsets, (len(before), len(before) + len(entity)), text)
        space = "" if text[-1] in " \"'([" else " "
        first = [encoder.continuation(text, space + value).ids[0] for value in entities.values[attribute][entity]]
        if span is not None and not (after and encoded.offsets[span[1] - 1][1] > len(before) + len(entity)):
            tried.append(Asked(entity, frame, encoded.ids, span[1] - 1, tuple(first)))
    tried.sort(key=lambda prompt: len(prompt.ids))
    places = [*dictionary.reads, *dictionary.writes]
    asked: list[Asked] = []
    for lo in range(0, len(tried), 256):
        part = tried[lo : lo + 256]
        said = record(model, [prompt.ids for prompt in part]).logits().argmax(1).tolist()
        asked += [prompt for prompt, token in zip(part, said, strict=True) if token in prompt.right]
    if not asked:
        raise DictionaryError(
            f"the model answers none of {len(tried)} prompts", where=f"{entities.name}/{attribute}",
            fix="ask for what it knows",
        )  # fmt: skip
    run = record(
        model,
        [prompt.ids for prompt in asked],
        keys=place_keys(model, places) | {(first_block(model, dictionary), "resid_pre")},
    )
    at = torch.tensor([run.offset[i] + prompt.position for i, prompt in enumerate(asked)])
    x, y = read_place(run, dictionary.reads), read_place(run, dictionary.writes)
    return Answers(asked, run, y[at.to(y.device)], dictionary.encode(x[at.to(x.device)]), len(tried))


def first_block(model: Model, dictionary: Dictionary) -> int:
    """The first block whose computation a patch can change."""
    return min(layer for layer, _ in place_keys(model, dictionary.writes))


def pairs_of(answers: Answers, entities: Sequence[str], most: int, seed: int) -> Pairs:
    """Prompts of the same frame about two of these entities whose right answers differ, drawn at random.

    Base and source come from one frame, so that nothing but the entity differs.
    """
    wanted = set(entities)
    frames: dict[int, list[int]] = {}
    for i, prompt in enumerate(answers.asked):
        if prompt.entity in wanted:
            frames.setdefault(prompt.frame, []).append(i)
    found = [
        (base, source)
        for members in frames.values()
        for base in members
        for source in members
        if not set(answers.asked[base].right) & set(answers.asked[source].right)
    ]
    order = np.random.default_rng(seed).permutation(len(found))[:most]
    return sorted(found[i] for i in order)


@torch.no_grad()
def patched_values(
    answers: Answers, dictionary: Dictionary, pairs: Pairs, mask: Float[Tensor, " feature"]
) -> Float[Tensor, "pair d_out"]:
    """The activations of the module's formula."""
    base, source = (torch.tensor(side) for side in zip(*pairs, strict=True))
    change = (answers.features[source] - answers.features[base]) * mask.to(answers.features)
    return answers.writes[base].to(change) + change @ dictionary.decoder


@torch.no_grad()
def said_after(
    answers: Answers, dictionary: Dictionary, pairs: Pairs, values: Float[Tensor, "pair d_out"]
) -> Int[np.ndarray, " pair"]:
    """The most probable token after every base prompt when the entity's activation becomes `values`."""
    model = answers.run.model
    rows = []
    for (base, _), value in zip(pairs, values.to(answers.writes), strict=True):
        parts = zip(dictionary.writes, value[None].chunk(len(dictionary.writes), dim=1), strict=True)
        position = [answers.asked[base].position]
        rows.append(Row(base, tuple(edit for place, v in parts for edit in write_place(model, place, position, v))))
    said = np.zeros(len(rows), dtype=np.int64)

    def keep(readout: Readout) -> None:
        said[readout.row.numpy()] = readout.logits.argmax(1).cpu().numpy()

    replay(answers.run, rows, keep)
    return said


def log_probabilities(
    answers: Answers, dictionary: Dictionary, pairs: Pairs, mask: Float[Tensor, " feature"], source: bool
) -> Float[Tensor, " pair"]:
    """Log probability of the source's answers (of the base's), differentiable in the mask."""
    run, model = answers.run, answers.run.model
    order = sorted(range(len(pairs)), key=lambda i: len(answers.asked[pairs[i][0]].ids))
    pairs = [pairs[i] for i in order]
    asked = [answers.asked[base] for base, _ in pairs]
    lengths = [len(prompt.ids) for prompt in asked]
    starts = np.cumsum([0, *lengths])[:-1]
    base, other = (torch.tensor(side) for side in zip(*pairs, strict=True))
    change = (answers.features[other] - answers.features[base]) * mask
    values = answers.writes[base].to(change) + change @ dictionary.decoder
    at = torch.tensor([start + prompt.position for start, prompt in zip(starts, asked, strict=True)])
    first = first_block(model, dictionary)
    tokens = torch.cat([torch.arange(run.offset[b], run.offset[b + 1]) for b, _ in pairs])
    insert = {}
    for place, part in zip(dictionary.writes, values.chunk(len(dictionary.writes), dim=1), strict=True):
        [key] = place_keys(model, [place])

        def put(x: Tensor, part: Tensor = part) -> Tensor:
            return x.index_copy(0, at.to(x.device), part.to(x).reshape(-1, *x.shape[1:]))

        insert[key] = put
    made = trace(
        model, run.packed((first, "resid_pre"))[tokens], lengths, [[n - 1] for n in lengths], insert=insert, first=first
    )
    logs = model.unembed(made.hidden).float().log_softmax(1)
    wanted = [answers.asked[s if source else b].right for b, s in pairs]
    return torch.stack([row[list(right)].logsumexp(0) for row, right in zip(logs, wanted, strict=True)])
