"""SHIFT on the embedded generator's biographies: does it work, who has to judge, and does something simpler do as well?

    python studies/shift/run.py

writes `methods.csv` (one row per cue, judge and method) and `features.csv` (what was judged) beside this file.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import pandas as pd

import crosspatch as cp
from crosspatch.cli.features_inputs import load_dictionaries
from crosspatch.embedded.corpus import MARK, documents
from crosspatch.shift import (
    Settings,
    TokenList,
    biographies,
    oracle_judge,
    probe_circuit,
    probe_judge,
    shift,
)

HERE = Path(__file__).parent
CUES = ("both", "names")
SETTINGS = Settings(layer=1, nodes=250, steps=5, texts=60, n_random=3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dictionaries", nargs="*", default=None, help="default: those that ship with the package")
    parser.add_argument("--n", type=int, default=60, help="texts of each group in each set")
    asked = parser.parse_args()
    model = cp.load("embedded")
    dictionaries = load_dictionaries(model, asked.dictionaries)
    texts = [text.replace(MARK, "") for text in islice(documents("cards 0"), 400)]
    methods, features = [], []
    for cue in CUES:
        splits = biographies(n=asked.n, cue=cue)
        found = probe_circuit(model, dictionaries, splits, SETTINGS, card_texts=texts)
        judges = {"tokens": TokenList.of(splits.cues), "probe": probe_judge(found), "oracle": oracle_judge(found)}
        for name, judge in judges.items():
            result = shift(found, judge)
            methods.append(result.frame().assign(cue=cue, judge=name))
            rows = [{"cue": cue, "judge": name, **vars(feature)} for feature in result.features]
            features.append(pd.DataFrame(rows).drop(columns=["reason", "low", "high"]))
            print(cue, name, flush=True)
            print(methods[-1][["method", "ablated", "label", "spurious", "worst", "p_holm"]].round(3), flush=True)
            pd.concat(methods).round(4).to_csv(HERE / "methods.csv", index=False)
            pd.concat(features).round(4).to_csv(HERE / "features.csv", index=False)


if __name__ == "__main__":
    main()
