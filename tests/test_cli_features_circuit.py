"""`crosspatch features circuit`, `evaluate` and `edges`: what they print, what they write, and how they refuse."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from crosspatch.cli import console, main
from crosspatch.features import EdgeEvaluation, load_circuit, load_effects
from crosspatch.features.curve import load_curves
from crosspatch.features.search import EDGE_SHARE, mean_effects
from crosspatch.report import write_report

SMALL = ("--task", "agreement-simple", "--n", 24, "--judged-with", "mean-all", "--card-tokens", 300)
"""Options that make a run short."""
RUNS = ("circuit", "evaluate", "edges")


@pytest.fixture(autouse=True)
def fresh_mode(monkeypatch) -> None:
    for name in ("json", "quiet", "debug"):
        monkeypatch.setattr(console.mode, name, False)


def called(patch: pytest.MonkeyPatch, capture, *arguments: str | Path | int | float) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `crosspatch features ...` in this process."""
    threads = ["--threads", "1"] if arguments[0] in RUNS and "--help" not in arguments else []
    patch.setattr(sys, "argv", ["crosspatch", "features", *map(str, arguments), *threads])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capture.readouterr() if capture is not None else ("", "")
    return int(stopped.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *arguments: called(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """One folder of `crosspatch features circuit`; tests that change it take a copy."""
    out = tmp_path_factory.mktemp("features") / "circuit"
    with pytest.MonkeyPatch.context() as patch:
        code, _, _ = called(
            patch,
            None,
            "circuit",
            "--out",
            out,
            "-q",
            *SMALL,
            "--nodes",
            24,
            "--steps",
            3,
            "--exact",
            10,
            "--random",
            3,
        )
    assert code == 0
    return out


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.mark.parametrize("command", RUNS)
def test_every_help_shows_an_example(run, command) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: crosspatch features {command}" in out


# ----------------------------------------------------------------------------------------------------------- circuit


def test_circuit_ends_with_nodes_edges_cards_evaluation_and_report(made) -> None:
    effects = load_effects(made)
    nodes, edges = load_circuit(made)
    assert len(nodes) == 24
    assert edges is not None
    assert edges.nodes == list(nodes)
    assert effects.top(24).keep.keys() == nodes.keep.keys()
    settings = json.loads((made / "features.json").read_text())["settings"]
    assert settings["edge_threshold"] == pytest.approx(EDGE_SHARE * min(map(abs, mean_effects(effects, nodes))))
    assert len(json.loads((made / "exact.json").read_text())["exact"]) == 10
    wanted = {f"{node.place}/{node.feature}" for node in nodes if node.feature is not None}
    cards = json.loads((made / "cards.json").read_text())["cards"]
    assert {f"{card['reads'][0]}/{card['feature']}" for card in cards} == wanted
    curves = load_curves(made / "evaluation")
    assert [curve.errors for curve in curves] == ["nodes", "kept", "removed", "stream kept"]
    for curve in curves:
        found = curve.evaluation
        assert not set(found.pairs) & set(effects.pairs)
        assert found.about["start_block"] == 1
        assert found.random_kept.shape[1] == 3
        np.testing.assert_array_equal(found.model, curves[0].evaluation.model)
        np.testing.assert_array_equal(found.empty, curves[0].evaluation.empty)
    page = (made / "report.html").read_text()
    for words in ("m(nothing)", "Start block 1", "Completeness", "Edge by edge", "cards.html", "logits"):
        assert words in page
    [by_edge] = load_curves(made / "edges")
    assert isinstance(by_edge.evaluation, EdgeEvaluation)
    np.testing.assert_allclose(by_edge.evaluation.nodes_kept, curves[0].evaluation.kept[0], atol=1e-4)
    assert "<title>The" in (made / "cards.html").read_text()


def test_the_page_is_rebuilt_byte_for_byte(made, monkeypatch, capsys) -> None:
    before = (made / "report.html").read_bytes()
    (made / "report.html").unlink()
    monkeypatch.setattr(sys, "argv", ["crosspatch", "report", str(made)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert (made / "report.html").read_bytes() == before


def test_thresholds_choose_nodes_and_edges_at_positions(run) -> None:
    code, out, err = run(
        "circuit", *SMALL, "--method", "atp", "--threshold", 0.3, "--edge-threshold", 0.2, "--positions", "templatic",
        "--exact", 0, "--no-evaluate", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert all(abs(row["effect"]) > 0.3 for row in found["nodes"])
    assert all(abs(row["effect"]) > 0.2 for row in found["edges"])
    assert {row["span"] for row in found["nodes"]} <= {f"t{i}" for i in range(12)}
    assert found["evaluation"] == []
    assert all(row["exact"] is None for row in found["nodes"])


def test_spans_give_nodes_by_span_and_columns(run, tmp_path) -> None:
    out = tmp_path / "spans"
    code, said, err = run(
        "circuit", *SMALL, "--method", "relp", "--nodes", 12, "--positions", "spans", "--span", "subject",
        "--span", "END", "--exact", 2, "--random", 1, "--start-block", -1, "--out", out,
    )  # fmt: skip
    assert code == 0, err
    nodes, _ = load_circuit(out)
    assert nodes.spans == ("subject", "END")
    assert "the input too" in said
    assert "m(model)" in said
    assert "Columns are spans" in (out / "report.html").read_text()


def test_bad_input_is_refused_before_anything_runs(run, tmp_path) -> None:
    for arguments, words in (
        (("--nodes", 5, "--threshold", 0.1), "give one of them"),
        (("--span", "subject"), "--positions spans"),
        (("--positions", "spans", "--span", "nobody"), "no span 'nobody'"),
        (("--dictionaries", tmp_path / "none"), "none"),
    ):
        code, _, err = run("circuit", *SMALL, *arguments)
        assert code == 2, err
        assert words in err
    code, _, err = run("circuit", *SMALL, "--method", "atp", "--threshold", 1e6, "--no-evaluate")
    assert code == 2
    assert "lower the threshold" in err


def test_a_folder_with_results_is_kept_without_overwrite(run, copy) -> None:
    code, _, err = run("circuit", *SMALL, "--out", copy)
    assert code == 2
    assert "--overwrite" in err
    assert (copy / "features.json").is_file()


# ---------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_draws_features_and_neurons_over_size(run, copy) -> None:
    code, out, err = run(
        "evaluate", copy, "--size", 5, "--size", 40, "--errors", "nodes", "--errors", "removed", "--baseline", "hidden",
        "--baseline", "outputs", "--ranked-by", "relp", "--random", 1, "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)["curves"]
    kinds = [(curve["kind"], curve["ranked_by"], curve["errors"]) for curve in found]
    assert kinds == [
        ("features", "ig", "nodes"), ("features", "ig", "removed"), ("neurons, hidden", "relp", ""),
        ("neurons, outputs", "relp", ""),
    ]  # fmt: skip
    for curve in found:
        assert [row["features"] + row["error_terms"] for row in curve["sets"]] == [5, 40]
        assert curve["about"]["start_block"] == 1
    assert all(place.endswith(".act") for place in found[2]["about"]["places"])
    models = {round(curve["sets"][0]["m_model"], 9) for curve in found}
    assert len(models) == 1
    assert len(load_curves(copy / "curves")) == 4
    page = (copy / "report.html").read_text()
    assert "beside neurons" in page
    assert "neurons, hidden (relp)" in page
    assert "crosspatch features evaluate" in page


def test_evaluate_refuses_other_folders_and_dictionaries(run, copy, tmp_path) -> None:
    code, _, err = run("evaluate", tmp_path)
    assert code == 2
    assert "features.json" in err
    path = copy / "features.json"
    data = json.loads(path.read_text())
    data["settings"]["digests"]["m0"] = "0" * 16
    path.write_text(json.dumps(data))
    code, _, err = run("evaluate", copy)
    assert code == 2
    assert "not those that the folder was made with" in err
    data["settings"]["search"]["method"] = 3
    path.write_text(json.dumps(data))
    code, _, err = run("evaluate", copy)
    assert code == 2
    assert "unknown settings" in err


# ------------------------------------------------------------------------------------------------------------- edges


def test_edges_are_found_again_and_judged(run, copy) -> None:
    nodes, before = load_circuit(copy)
    code, said, err = run("edges", copy, "--method", "relp", "--size", 30, "--random", 1, "--edge-threshold", 0.05)
    assert code == 0, err
    assert "every edge between the nodes" in said
    same, after = load_circuit(copy)
    assert list(same) == list(nodes)
    assert before is not None
    assert after is not None
    assert after.origin["method"] == "relp"
    assert not np.array_equal(before.values, after.values)
    [curve] = load_curves(copy / "edges")
    assert isinstance(curve.evaluation, EdgeEvaluation)
    assert {"edges", "node_faithfulness"} <= set(curve.evaluation.frame)
    assert len(list(copy.glob("edges-*.parquet"))) == 1
    page = (copy / "report.html").read_text()
    assert "Edge by edge" in page
    assert "crosspatch features edges" in page
    write_report(copy)
    assert (copy / "report.html").read_text() == page
    code, _, err = run("edges", copy, "--method", "atp", "--no-evaluate", "-q")
    assert code == 0, err
    assert not (copy / "edges").exists()
    assert "Edge by edge" not in (copy / "report.html").read_text()
