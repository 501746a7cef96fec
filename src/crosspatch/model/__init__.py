"""A Hugging Face model seen as a graph, and the executor that patches it exactly."""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.model.anatomy import Anatomy, Layout, read_anatomy
    from crosspatch.model.check import CheckReport, check
    from crosspatch.model.load import load
    from crosspatch.model.model import Model
    from crosspatch.model.replay import record, replay
    from crosspatch.model.run import Blocked, Cost, Edit, FromRun, Readout, Row, Run

__all__ = [
    "Anatomy",
    "Blocked",
    "CheckReport",
    "Cost",
    "Edit",
    "FromRun",
    "Layout",
    "Model",
    "Readout",
    "Row",
    "Run",
    "check",
    "load",
    "read_anatomy",
    "record",
    "replay",
]

# Listing the known models needs no torch.
make_lazy(
    __name__,
    {
        "anatomy": ("Anatomy", "Layout", "read_anatomy"),
        "check": ("CheckReport", "check"),
        "load": ("load",),
        "model": ("Model",),
        "replay": ("record", "replay"),
        "run": ("Blocked", "Cost", "Edit", "FromRun", "Readout", "Row", "Run"),
    },
)
