"""Tensors of one shape that lie in few: looked up one by one, used together without a copy where they follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.model.project import run_of


class Stacks:
    """Tensors by number, of which some lie together."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[Float[Tensor, "row pair position d_model"], int]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._rows

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __getitem__(self, number: int) -> Tensor:
        stack, row = self._rows[number]
        return stack[row]

    def put(self, numbers: Sequence[int], stack: Float[Tensor, "row pair position d_model"]) -> None:
        """Keep rows of one tensor under these numbers."""
        self._rows |= {number: (stack, row) for row, number in enumerate(numbers)}

    def drop(self, number: int) -> None:
        """Forget one; the memory is free once all that lie with it are forgotten."""
        del self._rows[number]

    def of(self, numbers: Sequence[int]) -> Float[Tensor, "row pair position d_model"]:
        """Some of them stacked, all of one shape: a view where they lie together, in this order."""
        found = [self._rows[number] for number in numbers]
        if all(stack is found[0][0] for stack, _ in found):
            return found[0][0][run_of([row for _, row in found])]
        return torch.stack([stack[row] for stack, row in found])
