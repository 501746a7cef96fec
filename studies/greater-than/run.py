"""One behaviour, three ways to ask which parts matter: how concentrated is each map?

    python studies/greater-than/run.py                 # the embedded model; under a minute on two CPU cores
    python studies/greater-than/run.py --model gpt2    # where those weights can be had

An independent reconstruction of the comparison in Goldowsky-Dill et al. 2023 (arXiv 2304.05969), case study 2: other
prompts, another model, the same question. All maps hold the heads and MLPs of the model, at the end of the prompt and
at the year, on the same pairs:

- path patching: straight from the part into the logits, the counterfactual year's value (MLPs on the way frozen);
- the same, all paths through the part (exact activation patching of the paired prompt);
- noise tracing: Gaussian noise on the year's embedding, the part restored (3 standard deviations of the embeddings);
- zero ablation of the part.

What a part writes at the year cannot go straight to the logits, which are read at the end: the direct map has the parts
at the end only. So the other maps are also summarised for those parts alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

import crosspatch as cp
from crosspatch.patching import GaussianNoise, Zero, causal_trace
from crosspatch.paths import path_patch, task_pairs
from crosspatch.results import statistics

HERE = Path(__file__).parent
SEED, PAIRS, TOP = 0, 48, 3
POSITIONS = ("END", "YY")


def concentration(effects: np.ndarray) -> dict[str, np.ndarray]:
    """Of maps `[draw, part]`: effective number of parts (sum |e|)^2 / sum e^2, and the mass in the strongest few."""
    size = np.abs(effects)
    total = size.sum(axis=1)
    return {
        "effective parts": total**2 / (size**2).sum(axis=1),
        f"mass in the top {TOP}": np.sort(size, axis=1)[:, -TOP:].sum(axis=1) / total,
    }


def summarise(name: str, parts: list[str], effect: np.ndarray, clusters: list[str]) -> dict[str, object]:
    """Concentration of the mean map with bootstrap intervals; `effect [part, pair]`."""
    sampler = statistics.resampler(effect.shape[1], clusters, seed=SEED)
    weights = sampler.weights / sampler.weights.sum(axis=1, keepdims=True)
    drawn = concentration(weights @ effect.T)
    mean = effect.mean(axis=1)
    row: dict[str, object] = {"map": name, "parts": len(parts)}
    for measure, value in concentration(mean[None]).items():
        low, high = np.quantile(drawn[measure], (0.025, 0.975))
        row |= {measure: value[0], f"{measure} low": low, f"{measure} high": high}
    order = np.argsort(-np.abs(mean))[:TOP]
    return row | {"strongest": ", ".join(f"{parts[i]} {mean[i]:+.2f}" for i in order)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    name = parser.parse_args().model
    model = cp.load(name)
    task = cp.make_task("greater-than", n=PAIRS, seed=SEED, tokenizer=model.tokenizer)
    tokenized = task.tokenize(model.tokenizer)
    spans = [span for span in POSITIONS if span in tokenized.span_names()]
    sites = ", ".join(f"a*.h*@{span}, m*@{span}" for span in spans)
    clusters = tokenized.clusters
    rows, maps = [], {}
    direct = path_patch(model, task_pairs(tokenized), sites, "logits", mlps="frozen", seed=SEED)
    maps["path patching, straight to the logits"] = (direct.senders, direct.effect)
    for label, result, sign in (
        ("activation patching, all paths", cp.patch(model, task, sites, direction="noise", random_control=False), -1),
        ("zero ablation", cp.patch(model, task, sites, source=Zero(), random_control=False, force=True), -1),
        (
            "noise tracing",
            causal_trace(
                model,
                task,
                sites,
                at="YY",
                noise=GaussianNoise(seed=SEED),
                metrics="logit_diff",
                random_control=False,
                force=True,
            ),
            1,
        ),
    ):
        values = result.denoise if sign > 0 else result.noise
        base = result.corrupt if sign > 0 else result.clean
        maps[label] = (result.rows["address"].tolist(), sign * (values["logit_diff"] - base["logit_diff"]))
    at_end = "at the end only"
    for label, (parts, effect) in maps.items():
        values = np.asarray(effect)
        rows.append(summarise(label, parts, values, clusters))
        those = [i for i, part in enumerate(parts) if part.endswith("@END")]
        if len(those) < len(parts):
            rows.append(summarise(f"{label}, {at_end}", [parts[i] for i in those], values[those], clusters))
    table = pd.DataFrame(rows)
    table.to_csv(HERE / f"concentration-{name}.csv", index=False, float_format="%.3f")
    print(table.to_string(index=False, float_format=lambda x: f"{x:.2f}"))
    about = {"model": name, "pairs": PAIRS, "seed": SEED, "task_hash": task.hash, "positions": spans}
    (HERE / f"about-{name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
