"""A model whose classifier rests on known features: blocks that do nothing, tokens that embed as what they are.

Dimension 0 tells the label, 1 the other attribute (twice as strongly, so that a classifier of ambiguous texts takes
it), 2 and 3 nothing. The dictionary of the input has one feature for either direction of each.
"""

from __future__ import annotations

import torch
import toys
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.model import Model, load
from crosspatch.shift.data import Labelled, Splits

LABEL_WORDS = ("lecture", "seminar"), ("patient", "medicine")
CUE_WORDS = ("he", "him"), ("she", "her")
FILLERS = tuple(f"f{i}" for i in range(8))
WORDS = ["?", *LABEL_WORDS[0], *LABEL_WORDS[1], *CUE_WORDS[0], *CUE_WORDS[1], *FILLERS]
D = 4
LABEL_FEATURES, CUE_FEATURES, FILLER_FEATURES = (0, 1), (2, 3), (4, 5, 6, 7)


def model() -> Model:
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=D, intermediate_size=4, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=2, tie_word_embeddings=False, max_position_embeddings=32,
    )  # fmt: skip
    hf = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        for layer in hf.model.layers:
            layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
        embedding = hf.model.embed_tokens.weight
        for dim, (words, size) in enumerate(((LABEL_WORDS, 1.0), (CUE_WORDS, 2.0))):
            for value, pair in enumerate(words):
                for word in pair:
                    embedding[WORDS.index(word), dim] = size * (2 * value - 1)
        for i, word in enumerate(FILLERS):
            embedding[WORDS.index(word), 2 + i % 2] = 1.0 if i < 4 else -1.0
    return load(hf, toys.tokenizer(WORDS), name="planted")


def dictionary(place: str = "input") -> Dictionary:
    """Features 2k and 2k + 1: dimension k below and above 0."""
    decoder = torch.stack([sign * torch.eye(D)[dim] for dim in range(D) for sign in (-1.0, 1.0)])
    zeros = torch.zeros(2 * D)
    return Dictionary(decoder.clone(), zeros, decoder, torch.zeros(D), zeros.clone(), (place,), (place,))


def texts(n: int, first: int, groups: tuple[int, ...] = (0, 1, 2, 3)) -> Labelled:
    """n texts of each group; `first` keeps the texts of two sets apart."""
    rows = []
    for group in groups:
        label, other = divmod(group, 2)
        for i in range(n):
            k = first + i
            words = [FILLERS[k % 8], CUE_WORDS[other][k % 2], LABEL_WORDS[label][k // 2 % 2], FILLERS[k // 8 % 8]]
            rows.append((" ".join([*words, CUE_WORDS[other][k // 4 % 2]]), label, other))
    columns = zip(*rows, strict=True)
    return Labelled(*map(tuple, columns), ("professor", "nurse"), ("male", "female"))  # type: ignore[arg-type]


def splits(n: int = 24) -> Splits:
    cues = tuple(word for pair in CUE_WORDS for word in pair)
    concepts = tuple(word for pair in LABEL_WORDS for word in pair)
    return Splits(texts(n, 0, (0, 3)), texts(n, 0), texts(8, 32), "planted", cues, concepts)
