"""Subject-verb agreement in four variants: features against neurons, with and without error terms, on held-out nouns.

    python studies/agreement/run.py            # the embedded model with its own dictionaries

Pairs are split by noun: no noun of a pair that is judged on occurs in a pair that was searched on. Writes
`embedded.json`, `curves.csv`, one figure a variant, and the tables of `README.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from readme import TURNED, write_tables

import crosspatch as cp
from crosspatch.attribution import Setup, setup_of
from crosspatch.dictionaries import shipped
from crosspatch.embedded.corpus import LEMMA
from crosspatch.features import (
    NodeSet,
    all_edges,
    bases_of,
    evaluate_edges,
    evaluate_nodes,
    feature_edges,
    feature_effects,
    replacement,
    templatic,
)
from crosspatch.features.curve import Curve
from crosspatch.features.curves import Baseline, baseline_places, growing
from crosspatch.features.nodes import Errors
from crosspatch.report.features_curves import curve_rows, curves_chart
from crosspatch.tasks.pairs import Pair, Task
from crosspatch.tasks.public import find_data, load_public

HERE = Path(__file__).parent
SEED = 0
VARIANTS = {"simple": 140, "nounpp": 240, "within-rc": 240, "rc": 240}
"""Pairs that are made of each; all that there are of the first."""
MOST = 40
"""Pairs at most to search on, and to judge on."""
START_BLOCK = 1
"""The first third of the layers is left to the model, as in the paper."""
SIZES = (2, 5, 10, 20, 50, 100, 200, 500)
POLICIES: tuple[Errors, ...] = ("nodes", "stream kept", "removed")
BASELINES: tuple[Baseline, ...] = ("outputs", "hidden", "hidden and attention")
OVERLAP = 100
"""Nodes of circuits that are compared."""
PUBLIC = {
    "simple": ("simple_train", "simple_test"),
    "nounpp": ("nounpp_train", "nounpp_test"),
    "within-rc": ("within_rc_train", "within_rc_test"),
    "rc": ("rc_generated_train", "rc_generated_test"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--random", type=int, default=2, help="random sets of every size, for the lines of the figures")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    model, dictionaries = cp.load("embedded"), shipped()
    bases = bases_of(model, dictionaries)
    found: dict[str, Any] = {"settings": settings(args.random, dictionaries), "variants": {}}
    tables, circuits = [], {}
    for name, n in VARIANTS.items():
        task = cp.make_task(f"agreement-{name}", n=n, seed=SEED, tokenizer=model.tokenizer)
        whole, search, judged = by_noun(model, task.pairs, name)
        curves = lines(whole, search, judged, bases, args.random)
        curves_chart(chosen_lines(curves)).save(args.out / f"{name}.svg")
        tables.append(pd.concat([told(curve) for curve in curves]).assign(variant=name))
        effects = feature_effects(search, bases, "paired", method="ig")
        circuits[name] = effects.top(OVERLAP)
        found["variants"][name] = {
            "pairs": {"searched": len(search), "judged": len(judged)},
            "lines": {curve.name: summary(curve) for curve in curves},
            "edges": edges(search, judged, whole, bases, circuits[name].at(late(bases)), args.random),
        }
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    control = setup_of(model, cp.make_task("pronoun", n=MOST, seed=SEED, tokenizer=model.tokenizer))
    circuits["pronoun (control)"] = feature_effects(control, bases, "paired", method="ig").top(OVERLAP)
    found["overlap"] = overlap(circuits)
    found["public"] = {name: public(model, bases, sets, circuits[name]) for name, sets in PUBLIC.items()}
    pd.concat(tables).to_csv(args.out / "curves.csv", index=False, float_format="%.5g")
    (args.out / "embedded.json").write_text(json.dumps(found, indent=1) + "\n")
    write_tables(args.out / "README.md", found)
    print(f"{time.perf_counter() - start:.0f} s: see {args.out / 'README.md'}")


def settings(n_random: int, dictionaries: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": "embedded", "seed": SEED, "start_block": START_BLOCK, "compared": OVERLAP,
        "replacement": "mean by position",
        "ranked by": "integrated gradients, 10 steps, midpoint; paired replacement", "random sets": n_random,
        "dictionaries": {place: d.architecture for place, d in dictionaries.items()},
        "width": next(iter(dictionaries.values())).width,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ pairs


def nouns_of(pair: Pair) -> set[str]:
    return {LEMMA[word] for word in re.findall(r"[A-Za-z]+", pair.clean) if word in LEMMA}


def by_noun(model: cp.Model, pairs: Sequence[Pair], name: str) -> tuple[Setup, Setup, Setup]:
    """(all, to search on, to judge on): the nouns are divided in two, and pairs with nouns of both halves left out."""
    different = list({(pair.clean, pair.corrupt): pair for pair in pairs}.values())
    nouns = np.random.default_rng(SEED).permutation(sorted(set().union(*map(nouns_of, different)))).tolist()
    seen = set(nouns[: len(nouns) // 2])
    searched = [pair for pair in different if nouns_of(pair) <= seen][:MOST]
    judged = [pair for pair in different if not nouns_of(pair) & seen][:MOST]
    task = Task(f"agreement-{name}", (*searched, *judged), "", "the number of the subject", "every other word", "")
    whole, _ = templatic(setup_of(model, task))
    # Means are taken by position over all prompts of a variant, as in the paper; intervals then resample pairs.
    whole = dataclasses.replace(whole, clusters=[name] * len(task))
    return whole, whole.select(range(len(searched))), whole.select(range(len(searched), len(task)))


# ------------------------------------------------------------------------------------------------ curves


def lines(whole: Setup, search: Setup, judged: Setup, bases: Any, n_random: int) -> list[Curve]:
    """Features under every policy for error terms, and neurons; a node is a feature at one position."""
    spans = tuple(name for name in whole.spans[0] if re.fullmatch(r"t\d+", name))
    about: dict[str, Any] = {"start_block": START_BLOCK, "held_out": 0, "seed": SEED}
    found = []
    for kind, some, drawn in (("features", bases, n_random), (TURNED, turned(bases), 0)):
        table = replacement(whole, some, "mean")
        effects = feature_effects(search, some, "paired", method="ig", spans=spans)
        sets, active = growing(effects, SIZES, START_BLOCK)
        for policy in POLICIES if some is bases else POLICIES[:1]:
            result = evaluate_nodes(
                judged, some, sets, table, errors=policy, population=active, n_random=drawn, **about
            )
            found.append(Curve(kind, "ig", policy, result))
    for baseline in BASELINES:
        own = bases_of(whole.model, neurons=baseline_places(whole.model, bases, baseline))
        table = replacement(whole, own, "mean")
        for method in ("ig", "relp"):
            effects = feature_effects(search, own, "paired", method=method, spans=spans)
            sets, active = growing(effects, SIZES, START_BLOCK)
            drawn = n_random if method == "ig" else 0
            result = evaluate_nodes(judged, own, sets, table, population=active, n_random=drawn, **about)
            found.append(Curve(f"neurons, {baseline}", method, "", result))
    return found


def turned(bases: Any) -> Any:
    """The dictionaries with all directions of a place turned by one random rotation: as many features that are as
    unlike one another, of nothing in particular."""
    g, made = torch.Generator().manual_seed(SEED), []
    for basis in bases:
        d = basis.dictionary
        q = torch.linalg.qr(torch.randn(d.d_in, d.d_in, generator=g))[0]
        # The mean activation stays where it was, so that about as many features are active.
        encoder, decoder = d.encoder @ q, d.decoder @ q
        middle = d.decoder_bias if d.input_bias is None else torch.zeros_like(d.decoder_bias)
        bias = d.encoder_bias + (d.encoder - encoder) @ middle
        made.append(
            dataclasses.replace(
                basis, dictionary=dataclasses.replace(d, encoder=encoder, decoder=decoder, encoder_bias=bias)
            )
        )
    return tuple(made)


def chosen_lines(curves: Sequence[Curve]) -> list[Curve]:
    """Those of the figure; the table has all."""
    return [curve for curve in curves if curve.method == "ig" and curve.kind != TURNED]


def told(curve: Curve) -> pd.DataFrame:
    rows = pd.DataFrame(curve_rows(curve))
    return rows.assign(line=curve.name)


def summary(curve: Curve) -> dict[str, Any]:
    """Nodes for half and for nine tenths of the gap, and shares at 50 and 200 nodes."""
    table = told(curve)
    by_size = {size: table[table["set"] == f"top {size}"] for size in SIZES}

    def first(share: float) -> int | None:
        reached = table[table["faithfulness"] >= share]
        return None if reached.empty else int(reached["nodes"].iloc[0])

    shares = {
        str(size): {name: rounded(rows[name].iloc[0]) for name in KEPT}
        for size, rows in by_size.items() if size in (50, 200) and len(rows)
    }  # fmt: skip
    return {
        "half at": first(0.5), "nine tenths at": first(0.9), "shares": shares, "largest": int(table["nodes"].max()),
        "m_model": round(float(table["m_model"].iloc[0]), 3), "m_empty": round(float(table["m_empty"].iloc[0]), 3),
    }  # fmt: skip


def rounded(value: float) -> float | None:
    """Three digits; nothing where it was not measured."""
    return None if math.isnan(value) else round(float(value), 3)


KEPT = (
    "faithfulness", "faithfulness_low", "faithfulness_high", "random_faithfulness_low", "random_faithfulness_high",
    "completeness", "random_completeness_low", "random_completeness_high",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ edges and overlap


def late(bases: Any) -> list[str]:
    return [basis.place for basis in bases if basis.block >= START_BLOCK]


def edges(search: Setup, judged: Setup, whole: Setup, bases: Any, nodes: NodeSet, n_random: int) -> dict[str, Any]:
    """How many of the edges between the nodes of a circuit are needed, exactly; nodes are features at all tokens."""
    used = tuple(basis for basis in bases if basis.block >= START_BLOCK)
    scores = feature_edges(search, used, nodes, "paired", method="ig")
    every = all_edges(whole.model.shape, used, nodes)
    sizes = [int(share * len(every)) for share in (0.02, 0.05, 0.1, 0.3)]
    table = evaluate_edges(
        judged, used, nodes, [*(scores.top(n) for n in sizes), every], replacement(whole, used, "mean"),
        start_block=START_BLOCK, held_out=0, n_random=n_random, seed=SEED,
    ).frame  # fmt: skip
    keys = ("edges", "faithfulness", "random_faithfulness_low", "random_faithfulness_high", "completeness")
    rows = [{key: rounded(row[key]) for key in keys} for row in table.to_dict("records")]
    return {"nodes": len(nodes), "sets": rows}


def overlap(circuits: dict[str, NodeSet]) -> dict[str, dict[str, float]]:
    """The share of one circuit's features (error terms left out) that are in the other."""
    features = {
        name: {(node.place, node.feature) for node in nodes if node.feature is not None}
        for name, nodes in circuits.items()
    }
    return {a: {b: round(len(x & y) / len(x), 3) for b, y in features.items()} for a, x in features.items()}


