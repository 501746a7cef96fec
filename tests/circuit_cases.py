"""What the tests of circuits share: small shapes of every kind, and random masks and scores."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from crosspatch.circuits import Circuit
from crosspatch.graph import ModelShape, edge_table

PLAIN = ModelShape(2, 2, 2, 8, 4, 8, 50)
SHAPES = {
    "plain": PLAIN,
    "deep": ModelShape(3, 2, 2, 8, 4, 8, 50),
    "grouped": ModelShape(2, 4, 2, 8, 4, 8, 50),
    "one kv": ModelShape(2, 3, 1, 9, 3, 8, 50),
    "parallel": ModelShape(2, 2, 2, 8, 4, 8, 50, parallel=True),
    "grouped parallel": ModelShape(2, 4, 2, 8, 4, 8, 50, parallel=True),
    "attention only": ModelShape(3, 2, 2, 8, 4, 0, 50, has_neurons=False, has_mlp=False),
}
GPT2 = ModelShape(12, 12, 12, 768, 64, 3072, 50257)
LLAMA_8B = ModelShape(32, 32, 8, 4096, 128, 14336, 128256)
QUICK = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

shapes = st.sampled_from(list(SHAPES.values()))
seeds = st.integers(0, 2**32 - 1)


def random_circuit(shape: ModelShape, seed: int, share: float = 0.4, spans: tuple[str, ...] = ()) -> Circuit:
    rng = np.random.default_rng(seed)
    size = (len(edge_table(shape)), len(spans)) if spans else len(edge_table(shape))
    return Circuit.from_mask(shape, rng.random(size) < share, spans=spans)


def random_scores(shape: ModelShape, seed: int, missing: float = 0.0, ties: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal(len(edge_table(shape)))
    scores = np.round(scores * 2) / 2 if ties else scores
    scores[rng.random(scores.size) < missing] = np.nan
    return scores
