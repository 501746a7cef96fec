"""The folder given with --out: nothing is written outside it, and nothing in it is lost that was not given up."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from crosspatch.errors import ResultError
from crosspatch.report import features_files
from crosspatch.report.circuits_files import FOLDER, PARTS
from crosspatch.report.saved import COMMAND

MARKER = COMMAND
OURS = re.compile(
    r"(localization|gates|examples|attention|conditional|confirmation|result|methodology|paths)\.json|report\.html"
    r"|(scores|comparison|apart|attribution|senders|mediation|mediators|steps)\.csv"
    r"|effects\.parquet|(rows|examples|arrays|scores|part-[0-9]+)-[0-9a-f]{12}\.parquet"
    r"|(circuit|find|ranking|scores|verification|worst)\.json|verification\.csv"
    r"|(features|feature-circuit|feature-effects|exact|cards|evaluations)\.json|cards\.html"
    r"|(kept|dropped|mean|edges|values|nodes|ends|samples)-[0-9a-f]{12}\.parquet"
    r"|(discover|samples|clusters|cluster|vectors)\.json|vectors\.npy|index\.html|c[0-9]{5,}\.html"
    r"|shift\.json"
)
"""Names of the files that a run writes; --overwrite removes these and no others."""
VOICE = {"--resume", "--overwrite", "--json", "--quiet", "-q", "--debug"}
SPEED = {"--threads", "--budget-mib"}


def open_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Take the folder for this command, and mark it as ours with the command that made it.

    An empty or new folder is taken. A results folder of ours is taken with --resume, when it was made by the same
    command, or with --overwrite, which removes the results. Any other folder with something in it is refused without
    --overwrite; nothing of it is removed.

    Raises:
        ResultError: the folder may not be used.
    """
    command = essential(sys.argv[1:])
    _require_free(out, command, resume, overwrite)
    if overwrite and (out / MARKER).is_file():
        _clear(out)
    from crosspatch.results.files import write_json

    write_json(out / MARKER, {"made by": "crosspatch", "command": command})


def essential(command: Sequence[str]) -> list[str]:
    """The command without options that change how it runs and speaks but not what it finds."""
    kept, skip = [], False
    for word in command:
        if not skip and word not in VOICE and word.split("=")[0] not in SPEED:
            kept.append(word)
        skip = not skip and word in SPEED
    return kept


def with_this_command(commands: list[list[str]]) -> list[list[str]]:
    """Commands that made a folder, and the present one, once."""
    command = essential(sys.argv[1:])
    return commands if command in commands else [*commands, command]


def _require_free(out: Path, command: list[str], resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ResultError(
            "--resume keeps what is there, --overwrite replaces it", where=str(out), fix="give one of them"
        )
    if out.exists() and not out.is_dir():
        raise ResultError("it is a file", where=str(out), fix="give --out a folder")
    if overwrite or not out.is_dir() or all(path.name == MARKER for path in out.iterdir()):
        return
    if not (out / MARKER).is_file():
        raise ResultError(
            "the folder is not empty and is not a results folder of Crosspatch",
            where=str(out),
            fix="give another --out, or --overwrite to write into it (nothing of yours is removed)",
        )
    if not resume:
        raise ResultError(
            "the folder already holds results",
            where=str(out),
            fix="--resume goes on where it stopped, --overwrite starts again, or give another --out",
        )
    made_by = recorded(out)
    if made_by != command:
        raise ResultError(
            f"the results there were made by another command (crosspatch {' '.join(made_by)})",
            where=str(out),
            fix="run that one with --resume, start again with --overwrite, or give another --out",
        )


def recorded(out: Path) -> list[str]:
    """The command that made a folder of ours.

    Raises:
        ResultError: the marker was damaged.
    """
    from crosspatch.results.files import read_json

    words = read_json(out / MARKER).get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ResultError("is not what crosspatch writes", where=str(out / MARKER), fix="give --overwrite")
    return words


def _clear(out: Path) -> None:
    """Remove the files of earlier results, and the folders that only held them."""
    folders = [out, out / "confirmation", out / "conditional", out / "parts", *(out / "levels").glob("*")]
    folders += [folder / "parts" for folder in folders[1:]] + [out / "levels"]
    folders += [base / name for base in (out, out / FOLDER) for name in PARTS] + [out / FOLDER]
    folders += [out / name for name in features_files.PARTS]
    folders += [out / "vectors", out / "pages", out / "circuits", *(out / "circuits").glob("c[0-9]*")]
    for folder in sorted(set(folders), key=lambda f: -len(f.parts)):
        if not folder.is_dir() or folder.is_symlink():
            continue
        for path in folder.iterdir():
            if path.is_file() and OURS.fullmatch(path.name):
                path.unlink()
        if folder != out and not any(folder.iterdir()):
            folder.rmdir()
