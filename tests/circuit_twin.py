"""Slow twins of the exact circuit engine, each edge's receiver with a stream of its own, and what tests of it share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import families
import numpy as np
import torch
from path_toys import enlarge
from torch import Tensor

import crosspatch as cp
from crosspatch.attribution.ablation import Store, resolve_ablation, sender_keys
from crosspatch.attribution.setup import Setup
from crosspatch.graph import edge_table
from crosspatch.metrics import LogitDiff, Metric, Targets
from crosspatch.metrics.base import pad
from crosspatch.model.activation import one_kernel
from crosspatch.model.attention import attend, capturing, query_key_value
from crosspatch.model.project import head_write

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 3},
    "llama": {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 2},
    "gemma2": {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2,
               "head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": 8},
    "olmo2": {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 2},
    "shortformer": {"hidden_size": 16, "num_attention_heads": 2},
    "compiled": {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "head_dim": 8},
    "llama_both_ways": {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip


@lru_cache
def tiny(family: str, n_layers: int = 3, dtype: torch.dtype = torch.float64) -> cp.Model:
    """A few narrow layers with weights large enough for every edge to matter."""
    cls, config = (families.FAMILIES | families.BIDIRECTIONAL)[family]()
    layers = {"n_layer": n_layers} if family == "gpt2" else {"num_hidden_layers": n_layers}
    for name, value in (SIZES[family] | layers).items():
        setattr(config, name, value)
    if family == "gemma2":
        config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"][:n_layers]
    torch.manual_seed(0)
    hf = cls(config).to(dtype).eval()
    enlarge(hf)
    return cp.load(hf, name=family)


def random_setup(
    model: cp.Model,
    lengths: Sequence[int] = (5, 5, 4, 6),
    seed: int = 0,
    same: Sequence[int] = (0, 2),
    metric: Metric | None = None,
    inserted: bool = False,
    reads: int = 1,
) -> Setup:
    """Pairs of random prompts, some of which begin alike.

    Args:
        lengths: of the clean prompts.
        same: numbers of equal tokens at the start, in turn.
        inserted: corrupt prompts have one token more, which is nobody's partner, and their second lacks one.
        reads: positions before the end that the metric sees.
    """
    draw = random.Random(seed)
    clean, corrupt, partner = [], [], []
    for i, length in enumerate(lengths):
        prompt = [draw.randrange(1, families.VOCAB) for _ in range(length)]
        start = same[i % len(same)]
        other = [*prompt[:start], *(draw.randrange(1, families.VOCAB) for _ in range(length - start))]
        to: list[int | None] = list(range(length))
        if inserted:
            other.insert(2, draw.randrange(1, families.VOCAB))
            to = [0, None, *range(3, length + 1)]
        clean.append(prompt)
        corrupt.append(other)
        partner.append(tuple(to))
    n = len(lengths)
    logits = cp.record(model, clean).logits() if metric is not None and metric.reference == "clean" else None
    answers, wrong = ([[draw.randrange(low, low + 40)] for _ in range(n)] for low in (1, 50))
    return Setup(
        model, clean, corrupt, [tuple(range(len(ids) - reads, len(ids))) for ids in clean], partner,
        metric or LogitDiff(), Targets(pad(answers), pad(wrong), logits),
        [{"S": (1, 3), "END": (len(ids) - 1, len(ids))} for ids in clean], [f"t{len(ids)}" for ids in clean],
    )  # fmt: skip


def random_masks(model: cp.Model, shares: Sequence[float], seed: int = 0) -> list[np.ndarray]:
    """Masks that keep about these shares of all edges."""
    draw, table = np.random.default_rng(seed), edge_table(model.shape)
    return [table.exists & (draw.random(table.exists.shape) < share) for share in shares]


@torch.no_grad()
def slow_masks(setup: Setup, masks: Sequence[np.ndarray], ablation: Any = "paired", spans: Sequence[str] = ()) -> Any:
    """`run_masks` pair by pair and mask by mask; every receiver's stream is summed and projected anew."""
    chosen = resolve_ablation(ablation, setup)
    out = np.empty((len(masks), len(setup)))
    for i in range(len(setup)):
        part = setup.select([i])
        clean = part.record_clean(sender_keys(setup.model.shape))
        now = {key: clean.packed(key) for key in sender_keys(setup.model.shape)}
        cut = chosen.store(setup, [i], now)
        length = len(setup.clean[i])
        inside = [(0, length) if name == "*" else setup.spans[i][name] for name in spans] or [(0, length)]
        where = np.array([[low <= p < high for p in range(length)] for low, high in inside])
        for number, mask in enumerate(masks):
            per_token = ((mask if spans else mask[..., None])[..., None] & where).any(2)
            hidden = _slow_forward(part, torch.from_numpy(per_token), now[(0, "resid_pre")], cut)
            out[number, i] = part.measure(hidden).item()
    return out


