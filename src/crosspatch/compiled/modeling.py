"""The decoder that programs are compiled into, as a ``transformers`` model.

The forward pass of Tracr's transformers (Lindner et al. 2023, arXiv 2301.05062): token and position embeddings added,
attention and a ReLU MLP in turn, no norm anywhere, attention that sees every token unless the program was compiled to
be causal, and an unembedding to output columns that need not be the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crosspatch.shortformer.modeling import eager_attention


class CompiledConfig(PreTrainedConfig):
    """Sizes of a :class:`CompiledForCausalLM`.

    Args:
        vocab_size: token ids.
        output_size: columns of the output; default: one for every token.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, head_dim: as everywhere in
            ``transformers``; heads need not share the width.
        max_position_embeddings: longest input.
        is_causal: a token sees itself and earlier tokens only.
        initializer_range: standard deviation of new weights.

    Raises:
        ValueError: a size below one.
    """

    model_type = "crosspatch_compiled"

    def __init__(
        self,
        vocab_size: int = 8,
        output_size: int | None = None,
        hidden_size: int = 16,
        intermediate_size: int = 16,
        num_hidden_layers: int = 1,
        num_attention_heads: int = 1,
        head_dim: int = 4,
        max_position_embeddings: int = 8,
        is_causal: bool = False,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.output_size = vocab_size if output_size is None else output_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        sizes = {name: size for name, size in vars(self).items() if isinstance(size, int)}
        if small := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{small[0]} is {sizes[small[0]]}, it must be at least 1")
        self.is_causal = is_causal
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **kwargs})


class CompiledAttention(nn.Module):
    """Multi-head attention; heads of any width."""

    def __init__(self, config: CompiledConfig, layer_idx: int) -> None:
        super().__init__()
        width, inside = config.hidden_size, config.num_attention_heads * config.head_dim
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.is_causal = config.head_dim, config.is_causal
        self.scaling = config.head_dim**-0.5
        self.q_proj = nn.Linear(width, inside)
        self.k_proj = nn.Linear(width, inside)
        self.v_proj = nn.Linear(width, inside)
        self.o_proj = nn.Linear(inside, width)

    def forward(
        self, hidden_states: Float[Tensor, "batch token d_model"], attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Float[Tensor, "batch token d_model"], Tensor | None]:
        q, k, v = (
            project(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        z, pattern = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(z.flatten(-2)), pattern


class CompiledMLP(nn.Module):
    """relu(x W_in + b_in) W_out + b_out"""

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = nn.ReLU()
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class CompiledLayer(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, config: CompiledConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = CompiledAttention(config, layer_idx)
        self.mlp = CompiledMLP(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        out, pattern = self.self_attn(hidden_states, **kwargs)
        hidden_states = hidden_states + out
        return hidden_states + self.mlp(hidden_states), pattern


class CompiledPreTrainedModel(PreTrainedModel):
    config_class = CompiledConfig
    base_model_prefix = "model"
    _no_split_modules = ["CompiledLayer"]  # noqa: RUF012 (declared so by the base class)
    _supports_sdpa = True
    _supports_attention_backend = True


class CompiledModel(CompiledPreTrainedModel):
    """Embeddings and layers."""

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(CompiledLayer(config, i) for i in range(config.num_hidden_layers))
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"],
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.embed_tokens(input_ids) + self.embed_positions(places)
        mask = create_causal_mask(  # which makes a bidirectional one where `config.is_causal` is false
            config=self.config, inputs_embeds=x, attention_mask=attention_mask, past_key_values=None
        )
        states, patterns = [x], []
        for layer in self.layers:
            x, pattern = layer(x, attention_mask=mask, **kwargs)
            states.append(x)
            patterns.append(pattern)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(patterns) if output_attentions else None,
        )


class CompiledForCausalLM(CompiledPreTrainedModel):
    """:class:`CompiledModel` and the unembedding that picks the residual dimensions with the answer.

    The output at a position is the answer for that position, not a prediction of the next token.
    """

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__(config)
        self.model = CompiledModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.output_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Int[Tensor, "batch token"], **kwargs: Any) -> CausalLMOutput:
        out = self.model(input_ids, **kwargs)
        return CausalLMOutput(
            logits=self.lm_head(out.last_hidden_state), hidden_states=out.hidden_states, attentions=out.attentions
        )
