"""What has been measured of path sets so far, so that a stopped run goes on where it was.

Pairs are measured a chunk at a time, all path sets together (`evaluate`), and every finished chunk is put on disk
before the next one begins. A run that goes on measures the other pairs only, in the chunks of an uninterrupted run: its
numbers are the same, bit for bit (with another budget for memory the chunks differ, and the numbers by rounding). What
is kept is found by path sets, pairs and reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from crosspatch.errors import ResultError
from crosspatch.model import Model
from crosspatch.model.fingerprint import config_hash, weights_hash
from crosspatch.paths.compile import Plan
from crosspatch.paths.dissimilarity import Dissimilarity
from crosspatch.paths.evaluate import Progress, make_plan
from crosspatch.paths.measure import Mask, PairNumbers, measure, pair_numbers, require_mask
from crosspatch.paths.norms import Norms
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import Decohered, PathSet
from crosspatch.results.checkpoint import Parts
from crosspatch.results.files import REPAIR, digest, read_json, write_json
from crosspatch.results.methodology import versions

COLUMNS = ("apart", "signed")


class Kept(Parts):
    """Numbers of finished pairs, in `folder/parts`, and how far a search has come.

    Args:
        folder: it may be a new one.
        work: what is being done; one folder can keep several works.
        asked: everything that its numbers depend on, as JSON values.

    Raises:
        ResultError: the folder keeps numbers of the same work that was asked for in another way; names what differs.
    """

    def __init__(self, folder: str | Path, work: str, asked: dict[str, Any]) -> None:
        super().__init__(folder)
        self.work = work
        self.asked = asked = json.loads(json.dumps(asked))  # as it will be when it is read
        if found := _differences(self._works().get(work, {}).get("asked", asked), asked):
            raise ResultError(
                f"what is kept here was made in another way: {'; '.join(found)}",
                where=str(self.folder),
                fix="ask for what was asked for then, use another folder, or delete this one to start anew",
            )

    def append(self, keys: Sequence[str], values: Mapping[str, Float[np.ndarray, "row column"]]) -> None:
        """Store finished rows, and first of all what they are rows of: a run that is refused leaves nothing behind."""
        if self.work not in self._works():
            self.keep(None)
        super().append(keys, values)

    @property
    def state(self) -> Any:
        """What `keep` was given last; None at the beginning."""
        return self._works().get(self.work, {}).get("state")

    def keep(self, state: Any) -> None:
        """Note how far the work has come, as JSON values."""
        write_json(self.header, self._works() | {self.work: {"asked": self.asked, "state": state}})

    def _works(self) -> dict[str, Any]:
        works = read_json(self.header) if self.header.exists() else {}
        if not all(isinstance(one, dict) and isinstance(one.get("asked"), dict) for one in works.values()):
            raise ResultError("is not what path patching keeps", where=str(self.header), fix=REPAIR)
        return works


def kept_in(
    folder: str | Path | None,
    work: str,
    model: Model,
    pairs: Pairs,
    dissimilarity: Dissimilarity,
    norms: Norms,
    **settings: Any,
) -> Kept | None:
    """Where numbers of this work are kept, if a folder was given.

    Args:
        work: what is being done.
        settings: what the numbers depend on besides, as JSON values.

    Raises:
        ResultError: see `Kept`.
    """
    if folder is None:
        return None
    asked = {
        "model": model.name,
        "config_hash": config_hash(model),
        "weights_hash": weights_hash(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "pairs": pairs.provenance,
        "pairs_hash": pairs.hash,
        "spans_and_clusters": _digest([pairs.spans, pairs.clusters]),
        "dissimilarity": dissimilarity.name,
        "norms": norms,
        **settings,
        "versions": versions(),
    }
    return Kept(folder, work, asked)


def measure_kept(
    kept: Kept | None,
    model: Model,
    sets: Sequence[PathSet | Decohered],
    pairs: Pairs,
    dissimilarity: Dissimilarity,
    *,
    mask: Mask | None = None,
    norms: Norms = "recomputed",
    anew: Collection[int] = (),
    budget_mib: float | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> PairNumbers:
    """`measure`, but pairs that are kept are not measured again, and all others are kept as soon as they are done.

    Raises:
        ResultError: what is kept was damaged. See also `measure`.
    """
    options: dict[str, Any] = {"norms": norms, "anew": anew, "budget_mib": budget_mib}
    if kept is None:
        return measure(model, sets, pairs, dissimilarity, mask=mask, progress=progress, on_plan=on_plan, **options)
    counts = [row.tolist() for row in require_mask(mask, pairs)]
    of = _digest([[_plain(one) for one in sets], pairs.hash, counts, sorted(anew)])
    apart, signed = (np.full((len(sets) + 2, len(pairs)), np.nan) for _ in COLUMNS)
    stored = kept.rows(COLUMNS)
    done = [i for i in range(len(pairs)) if f"{of} {i}" in stored]
    for i in done:
        apart[:, i], signed[:, i] = (stored[f"{of} {i}"][name] for name in COLUMNS)
    if len(done) == len(pairs):
        if progress is not None:
            progress(len(pairs), len(pairs))
        return pair_numbers(apart, signed, make_plan(model, sets, pairs, anew, norms)[0])

    def on_pairs(chunk: list[int], far: Float[np.ndarray, "run pair"], value: Float[np.ndarray, "run pair"]) -> None:
        apart[:, chunk], signed[:, chunk] = far, value
        kept.append([f"{of} {i}" for i in chunk], {"apart": far.T, "signed": value.T})

    found = measure(
        model,
        sets,
        pairs,
        dissimilarity,
        mask=mask,
        skip=done,
        progress=progress,
        on_plan=on_plan,
        on_pairs=on_pairs,
        **options,
    )
    return pair_numbers(apart, signed, found.plan)


def keep_steps(kept: Kept, rows: Sequence[Mapping[str, Any]], ended: bool) -> None:
    """Keep the steps that a search took, and drop the numbers that led to them.

    Args:
        rows: of the log: `step`, `pattern`, and `explained`, the proportion after it; the start is the first.
        ended: whether there will be no further one.
    """
    plain = [{name: None if value != value else value for name, value in row.items()} for row in rows]  # no NaN in JSON
    kept.keep({"rows": plain, "ended": ended})
    kept.drop()


def steps_kept(kept: Kept | None) -> tuple[list[dict[str, Any]], bool]:
    """What `keep_steps` was given last; the start alone where there is nothing.

    Raises:
        ResultError: it was damaged.
    """
    state = None if kept is None else kept.state
    if kept is None or state is None:
        return [{"step": "start", "pattern": ""}], False
    try:
        rows = [
            {
                "step": str(row["step"]),
                "pattern": str(row["pattern"]),
                "explained": np.nan if row["explained"] is None else float(row["explained"]),
            }
            for row in state["rows"]
        ]
        if [row["step"] for row in rows[:1]] != ["start"] or not {r["step"] for r in rows[1:]} <= {"add", "remove"}:
            raise ValueError("no such steps")
        return rows, bool(state["ended"])
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(f"holds steps that cannot be read ({error})", where=str(kept.header), fix=REPAIR) from error


def _differences(found: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Every entry in which the two differ, with both values."""
    names = list(dict.fromkeys([*found, *asked]))
    both = [(name, found.get(name), asked.get(name)) for name in names]
    return [f"{name} ({_show(a)} there, {_show(b)} asked for)" for name, a, b in both if a != b]


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(one: PathSet | Decohered) -> Any:
    if isinstance(one, Decohered):
        return {"kept": one.kept.to_json(), "groups": [group.to_json() for group in one.groups]}
    return one.to_json()


def _digest(value: Any) -> str:
    return digest(json.dumps(value).encode())[:16]
