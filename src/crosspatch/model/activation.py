"""The tanh form of GELU in one kernel.

GPT-2 and GPT-J write it out as eight element-wise operations, which take a fifth of a sweep's time on a CPU. While the
executor runs, torch's own kernel of the same function (Hendrycks & Gimpel, arXiv 1606.08415) stands in for it; they
differ by rounding only. Nothing of the user's model stays changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation


def _written_out(mlps: Sequence[Callable[[Tensor], Any] | None]) -> list[nn.Module]:
    """The activations that can be replaced. One that is hooked or changed stays as it is."""
    modules = [mlp for mlp in mlps if isinstance(mlp, nn.Module)]
    found = {id(part): part for module in modules for part in module.modules() if type(part) is NewGELUActivation}
    return [part for part in found.values() if "forward" not in vars(part)]


@contextmanager
def one_kernel(mlps: Sequence[Callable[[Tensor], Any] | None]) -> Iterator[None]:
    """While active, the activations in ``mlps`` (None: a block without one) are computed by one kernel each."""
    changed = _written_out(mlps)
    try:
        for part in changed:
            part.forward = _gelu_tanh  # instance attribute: shadows the method
        yield
    finally:
        for part in changed:
            del part.forward


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
