"""Sparse feature circuits: effects of nodes, integrated gradients, edges; and training of dictionaries.

    .venv-peers/bin/python -m benchmarks.features --json out/benchmarks/features.json

Node effects are stated in what they cannot do without: one forward and one backward pass to the activations of the bare
model, and the products of both runs' activations with the encoders, as one call each. Integrated gradients and edges
are compared with the published procedure written plainly (`plain_features.py`), on fewer layers, since it is slow.
Training is compared with dictionary-learning and sae-lens (`dictionaries.py`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.circuits import setup_of
from benchmarks.dictionaries import Sides, quietly
from benchmarks.measure import alone, matmul_rate, peak_memory, timed
from benchmarks.plain_features import PlainFeatures
from benchmarks.problem import Problem, gpt2_small
from benchmarks.sweeps import TOLERANCE, Line, log, write_json
from crosspatch.attribution.setup import Setup
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.places import read_place
from crosspatch.features import bases_of, feature_edges, feature_effects
from crosspatch.features.basis import Bases
from crosspatch.model import record

WIDTH, ACTIVE = 4096, 2.0  # features are active above two standard deviations: 2.3 % of them, about 93
STEPS, CHOSEN = 10, 100
FLOOR, SPLICED, ONE, BACKWARDS = (
    "a forward and a backward pass and the encoders' products",
    "the published procedure, all dictionaries in the forward pass",
    "the same with the dictionary of the place that is moved only",
    "one backward pass per (position, node)",
)


@dataclass(frozen=True)
class Size:
    """Layers of GPT-2 small's sizes, pairs, tokens; prompts of a pair differ from the fourth token on."""

    layers: int
    pairs: int
    length: int = 16


SIZES = {"nodes": Size(12, 32), "ig": Size(4, 4), "edges": Size(4, 4, 24)}


class Work(NamedTuple):
    """One problem with dictionaries of features that mean nothing, at the paper's places."""

    problem: Problem
    setup: Setup
    bases: Bases
    dictionaries: dict[str, Dictionary]


def places(layers: int) -> list[str]:
    """Input, attention and MLP outputs, outputs of blocks."""
    return ["input", *(name for i in range(layers) for name in (f"a{i}", f"m{i}", f"r{i}.post"))]


def work(size: Size) -> Work:
    problem = gpt2_small(size.pairs, size.length, 4, 0, n_layer=size.layers)
    setup = setup_of(problem)
    run = record(setup.model, problem.clean.tolist())
    generator = torch.Generator().manual_seed(0)
    made = {}
    for place in places(size.layers):
        x = read_place(run, [place])
        mean, d = x.mean(0), x.shape[1]
        rows = torch.nn.functional.normalize(torch.randn(WIDTH, d, generator=generator), dim=1)
        spread = ((x - mean) @ rows.T).std(0)
        made[place] = Dictionary(
            rows, -ACTIVE * spread, rows, mean, torch.zeros(WIDTH), (place,), (place,), input_bias=mean
        )
    return Work(problem, setup, bases_of(setup.model, made), made)


def effects(w: Work, **how: object) -> Tensor:
    """Mean effects of all nodes at all places, one after another."""
    found = feature_effects(w.setup, w.bases, "paired", **how)  # type: ignore[arg-type]
    return torch.from_numpy(np.concatenate([found.mean[place][0] for place in found.places]))


