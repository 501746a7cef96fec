"""`crosspatch paths`: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from crosspatch.cli import console, main
from crosspatch.paths import kept
from crosspatch.report.svg import percent

CLAIMS = """
[last heads]
** -> {a3.h0, a3.h1} -> logits

[no heads]
** -> m0 -> logits
"""
ONE = "[mover]\n** -> a3.h0 -> logits\n"


@pytest.fixture(autouse=True)
def fresh_mode(monkeypatch) -> None:
    """What one test asked for (--json, --debug) does not reach the next."""
    for name in ("json", "quiet", "debug", "resumable"):
        monkeypatch.setattr(console.mode, name, False)


@pytest.fixture
def run(monkeypatch, capsys):
    """Call `crosspatch paths` in this process; gives (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["crosspatch", "paths", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


@pytest.fixture
def claims(tmp_path) -> Path:
    path = tmp_path / "claims.txt"
    path.write_text(CLAIMS)
    return path


@pytest.fixture
def text(tmp_path) -> Path:
    """Twelve lines of fifteen words, the first with markup in it, and a short one."""
    words = ["When", "Mary", "and", "John", "went", "to", "the", "store", "John", "gave", "a", "drink", "to", "Mary"]
    lines = [" ".join(words[i:] + words[:i]) for i in range(12)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(["<b onmouseover=alert(1)> " + lines[0], *lines[1:], "short"]))
    return path


@pytest.mark.parametrize("command", [[], ["test"], ["attribute"], ["sweep"], ["mediate"], ["refine"]], ids=" ".join)
def test_every_help_shows_an_example(run, command) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Example: crosspatch paths" in out


# -------------------------------------------------------------------------------------------------------------- test


def test_hypotheses_are_scored_compared_saved_and_reported(run, claims, tmp_path) -> None:
    out = tmp_path / "out"
    code, said, err = run("test", claims, "--n", 12, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(said)
    last, none = found["hypotheses"]
    assert last["hypothesis"] == "last heads"
    assert last["explained"] > 0.9 > 0.2 > none["explained"]
    assert last["explained_low"] <= last["explained"] <= last["explained_high"]
    assert found["ate"]["low"] < found["ate"]["mean"] < found["ate"]["high"]
    assert 0 <= found["floor"] < 1e-6
    assert found["comparison"][0]["difference"] < 0
    assert found["about"]["null"] == "all paths on the counterfactual"
    saved = json.loads((out / "paths.json").read_text())
    assert saved["names"] == ["last heads", "no heads"]
    assert len(saved["unexplained"][0]) == 12
    assert pd.read_csv(out / "scores.csv")["aue"].tolist() == pytest.approx([last["aue"], none["aue"]])
    assert len(pd.read_csv(out / "comparison.csv")) == 1
    assert json.loads((out / "gates.json").read_text())["ok"] is True
    page = (out / "report.html").read_text()
    assert found["report"] == str(out / "report.html")
    assert "Every path goes through" in page or "Some go through" in page
    assert "crosspatch paths test" in page


def test_the_plan_comes_first_and_the_numbers_after(run, claims) -> None:
    code, out, err = run("test", claims, "--n", 8)
    assert code == 0
    assert "Plan: " in err
    assert "forward passes' worth of nodes" in err
    for words in ("Null: all paths on the counterfactual. ATE", "Numerical floor", "last heads", "explained", "needed"):
        assert words in out


def test_every_number_has_its_interval_or_none_is_said(run, claims) -> None:
    found = json.loads(run("test", claims, "--n", 8, "--json")[1])["hypotheses"][0]
    code, out, _ = run("test", claims, "--n", 8)
    assert code == 0
    low, high = found["loss_recovered_low"], found["loss_recovered_high"]
    assert out.split("last heads")[1].split("\n")[0].endswith(f"[{percent(low)}, {percent(high)}]")
    code, out, _ = run("test", claims, "--n", 1)
    assert code == 0
    assert "nan" not in out and "[" not in out and "(no interval)" in out and "One pair: no interval." in out
    assert "Numerical floor (AUE at all paths)" in out


def test_always_is_part_of_the_null(run, tmp_path) -> None:
    path = tmp_path / "always.txt"
    path.write_text(f"[always]\n** -> a3.h1 -> logits\n{ONE}")
    code, out, _ = run("test", path, "--n", 8, "--json")
    assert code == 0
    found = json.loads(out)
    assert "a3.h1" in found["about"]["null"]
    assert [h["hypothesis"] for h in found["hypotheses"]] == ["mover"]


def test_the_other_reference_and_dissimilarity_give_other_numbers(run, claims) -> None:
    first = json.loads(run("test", claims, "--n", 8, "--json")[1])
    code, out, _ = run(
        "test", claims, "--n", 8, "--reference", "corrupt", "--dissimilarity", "abs_logit_diff", "--json"
    )
    assert code == 0
    other = json.loads(out)
    assert other["about"]["unit"] == "logits"
    assert "reference corrupt" in other["about"]["pairs"]
    assert other["ate"]["mean"] != first["ate"]["mean"]


def test_text_needs_no_task_and_no_gates(run, claims, text, tmp_path) -> None:
    out = tmp_path / "out"
    code, said, err = run("test", claims, "--text", text, "--length", 12, "--n", 6, "--out", out, "--json")
    assert code == 0, err
    assert "of 12 rows" in json.loads(said)["about"]["pairs"]
    assert not (out / "gates.json").exists()
    assert "12 rows of 12 tokens" in (out / "report.html").read_text()


def test_rows_of_token_ids(run, claims, tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps([(7 * i + j) % 90 + 5 for j in range(10)]) for i in range(5)))
    code, said, err = run("test", claims, "--text", path, "--length", 9, "--n", 4, "--json")
    assert code == 0, err
    assert "4 independent pairs of 5 rows" in json.loads(said)["about"]["pairs"]


# --------------------------------------------------------------------------------------------------------- attribute


def test_attribution_of_a_task_reads_every_token(run, claims, tmp_path) -> None:
    out = tmp_path / "out"
    code, said, err = run("attribute", claims, "--name", "no heads", "--n", 24, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert [r["position"] for r in found["reads"]] == list(range(len(found["tokens"])))
    assert [r["predicts"] for r in found["reads"][:-1]] == found["tokens"][1:]
    # The heads that the claim leaves out carry the answer: without them its loss rises.
    assert found["reads"][-1]["effect"] > 1
    assert found["reads"][-1]["low"] > 0
    saved = json.loads((out / "paths.json").read_text())
    assert len(saved["draws"][0]) == len(found["reads"])
    assert (pd.read_csv(out / "attribution.csv")["position"] == saved["positions"]).all()
    assert 'class="ptok up"' in (out / "report.html").read_text()


def test_a_logit_difference_is_read_at_the_answer_only(run, claims) -> None:
    asked = ["attribute", claims, "--name", "last heads", "--n", 24, "--dissimilarity", "abs_logit_diff"]
    code, said, _ = run(*asked, "--json")
    assert code == 0
    found = json.loads(said)
    assert [r["position"] for r in found["reads"]] == [len(found["tokens"]) - 1]
    code, said, err = run(*asked)
    assert code == 0
    assert "Change of the logit difference, wrong less right in logits when" in said and "loss" not in said
    assert "Plan: " in err and "forward passes' worth of nodes" in err


def test_attribution_of_a_text_escapes_it(run, claims, text, tmp_path) -> None:
    out = tmp_path / "out"
    options = ["--name", "no heads", "--text", text, "--length", 12, "--n", 6]
    code, said, err = run("attribute", claims, *options, "--out", out)
    assert code == 0, err
    assert "row 0 against 6 others" in said
    page = (out / "report.html").read_text()
    assert "<b onmouseover" not in page


# -------------------------------------------------------------------------------------------------- sweep and refine


def test_a_sweep_finds_what_feeds_the_logits(run, tmp_path) -> None:
    out = tmp_path / "out"
    code, said, err = run("sweep", "--n", 12, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert len(found["senders"]) == 16
    assert max(found["senders"], key=lambda r: r["effect"])["sender"] == "a3.h0"
    assert found["about"]["mlps"] == "direct"
    assert len(pd.read_csv(out / "senders.csv")) == 16
    assert "senders at any position" in (out / "report.html").read_text()


def test_the_choices_of_a_sweep_are_printed(run) -> None:
    options = ["--receivers", "a2.h0.q", "--receivers", "a3.h0.v", "--mlps", "frozen", "--semantics", "union"]
    code, out, _ = run("sweep", "--senders", "a0.h*", *options, "--n", 6, "--top", 2)
    assert code == 0
    assert "4 senders into a2.h0.q, a3.h0.v. MLPs on the way: frozen. Receivers: union." in out
    rows = out.split("---\n")[-1].strip().splitlines()
    assert len(rows) == 2
    assert all(row.count("[") == row.count("%]") + 1 == 2 for row in rows)  # of the effect, and of its share


def test_a_total_that_may_be_zero_has_no_shares(run) -> None:
    """The heads beside the movers: what they do differs in sign from pair to pair."""
    code, out, err = run("mediate", "a1.h0", "--n", 12)
    assert code == 0, err
    assert "No shares: the interval of the total effect holds zero" in out
    parts = json.loads(run("mediate", "a1.h0", "--n", 12, "--json")[1])["parts"]
    assert parts[0]["low"] < 0 < parts[0]["high"]
    assert {row[name] for row in parts for name in ("share", "share_low", "share_high")} == {None}
    code, out, _ = run("mediate", "input", "--n", 12)
    assert "No shares" not in out
    direct = next(line for line in out.splitlines() if line.startswith("direct"))
    assert direct.count("[") == 2 and direct.endswith("%]")


def test_effects_that_are_only_rounding_are_not_significant(run) -> None:
    found = json.loads(run("mediate", "input", "--n", 12, "--json")[1])
    last = next(row for row in found["mediators"] if row["sender"] == "m3")
    assert abs(last["effect"]) < found["about"]["rounding"] < 1e-4
    assert last["p"] == 1


def test_refine_starts_from_nothing(run, tmp_path) -> None:
    out = tmp_path / "out"
    options = ["--n", 16, "--max-steps", 1, "--random", 3, "--nodes", "a3.h*"]
    code, said, err = run("refine", *options, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert found["patterns"] == ["** -> a3.h0 -> logits"]
    assert found["steps"][-1]["explained_held_out"] > 0.5
    assert len(found["random"]) == 3
    assert json.loads((out / "paths.json").read_text())["patterns"] == found["patterns"]
    assert "The search, step by step" in (out / "report.html").read_text()


def test_refine_starts_from_a_claim(run, claims) -> None:
    options = ["--name", "no heads", "--n", 16, "--max-steps", 1, "--random", 1, "--nodes", "a3.h*"]
    code, said, err = run("refine", claims, *options)
    assert code == 0, err
    assert "(no path)" not in said and "** -> m0 -> logits" in said
    assert "Plan: at most 1 steps" in err
    steps = json.loads(run("refine", claims, *options, "--json")[1])["steps"]
    for row in steps:
        assert f"[{percent(row['held_out_low'])}, {percent(row['held_out_high'])}]" in said
    assert re.search(r"Numerical floor \(AUE at all paths, held-out pairs\): \d\.\de-\d+", said)


def test_refine_takes_patterns_through_mlps(run, claims) -> None:
    claims.write_text("[a]\n** -> a2.h1 ~> a3.h0.q ~> logits\n")
    code, said, _ = run("refine", claims, "--n", 16, "--max-steps", 1, "--random", 1, "--nodes", "a1.h*", "--json")
    assert code == 0
    assert json.loads(said)["steps"][0]["step"] == "start"


# ------------------------------------------------------------------------------------------------- mediation, controls


def test_mediate_splits_one_effect(run, tmp_path) -> None:
    out = tmp_path / "out"
    code, said, err = run("mediate", "a1.h2", "--n", 12, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(said)
    parts = {row["part"]: row["effect"] for row in found["parts"]}
    assert parts["interaction"] == pytest.approx(parts["total"] - parts["direct"] - parts["mediated"])
    names = [row["sender"] for row in found["mediators"]]
    assert "m1" in names and "a2.h0" in names and not {"a1.h2", "a0.h0", "m0"} & set(names)
    assert pd.read_csv(out / "mediation.csv")["effect"].tolist() == pytest.approx(list(parts.values()))
    assert pd.read_csv(out / "mediators.csv")["sender"].tolist() == names
    code, said, err = run("mediate", "a1.h2", "--n", 12, "--top", 2)
    assert code == 0
    assert "The first part after a1.h2" in said and "copies of" in err
    code, _, err = run("mediate", "a9.h9")
    assert code == 2 and "no node matches" in err


def test_counterfactuals_of_their_own_are_a_control_of_test(run, claims, tmp_path) -> None:
    out = tmp_path / "out"
    apart = ["--apart", "** -> a3.*.q -> ** -> logits", "--apart", "** -> a3.*.v -> ** -> logits"]
    code, said, err = run("test", claims, "--n", 48, *apart, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert [row["hypothesis"] for row in found["apart"]] == ["last heads", "no heads"]
    shared = [row["explained"] for row in found["hypotheses"]]
    assert [row["explained_shared"] for row in found["apart"]] == pytest.approx(shared, abs=0.1)  # fewer pairs
    assert "Counterfactuals apart" in (out / "report.html").read_text()
    assert (out / "apart.csv").exists()
    code, said, _ = run("test", claims, "--n", 48, *apart)
    assert "A counterfactual of its own for each of: ** -> a3.*.q" in said and "left out" in said


def test_frozen_norms_are_an_option_and_are_named(run, claims, tmp_path) -> None:
    options = ["test", claims, "--n", 12, "--json"]
    plain = json.loads(run(*options)[1])
    code, said, err = run(*options, "--norms", "frozen", "--out", tmp_path / "out")
    frozen = json.loads(said)
    assert code == 0, err
    assert (plain["about"]["norms"], frozen["about"]["norms"]) == ("recomputed", "frozen")
    assert plain["hypotheses"][0]["aue"] != frozen["hypotheses"][0]["aue"]
    assert plain["ate"] == frozen["ate"]
    assert "frozen at the scale of the reference run" in (tmp_path / "out" / "report.html").read_text()
    for command in (
        ["sweep", "--receivers", "a3.h0.q"],
        ["mediate", "a1.h0"],
        ["refine", "--max-steps", 1, "--random", 1],
    ):
        code, said, err = run(*command, "--n", 12, "--norms", "frozen", "--json")
        assert code == 0, err
        assert json.loads(said)["about"]["norms"] == "frozen"


# ------------------------------------------------------------------------------------------------------- saved pages

COMMANDS = [
    ["test", "CLAIMS", "--apart", "** -> a3.h0.q -> ** -> logits"], ["attribute", "CLAIMS", "--name", "last heads"],
    ["sweep", "--senders", "a*.h*@S2", "--receivers", "a3.h0.v"], ["mediate", "a1.h0"],
    ["refine", "--max-steps", "1", "--random", "1", "--nodes", "a3.h*"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=[c[0] for c in COMMANDS])
def test_report_makes_the_same_page_from_what_was_saved(run, claims, tmp_path, monkeypatch, capsys, command) -> None:
    out = tmp_path / "out"
    code, _, err = run(*(claims if word == "CLAIMS" else word for word in command), "--n", 48, "--out", out)
    assert code == 0, err
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    monkeypatch.setattr(sys, "argv", ["crosspatch", "report", str(out)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code, capsys.readouterr().err
    assert (out / "report.html").read_text() == page
    assert not re.search(r">[^<]*\bnan\b[^<]*<", page.split("<main>")[1].split("</main>")[0])


def test_a_damaged_result_makes_no_page(run, claims, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "out"
    assert run("test", claims, "--n", 12, "--out", out)[0] == 0
    good = json.loads((out / "paths.json").read_text())
    monkeypatch.setattr(sys, "argv", ["crosspatch", "report", str(out)])
    for change in ({"kind": "other"}, {"unexplained": "many"}, {"about": []}, {"page": None}, {"names": None},
                   {"about": {}}, {"also": 3}, {"also": [1]}):  # fmt: skip
        (out / "paths.json").write_text(json.dumps(good | change))
        with pytest.raises(SystemExit) as stopped:
            main()
        err = capsys.readouterr().err
        assert stopped.value.code == 2, (change, err)
        assert "paths.json" in err


# ------------------------------------------------------------------------------------------------------------- ctrl-c


def test_a_stopped_command_speaks_of_resume_only_where_it_can(run, claims, monkeypatch, tmp_path) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for module in ("paths", "paths_search"):
        monkeypatch.setattr(f"crosspatch.cli.{module}.load_model", stop)
    for command, can in (
        (["attribute", claims, "--name", "last heads", "--out", tmp_path / "a"], False),
        (["sweep"], False),
        (["sweep", "--out", tmp_path / "b"], True),
    ):
        code, _, err = run(*command)
        assert code == 130
        assert ("--resume goes on from there" in err) == can
        assert ("Stopped. Nothing was saved." in err) != can
        monkeypatch.setattr(console.mode, "resumable", False)


STOPPABLE = {
    "test": ["CLAIMS", "--apart", "** -> a3.*.q -> ** -> logits"],
    "sweep": ["--receivers", "a3.h0.v", "--mlps", "frozen"],
    "mediate": ["input"],
    "refine": ["CLAIMS", "--name", "no heads", "--max-steps", "3", "--random", "3", "--nodes", "a3.h*, m3"],
}


@pytest.mark.parametrize("command", STOPPABLE)
def test_a_stopped_command_goes_on_with_resume(run, claims, tmp_path, monkeypatch, command) -> None:
    asked = [command, *(claims if word == "CLAIMS" else word for word in STOPPABLE[command]), "--n", 12, "--json"]
    with_little_memory(monkeypatch)
    whole = json.loads(run(*asked, "--out", tmp_path / "whole")[1])
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        left = iter(range(10 if command == "refine" else 5))

        def stop(*_: object) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        patched.setattr(console.Bars, "stage", stop)
        code, said, err = run(*asked, "--out", out)
    assert (code, said) == (130, "")
    assert "the same command with --resume goes on from there" in err
    assert not (out / "paths.json").exists()
    parts = sorted((out / "parts").iterdir())
    assert len(parts) > 1 and not [path for path in parts if path.name.startswith(".")]
    code, _, err = run(*asked, "--out", out)
    assert code == 2 and "--resume goes on where it stopped" in err
    code, _, err = run(*asked, "--out", out, "--seed", 1, "--resume")
    assert code == 2 and "made by another command" in err
    assert sorted((out / "parts").iterdir()) == parts
    stages: list[float] = []
    with monkeypatch.context() as patched:
        patched.setattr(console.Bars, "stage", lambda self, name, done, total: stages.append(done / total))
        code, said, err = run(*asked, "--out", out, "--resume")
    assert code == 0, err
    assert stages[0] > 0.2
    found = json.loads(said)
    assert found | {"out": "", "report": ""} == whole | {"out": "", "report": ""}  # bit for bit
    assert _saved(out) == _saved(tmp_path / "whole")
    assert (out / "report.html").exists()
    again = json.loads(run(*asked, "--out", out, "--resume")[1])
    assert again == found
    code, said, _ = run(*asked, "--out", out, "--overwrite")
    assert code == 0
    assert json.loads(said) == found


def _saved(out: Path) -> dict:
    """What was saved, without the name of the folder in the command."""
    return json.loads((out / "paths.json").read_text().replace(str(out), "OUT"))


def with_little_memory(monkeypatch) -> None:
    """So little that every pair is a chunk of its own."""
    measure = kept.measure
    monkeypatch.setattr(kept, "measure", lambda *args, **more: measure(*args, **more | {"budget_mib": 1e-6}))


@pytest.mark.parametrize("command", STOPPABLE)
def test_other_chunks_change_numbers_by_rounding_only(run, claims, monkeypatch, command) -> None:
    asked = [command, *(claims if word == "CLAIMS" else word for word in STOPPABLE[command]), "--n", 12, "--json"]
    whole = json.loads(run(*asked)[1])
    with_little_memory(monkeypatch)
    _same(json.loads(run(*asked)[1]), whole)


def _same(a: object, b: object, where: str = "") -> None:
    """Equal but for rounding of logits in float32."""
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            _same(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, list) and isinstance(b, list):
        assert len(a) == len(b), where
        for i, both in enumerate(zip(a, b, strict=True)):
            _same(*both, f"{where}[{i}]")
    else:
        assert a == (pytest.approx(b, rel=1e-4, abs=1e-4) if isinstance(b, float) else b), where


def test_resume_refuses_a_file_that_was_changed_and_needs_a_folder(run, claims, tmp_path, monkeypatch) -> None:
    asked = ["refine", claims, "--name", "no heads", "--n", 12, "--max-steps", 1, "--random", 1, "--nodes", "a3.h*"]
    with monkeypatch.context() as patched:
        patched.setattr(console.Bars, "stage", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*asked, "--out", tmp_path / "out")[0] == 130
    claims.write_text(CLAIMS.replace("m0", "m1"))
    code, _, err = run(*asked, "--out", tmp_path / "out", "--resume")
    assert code == 2
    assert 'start (["** -> m0 -> logits"] there, ["** -> m1 -> logits"] asked for)' in err and "Fix: " in err
    code, _, err = run(*asked, "--resume")
    assert code == 2 and "no folder to go on in" in err


# ------------------------------------------------------------------------------------------------------------ errors


BAD = [
    (["test", "CLAIMS"], "[a]\n** -> a3.h99 -> logits\n", "a3.h99", 2),
    (["test", "CLAIMS"], "[a]\n** -> a3.h0 logits\n", "two nodes without an arrow", 2),
    (["test", "CLAIMS"], "[a]\n** -> a3.h0 -> a1.h0 -> logits\n", "cannot feed", 2),
    (["test", "CLAIMS"], "** -> a3.h0 -> logits\n", "a path before any name", 2),
    (["test", "CLAIMS"], "# nothing\n", "no hypotheses", 2),
    (["test", "CLAIMS"], "[a]\n** -> a3.h0@nowhere -> logits\n", "nowhere", 2),
    (["test", "no-such-file.txt"], "", "cannot be read", 2),
    (["test", "CLAIMS", "--text", "no-such-text.txt"], ONE, "cannot be read", 2),
    (["test", "CLAIMS", "--text", "CLAIMS", "--length", "9"], ONE, "lines have 10 tokens or more", 2),
    (["test", "CLAIMS", "--text", "CLAIMS", "--length", "99999"], ONE, "is too long", 2),
    (["attribute", "CLAIMS"], CLAIMS, "--name: 'last heads', 'no heads'", 2),
    (["attribute", "CLAIMS", "--name", "x"], ONE, "no hypothesis 'x'", 2),
    (["attribute", "CLAIMS", "--example", "999"], ONE, "--example takes 0 to", 2),
    (["attribute", "CLAIMS", "--n", "2"], ONE, "raise --n", 2),
    (["sweep", "--senders", "a3.h0", "--receivers", "a1.h0.q"], "", "cannot feed", 2),
    (["sweep", "--senders", "a9.h*"], "", "a9", 2),
    (["sweep", "--receivers", "a3.h9.q"], "", "a3.h9", 2),
    (["refine", "CLAIMS"], "[a]\n** -> a3.h0 -> logits\n- ** -> m0 -> ** -> logits\n", "no plain pattern", 2),
    (["refine", "CLAIMS"], "[a]\ninput -> a3.h0 -> logits\n", "no plain pattern", 2),
]


@pytest.mark.parametrize(("command", "file", "said", "exit_code"), BAD, ids=[b[2] for b in BAD])
def test_bad_input_is_refused_with_the_place(run, tmp_path, command, file, said, exit_code) -> None:
    path = tmp_path / "claims.txt"
    path.write_text(file)
    code, out, err = run(*(path if word == "CLAIMS" else word for word in command))
    assert (code, out) == (exit_code, "")
    assert said in err
    assert "Fix: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "said"),
    [("[1, 2, 999999]", "token id 999999"), ("{}", "neither"), ("[1,", "is not JSON"), ("[true]", "neither")],
)
def test_rows_that_are_no_rows_are_refused(run, claims, tmp_path, line, said) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"[1, 2, 3]\n{line}\n")
    code, _, err = run("test", claims, "--text", path, "--length", 2)
    assert code == 2
    assert said in err
    assert "line 2" in err


def test_a_failed_gate_refuses_and_force_marks(run, tmp_path, claims) -> None:
    """The model prefers the other answer on every one of these pairs."""
    from crosspatch.cli.inputs import load_tokenizer
    from crosspatch.tasks import make_task

    pairs = make_task("ioi", n=8, tokenizer=load_tokenizer("embedded")).pairs
    path = tmp_path / "wrong.jsonl"
    rows = [{"clean": p.clean, "corrupt": p.corrupt, "answers": list(p.wrong), "wrong": list(p.answers)} for p in pairs]
    path.write_text("\n".join(map(json.dumps, rows)))
    code, out, err = run("test", claims, "--task", path)
    assert (code, out) == (1, "")
    assert "Refused" in err
    folder = tmp_path / "forced"
    code, out, _ = run("test", claims, "--task", path, "--force", "--out", folder, "--json")
    assert code == 0
    assert json.loads(out)["forced"] is True
    assert 'role="alert"' in (folder / "report.html").read_text()


def test_a_folder_with_results_is_kept(run, claims, tmp_path) -> None:
    out = tmp_path / "out"
    options = ["--n", 6, "--out", out]
    assert run("test", claims, *options)[0] == 0
    before = (out / "paths.json").read_text()
    for command in (["sweep"], ["attribute", claims, "--name", "last heads"]):
        code, _, err = run(*command, *options)
        assert code == 2
        assert "--overwrite starts again" in err
        assert ("--resume goes on" in err) == (command == ["sweep"])  # an attribution keeps nothing to go on from
    assert (out / "paths.json").read_text() == before
    (out / "mine.txt").write_text("mine")
    assert run("sweep", *options, "--overwrite")[0] == 0
    assert (out / "senders.csv").exists()
    assert not (out / "scores.csv").exists()
    assert (out / "mine.txt").read_text() == "mine"
