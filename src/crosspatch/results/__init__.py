"""The effect table, its statistics, and reading and writing. No torch here."""

from crosspatch.results.checkpoint import Checkpoint
from crosspatch.results.io import load_result, save_result
from crosspatch.results.methodology import COMPARED, Methodology, differences, require_comparable, versions
from crosspatch.results.statistics import GATES
from crosspatch.results.table import COLUMNS, DIRECTIONS, SEVERITIES, Finding, SweepResult

__all__ = [
    "COLUMNS",
    "COMPARED",
    "DIRECTIONS",
    "GATES",
    "SEVERITIES",
    "Checkpoint",
    "Finding",
    "Methodology",
    "SweepResult",
    "differences",
    "load_result",
    "require_comparable",
    "save_result",
    "versions",
]
