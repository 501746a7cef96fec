"""The agreement circuits of Marks et al. 2025 (arXiv 2403.19647) on Gemma-2-2B. Not run here: needs its weights.

    python studies/published-dictionaries/gemma_2_2b.py SCOPE DATA [--model FOLDER]

SCOPE holds `gemma-scope-2b-pt-att`, `-mlp` and `-res` as on the hub (`layer_0/width_16k/average_l0_105/params.npz`,
...). Of each site the dictionary whose mean L0 is nearest to 100 is taken, as in the paper: 78 dictionaries of 16,384
features on concatenated heads, MLP outputs after their norm, and block outputs; none on the embedding. DATA is the
folder `data` of saprmarks/feature-circuits. Prints every number beside the reported one. The dictionaries take 12 GB in
bfloat16, the precision of the paper; `--device cuda` needs a GPU of 24 GB or more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from agreement import Replication, Reported, nearest_l0, replicate, write
from biographies import Table2, debias

import crosspatch as cp
from crosspatch.dictionaries import Dictionary, load_dictionary

FOLDERS = {"att": "a{}.z", "mlp": "m{}", "res": "r{}.post"}
PLAN = Replication(
    circuits={
        "rc": Reported(0.073, 0.007, nodes=223, faithfulness=0.21),
        "nounpp": Reported(0.5, 0.05, start_block=13),
        "simple": Reported(0.5, 0.05),
        "within_rc": Reported(0.5, 0.05),
    },
    start_block=8,
    feature_nodes=500,
    neuron_nodes=50_000,
)

BIOS = Table2(
    layer=22,
    threshold=6.0,
    features=46,
    ablated=43,
    reported={
        "Original": (67.7, 81.9, 18.2),
        "CBP": (90.2, 50.1, 86.7),
        "Random": (67.3, 82.3, 18.0),
        "SHIFT": (76.0, 51.5, 50.0),
        "SHIFT + retrain": (95.0, 52.4, 92.9),
        "Neuron skyline": (65.1, 84.3, 5.6),
        "Feature skyline": (80.8, 53.7, 56.7),
        "Oracle": (95.0, 50.6, 93.1),
    },
)


def dictionaries_in(
    folder: Path, n_layers: int, width: str = "16k", dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Dictionary]:
    """Of every site the dictionary of mean L0 nearest to 100, with decoder rows of length 1."""
    found = []
    for layer in range(n_layers):
        for site, place in FOLDERS.items():
            path = nearest_l0(folder / f"gemma-scope-2b-pt-{site}" / f"layer_{layer}" / f"width_{width}")
            made = load_dictionary(path, "gemma_scope", reads=place.format(layer), dtype=dtype, device=device)
            found.append(made.fold())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scope", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="google/gemma-2-2b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--biographies", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help="JSONL of Bias in Bios")
    parser.add_argument("--answers", type=Path, help="verdicts of a person on the features of the classifier")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    args = parser.parse_args()
    model = cp.load(args.model, dtype=torch.bfloat16, device=args.device, attn_implementation="eager")
    dictionaries = dictionaries_in(args.scope, model.shape.n_layers, dtype=torch.bfloat16, device=args.device)
    found: dict[str, Any] = replicate(model, dictionaries, args.data, PLAN)
    if args.biographies:
        found["shift"] = debias(model, dictionaries, tuple(args.biographies), BIOS, args.answers)
    write(args.out, found)


if __name__ == "__main__":
    main()
