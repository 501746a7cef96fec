"""How a sweep was made, for its result: the methodology with fingerprints of model and task."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from crosspatch.metrics import Metric
from crosspatch.model import Model
from crosspatch.model.fingerprint import config_hash, weights_hash
from crosspatch.patching.plan import Cell
from crosspatch.patching.sources import Direction, Source
from crosspatch.results import Methodology, versions
from crosspatch.results.methodology import Mode
from crosspatch.tasks.pairs import Task


def methodology(
    model: Model,
    task: Task,
    metrics: Sequence[Metric],
    cells: Sequence[Cell],
    source: Source,
    directions: Sequence[Direction],
    *,
    n_examples: int,
    seed: int,
    window: int = 1,
    split: str = "all",
    mode: Mode = "exploratory",
    forced: bool = False,
) -> Methodology:
    """The methodology of a sweep."""
    patched = [cell for cell in cells if not cell.control]
    about = source.describe()
    kind = about.pop("source")
    settings = ", ".join(f"{name}={value}" for name, value in about.items())
    return Methodology(
        granularity=tuple(dict.fromkeys(cell.granularity for cell in patched)),
        component=tuple(dict.fromkeys(cell.site.kind for cell in patched)),
        source=f"{kind}({settings})" if settings else kind,
        positions=tuple(dict.fromkeys(str(cell.position) for cell in patched)),
        direction=tuple(directions),
        metrics=tuple(metric.name for metric in metrics),
        task=task.name,
        task_hash=task.hash,
        n_examples=n_examples,
        model=model.name,
        config_hash=config_hash(model),
        weights_hash=weights_hash(model),
        dtype=str(model.dtype).removeprefix("torch."),
        split=split,
        corruption=" / ".join(name for name in task.corruptions if name),
        window=window,
        seeds={"controls": seed, "statistics": seed},
        versions=versions(),
        mode=mode,
        forced=forced,
    )


def table(cells: Sequence[Cell], corruption: str) -> pd.DataFrame:
    """The rows of the effect table that describe the cells."""
    return pd.DataFrame(
        {
            "address": [cell.address for cell in cells],
            "kind": [cell.site.kind for cell in cells],
            "layer": pd.array([cell.site.layer for cell in cells], dtype="Int64"),
            "index": pd.array([cell.site.index for cell in cells], dtype="Int64"),
            "position": [str(cell.position) for cell in cells],
            "granularity": [cell.granularity for cell in cells],
            "parent": [cell.parent for cell in cells],
            "corruption": corruption,
            "control": [cell.control for cell in cells],
            "n_sites": [len(cell.sites) for cell in cells],
        }
    )
