"""From text to clusters with circuits, in one folder, in steps that a stopped run does not repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.discover.agreement import baselines, comparison, histogram_vectors
from crosspatch.discover.circuits import CircuitSettings, cluster_circuits
from crosspatch.discover.clustering import LEAST, Method, cluster
from crosspatch.discover.clusters import CLUSTERS_FILE, FILE, FORMAT, TABLE, Clustering, load_clustering
from crosspatch.discover.draw import Induction, draw_samples
from crosspatch.discover.samples import FILE as SAMPLES_FILE
from crosspatch.discover.samples import Samples, load_samples
from crosspatch.discover.text import Document
from crosspatch.discover.vectors import NEEDS_FEATURES, Vectors, default_places, sample_vectors
from crosspatch.errors import ResultError, TaskError
from crosspatch.features.basis import Bases, bases_of
from crosspatch.model import Model
from crosspatch.results.files import read_json, write_atomic, write_json

VERSION = 1
VECTORS, CIRCUITS = "vectors", "circuits"
"""Folders inside the results."""
Stage = Callable[[str, float, float], None]
"""Progress: (stage, done, total)."""


@dataclass(frozen=True)
class DiscoverSettings:
    """How behaviours are found. See `draw_samples`, `sample_vectors`, `cluster` and `cluster_circuits`.

    Attributes:
        text: a name for it.
        n, threshold, induction, per_document, every, length: of the samples.
        vectors, positions, method, steps, dims: of the vectors; positions "sum" adds them up.
        k, clustering, least, repeats: of the clusters; k None: chosen.
        circuits: so many of the largest clusters get a circuit; None: all that have enough documents.
        circuit: how these are found.
        seed: of everything.
    """

    text: str = ""
    n: int = 1000
    threshold: float = 0.3
    induction: Induction = "bigram"
    per_document: int = 1
    every: int = 1
    length: int = 64
    vectors: str = "features"
    positions: int | Literal["sum"] = 1
    method: str = "ig"
    steps: int = 4
    dims: int = 16384
    k: int | None = None
    clustering: Method = "auto"
    least: int = LEAST
    repeats: int = 4
    circuits: int | None = None
    circuit: CircuitSettings = field(default_factory=CircuitSettings)
    seed: int = 0


@dataclass(eq=False)
class Discovery:
    """What was found.

    Attributes:
        folder: where it was written.
        samples, vectors, clustering: the steps.
        table: the clustering beside baselines (see `comparison`).
        circuits: what is known of every cluster that was looked at (see `cluster_circuits`).
    """

    folder: Path
    samples: Samples
    vectors: Vectors
    clustering: Clustering
    table: pd.DataFrame
    circuits: list[dict[str, Any]]


def discover(
    model: Model,
    documents: Iterable[Document | str],
    folder: str | Path,
    dictionaries: Iterable[Dictionary] | Mapping[str, Dictionary] = (),
    settings: DiscoverSettings | None = None,
    *,
    budget_mib: float | None = None,
    device: str | None = None,
    progress: Stage | None = None,
) -> Discovery:
    """Find behaviours: confident predictions, clustered by what the model does for them, with a circuit each.

    Every step is written to the folder when it is done, effects and circuits bit by bit; called again with the same
    settings it goes on from there.

    Args:
        documents: as `read_documents` gives them.
        folder: for the results.
        dictionaries: for vectors of features, and for circuits; without any, only dense vectors and gradients, and no
            circuits.
        budget_mib: memory for the effects of one chunk.
        device: where k-means multiplies; None: the model's.

    Raises:
        TaskError: see the steps; vectors of features without dictionaries.
        ResultError: the folder holds something found with other settings.
    """
    settings, folder = settings or DiscoverSettings(), Path(folder)
    features = bases_of(model, dictionaries)
    if settings.vectors in NEEDS_FEATURES and not features:
        raise TaskError(f"{settings.vectors} need dictionaries", where="discover", fix="give some, or use activations")
    _claim(folder, settings, model, features)

    def stage(name: str) -> Callable[[float, float], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    samples = _samples(model, documents, folder, settings, stage("samples"))
    vectors = sample_vectors(
        model,
        samples,
        settings.vectors,
        _bases(model, features, settings.vectors),
        positions=None if settings.positions == "sum" else settings.positions,
        method=settings.method,
        steps=settings.steps,
        dims=settings.dims,
        seed=settings.seed,
        folder=folder / VECTORS,
        budget_mib=budget_mib,
        progress=stage(settings.vectors),
    )
    clustering = _clustering(vectors, samples, folder, settings, device or str(model.device))
    table = _table(vectors, samples, clustering, settings)
    write_atomic(folder / TABLE, table.to_csv(index=False).encode())
    circuits: list[dict[str, Any]] = []
    if features and settings.circuits != 0:
        circuits = cluster_circuits(
            model,
            samples,
            clustering,
            features,
            folder / CIRCUITS,
            settings.circuit,
            most=settings.circuits,
            budget_mib=budget_mib,
            progress=stage("circuits"),
        )
    return Discovery(folder, samples, vectors, clustering, table, circuits)


def _bases(model: Model, features: Bases, kind: str) -> Bases:
    if kind == "gradients":
        return ()
    return features if kind in NEEDS_FEATURES else bases_of(model, neurons=default_places(model))


def _claim(folder: Path, settings: DiscoverSettings, model: Model, features: Bases) -> None:
    """Note what the folder is for, or check that it is for this."""
    about = {**asdict(settings), "model": model.name, "features": [[b.place, b.width] for b in features]}
    path = folder / FILE
    if path.is_file():
        there = read_json(path)
        # More circuits, or other ones, may be asked for later: each says how it was found.
        differing = sorted(
            k for k in about if k not in ("circuits", "circuit") and there.get("settings", {}).get(k) != about[k]
        )
        if there.get("format") != FORMAT or differing:
            raise ResultError(
                f"the results there were found in another way ({', '.join(differing) or 'another format'})",
                where=str(folder),
                fix="use another folder",
            )
    write_json(path, {"format": FORMAT, "version": VERSION, "settings": about})


def _samples(
    model: Model,
    documents: Iterable[Document | str],
    folder: Path,
    settings: DiscoverSettings,
    progress: Callable[[float, float], None] | None,
) -> Samples:
    if (folder / SAMPLES_FILE).is_file():
        return load_samples(folder)
    samples = draw_samples(
        model,
        documents,
        settings.n,
        threshold=settings.threshold,
        induction=settings.induction,
        per_document=settings.per_document,
        every=settings.every,
        length=settings.length,
        seed=settings.seed,
        text=settings.text,
        progress=progress,
    )
    samples.save(folder)
    return samples


def _clustering(
    vectors: Vectors, samples: Samples, folder: Path, settings: DiscoverSettings, device: str
) -> Clustering:
    if (folder / CLUSTERS_FILE).is_file():
        return load_clustering(folder, samples.hash)
    found = cluster(
        vectors.values,
        settings.k,
        method=settings.clustering,
        contexts=samples.contexts,
        least=settings.least,
        seed=settings.seed,
        repeats=settings.repeats,
        device=device,
    )
    found.save(folder, samples.hash)
    return found


def _table(vectors: Vectors, samples: Samples, clustering: Clustering, settings: DiscoverSettings) -> pd.DataFrame:
    histogram = cluster(
        histogram_vectors(samples),
        clustering.about["k"],
        method=clustering.about["method"],
        seed=settings.seed,
        repeats=settings.repeats,
    )
    return comparison(samples, {vectors.kind: clustering, "token histogram": histogram, **baselines(samples)})
