"""Information flow routes: how much of what a receiver reads each sender wrote. No gradient and no metric.

For a residual stream x at one token and the part y that a sender wrote of it, the importance is
`max(0, |x|_1 - |x - y|_1)`, divided by the sum over all senders (Ferrando & Voita 2024, arXiv 2403.00824:
how much nearer to x the part brings one, in the L1 norm). It tells where the bulk of a vector comes from, whatever the
task; the queries, keys and values of a layer read the same stream and get the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.ablation import Store, sender_keys
from crosspatch.attribution.points import INPUT, chunks, span_masks
from crosspatch.attribution.setup import Setup
from crosspatch.graph import edge_table
from crosspatch.model import Model
from crosspatch.model.norms import frozen_norm
from crosspatch.model.project import head_write


@torch.no_grad()
def flow_scores(
    setup: Setup, *, spans: Sequence[str] | None = None, budget_mib: float | None = None
) -> Float[np.ndarray, "example span edge"]:
    """Importance of every edge on the clean prompts: mean over the tokens of each span, between 0 and 1.

    The importances of all edges into one receiver add up to 1 where any is positive. Biases of output projections
    belong to no sender.

    Raises:
        MetricError: an example that lacks one of the spans.
    """
    model, shape = setup.model, setup.model.shape
    table = edge_table(shape)
    out = np.zeros((len(setup), len(spans or ("*",)), len(table)))
    streams = [(layer, kind) for layer in range(shape.n_layers) for kind in ("resid_pre", "resid_mid")]
    streams = [key for key in streams if key[1] == "resid_pre" or shape.has_resid_mid]
    last = (shape.n_layers - 1, "resid_post")
    for chunk in chunks(setup, 1, budget_mib):
        part = setup.select(chunk)
        run = part.record_clean([*sender_keys(shape), *streams, last])
        clean = {key: run.packed(key) for key in run.store if key[1] != "pattern"}
        written = _written(model, clean)
        masks = span_masks(part, spans).to(written)
        masks = masks / masks.sum(-1, keepdim=True)
        matrix = torch.zeros(len(part), len(masks), len(table.senders), len(table.receivers), dtype=torch.float64)
        known: dict[tuple[int, str], Tensor] = {}
        for v, receiver in enumerate(table.receivers):
            key = last if receiver.layer is None else (receiver.layer, "resid_pre")
            if receiver.kind == "mlp_out" and shape.has_resid_mid:
                key = (key[0], "resid_mid")
            if key not in known:
                share = _importance(clean[key].to(written), written[: table.reach[v]])
                share = share.unflatten(1, (len(part), -1))  # [sender, example, position]
                known[key] = torch.einsum("snt,unt->nsu", masks.double(), share.double()).cpu()
            matrix[:, :, : table.reach[v], v] = known[key]
        out[chunk] = table.flat(matrix.numpy())
    return out


def _importance(
    x: Float[Tensor, "token d_model"], written: Float[Tensor, "sender token d_model"]
) -> Float[Tensor, "sender token"]:
    size = x.abs().sum(-1)
    near = torch.stack([(size - (x - part).abs().sum(-1)).clamp(min=0) for part in written])
    total = near.sum(0)
    return near / torch.where(total > 0, total, torch.ones_like(total))


def _written(model: Model, clean: Store) -> Float[Tensor, "sender token d_model"]:
    """What every sender adds to the residual stream; under a norm of the whole block, each head's share of it."""
    shape = model.shape
    parts = [clean[INPUT]]
    for layer, block in enumerate(model.anatomy.blocks):
        z = clean[(layer, "z")]
        heads = [head_write(model, layer, head, z[:, head]) for head in range(shape.n_heads)]
        if block.post_norm:
            norm = frozen_norm(block.norm_attn_out, block.o_proj(z.flatten(1)[None])[0])
            nothing = norm(torch.zeros_like(heads[0]))
            heads = [norm(head) - nothing for head in heads]
        parts += heads
        if shape.has_mlp:
            parts.append(clean[(layer, "mlp_out")])
    return torch.stack([part.to(parts[0]) for part in parts])