def _slow_forward(part: Setup, kept: Tensor, embedded: Tensor, cut: Store) -> Tensor:
    """Final states under one mask `[sender, receiver, token]` of one pair."""
    model, shape, table = part.model, part.model.shape, edge_table(part.model.shape)
    length, blocks = len(part.clean[0]), part.model.anatomy.blocks
    model.ensure_positions(length)
    changes = {-1: [embedded - cut[(0, "resid_pre")]]}
    plain: dict[int, Tensor] = {}  # what an attention block writes when everything is replaced, before its norm
    mlps: dict[int, Tensor] = {}
    per = shape.n_heads + int(shape.has_mlp)
    number = {(site.kind, site.layer, site.index): i for i, site in enumerate(table.receivers)}

    def stream(receiver: int, layer: int, mid: bool) -> Tensor:
        keep = kept[:, receiver, :, None]
        x = cut[(0, "resid_pre")] + changes[-1][0] * keep[0]
        for at in range(layer + int(mid)):
            start = 1 + at * per
            heads = sum(c * k for c, k in zip(changes[at], keep[start : start + shape.n_heads], strict=True))
            x = x + blocks[at].norm_attn_out((plain[at] + heads)[None])[0]
            if shape.has_mlp and at < layer:
                x = x + cut[(at, "mlp_out")] + mlps[at] * keep[start + shape.n_heads]
        return x

    with capturing([b.attn for b in blocks]), one_kernel([b.mlp for b in blocks]):
        for layer, block in enumerate(blocks):
            kwargs = model.attention_kwargs(layer, torch.arange(length), {})
            parts: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
            rule = model.attention_rule(layer)
            for place, kind in enumerate("qkv"):
                for head in range(shape.n_heads if kind == "q" else shape.n_kv_heads):
                    h = block.norm_attn_in(stream(number[(kind, layer, head)], layer, False)[None])[0]
                    parts[kind].append(query_key_value(block.attn, h, kwargs)[place][:, head])
            q, k, v = (torch.stack(parts[kind], 1)[None] for kind in "qkv")
            z = attend(q, k, v, tuple(range(length)), rule)[0]
            replaced = cut[(layer, "z")]
            changes[layer] = [head_write(model, layer, h, (z - replaced)[:, h]) for h in range(shape.n_heads)]
            plain[layer] = block.o_proj(replaced.flatten(1)[None])[0]
            if shape.has_mlp:
                x = stream(number[("mlp_out", layer, None)], layer, not shape.parallel)[None]
                h = block.norm_attn_in(x) if block.shared_norm else block.norm_mlp_in(x)
                assert block.mlp is not None
                out = block.mlp(h)
                out = block.norm_mlp_out(out[0] if isinstance(out, tuple) else out)[0]
                mlps[layer] = out - cut[(layer, "mlp_out")]
    x = stream(len(table.receivers) - 1, shape.n_layers, False)
    return model.anatomy.final_norm(x[list(part.read[0])])


@torch.no_grad()
def hooked_gpt2(setup: Setup, mask: np.ndarray, pair: int) -> Tensor:
    """Final logits of a GPT-2 under one mask with paired ablation, from its weights and plain hooks: what each head and
    MLP writes on the corrupt prompt is hooked; on the clean prompt every receiver gets a stream of its own."""
    hf, table = setup.model.hf, edge_table(setup.model.shape)
    n_heads, d_head = setup.model.shape.n_heads, setup.model.shape.d_head
    number = {str(site): i for i, site in enumerate(table.receivers)}
    corrupt: list[Tensor] = []

    def heads(layer: Any, z: Tensor) -> list[Tensor]:
        weight = layer.attn.c_proj.weight
        return [z[:, h * d_head : (h + 1) * d_head] @ weight[h * d_head : (h + 1) * d_head] for h in range(n_heads)]

    handles = [hf.transformer.h[0].register_forward_pre_hook(lambda m, args: corrupt.append(args[0][0]))]
    for layer in hf.transformer.h:
        handles.append(
            layer.attn.c_proj.register_forward_pre_hook(lambda m, args, b=layer: corrupt.extend(heads(b, args[0][0])))
        )
        handles.append(layer.mlp.register_forward_hook(lambda m, args, out: corrupt.append(out[0])))
    hf(torch.tensor([setup.corrupt[pair]]))
    for handle in handles:
        handle.remove()

    ids = torch.tensor(setup.clean[pair])
    now = [hf.transformer.wte(ids) + hf.transformer.wpe(torch.arange(len(ids)))]
    biases: list[Tensor] = []

    def stream(receiver: str) -> Tensor:
        keep = mask[:, number[receiver]]
        return sum(a if keep[u] else b for u, (a, b) in enumerate(zip(now, corrupt, strict=False))) + sum(biases)

    seen = torch.ones(len(ids), len(ids)).tril().bool()
    for n, layer in enumerate(hf.transformer.h):
        fresh = []
        for h in range(n_heads):
            q, k, v = (
                layer.attn.c_attn(layer.ln_1(stream(f"a{n}.h{h}.{kind}")))[:, at * n_heads * d_head :][
                    :, h * d_head : (h + 1) * d_head
                ]
                for at, kind in enumerate("qkv")
            )
            scores = (q @ k.T / d_head**0.5).masked_fill(~seen, -float("inf"))
            z = torch.zeros(len(ids), n_heads * d_head, dtype=q.dtype)
            z[:, h * d_head : (h + 1) * d_head] = scores.softmax(-1) @ v
            fresh.append(heads(layer, z)[h])
        now += fresh
        biases.append(layer.attn.c_proj.bias)
        now.append(layer.mlp(layer.ln_2(stream(f"m{n}"))))
    return hf.lm_head(hf.transformer.ln_f(stream("logits")))[-1]
