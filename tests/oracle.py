"""The slow oracle: plain hooks on full forward passes of the untouched model, one example at a time.

It shares nothing with the executor but the names of modules: masks, rotary embedding and block wiring are the
model's own. Values are edited where the model computes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crosspatch.graph.names import Site
from crosspatch.model import Model

OracleEdit = tuple[Site, Sequence[int], Tensor]  # site, positions, value [position, width]


class _State:
    """What the hooks of the present forward pass should change, and what they have seen."""

    edits: ClassVar[list[OracleEdit]] = []
    seen: ClassVar[dict[str, dict[int, Tensor]]] = {}


def _at(kind: str, layer: int) -> list[OracleEdit]:
    return [e for e in _State.edits if e[0].kind == kind and e[0].layer == layer]


def _visit(kind: str, layer: int, x: Tensor) -> Tensor:
    """Edit ``x [1, position, width]`` and remember it."""
    for _, positions, value in _at(kind, layer):
        x = x.clone()
        x[0, list(positions)] = value
    _State.seen.setdefault(kind, {})[layer] = x[0].clone()
    return x


def _visit_heads(kind: str, layer: int, x: Tensor) -> Tensor:
    """Edit ``x [1, head, position, ...]``."""
    for site, positions, value in _at(kind, layer):
        x = x.clone()
        x[0, site.index, list(positions)] = value
    _State.seen.setdefault(kind, {})[layer] = x[0].clone()
    return x


def _attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    layer = module.layer_idx
    q, k, v = (_visit_heads(kind, layer, x) for kind, x in (("q", q), ("k", k), ("v", v)))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scaling = kwargs.get("scaling")
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if kwargs.get("softcap") is not None:
        scores = kwargs["softcap"] * torch.tanh(scores / kwargs["softcap"])
    if mask is not None:
        scores = scores + mask[..., : k.shape[2]]
    pattern = _visit_heads("pattern", layer, scores.softmax(-1))
    return (pattern @ v).transpose(1, 2).contiguous(), pattern


ALL_ATTENTION_FUNCTIONS.register("oracle", _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("oracle", eager_mask)


@contextmanager
def _hooked(model: Model) -> Iterator[None]:
    with ExitStack() as stack:
        for layer, block in enumerate(model.anatomy.blocks):
            _hook_block(stack, layer, block, model)
        if hasattr(model.anatomy.blocks[0].attn, "_attn"):  # GPT-J
            for block in model.anatomy.blocks:
                attn = block.attn

                def own(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, _m: Any = attn) -> Any:
                    z, pattern = _attention(_m, q, k, v, mask, scaling=1 / float(_m.scale_attn))
                    return z.transpose(1, 2), pattern

                attn._attn = own
                stack.callback(lambda a=attn: delattr(a, "_attn"))
        before = model.hf.config._attn_implementation
        model.hf.config._attn_implementation = "oracle"
        stack.callback(lambda: setattr(model.hf.config, "_attn_implementation", before))
        yield


def _hook_block(stack: ExitStack, layer: int, block: Any, model: Model) -> None:
    residual: dict[str, Tensor] = {}

    def pre(module: Any, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        x = _visit("resid_pre", layer, x)
        residual["x"] = x
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def attn_out(module: Any, args: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        x = _visit("attn_out", layer, x)
        if model.shape.has_resid_mid:
            x = _visit("resid_mid", layer, residual["x"] + x) - residual["x"]
        return (x, *output[1:]) if isinstance(output, tuple) else x

    def mlp_out(module: Any, args: Any, output: Any) -> Any:
        return _visit("mlp_out", layer, output.reshape(1, -1, output.shape[-1])).reshape(output.shape)

    def post(module: Any, args: Any, output: Any) -> Any:
        x = _visit("resid_post", layer, output[0] if isinstance(output, tuple) else output)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    def z(module: Any, args: Any) -> Any:
        heads = args[0].unflatten(-1, (model.shape.n_heads, -1)).transpose(1, 2)
        return (_visit_heads("z", layer, heads).transpose(1, 2).flatten(-2),)

    def act(module: Any, args: Any) -> Any:
        x = args[0].reshape(1, -1, args[0].shape[-1])
        for site, positions, value in _at("neuron", layer):
            x = x.clone()
            x[0, list(positions), site.index] = value[:, 0]
        return (_visit("mlp_act", layer, x).reshape(args[0].shape),)

    def hook(handle: Any) -> None:
        stack.callback(handle.remove)

    hook(block.layer.register_forward_pre_hook(pre, with_kwargs=True))
    hook(block.layer.register_forward_hook(post))
    hook((block.norm_attn_out if block.post_norm else block.attn).register_forward_hook(attn_out))
    hook(block.o_proj.register_forward_pre_hook(z))
    if block.mlp is None:
        return
    if block.down_proj is not None:
        hook(block.down_proj.register_forward_pre_hook(act))
    last = block.norm_mlp_out if isinstance(block.norm_mlp_out, torch.nn.Module) else block.mlp
    hook((last if isinstance(last, torch.nn.Module) else block.down_proj).register_forward_hook(mlp_out))


@torch.no_grad()
def forward(model: Model, prompt: Sequence[int], edits: Sequence[OracleEdit] = ()) -> tuple[Tensor, dict[str, Any]]:
    """Logits ``[position, vocab]`` of the native model with edits made by hooks, and every activation it saw."""
    _State.edits, _State.seen = list(edits), {}
    with _hooked(model):
        ids = torch.tensor([list(prompt)])
        logits = model.hf(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    return logits, _State.seen


def value(seen: dict[str, Any], site: Site) -> Tensor:
    """``[position, width]`` of one site from what :func:`forward` saw."""
    if site.kind == "input":
        return seen["resid_pre"][0]
    if site.kind == "neuron":
        return seen["mlp_act"][site.layer][:, site.index, None]
    x = seen[site.kind][site.layer]
    return x if site.index is None else x[site.index]
