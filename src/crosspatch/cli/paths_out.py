"""What `crosspatch paths` writes: one JSON file with the result, its tables as CSV, and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspatch.cli.console import mode, note, say
from crosspatch.cli.folders import MARKER, open_folder
from crosspatch.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd

    from crosspatch.cli.paths_inputs import Given
    from crosspatch.paths.attribute import Attribution
    from crosspatch.paths.compile import Plan
    from crosspatch.paths.pairs import Pairs
    from crosspatch.paths.saved import Result

RESULT, GATES = "paths.json", "gates.json"


def take(out: Path | None, overwrite: bool, resume: bool | None = None) -> None:
    """Take the folder, if one was given, before anything runs; with --overwrite, without what an earlier run left.

    Args:
        resume: whether to go on with what is kept there; None for a command that keeps nothing before its end.

    Raises:
        ResultError: it holds something; --resume without a folder.
    """
    if out is None:
        if resume:
            raise ResultError("there is no folder to go on in", where="--resume", fix="give the --out of that run")
        return
    ours = (out / MARKER).is_file()
    try:
        open_folder(out, resume=bool(resume), overwrite=overwrite)
    except ResultError as error:
        if ours and resume is None:  # it has no --resume to recommend
            raise ResultError(
                error.what, where=error.where, fix="--overwrite starts again, or give another --out"
            ) from error
        raise
    mode.resumable = resume is not None


def planned(pairs: Pairs) -> Callable[[Plan], None]:
    """Prints how a run will be computed and what that costs, before it is."""
    return lambda plan: note(f"Plan: {plan.describe()}, {len(pairs)} pairs")


def write_folder(
    out: Path,
    results: Sequence[Result],
    tables: Mapping[str, pd.DataFrame],
    given: Given,
    title: str,
    *,
    facts: Mapping[str, str] | None = None,
    **page: Any,
) -> str:
    """Write everything, the page last, made from what was written as `crosspatch report` makes it; returns its path.

    Args:
        results: the one that was asked for, and controls beside it.
        page: what the page shows besides (`report.paths_saved`).
    """
    from crosspatch.paths.saved import save, to_json
    from crosspatch.report import write_report
    from crosspatch.results.files import write_atomic, write_json

    pairs = given.pairs
    about = {
        "title": title,
        "asked": given.about,
        "facts": dict(facts or {}),
        "prompt": {"provenance": pairs.provenance, "spans": pairs.spans[0]},
    }
    save(results[0], out / RESULT, also=[to_json(one) for one in results[1:]], page=about | page)
    for name, table in tables.items():
        write_atomic(out / f"{name}.csv", table.to_csv(index=False).encode())
    if given.gates is not None:
        write_json(out / GATES, given.gates.to_dict())
    return str(write_report(out))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def attribution_frame(seen: Attribution, following: str) -> pd.DataFrame:
    """One row per read: where it was made, the token that should come next, change of the quantity, its value there.

    `reference` is the quantity (`seen.about["quantity"]`: a loss, a logit difference) in the model itself.
    """
    import pandas as pd

    after = [*seen.tokens[1:], following]
    return pd.DataFrame(
        {
            "position": seen.positions,
            "predicts": [after[p] for p in seen.positions],
            "effect": seen.effect,
            "low": seen.low,
            "high": seen.high,
            "reference": seen.reference,
        }
    )


def say_intervals(n_pairs: int) -> None:
    """Why numbers have no interval, where that is plain: nothing is known of how pairs differ."""
    if n_pairs == 1:
        say("One pair: no interval.")


def say_report(page: str | None) -> None:
    """The last line of every command."""
    if page:
        say(f"Report: {page}")
