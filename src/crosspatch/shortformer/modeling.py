"""An attention-only decoder with "shortformer" positions, as a ``transformers`` model.

Pre-norm with scale and bias, a final norm, no attention biases, an unembedding of its own. Learned position embeddings
are added, after the norm, to the *inputs of queries and keys* of every layer (Press et al. 2020, arXiv 2012.15832);
values and the residual stream never see a position. This is the architecture of the induction study of Goldowsky-Dill
et al. 2023 (arXiv 2304.05969).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class ShortformerConfig(PreTrainedConfig):
    """Sizes of a :class:`ShortformerForCausalLM`.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads: as everywhere in ``transformers``.
        max_position_embeddings: longest sequence; there is one learned vector for each position.
        layer_norm_eps: of all norms.
        unembed_bias: the unembedding has a bias.
        initializer_range: standard deviation of new weights.

    Raises:
        ValueError: heads that do not divide the width.
    """

    model_type = "crosspatch_shortformer"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size: int = 1024,
        hidden_size: int = 256,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 160,
        layer_norm_eps: float = 1e-5,
        unembed_bias: bool = False,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        if hidden_size % num_attention_heads:
            raise ValueError(f"{num_attention_heads} heads do not divide hidden_size {hidden_size}")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.layer_norm_eps = layer_norm_eps
        self.unembed_bias = unembed_bias
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **kwargs})


def eager_attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch head key d_head"],
    value: Float[Tensor, "batch head key d_head"],
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Float[Tensor, "batch query head d_head"], Float[Tensor, "batch head query key"]]:
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    pattern = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


class ShortformerAttention(nn.Module):
    """Multi-head attention whose queries and keys, and not its values, are told where they stand."""

    is_causal = True

    def __init__(self, config: ShortformerConfig, layer_idx: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch query d_model"],
        position_embeddings: Float[Tensor, "batch query d_model"],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch query d_model"], Tensor | None]:
        placed = hidden_states + position_embeddings
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project, x in ((self.q_proj, placed), (self.k_proj, placed), (self.v_proj, hidden_states))
        )
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        z, pattern = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(z.flatten(-2)), pattern


class ShortformerLayer(nn.Module):
    """Norm and attention, added to the residual stream. There is no MLP."""

    def __init__(self, config: ShortformerConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ShortformerAttention(config, layer_idx)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        out, pattern = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        return hidden_states + out, pattern


class ShortformerPreTrainedModel(PreTrainedModel):
    config_class = ShortformerConfig
    base_model_prefix = "model"
    _no_split_modules = ["ShortformerLayer"]  # noqa: RUF012 (declared so by the base class)
    _supports_sdpa = True
    _supports_attention_backend = True


class ShortformerModel(ShortformerPreTrainedModel):
    """Embedding, layers and final norm."""

    def __init__(self, config: ShortformerConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(ShortformerLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch query"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch query"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch query d_model"] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        places = self.embed_positions(position_ids)
        states, patterns = [x], []
        for layer in self.layers:
            x, pattern = layer(
                x, position_embeddings=places, attention_mask=mask, past_key_values=past_key_values, **kwargs
            )
            states.append(x)
            patterns.append(pattern)
        states[-1] = x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(patterns) if output_attentions else None,
        )


class ShortformerForCausalLM(ShortformerPreTrainedModel, GenerationMixin):
    """The language model: :class:`ShortformerModel` and an unembedding that is not tied to the embedding."""

    def __init__(self, config: ShortformerConfig) -> None:
        super().__init__(config)
        self.model = ShortformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.unembed_bias)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch query"] | None = None,
        labels: Int[Tensor, "batch query"] | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """``labels`` are shifted inside, -100 is ignored; ``logits_to_keep``: last positions only, 0 = all."""
        out = self.model(input_ids, **kwargs)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
