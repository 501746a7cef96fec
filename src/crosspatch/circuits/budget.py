"""How much of a model a circuit is: budgets in edges, nodes and neurons, counted as MIB does or once each.

The benchmark's graph has a key and a value input for every query head. On a model with grouped queries ours has one for
every key/value head, which several heads share: such an edge counts as many times as there are heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.errors import CircuitError
from crosspatch.graph import ModelShape, edge_table

Counted = Literal["edges", "ungrouped edges", "nodes"]


def edge_weights(shape: ModelShape, counted: Counted = "edges") -> Float[np.ndarray, " edge"]:
    """What every edge counts, by number: 1, or the number of heads that read it (`ungrouped edges`)."""
    table = edge_table(shape)
    weight = np.ones(len(table.receivers))
    if counted == "ungrouped edges":
        weight = np.array([max(len(nodes), 1) for nodes in table.node_of_receiver], dtype=np.float64)
    return np.repeat(weight, table.reach)


def total(shape: ModelShape, counted: Counted = "edges") -> int:
    """All edges (as MIB counts them: `ungrouped edges`; 1,592,881 for Llama-3.1-8B), or all nodes with the input."""
    return len(edge_table(shape).senders) if counted == "nodes" else int(edge_weights(shape, counted).sum())


def count(circuit: Circuit, counted: Counted = "edges") -> float:
    """The size of a circuit: its edges or nodes, each counted by the kept share of the (sending) node's neurons.

    Raises:
        CircuitError: an unknown way of counting.
    """
    if counted == "nodes":
        return float((circuit.node_mask * circuit.shares).sum())
    if counted not in ("edges", "ungrouped edges"):
        raise CircuitError(f"counted={counted!r}", where="count", fix="use 'edges', 'ungrouped edges' or 'nodes'")
    table, per_edge = circuit.table, np.asarray(circuit.cube.sum(-1), np.float64)
    weight = table.matrix(edge_weights(circuit.shape, counted))
    return float((per_edge * weight * circuit.shares[:, None]).sum())


def largest_within(make: Callable[[int], Circuit], budget: float, most: int, counted: Counted = "edges") -> Circuit:
    """The largest circuit that a selection makes within a budget.

    Args:
        make: a number of edges (or nodes) -> circuit, such as `lambda n: top_n(scores, shape, n)`; larger numbers must
            not give smaller circuits.
        budget: what its `count` may be at most.
        most: the largest number to try.

    Raises:
        CircuitError: not even 0 fits.
    """
    best = make(0)
    if count(best, counted) > budget:
        raise CircuitError(
            f"the smallest circuit counts {count(best, counted):g}, the budget is {budget:g}", where="budget"
        )
    low, high = 0, int(most)
    while low < high:
        middle = (low + high + 1) // 2
        circuit = make(middle)
        if count(circuit, counted) <= budget:
            low, best = middle, circuit
        else:
            high = middle - 1
    return best
