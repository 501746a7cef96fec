"""The command line: what it prints, where it writes, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crosspatch.cli import console, main
from crosspatch.cli.console import Bars, finite, table
from crosspatch.cli.inputs import MARKER, claim, is_file
from crosspatch.errors import GateError, ResultError


@pytest.fixture(autouse=True)
def fresh_mode(monkeypatch) -> None:
    """What one test asked for (--json, --debug) does not reach the next."""
    for name in ("json", "quiet", "debug"):
        monkeypatch.setattr(console.mode, name, False)


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process; gives (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["crosspatch", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> Path:
    """A folder with an untrained GPT-2 and a tokenizer that keeps the words of one task whole."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from crosspatch.tasks import make_task

    folder = tmp_path_factory.mktemp("random-model")
    pairs = make_task("ioi", n=60).pairs
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = [p.clean + a for p in pairs for a in (*p.answers, *p.wrong)] * 3
    tokenizer.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = transformers.GPT2Config(vocab_size=len(fast), bos_token_id=0, eos_token_id=0, **size)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


# ------------------------------------------------------------------------------------------------------------- help


COMMANDS = [[], ["localize"], ["patch"], ["models"], ["models", "fetch"], ["tasks"], ["tasks", "show"], ["tasks",
"check"],
            ["check"], ["report"]]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_shows_an_example(run, command) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "crosspatch" in out
    assert "Example" in out or "Start with" in out


def test_help_is_quick_because_torch_stays_out() -> None:
    script = (
        "import sys\nsys.argv=['crosspatch','localize','--help']\nfrom crosspatch.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch','transformers','pandas','scipy','plotly'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_version(run) -> None:
    from importlib.metadata import version

    code, out, _ = run("--version")
    assert (code, out) == (0, f"crosspatch {version('crosspatch')}\n")


# ------------------------------------------------------------------------------------------------- models and tasks


def test_models_lists_what_is_there(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CROSSPATCH_CACHE", str(tmp_path))
    code, out, _ = run("models", "--json")
    listed = {m["name"]: m for m in json.loads(out)["models"]}
    assert code == 0
    assert listed["smollm2-135m"]["ready"] is False
    code, out, _ = run("models")
    assert code == 0
    assert "crosspatch models fetch smollm2-135m" in out


def test_fetching_an_unknown_model_names_the_known_ones(run) -> None:
    code, out, err = run("models", "fetch", "gpt5")
    assert (code, out) == (2, "")
    assert "gpt5" in err
    assert "smollm2-135m" in err
    assert "Traceback" not in err


def test_tasks_are_listed_with_their_corruptions(run) -> None:
    from crosspatch.tasks import list_tasks

    code, out, _ = run("tasks", "--json")
    assert code == 0
    assert [t["name"] for t in json.loads(out)["tasks"]] == [t.name for t in list_tasks()]


def test_show_prints_tokens_roles_and_answers(run, random_model) -> None:
    code, out, _ = run("tasks", "show", "ioi", "--n", 2, "--model", random_model)
    assert code == 0
    assert out.count("clean ") == 2
    assert "END =" in out
    assert "|" in out
    code, out, _ = run("tasks", "show", "ioi", "--n", 2, "--model", random_model, "--json")
    shown = json.loads(out)
    assert len(shown["pairs"]) == 2
    assert "".join(shown["pairs"][0]["clean_tokens"]).endswith(shown["pairs"][0]["clean"])


def test_a_file_of_pairs_is_shown_without_its_control_characters(run, random_model, tmp_path) -> None:
    pair = {"clean": "When \x1b[31mMary", "corrupt": "When \x1b[31mJohn", "answers": [" a"], "wrong": [" b"]}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pair) + "\n")
    code, out, _ = run("tasks", "show", path, "--model", random_model)
    assert code == 0
    assert "\x1b" not in out
    assert "\\u001b" in out


def test_a_wrong_task_name_is_bad_input_with_a_hint(run, random_model) -> None:
    code, out, err = run("tasks", "show", "ioj", "--model", random_model)
    assert (code, out) == (2, "")
    assert "did you mean 'ioi'" in err


def test_gates_refuse_an_untrained_model(run, random_model) -> None:
    code, out, _ = run("tasks", "check", "ioi", "--model", random_model, "--n", 16, "--json")
    report = json.loads(out)
    assert code == 1
    assert report["exit_code"] == 1
    assert report["ok"] is False
    assert any(f["level"] == "failure" for f in report["findings"])


# ---------------------------------------------------------------------------------------------------------- check


