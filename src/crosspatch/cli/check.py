"""`crosspatch check`: proof, on one model, that the graph is the model."""

from __future__ import annotations

from typing import Annotated

import typer

from crosspatch.cli.console import CHECK_FAILED, OK, Debug, Json, Quiet, result, say
from crosspatch.cli.inputs import Device, Dtype, Threads, load_unchecked


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("check", epilog="Example: crosspatch check ./my-model --dtype bfloat16")(check_model)


def check_model(
    model: Annotated[
        str, typer.Argument(help="embedded, a name from `crosspatch models`, a folder, or a Hugging Face name.")
    ],
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prove that the graph's nodes add up to the model's residual stream and that its logits come out the same."""
    from crosspatch.model import check

    loaded = load_unchecked(model, dtype, device, threads)
    report = check(loaded)
    code = OK if report.passed else CHECK_FAILED
    items = [
        {"name": i.name, "claim": i.claim, "error": i.error, "tolerance": i.tolerance, "passed": i.passed}
        for i in report.items
    ]
    result({"ok": report.passed, "exit_code": code, "model": report.model, "items": items})
    say(str(report))
    raise typer.Exit(code)
