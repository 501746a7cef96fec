"""The tables of the study's README, from its numbers.

python studies/agreement/readme.py         # after `run.py`: writes them again from embedded.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TURNED = "features of turned dictionaries"


def write_tables(path: Path, found: dict[str, Any]) -> None:
    """Put the tables between the marks of the README; the words around them stay."""
    marks = "<!-- tables -->", "<!-- end of tables -->"
    text = path.read_text("utf-8") if path.exists() else "\n".join(marks)
    before, after = text.split(marks[0])[0], text.split(marks[1])[-1]
    path.write_text(f"{before}{marks[0]}\n{tables(found)}\n{marks[1]}{after}", "utf-8")


def findings(found: dict[str, Any]) -> list[str]:
    """What the numbers say, in words that hold whatever they are."""
    variants = found["variants"]

    def halves(*lines: str) -> str:
        """Nodes for half of the gap by variant: of several lines the one that needs fewest."""
        told = []
        for name, variant in variants.items():
            rows = [variant["lines"][line] for line in lines]
            reached = [row["half at"] for row in rows if row["half at"] is not None]
            told.append(f"{name} {min(reached):,}" if reached else f"{name} not by {rows[0]['largest']:,}")
        return ", ".join(told)

    def both(kind: str) -> tuple[str, str]:
        return f"{kind} (ig)", f"{kind} (relp)"

    overlap = found["overlap"]
    return [
        "Nodes that keep half of the gap on held-out nouns (the smallest size tried that does):",
        "",
        f"- features, error terms being nodes as well: {halves('features (ig), error terms are nodes')};",
        f"- features, error terms of the stream kept: {halves('features (ig), error terms of the stream kept')};",
        f"- features alone, every error term replaced: {halves('features (ig), no error terms')};",
        f"- {TURNED}, error terms being nodes: {halves(f'{TURNED} (ig), error terms are nodes')};",
        f"- dimensions of the same outputs: {halves(*both('neurons, outputs'))};",
        f"- hidden neurons, attention left to the model: {halves(*both('neurons, hidden'))};",
        f"- hidden neurons and dimensions of attention outputs: {halves(*both('neurons, hidden and attention'))}.",
        "",
        f"Of the features of rc, {percent(overlap['rc']['nounpp'])} are in the circuit of nounpp too (the paper: more "
        f"than 85 %), and {percent(overlap['rc']['pronoun (control)'])} in that of the pronoun, the control.",
        "",
        "The strongest tenth of the edges between the nodes of a circuit keeps, of the gap: "
        + ", ".join(f"{name} {tenth(variant['edges']['sets'])}" for name, variant in variants.items())
        + ".",
        "",
    ]


def tenth(sets: list[dict[str, Any]]) -> str:
    row = next(row for row in sets if row["edges"] >= int(0.1 * sets[-1]["edges"]))
    ends = percent(row["random_faithfulness_low"]), percent(row["random_faithfulness_high"])
    every = percent(sets[-1]["faithfulness"])
    return f"{percent(row['faithfulness'])} (every edge {every}, random tenths {ends[0]} to {ends[1]})"


def tables(found: dict[str, Any]) -> str:
    out, first = findings(found), found["settings"]["start_block"]
    for name, variant in found["variants"].items():
        out += [f"### {name}: {variant['pairs']['searched']} pairs searched, {variant['pairs']['judged']} judged", ""]
        out += [
            "| line | half at | 90 % at | 50 nodes keep | random | 200 nodes keep | without 50 nodes | m empty, model |"
        ]
        out += ["|---|---:|---:|---|---|---|---:|---|"]
        for line, row in variant["lines"].items():
            shares, ends = row["shares"], (size(row["half at"], row), size(row["nine tenths at"], row))
            out.append(
                f"| {line} | {ends[0]} | {ends[1]} | {kept(shares.get('50'))} "
                f"| {random(shares.get('50'))} | {kept(shares.get('200'))} "
                f"| {percent(shares.get('50', {}).get('completeness'))} | {row['m_empty']}, {row['m_model']} |"
            )
        edge = variant["edges"]
        out += [
            "",
            f"Edges between {edge['nodes']} nodes (features at all tokens, from block {first} on):",
            "",
        ]
        out += ["| edges kept | faithfulness | random sets of as many |", "|---:|---:|---|"]
        for row in edge["sets"]:
            ends = percent(row["random_faithfulness_low"]), percent(row["random_faithfulness_high"])
            out.append(f"| {row['edges']:.0f} | {percent(row['faithfulness'])} | {ends[0]} to {ends[1]} |")
        out.append("")
    names = list(found["overlap"])
    out += [
        f"### Features of one circuit that are in the other (of the {found['settings']['compared']} nodes of each)",
        "",
    ]
    out += ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for a, row in found["overlap"].items():
        out.append(f"| {a} | " + " | ".join(percent(row[b]) for b in names) + " |")
    out += ["", "### The published pairs", "", "| variant | pairs, different and in the vocabulary | right | kept |"]
    out += ["|---|---|---:|---:|"]
    for name, told_ in found["public"].items():
        if isinstance(told_, str):
            out.append(f"| {name} | {told_} | | |")
            continue
        out.append(
            f"| {name} | {told_['pairs']}, {told_['different and in the vocabulary']} | {percent(told_['right'])} "
            f"| {percent(told_['faithfulness of the generator' + chr(39) + 's circuit'])} |"
        )
    return "\n".join(out)


def percent(share: float | None) -> str:
    return "" if share is None else f"{round(100 * share)} %"


def size(nodes: int | None, row: dict[str, Any]) -> str:
    return f"not by {row['largest']:,}" if nodes is None else f"{nodes:,}"


def kept(row: dict[str, float] | None) -> str:
    if row is None:
        return ""
    ends = percent(row["faithfulness_low"]), percent(row["faithfulness_high"])
    return f"{percent(row['faithfulness'])} [{ends[0]}, {ends[1]}]"


def random(row: dict[str, float] | None) -> str:
    if row is None or row["random_faithfulness_low"] is None:
        return ""
    return f"{percent(row['random_faithfulness_low'])} to {percent(row['random_faithfulness_high'])}"


if __name__ == "__main__":
    write_tables(HERE / "README.md", json.loads((HERE / "embedded.json").read_text("utf-8")))
