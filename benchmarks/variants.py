"""Every way of training a dictionary, on the same activations of the embedded model: what comes out, by seed.

python -m benchmarks.variants                                   # the table of docs/dictionaries.md
python -m benchmarks.variants --steps 1000 --seeds 0 --only Matryoshka JumpReLU
"""

from __future__ import annotations

import argparse
import time

import crosspatch as cp
from crosspatch.dictionaries import measure
from crosspatch.dictionaries.text import EMBEDDED, read_text
from crosspatch.dictionaries.train import (
    Activations,
    BatchTopK,
    Gated,
    Job,
    JumpReLU,
    Matryoshka,
    PAnneal,
    Settings,
    Standard,
    TopK,
    train,
)
from crosspatch.dictionaries.train.coder import Variant

VARIANTS: dict[str, Variant] = {
    "TopK": TopK(k=32),
    "BatchTopK": BatchTopK(k=32),
    "Matryoshka": Matryoshka(k=32),
    "Standard": Standard(l1=0.1),
    "Gated": Gated(l1=0.2),
    "PAnneal": PAnneal(l1=0.1),
    "JumpReLU": JumpReLU(target_l0=32),
}
PLACE, WIDTH, LR, BATCH, BUFFER, HELD_OUT = "r1.post", 1024, 3e-3, 512, 2**15, 10_000


def table(names: list[str], seeds: list[int], steps: int) -> None:
    """Train and measure, and print a row for each."""
    model = cp.load(EMBEDDED)
    text = read_text(model.tokenizer, EMBEDDED, tokens=steps * BATCH + BUFFER, held_out=HELD_OUT)
    print("| variant | seed | L0 | FVU | loss recovered | silent on held-out text |\n|---|---|---|---|---|---|")
    for seed in seeds:
        start = time.perf_counter()
        settings = Settings(
            steps=steps, batch=BATCH, lr_warmup=30, sparsity_warmup=60, dead_after=15_000, resample_every=60, seed=seed
        )
        jobs = [Job(VARIANTS[name], PLACE, WIDTH, lr=LR) for name in names]
        for name, made in zip(names, train(Activations(model, text.train, buffer=BUFFER), jobs, settings), strict=True):
            found = measure(model, made, text.held_out)
            numbers = (
                f"{found.l0.value:.1f} | {found.fvu.value:.4f} | {found.loss_recovered.value:.4f} | {found.dead:.3f}"
            )
            print(f"| {name} | {seed} | {numbers} |", flush=True)
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants (default: all)")
    given = parser.parse_args()
    table(given.only, given.seeds, given.steps)
