"""The effect table: what it derives, what it refuses, and what survives writing, tampering and crashes."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspatch.errors import ResultError
from crosspatch.results import (
    COMPARED,
    Checkpoint,
    Finding,
    Methodology,
    SweepResult,
    differences,
    load_result,
    require_comparable,
    save_result,
    versions,
)

METHODOLOGY = Methodology(
    granularity=("head",),
    component=("z",),
    source="paired",
    positions=("END",),
    direction=("denoise", "noise"),
    metrics=("logit_diff", "kl"),
    task="ioi",
    task_hash="t" * 64,
    n_examples=6,
    model="tiny",
    config_hash="c" * 64,
    weights_hash="w" * 64,
    dtype="float32",
    seeds={"statistics": 3},
    versions={"torch": "2"},
)
STATES = [("a0.h0", 0.0, 0.0), ("a0.h1", 1.0, 1.0), ("a1.h0", 0.0, 1.0), ("a1.h1", 1.0, 0.0)]


def table_of(names, granularity="head", control=""):
    layers = [int(name[1]) for name in names]
    heads = pd.array([int(name[4]) if "h" in name else None for name in names], dtype="Int64")
    return pd.DataFrame(
        {"address": [f"{name}@END" for name in names], "kind": "z", "layer": layers, "index": heads, "position": "END",
         "granularity": granularity, "control": control}
    )  # fmt: skip


def result_of(states=STATES, n=6, control="", seed=0, **changes):
    """Rows with given shares of a gap of 4 in either direction, a little spread, and two metrics."""
    noise = np.random.default_rng(seed).normal(0, 0.01, (2, len(states), n))
    clean, corrupt = np.linspace(2.9, 3.1, n), np.linspace(-1.1, -0.9, n)
    denoise = corrupt + 4 * np.array([[d] for _, d, _ in states]) + noise[0]
    noised = clean - 4 * np.array([[e] for _, _, e in states]) + noise[1]
    given = {
        "rows": table_of([name for name, _, _ in states], control=control),
        "denoise": {"logit_diff": denoise, "kl": -denoise},
        "noise": {"logit_diff": noised, "kl": -noised},
        "clean": {"logit_diff": clean, "kl": -clean},
        "corrupt": {"logit_diff": corrupt, "kl": -corrupt},
        "clusters": [f"template {i}" for i in range(n)],
        "methodology": dataclasses.replace(METHODOLOGY, n_examples=n),
    }
    return SweepResult(**given | changes)


# --- what the table derives


def test_the_frame_has_effects_intervals_gates_and_corrected_p_values():
    table = result_of().frame()
    assert list(table["gate"]) == ["none", "additive", "and-like", "or-like"]
    np.testing.assert_allclose(table["denoise_norm"], [0, 1, 0, 1], atol=0.01)
    np.testing.assert_allclose(table["noise_norm"], [0, 1, 1, 0], atol=0.01)
    np.testing.assert_allclose(table["int"], table["noise_effect"] - table["denoise_effect"])
    for name in ("denoise", "noise"):
        assert (table[f"{name}_low"] <= table[f"{name}_effect"]).all()
        assert (table[f"{name}_effect"] <= table[f"{name}_high"]).all()
        assert (table[f"q_{name}"] >= table[f"p_{name}"]).all()
        assert (table[f"{name}_n"] == 6).all()
        assert (table[f"{name}_left_out"] == 0).all()
    assert table["p_denoise"][1] == pytest.approx(2 / 2**6)
    assert table.attrs["resampled"] == "clusters"
    assert (table["metric"] == "logit_diff").all()


def test_gates_agree_between_a_metric_and_its_negative():
    result = result_of()
    assert list(result.frame("kl")["gate"]) == list(result.frame("logit_diff")["gate"])


def test_a_direction_that_was_not_run_is_missing_not_zero():
    table = result_of(noise={}).frame()
    assert table["noise_effect"].isna().all()
    assert table["q_noise"].isna().all()
    assert table["int"].isna().all()
    assert (table["gate"] == "").all()
    assert table["denoise_effect"].notna().all()
    assert set(result_of(noise={}).long()["direction"]) == {"denoise"}


def test_frames_are_computed_once_and_never_stale():
    result = result_of()
    before = result.frame()
    before["denoise_effect"] = 0.0
    pd.testing.assert_frame_equal(result.frame(), result_of().frame())
    result.denoise["logit_diff"] += 1
    np.testing.assert_allclose(result.frame()["denoise_effect"], result_of().frame()["denoise_effect"] + 1)
    result.rows["control"] = "random site"
    assert result.frame()["q_denoise"].isna().all()


def test_random_controls_are_in_the_table_but_in_no_ranking_and_no_family():
    heads, control = result_of(), result_of([("a0.h5", 5.0, 5.0)] * 20, control="random site")
    joined = SweepResult.concat([heads, control])
    assert len(joined.frame()) == 24
    assert joined.is_control.sum() == 20
    assert joined.frame()["q_denoise"][4:].isna().all()
    assert joined.frame()["p_denoise"][4:].notna().all()
    assert not joined.top(24)["address"].str.startswith("a0.h5").any()
    pd.testing.assert_series_equal(joined.frame()["q_denoise"][:4], heads.frame()["q_denoise"])


def test_each_granularity_is_a_family_of_its_own():
    heads, neurons = result_of(), result_of(STATES * 10)
    neurons.rows["granularity"] = "neuron"
    joined = SweepResult.concat([heads, neurons])
    pd.testing.assert_series_equal(joined.frame()["q_noise"][:4], heads.frame()["q_noise"])


def test_top_ranks_by_the_larger_direction_and_can_be_told_the_granularity():
    top = result_of([("a0.h0", 0.1, 0.2), ("a0.h1", -0.9, 0.1), ("a1.h0", 0.3, 0.8)]).top(2)
    assert list(top["address"]) == ["a0.h1@END", "a1.h0@END"]
    with pytest.raises(ResultError, match="use one of head"):
        result_of().top(2, granularity="neuron")


def test_long_has_one_row_per_measurement():
    result = result_of()
    result.noise["kl"][2, 3] = np.nan
    long = result.long()
    assert len(long) == 4 * 6 * 2 * 2 - 1
    one = long[(long["row"] == 1) & (long["example"] == 2) & (long["metric"] == "logit_diff")]
    assert dict(zip(one["direction"], one["value"], strict=True)) == {
        "denoise": result.denoise["logit_diff"][1, 2],
        "noise": result.noise["logit_diff"][1, 2],
    }
    np.testing.assert_allclose(one["effect"], 4, atol=0.1)


def test_wide_has_every_metric_once():
    wide = result_of().wide()
    assert len(wide) == 4
    np.testing.assert_allclose(wide["kl.denoise_effect"], -wide["logit_diff.denoise_effect"])


def test_results_that_do_not_fit_together_are_refused():
    good = result_of()
    with pytest.raises(ResultError, match=r"shape \[4, 5\], expected \[4, 6\] \[row, example\]"):
        result_of(denoise={"logit_diff": good.denoise["logit_diff"][:, :5]})
    with pytest.raises(ResultError, match="'rank' has no clean values"):
        result_of(noise={"rank": good.noise["kl"]})
    with pytest.raises(ResultError, match="no column 'granularity'"):
        result_of(rows=good.rows.drop(columns="granularity"))
    with pytest.raises(ResultError, match="names row 9 of 4"):
        result_of(findings=[Finding("x", "note", "", rows=[9])])
    with pytest.raises(ResultError, match="severity 'fatal'"):
        Finding("x", "fatal", "")
    with pytest.raises(ResultError, match="use one of logit_diff, kl"):
        good.frame("accuracy")


# --- comparing


def other_value(value):
    if isinstance(value, tuple):
        return (*value, "more")
    return value + 1 if isinstance(value, int) else value + "x"


@pytest.mark.parametrize("name", COMPARED)
def test_every_field_that_matters_blocks_a_comparison_and_is_named(name):
    changed = dataclasses.replace(METHODOLOGY, **{name: other_value(getattr(METHODOLOGY, name))})
    with pytest.raises(ResultError, match=rf"\b{name}: "):
        require_comparable(METHODOLOGY, changed)
    require_comparable(METHODOLOGY, changed, ignore=[name])
    assert list(differences(METHODOLOGY, changed)) == [name]


def test_all_differing_fields_are_named_at_once():
    changed = dataclasses.replace(METHODOLOGY, source="zero", dtype="bfloat16", window=3)
    with pytest.raises(ResultError) as caught:
        result_of().compare(result_of(methodology=changed))
    for said in ("source: paired against zero", "window: 1 against 3", "dtype: float32 against bfloat16"):
        assert said in str(caught.value)


def test_time_versions_names_and_order_do_not_block():
    changed = dataclasses.replace(
        METHODOLOGY, versions={"torch": "3"}, model="elsewhere/tiny", direction=("noise", "denoise"), seeds={}
    )
    require_comparable(METHODOLOGY, changed)
    assert changed.hash() != METHODOLOGY.hash()


def test_compare_sets_rows_side_by_side_and_keeps_those_that_only_one_has():
    a, b = result_of(), result_of([*STATES[1:], ("a1.h2", 0.5, 0.5)], seed=1)
    table = a.compare(b)
    assert len(table) == 5
    shared = table.set_index("address").loc["a1.h0@END"]
    assert shared["noise_norm_a"] == pytest.approx(1, abs=0.01)
    assert shared["noise_norm_b"] == pytest.approx(1, abs=0.01)
    only = table.set_index("address")
    assert np.isnan(only.loc["a0.h0@END", "denoise_effect_b"])
    assert np.isnan(only.loc["a1.h2@END", "denoise_effect_a"])


def test_ignoring_an_unknown_field_is_refused():
    with pytest.raises(ResultError, match="unknown field 'colour'"):
        require_comparable(METHODOLOGY, METHODOLOGY, ignore=["colour"])


def test_concat_moves_findings_sums_costs_and_joins_what_was_patched():
    finding = Finding("saturated", "warning", "near its maximum", rows=[1])
    coarse = result_of(findings=[finding], cost={"seconds": 2.0, "rows": 4})
    fine_methodology = dataclasses.replace(METHODOLOGY, granularity=("qkv",), component=("q",))
    fine = result_of(findings=[finding], cost={"seconds": 3.0}, methodology=fine_methodology)
    joined = SweepResult.concat([coarse, fine])
    assert [f.rows for f in joined.findings] == [[1], [5]]
    assert joined.cost == {"seconds": 5.0, "rows": 4}
    assert joined.methodology.granularity == ("head", "qkv")
    np.testing.assert_array_equal(joined.denoise["kl"][4:], fine.denoise["kl"])


def test_concat_refuses_other_methods_and_other_runs():
    with pytest.raises(ResultError, match="source: paired against zero"):
        SweepResult.concat([result_of(), result_of(methodology=dataclasses.replace(METHODOLOGY, source="zero"))])
    clean = {name: value + 0.1 for name, value in result_of().clean.items()}
    with pytest.raises(ResultError, match="unpatched runs differ"):
        SweepResult.concat([result_of(), result_of(clean=clean)])


# --- writing and reading


def assert_same(a, b):
    pd.testing.assert_frame_equal(a.rows, b.rows)
    for name in ("denoise", "noise", "clean", "corrupt"):
        assert list(getattr(a, name)) == list(getattr(b, name))
        for metric, values in getattr(a, name).items():
            np.testing.assert_array_equal(values, getattr(b, name)[metric])
    assert (a.clusters, a.methodology, a.findings, a.cost) == (b.clusters, b.methodology, b.findings, b.cost)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_saved_is_loaded(tmp_path_factory, data):
    n_rows, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    numbers = st.floats(width=64, allow_nan=True, allow_infinity=True)
    text = st.text(max_size=8)

    def matrix():
        return np.array(data.draw(st.lists(numbers, min_size=n_rows * n, max_size=n_rows * n))).reshape(n_rows, n)

    changed = {"rows": table_of([f"a{i}.h0" for i in range(n_rows)]), "n": n}
    changed["rows"]["parent"] = data.draw(st.lists(text, min_size=n_rows, max_size=n_rows))
    changed["rows"]["index"] = pd.array([None, *range(n_rows - 1)], dtype="Int64")
    changed["denoise"] = {"logit_diff": matrix(), "kl": matrix()}
    changed["clusters"] = data.draw(st.lists(text, min_size=n, max_size=n))
    changed["findings"] = [Finding(data.draw(text), "note", data.draw(text), rows=[0])]
    changed["cost"] = {data.draw(text): data.draw(st.floats(0, 1e9))}
    result = result_of(STATES[:n_rows], **changed)
    with np.errstate(all="ignore"):
        assert_same(result, load_result(save_result(result, tmp_path_factory.mktemp("result"))))


def test_saving_again_replaces_the_result_and_leaves_nothing_behind(tmp_path):
    result_of().save(tmp_path / "out")
    later = result_of(seed=5)
    later.save(tmp_path / "out")
    assert_same(SweepResult.load(tmp_path / "out"), later)
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "out").iterdir())
    assert names == ["effects.parquet", "examples", "result.json", "rows"]


@pytest.mark.parametrize("step", range(4))
def test_a_crash_while_saving_leaves_the_old_result(tmp_path, monkeypatch, step):
    old = result_of()
    old.save(tmp_path)
    replace, calls = os.replace, iter(range(10))

    def crash(source, target):
        if next(calls) == step:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        result_of(seed=9).save(tmp_path)
    assert_same(SweepResult.load(tmp_path), old)
    assert not list(tmp_path.glob(".writing-*"))


def test_what_json_cannot_say_is_refused_before_anything_is_replaced(tmp_path):
    old = result_of(findings=[Finding("x", "note", "numpy row", rows=list(np.arange(2)))])
    old.save(tmp_path)
    with pytest.raises(ResultError, match="cannot be written as JSON"):
        result_of(cost={"seconds": np.nan}, seed=3).save(tmp_path)
    assert_same(SweepResult.load(tmp_path), old)


def test_other_programs_read_the_effects(tmp_path):
    result_of().save(tmp_path)
    table = pd.read_parquet(tmp_path / "effects.parquet")
    np.testing.assert_allclose(table["logit_diff.noise_norm"], [0, 1, 1, 0], atol=0.01)


def edit(folder, change):
    path = folder / "result.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(version=99), "version: version 99 is newer"),
        (lambda d: d.update(version="1"), "version: '1' is not of type int"),
        (lambda d: d.update(format="other"), "format: format 'other'"),
        (lambda d: d.pop("methodology"), "methodology: expected an object"),
        (lambda d: d["methodology"].pop("source"), "methodology: missing field 'source'"),
        (lambda d: d["methodology"].update(colour=1), "methodology: unknown field 'colour'"),
        (lambda d: d["methodology"].update(window="3"), "methodology.window: '3' is not int"),
        (lambda d: d["methodology"].update(component=[1]), "methodology.component: "),
        (lambda d: d["methodology"].update(forced=1), "methodology.forced: 1 is not bool"),
        (lambda d: d["methodology"].update(mode="sloppy"), "methodology.mode: 'sloppy'"),
        (lambda d: d["methodology"].update(seeds={"a": 1.5}), "methodology.seeds: "),
        (lambda d: d["files"].update(rows="../../etc/passwd"), "files.rows: '../../etc/passwd' is not the name"),
        (lambda d: d["sha256"].update(rows="0" * 64), "files.rows: "),
        (lambda d: d["sha256"].update(examples=None), "sha256.examples: None is not a checksum"),
        (lambda d: d.update(metrics=["logit_diff", "rank"]), "no column 'denoise/rank'|column 'clean/rank' is missing"),
        (lambda d: d.update(metrics=[]), "metrics: .* are not names"),
        (lambda d: d.update(metrics=[3]), "metrics: .* are not names"),
        (lambda d: d.update(findings=[{"code": 1}]), r"findings\[0\]: expected an object"),
        (
            lambda d: d.update(
                findings=[{"code": "x", "severity": "note", "text": "", "rows": ["0"], "title": "", "fix": ""}]
            ),
            r"findings\[0\].rows",
        ),
        (lambda d: d.update(cost=[]), "cost: "),
        (lambda d: d.update(cost={"seconds": "1"}), "cost: costs are numbers"),
    ],
)
def test_a_malformed_sidecar_is_refused_with_file_and_field(tmp_path, change, says):
    edit(save_result(result_of(), tmp_path), change)
    with pytest.raises(ResultError, match=says) as caught:
        load_result(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "Fix: " in str(caught.value)


def test_tampered_cut_off_or_missing_files_are_refused(tmp_path):
    save_result(result_of(), tmp_path)
    rows = next(tmp_path.glob("rows-*.parquet"))
    data = bytearray(rows.read_bytes())
    data[len(data) // 2] ^= 1
    rows.write_bytes(data)
    with pytest.raises(ResultError, match=r"rows-.*another checksum"):
        load_result(tmp_path)
    rows.write_bytes(bytes(data[:-10]))
    with pytest.raises(ResultError, match=r"rows-.*another checksum"):
        load_result(tmp_path)
    rows.unlink()
    with pytest.raises(ResultError, match=r"rows-.*cannot be read"):
        load_result(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ResultError, match=r"result\.json: is not JSON"):
        load_result(tmp_path)
    with pytest.raises(ResultError, match=r"result\.json: cannot be read"):
        load_result(tmp_path / "nowhere")


def test_a_table_of_the_wrong_shape_is_refused_although_its_checksum_is_right(tmp_path):
    from crosspatch.results.files import digest, to_parquet

    def swap(name, change):
        save_result(result_of(), tmp_path)
        path = next(tmp_path.glob(f"{name}-*.parquet"))
        data = to_parquet(change(pq.read_table(path)))
        checksum = digest(data)
        (tmp_path / f"{name}-{checksum[:12]}.parquet").write_bytes(data)
        edit(tmp_path, lambda d: (d["sha256"].update({name: checksum}), d["files"].update({name: f"{name}-{checksum[:12]}.parquet"})))  # fmt: skip  # noqa: E501

    def replaced(table, column, array):
        return table.set_column(table.column_names.index(column), column, array)

    swap("rows", lambda t: replaced(t, "denoise/kl", pa.array([[1.0, 2.0]] * 4)))
    with pytest.raises(ResultError, match=r"column 'denoise/kl' is list"):
        load_result(tmp_path)
    swap("rows", lambda t: replaced(t, "layer", pa.array(["0"] * 4)))
    with pytest.raises(ResultError, match="column 'layer' is string"):
        load_result(tmp_path)
    swap("rows", lambda t: t.drop_columns(["address"]))
    with pytest.raises(ResultError, match="column 'address' is missing"):
        load_result(tmp_path)
    swap("examples", lambda t: replaced(t, "clean/kl", pa.array([None] * 6, pa.float64())))
    with pytest.raises(ResultError, match="column 'clean/kl' is double or has empty cells"):
        load_result(tmp_path)
    swap("examples", lambda t: t.slice(0, 5))
    with pytest.raises(ResultError, match="column 'denoise/logit_diff' is fixed_size_list"):
        load_result(tmp_path)


# --- stopped sweeps


def block(keys, seed=0):
    values = np.random.default_rng(seed).normal(size=(len(keys), 6))
    return keys, {"logit_diff": values, "kl": values * 2}


def test_a_stopped_sweep_resumes_with_what_it_had(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path, METHODOLOGY)
    first, second = block(["denoise a0.h0", "denoise a0.h1"]), block(["noise a0.h0"], seed=1)
    checkpoint.append(*first)
    checkpoint.append(*second)

    def crash(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.append(*block(["noise a0.h1"]))
    (tmp_path / "parts" / ".writing-killed").write_bytes(b"half a pa")

    resumed = Checkpoint(tmp_path, METHODOLOGY)
    finished = resumed.finished()
    assert list(finished) == ["denoise a0.h0", "denoise a0.h1", "noise a0.h0"]
    np.testing.assert_array_equal(finished["denoise a0.h1"]["kl"], first[1]["kl"][1])
    resumed.append(*block(["noise a0.h1"], seed=2))
    assert len(Checkpoint(tmp_path, METHODOLOGY).finished()) == 4
    resumed.clear()
    assert list(tmp_path.iterdir()) == []
    assert Checkpoint(tmp_path, dataclasses.replace(METHODOLOGY, source="zero")).finished() == {}


def test_parts_of_another_methodology_are_refused_with_the_fields_named(tmp_path):
    Checkpoint(tmp_path, METHODOLOGY).append(*block(["denoise a0.h0"]))
    other = dataclasses.replace(METHODOLOGY, source="zero", seeds={"statistics": 4})
    with pytest.raises(ResultError, match=r"source, seeds differ"):
        Checkpoint(tmp_path, other)


def test_a_changed_part_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path, METHODOLOGY)
    checkpoint.append(*block(["denoise a0.h0"]))
    part = next((tmp_path / "parts").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ResultError, match=r"part-000000.*another checksum"):
        checkpoint.finished()


# --- the rest


def test_versions_are_those_installed():
    found = versions()
    assert found["torch"] == importlib.metadata.version("torch")
    assert set(found) == {"python", "crosspatch", "torch", "transformers"}


def test_the_vocabulary_and_the_results_load_without_torch():
    code = "import sys, crosspatch.graph.select, crosspatch.results.io; sys.exit('torch' in sys.modules)"
    root = os.path.join(os.path.dirname(__file__), "..", "src")
    code = f"""
