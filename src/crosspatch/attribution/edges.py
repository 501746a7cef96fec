"""Edge attribution: what cutting each edge would do, from gradients, all edges at once.

For an edge from sender u to receiver v the estimate of `metric(clean) - metric(edge cut)` is the sum over tokens of
(clean - replaced output of u) times the gradient of the metric at what v reads:

- at the clean run (EAP; Syed, Rager & Conmy 2023, arXiv 2310.10348; Nanda 2023),
- averaged over runs whose input lies between the replaced and the clean one (EAP-IG; Hanna, Pezzelle & Belinkov 2024,
  arXiv 2403.17806), or in which one block's output does,
- with the propagation rules of RelP in the place of derivatives.

Two forward passes and one backward pass do for EAP. Scores are per example and do not depend on batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.ablation import Ablation, Store, sender_keys
from crosspatch.attribution.forward import Trace
from crosspatch.attribution.points import (
    BUDGET_MIB,
    CLEAN,
    MIB,
    Point,
    Progress,
    chunks,
    few,
    require_gradient,
    run_at,
    span_masks,
)
from crosspatch.attribution.ports import attention_ports, port_keys
from crosspatch.attribution.rules import PLAIN, Rules
from crosspatch.attribution.senders import sender_changes
from crosspatch.attribution.setup import Setup
from crosspatch.graph import EdgeTable, edge_table
from crosspatch.model.run import Key, Run


def edge_scores(
    setup: Setup,
    ablation: Ablation,
    points: Sequence[Point] = CLEAN,
    *,
    rules: Rules = PLAIN,
    spans: Sequence[str] | None = None,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "example span edge"]:
    """Estimated effect of every edge, the input being interpolated; one span of all tokens where none are named.

    Raises:
        MetricError: a metric with no gradient at the clean run.
    """
    require_gradient(setup, points)
    table = edge_table(setup.model.shape)
    out = np.zeros((len(setup), len(spans or ("*",)), len(table)))
    done = 0
    for chunk in chunks(setup, len(points), budget_mib):
        part = setup.select(chunk)
        clean, replaced, at_clean = _stores(part, setup, chunk, ablation, points, rules)
        for some in few(points, len(chunk), len(part.clean[0]), setup, budget_mib):
            run, gradients = at_clean or differentiate(part, clean, replaced, some, rules)
            tally = _Contraction(part, table, run, gradients, rules, len(some), spans)
            out[chunk] += tally.scores(clean, replaced, budget_mib)
        done += len(chunk)
        if progress is not None:
            progress(done, len(setup))
    return out


def edge_scores_by_activation(
    setup: Setup,
    ablation: Ablation,
    points: Sequence[Point],
    *,
    rules: Rules = PLAIN,
    spans: Sequence[str] | None = None,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "example span edge"]:
    """As `edge_scores`, with gradients for the edges out of a block from runs in which that block's output alone lies
    between replaced and clean (EAP-IG over activations; Hanna et al. 2024). Passes grow with the number of blocks.
    """
    table = edge_table(setup.model.shape)
    shape = setup.model.shape
    out = np.zeros((len(setup), len(spans or ("*",)), len(table)))
    places: list[Key] = sender_keys(shape)
    done = 0
    for chunk in chunks(setup, len(points), budget_mib):
        part = setup.select(chunk)
        clean, replaced, _ = _stores(part, setup, chunk, ablation, points, rules)
        for key in places:
            for some in few(points, len(chunk), len(part.clean[0]), setup, budget_mib):
                run, gradients = differentiate(part, clean, replaced, some, rules, only=key)
                alone = {k: clean[k] if k != key else replaced[k] for k in clean}
                tally = _Contraction(part, table, run, gradients, rules, len(some), spans)
                out[chunk] += tally.scores(clean, alone, budget_mib)
            done += len(chunk)
            if progress is not None:
                progress(done, len(setup) * len(places))
    return out


def _stores(
    part: Setup,
    setup: Setup,
    chunk: list[int],
    ablation: Ablation,
    points: Sequence[Point],
    rules: Rules,
) -> tuple[Store, Store, tuple[Trace, dict[Key, Tensor]] | None]:
    """What senders write in the clean run and instead of it; and, where the only point is the clean run, that run."""
    keys = sender_keys(part.model.shape)
    if points == CLEAN:
        embedded = part.model.embed(part.clean)
        run, gradients = differentiate(part, {(0, "resid_pre"): embedded}, {}, CLEAN, rules)
        clean = {key: run.at[key].detach() for key in keys}
        return clean, ablation.store(setup, chunk, clean), (run, gradients)
    recorded: Run = part.record_clean(keys)
    clean = {key: recorded.packed(key) for key in keys}
    return clean, ablation.store(setup, chunk, clean), None


def differentiate(
    part: Setup, clean: Store, replaced: Store, points: Sequence[Point], rules: Rules, only: Key | None = None
) -> tuple[Trace, dict[Key, Tensor]]:
    """Run examples of equal length at some points, and the metric's gradient at all ports, weights included.

    Rows are ordered by point, then by example.

    Args:
        only: interpolate this activation of the clean run instead of the input.
    """
    run, total = run_at(part, clean, replaced, points, rules, only=only)
    gradients = run.gradients(total, port_keys(run))
    shape = part.model.shape
    run.keep([*sender_keys(shape), *((layer, "attn_in") for layer in range(shape.n_layers))])
    return run, gradients


class _Contraction:
    """Products of sender changes with port gradients, for examples of equal length."""

    def __init__(
        self,
        part: Setup,
        table: EdgeTable,
        run: Trace,
        gradients: dict[Key, Tensor],
        rules: Rules,
        n_points: int,
        spans: Sequence[str] | None,
    ) -> None:
        self.part, self.table, self.run, self.gradients, self.rules = part, table, run, gradients, rules
        self.n_points, self.n, self.length = n_points, len(part), len(part.clean[0])
        self.spans = spans
        self.shape = part.model.shape

    @torch.no_grad()
    def scores(self, clean: Store, replaced: Store, budget_mib: float | None) -> Float[np.ndarray, "example span edge"]:
        """Sums over all tokens, a slice of them at a time."""
        masks = span_masks(self.part, self.spans)
        first = self._first_change(clean, replaced)
        # Sender changes twice, while they are put in order, and gradients of a layer's ports before and after its norm.
        width = 2 * len(self.table.senders) + 2 * self.n_points * (self.shape.n_heads + 2 * self.shape.n_kv_heads)
        size = int((budget_mib or BUDGET_MIB) / 2 * MIB / (4 * width * self.shape.d_model * self.n))
        total = torch.zeros(self.n, len(masks), len(self.table.senders), len(self.table.receivers), dtype=torch.float64)
        for start in range(first, self.length, max(1, size)):
            at = range(start, min(self.length, start + max(1, size)))
            self._add(total, masks, at, clean, replaced)
        return self.table.flat(total.numpy())

    def _first_change(self, clean: Store, replaced: Store) -> int:
        """First position at which any sender's replacement differs."""
        for position in range(self.length):
            at = torch.arange(self.n) * self.length + position
            if any(not torch.equal(clean[key][at], replaced[key][at]) for key in clean):
                return position
        return self.length

    def _add(self, total: Tensor, masks: Tensor, positions: range, clean: Store, replaced: Store) -> None:
        t = len(positions)
        tokens = (torch.arange(self.n)[:, None] * self.length + torch.tensor(positions)).flatten()
        packed = sender_changes(self.part.model, clean, replaced, tokens)
        change = packed.unflatten(1, (self.n, t)).transpose(0, 1).contiguous()  # [example, sender, position, d_model]
        del packed
        here = masks[:, :, positions.start : positions.stop]
        whole = bool((here == 1).all())
        rows = (torch.arange(self.n_points)[:, None] * (self.n * self.length) + tokens).flatten()
        for receivers, gradient in self._ports(rows):
            gradient = gradient.unflatten(1, (self.n_points, self.n, t)).sum(1).transpose(0, 1)
            reach = int(self.table.reach[receivers.start])
            for s in range(len(masks)):
                g = gradient if whole else gradient * here[s][:, None, :, None].to(gradient)
                found = torch.bmm(change[:, :reach].flatten(2).to(g), g.flatten(2).transpose(1, 2))
                total[:, s, :reach, receivers.start : receivers.stop] += found.cpu()

    def _ports(self, rows: Tensor) -> Iterator[tuple[range, Float[Tensor, "port token d_model"]]]:
        """Receivers by number, and the gradient at what each reads."""
        run, shape = self.run, self.shape
        heads = shape.n_heads + 2 * shape.n_kv_heads
        number = 0
        for layer in range(shape.n_layers):
            yield range(number, number + heads), attention_ports(run, layer, self.gradients, self.rules, rows)
            number += heads
            if shape.has_mlp:
                yield range(number, number + 1), self.gradients[(layer, "mlp_in")][None, rows]
                number += 1
        yield range(number, number + 1), self.gradients[(shape.n_layers, "final_in")][None, rows]