def public(model: cp.Model, bases: Any, names: Sequence[str], circuit: NodeSet) -> dict[str, Any] | str:
    """The published pairs that the model's vocabulary has room for: what the model does on them, and what the circuit
    found on the generator's pairs keeps of it."""
    if find_data() is None:
        return "no folder of public data"
    pairs: dict[tuple[str, str], Pair] = {}
    rows = 0
    for name in names:
        task = load_public(f"agreement/{name}")
        rows += len(task)
        for pair in task.pairs:
            if (fitting := in_vocabulary(model, pair)) is not None:
                pairs.setdefault((pair.clean, pair.corrupt), fitting)
    if len(pairs) < 8:
        return f"{len(pairs)} of {rows} pairs fit the vocabulary"
    about = Task("agreement-published", tuple(pairs.values()), "", "the number of the subject", "every other word", "")
    setup = setup_of(model, about.sample(min(len(about), 2 * MOST), SEED))
    setup = dataclasses.replace(setup, clusters=["published"] * len(setup))  # one mean by position, as above
    clean = setup.measure(setup.record_clean().hidden)
    table = evaluate_nodes(setup, bases, [circuit], "mean", start_block=START_BLOCK, held_out=0).frame
    return {
        "pairs": rows, "different and in the vocabulary": len(pairs), "used": len(setup),
        "right": round(float((clean > 0).double().mean()), 3), "logit difference": round(float(clean.mean()), 3),
        "faithfulness of the generator's circuit": round(float(table["faithfulness"][0]), 3),
    }  # fmt: skip


def in_vocabulary(model: cp.Model, pair: Pair) -> Pair | None:
    """The pair with the verbs that are one token each; None where a word of the prompts is several."""

    def one(word: str) -> bool:
        return len(model.tokenizer(word, add_special_tokens=False).input_ids) == 1

    words = [f" {word}" for text in (pair.clean, pair.corrupt) for word in text.split()[1:]]
    answers, wrong = (tuple(filter(one, some)) for some in (pair.answers, pair.wrong))
    if not answers or not wrong or not all(map(one, words)):
        return None
    return dataclasses.replace(pair, answers=answers, wrong=wrong)


if __name__ == "__main__":
    main()
