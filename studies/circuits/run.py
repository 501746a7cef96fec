"""Indirect objects: find circuits in several ways, check the rankings exactly, judge every circuit on held-out pairs.

    python studies/circuits/run.py                          # the embedded model
    python studies/circuits/run.py --model smollm2-135m     # after `crosspatch models fetch smollm2-135m`

Every step states its seconds and the most memory that the process held up to its end. Writes one JSON file, one CSV
of methods and one of the frontier for each model.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

import crosspatch as cp
from crosspatch.attribution import attribute, setup_of, verify
from crosspatch.circuits import evaluate, frontier_of_scores, iou, select, stability
from crosspatch.circuits.acdc import acdc
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.learn import learn_mask

HERE = Path(__file__).parent
SEED, HELD_OUT = 0, 0.5
T = TypeVar("T")
PLANS: dict[str, dict[str, Any]] = {
    "embedded": {"pairs": 64, "size": 40, "scores": ("eap", "eap-ig", "relp", "exact"), "acdc": True, "mask": True,
                 "random": 50, "verify": (60, 60), "resamples": 30, "nulls": 39},
    "smollm2-135m": {"pairs": 32, "size": 400, "scores": ("eap", "eap-ig", "relp"), "acdc": False, "mask": False,
                     "random": 20, "verify": (60, 60), "resamples": 20, "nulls": 19},
}  # fmt: skip
"""What each model is given: dear searches only where they are affordable."""


class Clock:
    """Seconds and memory of steps."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def __call__(self, step: str, run: Callable[[], T]) -> T:
        start = time.perf_counter()
        value = run()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.rows.append({"step": step, "seconds": round(seconds, 1), "peak_mib": round(peak)})
        print(f"{step:42} {seconds:7.1f} s   {peak:6.0f} MiB", flush=True)
        return value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="embedded", choices=list(PLANS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan, clock = PLANS[args.model], Clock()
    model = clock("load", lambda: cp.load(args.model))
    task = cp.make_task("ioi", n=plan["pairs"], seed=SEED, tokenizer=model.tokenizer)
    setup = setup_of(model, task)
    search, _ = setup.split(HELD_OUT, SEED)
    shape, size = model.shape, plan["size"]

    scores = {}
    for method in plan["scores"]:
        scores[method] = clock(f"score every edge: {method}", lambda m=method: attribute(search, m))
    table = scores["eap"].shape
    origin = {"task": task.name, "pairs": search.digests}
    circuits: dict[str, Circuit] = {}
    for method, found in scores.items():
        about = {**origin, **found.origin}
        circuits[method] = select.path_aware(found.mean, shape, size, absolute=True, origin=about).with_(name=method)
    if plan["acdc"]:
        gap = abs(scores["eap"].gap)
        pruned = clock("search: ACDC", lambda: acdc(search, 0.005 * gap))
        circuits["acdc"] = Circuit(shape, pruned.keep, name="acdc", origin={**origin, "method": "acdc"}).pruned()
    if plan["mask"]:
        learned = clock("search: edge pruning", lambda: learn_mask(search, size / len(scores["eap"].parts), seed=SEED))
        circuits["edge-pruning"] = select.path_aware(
            learned.keep, shape, size, origin={**origin, "method": "edge-pruning"}
        ).with_(name="edge-pruning")

    checked = {}
    for method in scores:
        if method != "exact":
            checked[method] = clock(
                f"verify: {method}", lambda m=method: verify(search, scores[m], *plan["verify"], seed=SEED)
            )
    judged = clock(
        "evaluate every circuit on held-out pairs",
        lambda: evaluate(setup, list(circuits.values()), held_out=HELD_OUT, seed=SEED, n_random=plan["random"]),
    )
    curves = {
        method: clock(
            f"frontier: {method}",
            lambda m=method: frontier_of_scores(
                setup,
                scores[m].mean,
                absolute=True,
                origin=origin,
                held_out=HELD_OUT,
                seed=SEED,
                n_random=3 if args.model == "smollm2-135m" else 10,
            ),
        )
        for method in ("eap", "eap-ig")
    }
    steady = {
        method: clock(
            f"stability: {method}",
            lambda m=method: stability(
                scores[m].per_example,
                lambda mean: select.path_aware(mean, shape, size, absolute=True),
                shape,
                clusters=search.clusters,
                n_boot=plan["resamples"],
                n_null=plan["nulls"],
                seed=SEED,
            ),
        )
        for method in ("eap", "eap-ig")
    }
    write(args.out, args.model, clock, judged, checked, curves, steady, circuits, table)


def write(
    out: Path,
    name: str,
    clock: Clock,
    judged: Any,
    checked: dict[str, Any],
    curves: dict[str, Any],
    steady: dict[str, Any],
    circuits: dict[str, Circuit],
    shape: Any,
) -> None:
    frame = judged.frame
    frame.to_csv(out / f"{name}-methods.csv", index=False)
    pd.concat([curve.frame.assign(method=m) for m, curve in curves.items()]).to_csv(
        out / f"{name}-frontier.csv", index=False
    )
    names = list(circuits)
    overlap = {a: {b: round(iou(circuits[a], circuits[b]), 3) for b in names} for a in names}
    summary = {
        "model": name,
        "edges": len(circuits[names[0]].table),
        "sizes": {method: circuit.n_edges for method, circuit in circuits.items()},
        "verdict": judged.summary(),
        "verified": {method: one.summary() for method, one in checked.items()},
        "areas": {method: curve.areas.to_dict("records") for method, curve in curves.items()},
        "stability": {method: str(one) for method, one in steady.items()},
        "iou": overlap,
        "steps": clock.rows,
    }
    (out / f"{name}.json").write_text(json.dumps(summary, indent=1, default=_plain) + "\n")
    print(judged)
    for one in checked.values():
        print(one.describe())
    for method, curve in curves.items():
        print(method, curve)
    for method, one in steady.items():
        print(method, one)
    print(pd.DataFrame(overlap).to_string())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(type(value).__name__)


if __name__ == "__main__":
    main()
