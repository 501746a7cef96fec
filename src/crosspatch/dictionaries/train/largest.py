"""Keeping the largest entries, as a function with a gradient.

On a CPU NumPy's partition finds the smallest entry that is kept several times faster than `torch.topk` lists them all.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def keep_largest(rows: Float[Tensor, "row entry"], k: int) -> Float[Tensor, "row entry"]:
    """The `k` largest entries of every row, all others 0. Of entries that are exactly equal more may be kept."""
    n = rows.shape[1]
    if k >= n:
        return rows
    if rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64):
        smallest = torch.from_numpy(np.partition(rows.detach().numpy(), n - k, axis=1)[:, n - k, None])
        return torch.where(rows >= smallest, rows, 0)
    best = rows.topk(k, dim=1, sorted=False)
    return torch.zeros_like(rows).scatter(1, best.indices, best.values)
