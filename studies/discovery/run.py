"""Does clustering what a model does find the behaviours that its training text was made of?

The embedded model's generator says which behaviour every word belongs to. Vectors of all kinds are clustered without
that knowledge and compared with it, beside clusterings that look at tokens only.

    python studies/discovery/run.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import crosspatch as cp
from crosspatch.dictionaries import shipped
from crosspatch.discover import (
    CircuitSettings,
    Clustering,
    Samples,
    baselines,
    cluster,
    cluster_circuits,
    comparison,
    default_places,
    draw_samples,
    histogram_vectors,
    read_documents,
    sample_vectors,
)
from crosspatch.discover.text import SHOWN
from crosspatch.features import bases_of
from crosspatch.features.basis import Bases
from crosspatch.results.files import write_atomic, write_json

SEED = 0
PER_DOCUMENT = 4
"""Samples of a document that are drawn to have enough words that a behaviour determines; one of each is kept."""


def determined(samples: Samples) -> Samples:
    """Samples whose answer a behaviour determines, one of each document. This looks at the truth, to ask an easier
    question than the method is asked in practice."""
    assert samples.labels is not None
    chosen: dict[int, int] = {}
    for i, (document, label) in enumerate(zip(samples.documents.tolist(), samples.labels, strict=True)):
        if not label.endswith(SHOWN):
            chosen.setdefault(document, i)
    return samples.select(sorted(chosen.values()))


def vectors_of(model: cp.Model, samples: Samples, features: Bases) -> dict[str, np.ndarray]:
    """Every kind of vector."""
    neurons = bases_of(model, neurons=default_places(model))
    found = {}
    for name, kind, bases, about in (
        ("activations", "activations", neurons, {}),
        ("activations, summed", "activations", neurons, {"positions": None}),
        ("features", "features", features, {}),
        ("features, summed", "features", features, {"positions": None}),
        ("dense effects, AtP", "dense-effects", neurons, {"method": "atp"}),
        ("dense effects, IG", "dense-effects", neurons, {}),
        ("effects of features, AtP", "effects", features, {"method": "atp"}),
        ("effects of features, IG", "effects", features, {}),
        ("gradients", "gradients", (), {}),
    ):
        if name.endswith("IG") and len(samples) > 500:
            continue  # ten times the work; done on the smaller set
        began = time.monotonic()
        found[name] = sample_vectors(model, samples, kind, bases, seed=SEED, **about).values
        print(f"  {name}: {found[name].shape[1]} entries, {time.monotonic() - began:.0f} s", flush=True)
    found["token histogram"] = histogram_vectors(samples)
    return found


def judged(samples: Samples, vectors: dict[str, np.ndarray]) -> tuple[pd.DataFrame, dict[str, Clustering]]:
    """Every kind of vector under both methods, with as many clusters as there are labels, and the baselines."""
    assert samples.labels is not None
    k = len(set(samples.labels))
    found: dict[str, Clustering] = {}
    for name, values in vectors.items():
        for method in ("spectral", "kmeans"):
            found[f"{name} / {method}"] = cluster(values, k, method=method, seed=SEED)  # type: ignore[arg-type]
    return comparison(samples, {**found, **baselines(samples)}), found


def markdown(table: pd.DataFrame) -> str:
    """The comparison as it stands in the README."""

    def cell(row: pd.Series, name: str) -> str:
        if pd.isna(row[name]):
            return ""
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        return f"{row[name]:.2f}" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")

    lines = ["| clustering | clusters | truth | homogeneity | completeness | answer token | between seeds |"]
    lines += ["|---|---:|---|---:|---:|---:|---|"]
    for _, row in table.iterrows():
        names = ("truth", "homogeneity", "completeness", "answer", "stability")
        cells = [row["clustering"], str(row["clusters"]), *(cell(row, name) for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown_of_circuits(table: pd.DataFrame) -> str:
    """The circuits as they stand in the README."""
    lines = ["| cluster | label | samples | model | circuit | nothing | faithfulness | random | strongest nodes |"]
    lines += ["|---:|---|---:|---:|---:|---:|---|---:|---|"]
    for _, row in table.iterrows():
        if row["error"]:
            lines.append(f"| {row['cluster']} | {row['label']} | {row['samples']} | {row['error']} ||||||")
            continue
        kept = f"{row['faithfulness']:.2f} [{row['faithfulness_low']:.2f}, {row['faithfulness_high']:.2f}]"
        raw = " | ".join(f"{row[name]:.2f}" for name in ("m_model", "m_kept", "m_empty"))
        lines.append(
            f"| {row['cluster']} | {row['label']} {row['purity']:.0%} | {row['samples']} | {raw} | {kept} "
            f"| {row['random_faithfulness_median']:.2f} | {row['largest']} |"
        )
    return "\n".join(lines)


def put(path: Path, name: str, text: str) -> None:
    """Put a table into the README, between the lines that name it."""
    if not path.is_file():
        return
    whole = path.read_text("utf-8")
    start, end = f"<!-- {name} -->\n", f"\n<!-- end {name} -->"
    before, found, rest = whole.partition(start)
    if found:
        write_atomic(path, (before + start + text + end + rest.partition(end)[2]).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--found", type=int, default=240, help="samples as they are found")
    parser.add_argument("--drawn", type=int, default=1800, help="samples among which determined words are looked for")
    parser.add_argument("--circuits", type=int, default=3)
    given = parser.parse_args()
    out = given.out
    began = time.monotonic()
    model = cp.load("embedded")
    features = bases_of(model, shipped())
    text = {"text": "embedded", "seed": SEED}
    found = draw_samples(model, read_documents("embedded", f"discover {SEED}"), given.found, **text)
    more = draw_samples(
        model, read_documents("embedded", f"discover {SEED}"), given.drawn, per_document=PER_DOCUMENT, **text
    )
    kept: dict[str, Clustering] = {}
    facts = {}
    for name, samples in (("found", found), ("determined", determined(more))):
        print(f"{name}: {len(samples)} samples, {len(set(samples.labels or []))} labels", flush=True)
        vectors = vectors_of(model, samples, features)
        table, kept = judged(samples, vectors)
        print(table.round(3).to_string(index=False), flush=True)
        write_atomic(out / f"{name}.csv", table.round(4).to_csv(index=False).encode())
        put(
            out / "README.md",
            name,
            f"{len(samples)} samples, {len(set(samples.labels or []))} labels.\n\n{markdown(table)}",
        )
        chosen = cluster(vectors["gradients"], contexts=samples.contexts, seed=SEED, repeats=0)
        facts[name] = {
            "samples": len(samples),
            "labels": pd.Series(samples.labels).value_counts().to_dict(),
            "counts": samples.origin["counts"] if name == "found" else more.origin["counts"],
            "number of clusters, chosen on gradients": chosen.about["chosen"],
        }
    best = kept["features / kmeans"]
    rows = []
    settings = CircuitSettings(nodes=60, seed=SEED)
    with tempfile.TemporaryDirectory() as folder:
        circuits_of = cluster_circuits(model, samples, best, features, folder, settings, most=given.circuits)
    for one in circuits_of:
        members = best.members(one["cluster"])
        labels = pd.Series([samples.labels[i] for i in members]).value_counts()  # type: ignore[index]
        row = {"cluster": one["cluster"], "samples": len(members), "label": labels.index[0]}
        row |= {"purity": labels.iloc[0] / len(members), "error": one.get("error", {}).get("what", "")}
        if "error" not in one:
            row |= one["evaluation"] | {"largest": ", ".join(node["node"] for node in one["nodes"][:6])}
        rows.append(row)
    circuits = pd.DataFrame(rows)
    print(circuits.round(3).to_string(index=False))
    write_atomic(out / "circuits.csv", circuits.round(4).to_csv(index=False).encode())
    write_json(out / "about.json", facts)
    put(out / "README.md", "circuits", markdown_of_circuits(circuits))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
