"""`crosspatch features`: train, load, measure and look at dictionaries of features."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from crosspatch.cli import features_circuit, features_show
from crosspatch.cli.console import Debug, Json, Quiet, mode, note, result, say
from crosspatch.cli.features_options import (
    Ablated,
    Ablations,
    Context,
    HeldOut,
    Kind,
    Kinds,
    Ks,
    L1s,
    Places,
    Precision,
    TargetL0s,
    TextSeed,
    TextSource,
    Width,
)
from crosspatch.cli.folders import MARKER, essential, open_folder
from crosspatch.cli.inputs import Device, Dtype, ModelName, Threads, load_model
from crosspatch.cli.sweeping import Out, Overwrite, Resume

app = typer.Typer(
    help="Dictionaries of features: train them, load and check those of others, measure them, look at features.",
    epilog="Example: crosspatch features train --places r*.post --steps 500 --out out/dictionaries",
    no_args_is_help=True,
)


@app.command(
    "train",
    epilog="Example: crosspatch features train --model gpt2 --places m*,r*.post --k 32 --text corpus/ --out out/gpt2",
)
def train_command(
    out: Out,
    model: ModelName = "embedded",
    places: Places = None,
    variant: Kinds = Kind.batch_topk,
    k: Ks = None,
    l1: L1s = None,
    target_l0: TargetL0s = None,
    width: Width = None,
    skip: Annotated[bool, typer.Option("--skip", help="Transcoders get a linear part from input to output.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 5000,
    batch: Annotated[int, typer.Option(min=1, help="Tokens of a step.")] = 2048,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: the variant's own for that width.")] = None,
    dead_after: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens without activity that make a feature dead; default: a tenth of all, 2 million at most."
        ),
    ] = None,
    text: TextSource = None,
    context: Context = 128,
    held_out: HeldOut = 20_000,
    ablation: Ablations = Ablated.zero,
    buffer: Annotated[int, typer.Option(min=256, help="Tokens that are shuffled together.")] = 2**16,
    files: Annotated[Precision, typer.Option("--files", help="Precision of the files.")] = Precision.float32,
    autocast: Annotated[bool, typer.Option("--autocast", help="Compute in bfloat16 where that is safe.")] = False,
    every: Annotated[int, typer.Option(min=1, help="Steps between two lines of progress.")] = 100,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two savings for --resume.")] = 500,
    seed: TextSeed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a dictionary for each place and each sparsity; one pass of the model feeds all of them.

    Every dictionary becomes a folder that SAELens reads too; card.json records how they were made and what they
    are worth on text that was held out. A run that was stopped goes on exactly with --resume: the same weights, bit
    for bit.
    """
    from crosspatch.cli import features_train as work
    from crosspatch.cli.features_inputs import RUN_CARD, places_of, text_of, writable
    from crosspatch.dictionaries import Activations, Settings, measure, train
    from crosspatch.errors import DictionaryError

    ours = (out / MARKER).is_file()
    open_folder(out, resume=resume, overwrite=overwrite)
    if overwrite and ours:
        work.clear(out)
    if (out / RUN_CARD).is_file():
        raise DictionaryError("is finished", where=str(out), fix="look at it with `crosspatch features measure`")
    loaded = load_model(model, dtype, device, threads)
    pairs = places_of(loaded, places or ["all"])
    jobs = work.jobs_of(loaded, pairs, variant.value, {"k": k, "l1": l1, "target_l0": target_l0}, width, lr, skip)
    settings = Settings(
        steps=steps, batch=batch, lr_warmup=min(500, steps // 10), sparsity_warmup=min(1000, steps // 5),
        dead_after=dead_after or max(batch, min(2_000_000, steps * batch // 10)),
        resample_every=max(1, min(2000, steps // 10)), autocast=autocast, seed=seed,
    )  # fmt: skip
    given = text_of(loaded, text, context=context, tokens=steps * batch + buffer, held_out=held_out, seed=seed)
    note(f"{len(jobs)} dictionaries, {given.about['tokens']:,} tokens of text, {steps * batch:,} to train on")
    watch = work.Watch(loaded, list(jobs), given.held_out)
    stream = Activations(loaded, given.train, buffer=buffer)
    mode.resumable, resumed = True, (out / work.CHECKPOINT).is_file()
    with work.live(watch):
        trained = train(
            stream, list(jobs.values()), settings,
            checkpoint=out / work.CHECKPOINT, save_every=save_every, progress=watch, every=every,
        )  # fmt: skip
    seconds = None if resumed else time.monotonic() - watch.begun
    about = work.described(loaded, given, settings, essential(sys.argv[1:]), seconds)
    stored = work.as_stored(out, jobs, trained, loaded.name, files.value)
    measured = {
        name: measure(loaded, dictionary, given.held_out, ce=writable(dictionary), ablation=ablation.value)
        for name, dictionary in zip(jobs, stored, strict=True)
    }
    card = work.save(out, jobs, measured, about, files.value)
    (out / work.CHECKPOINT).unlink(missing_ok=True)
    result({"ok": True, "out": str(out), **card})
    say(f"On {given.about['held_out_tokens']:,} tokens of held-out text, with 95 % intervals:\n")
    say(work.measures_table(measured))
    say(f"\nDictionaries: {out}")


features_show.add_to(app)
features_circuit.add_to(app)
