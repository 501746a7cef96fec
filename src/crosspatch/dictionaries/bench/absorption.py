"""An absorption-style test on first letters (after Chanin et al. 2024, arXiv 2409.14507, and SAEBench 2025).

A feature "begins with S" that stays silent at *snake* because the feature of *snake* carries the letter too has been
absorbed: the feature looks clean and is not. Definition used here, letter by letter, at a word's last token:

- a probe for the letter on the activation that the dictionary writes, trained on half of the words. A letter counts
  only if the probe's balanced accuracy on the other half is at least `KNOWN`;
- the letter's main latents: the k of largest mean difference on the training words, k raised from 1 while a probe on
  them gains `GAIN` in F1 (a letter may be split over several latents);
- asked of every held-out word of the letter that the probe on the activation gets right:
  *missed* = no main latent is active; *absorbed* = missed, and the one latent that writes most along the probe's
  direction has a cosine of at least `COSINE` with it and writes at least `SHARE` of all that is written along it
  in the letter's favour.

The papers use words of a large vocabulary in a spelling prompt, models of 1 to 2 billion parameters or more and
16 thousand latents or more. A model that does not know first letters has no letter that counts, and then nothing is
measured; a small dictionary has no room for features of words. Take the number for what it is there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crosspatch.dictionaries.bench.own_data import own_words
from crosspatch.dictionaries.bench.probes import Probe, fit, right
from crosspatch.dictionaries.bench.result import Result, Row, estimate
from crosspatch.dictionaries.bench.texts import Pooled, Texts, mean_difference, pooled
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.errors import DictionaryError
from crosspatch.model import Model

DEFINITION = (
    "share of held-out words, whose letter a probe finds, at which no main latent of the letter is active but another "
    "one that writes along the probe's direction"
)
KNOWN, GAIN, COSINE, SHARE = 0.7, 0.03, 0.1, 0.4
MAX_MAIN = 5
LEAST = 8
"""Words that a letter needs in each half."""


def absorption(
    model: Model, dictionary: Dictionary, data: Sequence[str] | None = None, *, frame: str = " %s", seed: int = 0
) -> Result:
    """How often the latents of a first letter are silent because others took it over (see the module).

    Args:
        model, dictionary: the two.
        data: words; None = those of the generator.
        frame: what stands around a word; it must end with it (`%s`), since its last token is read.
        seed: of the halves.

    Raises:
        DictionaryError: a frame that does not end with the word, or no letter that enough words begin with.
    """
    if not frame.endswith("%s"):
        raise DictionaryError(f"{frame!r} does not end with the word", where="frame", fix="as in ' %s'")
    words = tuple(dict.fromkeys(own_words() if data is None else data))
    texts = Texts(
        "words", tuple(frame.replace("%s", word) for word in words),
        {"letter": tuple(word.strip()[:1].lower() for word in words)}, pool="last",
    )  # fmt: skip
    train, test = texts.split(seed)
    labels = np.array(texts.labels["letter"])
    letters = [
        c for c in texts.classes("letter") if min((labels[train] == c).sum(), (labels[test] == c).sum()) >= LEAST
    ]
    if not letters:
        raise DictionaryError(f"no letter begins {2 * LEAST} words", where="absorption", fix="give more words")
    values = pooled(model, dictionary, texts)
    rows: list[Row] = []
    all_missed: list[np.ndarray] = []
    all_absorbed: list[np.ndarray] = []
    found: dict[str, dict[str, object]] = {}
    accuracies = []
    for letter in letters:
        yes = labels == letter
        probe = fit(values.writes[train], yes[train])
        accuracy = right(probe, values.writes[test], yes[test])
        accuracies.append(accuracy)
        found[letter] = {"probe": float(accuracy.mean())}
        if accuracy.mean() < KNOWN:
            continue
        main = main_latents(values, train, yes)
        known = test[yes[test] & probe.says(values.writes[test])]
        missed, absorbed = absorbed_at(values, known, main, probe)
        all_missed.append(missed)
        all_absorbed.append(absorbed)
        found[letter] |= {
            "main latents": main,
            "absorbed": [texts.texts[i].strip() for i, a in zip(known, absorbed, strict=True) if a],
        }
        rows.append(Row(letter, "latents", len(main), estimate(absorbed, seed=seed)))
    rows.append(Row("probe accuracy", "dense", None, estimate(np.mean(accuracies, axis=0), seed=seed), overall=True))
    if all_absorbed:
        for by, parts in (("missed", all_missed), ("absorbed", all_absorbed)):
            rows.append(Row("all letters", by, None, estimate(np.concatenate(parts), seed=seed), overall=True))
    notes = [
        f"{len(all_absorbed)} of {len(letters)} letters are known (a probe's balanced accuracy is {KNOWN} or more)"
    ]
    if not all_absorbed:
        notes.append("the model does not know first letters here, so that nothing can be absorbed: no measurement")
    return Result("absorption", DEFINITION, tuple(rows), tuple(notes), {"letters": found})


def main_latents(values: Pooled, train: np.ndarray, yes: np.ndarray) -> list[int]:
    """A letter's own latents: one, and further ones while they help."""
    f, positive = values.features[train], yes[train]
    order = np.argsort(-mean_difference(f, positive), kind="stable")
    best, chosen = -1.0, 0
    for k in range(1, min(MAX_MAIN, f.shape[1]) + 1):
        use = order[:k]
        reached = _f1(fit(f[:, use], positive, per_column=True).says(f[:, use]), positive)
        if k > 1 and reached < best + GAIN:
            break
        best, chosen = reached, k
    return order[:chosen].tolist()


def absorbed_at(values: Pooled, words: np.ndarray, main: Sequence[int], probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """Of each word: 1 where no main latent is active; 1 where, besides, another one carries the letter."""
    missed = (values.features[words][:, list(main)] <= 0).all(1)
    along = values.decoder @ probe.weight / np.linalg.norm(probe.weight)
    norms = np.linalg.norm(values.decoder, axis=1)
    cosine = along / np.where(norms > 0, norms, 1)
    written = np.maximum(values.features[words] * along, 0)
    most = written.argmax(1)
    largest, total = written.max(1), written.sum(1)
    carried = (largest > 0) & (largest >= SHARE * total) & (cosine[most] >= COSINE)
    return missed.astype(float), (missed & carried).astype(float)


def _f1(said: np.ndarray, true: np.ndarray) -> float:
    both = float((said & true).sum())
    return 2 * both / max(float(said.sum() + true.sum()), 1.0)
