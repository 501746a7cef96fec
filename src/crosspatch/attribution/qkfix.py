"""What replacing queries or keys does to a head's output, with the softmax taken exactly (QK fix).

A saturated softmax has no slope, so that a plain gradient gives a query or key that decides where a head looks a score
near zero. Kramár et al. 2024 (arXiv 2403.00745) recompute the attention pattern with the replaced query
or key, and take the gradient from the pattern on: the metric is linearised above the attention sum only. Values stay.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.model.attention import AttentionRule, attention_scores

PerSpan = Float[Tensor, "example span head"]


@torch.no_grad()
def fixed_effects(
    kind: str,
    clean: tuple[Float[Tensor, "example position head d_head"], Tensor, Tensor],
    new: Float[Tensor, "example position head d_head"],
    gradient: Float[Tensor, "example position head d_head"],
    rule: AttentionRule,
    masks: Float[Tensor, "span example position"],
    budget_bytes: float,
) -> PerSpan:
    """Estimated effect of replacing one layer's queries ("q") or keys ("k") at the tokens of each span.

    Args:
        clean: queries, keys and values; keys and values of key/value heads.
        new: replacements of the queries or keys.
        gradient: of the metric at the heads' outputs.
        masks: 1 at the tokens that are replaced together.

    Returns:
        float64, by head for queries and by key/value head for keys (all heads that read it together).
    """
    n, length, heads = gradient.shape[:3]
    size = max(1, int(budget_bytes / (6 * gradient.element_size() * heads * length * length)))
    parts = []
    for lo in range(0, n, size):
        at = slice(lo, lo + size)
        q, k, v = (x[at] for x in clean)
        parts.append(_effects(kind, q, k, v, new[at], gradient[at], rule, masks[:, at]))
    return torch.cat(parts)


def _effects(
    kind: str, q: Tensor, k: Tensor, v: Tensor, new: Tensor, gradient: Tensor, rule: AttentionRule, masks: Tensor
) -> PerSpan:
    positions = tuple(range(q.shape[1]))
    worth = torch.einsum("nqhd,nkhd->nhqk", gradient, v.repeat_interleave(q.shape[2] // v.shape[2], 2))
    before = attention_scores(q, k, positions, rule)
    plain = (before.softmax(-1) * worth).sum(-1)  # [example, head, query]: what the pattern is worth
    masks = masks.to(worth)
    if kind == "q":  # each query has a row of its own, so that one pass serves every span
        after = attention_scores(new, k, positions, rule)
        lost = plain - (after.softmax(-1) * worth).sum(-1)
        return torch.einsum("snq,nhq->nsh", masks.double(), lost.double())
    after = attention_scores(q, new, positions, rule)
    found = []
    for mask in masks:
        mixed = torch.where(mask[:, None, None] > 0, after, before)
        found.append((plain - (mixed.softmax(-1) * worth).sum(-1)).double().sum(-1))
    by_head = torch.stack(found, 1)
    return by_head.unflatten(-1, (k.shape[2], -1)).sum(-1)
