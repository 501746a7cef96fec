"""Feature cards: where features are active, how strongly, and which tokens they promote. Plain data.

Promoted and suppressed tokens: the decoder row as it arrives in the residual stream, times the final norm's gain, times
the unembedding, less the mean over the vocabulary. That is the direct path only, and without the norm's division: an
order of tokens, not logits.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.measure import runs
from crosspatch.dictionaries.places import final_gain, read_place, to_residual
from crosspatch.errors import DictionaryError
from crosspatch.model import Model


@dataclass(frozen=True)
class Context:
    """One place in the text where a feature is active.

    Args:
        tokens: the text around it, one readable string per token.
        values: the feature's activation at each of them.
        at: index in `tokens` of the token that it was chosen for.
        prompt, position: where it is in the prompts given.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    at: int
    prompt: int
    position: int


@dataclass(frozen=True)
class Card:
    """One feature.

    Args:
        feature: its index.
        reads, writes: where it belongs.
        density: share of tokens at which it is active.
        mean, maximum: of its activation where it is active; NaN where it never is.
        histogram: counts of activations above 0, and the bins' edges.
        top: contexts with the largest activations, one per prompt at most, largest first.
        promoted, suppressed: tokens with their scores (see the module); empty where it writes in several places.
    """

    feature: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    density: float
    mean: float
    maximum: float
    histogram: tuple[tuple[int, ...], tuple[float, ...]]
    top: tuple[Context, ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]

    def plain(self) -> dict[str, Any]:
        """For JSON; NaN becomes None."""
        data = asdict(self)
        return {name: None if isinstance(v, float) and not np.isfinite(v) else v for name, v in data.items()}


@torch.no_grad()
def feature_cards(
    model: Model,
    dictionary: Dictionary,
    prompts: Sequence[Sequence[int]] | Int[Tensor, "prompt position"],
    features: Sequence[int],
    *,
    top: int = 10,
    around: int = 12,
    tokens: int = 10,
    bins: int = 20,
    drop_first: int = 1,
    tokens_per_pass: int = 4096,
) -> list[Card]:
    """Cards of some features.

    Args:
        model, dictionary: the two.
        prompts: token ids to look in.
        features: indices of features.
        top: contexts per feature.
        around: tokens shown before and after.
        tokens: promoted and suppressed tokens per feature.
        bins: of the histogram.
        drop_first: positions at the start of each prompt that do not count.
        tokens_per_pass: how many tokens go through the model together.

    Raises:
        DictionaryError: a feature that does not exist, or no prompt that is long enough.
    """
    wrong = [feature for feature in features if not 0 <= feature < dictionary.width]
    if wrong:
        raise DictionaryError(f"feature {wrong[0]} does not exist", where=repr(dictionary))
    texts = [[int(token) for token in prompt] for prompt in prompts]
    if not any(len(text) > drop_first for text in texts):
        raise DictionaryError(f"no prompt has more than {drop_first} tokens", where="feature_cards")
    chosen = torch.tensor(list(features), device=dictionary.device)
    seen: list[Tensor] = []
    best: list[list[tuple[float, int, int, tuple[float, ...]]]] = [[] for _ in features]
    first = 0
    for run in runs(model, dictionary, texts, tokens_per_pass, read_all=False):
        f = dictionary.encode(read_place(run, dictionary.reads))[:, chosen].float().cpu()
        for i, text in enumerate(run.tokens):
            mine = f[run.offset[i] : run.offset[i + 1]]
            if len(text) > drop_first:
                seen.append(mine[drop_first:])
                _collect(best, mine, first + i, drop_first, top, around)
        first += len(run.tokens)
    values = torch.cat(seen).numpy()
    promoted = _tokens(model, dictionary, chosen, tokens)
    strings = _Strings(model)
    return [
        _card(dictionary, feature, values[:, i], best[i], texts, strings, promoted[i], bins, around)
        for i, feature in enumerate(features)
    ]


def _collect(
    best: list[list[tuple[float, int, int, tuple[float, ...]]]],
    values: Float[Tensor, "position feature"],
    prompt: int,
    drop_first: int,
    top: int,
    around: int,
) -> None:
    """Keep each feature's largest activation of this prompt if it is among the largest so far."""
    peaks, at = values[drop_first:].max(0)
    for i, heap in enumerate(best):
        peak, position = float(peaks[i]), int(at[i]) + drop_first
        if peak <= 0 or (len(heap) == top and peak <= heap[0][0]):
            continue
        window = values[max(0, position - around) : position + around + 1, i]
        (heapq.heappush if len(heap) < top else heapq.heapreplace)(
            heap, (peak, -prompt, position, tuple(window.tolist()))
        )


def _card(
    dictionary: Dictionary,
    feature: int,
    values: Float[np.ndarray, " token"],
    best: list[tuple[float, int, int, tuple[float, ...]]],
    texts: list[list[int]],
    strings: _Strings,
    promoted: tuple[list[tuple[int, float]], list[tuple[int, float]]],
    bins: int,
    around: int,
) -> Card:
    active = values[values > 0]
    counts, edges = np.histogram(active, bins, (0.0, float(active.max()) if len(active) else 1.0))
    contexts = []
    for _, minus_prompt, position, window in sorted(best, reverse=True):
        start = max(0, position - around)
        text = texts[-minus_prompt][start : position + around + 1]
        contexts.append(Context(strings(text), window, position - start, -minus_prompt, position))
    named = [tuple((strings([token])[0], score) for token, score in pairs) for pairs in promoted]
    return Card(
        feature,
        dictionary.reads,
        dictionary.writes,
        density=len(active) / len(values),
        mean=float(active.mean()) if len(active) else float("nan"),
        maximum=float(active.max()) if len(active) else float("nan"),
        histogram=(tuple(map(int, counts)), tuple(map(float, edges))),
        top=tuple(contexts),
        promoted=named[0],
        suppressed=named[1],
    )


def _tokens(
    model: Model, dictionary: Dictionary, chosen: Int[Tensor, " feature"], n: int
) -> list[tuple[list[tuple[int, float]], list[tuple[int, float]]]]:
    """For each feature the ids and scores of the tokens that it raises and lowers most."""
    if len(dictionary.writes) != 1:
        return [([], []) for _ in chosen]
    vectors = to_residual(model, dictionary.writes[0], dictionary.decoder[chosen].to(model.device, model.dtype))
    weight: Any = model.anatomy.lm_head.weight
    scores = ((vectors * final_gain(model)).to(weight) @ weight.T).float()
    scores = scores - scores.mean(1, keepdim=True)
    n = min(n, scores.shape[1])
    found = []
    for sign in (1, -1):
        best = (sign * scores).topk(n, dim=1)
        found.append(
            [
                list(zip(i.tolist(), (sign * v).tolist(), strict=True))
                for i, v in zip(best.indices, best.values, strict=True)
            ]
        )
    return list(zip(*found, strict=True))


class _Strings:
    """Readable strings of token ids; ids themselves where the model has no tokenizer."""

    def __init__(self, model: Model) -> None:
        self.tokenizer = model.tokenizer

    def __call__(self, ids: Sequence[int]) -> tuple[str, ...]:
        if self.tokenizer is None:
            return tuple(str(token) for token in ids)
        return tuple(self._one(int(token)) for token in ids)

    def _one(self, token: int) -> str:
        text = str(self.tokenizer.decode([token]))
        raw = self.tokenizer.convert_ids_to_tokens(token)
        # SentencePiece leaves out the space of a word that comes first.
        starts_word = isinstance(raw, str) and raw.startswith("\u2581")
        return f" {text}" if starts_word and not text.startswith(" ") else text
