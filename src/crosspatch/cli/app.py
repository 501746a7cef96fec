"""The commands, put together; the only place that turns errors into exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from crosspatch.cli import check, circuit, discover, features, localize, models, patch, paths, report, shift, tasks
from crosspatch.cli.console import EXIT_CODES, INTERNAL, STOPPED, errors_console, fail, mode
from crosspatch.errors import CrosspatchError

app = typer.Typer(
    name="crosspatch",
    help="Find which parts of a language model cause a behaviour, by exact activation patching.",
    epilog=f"Start with: crosspatch localize --task ioi --out out/ioi. {EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
localize.add_to(app)
patch.add_to(app)
report.add_to(app)
app.add_typer(paths.app, name="paths")
app.add_typer(circuit.app, name="circuit")
app.add_typer(features.app, name="features")
shift.add_to(app)
discover.add_to(app)
app.add_typer(models.app, name="models")
app.add_typer(tasks.app, name="tasks")
check.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"crosspatch {version('crosspatch')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `crosspatch` command."""
    mode.json = mode.quiet = mode.debug = mode.resumable = False
    try:
        app(prog_name="crosspatch")
    except CrosspatchError as error:
        if mode.debug:
            raise
        sys.exit(fail(error))
    except SystemExit as stopped:  # what typer makes of Ctrl-C
        if stopped.code == STOPPED:
            saved = "What was finished is saved; the same command with --resume goes on from there."
            errors_console().print(f"Stopped. {saved if mode.resumable else 'Nothing was saved.'}")
        raise
    except Exception as error:
        if mode.debug:
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        errors_console().print(f"Internal error: {text}\n  Fix: run again with --debug and report what it prints.")
        sys.exit(INTERNAL)
