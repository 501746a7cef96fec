"""Where a Hugging Face decoder keeps its parts.

Everything that can be read off the module tree is read off: :func:`read_anatomy` looks for each role under the
names that families use (:data:`ROLE_NAMES`) and derives from what it finds whether blocks are sequential or
parallel and where norms sit. ``check`` then proves the reading on the model itself. A family with other names is
supplied as a :class:`Layout`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from crosspatch.errors import ModelError
from crosspatch.graph.shape import ModelShape
from crosspatch.model.attention import is_causal

ROLE_NAMES: dict[str, tuple[str, ...]] = {
    "attn": ("self_attn", "attn", "attention"),
    "mlp": ("mlp", "block_sparse_moe", "feed_forward"),
    "o_proj": ("o_proj", "c_proj", "out_proj", "dense"),
    "down_proj": ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h"),
    "norm_attn_in": ("input_layernorm", "ln_1", "self_attn_layer_norm"),
    "norm_mlp_in": ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "final_layer_norm"),
    "norm_attn_out": ("post_attention_layernorm",),
    "norm_mlp_out": ("post_feedforward_layernorm",),
}
FINAL_NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


@dataclass(frozen=True)
class Layout:
    """Names of the parts, for a family that Crosspatch cannot read by itself (dotted paths are allowed).

    ``layers`` and ``final_norm`` are paths from the model; all others are paths from one decoder layer, except
    ``o_proj`` (from the attention module) and ``down_proj`` (from the MLP module). ``None`` = the family has no
    such part; ``mlp=""`` = the MLP's parts lie in the layer itself (OPT). ``parallel``: attention and MLP both read
    the block's input; ``shared_norm``: through one norm.
    """

    layers: str
    final_norm: str | None
    attn: str = "self_attn"
    mlp: str | None = "mlp"
    o_proj: str = "o_proj"
    down_proj: str | None = "down_proj"
    norm_attn_in: str | None = "input_layernorm"
    norm_attn_out: str | None = None
    norm_mlp_in: str | None = "post_attention_layernorm"
    norm_mlp_out: str | None = None
    parallel: bool = False
    shared_norm: bool = False


def _identity(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Block:
    """One decoder layer as the graph sees it. Norm roles that the family lacks are the identity.

    ``mlp`` is None in an attention-only model.
    """

    layer: nn.Module
    attn: nn.Module
    o_proj: nn.Module
    mlp: Callable[[Tensor], Any] | None
    down_proj: nn.Module | None
    norm_attn_in: Callable[[Tensor], Tensor]
    norm_attn_out: Callable[[Tensor], Tensor]
    norm_mlp_in: Callable[[Tensor], Tensor]
    norm_mlp_out: Callable[[Tensor], Tensor]
    parallel: bool
    shared_norm: bool
    post_norm: bool

    @property
    def device(self) -> torch.device:
        return next(self.layer.parameters()).device


@dataclass(frozen=True)
class Anatomy:
    """The parts of a decoder-only language model."""

    blocks: tuple[Block, ...]
    final_norm: Callable[[Tensor], Tensor]
    lm_head: nn.Module
    softcap: float | None
    layout: Layout


def _path(root: nn.Module, dotted: str) -> nn.Module:
    module: Any = root
    for name in dotted.split("."):
        module = getattr(module, name, None)
        if module is None:
            raise ModelError(
                f"{type(root).__name__} has no part {dotted!r}",
                where="layout",
                fix=f"name one of: {', '.join(n for n, _ in root.named_children())}",
            )
    return module


def _first(module: nn.Module, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(getattr(module, name, None), nn.Module)), None)


def _missing(model: nn.Module, role: str, owner: nn.Module) -> ModelError:
    children = ", ".join(name for name, _ in owner.named_children()) or "none"
    return ModelError(
        f"could not find the {role} of {type(model).__name__} (looked for {', '.join(ROLE_NAMES.get(role, ()))} "
        f"in {type(owner).__name__}, whose parts are: {children})",
        where="anatomy",
        fix="pass layout=crosspatch.Layout(layers=..., final_norm=..., attn=..., ...) to load(); "
        "see docs/models.md, 'A family that is not known'",
    )


def _find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and _first(module[0], ROLE_NAMES["attn"]):
            return name, module
    raise ModelError(
        f"could not find the list of decoder layers of {type(model).__name__}: no ModuleList whose items have an "
        f"attention part ({', '.join(ROLE_NAMES['attn'])})",
        where="anatomy",
        fix="pass layout=crosspatch.Layout(layers='path.to.layers', ...) to load(); see docs/models.md",
    )


def guess_layout(model: nn.Module) -> Layout:
    """Read the names of a family's parts off its module tree.

    Raises:
        ModelError: naming the part that could not be found and how to supply it.
    """
    path, layers = _find_layers(model)
    layer = layers[0]
    parent = model.get_submodule(path.rpartition(".")[0])
    attn_name = _first(layer, ROLE_NAMES["attn"])
    assert attn_name is not None  # _find_layers saw it
    attn = getattr(layer, attn_name)
    o_proj = _first(attn, ROLE_NAMES["o_proj"])
    if o_proj is None:
        raise _missing(model, "o_proj", attn)
    mlp = _find_mlp(model, layer)
    down_proj = "fc2" if mlp == "" else None
    if mlp:
        down_proj = _first(getattr(layer, mlp), ROLE_NAMES["down_proj"])
    if getattr(layer, "do_layer_norm_before", True) is False:
        raise ModelError(
            "this OPT variant normalises the residual stream itself after each block, so no sum of nodes equals it",
            where=type(model).__name__,
            fix="use an OPT model with do_layer_norm_before=True (all sizes but 350m)",
        )
    norms = _norm_roles(layer)
    parallel = getattr(layer, "use_parallel_residual", None) if mlp is not None else False
    if parallel is None:  # one norm only, shared by both parts: GPT-J, Phi, Cohere
        parallel = norms["norm_mlp_in"] is None and norms["norm_mlp_out"] is None and norms["norm_attn_in"] is not None
    final = _first(parent, FINAL_NORM_NAMES)
    prefix = path.rpartition(".")[0]
    return Layout(
        layers=path,
        final_norm=None if final is None else f"{prefix}.{final}".lstrip("."),
        attn=attn_name,
        mlp=mlp,
        o_proj=o_proj,
        down_proj=down_proj,
        parallel=bool(parallel),
        shared_norm=bool(parallel) and norms["norm_mlp_in"] is None,
        **norms,
    )


def _find_mlp(model: nn.Module, layer: nn.Module) -> str | None:
    """Name of the layer's MLP; ``""`` where its parts lie in the layer (OPT); None where there is none.

    There is none only if the attention and the norms hold every weight of the layer: an MLP under an unknown name is
    an error, not an attention-only model.
    """
    mlp = _first(layer, ROLE_NAMES["mlp"])
    if mlp is None and hasattr(layer, "fc1") and hasattr(layer, "fc2"):
        return ""
    if mlp is None:
        roles = ("attn", "norm_attn_in", "norm_mlp_in", "norm_attn_out", "norm_mlp_out")
        known = {name for role in roles for name in ROLE_NAMES[role]}
        if any(name.partition(".")[0] not in known for name, _ in layer.named_parameters()):
            raise _missing(model, "mlp", layer)
    return mlp


def _norm_roles(layer: nn.Module) -> dict[str, str | None]:
    """Which norm of a decoder layer plays which role.

    ``post_attention_layernorm`` is the trap: it normalises the MLP's input in Llama and NeoX, and the attention's
    output in Gemma 2/3 and OLMo 2. The presence of ``post_feedforward_layernorm`` tells them apart.
    """
    roles = {role: _first(layer, ROLE_NAMES[role]) for role in ("norm_attn_in", "norm_mlp_in")}
    if _first(layer, ROLE_NAMES["norm_mlp_out"]):
        roles["norm_mlp_in"] = _first(layer, ("pre_feedforward_layernorm",))
        return roles | {
            "norm_attn_out": _first(layer, ROLE_NAMES["norm_attn_out"]),
            "norm_mlp_out": _first(layer, ROLE_NAMES["norm_mlp_out"]),
        }
    return roles | {"norm_attn_out": None, "norm_mlp_out": None}


def _fc_mlp(layer: Any) -> Callable[[Tensor], Tensor]:
    """OPT keeps its MLP in the decoder layer itself."""
    return lambda x: layer.fc2(layer.activation_fn(layer.fc1(x)))


def read_anatomy(model: nn.Module, layout: Layout | None = None) -> Anatomy:
    """Find the parts of ``model`` (a ``transformers`` causal language model).

    Raises:
        ModelError: naming the part that could not be found, or the feature that is not supported.
    """
    layout = layout or guess_layout(model)
    layers = _path(model, layout.layers)
    blocks = []
    for layer in layers.children():
        attn = _path(layer, layout.attn)
        mlp = _path(layer, layout.mlp) if layout.mlp else None
        norm: dict[str, Any] = {
            f.name: _path(layer, name) if (name := getattr(layout, f.name)) else _identity
            for f in fields(Layout)
            if f.name.startswith("norm_")
        }
        owner = layer if layout.mlp == "" else mlp
        down = _path(owner, layout.down_proj) if owner is not None and layout.down_proj else None
        blocks.append(
            Block(
                layer=layer,
                attn=attn,
                o_proj=_path(attn, layout.o_proj),
                mlp=_fc_mlp(layer) if layout.mlp == "" else mlp,
                down_proj=down,
                parallel=layout.parallel,
                shared_norm=layout.shared_norm,
                post_norm=layout.norm_attn_out is not None,
                **norm,
            )
        )
    head_of: Any = getattr(model, "get_output_embeddings", None)
    head = head_of() if head_of is not None else None
    if head is None:
        raise ModelError(
            f"{type(model).__name__} has no language-model head",
            where="anatomy",
            fix="load it with AutoModelForCausalLM",
        )
    return Anatomy(
        blocks=tuple(blocks),
        final_norm=_final_norm(model, layout),
        lm_head=head,
        softcap=getattr(_text_config(model), "final_logit_softcapping", None),
        layout=layout,
    )


def _final_norm(model: nn.Module, layout: Layout) -> Callable[[Tensor], Tensor]:
    norm = _path(model, layout.final_norm) if layout.final_norm else _identity
    parent = model.get_submodule(layout.layers.rpartition(".")[0])
    project: Any = getattr(parent, "project_out", None)  # OPT-350m and relatives
    if project is None:
        return norm
    return lambda x: project(norm(x))


def _text_config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def read_shape(model: nn.Module, anatomy: Anatomy) -> ModelShape:
    """Sizes of the graph, from the config and, where the config is silent, from the weights."""
    config = _text_config(model)
    n_heads = int(config.num_attention_heads)
    d_model = int(config.hidden_size)
    n_kv = getattr(config, "num_key_value_heads", None) or n_heads
    d_head = getattr(config, "head_dim", None) or getattr(anatomy.blocks[0].attn, "head_dim", None)
    down = anatomy.blocks[0].down_proj
    return ModelShape(
        n_layers=len(anatomy.blocks),
        n_heads=n_heads,
        n_kv_heads=int(n_kv),
        d_model=d_model,
        d_head=int(d_head or d_model // n_heads),
        d_mlp=_in_features(down) if down is not None else 0,
        vocab=int(getattr(anatomy.lm_head, "out_features", config.vocab_size)),
        parallel=anatomy.blocks[0].parallel,
        has_neurons=down is not None,
        has_mlp=anatomy.blocks[0].mlp is not None,
        causal=all(is_causal(block.attn) for block in anatomy.blocks),
    )


def _in_features(module: Any) -> int:
    """Input width of a Linear or of GPT-2's transposed Conv1D."""
    if hasattr(module, "in_features"):
        return int(module.in_features)
    weight: Tensor = module.weight
    return int(weight.shape[0] if hasattr(module, "nf") else weight.shape[1])
