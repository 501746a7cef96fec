"""`crosspatch features load`, `measure` and `card`: what a dictionary is, what it is worth, what its features are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli.console import Bars, Debug, Json, Quiet, bars, finite, result, say
from crosspatch.cli.features_inputs import Dictionaries, writable
from crosspatch.cli.features_options import (
    Ablated,
    Ablations,
    Context,
    Expected,
    HeldOut,
    Precision,
    TextSeed,
    TextSource,
    Tolerance,
)
from crosspatch.cli.inputs import Device, Dtype, ModelName, Threads, load_model
from crosspatch.cli.paths_out import take
from crosspatch.cli.sweeping import Overwrite
from crosspatch.errors import DictionaryError

if TYPE_CHECKING:
    from crosspatch.dictionaries import Card, Dictionary, Measures
    from crosspatch.dictionaries.bench import Bench
    from crosspatch.model import Model

BLOCKS = " ▁▂▃▄▅▆▇█"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    load_help = "Example: crosspatch features load params.npz --reads r20.post --model gemma-2-2b --text corpus.txt"
    app.command("load", epilog=load_help)(load_command)
    app.command("measure", epilog="Example: crosspatch features measure --out measures.json")(measure_command)
    card_help = "Example: crosspatch features card r2.post/17 m1/300 --out out/cards"
    app.command("card", epilog=card_help)(card_command)


def load_command(
    path: Annotated[Path, typer.Argument(help="A dictionary's folder or file, or a folder of `features train`.")],
    format: Annotated[
        str | None,
        typer.Option(
            help="sae_lens, gemma_scope, llama_scope, dictionary_learning, sparsify, circuit_tracer; default: guessed."
        ),
    ] = None,
    reads: Annotated[str | None, typer.Option(help="The place that it reads, where the files do not say.")] = None,
    writes: Annotated[str | None, typer.Option(help="The place that it writes, where it is another one.")] = None,
    input_scale: Annotated[
        float | None, typer.Option(help="What activations were multiplied by in training; asked for where it matters.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Check it: reconstruct this model's activations on --text."),
    ] = None,
    text: TextSource = None,
    context: Context = 128,
    held_out: HeldOut = 5000,
    seed: TextSeed = 0,
    expect_l0: Expected = None,
    expect_fvu: Expected = None,
    tolerance: Tolerance = 0.05,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it in SAELens' layout to this folder.")] = None,
    files: Annotated[Precision, typer.Option("--files", help="Precision of what is written.")] = Precision.float32,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Read a dictionary of any format: what it is, and with --model whether it fits.

    A dictionary that was read wrongly, or put in the wrong place, reconstructs badly: give the published L0 and FVU
    with --expect-l0 and --expect-fvu, and another value is refused.
    """
    from crosspatch.cli.features_inputs import dictionary_folders, text_of
    from crosspatch.dictionaries import load_dictionary, measure, save_dictionary

    if model is None and (expect_l0 is not None or expect_fvu is not None):
        raise DictionaryError("nothing to measure it on", where="--expect-l0, --expect-fvu", fix="give --model, --text")
    folders = dictionary_folders(path)
    if out is not None and len(folders) > 1:
        raise DictionaryError("holds several dictionaries", where=str(path), fix="write one: give its own folder")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DictionaryError("is not empty", where=str(out), fix="give a new folder")
    found = [load_dictionary(one, format, reads=reads, writes=writes, input_scale=input_scale) for one in folders]
    measured: list[Measures] = []
    if model is not None:
        loaded = load_model(model, dtype, device, threads)
        given = text_of(loaded, text, context=context, tokens=0, held_out=held_out, seed=seed)
        for dictionary in found:
            seen = measure(loaded, dictionary.to(loaded.device), given.held_out, ce=writable(dictionary))
            measured.append(seen)
            seen.require(l0=expect_l0, fvu=expect_fvu, tolerance=tolerance)
    about = [described(dictionary) for dictionary in found]
    for facts, seen in zip(about, measured, strict=False):
        facts["measures"] = seen.summary()
    if out is not None:
        import torch

        save_dictionary(found[0], out, dtype=getattr(torch, files.value))
    result({"ok": True, "path": str(path), "dictionaries": about, "out": str(out) if out else None})
    for facts in about:
        for name, value in facts.items():
            if name not in ("notes", "measures"):
                say(f"{name:>14}  {value}")
        for line in facts["notes"]:
            say(f"{'note':>14}  {line}")
        for name, seen in facts.get("measures", {}).items():
            say(f"{name.replace('_', ' '):>14}  {_said(seen)}")
        say()
    if out is not None:
        say(f"Wrote {out}")