import sys, types, importlib
package = types.ModuleType("crosspatch"); package.__path__ = [{os.path.join(root, "crosspatch")!r}]
sys.modules["crosspatch"] = package
{code}"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_concat_takes_unpatched_runs_that_differ_by_rounding_only():
    """A level that was finished yesterday, and one that was run today with other batches."""
    yesterday, today = result_of(), result_of()
    metric = yesterday.metrics[0]
    today.clean[metric] = yesterday.clean[metric] * (1 + 1e-6)
    joined = SweepResult.concat([yesterday, today])
    np.testing.assert_array_equal(joined.clean[metric], yesterday.clean[metric])
    today.clean[metric] = yesterday.clean[metric] + 0.01
    with pytest.raises(ResultError, match="unpatched runs differ"):
        SweepResult.concat([yesterday, today])


@pytest.mark.skipif(os.name != "posix", reason="modes of files are a matter of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, umask, mode):
    from crosspatch.tasks import make_task, write_task

    before = os.umask(umask)
    try:
        result_of().save(tmp_path)
        write_task(make_task("ioi", n=1), tmp_path / "task.json")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


@pytest.mark.filterwarnings("error")
def test_a_table_with_infinite_values_is_derived_without_a_warning():
    result = result_of()
    metric = result.metrics[0]
    result.noise[metric][1, 2] = -np.inf
    result.clean[metric][3] = np.inf
    frame = result.frame()
    assert (frame["noise_effect"] == np.inf).all()
    assert np.isfinite(frame["denoise_effect"]).all()
    assert set(frame["gate"]) == {""}
