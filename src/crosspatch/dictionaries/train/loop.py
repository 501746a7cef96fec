"""Training: draw a batch, let every dictionary learn from it, report, save."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.train.settings import Job, Settings
from crosspatch.dictionaries.train.stream import Stream
from crosspatch.dictionaries.train.worker import Worker
from crosspatch.errors import DictionaryError
from crosspatch.results.files import write_atomic

_VERSION = 2


@dataclass(frozen=True)
class JobReport:
    """How one dictionary does, on average since the last report.

    Args:
        label: the job's.
        loss: training loss.
        l0: active features per token.
        fvu: squared error over variance, both of the training batches.
        dead: share of features that are dead.
    """

    label: str
    loss: float
    l0: float
    fvu: float
    dead: float


@dataclass(frozen=True)
class Report:
    """Progress: steps done of how many, tokens seen, and every job.

    `dictionary(i)` gives job i's dictionary as it is now, to measure anything else (loss recovered, say).
    """

    step: int
    steps: int
    tokens: int
    jobs: tuple[JobReport, ...]
    dictionary: Callable[[int], Dictionary]


def train(
    stream: Stream,
    jobs: Job | Sequence[Job],
    settings: Settings | None = None,
    *,
    checkpoint: str | Path | None = None,
    save_every: int = 1000,
    progress: Callable[[Report], None] | None = None,
    every: int = 100,
    device: torch.device | str | None = None,
) -> list[Dictionary]:
    """Train dictionaries together, from one stream.

    Args:
        stream: `Activations(model, prompts)` or `Arrays({...})`.
        jobs: what to train; `sweep` makes several of one.
        settings: how long and how.
        checkpoint: file to save to. If it exists, training goes on from it, and the result is the same, number for
            number, as if it had not been interrupted (on the same kind of device).
        save_every: steps between savings.
        progress: called every `every` steps and at the end.
        device: where dictionaries are trained; None = where the first activations are.

    Returns:
        one dictionary per job, for activations as they are, with decoder rows of length 1.

    Raises:
        DictionaryError: jobs that do not fit the stream, a checkpoint of something else, or a loss that is not finite.
    """
    jobs = [jobs] if isinstance(jobs, Job) else list(jobs)
    settings = Settings() if settings is None else settings
    if not jobs:
        raise DictionaryError("nothing to train", where="train", fix="give at least one Job")
    places = list(dict.fromkeys(place for job in jobs for place in (*job.places_in, *job.places_out)))
    stream.open(places, settings.batch, settings.seed)
    sample = stream.sample()
    where = torch.device(device) if device is not None else sample[places[0]].device
    workers = [Worker(job, settings, i, sample, where) for i, job in enumerate(jobs)]
    path = None if checkpoint is None else Path(checkpoint)
    about = _about(stream, jobs, settings)
    start, tokens = _resume(path, about, stream, workers) if path is not None and path.exists() else (0, 0)
    for step in range(start, settings.steps):
        batch = stream.draw()
        tokens += len(batch[places[0]])
        for worker in workers:
            worker.step(batch, step)
        last = step + 1 == settings.steps
        if path is not None and ((step + 1) % save_every == 0 or last):
            _save(path, about, stream, workers, step + 1, tokens)
        if (step + 1) % every == 0 or last:
            _report(progress, workers, step + 1, settings.steps, tokens)
    return [worker.dictionary() for worker in workers]


def _report(
    progress: Callable[[Report], None] | None, workers: list[Worker], step: int, steps: int, tokens: int
) -> None:
    jobs = tuple(JobReport(worker.job.label, **worker.report()) for worker in workers)
    for worker in workers:
        worker.reset()
    if progress is not None:
        progress(Report(step, steps, tokens, jobs, lambda i: workers[i].dictionary()))


def _about(stream: Stream, jobs: Sequence[Job], settings: Settings) -> dict[str, Any]:
    """What must be the same for training to go on."""
    return {"version": _VERSION, "stream": stream.describe(), "jobs": [job.plain() for job in jobs]} | asdict(settings)


def _save(path: Path, about: dict[str, Any], stream: Stream, workers: list[Worker], step: int, tokens: int) -> None:
    content = io.BytesIO()
    states = [worker.state() for worker in workers]
    torch.save({"about": about, "step": step, "tokens": tokens, "stream": stream.state(), "workers": states}, content)
    write_atomic(path, content.getvalue())


def _resume(path: Path, about: dict[str, Any], stream: Stream, workers: list[Worker]) -> tuple[int, int]:
    try:
        saved: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = saved["about"]
    except Exception as error:  # torch names no family of errors for files that are damaged
        raise DictionaryError("is no checkpoint", where=str(path), fix="delete it to start anew") from error
    differing = [name for name in about if found.get(name) != about[name]]
    if differing:
        raise DictionaryError(
            f"was made in another way ({', '.join(differing)} differ)",
            where=str(path),
            fix="use another file, or delete this one to start anew",
        )
    for worker, state in zip(workers, saved["workers"], strict=True):
        worker.restore(state)
    stream.restore(saved["stream"])
    return int(saved["step"]), int(saved["tokens"])
