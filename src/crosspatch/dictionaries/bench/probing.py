"""Sparse probing (Gurnee et al. 2023, arXiv 2305.01610; as a test of dictionaries: Gao et al. 2024, SAEBench 2025).

For each label of an attribute (one of the two, where there are two) the k latents whose mean differs most between texts
with it and texts without it, on the training half, feed a logistic probe. Its balanced accuracy on the held-out half,
averaged over labels, stands beside

- `dense`: a probe on all of the activation that the dictionary reads;
- `neurons`: the same procedure on the hidden neurons of the nearest MLP, and `dimensions`: on the activation's own
  dimensions. A dictionary that does not beat these has not found better axes than the model's;
- `shuffled`: the same procedure, labels permuted over texts: chance is 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crosspatch.dictionaries.bench.own_data import own_texts
from crosspatch.dictionaries.bench.probes import class_weights, fit, right
from crosspatch.dictionaries.bench.result import Result, Row, estimate
from crosspatch.dictionaries.bench.texts import Texts, Values, check_classes, mean_difference, pooled
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.errors import DictionaryError
from crosspatch.model import Model

DEFINITION = (
    "balanced accuracy on held-out texts of a logistic probe on the k columns of largest mean difference in the "
    "training half; the mean over labels"
)


def sparse_probing(
    model: Model, dictionary: Dictionary, data: Sequence[Texts] | None = None, *, k: Sequence[int] = (1, 2, 5),
    seed: int = 0,
) -> Result:  # fmt: skip
    """How well k latents tell each attribute of labelled texts (see the module).

    Args:
        model, dictionary: the two.
        data: labelled texts; None = the project's own.
        k: how many latents.
        seed: of the halves and of the permutation.

    Raises:
        DictionaryError: texts too short or too few of every label, or a dictionary of another model.
    """
    rows: list[Row] = []
    notes: list[str] = []
    chosen: dict[str, dict[str, list[int]]] = {}
    whole: dict[tuple[str, int | None], list[tuple[np.ndarray, np.ndarray, list[str]]]] = {}
    for texts in own_texts(seed) if data is None else data:
        values = pooled(model, dictionary, texts)
        train, test = texts.split(seed)
        ids = [f"{texts.name} {i}" for i in test]
        for attribute in texts.labels:
            name = f"{texts.name}/{attribute}"
            classes = [c for c in check_classes(texts, attribute, train) if c in check_classes(texts, attribute, test)]
            if not classes:
                notes.append(f"{name}: no label that enough texts have and others have not")
                continue
            classes = classes[:1] if len(texts.classes(attribute)) == 2 else classes
            labels = np.array(texts.labels[attribute])
            shuffled = labels[np.random.default_rng(seed).permutation(len(labels))]
            asked: list[tuple[str, int | None, Values, np.ndarray]] = [
                *(("latents", n, values.features, labels) for n in k),
                *(("neurons", n, values.neurons, labels) for n in k if values.neurons is not None),
                *(("dimensions", n, values.reads, labels) for n in k),
                ("dense", None, values.reads, labels),
                ("shuffled", max(k), values.features, shuffled),
            ]
            for by, n, matrix, given in asked:
                rights, weights = _probe(matrix, given, classes, train, test, n)
                rows.append(Row(name, by, n, estimate(rights, weights, seed=seed)))
                whole.setdefault((by, n), []).append((rights / len(test), weights / len(test), ids))
            chosen[name] = {c: _best(values.features[train], labels[train] == c, max(k)) for c in classes}
    if not rows:
        raise DictionaryError(f"nothing to probe: {'; '.join(notes)}", where="sparse_probing")
    for (by, n), parts in whole.items():
        rights, weights = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        value = estimate(rights, weights, clusters=[text for part in parts for text in part[2]], seed=seed)
        rows.append(Row("mean over attributes", by, n, value, overall=True))
    return Result("sparse_probing", DEFINITION, tuple(rows), tuple(notes), {"latents": chosen})


def _probe(
    matrix: Values, labels: np.ndarray, classes: Sequence[str], train: np.ndarray, test: np.ndarray, k: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """What is right of every held-out text, and how much it counts, averaged over labels."""
    rights, weights = np.zeros(len(test)), np.zeros(len(test))
    for label in classes:
        positive = labels == label
        use = slice(None) if k is None else _best(matrix[train], positive[train], k)
        probe = fit(matrix[train][:, use], positive[train], per_column=True)
        rights += right(probe, matrix[test][:, use], positive[test]) / len(classes)
        weights += class_weights(positive[test]) / len(classes)
    return rights, weights


def _best(matrix: Values, positive: np.ndarray, k: int) -> list[int]:
    """Columns of largest mean difference, the largest first."""
    return np.argsort(-np.abs(mean_difference(matrix, positive)), kind="stable")[:k].tolist()
