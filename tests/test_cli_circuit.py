"""`crosspatch circuit`: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from crosspatch.attribution.scores import load_scores
from crosspatch.circuits import Circuit, iou, read_circuit
from crosspatch.circuits.evaluation import CircuitEvaluation
from crosspatch.cli import console, main
from crosspatch.report import write_report

SMALL = ("--n", 24, "--exact", 6, "--random", 4)
"""Options that make a run short."""


@pytest.fixture(autouse=True)
def fresh_mode(monkeypatch) -> None:
    """What one test asked for (--json, --debug) does not reach the next."""
    for name in ("json", "quiet", "debug"):
        monkeypatch.setattr(console.mode, name, False)


def called(patch: pytest.MonkeyPatch, capture, *arguments: str | Path | int) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `crosspatch circuit ...` in this process."""
    threads = ["--threads", "1"] if arguments[0] in ("find", "verify", "evaluate") and "--help" not in arguments else []
    patch.setattr(sys, "argv", ["crosspatch", "circuit", *map(str, arguments), *threads])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capture.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *arguments: called(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """One folder of `crosspatch circuit find`; tests that change it take a copy."""
    out = tmp_path_factory.mktemp("find") / "circuit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["crosspatch", "circuit", "find", "--out", str(out), "-q", *map(str, SMALL), "--threads", "1"]
        )
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return out


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.mark.parametrize(
    "command", [[], ["find"], ["verify"], ["evaluate"], ["compare"], ["export"]], ids=lambda c: " ".join(c) or "group"
)
def test_every_help_shows_an_example(run, command) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Example: crosspatch circuit" in out


# -------------------------------------------------------------------------------------------------------------- find


def test_find_ends_with_a_circuit_its_evaluation_and_a_report(made) -> None:
    circuit = Circuit.load(made / "circuit.json")
    assert circuit.is_connected
    assert 4 <= circuit.n_edges < 100
    evaluation = CircuitEvaluation.load(made / "evaluation")
    assert evaluation.circuits == [circuit]
    assert evaluation.frame["faithfulness"].iloc[0] > 0.7
    searched = set(circuit.origin["pairs"])
    assert searched
    assert not searched & set(evaluation.pairs)
    scores = load_scores(made / "scores")
    assert len(scores.parts) == len(circuit.table)
    assert set(scores.origin["pairs"]) == searched
    assert json.loads((made / "gates.json").read_text())["ok"] is True
    assert len(pd.read_csv(made / "verification.csv")) == 12
    page = (made / "report.html").read_text()
    for words in ("alone keep", "Faithfulness over size", "Estimate and truth", "The strongest edges",
                  "crosspatch circuit find", "a3.h0"):  # fmt: skip
        assert words in page
    assert str(circuit.n_edges) in page


def test_the_page_is_rebuilt_from_the_folder_alone(made) -> None:
    before = (made / "report.html").read_text()
    (made / "report.html").unlink()
    assert write_report(made).read_text() == before


def test_a_size_and_a_target_are_met(run) -> None:
    code, out, err = run("find", "--size", 12, "--method", "eap", "--no-evaluate", "--json", *SMALL)
    assert code == 0, err
    found = json.loads(out)
    assert sum(map(len, found["circuit"]["edges"].values())) == 12
    assert found["evaluation"] is None
    assert found["out"] is None
    assert [row["edges"] for row in found["tried"]] == [12]
    assert found["verification"]["top"] == 6


def test_the_target_decides_the_size(run, made) -> None:
    code, out, err = run("find", "--target", 0.5, "--no-evaluate", "--exact", 0, "--json", "--n", 24)
    assert code == 0, err
    found = json.loads(out)
    assert found["target_reached"]
    n = sum(map(len, found["circuit"]["edges"].values()))
    kept = {row["edges"]: row["kept"] for row in found["tried"]}
    assert abs(kept[n] - 1) <= 0.5 + 1e-6
    assert all(abs(share - 1) > 0.5 for edges, share in kept.items() if edges < n)
    assert n < Circuit.load(made / "circuit.json").n_edges


def test_spans_give_a_circuit_by_span(run, tmp_path) -> None:
    out = tmp_path / "spans"
    code, _, err = run("find", "--span", "S2", "--span", "END", "--out", out, "-q", "--size", 30, *SMALL)
    assert code == 0, err
    circuit = Circuit.load(out / "circuit.json")
    assert circuit.spans == ("S2", "END")
    assert circuit.is_connected
    assert "Columns are spans" in (out / "report.html").read_text()