def measure_command(
    dictionaries: Dictionaries = None,
    model: ModelName = "embedded",
    text: TextSource = None,
    context: Context = 128,
    held_out: HeldOut = 20_000,
    ablation: Ablations = Ablated.zero,
    tests: Annotated[
        str | None,
        typer.Option(
            help="Also ask what the features mean: all, or some of sparse-probing,scr,tpp,absorption,ravel (minutes)."
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="With --tests: labelled texts, .jsonl with a text and labels; default: the generator's.")
    ] = "embedded",
    seed: TextSeed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write what was measured to this .json file.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure dictionaries on held-out text: L0, FVU, loss recovered, dead features, densities; 95 % intervals.

    FVU is the sum of squared errors over the sum of squared deviations from the mean. CE increase is what the
    reconstruction costs, in nats per token; loss recovered is 1 where it costs nothing and 0 where it costs as much as
    the ablation. Intervals resample whole prompts.
    """
    from crosspatch.cli.features_inputs import load_dictionaries, text_of
    from crosspatch.cli.features_train import measures_table
    from crosspatch.dictionaries import measure
    from crosspatch.results.files import write_json

    names = _tests(tests)
    loaded = load_model(model, dtype, device, threads)
    found = load_dictionaries(loaded, dictionaries)
    given = text_of(loaded, text, context=context, tokens=0, held_out=held_out, seed=seed)
    measured: dict[str, Measures] = {}
    with bars() as shown:
        for i, (place, dictionary) in enumerate(found.items()):
            shown.stage("measuring", i, len(found))
            measured[place] = measure(
                loaded, dictionary, given.held_out, ce=writable(dictionary), ablation=ablation.value
            )
        asked = (
            {} if tests is None else {place: _asked(loaded, d, names, data, seed, shown) for place, d in found.items()}
        )
    record: dict[str, Any] = {"model": loaded.name, "text": given.about, "dictionaries": {}}
    for place, seen in measured.items():
        counts, edges = seen.density_histogram()
        histogram = {"counts": counts.tolist(), "log10_edges": edges.tolist()}
        record["dictionaries"][place] = {**described(found[place]), "measures": seen.summary(), "density": histogram}
        if place in asked:
            record["dictionaries"][place]["tests"] = asked[place].plain()
    if out is not None:
        write_json(out, finite(record))
    result({"ok": True, "out": str(out) if out else None, **record})
    say(f"{given.about['held_out_tokens']:,} tokens; loss recovered against {ablation.value} ablation.\n")
    say(measures_table(measured))
    low = record["dictionaries"][next(iter(found))]["density"]["log10_edges"][0]
    say(f"\nFeatures by log10 of their density, from {low:.1f} (one token) on the left to 0 (every token):\n")
    for place, about in record["dictionaries"].items():
        say(f"  {place:10}  |{bars_of(about['density']['counts'])}|")
    for bench in asked.values():
        say(f"\n{bench.table()}")
    if out is not None:
        say(f"\nWrote {out}")


def card_command(
    features: Annotated[
        list[str] | None, typer.Argument(help="Features as PLACE/NUMBER; default: --sample of each place, at random.")
    ] = None,
    dictionaries: Dictionaries = None,
    model: ModelName = "embedded",
    places: Annotated[list[str] | None, typer.Option("--place", help="With --sample: these places only.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Living features per place, where none were named.")] = 3,
    text: TextSource = None,
    context: Context = 128,
    held_out: HeldOut = 20_000,
    top: Annotated[int, typer.Option(min=1, help="Contexts of each feature.")] = 8,
    seed: TextSeed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for cards.json and cards.html, one page for a browser.")
    ] = None,
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show features: where they are most active, how strongly and how often, and which tokens they raise and lower.

    Contexts come from held-out text. Raised and lowered tokens are those of the direct path to the logits only.
    """
    from crosspatch.cli import features_cards as work

    take(out, overwrite)
    loaded = load_model(model, dtype, device, threads)
    with bars() as shown:
        cards, about = work.cards_of(
            loaded, dictionaries, features or (), places, sample, text, context, held_out, top, seed, shown
        )
    page = work.write(out, cards, about) if out is not None else None
    result({"ok": True, "out": str(out) if out else None, "page": page, "cards": [card.plain() for card in cards]})
    for card in cards:
        say(card_text(card))
    if page:
        say(f"Cards: {page}")


def described(dictionary: Dictionary) -> dict[str, Any]:
    """What a dictionary is, as plain data."""
    threshold = dictionary.threshold.clamp(min=0)
    if dictionary.selection != "all":
        rule = f"{dictionary.selection}, k {dictionary.k}"
    elif (threshold > 0).any():
        rule = f"above thresholds {float(threshold.min()):.3g} to {float(threshold.max()):.3g}"
    else:
        rule = "above 0"
    return {
        "format": str(dictionary.meta.get("format", "crosspatch")),
        "architecture": dictionary.architecture,
        "reads": " ".join(dictionary.reads),
        "writes": " ".join(dictionary.writes),
        "features": dictionary.width,
        "d in": dictionary.d_in,
        "d out": dictionary.d_out,
        "active": rule,
        "normalises": dictionary.normalise,
        "skip": dictionary.skip is not None,
        "notes": [str(line) for line in dictionary.meta.get("notes", ())],
    }


def bars_of(counts: Sequence[int]) -> str:
    """Counts as a line of bars."""
    highest = max(max(counts), 1)
    return "".join(BLOCKS[0 if not n else max(1, round(n / highest * (len(BLOCKS) - 1)))] for n in counts)


def card_text(card: Card) -> str:
    """A card for a terminal; the strongest token of a context in brackets."""
    head = f"{' '.join(card.reads)}/{card.feature}: active at {card.density:.2%} of tokens"
    if not card.top:
        return f"{head}, so that there is nothing to show\n"
    lines = [f"{head}, mean {card.mean:.3g}, at most {card.maximum:.3g}  |{bars_of(card.histogram[0])}|"]
    for name, pairs in (("raises", card.promoted), ("lowers", card.suppressed)):
        if pairs:
            lines.append(f"  {name}: " + " ".join(f"{token.strip()} ({score:+.2f})" for token, score in pairs[:8]))
    for shown in card.top:
        words = [f"[{t}]" if i == shown.at else t for i, t in enumerate(shown.tokens)]
        lines.append(f"  {shown.values[shown.at]:8.3g}  {''.join(words)}".replace("\n", " "))
    return "\n".join(lines) + "\n"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tests(asked: str | None) -> list[str] | None:
    """Names of tests; None = all that the data allow.

    Raises:
        DictionaryError: no such test.
    """
    from crosspatch.dictionaries.bench import TESTS

    if asked is None or asked == "all":
        return None
    names = [name.strip().replace("-", "_") for name in asked.split(",")]
    if unknown := [name for name in names if name not in TESTS]:
        fix = f"use all, or some of {', '.join(name.replace('_', '-') for name in TESTS)}"
        raise DictionaryError(f"no test {unknown[0]!r}", where="--tests", fix=fix)
    return names


def _asked(model: Model, dictionary: Dictionary, names: list[str] | None, data: str, seed: int, shown: Bars) -> Bench:
    """The tests of one dictionary."""
    from crosspatch.dictionaries.bench import run_tests

    place = " ".join(dictionary.reads)
    return run_tests(
        model, dictionary, names, data, seed=seed,
        progress=lambda name, done, total: shown.stage(f"{place}: {name.replace('_', ' ')}", done, total),
    )  # fmt: skip
