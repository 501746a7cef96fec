"""What was found: which sample is in which cluster, and what is known of every cluster. Plain data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from crosspatch.errors import CrosspatchError, ResultError
from crosspatch.features.saved import CIRCUIT_FILE
from crosspatch.results.files import REPAIR, drop_tables, read_json, write_json

FORMAT, FILE, TABLE = "crosspatch-discover", "discover.json", "comparison.csv"
"""What was asked for, and the clustering beside baselines."""
CLUSTERING, VERSION = "crosspatch-clustering", 1
CLUSTER, CLUSTER_VERSION = "crosspatch-cluster", 2
CLUSTERS_FILE, CLUSTER_FILE, CARDS_FILE = "clusters.json", "cluster.json", "cards.json"
Labels = Int[np.ndarray, " sample"]


@dataclass(frozen=True, eq=False)
class Clustering:
    """Which cluster each sample is in; make it with `cluster`.

    Attributes:
        labels: numbers of clusters, the largest cluster is 0.
        repeats: the same from other seeds, for stability.
        about: JSON values: method, k, seeds, and how k was chosen.
    """

    labels: Labels
    repeats: list[Labels]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """Clusters that are not empty."""
        return int(self.labels.max()) + 1

    def members(self, number: int) -> Labels:
        """Samples of a cluster."""
        return np.flatnonzero(self.labels == number)

    def save(self, folder: str | Path, samples: str) -> Path:
        """Write `clusters.json`, atomically.

        Args:
            samples: hash of the samples.

        Returns:
            The folder.
        """
        data = {"labels": self.labels.tolist(), "repeats": [again.tolist() for again in self.repeats]}
        about = {"format": CLUSTERING, "version": VERSION, "samples": samples, "about": self.about}
        write_json(Path(folder) / CLUSTERS_FILE, {**about, **data})
        return Path(folder)


def load_clustering(folder: str | Path, samples: str) -> Clustering:
    """Read what `Clustering.save` wrote.

    Args:
        samples: hash of the samples that it is of.

    Raises:
        ResultError: not there, damaged, or of other samples.
    """
    path = Path(folder) / CLUSTERS_FILE
    data = read_json(path)
    if data.get("format") != CLUSTERING or data.get("version") != VERSION:
        raise ResultError(f"is not a file of the format {CLUSTERING} {VERSION}", where=str(path), fix=REPAIR)
    if data.get("samples") != samples:
        raise ResultError("is of other samples", where=str(path), fix="delete it, or use another folder")
    try:
        labels, *repeats = (np.array(one, dtype=np.int64) for one in (data["labels"], *data["repeats"]))
        whole = labels.ndim == 1 and np.array_equal(np.unique(labels), np.arange(labels.max(initial=-1) + 1))
        if not len(labels) or not whole or any(one.shape != labels.shape for one in repeats):
            raise ValueError("numbers of clusters do not fit")
        return Clustering(labels, repeats, dict(data["about"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ResultError(f"cannot be read ({error})", where=str(path), fix=REPAIR) from error


def cluster_folder(folder: Path, number: int) -> Path:
    """Where the circuit of a cluster is."""
    return folder / f"c{number:05d}"


def read_cluster(folder: Path) -> dict[str, Any] | None:
    """What is known of a cluster's circuit; None where nothing is, or it cannot be read.

    A file that cannot be read counts as not there: the cluster is computed again.
    """
    if not (folder / CLUSTER_FILE).is_file():
        return None
    try:
        data = read_json(folder / CLUSTER_FILE)
    except CrosspatchError:
        return None
    whole = data.get("format") == CLUSTER and data.get("version") == CLUSTER_VERSION
    complete = {"cluster", "key"} <= set(data) and ("error" in data or {"nodes", "edges", "evaluation"} <= set(data))
    return data if whole and complete and isinstance(data["cluster"], int) else None


def drop_circuit(folder: Path) -> None:
    """Remove the circuit of a cluster, with what is known of it, and the folder if nothing else is in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for name in (CLUSTER_FILE, CARDS_FILE, CIRCUIT_FILE):
        (folder / name).unlink(missing_ok=True)
    drop_tables(folder, ["edges"])
    if not any(folder.iterdir()):
        folder.rmdir()


def drop_others(folder: Path, k: int) -> None:
    """Remove the circuits of clusters from `k` on: there are no such clusters any more."""
    for path in list(folder.glob("c[0-9]*")):
        if re.fullmatch(r"c[0-9]{5,}", path.name) and int(path.name[1:]) >= k:
            drop_circuit(path)


def read_clusters(folder: str | Path) -> Iterator[dict[str, Any]]:
    """All that were written to a folder, in order."""
    for path in sorted(Path(folder).glob("c[0-9]*")):
        if (data := read_cluster(path)) is not None:
            yield data
