"""The work of `crosspatch features train`: jobs from options, progress, what is written."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspatch.cli.console import errors_console, finite, note, shows_bars, table
from crosspatch.cli.features_inputs import RUN_CARD, dictionary_folders, writable
from crosspatch.errors import DictionaryError

if TYPE_CHECKING:
    from crosspatch.dictionaries import Dictionary, Job, Measures, Report, Settings
    from crosspatch.dictionaries.text import Prompts, Text
    from crosspatch.model import Model

CHECKPOINT, README = "checkpoint.pt", "README.md"
LIVE_TOKENS = 1000
"""Held-out tokens that loss recovered is measured on while training goes on."""


def jobs_of(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    kind: str,
    values: dict[str, Sequence[float] | None],
    width: int | None,
    lr: float | None,
    skip: bool,
) -> dict[str, Job]:
    """Name of the folder -> what is trained there.

    Args:
        pairs: places to read and write.
        values: what was asked for each option that sets a sparsity.

    Raises:
        DictionaryError: a sparsity of another variant, or sizes that cannot be.
    """
    from crosspatch.dictionaries import Job, place_width, sweep

    variant = _variants()[kind]()
    if wrong := [name for name, given in values.items() if given and name != variant.sparsity]:
        raise DictionaryError(
            f"--{wrong[0].replace('_', '-')} is not what sets the sparsity of {kind}",
            where="--variant",
            fix=f"use --{variant.sparsity.replace('_', '-')}",
        )
    asked = list(dict.fromkeys(values[variant.sparsity] or [getattr(variant, variant.sparsity)]))
    found = {}
    for read, write in pairs:
        of = read if read == write else f"{read}-{write}"
        base = Job(
            variant, read, width or 8 * place_width(model, read), writes=None if read == write else write,
            skip=skip and read != write, lr=lr,
        )  # fmt: skip
        for value, job in zip(asked, sweep(base, asked), strict=True):
            found[of if len(asked) == 1 else f"{of}-{variant.sparsity.replace('_', '-')}{value:g}"] = job
    return found


def _variants() -> dict[str, Callable[[], Any]]:
    from crosspatch import dictionaries as d

    return {
        "batch-topk": d.BatchTopK, "topk": d.TopK, "matryoshka": d.Matryoshka, "jumprelu": d.JumpReLU,
        "standard": d.Standard, "gated": d.Gated, "p-anneal": d.PAnneal,
    }  # fmt: skip


def clear(out: Path) -> None:
    """Remove what an earlier run left: its dictionaries, its checkpoint and its record, nothing else."""
    with contextlib.suppress(DictionaryError):
        for folder in dictionary_folders(out):
            if folder != out and (folder / "cfg.json").is_file():
                shutil.rmtree(folder)
    for name in (RUN_CARD, CHECKPOINT, README):
        (out / name).unlink(missing_ok=True)


class Watch:
    """Live numbers of every dictionary in training.

    Loss recovered needs passes of the model; it is measured on a little held-out text as often as keeps that below a
    twentieth of the time.
    """

    def __init__(self, model: Model, names: Sequence[str], held_out: Prompts) -> None:
        self.model, self.names = model, list(names)
        self.prompts = _first(held_out, LIVE_TOKENS)
        self.recovered: list[float | None] = [None] * len(self.names)
        self.measured = 0
        self.begun = time.monotonic()
        self.spent = 0.0
        self.show: Callable[[str], None] = note

    def __call__(self, report: Report) -> None:
        if self.spent <= 0.05 * (time.monotonic() - self.begun):
            self._measure(report)
        self.show(self.text(report))

    def _measure(self, report: Report) -> None:
        from crosspatch.dictionaries import measure

        at = time.monotonic()
        for i in range(len(self.names)):
            dictionary = report.dictionary(i)
            if writable(dictionary):
                self.recovered[i] = measure(self.model, dictionary, self.prompts).loss_recovered.value
        self.spent += time.monotonic() - at
        self.measured = report.step

    def text(self, report: Report) -> str:
        """The table of this moment."""
        seconds = time.monotonic() - self.begun
        rows = [
            [name, f"{job.l0:.1f}", f"{job.fvu:.3f}", f"{job.dead:.1%}", "-" if found is None else f"{found:.3f}"]
            for name, job, found in zip(self.names, report.jobs, self.recovered, strict=True)
        ]
        head = f"step {report.step:,} of {report.steps:,}, {report.tokens:,} tokens, {seconds:.0f} s"
        recovered = f"loss recovered (step {self.measured:,})"
        return f"{head}\n{table(rows, ['dictionary', 'L0', 'FVU', 'dead', recovered])}"


@contextmanager
def live(watch: Watch) -> Iterator[Watch]:
    """On a terminal the table is redrawn in place; elsewhere it is printed each time."""
    if not shows_bars():
        yield watch
        return
    from rich.live import Live
    from rich.text import Text as Words

    with Live(Words("reading text"), console=errors_console(), transient=True) as shown:
        watch.show = lambda text: shown.update(Words(text))
        yield watch


def save(
    out: Path,
    jobs: dict[str, Job],
    measured: dict[str, Measures],
    about: dict[str, Any],
    dtype: str,
) -> dict[str, Any]:
    """Write the record, for machines and for people, and return it."""
    from crosspatch.results.files import write_atomic, write_json

    card = finite({
        **about,
        "precision": dtype,
        "dictionaries": {
            name: {"reads": list(job.places_in), "writes": list(job.places_out), "trained_as": job.plain(),
                   "measures": measured[name].summary()}
            for name, job in jobs.items()
        },
    })  # fmt: skip
    write_json(out / RUN_CARD, card)
    if not (out / README).exists():
        write_atomic(out / README, readme(card).encode())
    return dict(card)


def readme(card: dict[str, Any]) -> str:
    """The record in words."""
    text, settings = card["text"], card["settings"]
    made = list(card["dictionaries"].values())
    first = made[0]["trained_as"]
    same = ", ".join(f"{name} {value}" for name, value in first.items() if name not in ("reads", "writes"))
    ablation = made[0]["measures"].get("ablation", "zero")
    took = "" if card["seconds"] is None else f"in {card['seconds'] / 60:.0f} min "
    rows = []
    for name, one in card["dictionaries"].items():
        found = one["measures"]
        cells = [_interval(found.get(measure)) for measure in ("l0", "fvu", "loss_recovered", "ce_increase")]
        rows.append(f"| {' | '.join([name, *cells])} | {found['dead']:.1%} |")
    return f"""# {len(made)} dictionaries of features for {card["model"]}