def test_acdc_finds_a_circuit_and_says_what_it_saw(run, tmp_path) -> None:
    out = tmp_path / "acdc"
    code, said, err = run(
        "find", "--method", "acdc", "--threshold", 0.05, "--out", out, "--n", 16, "--held-out", 0.6, "--random", 3
    )
    assert code == 0, err
    circuit = Circuit.load(out / "circuit.json")
    assert circuit.origin["selection"]["by"] == "acdc"
    assert circuit.is_connected
    assert not (out / "scores").exists()
    ranking = json.loads((out / "ranking.json").read_text())["ranking"]
    assert {edge for edge in circuit.edge_names() if edge in ranking}
    assert "acdc" in said
    code, _, err = run("verify", out)
    assert code == 2
    assert "no scores per pair" in err


def test_an_unknown_span_is_refused_with_those_there_are(run) -> None:
    code, _, err = run("find", "--span", "S9", "--n", 12)
    assert code == 2
    assert "S9" in err
    assert "S1+1" in err


def test_a_metric_without_gradient_is_refused(run) -> None:
    code, _, err = run("find", "--method", "eap", "--metric", "kl", "--n", 12)
    assert code == 2
    assert "gradient is zero" in err


def test_a_folder_that_holds_results_is_kept(run, copy) -> None:
    before = (copy / "circuit.json").read_text()
    code, _, err = run("find", "--out", copy, *SMALL)
    assert code == 2
    assert "--overwrite" in err
    assert (copy / "circuit.json").read_text() == before


def test_overwrite_leaves_nothing_of_the_old_run_and_nothing_else_out(run, copy) -> None:
    (copy / "notes.txt").write_text("mine")
    code, _, err = run("find", "--size", 10, "--no-evaluate", "--exact", 0, "--n", 12, "--out", copy, "--overwrite")
    assert code == 0, err
    assert (copy / "notes.txt").read_text() == "mine"
    assert not (copy / "evaluation").exists()
    assert not (copy / "verification.json").exists()
    assert Circuit.load(copy / "circuit.json").n_edges == 10


# ------------------------------------------------------------------------------------------------- verify, evaluate


def test_verify_measures_more_and_rebuilds_the_page(run, copy) -> None:
    code, out, err = run("verify", copy, "--exact", 10, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["edges"]) == 20
    assert found["correlation"]["top"][0] > 0.9
    assert 0 <= found["recall_bound"] <= 1
    assert found["missed_bound"] >= found["missed_in_sample"] >= 0
    saved = json.loads((copy / "verification.json").read_text())
    assert [row["part"] for row in saved["rows"]] == [row["part"] for row in found["edges"]]
    assert saved["describe"].split(":")[0] in (copy / "report.html").read_text()


def test_verify_prints_correlation_recall_and_bound(run, copy) -> None:
    code, out, _ = run("verify", copy, "--exact", 5)
    assert code == 0
    for words in ("correlation", "at most", "At least", "estimate", "exact", "Report: "):
        assert words in out


def test_evaluate_judges_a_folder_on_the_pairs_that_it_held_out(run, copy) -> None:
    before = CircuitEvaluation.load(copy / "evaluation")
    code, out, err = run("evaluate", copy, "--no-tests", "--random", 3, "--ablation", "zero", "--json")
    assert code == 0, err
    found = json.loads(out)
    after = CircuitEvaluation.load(copy / "evaluation")
    assert after.pairs == before.pairs
    assert after.methodology["ablation"] == "zero"
    assert found["circuit"]["faithfulness"] == pytest.approx(after.frame["faithfulness"].iloc[0])
    assert {row["area"] for row in found["frontier"]["areas"]} == {"cpr", "cmd", "log_cpr", "log_cmd"}
    assert "crosspatch circuit evaluate" in (copy / "report.html").read_text()


def test_a_folder_keeps_saying_what_it_was_found_on(run, copy) -> None:
    before = (copy / "report.html").read_text()
    code, _, err = run("evaluate", copy, "--seed", 5, "--no-tests")
    assert code == 2
    assert "--out" in err
    assert (copy / "report.html").read_text() == before


def test_evaluate_judges_any_circuit_with_tests_and_verdict(run, made, tmp_path) -> None:
    path, out = tmp_path / "mine.json", tmp_path / "out"
    circuit = Circuit.load(made / "circuit.json")
    circuit.with_(name="<b>mine</b>", origin={}).save(path)
    code, said, err = run("evaluate", path, "--n", 12, "--random", 5, "--out", out)
    assert code == 0, err
    for words in ("kept by the circuit alone", "equivalence", "partial necessity", "Verdict", "sufficiency"):
        assert words in said
    assert "area of the size frontier" not in said  # there is no ranking
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert "<b>mine</b>" not in page
    assert "Shi et al." in page


