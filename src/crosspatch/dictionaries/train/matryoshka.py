"""Nested dictionaries (Bussmann et al. 2025, arXiv 2503.17547), on BatchTopK.

    loss = mean over prefixes m of |y - y_hat(features 1..m)|^2 + auxk term of the whole

The first features must do without the later ones, and so keep what is general.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, relu

from crosspatch.dictionaries.train.batch_topk import BatchTopK, largest_of_batch, remember_threshold
from crosspatch.dictionaries.train.coder import Coder, Moment, Terms, squared_error
from crosspatch.dictionaries.train.topk import auxiliary
from crosspatch.errors import DictionaryError


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """Args: prefixes: shares of the features, rising, the last one 1; the others: as for BatchTopK."""

    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    name: ClassVar[str] = "matryoshka"

    def __post_init__(self) -> None:
        if list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[-1] != 1 or self.prefixes[0] <= 0:
            raise DictionaryError(f"prefixes {self.prefixes} do not rise from above 0 to 1", where="Matryoshka")

    def terms(self, coder: Coder, x: Tensor, y: Tensor, at: Moment) -> Terms:
        raw = coder.pre(x)
        f = largest_of_batch(relu(raw), self.k)
        remember_threshold(coder, f, self.memory)
        ends = sorted({max(1, round(share * f.shape[1])) for share in self.prefixes})
        y_hat, losses, start = coder.decode(f[:, :0] @ f.new_zeros(0, f.shape[1]), x), [], 0
        for end in ends:
            y_hat = y_hat + f[:, start:end] @ coder.params["decoder"][start:end]
            losses.append(squared_error(y, y_hat))
            start = end
        loss = sum(losses[1:], losses[0]) / len(losses)
        return Terms.of(loss + self.auxk * auxiliary(coder, raw, y - y_hat, self.k, at), f, y_hat)
