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
from jaxtyping import Bool, Float
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
    """How scores become a pattern in one layer: scale, soft cap (Gemma 2) and sliding window, if any.

    A query sees keys fewer than ``window`` tokens away, where attention is ``causal`` only its own and earlier ones.
    """

    scaling: float
    softcap: float | None = None
    window: int | None = None
    causal: bool = True


def is_causal(attention: Any) -> bool:
    """Whether queries see earlier tokens only: true unless the attention module or its config says otherwise."""
    owners = (attention, getattr(attention, "config", None))
    return all(getattr(owner, "is_causal", True) is not False for owner in owners)


def _window(attention: Any, window: int | None) -> int | None:
    """The first distance that is out of sight. Where the config alone makes attention bidirectional, ``transformers``
    counts the window itself as seen; families with a rule of their own (Gemma 3) do not."""
    own = getattr(attention, "is_causal", True) is False
    return window if window is None or own or is_causal(attention) else window + 1


def _capture(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> Any:
    scaling = kwargs.pop("scaling", None)
    rule = AttentionRule(
        scaling=float(scaling) if scaling is not None else query.shape[-1] ** -0.5,
        softcap=kwargs.pop("softcap", None),
        window=_window(module, kwargs.pop("sliding_window", None)),
        causal=is_causal(module),
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
    shadows = [vars(module).get("_attn") for module in own]
    try:
        for config in configs.values():
            config._attn_implementation = _NAME
        for module in own:
            module._attn = _capture_gptj(module)  # instance attribute: shadows the method
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        for module, shadow in zip(own, shadows, strict=True):
            if shadow is None:
                del module._attn
            else:  # capturing inside capturing
                module._attn = shadow


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
def seen_mask(positions: tuple[int, ...], n_keys: int, rule: AttentionRule, device: torch.device) -> Tensor | None:
    """True where a query at ``positions[i]`` may see key ``j``; None when every query sees every key."""
    back = torch.tensor(positions, device=device)[:, None] - torch.arange(n_keys, device=device)[None]
    mask = back >= 0 if rule.causal else torch.ones_like(back, dtype=torch.bool)
    if rule.window is not None:
        mask &= back.abs() < rule.window
    return None if bool(mask.all()) else mask


def attend(
    q: Float[Tensor, "row query head d_head"],
    k: Float[Tensor, "row key kv_head d_head"],
    v: Float[Tensor, "row key kv_head d_head"],
    positions: tuple[int, ...],
    rule: AttentionRule,
    edit_pattern: Callable[[Tensor], Tensor] | None = None,
    blocked: Bool[Tensor, "row head query key"] | None = None,
) -> Float[Tensor, "row query head d_head"]:
    """Head outputs z. ``edit_pattern`` sees and returns the pattern ``[row, head, query, key]``; without it, and
    without a soft cap or ``blocked`` keys, the pattern is never written to memory. A query all of whose keys are
    blocked gives zero.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mask = seen_mask(positions, k.shape[2], rule, q.device)
    groups = q.shape[1] // k.shape[1]
    if edit_pattern is None and rule.softcap is None and blocked is None:
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=rule.scaling, enable_gqa=groups > 1)
        return z.transpose(1, 2)
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = _scores(q, k, mask, rule)
    if blocked is not None:
        scores = scores.masked_fill(blocked, -math.inf)
    pattern = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    if blocked is not None:
        pattern = pattern.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0)
    if edit_pattern is not None:
        pattern = edit_pattern(pattern)
    return (pattern @ v).transpose(1, 2)


def attention_scores(
    q: Float[Tensor, "row query head d_head"],
    k: Float[Tensor, "row key kv_head d_head"],
    positions: tuple[int, ...],
    rule: AttentionRule,
) -> Float[Tensor, "row head query key"]:
    """What the softmax is taken of: scaled, capped, minus infinity where a query does not see a key."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2).transpose(1, 2)
    return _scores(q.transpose(1, 2), k, seen_mask(positions, k.shape[2], rule, q.device), rule)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, rule: AttentionRule) -> Tensor:
    scores = q @ k.transpose(-1, -2) * rule.scaling
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    return scores if mask is None else scores.masked_fill(~mask, -math.inf)
