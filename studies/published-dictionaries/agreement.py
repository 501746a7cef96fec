"""What both scripts do: circuits of the four agreement sets with published dictionaries, beside reported numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crosspatch as cp
from crosspatch.attribution import Setup, setup_of
from crosspatch.dictionaries import Dictionary
from crosspatch.errors import TaskError
from crosspatch.features import NodeSet, bases_of, evaluate_nodes, feature_edges, feature_effects, templatic
from crosspatch.tasks.pairs import Pair, Task
from crosspatch.tasks.public.source import json_lines


@dataclass(frozen=True)
class Reported:
    """One circuit of the paper.

    Attributes:
        node_threshold, edge_threshold: T_N and T_E.
        start_block: its nodes come from this block on.
        nodes: how many it has; None: not reported.
        faithfulness: of it; None: not reported.
    """

    node_threshold: float
    edge_threshold: float
    start_block: int = -1
    nodes: int | None = None
    faithfulness: float | None = None


@dataclass(frozen=True)
class Replication:
    """What is run on one model, and what to expect.

    Attributes:
        circuits: by data set.
        start_block: of the evaluation: blocks before are left to the model.
        feature_nodes: so many feature nodes keep most of the gap.
        neuron_nodes: so many neurons (dimensions of the same places) keep half of it.
        shared: share of the features of `rc` that is in `nounpp`.
    """

    circuits: Mapping[str, Reported]
    start_block: int
    feature_nodes: int
    neuron_nodes: int
    shared: float = 0.85


Say = Callable[[str], None]


def replicate(
    model: cp.Model,
    dictionaries: Sequence[Dictionary],
    data: Path,
    plan: Replication,
    *,
    examples: int = 100,
    judged: int = 40,
    steps: int = 10,
    say: Say = print,
) -> dict[str, dict[str, Any]]:
    """Find the paper's circuits, judge them on the test files, and print each number beside the reported one.

    Args:
        data: folder with `rc_train.json`, `rc_test.json`, ... in the authors' layout (one JSON object a line).
        examples, judged: pairs of the train and of the test files.

    Returns:
        By data set, the numbers that were printed.
    """
    bases = bases_of(model, dictionaries)
    neurons = bases_of(model, neurons=[basis.place for basis in bases])
    found: dict[str, dict[str, Any]] = {}
    features: dict[str, set[tuple[str, int | None]]] = {}
    for name, reported in plan.circuits.items():
        setup, n_search = pairs(model, data, name, examples, judged, say)
        spans = tuple(f"t{i}" for i in range(len(setup.clean[0])))
        search, test = setup.select(range(n_search)), setup.select(range(n_search, len(setup)))
        effects = feature_effects(search, bases, "paired", method="ig", steps=steps, spans=spans)
        circuit = effects.above(reported.node_threshold, start_block=reported.start_block)
        features[name] = {(node.place, node.feature) for node in circuit if node.feature is not None}
        row: dict[str, Any] = {"nodes": len(circuit), "error terms": circuit.n_errors}
        if len(circuit):
            edges = feature_edges(search, bases, circuit, "paired", method="ig", steps=steps)
            row["edges"] = len(edges.above(reported.edge_threshold))
        row |= judge(test, bases, circuit, plan, "circuit")
        row |= judge(test, bases, effects.top(plan.feature_nodes, start_block=plan.start_block), plan, "features")
        scores = feature_effects(search, neurons, "paired", method="ig", steps=steps, spans=spans)
        row |= judge(test, neurons, scores.top(plan.neuron_nodes, start_block=plan.start_block), plan, "neurons")
        found[name] = row
        say(f"\n{name}: {len(search)} pairs searched, {len(test)} judged, from block {plan.start_block} on")
        for line in beside(row, reported, plan):
            say(f"  {line}")
    if features.get("rc") and "nounpp" in features:
        share = len(features["rc"] & features["nounpp"]) / len(features["rc"])
        found["rc"]["shared with nounpp"] = share
        say(f"\nfeatures of rc that are in nounpp too: {share:.2f} (paper: more than {plan.shared})")
    return found


def pairs(model: cp.Model, data: Path, name: str, n: int, judged: int, say: Say) -> tuple[Setup, int]:
    """Different pairs of the train file, then such of the test file that are not among them, all of the commonest
    length; and how many are of the train file."""
    parts: list[list[Pair]] = []
    seen: set[tuple[str, str, str]] = set()
    for part in ("train", "test"):
        path = file_of(data, name, part, say)
        kept = []
        for row in json_lines(path):
            key = row["clean_prefix"], row["patch_prefix"], row["clean_answer"]
            if key not in seen:
                seen.add(key)
                kept.append(Pair(key[0], key[1], (key[2],), (row["patch_answer"],), template=name))
        parts.append([pair for pair in kept if fits(model, pair)])
    lengths = [length(model, pair.clean) for part in parts for pair in part]
    if not lengths:
        raise TaskError("no pair has answers of one token and prefixes of equal length", where=f"{data}: {name}")
    common = max(sorted(set(lengths)), key=lengths.count)
    search, test = ([pair for pair in part if length(model, pair.clean) == common] for part in parts)
    search, test = search[:n], test[:judged]
    if not search or not test:
        raise TaskError(f"{len(search)} pairs to search on and {len(test)} to judge", where=f"{data}: {name}")
    task = Task(f"agreement-{name}", (*search, *test), str(data), "the number of the subject", "every other word", "")
    return templatic(setup_of(model, task))[0], len(search)


def file_of(data: Path, name: str, part: str, say: Say) -> Path:
    """The authors' file, also compressed; of `rc`, which is often not at hand, generated pairs in its stead."""
    stems = [f"{name}_{part}", *([f"rc_generated_{part}"] if name == "rc" else [])]
    for stem in stems:
        for end in (".json", ".jsonl", ".jsonl.xz"):
            if (path := data / f"{stem}{end}").is_file():
                if stem != stems[0]:
                    say(f"{path.name} is not the paper's set: what follows of {name} is not to be quoted as such")
                return path
    raise TaskError(f"has no {stems[0]}.json", where=str(data), fix="use data/ of saprmarks/feature-circuits")


