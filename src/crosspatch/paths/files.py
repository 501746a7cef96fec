"""Hypotheses from a small text file.

# What is claimed about indirect objects
[always]                                      paths that stay on the reference in every hypothesis
** -> m* -> ** -> logits

[name movers]
** -> {a9.h6, a9.h9} -> logits                lines are joined
- ** -> m0 -> ** -> logits                    `-` takes paths away from what stands above it
& ** -> a9.h6 -> ** -> logits                 `&` keeps only those that are also in this line
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from crosspatch.errors import PathError
from crosspatch.paths.pathset import PathSet, paths

ALWAYS = "always"
LARGEST = 2**20
DEEPEST = 100
"""Changes between adding, removing and intersecting in one hypothesis: each nests the set once more."""


@dataclass(frozen=True)
class Hypotheses:
    """Named path sets, and those that stay on the reference in all of them."""

    named: dict[str, PathSet]
    always: PathSet | None


def parse_hypotheses(text: str, where: str = "hypotheses") -> Hypotheses:
    """Read the text form.

    Raises:
        PathError: names the line.
    """
    found: dict[str, PathSet | None] = {}
    name: str | None = None
    last, turns = "+", 0
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):  # not at other separators of Unicode
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        here = f"{where}, line {number}"
        if not line:
            continue
        if line.startswith("["):
            if not re.fullmatch(r"\[[^\[\]]*[^\[\]\s][^\[\]]*\]", line):
                raise PathError(f"{line!r} is no name", where=here, fix="write [name]")
            name = line[1:-1].strip()
            if name in found:
                raise PathError(f"[{name}] is there twice", where=here, fix="give every hypothesis its own name")
            found[name], last, turns = None, "+", 0
            continue
        if name is None:
            raise PathError("a path before any name", where=here, fix="write [name] on a line of its own above it")
        sign = line[0] if line[0] in "-&+" else "+"
        try:
            part = paths(line[1:] if line[0] in "-&+" else line)
        except PathError as error:
            raise PathError(error.what, where=here, fix=error.fix) from error
        turns, last = turns + (sign != last), sign
        if turns > DEEPEST:
            fix = "put lines of one sign together, or the claim into several hypotheses"
            raise PathError(f"[{name}] changes more than {DEEPEST} times between +, - and &", where=here, fix=fix)
        before = found[name]
        if before is None:
            if sign != "+":
                raise PathError(f"{sign!r} on the first line of [{name}]", where=here, fix="start with a plain line")
            found[name] = part
        else:
            found[name] = before | part if sign == "+" else before - part if sign == "-" else before & part
    empty = [one for one, value in found.items() if value is None]
    if empty or not set(found) - {ALWAYS}:
        what = f"[{empty[0]}] has no paths" if empty else "no hypotheses"
        raise PathError(what, where=where, fix="write [name] and under it patterns such as ** -> a9.h6 -> logits")
    named = {one: value for one, value in found.items() if value is not None}
    always = named.pop(ALWAYS, None)
    return Hypotheses(named, always)


def read_hypotheses(path: str | Path) -> Hypotheses:
    """Read a file of hypotheses.

    Raises:
        PathError: it cannot be read, or is not text of this form.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise PathError(f"is larger than {LARGEST // 2**20} MiB", where=str(path), fix="this is no such file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PathError(f"cannot be read ({error})", where=str(path), fix="give a text file in UTF-8") from error
    return parse_hypotheses(text, str(path))
