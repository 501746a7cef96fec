"""Prompt pairs from files and tables: JSONL, CSV and Hugging Face `datasets`.

Files are untrusted: they are parsed as text, bounded in size, and every complaint names the file, the line and the
field.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from crosspatch.errors import TaskError
from crosspatch.tasks.pairs import Pair, Task

MAX_BYTES = 256 * 2**20  # a file larger than this is not a list of prompts
MAX_TEXT = 100_000  # characters in one field
MAX_PAIRS = 1_000_000

#: Column names that are understood without a mapping, most specific first.
COLUMNS: dict[str, tuple[str, ...]] = {
    "clean": ("clean", "clean_prefix", "clean_prompt", "clean_text", "prompt"),
    "corrupt": (
        "corrupt",
        "corrupted",
        "patch_prefix",
        "corrupt_prefix",
        "corrupt_prompt",
        "corrupted_prompt",
        "counterfactual",
    ),
    "answers": ("answers", "answer", "clean_answer", "clean_answers", "correct", "label", "target"),
    "wrong": ("wrong", "wrong_answers", "patch_answer", "corrupt_answer", "wrong_answer", "incorrect", "foil"),
    "spans": ("spans", "clean_spans"),
    "corrupt_spans": ("corrupt_spans", "patch_spans"),
    "template": ("template", "template_id", "case"),
    "corruption": ("corruption",),
    "meta": ("meta",),
}
REQUIRED = ("clean", "corrupt", "answers")
JSON_FIELDS = ("spans", "corrupt_spans", "meta")
Spacing = Literal["auto", "keep"]


def read_jsonl(
    path: str | Path, *, columns: Mapping[str, str] | None = None, leading_space: Spacing = "auto", **statements: str
) -> Task:
    """A task from a file with one JSON object per line.

    Args:
        path: the file (UTF-8).
        columns: field of `Pair` -> name in the file, for names that are not in `COLUMNS`.
        leading_space: "auto" puts a space before an answer that begins with a letter, where the prompt does not
            end in a space; "keep" takes answers as they are.
        statements: `name`, `varies`, `holds`, `provenance`, `description` of the task.

    Raises:
        TaskError: unreadable file, line or field; the message names it.
    """
    path = _checked(path)
    rows = _jsonl_rows(path)
    return _task(rows, str(path), path.stem, columns, leading_space, statements)


def read_csv(
    path: str | Path, *, columns: Mapping[str, str] | None = None, leading_space: Spacing = "auto", **statements: str
) -> Task:
    """A task from a CSV file with a header. Several answers in one cell are a JSON list; spans are a JSON object.

    Arguments and errors as `read_jsonl`.
    """
    path = _checked(path)
    return _task(_csv_rows(path), str(path), path.stem, columns, leading_space, statements)


def from_dataset(
    dataset: Iterable[Mapping[str, Any]],
    *,
    columns: Mapping[str, str] | None = None,
    leading_space: Spacing = "auto",
    **statements: str,
) -> Task:
    """A task from a Hugging Face `datasets.Dataset` (or any iterable of mappings, such as `frame.to_dict("records")`).

    Arguments and errors as `read_jsonl`; rows count from 0.
    """
    if isinstance(dataset, Mapping):  # a DatasetDict is a mapping of splits
        raise TaskError(
            f"got splits {list(dataset)}",
            where="dataset",
            fix=f"choose one, e.g. dataset[{next(iter(dataset), 'train')!r}]",
        )
    info = getattr(dataset, "info", None)
    name = getattr(info, "dataset_name", None) or "dataset"
    rows = ((f"row {i}", row) for i, row in enumerate(dataset))
    return _task(rows, name, name, columns, leading_space, statements)


def read_task(path: str | Path, **options: Any) -> Task:
    """`read_csv` for .csv, `read_jsonl` for .jsonl, and a whole `Task.to_dict()` for .json."""
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return read_csv(path, **options)
    if suffix in (".jsonl", ".ndjson"):
        return read_jsonl(path, **options)
    if suffix == ".json":
        path = _checked(path)
        try:
            return Task.from_dict(json.loads(path.read_text("utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TaskError(
                f"not a task: {error}", where=str(path), fix="write it with write_task(task, path)"
            ) from error
    raise TaskError(f"unknown kind of file {suffix!r}", where=str(path), fix="use .jsonl, .csv or .json")


def write_task(task: Task, path: str | Path) -> Path:
    """Write a task as JSON (.json) or its pairs as JSON lines (.jsonl), atomically. `read_task` reads both."""
    path = Path(path)
    if path.suffix == ".json":
        text = json.dumps(task.to_dict(), ensure_ascii=False, indent=1) + "\n"
    elif path.suffix == ".jsonl":
        text = "".join(json.dumps(p.to_dict(), ensure_ascii=False) + "\n" for p in task.pairs)
    else:
        raise TaskError(f"unknown kind of file {path.suffix!r}", where=str(path), fix="use .json or .jsonl")
    temporary = path.parent / f".writing-{secrets.token_hex(8)}"  # not mkstemp, whose files only their owner may read
    try:
        with temporary.open("x", encoding="utf-8") as f:
            f.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


# ------------------------------------------------------------------------------------------------------------ rows


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise TaskError("no such file", where=str(path), fix="check the path")
    if path.stat().st_size > MAX_BYTES:
        size = path.stat().st_size >> 20
        raise TaskError(f"the file has {size} MiB, the limit is {MAX_BYTES >> 20}", where=str(path), fix="split it")
    return path


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TaskError(
                f"not JSON: {error}", where=f"{path}, line {number}", fix="give one object per line"
            ) from error
        if not isinstance(row, dict):
            raise TaskError(
                f"a JSON {type(row).__name__}", where=f"{path}, line {number}", fix="give one object per line"
            )
        yield f"line {number}", row


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline=None) as f:
            yield from f
    except UnicodeDecodeError as error:
        raise TaskError(f"not UTF-8: {error.reason}", where=str(path), fix="save it as UTF-8") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f, strict=True)
            for row in reader:
                where = f"line {reader.line_num}"
                if None in row or None in row.values():
                    raise TaskError(
                        f"the row has {'more' if None in row else 'fewer'} cells than the header",
                        where=f"{path}, {where}",
                        fix="put cells that hold a comma or a line break in double quotes",
                    )
                yield where, {k: v for k, v in row.items() if v != ""}
    except csv.Error as error:
        raise TaskError(f"not CSV: {error}", where=str(path), fix="quote cells with double quotes") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"not UTF-8: {error.reason}", where=str(path), fix="save it as UTF-8") from error


def _task(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    source: str,
    name: str,
    columns: Mapping[str, str] | None,
    leading_space: Spacing,
    statements: Mapping[str, str],
) -> Task:
    if leading_space not in ("auto", "keep"):
        raise TaskError(f"leading_space={leading_space!r}", where=source, fix="use 'auto' or 'keep'")
    unknown = set(columns or {}) - set(COLUMNS)
    if unknown:
        raise TaskError(f"columns maps unknown fields {sorted(unknown)}", where=source, fix=f"use {', '.join(COLUMNS)}")
    pairs: list[Pair] = []
    mapping: dict[str, str] | None = None
    for where, row in rows:
        if mapping is None:
            mapping = _mapping(row, columns or {}, f"{source}, {where}")
        if len(pairs) >= MAX_PAIRS:
            raise TaskError(f"more than {MAX_PAIRS} pairs", where=source, fix="split the file")
        pairs.append(_pair(row, mapping, f"{source}, {where}", leading_space))
    if not pairs:
        raise TaskError("no rows", where=source, fix="give at least one pair")
    facts: dict[str, str] = {"name": name, "provenance": f"read from {source}"} | dict(statements)
    return Task(pairs=tuple(pairs), **facts)


def _mapping(row: Mapping[str, Any], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Field of `Pair` -> column, decided on the first row."""
    for field, column in given.items():
        if column not in row:
            raise TaskError(f"no column {column!r} for {field}", where=where, fix=f"the columns are {list(row)}")
    found = dict(given)
    for field, names in COLUMNS.items():
        match = next((n for n in names if n in row and n not in found.values()), None)
        if field not in found and match is not None:
            found[field] = match
    for field in REQUIRED:
        if field not in found:
            raise TaskError(
                f"no column for {field!r} among {list(row)}",
                where=where,
                fix=f"name it with columns={{{field!r}: ...}}; understood by themselves: {', '.join(COLUMNS[field])}",
            )
    return found


