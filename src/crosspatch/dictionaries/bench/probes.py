"""Linear probes: logistic regression, judged by balanced accuracy on held-out texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.errors import DictionaryError

Values = Float[np.ndarray, "text column"]


@dataclass(frozen=True, eq=False)
class Probe:
    """`values @ weight + bias > 0` says yes."""

    weight: Float[np.ndarray, " column"]
    bias: float

    def says(self, values: Values) -> Bool[np.ndarray, " text"]:
        return values @ self.weight + self.bias > 0


def fit(values: Values, positive: Bool[np.ndarray, " text"], *, per_column: bool = False) -> Probe:
    """A logistic probe (scikit-learn's, C = 1); both classes count the same however many texts they have.

    Args:
        per_column: bring every column to spread 1 first, as chosen neurons and latents need it. Otherwise one number
            scales all of them (mean variance 1), so that the probe's direction does not depend on the axes.

    Raises:
        DictionaryError: only one class.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, and only needed here

    if positive.all() or not positive.any():
        raise DictionaryError("a probe needs texts of both classes", where="fit", fix="give more texts")
    mean, spread = values.mean(0), values.std(0)
    if not per_column:
        spread = np.full_like(spread, np.sqrt((spread**2).mean()))
    spread = np.where(spread > 1e-12 * max(1.0, float(np.abs(values).max(initial=0))), spread, np.inf)
    model = LogisticRegression(class_weight="balanced", max_iter=2000)
    model.fit((values - mean) / spread, positive)
    weight = model.coef_[0] / spread
    return Probe(weight, float(model.intercept_[0] - mean @ weight))


def class_weights(positive: Bool[np.ndarray, " text"]) -> Float[np.ndarray, " text"]:
    """Weights with which the mean of what is right is the balanced accuracy: half of the weight for each class."""
    n = len(positive)
    share = positive.mean()
    if share in (0, 1):
        return np.ones(n)
    return np.where(positive, 0.5 / share, 0.5 / (1 - share))


def right(probe: Probe, values: Values, positive: Bool[np.ndarray, " text"]) -> Float[np.ndarray, " text"]:
    """1 where the probe is right, times `class_weights`: the mean is the balanced accuracy."""
    return (probe.says(values) == positive) * class_weights(positive)
