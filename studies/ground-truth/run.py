"""Every way to find edges, against transformers compiled from known programs (Tracr).

    python studies/ground-truth/run.py ../shared/ground-truth     # about ten minutes on a busy machine

For each program, ablation and method: AUROC of the mean absolute score against the edges whose cut alone changes an
output, and the precision and recall of the circuit of exactly as many edges. Rows are single positions of single
examples (`circuits.known.program_setup`); of the largest program every fourth row is used, and its all-edges exact
sweep is the slowest step. Writes methods.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from crosspatch.attribution import Setup, attribute
from crosspatch.circuits import auroc
from crosspatch.circuits.acdc import acdc
from crosspatch.circuits.known import distance_setup, needed_edges, program_setup
from crosspatch.compiled import load_compiled, read_known_circuit
from crosspatch.graph import edge_table

HERE = Path(__file__).parent
PROGRAMS = ("reverse", "xproportion", "histogram", "shuffle-dyck2")
ABLATIONS = ("paired", "mean", "zero")
LARGE = "shuffle-dyck2"


def size_of(method: str, steps: int) -> Callable[[Setup, str], np.ndarray]:
    """Mean absolute score of every edge."""

    def run(setup: Setup, ablation: str) -> np.ndarray:
        return np.abs(attribute(setup, method, ablation=ablation, steps=steps).per_example).mean(0)

    return run


def removal(setup: Setup, ablation: str, model: Any, known: Any) -> np.ndarray:
    """ACDC by the distance of all outputs, at a threshold that only edges without effect stay under: 1 = kept."""
    chosen = distance_setup(model, known)
    chosen = chosen.select(range(0, len(chosen), 4)) if known.program.name == LARGE else chosen
    return edge_table(model.shape).flat(acdc(chosen, 1e-4, ablation).keep).astype(float)


METHODS: dict[str, Callable[[Setup, str], np.ndarray]] = {
    "eap": size_of("eap", 1),
    "eap-ig, 5 steps": size_of("eap-ig", 5),
    "eap-ig, 20 steps": size_of("eap-ig", 20),
    "relp": size_of("relp", 1),
    "exact": size_of("exact", 1),
}


def row_of(program: str, ablation: str, method: str, scores: np.ndarray, truth: np.ndarray) -> dict[str, object]:
    n = int(truth.sum())
    chosen = np.argsort(-scores, kind="stable")[:n]
    chosen = chosen[scores[chosen] > 0]
    hits = int(truth[chosen].sum())
    return {
        "program": program, "ablation": ablation, "method": method, "edges": len(truth), "needed": n,
        "AUROC": auroc(scores, truth), "precision": hits / max(1, len(chosen)), "recall": hits / n,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for program in PROGRAMS:
        model, known = load_compiled(args.folder / program), read_known_circuit(args.folder / program)
        for ablation in ABLATIONS:
            setup = program_setup(model, known, (1, 7, 23) if ablation == "paired" and program != LARGE else (1,))
            setup = setup.select(range(0, len(setup), 4)) if program == LARGE else setup
            truth = needed_edges(known, ablation)
            others: dict[str, Callable[[Setup, str], np.ndarray]] = {
                "ACDC": lambda setup, ablation, m=model, k=known: removal(setup, ablation, m, k),
                "random": lambda setup, _, like=truth: np.random.default_rng(0).random(len(like)),
            }
            for name, method in {**METHODS, **others}.items():
                rows.append(row_of(program, ablation, name, method(setup, ablation), truth))
                print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(HERE / "methods.csv", index=False, float_format="%.4f")
    print(frame.pivot_table(index="method", columns=["program", "ablation"], values="AUROC").round(3).to_string())


if __name__ == "__main__":
    main()
