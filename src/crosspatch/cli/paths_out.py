"""What `crosspatch paths` writes: one JSON file with the result, its tables as CSV, and the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspatch.cli.console import finite, note, say
from crosspatch.cli.folders import MARKER, open_folder
from crosspatch.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd

    from crosspatch.cli.paths_inputs import Given
    from crosspatch.paths.attribute import Attribution
    from crosspatch.paths.compile import Plan
    from crosspatch.paths.pairs import Pairs
    from crosspatch.paths.refine import Refinement
    from crosspatch.paths.sender import SenderEffects
    from crosspatch.report.paths import Page

RESULT, GATES, PAGE = "paths.json", "gates.json", "report.html"


def take(out: Path | None, overwrite: bool) -> None:
    """Take the folder, if one was given, before anything runs; with --overwrite, without what an earlier run left.

    Raises:
        ResultError: it holds something.
    """
    if out is None:
        return
    ours = (out / MARKER).is_file()
    try:
        open_folder(out, resume=False, overwrite=overwrite)
    except ResultError as error:
        if ours:  # these commands are short and have no --resume
            raise ResultError(
                error.what, where=error.where, fix="--overwrite starts again, or give another --out"
            ) from error
        raise


def planned(pairs: Pairs) -> Callable[[Plan], None]:
    """Prints how a run will be computed and what that costs, before it is."""
    return lambda plan: note(f"Plan: {plan.describe()}, {len(pairs)} pairs")


def write_folder(
    out: Path, save: Callable[[Path], object], tables: Mapping[str, pd.DataFrame], given: Given, page: Page
) -> str:
    """Write everything, the page last; returns its path."""
    from crosspatch.report.assemble import gates_of
    from crosspatch.report.paths import render
    from crosspatch.report.saved import command_of
    from crosspatch.results.files import write_atomic, write_json

    save(out / RESULT)
    for name, table in tables.items():
        write_atomic(out / f"{name}.csv", table.to_csv(index=False).encode())
    fields: dict[str, Any] = {"command": command_of(out), "asked": given.about}
    if given.gates is not None:
        said = given.gates.to_dict()
        write_json(out / GATES, said)
        fields |= {"gates": gates_of(said), "forced": given.gates.forced}
    write_atomic(out / PAGE, render(dataclasses.replace(page, **fields)).encode())
    return str(out / PAGE)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def attribution_frame(seen: Attribution, following: str) -> pd.DataFrame:
    """One row per read: where it was made, the token that should come next, change of the loss, loss in the model."""
    import pandas as pd

    after = [*seen.tokens[1:], following]
    return pd.DataFrame(
        {
            "position": seen.positions,
            "predicts": [after[p] for p in seen.positions],
            "effect": seen.effect,
            "low": seen.low,
            "high": seen.high,
            "loss": seen.reference,
        }
    )


def save_attribution(seen: Attribution, name: str, given: Given, about: Mapping[str, Any], path: Path) -> None:
    """Everything of an attribution, every counterfactual's numbers included."""
    data = {"hypothesis": name, **about, "pairs": given.pairs.provenance, "pairs_hash": given.pairs.hash}
    data |= {"tokens": seen.tokens, "following": given.following, "unit": seen.unit, "positions": list(seen.positions)}
    arrays = ("effect", "low", "high", "reference", "draws")
    _write(path, data | {array: getattr(seen, array).tolist() for array in arrays})


def save_sweep(swept: SenderEffects, path: Path) -> None:
    """Everything of a sender sweep, every pair's numbers included."""
    arrays = {"effect": swept.effect.tolist(), "total": swept.total.tolist()}
    _write(path, {"senders": swept.senders, "about": swept.about, "clusters": swept.clusters, **arrays})


def save_refinement(grown: Refinement, path: Path) -> None:
    """Everything of a discovery run."""
    log = records(grown.log)
    _write(path, {"patterns": grown.patterns, "about": grown.about, "log": log, "random": grown.random.tolist()})


def _write(path: Path, data: dict[str, Any]) -> None:
    from crosspatch.results.files import write_json

    write_json(path, finite(data))


def say_report(page: str | None) -> None:
    """The last line of every command."""
    if page:
        say(f"Report: {page}")
