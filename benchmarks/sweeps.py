"""Activation patching sweeps: Crosspatch against TransformerLens, and against the floor of what has to be computed.

    make bench
    .venv-bench/bin/python -m benchmarks.sweeps --json out/sweeps.json --only resid_pre z --repeats 3

Both sides get the same weights, tokens, roles (clean values into the corrupt run) and metric, and take turns, so that
whatever else the machine does meets both. Times are medians over the turns; the ratio is that of the medians.
Peak memory is that of one sweep of ours in a process of its own, above the model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.floor import SWEEPS, Sizes, sweep_flops
from benchmarks.measure import alone, matmul_rate, peak_memory, timed
from benchmarks.ours import Sweep, our_sweeps
from benchmarks.problem import Problem, gpt2_small

TITLES = {
    "resid_pre": "residual stream, layer x position",
    "z": "head outputs, all positions",
    "q": "queries, all positions",
    "k": "keys, all positions",
    "v": "values, all positions",
    "mlp_out": "MLP outputs, layer x position",
}
TOLERANCE = 1e-4
log = Console(stderr=True, highlight=False)


@dataclass
class Line:
    """One outcome: seconds, MiB; None for what was not measured."""

    name: str
    ours_s: float
    peer: str | None
    peer_s: float | None
    ratio: float | None
    floor_fraction: float | None
    max_abs_diff: float | None
    peak_mib: float | None


def measure(
    kind: str, problem: Problem, ours: Sweep, sizes: Sizes, peer: Sweep | None, args: argparse.Namespace
) -> Line:
    """Warm up, then take turns. Each turn's floor is set by the matrix rate just before and just after it."""
    log.print(f"{kind}: warming up")
    peak_mib = alone(our_peak, kind, args.budget_mib, args.threads)
    ours(kind)
    ours_s: list[float] = []
    peer_s: list[float] = []
    fractions: list[float] = []
    difference = None
    for turn in range(args.repeats):
        before = matmul_rate(sizes.d_model, sizes.d_mlp)
        seconds, mine = timed(lambda: ours(kind))
        rate = (before + matmul_rate(sizes.d_model, sizes.d_mlp)) / 2
        ours_s.append(seconds)
        fractions.append(sweep_flops(sizes, kind, problem.examples) / rate / seconds)
        if peer is not None and turn < args.peer_repeats:
            seconds, theirs = timed(lambda: peer(kind))
            peer_s.append(seconds)
            difference = (mine - theirs).abs().max().item()
        told = f", peer {peer_s[-1]:.1f} s" if len(peer_s) > turn else ""
        log.print(f"{kind}: turn {turn + 1} of {args.repeats}: ours {ours_s[-1]:.2f} s{told}")
    median = statistics.median(ours_s)
    return Line(
        name=kind,
        ours_s=median,
        peer=f"TransformerLens {version('transformer-lens')}" if peer is not None else None,
        peer_s=statistics.median(peer_s) if peer_s else None,
        ratio=statistics.median(peer_s) / median if peer_s else None,
        floor_fraction=statistics.median(fractions),
        max_abs_diff=difference,
        peak_mib=peak_mib,
    )


def our_peak(kind: str, budget_mib: float | None, threads: int) -> float:
    """Memory of one sweep above model and code. For a fresh process: an old one may hold on to what it freed."""
    torch.set_num_threads(threads)
    small, _ = our_sweeps(gpt2_small(n_layer=1, n_head=1, n_embd=8, vocab_size=50, bos_token_id=0, eos_token_id=0))
    small(kind)
    ours, _ = our_sweeps(gpt2_small(), budget_mib)
    with peak_memory() as peak:
        ours(kind)
    return peak.mib


def show(lines: Sequence[Line], threads: int) -> None:
    """Print the table that a person reads."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    peer = next((line.peer for line in lines if line.peer), "peer")
    table = Table(
        title=f"GPT-2-small sizes, 8 pairs of 24 tokens, first difference at token 6, {threads} threads, float32"
    )
    table.add_column("sweep")
    for heading in ("ours s", f"{peer} s", "ratio", "floor fraction", "max abs diff", "peak MiB"):
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(
            f"{line.name}: {TITLES[line.name]}",
            number(line.ours_s, ".2f"),
            number(line.peer_s, ".1f"),
            number(line.ratio, ".1f"),
            number(line.floor_fraction, ".2f"),
            number(line.max_abs_diff, ".1e"),
            number(line.peak_mib, ".0f"),
        )
    Console(width=130).print(table)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the lines there, as a JSON list")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="sweeps to run (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of ours (default: 5)")
    parser.add_argument("--peer-repeats", type=int, default=3, help="of them, turns of the peer as well (default: 3)")
    parser.add_argument("--budget-mib", type=float, help="memory budget given to our executor (default: its own)")
    parser.add_argument("--no-peer", action="store_true", help="ours and the floor only; needs no peer installed")
    return parser.parse_args()


def write_json(path: Path, lines: Sequence[Line]) -> None:
    """Write atomically, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def main() -> int:
    """Run what the command line asks for; 1 if the numbers of the two sides do not agree."""
    args = arguments()
    torch.set_num_threads(args.threads)
    problem = gpt2_small()
    ours, sizes = our_sweeps(problem, args.budget_mib)
    peer = None
    if not args.no_peer:
        from benchmarks.peer import peer_sweeps  # not installed beside the package, only in the benchmarks' environment

        peer = peer_sweeps(problem)
    lines = [measure(kind, problem, ours, sizes, peer, args) for kind in args.only]
    show(lines, args.threads)
    if args.json:
        write_json(args.json, lines)
    wrong = [line.name for line in lines if line.max_abs_diff is not None and not line.max_abs_diff <= TOLERANCE]
    if wrong:
        log.print(f"numbers differ by more than {TOLERANCE}: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
