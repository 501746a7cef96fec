"""Tests of what features mean: do single features stand for what people mean, and can they be changed alone?

    from crosspatch.dictionaries.bench import TESTS, run_tests
    found = run_tests(model, dictionary, ["sparse_probing", "scr"], data="embedded", seed=0)
    print(found.table()); found.save("bench.json"); found.plain()

| test | asks |
|---|---|
| `sparse_probing` | do one, two, five features tell a label as well as all of the activation does? |
| `scr` | does ablating the features of a spurious cue make a biased probe rely on what it was meant to? |
| `tpp` | does ablating the features of a class hurt that class's probe, and no other? |
| `absorption` | does a feature of a first letter stay silent at words whose own feature carries the letter? |
| `ravel` | does swapping features of one attribute change it (cause) and leave another as it is (isolation)? |

Interface, for the command line too:

- `TESTS`: name -> function; `run_tests(model, dictionary, names=None, data="embedded", *, entities="embedded",
  words=None, seed=0, progress=None) -> Bench`; `names=None` runs all that the data allow.
- `data`: `"embedded"` (the generator's labelled texts; plain English, so that they serve any model), a JSONL file of
  labelled texts (`{"text": ..., "label": ..., ...}`: every other field is an attribute), `Texts`, or several of them.
- `entities`: `"embedded"`, a folder of RAVEL's files, or `Entities`; `words`: for `absorption`.
- `progress(name, done, total)` is called before each test.
- `Bench.table(full=True) -> str` (Markdown; `full=False`: rows that sum up only), `Bench.plain() -> dict` (JSON),
  `Bench.save(path)`, `Bench.skipped` (test -> reason); `Bench.results[name]` is a `Result` with `definition`, `notes`,
  and `rows`: each a `Row(what, by, n, value, overall)`, `value` with an interval.

This room stands above `attribution/` (whose differentiable run learns `ravel`'s masks) and above `dictionaries/`.
"""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.dictionaries.bench.absorption import absorption
    from crosspatch.dictionaries.bench.entities import Entities, read_ravel
    from crosspatch.dictionaries.bench.own_data import own_entities, own_texts, own_words
    from crosspatch.dictionaries.bench.probing import sparse_probing
    from crosspatch.dictionaries.bench.ravel import ravel
    from crosspatch.dictionaries.bench.result import Bench, Result, Row
    from crosspatch.dictionaries.bench.run import TESTS, run_tests
    from crosspatch.dictionaries.bench.scr import scr
    from crosspatch.dictionaries.bench.texts import Texts, read_texts
    from crosspatch.dictionaries.bench.tpp import tpp

__all__ = [
    "TESTS",
    "Bench",
    "Entities",
    "Result",
    "Row",
    "Texts",
    "absorption",
    "own_entities",
    "own_texts",
    "own_words",
    "ravel",
    "read_ravel",
    "read_texts",
    "run_tests",
    "scr",
    "sparse_probing",
    "tpp",
]

make_lazy(
    __name__,
    {
        "absorption": ("absorption",),
        "entities": ("Entities", "read_ravel"),
        "own_data": ("own_entities", "own_texts", "own_words"),
        "probing": ("sparse_probing",),
        "ravel": ("ravel",),
        "result": ("Bench", "Result", "Row"),
        "run": ("TESTS", "run_tests"),
        "scr": ("scr",),
        "texts": ("Texts", "read_texts"),
        "tpp": ("tpp",),
    },
)
