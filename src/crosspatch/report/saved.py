"""From a folder of saved results to the data of a report."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from crosspatch.errors import ResultError
from crosspatch.report.data import ReportData

COMMAND = "crosspatch.json"
PATHS = "paths.json"


def page_of(folder: Path) -> str:
    """The page of a folder of results.

    Raises:
        ResultError: see `read_folder`.
    """
    if (folder / PATHS).is_file():
        from crosspatch.report.paths import render as render_paths
        from crosspatch.report.paths_saved import read_page

        return render_paths(read_page(folder, command_of(folder)))
    from crosspatch.report import circuits_saved

    if circuits_saved.is_circuit(folder):
        from crosspatch.report.circuits import render as render_circuit

        return render_circuit(circuits_saved.read_page(folder, command_of(folder)))
    from crosspatch.report import features_saved

    if features_saved.is_features(folder):
        from crosspatch.report.features import render as render_features

        return render_features(features_saved.read_page(folder, command_of(folder)))
    from crosspatch.report import shift

    if shift.is_shift(folder):
        from crosspatch.report.runs import written_by

        command = command_of(folder)
        with written_by("crosspatch shift", folder / shift.FILE, "restore it from a copy, or run the command again"):
            return shift.render(shift.read_page(folder, command))
    from crosspatch.report.html import render

    return render(read_folder(folder))


def read_folder(folder: Path) -> ReportData:
    """What a folder of results says.

    Raises:
        ResultError: no results there, or a file that was damaged.
    """
    from crosspatch.report.assemble import report_of, report_of_localization
    from crosspatch.results import load_result

    if (folder / "localization.json").is_file():
        from crosspatch.patching import Localization
        from crosspatch.report import circuits_files, circuits_saved, features_files, features_saved

        own, inside = folder / circuits_files.FOLDER, folder / features_files.FOLDER
        circuit = circuits_saved.read_page(own) if circuits_saved.is_circuit(own) else None
        features = features_saved.read_page(inside) if features_saved.is_features(inside) else None
        found = Localization.load(folder)
        return report_of_localization(
            found, command=command_of(folder), python=localized(folder), circuit=circuit, features=features
        )
    if (folder / "result.json").is_file():
        return report_of({"sweep": load_result(folder)}, command=command_of(folder), python=swept(folder))
    raise ResultError(
        "the folder holds no results",
        where=str(folder),
        fix="give the folder that was --out of `crosspatch localize`, `patch`, `paths`, `circuit`, `features circuit`, "
        "`shift` or `discover`",
    )


def command_of(folder: Path) -> str:
    """The command that made the folder, quoted for a shell; empty where it was made from Python."""
    path = folder / COMMAND
    if not path.is_file():
        return ""
    try:
        words: Any = json.loads(path.read_text("utf-8"))["command"]
        return shlex.join(["crosspatch", *map(str, words)])
    except (ValueError, KeyError, TypeError) as error:
        raise ResultError(f"is not what crosspatch writes ({error})", where=str(path), fix="delete the file") from error


def localized(folder: Path) -> str:
    """How to read a localisation in Python."""
    return f"from crosspatch.patching import Localization\n\nfound = Localization.load({str(folder)!r})\nfound.top(10)"


def swept(folder: Path) -> str:
    """How to read a sweep in Python."""
    return f"import crosspatch as cp\n\nresult = cp.load_result({str(folder)!r})\nresult.top(10)"
