"""Folders of the MIB benchmark's circuit track: one folder for each task and model, `ioi_gpt2/importances.json`.

A submission holds either scores (`importances.json` or `.pt`), from which the benchmark cuts circuits of all sizes, or
one circuit file for every size but the whole model. Which file is which size is not read from its name: the benchmark
sorts circuits by their weighted edge count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crosspatch.circuits.formats.eap import EapGraph, read_eap, write_eap
from crosspatch.circuits.mib import GRID
from crosspatch.errors import CircuitError

SCORES = "importances"
_NAME = re.compile(r"[A-Za-z0-9.-]+")


@dataclass(frozen=True)
class MibEntry:
    """What a submission says about one task and model.

    Attributes:
        task, model: names as the benchmark writes them: `ioi`, `arithmetic-addition`; `gpt2`, `llama3`.
        importances: scores of all edges, nodes or neurons, if there are any.
        circuits: circuits by file name, in the order of their weighted edge count.
    """

    task: str
    model: str
    importances: EapGraph | None = None
    circuits: dict[str, EapGraph] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, name in (("task", self.task), ("model", self.model)):
            if not _NAME.fullmatch(name):
                raise CircuitError(f"{name!r} is no name of a {what}", where="MibEntry", fix="letters, digits, - and .")

    @property
    def folder(self) -> str:
        """`ioi_gpt2`"""
        return f"{self.task}_{self.model}"


def read_mib(folder: str | Path) -> list[MibEntry]:
    """Read a submission: a folder of folders `task_model`, or one of these.

    Raises:
        CircuitError: no graph files where they should be, or one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CircuitError("is no folder", where=str(folder), fix="give the folder of the method, or one task_model")
    if _graph_files(folder):
        return [_entry(folder)]
    found = [_entry(part) for part in sorted(folder.iterdir()) if part.is_dir() and _graph_files(part)]
    if not found:
        raise CircuitError("holds no graph files", where=str(folder), fix="expected task_model/importances.json or .pt")
    return found


def write_mib(folder: str | Path, entries: list[MibEntry], suffix: str = ".json") -> list[Path]:
    """Write a submission: a folder `task_model` for every entry.

    Args:
        suffix: `.json`, or `.pt`, which is much smaller.

    Returns:
        The files that were written.

    Raises:
        CircuitError: an entry without anything, or a file that cannot be written.
    """
    if suffix not in (".json", ".pt"):
        raise CircuitError(f"suffix {suffix!r}", where="write_mib", fix="use .json or .pt")
    written = []
    for one in entries:
        graphs = {SCORES: one.importances} if one.importances is not None else {}
        graphs |= {Path(name).stem if name.endswith((".json", ".pt")) else name: g for name, g in one.circuits.items()}
        if not graphs:
            raise CircuitError("nothing to write", where=one.folder, fix="give importances or circuits")
        for name, graph in graphs.items():
            if not re.fullmatch(r"[\w.-]+", name):
                raise CircuitError(
                    f"{name!r} is no name of a file", where=one.folder, fix="letters, digits, -, _ and ."
                )
            path = Path(folder) / one.folder / f"{name}{suffix}"
            write_eap(path, graph)
            written.append(path)
    return written


def circuits_by_size(circuits: Mapping[float, EapGraph]) -> dict[str, EapGraph]:
    """Circuits of the benchmark's nominal sizes, named by them (`k0.001`), for `MibEntry.circuits`.

    Raises:
        CircuitError: other sizes than all of the grid but the whole model.
    """
    if sorted(circuits) != list(GRID[:-1]):
        raise CircuitError(f"sizes {sorted(circuits)}", where="circuits_by_size", fix=f"one for each of {GRID[:-1]}")
    return {f"k{size:g}": circuits[size] for size in sorted(circuits)}


def _graph_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".pt") and path.is_file())


def _entry(folder: Path) -> MibEntry:
    task, _, model = folder.name.rpartition("_")
    if not task:
        raise CircuitError("is not named task_model", where=str(folder), fix="name it for example ioi_gpt2")
    graphs = {path: read_eap(path) for path in _graph_files(folder)}
    scores = [graph for path, graph in graphs.items() if path.stem == SCORES]
    rest = [(path.name, graph) for path, graph in graphs.items() if path.stem != SCORES]
    rest.sort(key=lambda item: _weighted(item[1]))
    return MibEntry(task.replace("_", "-"), model, scores[0] if scores else None, dict(rest))


def _weighted(graph: EapGraph) -> float:
    """The benchmark's weighted edge count."""
    if graph.neuron_in_graph is None:
        return float(graph.in_graph.sum())
    return float((graph.in_graph.sum(1) * graph.neuron_in_graph.mean(1)).sum())
