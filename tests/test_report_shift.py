"""The page of SHIFT from its saved result: the same again, and what is no such result is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_elements import Elements

from crosspatch.cli import main
from crosspatch.errors import ResultError
from crosspatch.report import write_report
from crosspatch.shift.result import JudgedFeature, Method, ShiftResult

EVIL = "</script><img src=x onerror=alert(1)>"
SETTINGS = {"seed": 0, "threshold": None, "nodes": 5, "method": "ig", "steps": 4, "rule": "midpoint", "layer": 1,
            "texts": 8}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    labels, spurious = np.tile([0, 0, 1, 1], 5), np.tile([0, 1, 0, 1], 5)
    methods = [
        Method("original", "baseline", "", 0, (spurious == 1)[None]),
        Method("SHIFT", "SHIFT", EVIL, 1, (labels == 1)[None]),
        Method("random features", "baseline", "", 1, rng.integers(0, 2, (3, 20)) == 1),
    ]
    features = [JudgedFeature("r0.post/1", 0.5, 0.4, 0.6, "ablate", EVIL, True, (EVIL,), ("\u202e",))]
    about = {
        "label": ["a", "b"],
        "other": ["c", "d"],
        "judge": EVIL,
        "model": "half",
        "data": EVIL,
        "layers": {"0": 0.5},
    }
    about |= {"classifier": "logistic", "texts": {"test": {EVIL: 5}}, "places": ["r0.post"], "settings": SETTINGS,
              "layers": {"0": 0.5}}  # fmt: skip
    made = ShiftResult(methods, labels, spurious, ("ac", "ad", "bc", EVIL), features, 1, about, {"oracle": EVIL})
    made.save(tmp_path)
    path = tmp_path / "shift.json"
    path.write_text(path.read_text("utf-8").replace('"half"', '"\\ud800"'), "utf-8")  # half of a character
    return tmp_path


def test_the_command_makes_the_page_again(folder, monkeypatch, capsys) -> None:
    path = write_report(folder)
    wanted = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(sys, "argv", ["crosspatch", "report", str(folder), "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert json.loads(capsys.readouterr().out)["report"] == str(path)
    assert path.read_bytes() == wanted


def test_hostile_text_stays_text(folder) -> None:
    page = write_report(folder).read_text("utf-8")
    tags = Elements(page).tags
    assert not [name for name, _ in tags if name in ("img", "iframe", "object", "base")]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert page.count("<script") == 1
    assert "\u202e" not in page
    assert "&lt;img" in page
    assert "<dd>\\ud800</dd>" in page


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("about"),
        lambda data: data.update(about=[]),
        lambda data: data["about"].pop("judge"),
        lambda data: data["about"].update(label=3),
        lambda data: data["about"]["settings"].update(seed="x"),
        lambda data: data["about"]["settings"].update(seed=-1),
        lambda data: data["about"]["settings"].update(threshold=EVIL),
        lambda data: data["about"].update(texts={"test": 5}),
        lambda data: data["about"].update(layers={"0": EVIL}),
        lambda data: data["features"][0].update(effect=EVIL),
        lambda data: data["features"][0].update(low="x"),
        lambda data: data["features"][0].update(active_on=[3]),
        lambda data: data["features"][0].update(more=1),
        lambda data: data["methods"].pop(1),
        lambda data: data["methods"][1].update(ablated=EVIL),
        lambda data: data["methods"][1].update(predicted=[]),
        lambda data: data["methods"][1].update(name=["SHIFT"]),
        lambda data: [data.update(labels="", spurious=""), [m.update(predicted=[""]) for m in data["methods"]]],
        lambda data: data.update(left_out=3),
    ],
    ids=range(19),
)  # fmt: skip
def test_a_damaged_result_is_named_with_what_to_do(folder, spoil: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "shift.json"
    data = json.loads(path.read_text("utf-8"))
    spoil(data)
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(ResultError, match="not what") as caught:
        write_report(folder)
    assert caught.value.where == str(path)
    assert caught.value.fix
    assert not (folder / "report.html").exists()


def test_a_folder_of_nothing_says_which_commands_there_are(tmp_path) -> None:
    with pytest.raises(ResultError, match="no results") as caught:
        write_report(tmp_path)
    for name in ("localize", "features circuit", "shift", "discover"):
        assert name in str(caught.value.fix)