def test_circuits_of_two_tasks_give_a_specificity_matrix(run, copy, tmp_path) -> None:
    other = tmp_path / "induction"
    code, _, err = run("find", "--task", "induction", "--force", "--no-evaluate", "--size", 20, "--out", other, *SMALL)
    assert code == 0, err
    code, out, err = run("evaluate", copy, "--other", other, "--no-tests", "--random", 3, "--json")
    assert code == 0, err
    rows = json.loads(out)["specificity"]
    assert {(row["task"], row["circuit"]) for row in rows} == {
        (a, b) for a in ("ioi", "induction") for b in ("ioi", "induction")
    }
    assert "On other tasks" in (copy / "report.html").read_text()
    code, _, err = run("evaluate", copy, "--other", copy, "--no-tests")
    assert code == 2
    assert "twice" in err


def test_a_circuit_of_another_model_is_refused(run) -> None:
    code, _, err = run("evaluate", "reference:ioi", "--model", "embedded", "--n", 12)
    assert code == 2
    assert "gpt2" in err


@pytest.mark.parametrize("text", ["nothing.json", "reference:nobody"])
def test_a_circuit_that_is_not_there_is_refused(run, text) -> None:
    code, _, err = run("compare", text, text + "x")
    assert code == 2
    assert "Fix: " in err


# -------------------------------------------------------------------------------------------------- compare, export


def test_compare_says_how_alike_circuits_are(run, made, tmp_path) -> None:
    whole = Circuit.load(made / "circuit.json")
    half = Circuit.from_edges(whole.shape, whole.edge_names()[::2])
    half.save(tmp_path / "half.json")
    code, out, err = run("compare", made, tmp_path / "half.json", "--core", tmp_path / "core.json", "--json")
    assert code == 0, err
    found = json.loads(out)
    (pair,) = found["pairs"]
    assert pair["iou_edges"] == pytest.approx(half.n_edges / whole.n_edges)
    assert pair["edit_distance"] == whole.n_edges - half.n_edges
    assert pair["second_in_first"] == 1.0
    assert Circuit.load(tmp_path / "core.json") == half
    assert set(found["core"]["edges"]) == set(half.edge_names())


def test_compare_with_a_published_circuit(run, tmp_path) -> None:
    from crosspatch.circuits import reference

    known = reference("ioi").circuit
    Circuit.from_edges(known.shape, known.edge_names()[:10]).save(tmp_path / "part.json")
    code, out, err = run("compare", tmp_path / "part.json", "reference:ioi")
    assert code == 0, err
    assert "10 edges are in all of them" in out
    assert "100%" in out


@pytest.mark.parametrize("kind", ["crosspatch", "eap-ig", "graphml", "neuronpedia"])
def test_what_is_exported_is_read_back(run, made, tmp_path, kind) -> None:
    path = tmp_path / ("out.graphml" if kind == "graphml" else "out.json")
    code, _, err = run("export", made, path, "--format", kind, "--prompt", "When|Mary|and")
    assert code == 0, err
    whole = Circuit.load(made / "circuit.json")
    back, scores = read_circuit(path, whole.shape)
    assert iou(back, whole) == 1.0
    if kind in ("eap-ig", "graphml"):
        mean = load_scores(made / "scores").mean
        assert scores is not None
        assert scores[whole.flat] == pytest.approx(mean[whole.flat], rel=1e-5)
    code, _, err = run("export", made, path, "--format", kind, "--prompt", "When|Mary|and")
    assert code == 2
    assert "--overwrite" in err


def test_mib_and_dot_are_written(run, made, tmp_path) -> None:
    code, _, err = run("export", made, tmp_path / "mib", "--format", "mib")
    assert code == 0, err
    assert (tmp_path / "mib" / "ioi_embedded" / "importances.json").is_file()
    code, _, err = run("export", made, tmp_path / "c.dot", "--format", "dot")
    assert code == 0, err
    assert (tmp_path / "c.dot").read_text().startswith("digraph")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("x.txt", "--format", "graphml"), ".graphml"), (("x.json", "--format", "neuronpedia"), "--prompt")],
)
def test_an_export_that_cannot_be_is_refused(run, made, tmp_path, arguments, words) -> None:
    code, _, err = run("export", made, tmp_path / arguments[0], *arguments[1:])
    assert code == 2
    assert words in err


# ---------------------------------------------------------------------------------------------------------- localize


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--no-circuit",), ""), (("--metric", "accuracy"), "No circuit: ")],
    ids=["told", "no gradient"],
)
def test_localize_goes_without_a_circuit(monkeypatch, capsys, tmp_path, options, said) -> None:
    out = tmp_path / "out"
    command = ["localize", "--n", "16", "--level", "block", "--out", str(out), "--threads", "1", *options]
    monkeypatch.setattr(sys, "argv", ["crosspatch", *command])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert said in capsys.readouterr().err
    assert not (out / "circuit").exists()
    assert '<section id="circuit">' not in (out / "report.html").read_text()
