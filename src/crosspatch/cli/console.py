"""What the commands share: where text goes, progress bars, JSON, errors and exit codes."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from crosspatch.errors import CrosspatchError, GateError
from crosspatch.report.tokens import visible

OK, REFUSED, BAD_INPUT, CHECK_FAILED, INTERNAL, STOPPED = 0, 1, 2, 3, 70, 130
EXIT_CODES = (
    "Exit codes: 0 done, 1 a gate failed and the experiment was refused, 2 bad input, 3 the model failed its check."
)

Done = Callable[[float, float], None]
"""Progress of one stage: (done, total)."""


@dataclass
class Mode:
    """How this run of the command line speaks; set by the options that every command has.

    `resumable`: what is finished is being saved, so that --resume can go on from there.
    """

    json: bool = False
    quiet: bool = False
    debug: bool = False
    resumable: bool = False


mode = Mode()


def _set(name: str) -> Callable[[bool], bool]:
    def remember(value: bool) -> bool:
        if value:
            setattr(mode, name, True)
        return value

    return remember


Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.", callback=_set("json")),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress bars, only the result.", callback=_set("quiet"))
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_set("debug"))]


def errors_console() -> Console:
    """The console for everything that is not the result. Made anew each time, so that it follows sys.stderr."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def clean(text: str) -> str:
    """The text with control characters made visible, line ends kept: it may come from a file or a model."""
    return "\n".join(visible(line) if line else "" for line in text.split("\n"))


def say(text: str = "") -> None:
    """One line of the result for a person (nothing in JSON mode). Control characters are made visible."""
    if not mode.json:
        print(clean(text))


def note(text: str) -> None:
    """One line on the side, on stderr (nothing with --quiet or --json)."""
    if not (mode.quiet or mode.json):
        errors_console().print(clean(text))


def result(value: Any) -> None:
    """The machine-readable result, in JSON mode only. Numbers that are not finite become null."""
    if mode.json:
        json.dump(finite(value), sys.stdout, ensure_ascii=False, indent=2)
        sys.stdout.write("\n")


def finite(value: Any) -> Any:
    """The value with NaN and infinities replaced by None, tuples by lists, numpy scalars by Python's."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(rows: list[list[str]], head: list[str]) -> str:
    """Rows in aligned columns."""
    cells = [head, *([visible(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def shows_bars() -> bool:
    """Bars are for people who watch: a terminal on stderr, and neither --json nor --quiet."""
    return sys.stderr.isatty() and not (mode.json or mode.quiet)


class Bars:
    """Stages of a long job on stderr, each with its time left. Where bars are off it does nothing."""

    def __init__(self, shown: Progress | None) -> None:
        self.shown = shown
        self.current: TaskID | None = None
        self.name = ""
        self.started = time.monotonic()

    def stage(self, name: str, done: float, total: float) -> None:
        """Say how far the stage of that name is; a new name begins a new stage."""
        if self.shown is None:
            return
        if self.current is None or name != self.name:
            if self.current is not None:
                self.shown.update(self.current, completed=self.shown.tasks[-1].total or 1)
            self.current, self.name = self.shown.add_task(visible(name), total=total or 1), name
        self.shown.update(self.current, completed=done, total=total or 1)

    def of(self, name: str) -> Done:
        """The progress callback of one stage."""
        return lambda done, total: self.stage(name, done, total)


@contextmanager
def bars() -> Iterator[Bars]:
    """Progress bars with elapsed and remaining time, gone when the job is done."""
    if not shows_bars():
        yield Bars(None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors_console(), transient=True) as shown:
        yield Bars(shown)


def fail(error: CrosspatchError) -> int:
    """Print an error (what, where, fix) and return its exit code."""
    code = REFUSED if isinstance(error, GateError) else BAD_INPUT
    head = "Refused" if code == REFUSED else "Error"
    where = f" ({error.where})" if error.where else ""
    lines = [f"{head}{where}: {error.what}"] + ([f"  Fix: {error.fix}"] if error.fix else [])
    errors_console().print(clean("\n".join(lines)))
    said = {"type": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
    result({"ok": False, "exit_code": code, "error": said})
    return code
