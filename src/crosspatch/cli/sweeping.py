"""What `localize` and `patch` share: options of a sweep, and how its rows are printed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli.console import table
from crosspatch.errors import InterventionError
from crosspatch.report.svg import interval, percent, signed

if TYPE_CHECKING:
    from crosspatch.patching.sources import Source
    from crosspatch.report.data import Remark
    from crosspatch.results import SweepResult


class Way(StrEnum):
    """Direction of patching."""

    both = "both"
    denoise = "denoise"
    noise = "noise"


Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", help="A metric by name; repeat for several, the first one ranks. Default: logit_diff and more."
    ),
]
Directions = Annotated[
    Way, typer.Option(help="denoise: clean into corrupt (restores); noise: corrupt into clean (breaks).")
]
Sources = Annotated[
    str,
    typer.Option(
        "--source",
        help="What is inserted: paired (the other prompt's value), zero, mean[:clean|corrupt], noise[:scale], "
        "resample[:clean|corrupt].",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Go on when a gate fails; the result is marked as forced.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on in a folder that holds unfinished or finished results.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start again in a folder that is not empty.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; nothing is written outside it.")]


def source_of(text: str, seed: int) -> Source:
    """The source that was typed.

    Raises:
        InterventionError: no such source, or a setting that it does not have.
    """
    from crosspatch.patching.references import Mean, Resample
    from crosspatch.patching.sources import GaussianNoise, OtherRun, Zero

    name, _, setting = text.partition(":")
    wrong = InterventionError(
        f"unknown source {text!r}",
        where="--source",
        fix="use paired, zero, mean, mean:clean, noise, noise:3, resample or resample:clean",
    )
    if name in ("paired", "zero") and not setting:
        return OtherRun() if name == "paired" else Zero()
    if name in ("mean", "resample") and setting in ("", "clean", "corrupt"):
        over: Any = setting or "corrupt"
        return Mean(over) if name == "mean" else Resample(over, seed=seed)
    if name == "noise":
        try:
            return GaussianNoise(float(setting) if setting else 3.0, seed=seed)
        except ValueError:
            raise wrong from None
    raise wrong


def top_table(result: SweepResult, n: int, granularity: str | None = None) -> str:
    """The `n` strongest rows as text."""
    rows = result.top(n, granularity=granularity)
    head = ["part", "denoise", "interval", "share", "noise", "interval", "share", "INT", "label", "q"]
    cells = []
    for _, row in rows.iterrows():
        name = f"{row['address']} ({row['corruption']})" if result.rows["corruption"].nunique() > 1 else row["address"]
        line = [name]
        for direction in ("denoise", "noise"):
            line += [_number(row[f"{direction}_effect"]), interval(row[f"{direction}_low"], row[f"{direction}_high"])]
            line.append(_share(row[f"{direction}_norm"]))
        tested = [q for q in (row["q_denoise"], row["q_noise"]) if q == q]
        q = f"{min(tested):.3f}" if tested else ""
        cells.append([*line, _number(row["int"]), row["gate"], q])
    return table(cells, head)


def _number(value: float) -> str:
    return signed(value) if value == value else ""


def _share(value: float) -> str:
    return percent(value) if value == value else ""


def as_records(result: SweepResult, n: int | None = None) -> list[dict[str, Any]]:
    """Rows of the effect table as JSON values: all of them in their order, or the `n` strongest."""
    import pandas as pd

    frame = result.frame() if n is None else result.top(n)
    return [{k: None if pd.isna(v) else v for k, v in row.items()} for row in frame.to_dict("records")]


def said_of(remarks: Sequence[Remark]) -> str:
    """The findings, most serious first, one line for each title."""
    lines = []
    for remark in remarks:
        more = len(remark.details) - 1
        rest = f" (and {more} more of this kind, in the report)" if more > 0 else ""
        lines.append(f"{remark.severity}: {remark.title}: {remark.details[0]}{rest}")
    return "\n".join(lines)
