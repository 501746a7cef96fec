"""`crosspatch tasks`: the built-in behaviours, their prompts, and whether a model can do them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crosspatch.cli.console import OK, REFUSED, Debug, Json, Quiet, result, say
from crosspatch.cli.inputs import (
    PUBLIC,
    Corruption,
    Count,
    Device,
    Dtype,
    ModelName,
    Seed,
    Threads,
    load_model,
    load_task,
    load_tokenizer,
)

if TYPE_CHECKING:
    from crosspatch.tasks import TokenizedTask

app = typer.Typer(
    help="List the built-in tasks and the public data sets that are there, show their prompts, and check that a model "
    "can do them. Public data sets are looked for in the folder that CROSSPATCH_DATA names.",
    epilog="Example: crosspatch tasks show ioi --n 3",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Name = Annotated[str, typer.Argument(help="A task's name, public:NAME, or a .jsonl, .csv or .json file.")]


@app.callback()
def tasks(context: typer.Context, json: Json = False, debug: Debug = False) -> None:
    """List the built-in tasks and the ways to corrupt their prompts (the first is the default), and public data sets.

    Public data sets are looked for in the folder that the environment variable CROSSPATCH_DATA names, else beside a
    checkout of the repository; without such a folder none are listed.
    """
    if context.invoked_subcommand is not None:
        return
    from crosspatch.tasks import list_tasks
    from crosspatch.tasks.public import find_data, list_public

    found, folder, public = list_tasks(), find_data(), list_public()
    result(
        {
            "tasks": [
                {"name": t.name, "description": t.description, "source": t.source, "corruptions": list(t.corruptions)}
                for t in found
            ],
            "public": {"folder": str(folder) if folder else None, "names": [PUBLIC + name for name in public]},
        }
    )
    for task in found:
        say(f"{task.name}\n    {task.description}")
        say(f"    corruptions: {', '.join(task.corruptions)}\n    after {task.source}\n")
    if public:
        say(f"Public data sets in {folder}:")
        for name in public:
            say(f"    {PUBLIC}{name}")


@app.command(epilog="Example: crosspatch tasks show ioi --n 3 --corruption S2")
def show(
    name: Name,
    n: Count = 3,
    seed: Seed = 0,
    corruption: Corruption = None,
    model: ModelName = "embedded",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print pairs of a task as one model's tokenizer splits them, with their roles and answers."""
    tokenizer = load_tokenizer(model)
    task = load_task(name, tokenizer, n, seed, corruption)
    tokenized = task.tokenize(tokenizer)
    result(
        {
            "task": task.name,
            "varies": task.varies,
            "holds": task.holds,
            "pairs": [_as_json(tokenized, i) for i in range(len(tokenized))],
        }
    )
    say(f"{task.name}: {task.description}\n  varies: {task.varies}\n  held fixed: {task.holds}\n")
    for i in range(len(tokenized)):
        _print_pair(tokenized, i)


def _as_json(tokenized: TokenizedTask, i: int) -> dict[str, object]:
    return {
        **tokenized.task.pairs[i].to_dict(),
        "clean_tokens": tokenized.strings(i, "clean"),
        "corrupt_tokens": tokenized.strings(i, "corrupt"),
        "token_spans": tokenized.spans[i],
        "corrupt_token_spans": tokenized.corrupt_spans[i],
    }


def _print_pair(tokenized: TokenizedTask, i: int) -> None:
    pair = tokenized.task.pairs[i]
    say(f"{i}  clean    {tokenized.display(i, 'clean')}")
    say(f"   corrupt  {tokenized.display(i, 'corrupt')}")
    strings = tokenized.strings(i)
    roles = (f"{name} = {''.join(strings[a:b]).strip()!r} at {a}" for name, (a, b) in tokenized.spans[i].items())
    say(f"   roles    {', '.join(roles)}")
    wrong = f", not {', '.join(map(repr, pair.wrong[:4]))}" if pair.wrong else ""
    more = f" or {len(pair.answers) - 4} others" if len(pair.answers) > 4 else ""
    say(f"   answer   {', '.join(map(repr, pair.answers[:4]))}{more}{wrong}\n")


@app.command("check", epilog="Example: crosspatch tasks check ioi --model gpt2 --n 32")
def check_task(
    name: Name,
    model: ModelName = "embedded",
    n: Count = 32,
    seed: Seed = 0,
    corruption: Corruption = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run the gates: can the model do the task, do the pairs align, are the answers single tokens?"""
    from crosspatch.tasks import gates

    loaded = load_model(model, dtype, device, threads)
    task = load_task(name, loaded.tokenizer, n, seed, corruption)
    report = gates(loaded, task.tokenize(loaded.tokenizer))
    code = OK if report.ok else REFUSED
    result(
        {"exit_code": code, "model": loaded.name, "task": task.name, "accuracy": report.accuracy, **report.to_dict()}
    )
    say(str(report))
    raise typer.Exit(code)
