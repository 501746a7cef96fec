"""Seconds, memory and the matrix-multiply rate: what a benchmark measures, apart from what it runs."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch

T = TypeVar("T")


def alone(run: Callable[..., T], *arguments: object) -> T:
    """Call a module's function in a fresh process and return what it returned."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Wall-clock seconds of one call, and what it returned."""
    gc.collect()
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def matmul_rate(d_in: int, d_out: int, tokens: int = 2048, repeats: int = 5) -> float:
    """Floating-point operations per second of `[tokens, d_in] @ [d_in, d_out]`, float32, the best of several."""
    x, weight = torch.randn(tokens, d_in), torch.randn(d_in, d_out)
    out = torch.empty(tokens, d_out)
    torch.mm(x, weight, out=out)
    best = min(timed(lambda: torch.mm(x, weight, out=out))[0] for _ in range(repeats))
    return 2 * tokens * d_in * d_out / best


@dataclass
class Peak:
    """Most resident memory of this process while `peak_memory` was open, above what it held before, in MiB."""

    mib: float = 0.0


@contextmanager
def peak_memory(every_s: float = 0.005) -> Iterator[Peak]:
    """Watch the resident memory from a thread: tensors, and whatever else is allocated, are counted alike."""
    gc.collect()
    process, peak, stop = psutil.Process(), Peak(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(every_s):
            peak.mib = max(peak.mib, (process.memory_info().rss - before) / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.mib = max(peak.mib, (process.memory_info().rss - before) / 2**20)
