"""Small randomly initialised models of the real classes, one per supported family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

from crosspatch.compiled import CompiledConfig, CompiledForCausalLM
from crosspatch.shortformer import ShortformerConfig, ShortformerForCausalLM

VOCAB = 97
_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
_MHA = {**_LLAMA, "num_key_value_heads": 4}
_MOE = {"num_experts_per_tok": 2}

FAMILIES: dict[str, Callable[[], tuple[type, Any]]] = {
    "gpt2": lambda: (
        tf.GPT2LMHeadModel,
        tf.GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, n_positions=128),
    ),
    "gpt_neox": lambda: (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**_MHA)),
    "gpt_neox_sequential": lambda: (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**_MHA, use_parallel_residual=False)),
    "gptj": lambda: (
        tf.GPTJForCausalLM,
        tf.GPTJConfig(vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, rotary_dim=8, n_positions=128),
    ),
    "opt": lambda: (
        tf.OPTForCausalLM,
        tf.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            ffn_dim=80,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=64,
        ),
    ),
    "llama": lambda: (tf.LlamaForCausalLM, tf.LlamaConfig(**_LLAMA)),
    "mistral": lambda: (tf.MistralForCausalLM, tf.MistralConfig(**_LLAMA, sliding_window=4)),
    "qwen2": lambda: (tf.Qwen2ForCausalLM, tf.Qwen2Config(**_LLAMA)),
    "qwen3": lambda: (tf.Qwen3ForCausalLM, tf.Qwen3Config(**_LLAMA, head_dim=16)),
    "gemma": lambda: (tf.GemmaForCausalLM, tf.GemmaConfig(**{**_LLAMA, "num_key_value_heads": 1}, head_dim=16)),
    "gemma2": lambda: (
        tf.Gemma2ForCausalLM,
        tf.Gemma2Config(
            **_LLAMA,
            head_dim=16,
            sliding_window=4,
            query_pre_attn_scalar=16,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    "gemma3": lambda: (
        tf.Gemma3ForCausalLM,
        tf.Gemma3TextConfig(
            **_LLAMA,
            head_dim=16,
            sliding_window=4,
            query_pre_attn_scalar=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "phi": lambda: (tf.PhiForCausalLM, tf.PhiConfig(**_MHA, partial_rotary_factor=0.5)),
    "phi3": lambda: (tf.Phi3ForCausalLM, tf.Phi3Config(**_LLAMA)),
    "stablelm": lambda: (tf.StableLmForCausalLM, tf.StableLmConfig(**_LLAMA)),
    "stablelm_parallel": lambda: (
        tf.StableLmForCausalLM,
        tf.StableLmConfig(**_LLAMA, use_parallel_residual=True, qk_layernorm=True),
    ),
    "olmo2": lambda: (tf.Olmo2ForCausalLM, tf.Olmo2Config(**_LLAMA)),
    "mixtral": lambda: (tf.MixtralForCausalLM, tf.MixtralConfig(**_LLAMA, **_MOE, num_local_experts=4)),
    "qwen3_moe": lambda: (
        tf.Qwen3MoeForCausalLM,
        tf.Qwen3MoeConfig(**_LLAMA, **_MOE, num_experts=4, head_dim=16, moe_intermediate_size=32),
    ),
    "shortformer": lambda: (
        ShortformerForCausalLM,
        ShortformerConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            unembed_bias=True,
        ),
    ),
}

BIDIRECTIONAL: dict[str, Callable[[], tuple[type, Any]]] = {
    "compiled": lambda: (
        CompiledForCausalLM,
        CompiledConfig(
            vocab_size=VOCAB,
            output_size=VOCAB - 7,
            hidden_size=40,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=3,
            head_dim=12,
            max_position_embeddings=128,
        ),
    ),
    "llama_both_ways": lambda: (tf.LlamaForCausalLM, tf.LlamaConfig(**_LLAMA, is_causal=False)),
    "mistral_both_ways": lambda: (
        tf.MistralForCausalLM,
        tf.MistralConfig(**_LLAMA, sliding_window=2, is_causal=False),
    ),
    "gpt_neox_both_ways": lambda: (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**_MHA, is_causal=False)),
    "gemma3_both_ways": lambda: (
        tf.Gemma3ForCausalLM,
        tf.Gemma3TextConfig(
            **_LLAMA,
            head_dim=16,
            sliding_window=4,
            query_pre_attn_scalar=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            use_bidirectional_attention=True,
        ),
    ),
}
"""Real classes, and the compiled one, whose attention sees later tokens too."""


def make(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose weights are large enough that every part matters (norm weights and biases included)."""
    cls, config = (FAMILIES | BIDIRECTIONAL)[family]()
    torch.manual_seed(seed)
    model = cls(config).eval()
    generator = torch.Generator().manual_seed(seed)
    gain = 0.8 if family == "compiled" else 1.5  # without norms the stream, and its rounding, grows layer by layer
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.add_(0.2 * noise)
            elif "embed" in name or "wte" in name or "wpe" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(gain * noise / p.shape[-1] ** 0.5)
    return model.to(dtype)
