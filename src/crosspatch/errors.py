"""One exception family. Every message says what was wrong, where, and what to do about it."""

from __future__ import annotations


class CrosspatchError(Exception):
    """Base of all errors that Crosspatch raises on purpose.

    Args:
        what: what is wrong, with the offending value in it.
        where: the site, example, file or field concerned.
        fix: what the user can do about it; names a working alternative.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [what if where is None else f"{where}: {what}"]
        if fix is not None:
            parts.append(f"Fix: {fix}")
        super().__init__("\n".join(parts))


class AddressError(CrosspatchError):
    """A site, address or pattern that cannot be parsed or does not exist in this model."""


class ModelError(CrosspatchError):
    """A model that cannot be loaded, is not understood, or does not pass its check."""


class InterventionError(CrosspatchError):
    """An intervention whose site, positions, shapes or source do not fit."""


class TaskError(CrosspatchError):
    """Pairs, answers or spans that are malformed or do not align."""


class GateError(TaskError):
    """An experiment that would mislead: the gates before a run did not pass."""


class MetricError(CrosspatchError):
    """A metric that does not fit the task, or returned something of the wrong shape."""


class ResultError(CrosspatchError):
    """Results that cannot be read, written or compared."""


class PathError(CrosspatchError):
    """A set of paths that cannot be read, is impossible in this model, or is empty."""


class CircuitError(CrosspatchError):
    """A circuit, scores or a file of one that cannot be read, do not fit the model, or do not fit each other."""


class DictionaryError(CrosspatchError):
    """A dictionary of features that cannot be read, trained or saved, or does not fit the model."""