def _pair(row: Mapping[str, Any], mapping: Mapping[str, str], where: str, leading_space: Spacing) -> Pair:
    values: dict[str, Any] = {}
    for field, column in mapping.items():
        if column not in row or row[column] is None:
            if field in REQUIRED:
                raise TaskError(
                    f"field {column!r} ({field}) is missing", where=where, fix="fill it in, or take the row out"
                )
            continue
        values[field] = _value(field, row[column], f"{where}, field {column!r}")
    if leading_space == "auto":
        for field in ("answers", "wrong"):
            values[field] = tuple(_spaced(values["clean"], a) for a in values.get(field, ()))
    try:
        return Pair(**values)
    except TaskError as error:
        place = f"{where}, {error.where}" if error.where else where
        raise TaskError(error.what, where=place, fix=error.fix) from error


def _value(field: str, value: Any, where: str) -> Any:
    if field in JSON_FIELDS:
        value = _json(value, where) if isinstance(value, str) else value
        if not isinstance(value, Mapping):
            raise TaskError(f"{value!r} is not an object", where=where, fix='write it like {"subject": [4, 8]}')
        if field != "meta":
            value = {k: v for k, v in value.items() if v is not None}
            for name, span in value.items():
                whole = isinstance(span, (list, tuple)) and len(span) == 2 and all(type(x) is int for x in span)
                if not isinstance(span, str) and not whole:
                    raise TaskError(f"span {name!r} is {span!r}", where=where, fix="give a text or [start, end]")
        return value
    if field in ("answers", "wrong"):
        if isinstance(value, str) and value.startswith("["):
            value = _json(value, where)
        texts = (
            [value] if isinstance(value, (str, int)) else list(value) if isinstance(value, (list, tuple)) else [None]
        )
        return tuple(_text(str(t) if type(t) is int else t, where) for t in texts)
    return _text(value if isinstance(value, str) or field in REQUIRED else str(value), where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise TaskError(f"{value!r} is not a text", where=where, fix="give a text in quotes")
    if len(value) > MAX_TEXT:
        raise TaskError(f"{len(value)} characters, the limit is {MAX_TEXT}", where=where, fix="shorten it")
    return value


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"not JSON: {error}", where=where, fix="write lists and objects as JSON") from error


def _spaced(prompt: str, answer: str) -> str:
    """The answer with a leading space, if it is a word that follows a finished word."""
    return f" {answer}" if answer[:1].isalpha() and prompt and not prompt[-1].isspace() else answer