def plain_effects(plain: PlainFeatures, gradients: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([plain.effects(place, gradients[place]) for place in plain.dictionaries])


Side = Callable[[], Tensor]


@dataclass
class Case:
    """Both sides, and how often the other one is run.

    Args:
        peer_name: what it is.
        check: gives the numbers that ours must give, if the other side gives none.
        floor: operations that cannot be done without.
    """

    ours: Side
    peer: Side
    peer_name: str
    slow: bool
    check: Side | None = None
    floor: float | None = None


def nodes() -> Case:
    w = work(SIZES["nodes"])
    plain = PlainFeatures(w.problem, w.dictionaries)
    flat = [{place: x.flatten(0, 1) for place, x in run.items()} for run in (plain.clean, plain.corrupt)]

    def floor() -> Tensor:
        forward_and_backward(w.problem)
        with torch.no_grad():
            for run in flat:
                for place, dictionary in w.dictionaries.items():
                    linear(run[place], dictionary.encoder, dictionary.encoder_bias)
        return torch.empty(0)

    return Case(lambda: effects(w, method="atp"), floor, FLOOR, False, lambda: plain_effects(plain, plain.atp()))


def forward_and_backward(problem: Problem) -> None:
    """To the activations, not to the parameters; logits at the last position only."""
    hf, index = problem.hf.requires_grad_(False), torch.arange(len(problem.clean))
    embedded = hf.get_input_embeddings()(problem.clean).requires_grad_(True)
    logits = hf(inputs_embeds=embedded, logits_to_keep=1).logits[:, -1]
    (logits[index, problem.right] - logits[index, problem.wrong]).sum().backward()


def ig_operations(size: Size, d: int = 768) -> float:
    """The fewest: from its place on, every step runs the blocks above forward and backward to the activations. Of the
    last block all tokens need keys and values only, a sixth of its products."""
    last = size.layers - 1
    above = [(last - 1 - i) + 1 / 6 if i < last else 0.0 for i in range(size.layers)]  # behind block i
    blocks = above[0] + 1 + sum(3 * rest + (2 / 3 if i < last else 0.0) for i, rest in enumerate(above))
    return 2.0 * STEPS * 24 * d**2 * size.pairs * size.length * blocks


def ig(others: bool) -> Case:
    size = SIZES["ig"]
    w = work(size)
    plain = PlainFeatures(w.problem, w.dictionaries)
    return Case(
        lambda: effects(w, method="ig", steps=STEPS, rule="right"),
        lambda: plain_effects(plain, plain.ig(STEPS, others)),
        SPLICED if others else ONE,
        True,
        floor=ig_operations(size),
    )


def edges() -> Case:
    w = work(SIZES["edges"])
    plain = PlainFeatures(w.problem, w.dictionaries)
    chosen = feature_effects(w.setup, w.bases, "paired").top(CHOSEN)
    some = feature_edges(w.setup, w.bases, chosen)

    def ours() -> Tensor:
        return torch.from_numpy(feature_edges(w.setup, w.bases, chosen).values.mean(0))

    log.print(f"edges: {chosen.n_features} features and {chosen.n_errors} error terms, {len(some)} edges")
    return Case(ours, lambda: plain.edges(chosen, some.up.tolist(), some.down.tolist()), BACKWARDS, True)


CASES: dict[str, Callable[[], Case]] = {
    "nodes": nodes,
    "ig": lambda: ig(True),
    "ig_one": lambda: ig(False),
    "edges": edges,
}
PARTS = {"nodes": ("nodes",), "ig": ("ig", "ig_one"), "edges": ("edges",), "training": ()}


def run_case(name: str, args: argparse.Namespace) -> Line:
    """Warm up, take turns, compare."""
    log.print(f"{name}: warming up")
    case = CASES[name]()
    case.ours()
    if not case.slow:
        case.peer()
    wanted = None if case.check is None else case.check()
    ours_s, peer_s, fractions = [], [], []
    for turn in range(args.repeats):
        before = matmul_rate(768, 3072)
        seconds, mine = timed(case.ours)
        ours_s.append(seconds)
        if case.floor is not None:
            fractions.append(case.floor / ((before + matmul_rate(768, 3072)) / 2) / seconds)
        if turn < (1 if case.slow else args.repeats):
            seconds, theirs = timed(case.peer)
            peer_s.append(seconds)
        log.print(f"{name}: turn {turn + 1} of {args.repeats}: ours {ours_s[-1]:.3f} s, peer {peer_s[-1]:.3f} s")
    wanted = theirs if wanted is None else wanted
    log.print(f"{name}: largest number {wanted.abs().max():.3f}")
    mine_s, theirs_s = statistics.median(ours_s), statistics.median(peer_s)
    floor = statistics.median(fractions) if fractions else None
    difference = (mine - wanted).abs().max().item()
    peak = alone(peak_of, name, args.threads)
    return Line(name, mine_s, case.peer_name, theirs_s, theirs_s / mine_s, floor, difference, peak)


def peak_of(name: str, threads: int) -> float:
    """Memory of our side above model and dictionaries, in a process of its own."""
    torch.set_num_threads(threads)
    case = CASES[name]()
    with peak_memory() as found:
        case.ours()
    return found.mib


def training(args: argparse.Namespace) -> list[Line]:
    """Tokens per second as lines of seconds per million tokens: everything, and the training step alone."""
    lines = []
    for architecture in ("topk", "standard"):
        sides = Sides(architecture)
        runs = {"ours": sides.ours, "dictionary-learning": sides.dictionary_learning, "sae-lens": sides.sae_lens}
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for turn in range(args.training_repeats):
            for name, run in runs.items():
                rates[name].append(quietly(run).rates())
                said = "{:,.0f} tokens/s, the step alone {:,.0f}".format(*rates[name][-1])
                log.print(f"{architecture}: turn {turn + 1} of {args.training_repeats}: {name} {said}")
        middle = {
            name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in rates.items()
        }
        for i, part in enumerate(("", "_step")):
            for peer in list(runs)[1:]:
                mine, theirs = 1e6 / middle["ours"][i], 1e6 / middle[peer][i]
                ratio = theirs / mine
                lines.append(Line(f"{architecture}{part}", mine, peer, theirs, ratio, None, sides.difference(), None))
    return lines


def describe(line: Line) -> str:
    assert line.peer_s is not None and line.ratio is not None
    agree = f", differ by at most {line.max_abs_diff:.1e}"
    if line.peak_mib is None:
        rates = f"ours {1e6 / line.ours_s:,.0f} tokens/s, {line.peer} {1e6 / line.peer_s:,.0f}"
        return f"{line.name}: {rates}: {line.ratio:.2f} times faster{agree}"
    times = f"{1 / line.ratio:.2f} of them" if line.peer == FLOOR else f"{line.ratio:.1f} times faster"
    floor = "" if line.floor_fraction is None else f", {line.floor_fraction:.2f} of the floor"
    sides = f"ours {line.ours_s:.3f} s, {line.peer} {line.peer_s:.3f} s"
    return f"{line.name}: {sides}: {times}{floor}{agree}, {line.peak_mib:.0f} MiB"


def main() -> int:
    """Run what the command line asks for; 1 if the numbers of the two sides do not agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the lines there, as a JSON list")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of ours; slow procedures get one (default: 5)")
    parser.add_argument("--training-repeats", type=int, default=2, help="turns of every trainer (default: 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [run_case(name, args) for part in args.only for name in PARTS[part]]
    if "training" in args.only:
        lines += training(args)
    for line in lines:
        print(describe(line))
    if args.json:
        write_json(args.json, lines)
    return int(any(not (line.max_abs_diff or 0.0) <= TOLERANCE for line in lines))


if __name__ == "__main__":
    sys.exit(main())
