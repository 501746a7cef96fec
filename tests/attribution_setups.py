"""Pairs on small models of every family, for the tests of attribution and circuits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from families import VOCAB, make

from crosspatch.attribution.ablation import Ablation, Store
from crosspatch.attribution.setup import Setup
from crosspatch.metrics import LogitDiff, Metric, Targets
from crosspatch.model import load

EVERY_KIND = ("gpt2", "llama", "gpt_neox", "gptj", "gemma2", "olmo2", "qwen3", "phi3", "opt", "shortformer")
"""Absolute and rotary positions, grouped queries, parallel blocks, post norms, fused projections, no MLP."""


def setup_on(
    model: Any, lengths: Sequence[int] = (6, 6, 5, 6), seed: int = 0, metric: Metric | None = None, vocab: int = VOCAB
) -> Setup:
    """Random pairs of prompts on a model; the last token of every clean prompt is read."""
    draw = torch.Generator().manual_seed(seed)
    clean = [torch.randint(1, vocab, (n,), generator=draw).tolist() for n in lengths]
    corrupt = [[*ids[:1], *torch.randint(1, vocab, (len(ids) - 1,), generator=draw).tolist()] for ids in clean]
    pick = torch.randint(1, vocab, (2, len(lengths), 1), generator=draw)
    return Setup(
        model,
        clean,
        corrupt,
        [(n - 1,) for n in lengths],
        [tuple(range(n)) for n in lengths],
        metric or LogitDiff(),
        Targets(pick[0], pick[1]),
        [{"first": (0, 2), "rest": (2, n), "END": (n - 1, n)} for n in lengths],
        ["short" if n < 6 else "long" for n in lengths],
    )


def in_double(hf: Any) -> None:
    """RMS norms of `transformers` compute in float32 whatever the model's dtype; finite differences need more."""
    for part in hf.modules():
        if "RMSNorm" in type(part).__name__:
            eps = getattr(part, "variance_epsilon", None) or part.eps
            weight = part.weight + 1 if "Gemma" in type(part).__name__ else part.weight

            def forward(x: Any, weight: Any = weight, eps: float = eps) -> Any:
                return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()

            part.forward = forward


def family_setup(family: str, dtype: torch.dtype = torch.float64, **about: Any) -> Setup:
    """Pairs on a random model of a family."""
    model = load(make(family, dtype=dtype), name=family)
    if dtype == torch.float64:
        in_double(model.hf)
    return setup_on(model, **about)


@dataclass
class Toward(Ablation):
    """A small step from the clean value towards the replacement of another ablation: for finite differences."""

    to: Ablation
    step: float
    name = "toward"

    def store(self, setup: Setup, examples: Sequence[int], clean: Store) -> Store:
        replaced = self.to.store(setup, examples, clean)
        return {key: value + self.step * (replaced[key] - value) for key, value in clean.items()}
