"""`crosspatch shift`: what it prints, what it writes, how a person's answers go in, and how it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import shift_toys

from crosspatch.cli import console, main
from crosspatch.report import write_report
from crosspatch.shift import load_exported, load_shift

SMALL = ("--n", 8, "--layer", 0, "--method", "atp", "--nodes", 25, "--random", 2, "--threads", 1)


@pytest.fixture(autouse=True)
def fresh_mode(monkeypatch) -> None:
    for name in ("json", "quiet", "debug"):
        monkeypatch.setattr(console.mode, name, False)
    monkeypatch.setattr("crosspatch.cli.shift.CORPUS_TEXTS", 20)


@pytest.fixture
def run(monkeypatch, capsys):
    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["crosspatch", "shift", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return called


def test_from_texts_to_page_and_exported_model(run, tmp_path) -> None:
    out = tmp_path / "shift"
    code, said, err = run("--out", out, "--export", "--json", *SMALL)
    assert code == 0, err
    data = json.loads(said)
    result = load_shift(out)
    assert [row["method"] for row in data["methods"]] == [m.name for m in result.methods]
    assert {"original", "SHIFT", "SHIFT, retrained", "oracle", "neuron skyline"} <= {m.name for m in result.methods}
    assert "not a person" in data["judge"] and data["layer"] == 0
    assert load_exported(data["exported"]).config.classifier["layer"] == 0
    page = Path(data["report"]).read_text()
    assert "not a person" in page and 'href="cards.html#card-0"' in page
    assert not re.search(r'(?:src|href)="?(?:https?:)?//', page)
    Path(data["report"]).unlink()
    assert write_report(out).read_text() == page
    code, _, err = run("--out", out, *SMALL)
    assert code == 2 and "--overwrite" in err


def test_a_persons_answers_go_in(run, tmp_path) -> None:
    out = tmp_path / "shift"
    code, said, err = run("--out", out, "--judge", "person", *SMALL)
    assert code == 0, err
    assert "features to judge" in said and "--judge" in said.splitlines()[-1]
    answers = out / "answers.json"
    names = list(json.loads(answers.read_text())["answers"])
    assert names[0] in (out / "cards.html").read_text() and not (out / "shift.json").exists()
    code, _, err = run("--out", out, "--overwrite", "--judge", answers, *SMALL)
    assert code == 2 and "has no verdict yet" in err
    answers.write_text(json.dumps({"answers": dict.fromkeys(names, "unsure") | {names[0]: "ablate"}}))
    code, said, err = run("--out", out, "--overwrite", "--judge", answers, "--no-retrain", *SMALL)
    assert code == 0, err
    result = load_shift(out)
    assert "a person" in result.about["judge"] and result.method("SHIFT").ablated == 1
    assert "retrained" not in said and answers.is_file()


def test_own_texts(run, tmp_path) -> None:
    data = tmp_path / "bios.jsonl"
    made = shift_toys.texts(20, 0)
    rows = zip(made.texts, made.labels, made.spurious, strict=True)
    data.write_text("\n".join(json.dumps({"text": t, "label": a, "spurious": b}) for t, a, b in rows))
    small = ("--layer", 0, "--method", "atp", "--nodes", 20, "--random", 0, "--threads", 1, "-q")
    code, said, err = run(
        "--data", data, "--ambiguous", "0=1,1=0", "--cue-words", "he,she", "--out", tmp_path / "a", *small
    )
    assert code == 0, err
    assert "Left out: concept bottleneck" in said and "Left out: random features" in said
    assert load_shift(tmp_path / "a").group_names == ("1 0", "0 0", "1 1", "0 1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--judge", "nobody.json"), "cannot be read as answers"),
        (("--professions", "nurse,poet"), "use two different ones"),
        (("--data", "none.jsonl"), "cannot be read"),
        (("--test-data", "none.jsonl"), "goes with --data"),
        (("--cue-words", "none.txt"), "cannot be read"),
        (("--layer", "9"), "use 0 to 3"),
    ],
)
def test_bad_input(run, tmp_path, options: tuple[str, ...], said: str) -> None:
    code, out, err = run("--out", tmp_path / "x", "--n", 4, "--threads", 1, *options)
    assert code == 2 and said in err and not out


def test_values_that_do_not_pair(run, tmp_path) -> None:
    data = tmp_path / "bios.jsonl"
    data.write_text('{"text": "a", "label": 1, "spurious": 0}\n')
    for pairs in ("1=0", "1=0,2", "a,b"):
        code, _, err = run("--data", data, "--ambiguous", pairs, "--out", tmp_path / "x", "--threads", 1)
        assert code == 2 and "professor=male,nurse=female" in err
    code, _, err = run("--data", data, "--out", tmp_path / "x", "--threads", 1, "--overwrite")
    assert code == 2 and "two are needed" in err
