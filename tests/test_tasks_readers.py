"""Readers: what is understood by itself, and complaints that name file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspatch.errors import TaskError
from crosspatch.tasks import from_dataset, make_task, read_csv, read_jsonl, read_task, readers, write_task

ROW = {"clean": "The cats", "corrupt": "The cat", "answers": [" are"], "wrong": [" is"]}


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), "utf-8")
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("clean", "corrupt", "answers", "wrong"),
        ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"),
        ("clean", "corrupted", "answer", "wrong_answer"),
        ("prompt", "counterfactual", "target", "foil"),
        ("clean_prompt", "corrupt_prompt", "correct", "incorrect"),
    ],
)
def test_common_column_names_are_understood(tmp_path: Path, names: tuple[str, ...]) -> None:
    row = dict(zip(names, ("The cats", "The cat", "are", "is"), strict=True))
    pair = read_jsonl(jsonl(tmp_path, row)).pairs[0]
    assert (pair.clean, pair.corrupt, pair.answers, pair.wrong) == ("The cats", "The cat", (" are",), (" is",))
    assert from_dataset([row]).pairs[0] == pair


def test_other_names_by_mapping(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"x": "The cats", "y": "The cat", "z": " are"})
    with pytest.raises(TaskError, match="no column for 'clean'") as error:
        read_jsonl(path)
    assert f"{path}, line 1" in str(error.value)
    task = read_jsonl(path, columns={"clean": "x", "corrupt": "y", "answers": "z"}, name="mine", varies="number")
    assert (task.name, task.varies, task.pairs[0].answers) == ("mine", "number", (" are",))
    assert str(path) in task.provenance
    with pytest.raises(TaskError, match="no column 'w' for clean"):
        read_jsonl(path, columns={"clean": "w"})
    with pytest.raises(TaskError, match="unknown fields"):
        read_jsonl(path, columns={"klean": "x"})


def test_leading_spaces(tmp_path: Path) -> None:
    rows = [
        ROW | {"answers": "are"},
        ROW | {"clean": "the year 17", "answers": 32},
        ROW | {"clean": "a ", "answers": "b"},
    ]
    path = jsonl(tmp_path, *rows)
    assert [p.answers[0] for p in read_jsonl(path).pairs] == [" are", "32", "b"]
    assert [p.answers[0] for p in read_jsonl(path, leading_space="keep").pairs] == ["are", "32", "b"]
    with pytest.raises(TaskError, match="leading_space='no'"):
        read_jsonl(path, leading_space="no")  # type: ignore[arg-type]


def test_csv_with_sets_spans_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    cells = '"The ""big"" cats,\nsaid","The ""big"" cat,\nsaid","["" are"",""were""]",is,"{""subject"": [10, 14]}"'
    path.write_text(f"\ufeffclean,corrupt,answer,wrong,spans\n{cells}\nThe dogs,The dog,are,,\n", "utf-8")
    task = read_csv(path)
    first, second = task.pairs
    assert first.clean == 'The "big" cats,\nsaid'
    assert first.answers == (" are", " were")
    assert first.clean[slice(*first.char_spans("clean")["subject"])] == "cats"
    assert second.wrong == ()


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("{not json", "line 2: not JSON"),
        ("[1, 2]", "line 2: a JSON list"),
        ("[" * 100_000, "line 2: not JSON"),
        (ROW | {"clean": ""}, "the clean prompt is ''"),
        (ROW | {"clean": 3}, "field 'clean': 3 is not a text"),
        (ROW | {"answers": []}, "at least one right answer"),
        (ROW | {"answers": [None]}, "field 'answers': None is not a text"),
        (ROW | {"answers": {"a": 1}}, "field 'answers': None is not a text"),
        ({k: v for k, v in ROW.items() if k != "corrupt"}, "field 'corrupt' (corrupt) is missing"),
        (ROW | {"clean": "x" * 100_001}, "100001 characters, the limit is 100000"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, text: str) -> None:
    path = jsonl(tmp_path, ROW, row)
    with pytest.raises(TaskError) as error:
        read_jsonl(path)
    assert text in str(error.value)
    assert f"{path}, line 2" in str(error.value)
    assert error.value.fix


@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ([1, 2], "is not an object"),
        ("{oops", "not JSON"),
        ({"s": [1]}, "span 's' is [1]"),
        ({"s": [0, 99]}, "does not lie in a text of 8 characters"),
        ({"s": 4}, "span 's' is 4"),
    ],
)
def test_bad_spans_are_named(tmp_path: Path, spans: Any, text: str) -> None:
    path = jsonl(tmp_path, ROW | {"spans": spans})
    with pytest.raises(TaskError) as error:
        read_jsonl(path)
    assert text in str(error.value)
    assert f"{path}, line 1" in str(error.value)


def test_spans_of_a_row_may_be_null_where_other_rows_have_them(tmp_path: Path) -> None:
    """Columns of a table have one type, so a name that one row lacks comes as None."""
    path = jsonl(tmp_path, ROW | {"spans": {"subject": [4, 8], "other": None}})
    assert read_jsonl(path).pairs[0].spans == {"subject": (4, 8)}


def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match="no such file"):
        read_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(TaskError, match="no rows"):
        read_jsonl(jsonl(tmp_path, "", ""))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"clean": "naïve"}'.encode("latin-1"))
    with pytest.raises(TaskError, match="not UTF-8"):
        read_jsonl(latin)
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("clean,corrupt,answer\na,b,c,d\n")
    with pytest.raises(TaskError, match="line 2: the row has more cells than the header"):
        read_csv(ragged)
    ragged.write_text("clean,corrupt,answer\na,b\n")
    with pytest.raises(TaskError, match="fewer cells"):
        read_csv(ragged)
    monkeypatch.setattr(readers, "MAX_BYTES", 4)
    with pytest.raises(TaskError, match="the limit is"):
        read_csv(ragged)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300))
def test_no_file_can_do_worse_than_a_task_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("f")
    for name, read in (("x.jsonl", read_task), ("x.csv", read_task), ("x.json", read_task)):
        path = folder / name
        path.write_bytes(content)
        with pytest.raises(TaskError):
            read(path)


def test_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    task = make_task("ioi", n=5)
    data = datasets.Dataset.from_list([p.to_dict() for p in task.pairs])
    assert [p.answers for p in from_dataset(data).pairs] == [p.answers for p in task.pairs]
    with pytest.raises(TaskError, match=r"dataset\['train'\]"):
        from_dataset(datasets.DatasetDict({"train": data}))


def test_splits_of_a_dataset_are_not_rows() -> None:
    with pytest.raises(TaskError, match=r"choose one, e.g. dataset\['train'\]"):
        from_dataset({"train": [ROW]})  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_write_and_read(tmp_path: Path, suffix: str) -> None:
    task = make_task("docstring", n=5)
    path = write_task(task, tmp_path / f"task.{suffix}")
    again = read_task(path, **({} if suffix == "json" else {"leading_space": "keep"}))
    assert again.hash == task.hash
    assert (again == task) == (suffix == "json")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no temporary file is left


def test_unknown_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_text("")
    with pytest.raises(TaskError, match=r"use .jsonl, .csv or .json"):
        read_task(tmp_path / "x.pkl")
    with pytest.raises(TaskError, match=r"use .json or .jsonl"):
        write_task(make_task("ioi", n=1), tmp_path / "x.pkl")
    (tmp_path / "x.json").write_text('{"pairs": [{"clean": "a"}]}')
    with pytest.raises(TaskError, match="not a task"):
        read_task(tmp_path / "x.json")
