"""Induction by path patching: the two-layer model that ships with the package, then SmolLM2-135M.

    python studies/induction/run.py small      # about 10 minutes on two CPU cores
    python studies/induction/run.py apart      # a control of it: counterfactuals that V, Q and K do not share
    python studies/induction/run.py smollm2    # needs: crosspatch models fetch smollm2-135m

Hypotheses follow Goldowsky-Dill et al. 2023 (arXiv 2304.05969), case study 1, on another model: heads are found by
sweeps, not named. Tables are written next to this file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

import crosspatch as cp
from crosspatch.paths import (
    Pairs,
    PathSet,
    attribute,
    decohere,
    everything,
    fixed_reference,
    path_patch,
    paths,
    task_pairs,
    test_paths,
    text_pairs,
    union,
    via,
)
from crosspatch.paths.refine import refine

HERE = Path(__file__).parent
SEED, PAIRS, ROWS = 0, 64, 256
COMMON = 60
"""Words outside this many most frequent ones count as uncommon (the study took 200 of 50,259)."""


# -- the small model --------------------------------------------------------------------------------------------


def held_out_rows(model: cp.Model) -> np.ndarray:
    """Rows of held-out text, names that no training row has."""
    from crosspatch.shortformer.corpus import rows

    return np.array(rows(model.tokenizer, ROWS, seed=20_001, held_out=True))


def masks(rows: np.ndarray, pairs: Pairs) -> dict[str, list[list[bool]]]:
    """Which reads count, as in the original study; `candidates` are learnt on the rows that are not references."""
    frequent = set(np.argsort(-np.bincount(rows.flatten()))[:COMMON].tolist())
    right: dict[int, list[bool]] = defaultdict(list)
    used = {tuple(row) for row in pairs.reference}
    for row in rows.tolist():
        if tuple(row[:-1]) in used:
            continue
        follower: dict[int, int] = {}
        for a, b in pairwise(row):
            if a in follower:
                right[a].append(follower[a] == b)
            follower[a] = b
    candidates = {token for token, hits in right.items() if len(hits) >= 3 and np.mean(hits) > 0.5}
    found: dict[str, list[list[bool]]] = defaultdict(list)
    for inputs, targets in zip(pairs.reference, pairs.targets, strict=True):
        marks: dict[str, list[bool]] = defaultdict(list)
        seen: set[int] = set()
        bigrams: dict[int, set[int]] = defaultdict(set)
        for token, target in zip(inputs, targets, strict=True):
            before = token in seen
            seen.add(token)
            repeat, uncommon = target in seen, target not in frequent
            again = target in bigrams[token]
            marks["overall"].append(True)
            marks["candidates"].append(token in candidates)
            marks["later candidates"].append(token in candidates and before)
            marks["uncommon repeats"].append(repeat and uncommon)
            marks["candidate ERB"].append(token in candidates and again)
            marks["NERB uncommon repeats"].append(repeat and uncommon and not again)
            bigrams[token].add(target)
        for name, mark in marks.items():
            found[name].append(mark)
    return dict(found)


def repeated_pairs(model: cp.Model) -> Pairs:
    """Random tokens, said twice: only the second time, which can be copied, is read."""
    from crosspatch.shortformer.corpus import repeated

    pairs = text_pairs(np.array(repeated(model.tokenizer, PAIRS, SEED)), PAIRS, SEED, "repeated random tokens")
    half = len(pairs.reference[0]) // 2 + 1
    return replace(pairs, read=[at[half:] for at in pairs.read], targets=[at[half:] for at in pairs.targets])


def find_heads(model: cp.Model, pairs: Pairs) -> tuple[list[str], list[str], pd.DataFrame, pd.DataFrame]:
    """Induction heads: those of layer 1 without whose direct paths copying suffers, in the loss of repeated tokens.
    Previous-token heads: those of layer 0 that matter most to the keys of these."""
    late = path_patch(model, pairs, "a1.h*", "logits", mlps="frozen", dissimilarity="abs_loss", seed=SEED)
    table = late.frame().sort_values("effect", ascending=False)
    heads = table.loc[(table["low"] > 0) & (table["effect"] > 0.1 * table["effect"].max()), "sender"].tolist()
    early = path_patch(
        model, pairs, "a0.h*", [f"{head}.k" for head in heads], mlps="frozen", dissimilarity="abs_loss", seed=SEED
    )
    previous = early.frame().sort_values("effect", ascending=False)
    return sorted(heads), previous["sender"].tolist(), table, previous


def hypotheses(heads: list[str], previous: str, parrot: str) -> dict[str, PathSet]:
    """Table 5.2 of the dossier: what each input of the induction heads may depend on."""
    names = ", ".join
    group = "{" + names(heads) + "}"

    def keep(channel: str, *sources: str, only: str = group) -> PathSet:
        inside = "{" + names(f"{head}.{channel}" for head in only.strip("{}").split(", ")) + "}"
        return union(paths(f"input -> {source + ' -> ' if source else ''}{inside} -> logits") for source in sources)

    def whole(channel: str) -> PathSet:
        return keep(channel, "", "a0.*")

    def claim(**sources: PathSet) -> PathSet:
        return union(sources.get(channel, whole(channel)) for channel in "qkv")

    skip, far = "", "a0.*[-2..0]"
    own = "a0.*[0..0]"
    before, three = "a0.*[-1..-1]", "a0.*[-3..-1]"
    return {
        "Direct-V": claim(v=keep("v", skip)),
        "Direct-Q": claim(q=keep("q", skip)),
        "PTH-K": claim(k=keep("k", previous)),
        "All-Initial": claim(v=keep("v", skip), q=keep("q", skip), k=keep("k", previous)),
        "Positional-V": claim(v=keep("v", skip, own)),
        "Positional-Q": claim(q=keep("q", skip, own)),
        "Positional-K": claim(k=keep("k", before)),
        "All-Positional": claim(v=keep("v", skip, own), q=keep("q", skip, own), k=keep("k", before)),
        "Long-Q": claim(q=keep("q", skip, far)),
        "Long-K": claim(k=keep("k", three)),
        "All-Long": claim(v=keep("v", skip, own), q=keep("q", skip, far), k=keep("k", three)),
        "All-Long + parroting": claim(
            v=keep("v", skip, own),
            q=keep("q", skip, far),
            k=keep("k", three) | keep("k", skip, "a0.*[-3..0]", only=parrot),
        ),
    }


def controls(heads: list[str], previous: list[str]) -> dict[str, PathSet]:
    """What should not do as well: windows in the wrong place, and the weakest layer-0 head in front of K."""
    keys, queries, values = ("{" + ", ".join(f"{h}.{c}" for h in heads) + "}" for c in "kqv")

    def windows(v: str, q: str, k: str) -> PathSet:
        return paths(
            f"input -> {values} -> logits",
            f"input -> a0.*{v} -> {values} -> logits",
            f"input -> {queries} -> logits",
            f"input -> a0.*{q} -> {queries} -> logits",
            f"input -> a0.*{k} -> {keys} -> logits",
        )

    draw = np.random.default_rng(SEED)
    backs = [int(back) for back in draw.integers(4, 20, size=3)]
    v, q, k = (f"[-{back + 2}..-{back}]" for back in backs)
    return {
        "control: All-Long, windows shifted by one": windows("[-1..-1]", "[-3..-1]", "[-4..-2]"),
        f"control: random windows V {v} Q {q} K {k}": windows(v, q, k),
        f"control: K through the weakest head {previous[-1]}": paths(
            f"input -> {previous[-1]} -> {keys} -> logits",
            f"input -> {queries} -> logits",
            f"input -> a0.* -> {queries} -> logits",
            f"input -> {values} -> logits",
            f"input -> a0.* -> {values} -> logits",
        ),
    }


def pick_parrot(model: cp.Model, pairs: Pairs, heads: list[str], previous: str, mask: list[list[bool]]) -> pd.DataFrame:
    """For each head, how much All-Long gains when that head's keys may also read the current token (and no more)."""
    made = {head: hypotheses(heads, previous, head)["All-Long + parroting"] for head in heads}
    made["none"] = hypotheses(heads, previous, heads[0])["All-Long"]
    always = everything() - via("{" + ", ".join(heads) + "}")
    tested = test_paths(model, made, pairs, dissimilarity="abs_loss", always=always, mask=mask, seed=SEED)
    return tested.frame().sort_values("explained", ascending=False)


