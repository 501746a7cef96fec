"""Large vectors in few dimensions without storing either: a hash says where each entry goes.

Entry (i, j) of a matrix is added to bucket (shift_i + j) mod `dims` with the sign row_sign_i * column_sign_j; shifts
and signs are random and fixed by a seed. Two entries of different rows meet in a bucket with probability 1/dims, and
what meets has independent signs, so that inner products are kept in expectation, with an error of about norm * norm /
sqrt(dims) (feature hashing: Weinberger et al. 2009, arXiv 0902.2206). Signs that are products can be put on the two
factors of a gradient before they are multiplied, and the map needs one number per row and column, not one per entry.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.errors import TaskError


@dataclass(frozen=True, eq=False)
class Hash:
    """Where the entries of matrices of one size go; make it with `hash_of`.

    Attributes:
        dims: number of buckets.
        shift: bucket of each row's first entry.
        row_sign, column_sign: +1 or -1.
    """

    dims: int
    shift: Int[Tensor, " row"]
    row_sign: Float[Tensor, " row"]
    column_sign: Float[Tensor, " column"]

    def to(self, device: torch.device) -> Hash:
        """The same on another device."""
        return Hash(self.dims, *(part.to(device) for part in (self.shift, self.row_sign, self.column_sign)))

    @property
    def bucket(self) -> Int[Tensor, "row column"]:
        """Where each entry goes."""
        columns = torch.arange(len(self.column_sign), device=self.shift.device)
        return (self.shift[:, None] + columns) % self.dims

    def add(self, into: Float[Tensor, "sample dims"], signed: Float[Tensor, "sample row column"]) -> None:
        """Add matrices whose entries already carry their signs, one for each row of `into`."""
        into.index_add_(1, self.bucket.flatten(), signed.flatten(1).to(into))

    def add_matrices(self, into: Float[Tensor, "sample dims"], matrices: Float[Tensor, "sample row column"]) -> None:
        """Add matrices as they are."""
        self.add(into, matrices * (self.row_sign[:, None] * self.column_sign).to(matrices))


def hash_of(name: str, rows: int, columns: int, dims: int, seed: int = 0) -> Hash:
    """The hash for matrices of one size: a function of its arguments, the same on every machine.

    Raises:
        TaskError: no dimensions.
    """
    if dims < 1:
        raise TaskError(f"dims={dims}", where="hash_of", fix="give at least 1; some thousands keep angles well")
    number = int.from_bytes(hashlib.sha256(f"{seed} {name} {rows} {columns}".encode()).digest()[:8], "big") >> 1
    draw = torch.Generator().manual_seed(number)
    shift = torch.randint(dims, (rows,), generator=draw)
    signs = [2.0 * torch.randint(2, (size,), generator=draw) - 1 for size in (rows, columns)]
    return Hash(dims, shift, *signs)
