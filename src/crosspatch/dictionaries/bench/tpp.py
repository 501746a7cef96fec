"""Targeted probe perturbation (TPP; Karvonen et al. 2024, arXiv 2411.18895).

One probe for each label of an attribute. The N latents that carry a label are ablated; a good dictionary hurts that
label's probe and no other:

    TPP = mean over labels c of (drop of c's probe - mean drop of the others' probes)

Drops are of balanced accuracy on held-out texts. A latent's score for a label is
|mean activation difference x (probe . decoder)|, as in `scr`, and so is ablating.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crosspatch.dictionaries.bench.own_data import biographies
from crosspatch.dictionaries.bench.probes import fit, right
from crosspatch.dictionaries.bench.result import Result, Row, estimate
from crosspatch.dictionaries.bench.scr import DRAWS, SIZES, without
from crosspatch.dictionaries.bench.texts import Texts, alive, check_classes, mean_difference, pooled
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.errors import DictionaryError
from crosspatch.model import Model

DEFINITION = "drop of the intended label's probe minus mean drop of the others, N latents ablated; mean over labels"


def tpp(
    model: Model,
    dictionary: Dictionary,
    data: Texts | None = None,
    *,
    attribute: str = "profession",
    n: Sequence[int] = SIZES,
    seed: int = 0,
) -> Result:
    """How separately latents carry the labels of an attribute (see the module).

    Args:
        model, dictionary: the two.
        data: labelled texts; None = the generator's biographies.
        attribute: one with three labels or more.
        n: how many latents are ablated; sizes of the dictionary's width or more are left out.
        seed: of the halves and the control.

    Raises:
        DictionaryError: fewer than three labels that enough texts have.
    """
    texts = biographies(seed) if data is None else data
    n = [size for size in n if size < dictionary.width]
    values = pooled(model, dictionary, texts)
    train, test = texts.split(seed)
    known = check_classes(texts, attribute, train)
    classes = [c for c in check_classes(texts, attribute, test) if c in known]
    if len(classes) < 3:
        raise DictionaryError(
            f"{attribute} has {len(classes)} labels with enough texts", where=texts.name, fix="three or more are needed"
        )
    labels = np.array(texts.labels[attribute])
    y, f = values.writes, values.features
    asked = [labels == c for c in classes]
    probes = [fit(y[train], yes[train]) for yes in asked]
    plain = [right(p, y[test], yes[test]) for p, yes in zip(probes, asked, strict=True)]
    order = [
        np.argsort(-np.abs(mean_difference(f[train], yes[train]) * (values.decoder @ p.weight)), kind="stable")
        for p, yes in zip(probes, asked, strict=True)
    ]
    living = alive(f[train])
    rng = np.random.default_rng(seed)

    def drops(latents: Sequence[int] | np.ndarray) -> np.ndarray:
        """Of every probe, at every held-out text."""
        left = without(values, test, latents)
        pairs = zip(plain, probes, asked, strict=True)
        return np.array([before - right(p, left, yes[test]) for before, p, yes in pairs])

    rows, per_label = [], {}
    accuracy = estimate(np.mean(plain, axis=0), seed=seed)
    rows.append(Row("accuracy of the probes", "dense", None, accuracy, overall=True))
    for size in n:
        found: dict[str, list[np.ndarray]] = {"latents": [], "random latents": []}
        for c, best in enumerate(order):
            found["latents"].append(_margin(drops(best[:size]), c))
            draws = [rng.choice(living, min(size, len(living)), replace=False) for _ in range(DRAWS)]
            found["random latents"].append(np.mean([_margin(drops(draw), c) for draw in draws], axis=0))
        for by, margins in found.items():
            rows.append(Row("all labels", by, size, estimate(np.mean(margins, axis=0), seed=seed), overall=True))
        per_label[size] = {c: float(m.mean()) for c, m in zip(classes, found["latents"], strict=True)}
    details = {
        "labels": classes,
        "by label": {str(size): by for size, by in per_label.items()},
        "latents": {c: best[:20].tolist() for c, best in zip(classes, order, strict=True)},
    }
    return Result("tpp", DEFINITION, tuple(rows), (), details)


def _margin(drops: np.ndarray, intended: int) -> np.ndarray:
    """Drop of one probe minus the mean drop of the others, per text."""
    others = np.delete(drops, intended, axis=0)
    return drops[intended] - others.mean(0)
