"""Weights of a compiled transformer, from the tensors of a ground-truth folder (names as in TransformerLens)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crosspatch.compiled.modeling import CompiledConfig, CompiledForCausalLM
from crosspatch.compiled.program import Program, read_program
from crosspatch.errors import ModelError
from crosspatch.model.load import load
from crosspatch.model.model import Model


def load_compiled(folder: str | Path, *, dtype: torch.dtype = torch.float32, verify: bool = True) -> Model:
    """A compiled transformer as a model of the graph.

    Its tokenizer splits at white space (`BOS 1 2 3`); a prompt begins with BOS, which the program needs.

    Args:
        folder: with `config.json` and `model.safetensors`.
        dtype: of the model.
        verify: see `crosspatch.load`.

    Raises:
        ModelError: a file that cannot be read, or tensors that are missing, unknown, of the wrong shape or not finite.
    """
    program = read_program(folder)
    path = Path(folder) / "model.safetensors"
    state = _read(path, program)
    hf: Any = CompiledForCausalLM(_config(program))
    hf.load_state_dict(_renamed(state, program))
    return load(hf.to(dtype=dtype).eval(), tokenizer_of(program), name=program.name, verify=verify)


def tokenizer_of(program: Program) -> PreTrainedTokenizerFast:
    """One token for every word of the program's vocabulary; words stand apart by white space.

    Raises:
        ModelError: a token that is no word.
    """
    words = {str(token): i for i, token in enumerate(program.vocab)}
    if wrong := [word for word in words if word.split() != [word]]:
        raise ModelError(f"token {wrong[0]!r:.40} is no single word", where=f"vocabulary of {program.name}")
    core = Tokenizer(WordLevel(words, unk_token=next(iter(words))))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def _config(program: Program) -> CompiledConfig:
    shape = program.shape
    return CompiledConfig(
        vocab_size=len(program.vocab),
        output_size=shape.vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        head_dim=shape.d_head,
        max_position_embeddings=program.context,
        is_causal=shape.causal,
    )


def _shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """Every tensor of the layout with its shape."""
    s = program.shape
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (len(program.vocab), s.d_model),
        "pos_embed.W_pos": (program.context, s.d_model),
        "unembed.W_U": (s.d_model, s.vocab),
    }
    for i in range(s.n_layers):
        attn, mlp = f"blocks.{i}.attn", f"blocks.{i}.mlp"
        shapes |= {f"{attn}.W_{part}": (s.n_heads, s.d_model, s.d_head) for part in "QKV"}
        shapes |= {f"{attn}.b_{part}": (s.n_heads, s.d_head) for part in "QKV"}
        shapes |= {f"{attn}.W_O": (s.n_heads, s.d_head, s.d_model), f"{attn}.b_O": (s.d_model,)}
        shapes |= {f"{mlp}.W_in": (s.d_model, s.d_mlp), f"{mlp}.b_in": (s.d_mlp,)}
        shapes |= {f"{mlp}.W_out": (s.d_mlp, s.d_model), f"{mlp}.b_out": (s.d_model,)}
    return shapes


def _read(path: Path, program: Program) -> dict[str, Tensor]:
    """The tensors; shapes are checked before anything of the sizes that the config names is made."""
    shapes, where = _shapes(program), str(path)
    state = {}
    try:
        with safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            for name in sorted(shapes.keys() | found.keys()):
                if shapes.get(name) != found.get(name):
                    have = f"has shape {list(found[name])}" if name in found else "is missing"
                    fix = f"it has to be {list(shapes[name])}" if name in shapes else "leave it out"
                    raise ModelError(f"tensor {name!r:.60} {have}", where=where, fix=fix)
            state = {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot be read ({error})", where=where, fix="restore the file from a copy") from error
    for name, value in state.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise ModelError(f"tensor {name!r} holds something that is no finite number", where=where)
    return state


def _renamed(state: Mapping[str, Tensor], program: Program) -> dict[str, Tensor]:
    """The tensors under the names, and in the orientations, of :class:`CompiledForCausalLM`."""
    new = {
        "model.embed_tokens.weight": state["embed.W_E"],
        "model.embed_positions.weight": state["pos_embed.W_pos"],
        "lm_head.weight": state["unembed.W_U"].T,
    }
    for i in range(program.shape.n_layers):
        attn, mlp, layer = f"blocks.{i}.attn", f"blocks.{i}.mlp", f"model.layers.{i}"
        for part in "QKV":
            new[f"{layer}.self_attn.{part.lower()}_proj.weight"] = state[f"{attn}.W_{part}"].mT.flatten(0, 1)
            new[f"{layer}.self_attn.{part.lower()}_proj.bias"] = state[f"{attn}.b_{part}"].flatten()
        new[f"{layer}.self_attn.o_proj.weight"] = state[f"{attn}.W_O"].flatten(0, 1).T
        new[f"{layer}.self_attn.o_proj.bias"] = state[f"{attn}.b_O"]
        for part, role in (("in", "up"), ("out", "down")):
            new[f"{layer}.mlp.{role}_proj.weight"] = state[f"{mlp}.W_{part}"].T
            new[f"{layer}.mlp.{role}_proj.bias"] = state[f"{mlp}.b_{part}"]
    return new
