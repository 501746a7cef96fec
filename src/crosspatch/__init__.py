"""Crosspatch finds which parts of a language model cause a behaviour, and tests the claim.

>>> import crosspatch as cp                                                # doctest: +SKIP
>>> model = cp.load("embedded")                                           # doctest: +SKIP
>>> task = cp.make_task("ioi", n=32, tokenizer=model.tokenizer)           # doctest: +SKIP
>>> cp.patch(model, task, "a*.h*").top(10)                                # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("crosspatch")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

# Names are imported when they are first used, so that `crosspatch --help` does not wait for torch.
_HOME = {
    "crosspatch.errors": ("CrosspatchError", "GateError"),
    "crosspatch.graph": ("Address", "Site", "parse_address", "parse_site", "select"),
    "crosspatch.model": ("Edit", "FromRun", "Layout", "Model", "Row", "check", "load", "record", "replay"),
    "crosspatch.tasks": ("Pair", "Task", "gates", "list_tasks", "make_task", "read_task"),
    "crosspatch.metrics": ("KL", "FunctionMetric", "LogitDiff", "LogProb", "Metric", "Prob", "resolve_metrics"),
    "crosspatch.results": ("Methodology", "SweepResult", "load_result", "save_result"),
    "crosspatch.patching": (
        "Function",
        "GaussianNoise",
        "Given",
        "Mean",
        "OtherRun",
        "Resample",
        "Zero",
        "conditional",
        "diagnose",
        "drill",
        "localize",
        "patch",
    ),
}
_ROOMS = ("attribution", "circuits", "dictionaries", "features", "paths")  # packages of this one, reached as `cp.paths`
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = ["__version__", *sorted((*_MODULE, *_ROOMS))]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"crosspatch.{name}")
    if name not in _MODULE:
        raise AttributeError(f"module 'crosspatch' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from crosspatch import attribution as attribution
    from crosspatch import circuits as circuits
    from crosspatch import dictionaries as dictionaries
    from crosspatch import features as features
    from crosspatch import paths as paths
    from crosspatch.errors import CrosspatchError as CrosspatchError
    from crosspatch.errors import GateError as GateError
    from crosspatch.graph import Address as Address
    from crosspatch.graph import Site as Site
    from crosspatch.graph import parse_address as parse_address
    from crosspatch.graph import parse_site as parse_site
    from crosspatch.graph import select as select
    from crosspatch.metrics import KL as KL
    from crosspatch.metrics import FunctionMetric as FunctionMetric
    from crosspatch.metrics import LogitDiff as LogitDiff
    from crosspatch.metrics import LogProb as LogProb
    from crosspatch.metrics import Metric as Metric
    from crosspatch.metrics import Prob as Prob
    from crosspatch.metrics import resolve_metrics as resolve_metrics
    from crosspatch.model import Edit as Edit
    from crosspatch.model import FromRun as FromRun
    from crosspatch.model import Layout as Layout
    from crosspatch.model import Model as Model
    from crosspatch.model import Row as Row
    from crosspatch.model import check as check
    from crosspatch.model import load as load
    from crosspatch.model import record as record
    from crosspatch.model import replay as replay
    from crosspatch.patching import Function as Function
    from crosspatch.patching import GaussianNoise as GaussianNoise
    from crosspatch.patching import Given as Given
    from crosspatch.patching import Mean as Mean
    from crosspatch.patching import OtherRun as OtherRun
    from crosspatch.patching import Resample as Resample
    from crosspatch.patching import Zero as Zero
    from crosspatch.patching import conditional as conditional
    from crosspatch.patching import diagnose as diagnose
    from crosspatch.patching import drill as drill
    from crosspatch.patching import localize as localize
    from crosspatch.patching import patch as patch
    from crosspatch.results import Methodology as Methodology
    from crosspatch.results import SweepResult as SweepResult
    from crosspatch.results import load_result as load_result
    from crosspatch.results import save_result as save_result
    from crosspatch.tasks import Pair as Pair
    from crosspatch.tasks import Task as Task
    from crosspatch.tasks import gates as gates
    from crosspatch.tasks import list_tasks as list_tasks
    from crosspatch.tasks import make_task as make_task
    from crosspatch.tasks import read_task as read_task
