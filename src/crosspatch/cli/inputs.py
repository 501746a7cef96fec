"""From what was typed to what the other rooms take: models, tasks, devices, output folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli.console import CHECK_FAILED, errors_console, note, result
from crosspatch.errors import ModelError, TaskError

if TYPE_CHECKING:
    from crosspatch.model import Model
    from crosspatch.tasks import Task

ModelName = Annotated[
    str,
    typer.Option("--model", "-m", help="embedded, a name from `crosspatch models`, a folder, or a Hugging Face name."),
]
TaskName = Annotated[
    str,
    typer.Option(
        "--task", "-t", help="A name from `crosspatch tasks` (public:NAME too), or a .jsonl, .csv or .json file."
    ),
]
Corruption = Annotated[
    str | None, typer.Option("--corruption", "-c", help="How the corrupt prompt is made (see `crosspatch tasks`).")
]
Count = Annotated[int, typer.Option("--n", "-n", min=1, help="Number of prompt pairs.")]
Seed = Annotated[int, typer.Option(help="Seed of the prompts, the controls and the statistics.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: float32 on a CPU.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")]
_BUDGET = (
    "MiB for the patched runs in flight together: their activations, keys, values and logits. The weights and the "
    "recorded runs of the prompts come on top. Default: for patching half of what is free on a GPU and 64 on a CPU, "
    "512 for paths, 256 for circuits, 768 for feature circuits."
)
Budget = Annotated[float | None, typer.Option("--budget-mib", min=1, help=_BUDGET)]

PUBLIC = "public:"
"""What the name of a public data set begins with, so that it is no file and no built-in task."""
FILES = (".jsonl", ".ndjson", ".csv", ".json")
DTYPES = ("float32", "float64", "bfloat16", "float16")


def load_model(name: str, dtype: str | None = None, device: str | None = None, threads: int | None = None) -> Model:
    """The model, checked quickly; a model that fails ends the program with its own exit code."""
    from crosspatch.model import check

    model = load_unchecked(name, dtype, device, threads)
    checked = check(model, quick=True)
    if not checked.passed:
        errors_console().print(str(checked))
        result({"ok": False, "exit_code": CHECK_FAILED, "error": {"type": "ModelError", "what": str(checked)}})
        raise typer.Exit(CHECK_FAILED)
    return model


def load_unchecked(name: str, dtype: str | None, device: str | None, threads: int | None) -> Model:
    """The model as it is.

    Raises:
        ModelError: it cannot be found, read, or put on the device.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}", where="--dtype", fix=f"use one of {', '.join(DTYPES)}")
    _quiet_libraries()
    import torch

    from crosspatch.model import load

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        if device is not None:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            str(error).splitlines()[0], where=f"--device {device}", fix="use cpu, or a device that is there"
        ) from error
    return load(name, dtype=dtype, device=device, verify=False)


def load_tokenizer(name: str) -> Any:
    """Only the tokenizer of a model."""
    _quiet_libraries()
    from transformers import AutoTokenizer

    from crosspatch.model.load import resolve

    try:
        return AutoTokenizer.from_pretrained(resolve(name))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no tokenizer: {str(error).splitlines()[0]}", where=f"loading {name!r}", fix="see `crosspatch models`"
        ) from error


def _quiet_libraries() -> None:
    """Other libraries' bars and warnings would mix with ours; set before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()


def is_file(task: str) -> bool:
    """Whether --task names a file rather than a built-in task or a public data set."""
    if task.startswith(PUBLIC):
        return False
    return task.lower().endswith(FILES) or "/" in task or os.sep in task


def load_task(name: str, tokenizer: Any, n: int, seed: int, corruption: str | None) -> Task:
    """A generated task, or `n` pairs sampled from a public data set or a file (all of them where it has fewer).

    Raises:
        TaskError: no such task, data set or file, with the nearest names; or a corruption that it does not have.
    """
    from crosspatch.tasks import list_public, load_public, make_task, read_task

    if name.startswith(PUBLIC):
        task = load_public(name.removeprefix(PUBLIC), n=n, seed=seed, corruption=corruption, tokenizer=tokenizer)
        if len(task) < n:
            note(f"{name} has {len(task)} pairs that fit; all of them are used.")
        return task
    if not is_file(name):
        return make_task(name, n=n, seed=seed, corruption=corruption, tokenizer=tokenizer)
    if not Path(name).exists() and name in list_public():
        raise TaskError("no such file", where=name, fix=f"the public data set of that name is {PUBLIC}{name}")
    task = read_task(name)
    if corruption is not None:
        kept = [pair for pair in task.pairs if pair.corruption == corruption]
        if not kept:
            there = ", ".join(sorted({pair.corruption or "(none)" for pair in task.pairs}))
            raise TaskError(f"no pair has the corruption {corruption!r}", where=name, fix=f"use one of: {there}")
        task = task.filter(lambda pair: pair.corruption == corruption)
    if len(task) <= n:
        if len(task) < n:
            note(f"{name} has {len(task)} pairs; all of them are used.")
        return task
    return task.sample(n, seed)
