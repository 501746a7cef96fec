"""Reads ``redwood_attn_2l``, the published model of the induction study, from a file that the user has.

The published file (hub: ``ArthurConmy/redwood_attn_2l``, ``et_model_state_dict.pt``) is a state dict with the names of
TransformerLens: public code loads it, with no name missing or left over, into a ``HookedTransformer`` of 2 layers, 8
heads of 32, d_model 256, context 2048, vocabulary 50259, attention only, shortformer positions. Names and orientations
below follow from that. What could not be seen, since the file itself was not at hand: whether its biases of the
attention are exactly zero (the model is described as having none; others are refused) and whether its unembedding has a
bias (kept where it is not zero).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crosspatch.errors import ModelError
from crosspatch.shortformer.modeling import ShortformerConfig, ShortformerForCausalLM

# Buffers of TransformerLens' attention, which say nothing: the causal mask and the value of masked scores.
_BUFFER = re.compile(r"blocks\.\d+\.attn\.(mask|IGNORE)")
_LAYER = re.compile(r"blocks\.(\d+)\.")


def load_redwood(path: str | Path) -> ShortformerForCausalLM:
    """The model of a TransformerLens state dict, for ``crosspatch.load(load_redwood(path), name="redwood_attn_2l")``.

    Args:
        path: ``.pt`` (read with ``weights_only=True``: no code of the file is run) or ``.safetensors``.

    Raises:
        ModelError: not such a file; or a tensor that is missing, unknown, of the wrong shape, or not what this
            architecture has. Names the tensor, the shape and what was expected.
    """
    path = Path(path)
    return from_transformer_lens(_read(path), where=str(path))


def _read(path: Path) -> Mapping[str, Tensor]:
    fix = "give et_model_state_dict.pt of ArthurConmy/redwood_attn_2l, or the same tensors as .safetensors"
    if not path.is_file():
        raise ModelError("no such file", where=str(path), fix=fix)
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no message"
        raise ModelError(f"cannot be read ({type(error).__name__}: {reason})", where=str(path), fix=fix) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError("does not hold a state dict (names to tensors)", where=str(path), fix=fix)
    return found


def from_transformer_lens(state: Mapping[str, Tensor], where: str = "state dict") -> ShortformerForCausalLM:
    """The same model from tensors in memory; see :func:`load_redwood`.

    TransformerLens multiplies from the right and keeps heads apart: ``W_Q``, ``W_K``, ``W_V [head, d_model, d_head]``,
    ``W_O [head, d_head, d_model]``, ``W_U [d_model, vocab]``.
    """
    config = _config(state, where)
    shapes = _shapes(config)
    for name in sorted(shapes.keys() | state.keys()):
        if name not in shapes:
            if not _BUFFER.fullmatch(name):
                raise ModelError(
                    f"unknown tensor {name!r}", where=where, fix="attention-only models with LayerNorm can be read"
                )
            continue
        optional = name.rpartition(".")[2].startswith("b_")
        if name not in state and not optional:
            raise ModelError(f"tensor {name!r} is missing", where=where, fix=f"it has shape {list(shapes[name])}")
        if name in state and tuple(state[name].shape) != shapes[name]:
            raise ModelError(
                f"tensor {name!r} has shape {list(state[name].shape)}",
                where=where,
                fix=f"with the sizes of the other tensors it has to be {list(shapes[name])}",
            )
        if name in state and optional and name != "unembed.b_U" and state[name].any():
            raise ModelError(
                f"{name!r} is not zero", where=where, fix="this architecture has no biases in its attention"
            )
    model = ShortformerForCausalLM(config)
    model.load_state_dict(_renamed(state, config))
    return model.eval()


def _config(state: Mapping[str, Tensor], where: str) -> ShortformerConfig:
    """Sizes, from the tensors that tell them."""
    dims = {"embed.W_E": 2, "pos_embed.W_pos": 2, "blocks.0.attn.W_Q": 3}
    for name, n in dims.items():
        if name not in state or state[name].dim() != n:
            found = f"has shape {list(state[name].shape)}" if name in state else "is missing"
            raise ModelError(f"tensor {name!r} {found}", where=where, fix=f"it has {n} dimensions")
    vocab, width = state["embed.W_E"].shape
    heads, _, d_head = state["blocks.0.attn.W_Q"].shape
    if heads * d_head != width:
        raise ModelError(
            f"{heads} heads of {d_head} in a stream of {width}", where=where, fix="heads have to share d_model evenly"
        )
    bias = state.get("unembed.b_U")
    return ShortformerConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=1 + max(int(match[1]) for name in state if (match := _LAYER.match(name))),
        num_attention_heads=heads,
        max_position_embeddings=state["pos_embed.W_pos"].shape[0],
        layer_norm_eps=1e-5,
        unembed_bias=bias is not None and bool(bias.any()),
    )


def _shapes(config: ShortformerConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the layout with its shape."""
    vocab, width, heads = config.vocab_size, config.hidden_size, config.num_attention_heads
    d_head = width // heads
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (vocab, width),
        "pos_embed.W_pos": (config.max_position_embeddings, width),
        "ln_final.w": (width,),
        "ln_final.b": (width,),
        "unembed.W_U": (width, vocab),
        "unembed.b_U": (vocab,),
    }
    for i in range(config.num_hidden_layers):
        shapes |= {f"blocks.{i}.ln1.{part}": (width,) for part in "wb"}
        shapes |= {f"blocks.{i}.attn.W_{part}": (heads, width, d_head) for part in "QKV"}
        shapes |= {f"blocks.{i}.attn.b_{part}": (heads, d_head) for part in "QKV"}
        shapes |= {f"blocks.{i}.attn.W_O": (heads, d_head, width), f"blocks.{i}.attn.b_O": (width,)}
    return shapes


def _renamed(state: Mapping[str, Tensor], config: ShortformerConfig) -> dict[str, Tensor]:
    """The tensors under the names, and in the orientations, of :class:`ShortformerForCausalLM`."""
    new = {
        "model.embed_tokens.weight": state["embed.W_E"],
        "model.embed_positions.weight": state["pos_embed.W_pos"],
        "model.norm.weight": state["ln_final.w"],
        "model.norm.bias": state["ln_final.b"],
        "lm_head.weight": state["unembed.W_U"].T,
    }
    if config.unembed_bias:
        new["lm_head.bias"] = state["unembed.b_U"]
    for i in range(config.num_hidden_layers):
        old, layer = f"blocks.{i}", f"model.layers.{i}"
        new |= {
            f"{layer}.input_layernorm.weight": state[f"{old}.ln1.w"],
            f"{layer}.input_layernorm.bias": state[f"{old}.ln1.b"],
            f"{layer}.self_attn.o_proj.weight": state[f"{old}.attn.W_O"].flatten(0, 1).T,
        }
        for part in "QKV":
            weight = state[f"{old}.attn.W_{part}"].transpose(1, 2).flatten(0, 1)
            new[f"{layer}.self_attn.{part.lower()}_proj.weight"] = weight
    return new
