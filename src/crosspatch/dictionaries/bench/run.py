"""All tests of one dictionary in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from crosspatch.dictionaries.bench.absorption import absorption
from crosspatch.dictionaries.bench.entities import Entities, read_ravel
from crosspatch.dictionaries.bench.probing import sparse_probing
from crosspatch.dictionaries.bench.ravel import ravel
from crosspatch.dictionaries.bench.result import Bench, Result
from crosspatch.dictionaries.bench.scr import scr
from crosspatch.dictionaries.bench.texts import Texts, read_texts
from crosspatch.dictionaries.bench.tpp import tpp
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.errors import DictionaryError
from crosspatch.model import Model

TESTS: dict[str, Callable[..., Result]] = {
    "sparse_probing": sparse_probing,
    "scr": scr,
    "tpp": tpp,
    "absorption": absorption,
    "ravel": ravel,
}
"""Each takes (model, dictionary, data, seed=...); `data` None is the project's own."""

RAVEL_PAIRS = {
    "city": ("Country", "Continent"),
    "nobel_prize_winner": ("Field", "Country of Birth"),
    "occupation": ("Industry", "Work Location"),
    "physical_object": ("Category", "Color"),
    "verb": ("Past Tense", "Singular"),
}
"""Which two attributes of RAVEL's entities are asked for."""


def run_tests(
    model: Model,
    dictionary: Dictionary,
    names: Sequence[str] | None = None,
    data: str | Path | Texts | Sequence[Texts] = "embedded",
    *,
    entities: str | Path | Sequence[Entities] = "embedded",
    words: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Bench:
    """Ask what the features of a dictionary mean.

    Args:
        model, dictionary: the two.
        names: of `TESTS`; None = all of them. Those that the data do not allow are listed in `Bench.skipped`.
        data: `embedded` (the generator's texts), a JSONL file, or labelled texts. With texts of your own `scr` takes
            their first attribute with the first one of two labels beside it, `tpp` the first of three labels or more.
        entities: `embedded`, a folder of RAVEL's files, or entities; for `ravel`.
        words: for `absorption`; None = the generator's.
        seed: of everything that is drawn.
        progress: called with (name, tests done, tests in all).

    Raises:
        DictionaryError: an unknown test, or one that was asked for by name and that the data do not allow.
    """
    wanted = list(TESTS) if names is None else list(names)
    if unknown := [name for name in wanted if name not in TESTS]:
        raise DictionaryError(f"no test {unknown[0]!r}", where="names", fix=f"one of {', '.join(TESTS)}")
    texts = _texts(data)
    results: dict[str, Result] = {}
    skipped: dict[str, str] = {}
    for at, name in enumerate(wanted):
        if progress:
            progress(name, at, len(wanted))
        try:
            results[name] = _one(name, model, dictionary, texts, entities, words, seed)
        except DictionaryError as error:
            if names is not None:
                raise
            skipped[name] = error.what
    if progress:
        progress("", len(wanted), len(wanted))
    return Bench(repr(dictionary), model.name, seed, results, skipped)


def _one(
    name: str,
    model: Model,
    dictionary: Dictionary,
    texts: list[Texts] | None,
    entities: str | Path | Sequence[Entities],
    words: Sequence[str] | None,
    seed: int,
) -> Result:
    if name == "sparse_probing":
        return sparse_probing(model, dictionary, texts, seed=seed)
    if name == "absorption":
        return absorption(model, dictionary, words, seed=seed)
    if name == "ravel":
        return ravel(model, dictionary, _entities(entities), seed=seed)
    if texts is None:
        return TESTS[name](model, dictionary, seed=seed)
    if name == "tpp":
        for given in texts:
            for attribute in given.labels:
                if len(given.classes(attribute)) >= 3:
                    return tpp(model, dictionary, given, attribute=attribute, seed=seed)
        raise DictionaryError("no attribute of the texts has three labels", where="tpp")
    for given in texts:
        for other in given.labels:
            main = next((a for a in given.labels if a != other), None)
            if main is not None and len(given.classes(other)) == 2:
                return scr(model, dictionary, given, attributes=(main, other), seed=seed)
    raise DictionaryError("no texts have two attributes, one of them with two labels", where="scr")


def _texts(data: str | Path | Texts | Sequence[Texts]) -> list[Texts] | None:
    if isinstance(data, Texts):
        return [data]
    if isinstance(data, str | Path):
        return None if data == "embedded" else [read_texts(data)]
    return list(data)


def _entities(given: str | Path | Sequence[Entities]) -> list[Entities] | None:
    if not isinstance(given, str | Path):
        return list(given)
    if given == "embedded":
        return None
    folder = Path(given)
    there = [name for name in RAVEL_PAIRS if (folder / f"ravel_{name}_entity_attributes.json").is_file()]
    if not there:
        raise DictionaryError("has none of RAVEL's files", where=str(folder), fix="ravel_city_entity_attributes.json")
    return [read_ravel(folder, name, RAVEL_PAIRS[name]) for name in there]
