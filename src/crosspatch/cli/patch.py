"""`crosspatch patch`: gates, both-direction drill, diagnosis, report."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("patch", epilog="Example: crosspatch patch --model gpt2 --task ioi --out out/ioi")(patch)


def patch() -> None:
    """x"""
