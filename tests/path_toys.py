"""What the tests of path patching share: small real models, pairs, and networks whose answers are known by hand."""

from __future__ import annotations

import random
from functools import lru_cache

import families
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import crosspatch as cp
from crosspatch.paths import Pairs

SMALL = {
    "gpt2": {"n_embd": 16, "n_head": 2},
    "llama": {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 2},
    "gemma2": {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1,
               "head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": 8},
}  # fmt: skip


@torch.no_grad()
def enlarge(hf: nn.Module) -> None:
    """Weights so large that every path matters."""
    for name, parameter in hf.named_parameters():
        if parameter.dim() > 1:
            parameter.mul_(0.4 / parameter.std())
        elif "bias" in name:
            parameter.normal_(0, 0.3)


@lru_cache
def small(family: str, n_layers: int = 3) -> cp.Model:
    """Random weights, large enough for every path to matter, in float64."""
    cls, config = families.FAMILIES[family]()
    layers = {"n_layer": n_layers} if family == "gpt2" else {"num_hidden_layers": n_layers}
    for name, value in (SMALL[family] | layers).items():
        setattr(config, name, value)
    if family == "gemma2":
        config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"][:n_layers]
    torch.manual_seed(0)
    hf = cls(config).double().eval()
    enlarge(hf)
    return cp.load(hf, name=family)


def random_pairs(n: int, length: int = 5, seed: int = 0, read: tuple[int, ...] | None = None) -> Pairs:
    """Pairs of unlike random prompts with a right and a wrong answer and the span S on tokens 1 and 2."""
    rng = random.Random(seed)

    def prompts() -> list[list[int]]:
        return [[rng.randrange(1, families.VOCAB) for _ in range(length)] for _ in range(n)]

    read = read or (length - 1,)
    answers, wrong = [[rng.randrange(1, 40)] for _ in range(n)], [[rng.randrange(40, families.VOCAB)] for _ in range(n)]
    return Pairs(prompts(), prompts(), [read] * n, [(a[0],) * len(read) for a in answers], answers, wrong,
                 [{"S": (1, 3), "END": (length - 1, length)} for _ in range(n)],
                 [f"T{i % 4}" for i in range(n)], "random prompts")  # fmt: skip


def linear_model(n_layers: int = 3, seed: int = 0, norms: bool = False) -> cp.Model:
    """A GPT-2 in which logits are linear in every activation, but for its norms if it keeps them: uniform attention
    (queries and keys are zero), and MLPs that are one matrix."""
    torch.manual_seed(seed)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=families.VOCAB, n_embd=12, n_layer=n_layers, n_head=3, n_positions=16))
    hf = hf.double().eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.normal_(0, 0.4)
        if not norms:
            hf.transformer.ln_f = nn.Identity()
        for block in hf.transformer.h:
            if not norms:
                block.ln_1 = block.ln_2 = nn.Identity()
            block.attn.c_attn.weight[:, :24] = 0
            block.attn.c_attn.bias[:24] = 0
            block.mlp.act = nn.Identity()
    return cp.load(hf, name="linear")
