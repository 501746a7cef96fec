"""Networks wired by hand, on which the right answer of every patch is known without running it.

All are real ``LlamaForCausalLM`` modules with the norms taken out and the rotation set to zero, so that a residual
dimension is a named variable and every value below is exact. A prompt is ``w<i> x<bit> y<bit> ?``: a filler (which
makes prompts differ), two inputs, and the question, at which the network answers ``yes`` or ``no``.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crosspatch.model import Model, load
from crosspatch.tasks.pairs import Pair, Task

FILLERS = 24
WORDS = ["x0", "x1", "y0", "y1", "?", "yes", "no", *(f"w{i}" for i in range(FILLERS))]
ID = {word: i for i, word in enumerate(WORDS)}
# Residual dimensions: what a token is, its bits, and what the network computes.
IS_X, IS_Y, ASKS, BIT_X, BIT_Y, A, B, OUT = range(8)
D_MODEL, D_HEAD, N_HEADS = 8, 4, 2
SHARP = 200.0  # attention scores far enough apart that the softmax is exactly 0 or 1 in float32
SCALE = 3.0  # logit(yes) - logit(no) is SCALE when OUT is 1 and -SCALE when it is 0


def tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(words or WORDS)}
    core = Tokenizer(WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def blank(n_layers: int = 2) -> LlamaForCausalLM:
    """All weights zero, no norms, no rotation; tokens embed as what they are; reads OUT."""
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=D_MODEL, intermediate_size=4, num_hidden_layers=n_layers,
        num_attention_heads=N_HEADS, num_key_value_heads=N_HEADS, head_dim=D_HEAD, hidden_act="relu", mlp_bias=True,
        tie_word_embeddings=False, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.rotary_emb.inv_freq.zero_()
        model.model.norm = nn.Identity()
        for layer in model.model.layers:
            layer.input_layernorm = nn.Identity()
            layer.post_attention_layernorm = nn.Identity()
            layer.mlp.up_proj.bias.fill_(1.0)
        embedding = model.model.embed_tokens.weight
        for word, dims in {"x0": [IS_X], "x1": [IS_X, BIT_X], "y0": [IS_Y], "y1": [IS_Y, BIT_Y], "?": [ASKS]}.items():
            embedding[ID[word], dims] = 1.0
        head = model.lm_head.weight
        head[ID["yes"], OUT] = SCALE
        head[ID["no"], OUT], head[ID["no"], ASKS] = -SCALE, SCALE
    return model


@torch.no_grad()
def copy_head(
    model: LlamaForCausalLM, layer: int, head: int, attends: int, reads: int, writes: int, weight: float = 1.0
) -> None:
    """A head that looks, from the question, at the token with flag ``attends`` and copies ``reads`` to ``writes``."""
    attention, first = model.model.layers[layer].self_attn, head * D_HEAD
    attention.q_proj.weight[first, ASKS] = SHARP
    attention.k_proj.weight[first, attends] = 1.0
    attention.v_proj.weight[first, reads] = 1.0
    attention.o_proj.weight[writes, first] = weight


@torch.no_grad()
def hidden_unit(
    model: LlamaForCausalLM, layer: int, unit: int, reads: dict[int, float], bias: float, out: float
) -> None:
    """A neuron relu(reads . x + bias) that writes ``out`` times itself to OUT."""
    mlp = model.model.layers[layer].mlp
    for dim, weight in reads.items():
        mlp.gate_proj.weight[unit, dim] = weight
    mlp.gate_proj.bias[unit] = bias
    mlp.down_proj.weight[OUT, unit] = out


def and_network() -> Model:
    """``a0.h0`` = A copies x, ``a0.h1`` = B copies y, ``m1`` = C = relu(A + B - 1) = A and B."""
    model = blank()
    copy_head(model, 0, 0, IS_X, BIT_X, A)
    copy_head(model, 0, 1, IS_Y, BIT_Y, B)
    hidden_unit(model, 1, 0, {A: 1.0, B: 1.0}, -1.0, 1.0)
    return load(model, tokenizer())


def or_network() -> Model:
    """As the AND network, with C = relu(A + B) - relu(A + B - 1) = A or B, in two neurons."""
    model = blank()
    copy_head(model, 0, 0, IS_X, BIT_X, A)
    copy_head(model, 0, 1, IS_Y, BIT_Y, B)
    hidden_unit(model, 1, 0, {A: 1.0, B: 1.0}, 0.0, 1.0)
    hidden_unit(model, 1, 1, {A: 1.0, B: 1.0}, -1.0, -1.0)
    return load(model, tokenizer())


def backup_network(repair: float = 1.0) -> Model:
    """``a0.h0`` writes x to OUT; ``a1.h0`` writes ``repair`` times x there, but only where the first one did not."""
    model = blank()
    copy_head(model, 0, 0, IS_X, BIT_X, OUT)
    copy_head(model, 1, 0, IS_X, BIT_X, OUT, weight=repair)
    with torch.no_grad():  # it looks away from x when OUT is 1 already
        query = model.model.layers[1].self_attn.q_proj.weight
        query[0, ASKS], query[0, OUT] = SHARP / 2, -SHARP
    return load(model, tokenizer())


def linear_network(seed: int = 0, n_layers: int = 2) -> Model:
    """Random values and outputs with uniform attention and no MLP: logits are linear in every activation."""
    model = blank(n_layers)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.randn(len(WORDS), D_MODEL, generator=generator))
        model.lm_head.weight.copy_(torch.randn(len(WORDS), D_MODEL, generator=generator))
        for layer in model.model.layers:
            for projection in (layer.self_attn.v_proj, layer.self_attn.o_proj):
                projection.weight.copy_(torch.randn(projection.weight.shape, generator=generator) / 2)
    return load(model, tokenizer())


def random_network(seed: int = 0, n_words: int = 200) -> tuple[Model, PreTrainedTokenizerFast]:
    """A Llama with random weights, grouped queries, and a vocabulary ``t0 t1 ...``; it can do nothing."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=n_words, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=False, max_position_embeddings=64,
    )  # fmt: skip
    words = tokenizer([f"t{i}" for i in range(n_words)])
    return load(LlamaForCausalLM(config).eval(), words), words


def gate_task(n: int = 12, clean: str = "x1 y1", corrupt: str = "x0 y0") -> Task:
    """Pairs whose inputs differ in both bits: ``w3 x1 y1 ?`` (yes) against ``w3 x0 y0 ?`` (no)."""
    x, y = clean.split()
    cx, cy = corrupt.split()
    pairs = [
        Pair(f"w{i} {x} {y} ?", f"w{i} {cx} {cy} ?", " yes", " no", {"x": x, "y": y}, {"x": cx, "y": cy},
             template=f"T{i % 3}", corruption="both bits")
        for i in range(n)
    ]  # fmt: skip
    return Task("gate", pairs, provenance="tests/toys.py", varies="both bits", holds="the filler")


def random_task(seed: int = 0, n: int = 24, n_words: int = 200) -> Task:
    """Random words with one exchanged, and random answers: there is nothing to find."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[str]:
        return [f"t{i}" for i in torch.randperm(n_words, generator=generator)[:count].tolist()]

    pairs = []
    for _ in range(n):
        *text, other, right, wrong = words(8)
        start = len(" ".join(text[:2])) + 1
        pairs.append(
            Pair(" ".join(text), " ".join([*text[:2], other, *text[3:]]), f" {right}", f" {wrong}",
                 {"changed": (start, start + len(text[2]))}, {"changed": (start, start + len(other))})
        )  # fmt: skip
    return Task("random", pairs, varies="one word", holds="the others")