def test_check_proves_the_graph(run, random_model) -> None:
    code, out, _ = run("check", random_model, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["ok"] is True
    assert all(item["error"] <= item["tolerance"] for item in report["items"])


def test_a_model_that_fails_its_check_has_its_own_exit_code(run, random_model, monkeypatch) -> None:
    from crosspatch.model.check import CheckItem, CheckReport

    failed = CheckReport("m", (CheckItem("logits", "same logits", 0.5, 1e-5),))
    monkeypatch.setattr("crosspatch.model.check", lambda *a, **k: failed)
    code, out, _ = run("check", random_model)
    assert code == 3
    assert "is NOT the model" in out
    code, _, err = run("tasks", "check", "ioi", "--model", random_model)
    assert code == 3
    assert "is NOT the model" in err


@pytest.mark.parametrize(
    ("option", "value", "says"), [("--dtype", "float12", "float12"), ("--device", "tpu:9", "tpu:9")]
)
def test_bad_devices_and_dtypes_are_bad_input(run, random_model, option, value, says) -> None:
    code, _, err = run("check", random_model, option, value)
    assert code == 2
    assert says in err
    assert "Fix:" in err


def test_a_folder_without_a_model_is_bad_input(run, tmp_path) -> None:
    code, out, err = run("check", tmp_path / "nothing", "--json")
    assert code == 2
    assert json.loads(out)["error"]["type"] == "ModelError"
    assert "Fix:" in err


# --------------------------------------------------------------------------------------------------------- folders


def test_an_output_folder_is_taken_only_if_nothing_is_lost(tmp_path) -> None:
    new = tmp_path / "new"
    claim(new, resume=False, overwrite=False)
    assert new.is_dir()
    claim(new, resume=False, overwrite=False)

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for flags in ({"resume": False, "overwrite": False}, {"resume": True, "overwrite": False}):
        with pytest.raises(ResultError, match="not a results folder"):
            claim(foreign, **flags)
    claim(foreign, resume=False, overwrite=True)
    assert (foreign / "thesis.tex").read_text() == "years of work"

    (new / MARKER).write_text("{}")
    claim(new, resume=False, overwrite=False)
    (new / "result.json").write_text("{}")
    with pytest.raises(ResultError, match="already holds results"):
        claim(new, resume=False, overwrite=False)
    claim(new, resume=True, overwrite=False)
    claim(new, resume=False, overwrite=True)
    with pytest.raises(ResultError, match="replaces"):
        claim(new, resume=True, overwrite=True)

    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="it is a file"):
        claim(tmp_path / "file", resume=False, overwrite=True)


# --------------------------------------------------------------------------------------------------------- console


def test_json_holds_no_nan(capsys, monkeypatch) -> None:
    import numpy as np

    monkeypatch.setattr(console.mode, "json", True)
    console.result({"a": [float("nan"), 1.5, (float("inf"),)], "b": np.float32(2.0), 3: None})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5, [None]], "b": 2.0, "3": None}
    assert finite(np.int64(4)) == 4


def test_errors_say_what_where_and_fix(capsys) -> None:
    code = console.fail(GateError("it would mislead \x1b[2J", where="task 'x'", fix="do this"))
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err == "Refused (task 'x'): it would mislead \\u001b[2J\n  Fix: do this\n"


def test_an_unexpected_error_is_reported_without_a_traceback(run, monkeypatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("crosspatch.tasks.list_tasks", broken)
    code, _, err = run("tasks")
    assert code == 70
    assert "oops" in err
    assert "--debug" in err
    assert "Traceback" not in err
    monkeypatch.setattr(sys, "argv", ["crosspatch", "tasks", "--debug"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_an_interrupt_says_how_to_go_on(run, monkeypatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crosspatch.tasks.list_tasks", interrupted)
    code, _, err = run("tasks")
    assert code == 130
    assert "--resume" in err


def test_bars_stay_away_where_nobody_watches(capsys) -> None:
    with console.bars() as shown:
        shown.stage("work", 1, 2)
    assert isinstance(shown, Bars)
    assert capsys.readouterr() == ("", "")


def test_bars_show_stages_on_a_terminal() -> None:
    from io import StringIO

    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(file=StringIO(), force_terminal=True))
    shown = Bars(progress)
    shown.stage("first", 1, 4)
    shown.stage("first", 3, 4)
    shown.stage("second", 1, 2)
    assert [(t.description, t.completed, t.total) for t in progress.tasks] == [("first", 4, 4), ("second", 1, 2)]


def test_tables_line_up() -> None:
    assert table([["a", "bb"], ["ccc", "d"]], ["x", "y"]) == "x    y\n---  --\na    bb\nccc  d"


def test_files_are_told_from_names() -> None:
    assert is_file("pairs.jsonl")
    assert is_file("data/ioi.CSV")
    assert is_file("./ioi")
    assert not is_file("ioi")
