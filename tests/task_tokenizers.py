"""Tokenizers for the tests of the tasks: all made or read offline, each with another way to split text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from crosspatch.tasks import list_tasks, make_task

SHARED = Path(__file__).resolve().parents[2] / "shared"


@cache
def embedded() -> Any:
    """Whole words with their leading space, digits in pairs, a beginning-of-text token."""
    from crosspatch.embedded.tokenizer import build_tokenizer

    return build_tokenizer()


@cache
def bpe() -> Any:
    """Byte-level BPE trained on the generators' own text, one token a digit, no beginning-of-text token."""
    texts = []
    for info in list_tasks():
        for seed in range(4):
            for pair in make_task(info.name, n=64, seed=seed).pairs:
                texts += [
                    pair.clean + (answer if answer[0] == " " else " x") for answer in pair.answers + pair.wrong[:1]
                ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def stories() -> Any:
    """A sentencepiece-like tokenizer of 512 pieces: words are split into pieces of any length."""
    folder = SHARED / "models" / "stories-260k"
    if not folder.is_dir():
        pytest.skip(f"no small public model at {folder}")
    return AutoTokenizer.from_pretrained(folder)


class SlowWords(PreTrainedTokenizer):
    """A tokenizer without offsets: words with their leading space, two pieces for words longer than five letters."""

    model_input_names = ("input_ids",)

    def __init__(self, **kwargs: Any) -> None:
        self._ids: dict[str, int] = {"<unk>": 0, "</s>": 1}
        super().__init__(unk_token="<unk>", eos_token="</s>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        pieces = []
        for i, word in enumerate(text.split(" ")):
            whole = word if i == 0 else f" {word}"
            pieces += [p for p in (whole[:6], whole[6:]) if p]
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.setdefault(token, len(self._ids))

    def _convert_id_to_token(self, index: int) -> str:
        return list(self._ids)[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: Any = None) -> list[int]:
        return [*token_ids_0, 1]  # closes the text, as encoder-decoder tokenizers do
