"""What both sides of the benchmark work on: one seeded model and prompt pairs that differ from one token on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import GPT2Config, GPT2LMHeadModel


@dataclass(frozen=True)
class Problem:
    """A model and its pairs.

    Attributes:
        hf: randomly initialised, float32, on the CPU.
        clean, corrupt: token ids `[example, position]`, equal before `first`.
        right, wrong: the two tokens of each example whose logits' difference is the metric.
    """

    hf: GPT2LMHeadModel
    clean: torch.Tensor
    corrupt: torch.Tensor
    right: list[int]
    wrong: list[int]
    first: int

    @property
    def examples(self) -> list[tuple[int, int]]:
        return [(self.first, self.clean.shape[1])] * len(self.clean)


def gpt2_small(n_pairs: int = 8, length: int = 24, first: int = 6, seed: int = 0) -> Problem:
    """GPT-2 small's sizes. Every token from `first` on is drawn anew with probability one half, `first` always."""
    torch.manual_seed(seed)
    # The usual initial standard deviation of 0.02 makes attention uniform and effects tiny; at 0.08 the effects
    # are of the size of the logits, so that agreement to 1e-4 means something. Time does not depend on it.
    config = GPT2Config(initializer_range=0.08)
    hf = GPT2LMHeadModel(config).eval()
    clean = torch.randint(config.vocab_size, (n_pairs, length))
    corrupt = clean.clone()
    redrawn = torch.rand(n_pairs, length) < 0.5
    redrawn[:, :first], redrawn[:, first] = False, True
    corrupt[redrawn] = (clean[redrawn] + torch.randint(1, config.vocab_size, (int(redrawn.sum()),))) % config.vocab_size
    answers = torch.randint(config.vocab_size, (n_pairs, 2))
    return Problem(hf, clean, corrupt, answers[:, 0].tolist(), answers[:, 1].tolist(), first)
