"""`crosspatch localize`: gates, both-direction drill, diagnosis, report."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("localize", epilog="Example: crosspatch localize --model gpt2 --task ioi --out out/ioi")(localize)


def localize() -> None:
    """x"""
