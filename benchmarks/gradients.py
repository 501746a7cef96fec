"""Edge attribution: ours, the passes of the bare model that it cannot do without, and TransformerLens' EAP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.problem import Problem
from crosspatch.attribution.ablation import Paired
from crosspatch.attribution.edges import edge_scores
from crosspatch.attribution.points import CLEAN, integration_points
from crosspatch.attribution.setup import Setup
from crosspatch.graph import EdgeTable


def bare_passes(problem: Problem) -> None:
    """Two forward passes and one backward pass to the activations, logits at the last position only."""
    hf, index = problem.hf, torch.arange(len(problem.clean))
    wanted = [p for p in hf.parameters() if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    try:
        with torch.no_grad():
            hf(problem.corrupt, logits_to_keep=1)
        embedded = hf.get_input_embeddings()(problem.clean).requires_grad_(True)
        logits = hf(inputs_embeds=embedded, logits_to_keep=1).logits[:, -1]
        (logits[index, problem.right] - logits[index, problem.wrong]).sum().backward()
    finally:
        for p in wanted:
            p.requires_grad_(True)


def eap(setup: Setup, steps: int | None = None) -> Tensor:
    """Mean score of every edge, by number; `steps` of EAP-IG, or plain EAP."""
    points = CLEAN if steps is None else integration_points(steps)
    return torch.from_numpy(edge_scores(setup, Paired(), points)[:, 0].mean(0))


def transformer_lens_eap(problem: Problem, table: EdgeTable) -> Callable[[], Tensor]:
    """The same numbers from TransformerLens 4.3: gradient at its corrupt run, which is our clean one; sign turned."""
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    from benchmarks.peer import bridge_of

    bridge = bridge_of(problem)
    n = len(problem.clean)

    def run() -> Tensor:
        total = np.zeros(len(table))
        for i in range(n):

            def metric(logits: Tensor, right: int = problem.right[i], wrong: int = problem.wrong[i]) -> Tensor:
                return logits[..., -1, right].sum() - logits[..., -1, wrong].sum()

            found = attribution_patch(
                bridge,
                problem.corrupt[i : i + 1],
                problem.clean[i : i + 1],
                metric,
                EdgeAttributionConfig(granularity="edge"),
            )
            for (writer, reader), score in found.edge_scores.items():
                total[table.number(*table.parse(f"{_writer(writer)}->{_reader(reader)}"))] -= score / n
        return torch.from_numpy(total)

    return run


def _writer(node: Any) -> str:
    if node.kind == "embed":
        return "input"
    return f"m{node.layer}" if node.kind == "mlp_out" else f"a{node.layer}.h{node.head}"


def _reader(node: Any) -> str:
    if node.kind == "logits":
        return "logits"
    return f"m{node.layer}" if node.kind == "mlp_in" else f"a{node.layer}.h{node.head}.{node.kind[0]}"