def small() -> None:
    """The two-layer model: heads, hypotheses, masks, controls, attribution."""
    started = time.monotonic()
    model = cp.load("induction-2l")
    rows = held_out_rows(model)
    searching, testing = rows[: ROWS // 2], rows[ROWS // 2 :]
    search = text_pairs(searching, PAIRS // 2, SEED, "held-out text, first half")
    pairs = text_pairs(testing, PAIRS, SEED + 1, "held-out text, second half")
    heads, previous, late, early = find_heads(model, repeated_pairs(model))
    print(late, early, sep="\n", flush=True)
    late.to_csv(HERE / "induction-heads.csv", index=False, float_format="%.4f")
    early.to_csv(HERE / "previous-token-heads.csv", index=False, float_format="%.4f")
    group = "{" + ", ".join(heads) + "}"
    always = everything() - via(group)
    strongest = early.loc[early["effect"] > early["effect"].max() / 2, "sender"]
    before = "{" + ", ".join(strongest) + "}"
    parrots = pick_parrot(model, search, heads, before, masks(rows, search)["NERB uncommon repeats"])
    parrots.to_csv(HERE / "parroting.csv", index=False, float_format="%.4f")
    parrot = next(name for name in parrots["hypothesis"] if name != "none")
    claims = hypotheses(heads, before, parrot) | controls(heads, previous)
    others = [f"a1.h{h}" for h in range(model.shape.n_heads) if f"a1.h{h}" not in heads]
    wrong = wrong_heads(model, pairs, others) if others else None
    tables = []
    where = masks(rows, pairs)
    for mask in ("overall", "later candidates", "uncommon repeats", "NERB uncommon repeats"):
        for name in ("abs_loss", "kl"):
            tested = test_paths(
                model, claims, pairs, dissimilarity=name, always=always, mask=where[mask], seed=SEED, budget_mib=1024
            )
            table = tested.frame()
            table.insert(0, "mask", mask)
            table.insert(1, "delta", name)
            table["ate"], table["ate_low"], table["ate_high"] = tested.ate
            table["floor"] = float(np.nanmean(tested.floor))
            tables.append(table)
            print(mask, tested, sep="\n", flush=True)
    pd.concat(tables).to_csv(HERE / "hypotheses.csv", index=False, float_format="%.5g")
    strips = {}
    for name in ("All-Initial", "All-Long"):
        strips[name] = attribution_strip(model, testing, claims[name], always)
    about = {
        "induction_heads": heads,
        "previous_token_heads": strongest.tolist(),
        "parroting_head": parrot,
        "other_heads": others,
        "ate_of_other_heads": wrong,
        "pairs": pairs.provenance,
        "pairs_hash": pairs.hash,
        "seed": SEED,
        "seconds": round(time.monotonic() - started),
        "attribution": strips,
    }
    (HERE / "small.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def wrong_heads(model: cp.Model, pairs: Pairs, others: list[str]) -> list[float]:
    """Control: the total effect when only what flows through the other heads of layer 1 sees the other text."""
    through = via("{" + ", ".join(others) + "}")
    tested = test_paths(
        model, {"all": through}, pairs, dissimilarity="abs_loss", always=everything() - through, seed=SEED
    )
    return list(tested.ate)


def attribution_strip(model: cp.Model, rows: np.ndarray, claim: PathSet, always: PathSet) -> list[dict]:
    """Where a hypothesis fails: the tokens of one text whose loss changes most when the rest sees other texts."""
    pairs = fixed_reference(rows, 0, 24, SEED)
    found = attribute(model, ~claim, pairs, always=always, seed=SEED)
    order = np.argsort(-np.abs(found.effect))[:8]
    words = found.tokens
    return [
        {
            "position": int(i),
            "text": "".join(words[max(0, i - 6) : i + 1]),
            "next": model.tokenizer.decode([int(rows[0, i + 1])]),
            "effect": round(float(found.effect[i]), 3),
            "low": round(float(found.low[i]), 3),
            "high": round(float(found.high[i]), 3),
        }
        for i in order
    ]


def apart() -> None:
    """Control: what the heads' V, Q and K leave out sees a text each, on the heads and the pairs of `small.json`."""
    found = json.loads((HERE / "small.json").read_text(encoding="utf-8"))
    heads = found["induction_heads"]
    group = "{" + ", ".join(heads) + "}"
    before = "{" + ", ".join(found["previous_token_heads"]) + "}"
    model = cp.load("induction-2l")
    pairs = text_pairs(held_out_rows(model)[ROWS // 2 :], PAIRS, SEED + 1, "held-out text, second half")
    assert pairs.hash == found["pairs_hash"], "small.json is of other pairs"
    made = hypotheses(heads, before, found["parroting_head"])
    claims = {name: made[name] for name in ("All-Initial", "All-Positional", "All-Long", "All-Long + parroting")}
    groups = {c: via("{" + ", ".join(f"{head}.{c}" for head in heads) + "}") for c in "vqk"}
    always = everything() - via(group)
    moved = decohere(model, claims, groups, pairs, dissimilarity="abs_loss", always=always, seed=SEED)
    print(moved)
    moved.frame().to_csv(HERE / "apart.csv", index=False, float_format="%.5f")


# -- SmolLM2 ----------------------------------------------------------------------------------------------------


def smollm2() -> None:
    """Repeated random tokens in a real model: sweeps, the textbook claim, its refinement, the verdict."""
    started = time.monotonic()
    model = cp.load("smollm2-135m")
    # Another word where the match was: with it goes what a previous-token head could say there.
    task = cp.make_task("induction", n=24, seed=SEED, corruption="match-new", tokenizer=model.tokenizer)
    pairs = task_pairs(task.tokenize(model.tokenizer))
    search, rest = pairs.split(0.5, SEED)
    into_logits = path_patch(model, search, "a*.h*", "logits", mlps="frozen", seed=SEED)
    late = into_logits.top(8)
    late.to_csv(HERE / "smollm2-into-logits.csv", index=False, float_format="%.4f")
    print(into_logits, flush=True)
    heads = late.loc[(late["low"] > 0), "sender"].head(4).tolist()
    into_keys = path_patch(model, search, "a*.h*", [f"{head}.k" for head in heads], mlps="direct", seed=SEED)
    early = into_keys.top(8)
    early.to_csv(HERE / "smollm2-into-keys.csv", index=False, float_format="%.4f")
    print(into_keys, flush=True)
    previous = early.loc[(early["low"] > 0), "sender"].head(2).tolist() or early["sender"].head(1).tolist()
    group = ", ".join
    inside = {c: "{" + group(f"{head}.{c}" for head in heads) + "}" for c in "qkv"}
    before = "{" + group(f"{head}.v" for head in previous) + "}"
    claims = {
        "induction heads, all inputs, straight to the logits": paths(f"** -> {{{group(heads)}}} -> logits"),
        "textbook: previous-token heads into K, tokens into Q and V": paths(
            f"input ~> {before} ~> {inside['k']} -> logits",
            f"input ~> {inside['q']} -> logits",
            f"input ~> {inside['v']} -> logits",
        ),
        "textbook, then any route to the logits": paths(
            f"input ~> {before} ~> {inside['k']} -> ** -> logits",
            f"input ~> {inside['q']} -> ** -> logits",
            f"input ~> {inside['v']} -> ** -> logits",
        ),
        "induction heads, all inputs, any route": via(f"{{{group(heads)}}}"),
    }
    tested = test_paths(model, claims, rest, dissimilarity="abs_logit_diff", seed=SEED)
    print(tested, flush=True)
    tested.frame().to_csv(HERE / "smollm2-hypotheses.csv", index=False, float_format="%.4f")
    nodes = group([*late["sender"].head(8), *[f"m{layer}" for layer in range(20, 30)]])
    grown = refine(
        model,
        [],
        pairs,
        max_steps=5,
        nodes=nodes,
        n_random=10,
        dissimilarity="abs_logit_diff",
        held_out=0.5,
        seed=SEED,
    )
    print(grown, flush=True)
    grown.log.to_csv(HERE / "smollm2-refinement.csv", index=False, float_format="%.4f")
    about = {
        "induction_heads": heads,
        "previous_token_heads": previous,
        "ate": list(tested.ate),
        "floor": float(np.nanmean(tested.floor)),
        "refined": grown.patterns,
        "random": grown.random.tolist(),
        "pairs": pairs.provenance,
        "pairs_hash": pairs.hash,
        "seed": SEED,
        "seconds": round(time.monotonic() - started),
    }
    (HERE / "smollm2.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["small", "apart", "smollm2"])
    {"small": small, "apart": apart, "smollm2": smollm2}[parser.parse_args().model]()
