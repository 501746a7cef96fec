"""Spurious correlation removal (SCR; Karvonen et al. 2024, arXiv 2411.18895; after SHIFT, arXiv 2403.19647).

A probe learns an attribute from texts in which another one always goes with it (professors are men, nurses women), and
so learns both. The N latents that carry the other attribute are ablated, and the probe is judged on texts in which the
two are independent:

    SCR = (accuracy ablated - accuracy base) / (accuracy oracle - accuracy base)

`base` is the biased probe, `oracle` one trained on independent texts. A latent's score is
|mean activation difference x (probe . decoder)|, with differences and probe of the attribute to be removed, both from
independent texts of the training half. Of the two directions (remove either attribute) the one with the lower base
accuracy counts, as there is more to remove; it is chosen on the training half. Ablating takes `f_i decoder_i` off the
activation that the dictionary writes; the error term stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from crosspatch.dictionaries.bench.own_data import PAIRS, biographies
from crosspatch.dictionaries.bench.probes import Probe, fit, right
from crosspatch.dictionaries.bench.result import Result, Row, estimate
from crosspatch.dictionaries.bench.texts import Pooled, Texts, alive, mean_difference, pooled
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.errors import DictionaryError
from crosspatch.model import Model

DEFINITION = "(accuracy ablated - accuracy base) / (accuracy oracle - accuracy base), N latents ablated"
SIZES = (2, 5, 10, 20, 50, 100, 500)
MIN_GAP = 0.05
"""With less than this between base and oracle there is nothing to be recovered, and the score is not defined."""
DRAWS = 10
"""Random sets of latents that the control averages over."""


def scr(
    model: Model,
    dictionary: Dictionary,
    data: Texts | None = None,
    *,
    attributes: tuple[str, str] = ("profession", "gender"),
    pairs: Sequence[tuple[str, str]] | None = None,
    n: Sequence[int] = SIZES,
    seed: int = 0,
) -> Result:
    """How much of a spurious correlation the dictionary's latents can take out of a probe (see the module).

    Args:
        model, dictionary: the two.
        data: texts with two attributes, of which the second has two labels; None = the generator's biographies.
        attributes: their names.
        pairs: labels of the first attribute to be told apart; None = the generator's, or all neighbours in order.
        n: how many latents are ablated; sizes of the dictionary's width or more are left out.
        seed: of the halves and the control.

    Raises:
        DictionaryError: a combination of labels with fewer than four texts, or another number of labels.
    """
    if pairs is None and data is None:
        pairs = PAIRS
    texts = biographies(seed) if data is None else data
    main, other = attributes
    signs = texts.classes(other)
    if len(signs) != 2:
        raise DictionaryError(f"{other} has {len(signs)} labels, two are needed", where=texts.name)
    names = texts.classes(main)
    n = [size for size in n if size < dictionary.width]
    values = pooled(model, dictionary, texts)
    halves = texts.split(seed)
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    notes: list[str] = []
    sums: dict[tuple[str, int | None], list[np.ndarray]] = {}
    gaps: list[np.ndarray] = []
    details = {}
    for pair in pairs or list(zip(names[::2], names[1::2], strict=False)):
        found = _pair(values, texts, halves, (main, other), pair, n, rng)
        name = f"{pair[0]} or {pair[1]}"
        base, gap = found.accuracy["base"], found.accuracy["oracle"] - found.accuracy["base"]
        gaps.append(gap)
        for (by, size), accuracy in found.ablated.items():
            rows.append(Row(name, by, size, estimate(accuracy - base, gap, min_gap=MIN_GAP, seed=seed)))
            sums.setdefault((by, size), []).append(accuracy - base)
        details[name] = {
            "removed": found.removed,
            "base": float(base.mean()),
            "oracle": float(found.accuracy["oracle"].mean()),
            "base of the other direction": found.other_base,
            "latents": found.latents[:20],
        }
        if abs(gap.mean()) < MIN_GAP:
            notes.append(f"{name}: base and oracle differ by {gap.mean():.3f} only, the score is not defined")
    whole = np.concatenate(gaps)
    for (by, size), parts in sums.items():
        value = estimate(np.concatenate(parts), whole, min_gap=MIN_GAP, seed=seed)
        rows.append(Row("all pairs", by, size, value, overall=True))
    notes.append("all pairs: gains over gaps, both summed over pairs, so that a small gap weighs little")
    return Result("scr", DEFINITION, tuple(rows), tuple(notes), details)


class _Found:
    """One pair: accuracies per held-out text (their means are accuracies)."""

    removed: str
    other_base: float
    latents: list[int]

    def __init__(self) -> None:
        self.accuracy: dict[str, np.ndarray] = {}
        self.ablated: dict[tuple[str, int | None], np.ndarray] = {}


def _pair(
    values: Pooled,
    texts: Texts,
    halves: tuple[np.ndarray, np.ndarray],
    attributes: tuple[str, str],
    pair: tuple[str, str],
    sizes: Sequence[int],
    rng: np.random.Generator,
) -> _Found:
    signs = texts.classes(attributes[1])
    labels = [np.array(texts.labels[name]) for name in attributes]
    cells = {cell: (labels[0] == pair[cell[0]]) & (labels[1] == signs[cell[1]]) for cell in product((0, 1), repeat=2)}
    train, test = (_balanced(half, cells, texts, pair, rng) for half in halves)
    yes = [labels[0] == pair[1], labels[1] == signs[1]]  # what is asked, of either attribute
    biased = np.concatenate([halves[0][cells[c][halves[0]]] for c in ((0, 0), (1, 1))])
    y, f = values.writes, values.features

    def base_of(asked: int) -> tuple[Probe, float]:
        probe = fit(y[biased], yes[asked][biased])
        return probe, float(right(probe, y[train], yes[asked][train]).mean())

    bases = [base_of(0), base_of(1)]
    asked = int(bases[1][1] < bases[0][1])
    removed = 1 - asked
    found = _Found()
    found.removed, found.other_base = attributes[removed], bases[removed][1]
    probe, wanted = bases[asked][0], yes[asked]
    spurious = fit(y[train], yes[removed][train])
    score = np.abs(mean_difference(f[train], yes[removed][train]) * (values.decoder @ spurious.weight))
    found.latents = np.argsort(-score, kind="stable").tolist()
    found.accuracy["base"] = right(probe, y[test], wanted[test])
    found.accuracy["oracle"] = right(fit(y[train], wanted[train]), y[test], wanted[test])
    living = alive(f[train])
    for size in sizes:
        best = found.latents[:size]
        found.ablated["latents", size] = right(probe, without(values, test, best), wanted[test])
        draws = [rng.choice(living, min(size, len(living)), replace=False) for _ in range(DRAWS)]
        control = [right(probe, without(values, test, draw), wanted[test]) for draw in draws]
        found.ablated["random latents", size] = np.mean(control, axis=0)
    found.ablated["all latents", None] = right(probe, without(values, test, np.arange(f.shape[1])), wanted[test])
    return found


def without(values: Pooled, chosen: np.ndarray, latents: Sequence[int] | np.ndarray) -> np.ndarray:
    """What is left of the activations when these latents are ablated."""
    at = np.asarray(latents, dtype=np.int64)
    return values.writes[chosen] - values.features[np.ix_(chosen, at)] @ values.decoder[at]


def _balanced(
    half: np.ndarray,
    cells: dict[tuple[int, ...], np.ndarray],
    texts: Texts,
    pair: tuple[str, str],
    rng: np.random.Generator,
) -> np.ndarray:
    """As many texts of this half for each combination of labels."""
    mine = [half[cell[half]] for cell in cells.values()]
    each = min(len(cell) for cell in mine)
    if each < 4:
        raise DictionaryError(
            f"{' and '.join(pair)}: a combination of labels has {each} texts in a half",
            where=texts.name,
            fix="give eight or more of each combination",
        )
    return np.concatenate([rng.permutation(cell)[:each] for cell in mine])