Made by

    crosspatch {shlex.join(card["command"])}

{took}on {card["device"]} (threads: {card["threads"]}, torch {card["torch"]}). One pass of the model fed all of them:
{settings["steps"]:,} steps of {settings["batch"]:,} tokens, {card["tokens"]:,} in all, of a text of {text["tokens"]:,}.

- Text: {text["source"]}, {text["prompts"]}.
- Trained as (the first of them; `card.json` has all): {same}.
- Files: {card["precision"]}, in the layout of SAELens (`SAE.load_from_disk`);
  `crosspatch.dictionaries.load_dictionary` reads them too.

Measured on {text["held_out_tokens"]:,} tokens of held-out text, on these files, with 95 % intervals over prompts.
FVU: sum of squared errors over sum of squared deviations from the mean. Loss recovered: 1 where putting the
reconstruction in costs nothing, 0 where it costs as much as {ablation} ablation. CE increase: nats per token. Dead:
share of features that were active nowhere in this text.

| dictionary | L0 | FVU | loss recovered | CE increase | dead |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def _interval(found: dict[str, float] | None) -> str:
    """An estimate as the tables have it; empty where it was not measured."""
    from crosspatch.dictionaries import Estimate

    return "" if found is None else str(Estimate(**{end: float("nan") if v is None else v for end, v in found.items()}))


def as_stored(
    out: Path, jobs: dict[str, Job], trained: Sequence[Dictionary], model_name: str, dtype: str
) -> list[Dictionary]:
    """The dictionaries, written and read back: what is measured is what others will load."""
    import torch

    from crosspatch.dictionaries import load_dictionary, save_dictionary

    found = []
    for name, dictionary in zip(jobs, trained, strict=True):
        save_dictionary(dictionary, out / name, model_name=model_name, dtype=getattr(torch, dtype))
        found.append(load_dictionary(out / name, device=dictionary.device))
    return found


def described(
    model: Model, text: Text, settings: Settings, command: Sequence[str], seconds: float | None
) -> dict[str, Any]:
    """How the dictionaries were made; `seconds` is None where a part of training was done by an earlier run."""
    from importlib.metadata import version

    import torch

    return {
        "made by": "crosspatch",
        "version": version("crosspatch"),
        "command": list(command),
        "model": model.name,
        "shape": asdict(model.shape),
        "text": text.about,
        "settings": asdict(settings),
        "tokens": settings.steps * settings.batch,
        "device": str(model.device),
        "torch": torch.__version__.partition("+")[0],
        "threads": torch.get_num_threads(),
        "seconds": None if seconds is None else round(seconds, 1),
    }


def measures_table(measured: dict[str, Measures]) -> str:
    """One line for each dictionary, with intervals."""
    rows = []
    for name, found in measured.items():
        costs = [str(found.ce_increase), str(found.loss_recovered)] if found.ce else ["-", "-"]
        rows.append([name, str(found.l0), str(found.fvu), *costs, f"{found.dead:.1%}"])
    return table(rows, ["dictionary", "L0", "FVU", "CE increase", "loss recovered", "dead"])


def _first(prompts: Prompts, tokens: int) -> list[list[int]]:
    """Prompts of about so many tokens, one at least."""
    found: list[list[int]] = []
    for prompt in prompts:
        if sum(map(len, found)) >= tokens:
            break
        found.append([int(token) for token in prompt])
    return found
