"""`crosspatch discover`: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from crosspatch.cli import console, main
from crosspatch.discover import load_clustering, load_samples, load_vectors
from crosspatch.errors import TaskError

SMALL = ("--samples", 40, "--vectors", "activations", "--clusters", 5, "--circuits", 0, "--repeats", 1, "--threads", 1)
"""Options that make a run short."""


@pytest.fixture(autouse=True)
def fresh_mode(monkeypatch) -> None:
    """What one test asked for (--json, --debug) does not reach the next."""
    for name in ("json", "quiet", "debug", "resumable"):
        monkeypatch.setattr(console.mode, name, False)


def called(patch: pytest.MonkeyPatch, capture, *arguments: str | Path | int) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `crosspatch discover ...` in this process."""
    patch.setattr(sys, "argv", ["crosspatch", "discover", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capture.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *arguments: called(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """One folder of a short run; tests that change it take a copy."""
    out = tmp_path_factory.mktemp("discover") / "found"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["crosspatch", "discover", "--out", str(out), "-q", *map(str, SMALL)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return out


def test_help_shows_an_example(run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "Example: crosspatch discover" in out


def test_it_ends_with_samples_clusters_and_an_index(made) -> None:
    samples = load_samples(made)
    assert len(samples) == 40
    assert samples.labels is not None
    assert load_clustering(made, samples.hash).k == 5
    assert load_vectors(made / "vectors").kind == "activations"
    assert (made / "index.html").is_file()
    assert len(list((made / "pages").glob("c*.html"))) == 5
    table = (made / "comparison.csv").read_text("utf-8")
    for name in ("activations", "token histogram", "answer token", "last token and answer"):
        assert f"\n{name}," in table


def test_json_says_the_same_and_resume_computes_nothing_again(run, made, monkeypatch, tmp_path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    marker = folder / "crosspatch.json"
    marker.write_text(marker.read_text("utf-8").replace(str(made), str(folder)), "utf-8")
    before = (folder / "vectors" / "vectors.npy").read_bytes()
    code, out, _ = run("--out", folder, "--resume", "--json", *SMALL)
    said = json.loads(out)
    assert code == 0
    assert said["ok"]
    assert said["clusters"] == 5
    assert said["vectors"]["places"][0] == "input"
    assert {row["clustering"] for row in said["comparison"]} >= {"activations", "answer token"}
    assert (folder / "vectors" / "vectors.npy").read_bytes() == before


def test_report_makes_the_pages_again(made, monkeypatch, tmp_path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    wanted = {path: path.read_bytes() for path in folder.rglob("*.html")}
    assert len(wanted) == 6
    for path in wanted:
        path.unlink()
    monkeypatch.setattr(sys, "argv", ["crosspatch", "report", str(folder)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert {path: path.read_bytes() for path in folder.rglob("*.html")} == wanted


def test_a_circuit_is_found_and_judged_and_overwrite_leaves_nothing_behind(run, tmp_path) -> None:
    small = ("--samples", 30, "--vectors", "gradients", "--dims", 512, "--clusters", 2, "--repeats", 0, "--threads", 1)
    code, out, err = run("--out", tmp_path / "o", "--circuits", 1, "--contexts", 8, "--nodes", 10, *small)
    assert code == 0, err
    assert "faithfulness" in out
    assert json.loads((tmp_path / "o" / "circuits" / "c00000" / "cluster.json").read_text("utf-8"))["nodes"]
    (tmp_path / "o" / "mine.txt").write_text("kept", "utf-8")
    code, _, _ = run("--out", tmp_path / "o", "--overwrite", "--circuits", 0, *small)
    assert code == 0
    assert not (tmp_path / "o" / "circuits").exists()
    assert (tmp_path / "o" / "mine.txt").is_file()


def test_a_file_of_text_has_no_truth(run, tmp_path) -> None:
    (tmp_path / "text.txt").write_text(
        "When Mary and John went to the store, John gave a drink to Mary.\n" * 60, "utf-8"
    )
    small = ("--clusters", 2, "--circuits", 0, "--vectors", "activations", "--repeats", 0, "--per-document", 20)
    code, out, err = run("--text", tmp_path / "text.txt", "--samples", 12, "--out", tmp_path / "o", *small)
    assert code == 0, err
    assert "with truth" not in out
    assert load_samples(tmp_path / "o").labels is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--clusters", "many"), "--clusters"),
        (("--clusters", "0"), "--clusters"),
        (("--clusters", "99"), "99 clusters of 40 samples"),
        (("--positions", "all"), "--positions"),
        (("--circuits", "-1"), "--circuits"),
        (("--text", "nowhere.txt"), "no such file"),
        (("--threshold", "0"), "threshold"),
        (("--threshold", "1e-12", "--text", "{text}"), "were sure"),
        (("--vectors", "effects", "--dictionaries", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_says_what_to_do(run, tmp_path, arguments, said) -> None:
    (tmp_path / "t.txt").write_text("Mary and John went to the store.", "utf-8")
    given = [word.replace("{text}", str(tmp_path / "t.txt")) for word in arguments]
    code, out, err = run("--out", tmp_path / "o", *SMALL, *given)
    assert code == 2
    assert said in err
    assert not out


@pytest.mark.parametrize(("typed", "wanted"), [((), 60), (("--edges", 7), 7), (("--edges", 0), 0)], ids=str)
def test_edges_of_circuits_are_asked_for(run, tmp_path, monkeypatch, typed, wanted) -> None:
    asked = []

    def stop(*given, **named) -> None:
        asked.append(given[4])
        raise TaskError("stopped here")

    monkeypatch.setattr("crosspatch.discover.run.discover", stop)
    code, _, err = run("--out", tmp_path / "o", *typed)
    assert code == 2
    assert "stopped here" in err
    assert asked[0].circuit.edges == wanted


def test_a_folder_with_results_is_not_taken_twice(run, made) -> None:
    code, _, err = run("--out", made, *SMALL)
    assert code == 2
    assert "--resume" in err
    code, _, err = run("--out", made, "--resume", *SMALL, "--seed", 5)
    assert code == 2
    assert "another command" in err