def fits(model: cp.Model, pair: Pair) -> bool:
    """Whether the answers are one token each, and the two prefixes equally long (as the authors select)."""
    answers = [model.tokenizer(word, add_special_tokens=False).input_ids for word in (*pair.answers, *pair.wrong)]
    return all(len(ids) == 1 for ids in answers) and length(model, pair.clean) == length(model, pair.corrupt)


def length(model: cp.Model, text: str) -> int:
    return len(model.tokenizer(text).input_ids)


def judge(test: Setup, bases: Any, nodes: NodeSet, plan: Replication, what: str) -> dict[str, float]:
    """Faithfulness and completeness, all other nodes at their mean over the test prompts by position."""
    table = evaluate_nodes(test, bases, [nodes], "mean", start_block=plan.start_block, held_out=0).frame
    row = table.to_dict("records")[0]
    return {
        f"{what}: nodes": row["features"] + row["error_terms"],
        f"{what}: faithfulness": row["faithfulness"],
        f"{what}: completeness": row["completeness"],
        "m(model)": row["m_model"],
        f"{what}: m(nothing)": row["m_empty"],
    }


def beside(row: Mapping[str, Any], reported: Reported, plan: Replication) -> list[str]:
    """One line a number, with the paper's."""
    nodes = "not reported" if reported.nodes is None else str(reported.nodes)
    known = "not reported" if reported.faithfulness is None else f"{reported.faithfulness:.2f}"
    return [
        f"T_N {reported.node_threshold}, T_E {reported.edge_threshold}: {row['nodes']} nodes, {row['error terms']} of "
        f"them error terms, {row.get('edges', 0)} edges (paper: {nodes} nodes)",
        f"faithfulness of this circuit {row['circuit: faithfulness']:.2f} (paper: {known})",
        f"{row['features: nodes']} nodes keep {row['features: faithfulness']:.2f} (paper: about {plan.feature_nodes} "
        "features keep most)",
        f"without them {row['features: completeness']:.2f} is left (paper: a few suffice to remove it)",
        f"{row['neurons: nodes']} neurons keep {row['neurons: faithfulness']:.2f} (paper: about {plan.neuron_nodes} "
        "keep half)",
        f"m(model) {row['m(model)']:.3f}, m(nothing) {row['features: m(nothing)']:.3f}",
    ]


def nearest_l0(folder: Path, wanted: int = 100) -> Path:
    """The folder `average_l0_N` whose N is nearest: the paper's choice among Gemma Scope's dictionaries."""
    found = {int(path.name.rsplit("_", 1)[-1]): path for path in folder.glob("average_l0_*") if path.is_dir()}
    if not found:
        raise TaskError("has no average_l0_... folders", where=str(folder), fix="download one width of Gemma Scope")
    return found[min(sorted(found), key=lambda l0: abs(l0 - wanted))]


def write(path: Path | None, found: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")
