"""The embedded model's tokenizer: one token per word of the corpus, bytes for everything else.

A byte-level BPE without merges whose vocabulary lists whole words (``ignore_merges`` takes a pre-token that is in the
vocabulary as it is). Words carry their leading space, as in GPT-2; a run of digits is cut into pairs from the left,
so that " 1732" is " 17" and "32" (the format of the greater-than task). ``encode`` puts ``<|bos|>`` first; it also
ends every training document.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from crosspatch.embedded import corpus

BOS = "<|bos|>"
MAX_LENGTH = 128
#: GPT-2's pattern with digits in groups of at most two.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
#: Documents read for punctuation and for the words that start a text.
_SAMPLE = 20_000


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cuts text by a regular expression and writes the parts in byte-level letters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def build_tokenizer(seed: int | str = 0) -> PreTrainedTokenizerFast:
    """The tokenizer, made from ``words.py`` and a sample of the corpus (deterministic)."""
    pre = split_by(_PATTERN)
    pieces: dict[str, None] = {}
    for word in corpus.LISTED_WORDS:
        for text in (f" {word}", word) if word[0].isupper() or word.isdigit() else (f" {word}",):
            parts = pre.pre_tokenize_str(text)
            if len(parts) == 1:
                pieces[parts[0][0]] = None
    for document in islice(corpus.documents(seed), _SAMPLE):
        for piece, _ in pre.pre_tokenize_str(document.replace(corpus.MARK, "")):
            pieces[piece] = None
    return whole_pieces(pre, pieces, MAX_LENGTH)


def whole_pieces(pre: pre_tokenizers.PreTokenizer, pieces: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole pieces: what `pre` splits off is one token if it is in `pieces`, else single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([BOS, *alphabet, *pieces]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.add_special_tokens([BOS])
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=BOS,
        add_bos_token=True,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
