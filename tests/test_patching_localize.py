"""The main job end to end on the AND network: folder, resumption, held-out confirmation."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
import toys

from crosspatch.errors import AddressError, GateError, ResultError
from crosspatch.patching import Localization, localize
from crosspatch.results import Checkpoint


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("localization")
    stages = []
    model = toys.and_network()
    result = localize(model, toys.gate_task(16), out=folder, held_out=0.3, progress=lambda *step: stages.append(step))
    return model, folder, result, stages


def test_it_finds_the_network(found):
    _, _, result, _ = found
    assert list(result.drill.levels) == ["residual", "block", "head", "qkv", "neuron"]
    heads = result.top(5, "head").set_index("address")
    assert set(heads.index) == {"a0.h0@END", "a0.h1@END"}
    assert (heads["gate"] == "and-like").all()
    assert result.top(1, "neuron")["address"].tolist() == ["m1.n0@END"]
    assert {"needs-company", "no-takeover", "scope"} <= {f.code for f in result.findings}
    rows = next(f.rows for f in result.findings if f.code == "needs-company")
    assert set(result.frame()["gate"].iloc[rows]) == {"and-like"}


def test_the_top_rows_are_confirmed_on_pairs_that_were_held_out(found):
    _, folder, result, _ = found
    assert result.confirmed["held_up"].all()
    assert result.confirmation.methodology.mode == "confirmatory"
    assert result.confirmation.methodology.split == "held-out"
    assert {"accuracy", "rank"} <= set(result.confirmation.metrics)
    about = json.loads((folder / "localization.json").read_text())
    assert about["task"]["n_train"] + about["task"]["n_held_out"] == 16
    assert result.drill.levels["head"].methodology.n_examples == about["task"]["n_train"]


def test_the_folder_tells_everything_and_holds_no_nan(found):
    _, folder, result, _ = found
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name, path=path: pytest.fail(f"{name} in {path}"))
    examples = json.loads((folder / "examples.json").read_text())["examples"]
    assert examples[0]["clean"][1] == "x1"
    assert examples[0]["clean_value"] == pytest.approx(toys.SCALE)
    view = json.loads((folder / "attention.json").read_text())["attention"][0]
    assert view["head"] == "a0.h0"
    assert view["pattern"][3] == pytest.approx([0, 1, 0, 0])  # the question looks at x
    assert [len(row) for row in view["pattern"]] == [1, 2, 3, 4]
    assert not (folder / "conditional.json").exists()  # every removal breaks everything: nothing can take over
    assert json.loads((folder / "gates.json").read_text())["ok"]
    again = Localization.load(folder)
    np.testing.assert_array_equal(again.frame()["noise_effect"], result.frame()["noise_effect"])
    assert [f.code for f in again.findings] == [f.code for f in result.findings]
    assert again.about["metric"] == "logit_diff"


def test_a_second_run_reads_what_is_finished(found):
    model, folder, result, stages = found
    names = {stage for stage, _, _ in stages}
    assert {"residual denoise", "head noise", "held-out noise"} <= names
    steps = []
    again = localize(
        model, toys.gate_task(16), out=folder, held_out=0.3, progress=lambda stage, *_: steps.append(stage)
    )
    assert not steps
    np.testing.assert_array_equal(again.frame()["noise_effect"], result.frame()["noise_effect"])


def test_small_tasks_are_not_split_and_that_is_said():
    result = localize(toys.or_network(), toys.gate_task(4), plan=("block", "head"))
    assert result.confirmation is None
    assert "not-held-out" in {f.code for f in result.findings}
    assert result.confirmed.empty


def test_backups_are_named_with_the_rows_of_the_table(tmp_path):
    plan = ("residual", "block", "head")
    result = localize(toys.or_network(), toys.gate_task(8), plan=plan, held_out=0, out=tmp_path)
    backup = next(f for f in result.findings if f.code == "backup")
    table = result.drill.result.rows
    assert {"a0.h1@END"} <= set(table["address"].iloc[backup.rows]) <= {"a0.h0@END", "a0.h1@END"}
    saved = json.loads((tmp_path / "conditional.json").read_text())
    assert {row["part"] for row in saved["rows"] if row["backup"]} == {"a0.h0@END", "a0.h1@END"}
    assert len(Localization.load(tmp_path).conditional) == len(result.conditional) == len(saved["rows"])


def test_a_run_that_stops_among_the_removals_goes_on_there(tmp_path, monkeypatch):
    """Blocks of one job each; the third write is the last before the power goes."""
    plan, model, task = ("residual", "block", "head"), toys.or_network(), toys.gate_task(8)
    whole = localize(model, task, plan=plan, held_out=0)
    monkeypatch.setattr(sys.modules["crosspatch.patching.conditional"], "ROWS_PER_BLOCK", 8)
    append, written = Checkpoint.append, []

    def stop(self, keys, values):
        if self.folder.parent.name == "conditional":
            if len(written) == 3:
                raise KeyboardInterrupt
            written.append(keys)
        append(self, keys, values)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            localize(model, task, plan=plan, held_out=0, out=tmp_path)
    assert len(list((tmp_path / "conditional" / "parts").glob("part-*"))) == 3
    again = []
    with monkeypatch.context() as patched:
        patched.setattr(
            Checkpoint, "append", lambda self, keys, values: [again.extend(keys), append(self, keys, values)]
        )
        result = localize(model, task, plan=plan, held_out=0, out=tmp_path)
    assert again
    assert not {key for keys in written for key in keys} & set(again)
    pd.testing.assert_frame_equal(result.conditional, whole.conditional, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "conditional").exists()
    assert (tmp_path / "conditional.json").is_file()


def test_refusals(tmp_path):
    with pytest.raises(GateError):
        localize(toys.random_network()[0], toys.random_task())
    with pytest.raises(AddressError, match="unknown granularity 'heads'"):
        localize(toys.and_network(), toys.gate_task(), plan=("heads",))
    (tmp_path / "localization.json").write_text('{"format": "other"}')
    with pytest.raises(ResultError, match="not a localization"):
        Localization.load(tmp_path)
