"""Queries, keys and values as the model itself computes them, and the attention sum over them.

``transformers`` dispatches every attention module through a registry. While :func:`capturing` is active the registry
entry is ours: it takes q, k and v after rotary embedding, q/k norms and whatever else the family does, and leaves the
module at that point. :func:`attend` then does the remaining sum, for the query positions that are wanted only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crosspatch.errors import ModelError

_NAME = "crosspatch"
_IGNORED = {"dropout", "position_ids", "cache_position"}


class _Captured(Exception):
    """Carries q, k, v out of the model's attention module."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> None:
        self.qkv, self.rule = (query, key, value), rule


@dataclass(frozen=True)
class AttentionRule:
    """How scores become a pattern in one layer: scale, soft cap (Gemma 2) and sliding window, if any."""

    scaling: float
    softcap: float | None = None
    window: int | None = None


def _capture(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> Any:
    scaling = kwargs.pop("scaling", None)
    rule = AttentionRule(
        scaling=float(scaling) if scaling is not None else query.shape[-1] ** -0.5,
        softcap=kwargs.pop("softcap", None),
        window=kwargs.pop("sliding_window", None),
    )
    # Switches (True/False) ask for extra outputs; numbers and tensors change what attention computes.
    unknown = [n for n, value_ in kwargs.items() if not (value_ is None or isinstance(value_, bool) or n in _IGNORED)]
    if unknown:
        raise ModelError(
            f"{type(module).__name__} passes {', '.join(unknown)} to its attention function, which Crosspatch does "
            "not know how to honour",
            where="attention",
            fix="this family is not supported yet; please report its name",
        )
    raise _Captured(query, key, value, rule)


ALL_ATTENTION_FUNCTIONS.register(_NAME, _capture)


def _capture_gptj(module: Any) -> Callable[..., Any]:
    """GPT-J and its relatives do not use the registry: they call their own ``_attn``."""

    def attn(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        return _capture(module, query, key, value, scaling=1.0 / float(module.scale_attn))

    return attn


@contextmanager
def capturing(attentions: Sequence[Any]) -> Iterator[None]:
    """While active, calling one of ``attentions`` stops at its attention function. Everything is restored after."""
    configs = {id(module.config): module.config for module in attentions if hasattr(module, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    own = [module for module in attentions if hasattr(module, "_attn") and hasattr(module, "scale_attn")]
    try:
        for config in configs.values():
            config._attn_implementation = _NAME
        for module in own:
            module._attn = _capture_gptj(module)  # instance attribute: shadows the method
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        for module in own:
            del module._attn


def query_key_value(
    module: nn.Module, hidden: Float[Tensor, "token d_model"], kwargs: dict[str, Any]
) -> tuple[Float[Tensor, "token head d_head"], Tensor, Tensor, AttentionRule]:
    """q, k, v of one attention module for packed tokens. Must run inside :func:`capturing`."""
    try:
        module(hidden[None], **kwargs)
    except _Captured as captured:
        q, k, v = (t[0].transpose(0, 1) for t in captured.qkv)
        return q, k, v, captured.rule
    raise ModelError(
        f"{type(module).__name__} did not call the attention function of the transformers registry",
        where="attention",
        fix="Crosspatch needs a family that dispatches through transformers.AttentionInterface",
    )


@lru_cache(maxsize=512)
def causal_mask(positions: tuple[int, ...], n_keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """True where a query at ``positions[i]`` may see key ``j``; None when every query sees every key."""
    query = torch.tensor(positions, device=device)[:, None]
    key = torch.arange(n_keys, device=device)[None]
    mask = key <= query
    if window is not None:
        mask &= query - key < window
    return None if bool(mask.all()) else mask


def attend(
    q: Float[Tensor, "row query head d_head"],
    k: Float[Tensor, "row key kv_head d_head"],
    v: Float[Tensor, "row key kv_head d_head"],
    positions: tuple[int, ...],
    rule: AttentionRule,
    edit_pattern: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "row query head d_head"]:
    """Head outputs z. ``edit_pattern`` sees and returns the pattern ``[row, head, query, key]``; without it, and
    without a soft cap, the pattern is never written to memory.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mask = causal_mask(positions, k.shape[2], rule.window, q.device)
    groups = q.shape[1] // k.shape[1]
    if edit_pattern is None and rule.softcap is None:
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=rule.scaling, enable_gqa=groups > 1)
        return z.transpose(1, 2)
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * rule.scaling
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    pattern = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    if edit_pattern is not None:
        pattern = edit_pattern(pattern)
    return (pattern @ v).transpose(1, 2)
