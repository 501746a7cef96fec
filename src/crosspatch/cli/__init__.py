"""The command line: thin. Every command says what it does with one call into the other rooms."""

from crosspatch.cli.app import main

__all__ = ["main"]
