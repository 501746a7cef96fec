"""The agreement circuits of Marks et al. 2025 (arXiv 2403.19647) on Pythia-70M. Not run here: needs its weights.

    python studies/published-dictionaries/pythia_70m.py DICTIONARIES DATA [--model FOLDER]

DICTIONARIES is `dictionaries/pythia-70m-deduped` of the authors' archive: 19 dictionaries of 32,768 features
(`embed/10_32768/ae.pt`, `attn_out_layer0/10_32768/ae.pt`, ...). DATA is the folder `data` of
saprmarks/feature-circuits. Prints every number beside the reported one. Differences to expect: repeated rows are
dropped and no test pair is a training pair (the authors' files overlap), and integrals are taken at midpoints.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from agreement import Replication, Reported, replicate, write
from biographies import Table2, debias

import crosspatch as cp
from crosspatch.dictionaries import Dictionary, load_dictionary

ID = "10_32768"
PLAN = Replication(
    circuits={
        "rc": Reported(0.1, 0.01, nodes=86, faithfulness=0.21),
        "nounpp": Reported(0.1, 0.01),
        "simple": Reported(0.2, 0.02),
        "within_rc": Reported(0.2, 0.02),
    },
    start_block=2,
    feature_nodes=100,
    neuron_nodes=1500,
)

BIOS = Table2(
    layer=4,
    threshold=0.1,
    features=67,
    ablated=55,
    reported={
        "Original": (61.9, 87.4, 24.4),
        "CBP": (83.3, 60.1, 67.7),
        "Random": (61.8, 87.5, 24.4),
        "SHIFT": (88.5, 54.0, 76.0),
        "SHIFT + retrain": (93.1, 52.0, 89.0),
        "Neuron skyline": (75.5, 73.2, 41.5),
        "Feature skyline": (88.5, 54.3, 62.9),
        "Oracle": (93.0, 49.4, 91.9),
    },
)


def dictionaries_in(folder: Path, n_layers: int) -> list[Dictionary]:
    """The authors' dictionaries, with decoder rows of length 1."""
    names = {"embed": "input"}
    for layer in range(n_layers):
        names |= {f"attn_out_layer{layer}": f"a{layer}", f"mlp_out_layer{layer}": f"m{layer}"}
        names[f"resid_out_layer{layer}"] = f"r{layer}.post"
    paths = {folder / name / ID: place for name, place in names.items()}
    return [load_dictionary(path, "dictionary_learning", reads=place).fold() for path, place in paths.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dictionaries", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="EleutherAI/pythia-70m-deduped")
    parser.add_argument("--biographies", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help="JSONL of Bias in Bios")
    parser.add_argument("--answers", type=Path, help="verdicts of a person on the features of the classifier")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    args = parser.parse_args()
    model = cp.load(args.model)
    dictionaries = dictionaries_in(args.dictionaries, model.shape.n_layers)
    found: dict[str, Any] = replicate(model, dictionaries, args.data, PLAN)
    if args.biographies:
        found["shift"] = debias(model, dictionaries, tuple(args.biographies), BIOS, args.answers)
    write(args.out, found)


if __name__ == "__main__":
    main()
