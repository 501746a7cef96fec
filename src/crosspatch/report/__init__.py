"""Figures and the one-file HTML report. No torch here.

Each figure is a function of plain data that returns a `Figure`: it shows itself in a notebook, saves itself as SVG, and
is what the report is made of. `heat_maps` and `gate_plot` take the result of a sweep.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crosspatch.report.data import ReportData
from crosspatch.report.svg import Figure

if TYPE_CHECKING:
    from crosspatch.results import SweepResult

__all__ = ["PAGE", "Figure", "ReportData", "gate_plot", "heat_maps", "write_report"]

PAGE = "report.html"


def heat_maps(result: SweepResult, metric: str | None = None) -> dict[str, Figure]:
    """The heat maps that the rows of a sweep fill (residual stream, blocks, heads), by title.

    Args:
        result: what `patch` or one level of `localize` returned.
        metric: name of the metric (the primary one when None).
    """
    from crosspatch.report.figures import Style, contribution_limit, level_figures, role_order
    from crosspatch.report.levels import level_of

    level = level_of(result, metric=metric)
    return dict(level_figures(level, Style(limit=contribution_limit([level]), roles=role_order([level]))))


def gate_plot(result: SweepResult, metric: str | None = None, label: int = 8) -> Figure:
    """Denoise against noise, one dot per row of the sweep; the `label` largest are named."""
    from crosspatch.report.levels import effects_of
    from crosspatch.report.strips import gate_plane

    return gate_plane(effects_of(result, metric), label=label)


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a folder of saved results, from what is saved there; no model is loaded. Of discovered
    behaviours it is `index.html`, with a page for every cluster.

    Args:
        folder: what `localize(..., out=folder)` or `patch(..., out=folder)` wrote, or `crosspatch paths`, `circuit`,
            `features circuit`, `shift` or `discover`.

    Returns:
        the path of the page.

    Raises:
        ResultError: the folder holds no results, or they were damaged.
    """
    if (Path(folder) / "discover.json").is_file():
        from crosspatch.report.discover import write_index

        return write_index(folder)
    from crosspatch.report.html import encoded
    from crosspatch.report.saved import page_of
    from crosspatch.results.files import write_atomic

    path = Path(folder) / PAGE
    write_atomic(path, encoded(page_of(Path(folder))))
    return path
