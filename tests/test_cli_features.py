"""`crosspatch features`: what it trains, reads, measures and shows, and how it refuses."""

from __future__ import annotations

import html
import json
import lzma
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import crosspatch as cp
from crosspatch.cli import console, features_train, main
from crosspatch.cli.features_inputs import load_dictionaries, places_of
from crosspatch.dictionaries import load_dictionary, measure, read_text, save_dictionary, shipped
from crosspatch.dictionaries.cards import Card, Context
from crosspatch.errors import AddressError, DictionaryError
from crosspatch.report.feature_cards import Question, cards_page, context_line, density_words

TINY = ("--width", 48, "--steps", 12, "--batch", 128, "--buffer", 1024, "--held-out", 400, "--lr", 0.003)
"""Options that make training short."""


@pytest.fixture(autouse=True)
def fresh_mode(monkeypatch) -> None:
    """What one test asked for (--json, --debug) does not reach the next."""
    for name in ("json", "quiet", "debug", "resumable"):
        monkeypatch.setattr(console.mode, name, False)


def called(patch: pytest.MonkeyPatch, capture, *arguments: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `crosspatch features ...` in this process."""
    patch.setattr(sys, "argv", ["crosspatch", "features", *map(str, arguments), "--threads", "1"])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capture.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *arguments: called(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def model():
    return cp.load("embedded")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of `crosspatch features train`: two places, two sparsities."""
    out = tmp_path_factory.mktemp("train") / "dictionaries"
    arguments = ["train", "--out", out, "--places", "a0,r3.post", "--k", 4, "--k", 12, *TINY, "-q", "--threads", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["crosspatch", "features", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return out


def test_train_writes_each_dictionary_and_what_it_is_worth(made: Path, model) -> None:
    card = json.loads((made / "card.json").read_text())
    assert list(card["dictionaries"]) == ["a0-k4", "a0-k12", "r3.post-k4", "r3.post-k12"]
    assert card["command"][:2] == ["features", "train"] and card["tokens"] == 12 * 128
    assert not (made / "checkpoint.pt").exists()
    held_out = read_text(model.tokenizer, "embedded", tokens=0, held_out=400)
    assert held_out.about["held_out_sha256"] == card["text"]["held_out_sha256"]
    for name, about in card["dictionaries"].items():
        dictionary = load_dictionary(made / name)
        assert (dictionary.width, dictionary.architecture) == (48, "batch_topk")
        assert [*dictionary.reads] == about["reads"] and about["trained_as"]["lr"] == 0.003
        again = measure(model, dictionary, held_out.held_out).summary()
        assert again["fvu"]["value"] == pytest.approx(about["measures"]["fvu"]["value"], rel=1e-4)
        assert again["loss_recovered"]["value"] == pytest.approx(about["measures"]["loss_recovered"]["value"], abs=1e-3)
    sparse, dense = (card["dictionaries"][name]["measures"]["l0"]["value"] for name in ("a0-k4", "a0-k12"))
    assert sparse < dense


def test_a_run_that_was_stopped_goes_on_exactly(run, monkeypatch, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--places", "m1", "--k", 4, *TINY, "--save-every", 4, "--every", 3)
    assert run("train", "--out", whole, *options)[0] == 0

    seen: list[int] = []

    def stop(self: features_train.Watch, report: Any) -> None:
        seen.append(report.step)
        if report.step >= 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features_train.Watch, "__call__", stop)
        code, _, err = run("train", "--out", parts, *options)
    assert code == console.STOPPED and "--resume" in err and (parts / "checkpoint.pt").is_file()
    assert not (parts / "card.json").exists()
    code, _, err = run("train", "--out", parts, *options)
    assert code == 2 and "--resume" in err
    code, _, err = run("train", "--out", parts, *options, "--resume")
    assert code == 0, err
    assert "step 3 of" not in err  # it went on after step 8
    a, b = load_dictionary(whole / "m1"), load_dictionary(parts / "m1")
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    code, _, err = run("train", "--out", parts, *options, "--resume")
    assert code == 2 and "is finished" in err


def test_overwrite_removes_the_old_dictionaries_and_nothing_else(run, tmp_path: Path) -> None:
    assert run("train", "--out", tmp_path, "--places", "m1", "--k", 4, *TINY)[0] == 0
    (tmp_path / "mine.txt").write_text("mine")
    code, out, _ = run(
        "train", "--out", tmp_path, "--places", "m0.in:m0", "--skip", "--k", 4, *TINY, "--overwrite", "--json"
    )
    assert code == 0 and list(json.loads(out)["dictionaries"]) == ["m0.in-m0"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "m0.in-m0",
        "mine.txt",
        "card.json",
        "README.md",
        "crosspatch.json",
    }
    transcoder = load_dictionary(tmp_path / "m0.in-m0")
    assert (transcoder.reads, transcoder.writes) == (("m0.in",), ("m0",)) and transcoder.skip is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--variant", "jumprelu", "--k", 4), "--target-l0"),
        (("--places", "m9"), "m9"),
        (("--places", "m1,m1"), "twice"),
        (("--text", "no-such-file.txt"), "no such file"),
        (("--model", "induction-2l"), "no text was given"),
    ],
)
def test_what_cannot_be_trained_is_refused(run, tmp_path: Path, options: tuple, said: str) -> None:
    code, _, err = run("train", "--out", tmp_path / "d", *TINY, *options)
    assert code == 2 and said in err and "Fix:" in err


def test_places(model) -> None:
    every = [read for read, _ in places_of(model, ["all"])]
    assert len(every) == 13 and set(every) == set(shipped())
    assert places_of(model, ["m*.in:m*"])[2] == ("m2.in", "m2")
    assert places_of(model, ["r1, a0.z", "input"]) == [("r1", "r1"), ("a0.z", "a0.z"), ("input", "input")]
    with pytest.raises(AddressError):
        places_of(model, ["nonsense"])
    with pytest.raises(DictionaryError, match="no place"):
        places_of(model, [" "])


def test_text_of_files_is_cut_and_held_out(model, tmp_path: Path) -> None:
    words = [f"The cat number {i} sat on the mat." for i in range(4000)]
    with lzma.open(tmp_path / "a.txt.xz", "wt", encoding="utf-8") as file:
        file.write("\n".join(words[:2000]) + "\n<|endoftext|>\n" + "\n".join(words[2000:3000]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": w}) + "\n" for w in words[3000:]))
    (tmp_path / "README.md").write_text("not text to train on")
    found = read_text(model.tokenizer, tmp_path, context=32, tokens=10**6, held_out=2000)
    assert found.train.shape[1] == 32 and (found.train[:, 0] == 0).all()
    rows = {tuple(row) for row in found.train[:, 1:].tolist()}
    assert len(found.held_out) == 62 and not rows & {tuple(row) for row in found.held_out[:, 1:].tolist()}
    alone = read_text(model.tokenizer, tmp_path, context=32, tokens=0, held_out=2000)
    assert torch.equal(alone.held_out, found.held_out) and len(alone.train) == 0
    (tmp_path / "c.jsonl").write_text('{"words": 1}')
    with pytest.raises(DictionaryError, match=r"c\.jsonl line 1"):
        read_text(model.tokenizer, tmp_path / "c.jsonl", held_out=0)
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(DictionaryError, match="UTF-8"):
        read_text(model.tokenizer, tmp_path / "d.txt", held_out=0)


def test_the_embedded_corpus_is_given_as_the_model_was_trained_on_it(model) -> None:
    found = read_text(model.tokenizer, "embedded", tokens=3000, held_out=1000)
    assert all(row[0] == 0 and 0 not in row[1:] for row in found.train)
    assert not set(map(tuple, found.train)) & set(map(tuple, found.held_out))
    assert 3000 <= found.about["tokens"] < 3200
    other = read_text(model.tokenizer, "embedded", tokens=3000, held_out=1000, seed=1)
    assert other.about["sha256"] != found.about["sha256"]


def test_dictionaries_from_what_was_typed(model, made: Path, tmp_path: Path) -> None:
    assert list(load_dictionaries(model, None)) == list(shipped())
    one = made / "a0-k4"
    assert list(load_dictionaries(model, [str(one), str(made / "r3.post-k4")])) == ["a0", "r3.post"]
    assert list(load_dictionaries(model, [f"a2={one}"])) == ["a2"]
    with pytest.raises(DictionaryError, match="second dictionary of a0"):
        load_dictionaries(model, [str(made)])
    with pytest.raises(DictionaryError, match="second dictionary of a0"):
        load_dictionaries(model, ["shipped", str(one)])
    with pytest.raises(DictionaryError, match=r"m1\.act"):
        load_dictionaries(model, [f"m1.act={one}"])
    (tmp_path / "card.json").write_text('{"dictionaries": {"../a0": {}}}')
    with pytest.raises(DictionaryError, match="lists no dictionaries"):
        load_dictionaries(model, [str(tmp_path)])
    other = cp.load("induction-2l")
    with pytest.raises(DictionaryError, match="no dictionaries were given"):
        load_dictionaries(other, None)


def test_load_shows_checks_and_converts(run, made: Path, tmp_path: Path, model) -> None:
    path = made / "r3.post-k12"
    code, out, _ = run("load", path)
    assert code == 0 and "r3.post" in out and "48" in out and "sae_lens" in out
    code, out, _ = run("load", path, "--model", "embedded", "--held-out", 400, "--json")
    seen = json.loads(out)["dictionaries"][0]["measures"]
    fvu, l0 = seen["fvu"]["value"], seen["l0"]["value"]
    recorded = json.loads((made / "card.json").read_text())["dictionaries"]["r3.post-k12"]["measures"]
    assert fvu == pytest.approx(recorded["fvu"]["value"], rel=1e-4)
    checked = ("load", path, "--model", "embedded", "--held-out", 400)
    assert run(*checked, "--expect-l0", l0, "--expect-fvu", fvu * 1.02)[0] == 0
    code, _, err = run(*checked, "--expect-fvu", fvu * 1.2)
    assert code == 2 and "expected" in err
    code, _, err = run("load", path, "--expect-l0", 3)
    assert code == 2 and "--model" in err
    half = tmp_path / "half"
    assert run("load", path, "--out", half, "--files", "float16")[0] == 0
    x = torch.randn(30, 128, generator=torch.Generator().manual_seed(0))
    ours, theirs = load_dictionary(path).reconstruct(x), load_dictionary(half).reconstruct(x)
    assert (ours - theirs).norm() < 0.01 * ours.norm()
    code, _, err = run("load", path, "--out", half)
    assert code == 2 and "not empty" in err
    code, _, err = run("load", made, "--out", tmp_path / "all")
    assert code == 2 and "several" in err


def test_measure_saves_what_it_says(run, made: Path, tmp_path: Path, model) -> None:
    path = tmp_path / "measures.json"
    code, out, _ = run("measure", "-d", made / "a0-k12", "--held-out", 400, "--out", path, "--ablation", "mean")
    assert code == 0 and "loss recovered" in out and "mean ablation" in out
    saved = json.loads(path.read_text())["dictionaries"]["a0"]
    dictionary = load_dictionary(made / "a0-k12")
    text = read_text(model.tokenizer, "embedded", tokens=0, held_out=400)
    found = measure(model, dictionary, text.held_out, ablation="mean")
    assert saved["measures"]["loss_recovered"]["value"] == pytest.approx(found.loss_recovered.value, abs=1e-4)
    assert sum(saved["density"]["counts"]) == (found.firing > 0).sum()
    assert saved["features"] == 48 and "tests" not in saved
    code, out, _ = run(
        "measure", "-d", made / "a0-k12", "--held-out", 400, "--tests", "absorption", "--json", "--seed", 0
    )
    assert code == 0 and list(json.loads(out)["dictionaries"]["a0"]["tests"]["results"]) == ["absorption"]
    code, _, err = run("measure", "-d", made / "a0-k12", "--tests", "taste")
    assert code == 2 and "sparse-probing" in err


def test_card_shows_named_features_and_writes_a_page(run, made: Path, tmp_path: Path, model) -> None:
    dictionary = load_dictionary(made / "a0-k12")
    text = read_text(model.tokenizer, "embedded", tokens=0, held_out=400)
    feature = int(measure(model, dictionary, text.held_out, ce=False).firing.argmax())
    options = ("-d", made / "a0-k12", "--held-out", 400, "--top", 3)
    code, out, _ = run("card", f"a0/{feature}", *options, "--out", tmp_path)
    assert code == 0 and f"a0/{feature}: active at" in out and "raises:" in out
    card = json.loads((tmp_path / "cards.json").read_text())["cards"][0]
    assert card["feature"] == feature and len(card["top"]) == 3
    page = html.unescape((tmp_path / "cards.html").read_text())
    assert f"a0/{feature}" in page and "default-src 'none'" in page and page.count("<script>") == 1
    code, _, err = run("card", f"a0/{feature}", *options, "--out", tmp_path)
    assert code == 2 and "--overwrite" in err
    code, out, _ = run("card", *options, "--sample", 2, "--json")
    assert code == 0 and len(json.loads(out)["cards"]) == 2
    for wrong in ("a0", "m9/3", "a0/x", "a0/4800"):
        assert run("card", wrong, *options)[0] == 2
    assert run("card", *options, "--place", "m3")[0] == 2


def test_a_page_of_cards_escapes_and_asks() -> None:
    evil = "<img src=x onerror=alert(1)>"
    context = Context((evil, "\u202eb"), (2.0, 0.0), 0, 0, 3)
    card = Card(7, ("m1",), ("m1",), 0.25, 1.0, 2.0, ((3, 1), (0.0, 1.0, 2.0)), (context,), ((evil, 1.0),), ())
    dead = Card(8, ("m1",), ("m1",), 0.0, float("nan"), float("nan"), ((0, 0), (0.0, 0.5, 1.0)), (), (), ())
    page = cards_page([card, dead], evil, facts={evil: evil}, notes={"m1/7": evil})
    assert evil not in page and page.count("&lt;img") >= 6 and "\u202e" not in page
    assert "never active" in page and page.count("<script") == 1
    asked = cards_page([card, dead], "t", question=Question(evil, ("keep", "remove"), "a.json", {"m1/8": "remove"}))
    assert evil not in asked and 'download="a.json"' in asked and asked.count('type="radio"') == 4
    first, second = asked.index('data-name="m1/7"'), asked.index('data-name="m1/8"')
    assert asked.index('value="keep" checked') < second < asked.index('value="remove" checked') and first < second


def test_tokens_without_activation_are_plain_text_and_all_tokens_are_there() -> None:
    context = Context(("<b", ">", " so", " x", "", "y"), (0.0, 0.0, 3.0, 0.0, 0.0, 1.5), 2, 0, 2)
    line = context_line(context, 3.0)
    assert line.count("<span") == 4 and "--a:100%" in line and "--a:50%" in line
    assert '<span class="words">&lt;b&gt;<span class="at dest"' in line
    assert re.sub("<[^>]*>", "", line) == "3&lt;b&gt; so x\N{EMPTY SET}y"


def test_shares_of_tokens_are_never_in_powers_of_ten() -> None:
    said = [density_words(share) for share in (1.0, 0.996, 0.25, 0.0996, 0.0123, 0.00012)]
    assert said == ["100 %", "100 %", "25 %", "10 %", "1.2 %", "0.012 %"]


def test_the_input_stays_the_input(made: Path, tmp_path: Path) -> None:
    """`input` and `r0` have one hook in SAELens' layout."""
    dictionary = load_dictionary(made / "a0-k4")
    for place in ("input", "r0"):
        moved = replace(dictionary, reads=(place,), writes=(place,))
        found = load_dictionary(save_dictionary(moved, tmp_path / place))
        assert found.reads == found.writes == (place,)
    assert load_dictionary(tmp_path / "input", reads="r1").reads == ("r1",)


def test_half_precision_files_load_as_float32(made: Path, tmp_path: Path) -> None:
    dictionary = load_dictionary(made / "a0-k4")
    save_dictionary(dictionary, tmp_path / "half", dtype=torch.float16)
    sizes = [(folder / "sae_weights.safetensors").stat().st_size for folder in (made / "a0-k4", tmp_path / "half")]
    assert sizes[1] < 0.55 * sizes[0]
    assert load_dictionary(tmp_path / "half").dtype == torch.float32
    assert json.loads((tmp_path / "half" / "cfg.json").read_text())["dtype"] == "float16"
