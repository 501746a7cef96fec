"""`crosspatch report`: the page again, from saved results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosspatch.cli.console import Debug, Json, Quiet, result, say

_FOLDER = (
    "What was --out of `crosspatch localize`, `patch`, `paths`, `circuit`, `features circuit`, `shift` or `discover`."
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("report", epilog="Example: crosspatch report out/ioi")(rebuild)


def rebuild(
    folder: Annotated[Path, typer.Argument(help=_FOLDER)],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rebuild the HTML report of a folder of saved results; no model is loaded.

    Of `discover` that is index.html with a page for every cluster, of all others report.html.
    """
    from crosspatch.report import write_report

    path = write_report(folder)
    result({"ok": True, "report": str(path)})
    say(f"Report: {path}")
