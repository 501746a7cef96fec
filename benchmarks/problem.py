"""What both sides of the benchmark work on: one seeded model and prompt pairs that differ from one token on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Problem:
    """A model and its pairs.

    Attributes:
        hf: randomly initialised, float32, on the CPU.
        tokenizer: one word (`t7`) for each token id (7).
        clean, corrupt: token ids `[example, position]`, equal before `first`.
        right, wrong: the two tokens of each example whose logits' difference is the metric.
    """

    hf: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    clean: torch.Tensor
    corrupt: torch.Tensor
    right: list[int]
    wrong: list[int]
    first: int

    @property
    def examples(self) -> list[tuple[int, int]]:
        return [(self.first, self.clean.shape[1])] * len(self.clean)

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(f"t{token}" for token in ids)


def gpt2_small(n_pairs: int = 8, length: int = 24, first: int = 6, seed: int = 0, **config: Any) -> Problem:
    """GPT-2 small's sizes, or others for a quick look. Corrupt tokens are drawn anew from `first` on."""
    torch.manual_seed(seed)
    # With the usual 0.02 attention is all but uniform, queries and keys have no effect above 1e-4, and agreement to
    # 1e-4 says nothing about them. At 0.05 every kind of site matters. The time does not depend on it.
    hf = GPT2LMHeadModel(GPT2Config(**{"initializer_range": 0.05, **config})).eval()
    size = hf.config.vocab_size
    clean = torch.randint(size, (n_pairs, length))
    corrupt = clean.clone()
    corrupt[:, first:] = (clean[:, first:] + torch.randint(1, size, (n_pairs, length - first))) % size
    right = torch.randint(size, (n_pairs,))
    wrong = (right + torch.randint(1, size, (n_pairs,))) % size
    words = Tokenizer(WordLevel({f"t{token}": token for token in range(size)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    return Problem(hf, tokenizer, clean, corrupt, right.tolist(), wrong.tolist(), first)
