"""The effect of single nodes, exactly: one patched forward pass each, by the executor. The truth for estimates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.exact_nodes import positions_of
from crosspatch.attribution.points import Progress
from crosspatch.attribution.setup import Setup
from crosspatch.dictionaries.places import write_place
from crosspatch.errors import CircuitError
from crosspatch.features.basis import Bases, Basis
from crosspatch.features.gradients import clean_keys, example_chunks
from crosspatch.features.nodes import Node
from crosspatch.features.replaced import Replacement, ReplacementName, Values, replacement, values_of
from crosspatch.metrics import evaluate
from crosspatch.model import Row, replay
from crosspatch.model.run import Readout


def exact_effects(
    setup: Setup,
    bases: Bases,
    nodes: Sequence[Node],
    replaced: ReplacementName | Replacement = "paired",
    *,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "example node"]:
    """`metric(clean) - metric(node replaced)` of some nodes, everything else being as the model computes it.

    Costs one forward pass for each example and node, from the node's block on.

    Raises:
        CircuitError: a node that none of `bases` has.
        MetricError: a span that a prompt does not have.
        InterventionError: see `replacement`.
    """
    by_place = {basis.place: basis for basis in bases}
    for node in nodes:
        basis = by_place.get(node.place)
        if basis is None or (not basis.has_error if node.feature is None else not 0 <= node.feature < basis.width):
            raise CircuitError(f"there is no node {node}", where="exact_effects", fix="use nodes of these bases")
    table = replacement(setup, bases, replaced)
    used = tuple(basis for basis in bases if basis.place in {node.place for node in nodes})
    out = np.zeros((len(setup), len(nodes)))
    done = 0
    for chunk in example_chunks(setup, used, budget_mib) if used else ():
        part = setup.select(chunk)
        run = part.record_clean(clean_keys(used))
        values = values_of(part, used, table, {basis.key: run.packed(basis.key) for basis in used}, run.hidden)
        rows: list[Row] = []
        for node in nodes:
            new = _with_node_replaced(by_place[node.place], values, node)
            for i in range(len(part)):
                at = positions_of(part, i, node.span)
                rows.append(Row(i, write_place(part.model, node.place, at, new[i, list(at)])))
        found = torch.zeros(len(rows), dtype=torch.float64)

        def on_read(readout: Readout, part: Setup = part, found: Tensor = found) -> None:
            numbers, measured = evaluate([part.metric], readout, part.targets)
            found[numbers] = measured[part.metric.name].double().cpu()

        replay(run, rows, on_read, columns=part.columns, budget_mib=budget_mib)
        out[chunk] = (values.metric.double().cpu() - found.unflatten(0, (len(nodes), len(part)))).T.numpy()
        done += len(chunk)
        if progress is not None:
            progress(done, len(setup))
    return out


@torch.no_grad()
def _with_node_replaced(basis: Basis, values: Values, node: Node) -> Float[Tensor, "example position d"]:
    """The clean activation with one node replaced at every token."""
    x = values.at[basis.place]
    if node.feature is None:
        change = values.error(basis) - basis.error(x)
    else:
        index = torch.tensor([node.feature], device=x.device)
        change = basis.written(values.features(basis, index) - basis.only(x, index), index)
    return (x + change.to(x)).unflatten(0, (values.n, values.length))
