"""How many rows go through the layers together, from a memory budget.

The budget covers what one chunk of patched rows needs at once: activations, keys and values, scores where they are
written out, logits. The weights and the runs that rows take their values from (`Run.nbytes`) come on top, and so do the
comparisons of the plan, which are bounded by a constant. tests/test_budget.py counts the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from crosspatch.model.plan import PlannedRow

if TYPE_CHECKING:
    from crosspatch.model.model import Model

MIB = 2**20


def default_budget_mib(model: Model) -> float:
    """On a GPU half of what is free; on a CPU what keeps one chunk's activations near the caches.

    More rows than that do not make CPU matrix products faster; see docs/benchmarks.md for the measurement.
    """
    if model.device.type == "cuda":
        return torch.cuda.mem_get_info(model.device)[0] / 2 / MIB
    return 64.0


def row_bytes(model: Model, row: PlannedRow, n_columns: int, pattern: bool) -> int:
    """Largest memory that one row needs at once: the widest layer stage, its keys and values, and its logits."""
    s = model.shape
    first, length, read = row.group
    tokens = length - first
    stream = 4 * s.d_model
    attention = (2 * s.n_heads + 2 * s.n_kv_heads) * s.d_head
    hidden = 3 * (s.d_mlp or 4 * s.d_model) if s.has_mlp else 0
    keys = 2 * length * max(s.n_kv_heads, s.n_heads if pattern else 0) * s.d_head
    scores = 2 * s.n_heads * tokens * length if pattern else 0
    logits = 3 * len(read) * n_columns
    size = torch.empty(0, dtype=model.dtype).element_size()
    return size * (tokens * (stream + max(attention, hidden)) + keys) + 4 * (scores + logits)


def chunk_rows(
    model: Model, rows: list[PlannedRow], n_columns: int, budget_mib: float | None
) -> Iterator[list[PlannedRow]]:
    """Chunks whose memory stays under the budget (one row at least).

    Rows are ordered by where they begin, so that a chunk's rows share as much of the walk as they can and the matrix
    products stay large for all of it.
    """
    budget = (budget_mib if budget_mib is not None else default_budget_mib(model)) * MIB
    pattern_layers = any(rule.softcap is not None for rule in model.rules.values())
    chunk: list[PlannedRow] = []
    used = 0
    for row in sorted(rows, key=lambda r: (r.start, r.group, r.row)):
        pattern = pattern_layers or any(atom.key[1] == "pattern" for atom in row.atoms)
        size = row_bytes(model, row, n_columns, pattern)
        if chunk and used + size > budget:
            yield chunk
            chunk, used = [], 0
        chunk.append(row)
        used += size
    if chunk:
        yield chunk
