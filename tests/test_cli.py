"""The command line: what it prints, where it writes, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crosspatch.cli import console, main
from crosspatch.cli.console import Bars, finite, table
from crosspatch.cli.folders import MARKER, essential, open_folder
from crosspatch.cli.inputs import is_file, load_task
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


def test_listings_do_not_wait_for_torch() -> None:
    script = (
        "import sys\nfrom crosspatch.cli import main\nsys.argv = ['crosspatch', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\nassert not heavy, heavy"
    )
    for command in (["--help"], ["tasks"], ["tasks", "--json"], ["models"], ["models", "--json"]):
        done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout


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


DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
GREATER_THAN = """clean,corrupted,label
The contract lasted from the year 1352 to the year 13,The contract lasted from the year 1301 to the year 13,52
The plan lasted from the year 1642 to the year 16,The plan lasted from the year 1601 to the year 16,42
"""


@pytest.fixture
def public(tmp_path, monkeypatch) -> Path:
    """A folder of public data with one small set in it."""
    folder = tmp_path / "data"
    (folder / "greater-than").mkdir(parents=True)
    (folder / "greater-than" / "greater_than.csv").write_text(GREATER_THAN)
    monkeypatch.setenv("CROSSPATCH_DATA", str(folder))
    return folder


def test_public_sets_are_listed_where_they_are(run, public) -> None:
    code, out, _ = run("tasks")
    assert code == 0
    assert str(public) in out
    assert "public:greater-than" in out
    code, out, _ = run("tasks", "--json")
    assert json.loads(out)["public"] == {"folder": str(public), "names": ["public:greater-than"]}
    (public / "greater-than" / "greater_than.csv").unlink()
    code, out, _ = run("tasks")
    assert code == 0
    assert "ublic" not in out


def test_a_public_set_is_a_task(public) -> None:
    task = load_task("public:greater-than", None, 2, 0, None)
    assert (task.name, len(task)) == ("greater-than", 2)
    assert "Hanna et al. 2023" in task.provenance
    assert len(load_task("public:greater-than", None, 50, 0, None)) == 2


def test_a_public_set_that_is_not_there_is_bad_input_with_near_names(run, random_model, public, monkeypatch) -> None:
    code, out, err = run("tasks", "show", "public:greater-then", "--model", random_model)
    assert (code, out) == (2, "")
    assert "did you mean 'greater-than'" in err
    code, _, err = run("tasks", "show", "public:greater-than", "--model", random_model, "--corruption", "abc")
    assert code == 2
    assert "use 01" in err
    monkeypatch.setenv("CROSSPATCH_DATA", str(public / "absent"))
    code, _, err = run("tasks", "show", "public:greater-than", "--model", random_model)
    assert code == 2
    assert "no such folder" in err


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no public data at {DATA}")
def test_public_ioi_is_patched(run, random_model, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("CROSSPATCH_DATA", raising=False)
    code, out, err = run("tasks", "show", "ioi/eap_ig", "--model", random_model)
    assert code == 2
    assert "public:ioi/eap_ig" in err
    code, out, err = run("patch", "--task", "public:ioi/dpa", "--model", random_model, "--sites", "r*@END", "--n", 4,
                         "--force", "--out", tmp_path / "out", "--json")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["rows"]


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


def test_an_output_folder_is_taken_only_if_nothing_is_lost(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["crosspatch", "localize", "--task", "ioi"])
    new = tmp_path / "new"
    open_folder(new, resume=False, overwrite=False)
    assert json.loads((new / MARKER).read_text())["command"] == ["localize", "--task", "ioi"]
    open_folder(new, resume=False, overwrite=False)

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for flags in ({"resume": False, "overwrite": False}, {"resume": True, "overwrite": False}):
        with pytest.raises(ResultError, match="not a results folder"):
            open_folder(foreign, **flags)
    assert not (foreign / MARKER).exists()
    open_folder(foreign, resume=False, overwrite=True)
    open_folder(foreign, resume=False, overwrite=True)
    assert (foreign / "thesis.tex").read_text() == "years of work"

    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="it is a file"):
        open_folder(tmp_path / "file", resume=False, overwrite=True)


def test_results_are_kept_with_resume_and_replaced_with_overwrite(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["crosspatch", "localize", "--task", "ioi"])
    out = tmp_path / "out"
    open_folder(out, resume=False, overwrite=False)
    results = [
        out / "report.html",
        out / "levels" / "head" / "result.json",
        out / "levels" / "head" / "parts" / "methodology.json",
    ]
    results.append(out / "levels" / "head" / "rows-0123456789ab.parquet")
    notes = [out / "notes.txt", out / "levels" / "head" / "my.parquet"]
    for path in results + notes:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    with pytest.raises(ResultError, match="already holds results"):
        open_folder(out, resume=False, overwrite=False)
    with pytest.raises(ResultError, match="replaces"):
        open_folder(out, resume=True, overwrite=True)
    monkeypatch.setattr(sys, "argv", ["crosspatch", "localize", "--task", "induction", "--resume"])
    with pytest.raises(ResultError, match="another command"):
        open_folder(out, resume=True, overwrite=False)
    monkeypatch.setattr(sys, "argv", ["crosspatch", "localize", "--task", "ioi", "--threads", "2", "--resume"])
    open_folder(out, resume=True, overwrite=False)
    assert all(path.exists() for path in results + notes)
    open_folder(out, resume=False, overwrite=True)
    assert not any(path.exists() for path in results)
    assert all(path.exists() for path in notes)
    assert not (out / "levels" / "head" / "parts").exists()


def test_the_recorded_command_is_what_decides_the_result() -> None:
    words = ["patch", "--n", "4", "--threads", "2", "--budget-mib=100", "--json", "-q", "--resume", "--seed", "1"]
    assert essential(words) == ["patch", "--n", "4", "--seed", "1"]


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


@pytest.mark.parametrize("resumable", [True, False])
def test_an_interrupt_says_how_to_go_on_where_one_can(run, monkeypatch, resumable) -> None:
    def interrupted() -> None:
        console.mode.resumable = resumable
        raise KeyboardInterrupt

    monkeypatch.setattr("crosspatch.tasks.list_tasks", interrupted)
    code, _, err = run("tasks")
    assert code == 130
    assert ("--resume" in err) == resumable
    assert ("Nothing was saved" in err) != resumable


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


# ----------------------------------------------------------------------------------------------------------- patch


SWEEP = ["patch", "--sites", "a*.h*@END, r*", "--n", 6, "--metric", "logit_diff", "--metric", "prob", "--quiet"]


def test_patch_refuses_and_leaves_no_result(run, random_model, tmp_path) -> None:
    out = tmp_path / "out"
    code, stdout, err = run(*SWEEP, "--model", random_model, "--out", out)
    assert (code, stdout) == (1, "")
    assert err.startswith("Refused")
    assert "--force" in err or "force=True" in err
    assert not (out / "result.json").exists()


def test_patch_forced_saves_prints_and_reports(run, random_model, tmp_path) -> None:
    out = tmp_path / "out"
    command = [*SWEEP, "--model", random_model, "--out", out, "--force"]
    code, stdout, _ = run(*command)
    assert code == 0
    assert "INT" in stdout.splitlines()[0]
    assert "error: Gates were overruled" in stdout
    page = (out / "report.html").read_text()
    assert 'role="alert"' in page
    assert "crosspatch patch --sites" in page
    assert json.loads((out / MARKER).read_text())["command"] == essential([str(c) for c in command])

    code, _, err = run(*command)
    assert code == 2
    assert "already holds results" in err
    code, stdout, _ = run(*command, "--resume", "--json")
    report = json.loads(stdout)
    assert code == 0
    assert report["metric"] == "logit_diff"
    assert {"address", "denoise_effect", "noise_effect", "int", "gate", "q_denoise"} <= report["rows"][0].keys()

    (out / "report.html").unlink()
    code, stdout, _ = run("report", out)
    assert code == 0
    assert (out / "report.html").read_text() == page
    code, _, _ = run(*command, "--overwrite", "--seed", 3)
    assert code == 0


def test_report_needs_results(run, tmp_path) -> None:
    code, _, err = run("report", tmp_path)
    assert code == 2
    assert "holds no results" in err


@pytest.mark.parametrize(("source", "says"), [("nothing", "unknown source"), ("noise:much", "unknown source")])
def test_a_wrong_source_is_bad_input(run, random_model, source, says) -> None:
    code, _, err = run(*SWEEP, "--model", random_model, "--source", source, "--force")
    assert code == 2
    assert says in err


def test_sources_are_read_from_text() -> None:
    from crosspatch.cli.sweeping import source_of

    assert source_of("paired", 0).describe() == {"source": "other run"}
    assert source_of("zero", 0).describe() == {"source": "zero"}
    assert source_of("mean:clean", 0).describe()["over"] == "clean"
    assert source_of("noise:2", 5).describe() == {"source": "gaussian noise", "scale": 2.0, "draws": 10, "seed": 5}
    assert source_of("resample", 7).describe()["seed"] == 7


# -------------------------------------------------------------------------------------------------------- localize


def test_localize_on_the_shipped_model_writes_a_report_that_can_be_rebuilt(run, tmp_path) -> None:
    out = tmp_path / "out"
    command = [
        "localize",
        "--n",
        20,
        "--level",
        "residual",
        "--level",
        "block",
        "--level",
        "head",
        "--out",
        out,
        "--quiet",
    ]
    code, stdout, err = run(*command, "--json")
    assert code == 0, err
    report = json.loads(stdout)
    assert (report["ok"], report["forced"], report["task"]["name"]) == (True, False, "ioi")
    assert {row["granularity"] for row in report["top"]} == {"residual", "block", "head"}
    assert {f["severity"] for f in report["findings"]} <= {"error", "warning", "note"}
    page = (out / "report.html").read_text()
    for section in ("gates", "maps", "parts", "attention", "circuit", "confirmed", "diagnosis", "reproduce"):
        assert f'<section id="{section}">' in page
    assert "crosspatch localize --n 20" in page
    assert report["circuit"]["circuit"]["faithfulness"] > 0.7
    assert "crosspatch localize --n 20" in (out / "circuit" / "report.html").read_text()

    code, stdout, _ = run(*command, "--resume")
    assert code == 0
    assert stdout.startswith("residual\n")
    (out / "report.html").unlink()
    assert run("report", out, "--quiet")[0] == 0
    assert (out / "report.html").read_text().count("<section") == page.count("<section")


def test_localize_refuses_an_untrained_model(run, random_model, tmp_path) -> None:
    code, stdout, err = run("localize", "--model", random_model, "--n", 12, "--out", tmp_path / "out", "--json")
    assert code == 1
    assert json.loads(stdout)["error"]["type"] == "GateError"
    assert err.startswith("Refused")
