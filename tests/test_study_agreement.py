"""The agreement study: nouns of judged pairs are new, turned dictionaries are as active, tables are the numbers."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import crosspatch as cp
from crosspatch.dictionaries import read_place, shipped
from crosspatch.features import bases_of

STUDY = Path(__file__).parents[1] / "studies" / "agreement"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(STUDY))
    yield importlib.import_module("run")
    for name in ("run", "readme"):  # other studies have modules of these names
        sys.modules.pop(name, None)


def test_no_noun_is_on_both_sides(study: Any) -> None:
    model = cp.load("embedded")
    task = cp.make_task("agreement-rc", n=120, seed=0, tokenizer=model.tokenizer)
    whole, search, judged = study.by_noun(model, task.pairs, "rc")
    assert len(whole) == len(search) + len(judged) and min(len(search), len(judged)) > 10
    assert len(set(whole.digests)) == len(whole)
    nouns = [{t for ids in part.clean + part.corrupt for t in (ids[i] for i in (-5, -2))} for part in (search, judged)]
    assert nouns[0] and nouns[1] and not nouns[0] & nouns[1]
    assert whole.spans[0].keys() >= {f"t{i}" for i in range(len(whole.clean[0]))}


def test_turned_dictionaries_are_about_as_active_and_see_other_things(study: Any) -> None:
    model = cp.load("embedded")
    own = bases_of(model, {place: shipped()[place] for place in ("a1", "r2.post")})
    other = study.turned(own)
    run = cp.record(model, [model.tokenizer("The king that the farmer trusts is here").input_ids])
    for before, after in zip(own, other, strict=True):
        x = read_place(run, (before.place,))[1:]
        counts = [(basis.features(x) != 0).sum(1).double().mean() for basis in (before, after)]
        assert 0.3 < counts[1] / counts[0] < 3
        assert after.error(x).norm() > 1.5 * before.error(x).norm()
        rows = after.dictionary.decoder @ after.dictionary.decoder.T
        torch.testing.assert_close(rows, before.dictionary.decoder @ before.dictionary.decoder.T, atol=1e-4, rtol=1e-4)


def test_tables_are_written_between_their_marks(study: Any, tmp_path: Path) -> None:
    readme = importlib.import_module("readme")
    found = json.loads((STUDY / "embedded.json").read_text("utf-8"))
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n")
    readme.write_tables(page, found)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    readme.write_tables(page, found)
    assert page.read_text() == text
    own = (STUDY / "README.md").read_text("utf-8")
    assert readme.tables(found) in own  # the numbers of the page are those of the file
    faithful = [row["faithfulness"] for variant in found["variants"].values() for row in variant["edges"]["sets"]]
    assert np.isfinite(faithful).all() and f"{round(100 * faithful[0])} %" in text
