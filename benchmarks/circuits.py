"""Circuits: edge attribution, exact evaluation and exact edge effects, against plain passes, plain hooks and a peer.

    .venv-bench/bin/python -m benchmarks.circuits --json out/benchmarks/circuits.json --only circuit frontier

Both sides work on the same weights and tokens and take turns. Evaluating a circuit is stated in plain forward passes of
the same prompts on the same model, as its authors ship it; both plain runs of the pairs are recorded beforehand. Plain
hooks are exact edge patching as a careful user writes it, on the bare model and with TransformerLens: both plain runs
are cached once, and each edge costs one forward pass of the clean prompts in which one input of one head or MLP is made
anew. Attribution is stated in what it cannot do without, two forward passes and one backward pass to the activations of
the bare model; TransformerLens' attribution is timed on two of the pairs, since it takes them one by one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import crosspatch as cp
from benchmarks.gradients import bare_passes, eap, transformer_lens_eap
from benchmarks.measure import alone, peak_memory, timed
from benchmarks.problem import Problem, gpt2_small
from benchmarks.sweeps import TOLERANCE, Line, log, write_json
from crosspatch.attribution.exact import exact_edges
from crosspatch.attribution.recorded import record_pairs
from crosspatch.attribution.setup import Setup
from crosspatch.circuits.masked import run_masks
from crosspatch.graph import EdgeTable, edge_table
from crosspatch.metrics import LogitDiff, Targets

N_PAIRS, LENGTH, FIRST = 32, 16, 4
CIRCUIT = 200
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # shares of all edges, as MIB has them
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 64, "vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 0}
SMALL_PAIRS = 8
PEER_PAIRS = 2
PLAIN, HOOKS, BARE = "one plain forward pass", "plain hooks", "two forward passes and a backward pass"
PEER = "TransformerLens attribution_patch"
PASSES = (PLAIN, BARE)
Side = Callable[[], Tensor]


def setup_of(problem: Problem) -> Setup:
    """The problem's pairs with the logit difference at the last token."""
    model = cp.load(problem.hf, problem.tokenizer, name="gpt2-random")
    n, length = problem.clean.shape
    right, wrong = (torch.tensor(ids)[:, None] for ids in (problem.right, problem.wrong))
    return Setup(
        model,
        problem.clean.tolist(),
        problem.corrupt.tolist(),
        [(length - 1,)] * n,
        [tuple(range(length))] * n,
        LogitDiff(),
        Targets(right, wrong),
        [{} for _ in range(n)],
        ["random"] * n,
    )


def nested(table: EdgeTable, sizes: list[int], seed: int = 0) -> list[np.ndarray]:
    """Circuits of whole random paths from the input to the logits, each part of the next, of exactly these sizes."""
    draw = random.Random(seed)
    readers: dict[int, list[int]] = {}  # sender -> its own receivers
    for receiver, nodes in enumerate(table.node_of_receiver):
        for node in nodes:
            readers.setdefault(node, []).append(receiver)
    keep, found, count = np.zeros_like(table.exists), [], 0
    for size in sorted(sizes):
        if size >= len(table):
            keep, count = table.exists.copy(), len(table)
        while count < size:
            receiver = len(table.receivers) - 1
            while count < size:
                sender = draw.randrange(int(table.reach[receiver]))
                count += not keep[sender, receiver]
                keep[sender, receiver] = True
                if sender == 0:
                    break
                receiver = draw.choice(readers[sender])
        found.append(keep.copy())
    return found


def masks_against_forward(sizes: Callable[[EdgeTable], list[int]]) -> tuple[Side, Side]:
    """Circuits of these sizes in one call, and one plain forward pass."""
    setup = setup_of(problem := gpt2_small(N_PAIRS, LENGTH, FIRST))
    table = edge_table(setup.model.shape)
    masks, recorded = nested(table, sizes(table)), record_pairs(setup)

    def ours() -> Tensor:
        return torch.from_numpy(run_masks(setup, masks, recorded=recorded))

    @torch.inference_mode()
    def plain() -> Tensor:
        return problem.hf(problem.clean).logits

    return ours, plain


class HookedEdges:
    """Exact edge patching of a GPT-2 by forward hooks on its own modules."""

    def __init__(self, setup: Setup, problem: Problem) -> None:
        self.setup, self.problem, self.hf = setup, problem, problem.hf
        self.n_heads, self.d_head = setup.model.shape.n_heads, setup.model.shape.d_head
        self.index = torch.arange(len(problem.clean))
        self.right, self.wrong = torch.tensor(problem.right), torch.tensor(problem.wrong)

    def metric(self, logits: Tensor) -> Tensor:
        return logits[self.index, -1, self.right] - logits[self.index, -1, self.wrong]

    @torch.inference_mode()
    def written(self, tokens: Tensor) -> list[Tensor]:
        """What every sender writes in a plain run, in the order of the edge table."""
        found: list[Tensor] = []

        def heads(block: Any, z: Tensor) -> None:
            for head in range(self.n_heads):
                part = slice(head * self.d_head, (head + 1) * self.d_head)
                found.append(z[..., part] @ block.attn.c_proj.weight[part])

        with ExitStack() as stack:
            first = self.hf.transformer.h[0]
            stack.callback(first.register_forward_pre_hook(lambda _, a: found.append(a[0].clone())).remove)
            for block in self.hf.transformer.h:
                hook = block.attn.c_proj.register_forward_pre_hook(lambda _, a, b=block: heads(b, a[0]))
                stack.callback(hook.remove)
                stack.callback(block.mlp.register_forward_hook(lambda _, a, out: found.append(out.clone())).remove)
            self.hf(tokens)
        return found

    @torch.inference_mode()
    def sweep(self) -> Tensor:
        """`metric(clean) - metric(edge cut)` of every edge, one forward pass each."""
        table = edge_table(self.setup.model.shape)
        clean, corrupt = self.written(self.problem.clean), self.written(self.problem.corrupt)
        base = self.metric(self.hf(self.problem.clean).logits)
        rows = []
        for receiver, site in enumerate(table.receivers):
            for sender in range(int(table.reach[receiver])):
                change = corrupt[sender] - clean[sender]
                rows.append(base - self.metric(self.cut(site, change)))
        return torch.stack(rows, 1)

    def cut(self, site: cp.Site, change: Tensor) -> Tensor:
        """Logits of a pass in which one receiver's input is changed."""
        model = self.hf.transformer
        if site.kind == "logits":
            hook = model.ln_f.register_forward_pre_hook(lambda _, args: (args[0] + change,))
        elif site.kind == "mlp_out":
            hook = model.h[site.layer].ln_2.register_forward_pre_hook(lambda _, args: (args[0] + change,))
        else:
            block = model.h[site.layer]
            stream: list[Tensor] = []
            start = ("qkv".index(site.kind) * self.n_heads + (site.index or 0)) * self.d_head
            part = slice(start, start + self.d_head)

            def write(_: torch.nn.Module, args: tuple, out: Tensor) -> Tensor:
                out = out.clone()
                normed = torch.nn.functional.layer_norm(
                    stream[0] + change, (change.shape[-1],), block.ln_1.weight, block.ln_1.bias, block.ln_1.eps
                )
                out[..., part] = normed @ block.attn.c_attn.weight[:, part] + block.attn.c_attn.bias[part]
                return out

            with ExitStack() as stack:
                stack.callback(block.register_forward_pre_hook(lambda _, args: stream.append(args[0])).remove)
                stack.callback(block.attn.c_attn.register_forward_hook(write).remove)
                return self.hf(self.problem.clean).logits
        try:
            return self.hf(self.problem.clean).logits
        finally:
            hook.remove()


def sweep(other: Callable[[Setup, Problem], Side]) -> tuple[Side, Side]:
    """The exact effect of every edge of a model with four layers."""
    problem = gpt2_small(SMALL_PAIRS, LENGTH, FIRST, 0, **SMALL)
    setup = setup_of(problem)
    return lambda: torch.from_numpy(exact_edges(setup)), other(setup, problem)


def peer_hooks(setup: Setup, problem: Problem) -> Side:
    """The same edges by TransformerLens' hooks."""
    from benchmarks.peer import peer_edges

    return peer_edges(problem, edge_table(setup.model.shape))


def gradients_against_passes(steps: int | None) -> tuple[Side, Side]:
    """EAP, or EAP-IG in some steps, and the passes of the bare model that EAP needs."""
    problem = gpt2_small(N_PAIRS, LENGTH, FIRST)
    setup = setup_of(problem)

    def plain() -> Tensor:
        bare_passes(problem)
        return torch.empty(0)

    return lambda: eap(setup, steps), plain


def gradients_against_peer() -> tuple[Side, Side]:
    """EAP on a few pairs, one call for all of ours; the peer takes pairs one by one."""
    problem = gpt2_small(PEER_PAIRS, LENGTH, FIRST)
    setup = setup_of(problem)
    return lambda: eap(setup), transformer_lens_eap(problem, edge_table(setup.model.shape))


CASES: dict[str, tuple[Callable[[], tuple[Side, Side]], str]] = {
    "eap": (lambda: gradients_against_passes(None), BARE),
    "eap_ig": (lambda: gradients_against_passes(5), BARE),
    "eap_peer": (gradients_against_peer, PEER),
    "circuit": (lambda: masks_against_forward(lambda _: [CIRCUIT]), PLAIN),
    "frontier": (lambda: masks_against_forward(lambda table: [int(k * len(table)) for k in GRID]), PLAIN),
    "edges": (lambda: sweep(lambda setup, problem: HookedEdges(setup, problem).sweep), HOOKS),
    "edges_peer": (lambda: sweep(peer_hooks), "TransformerLens run_with_hooks"),
}
"""Name -> (makes both sides, what the other side is)."""


def run_case(case: str, args: argparse.Namespace) -> Line:
    """Warm up, take turns, compare."""
    make, peer_name = CASES[case]
    ours, peer = make()
    log.print(f"{case}: warming up")
    ours()
    if peer_name in PASSES:
        peer()
    ours_s, peer_s, difference = [], [], None
    for turn in range(args.repeats):
        seconds, mine = timed(ours)
        ours_s.append(seconds)
        if turn < (args.repeats if peer_name in PASSES else args.peer_repeats):
            seconds, theirs = timed(peer)
            peer_s.append(seconds)
            if peer_name not in PASSES:
                difference = (mine - theirs).abs().max().item()
        log.print(f"{case}: turn {turn + 1} of {args.repeats}: ours {ours_s[-1]:.3f} s, peer {peer_s[-1]:.3f} s")
    mine_s, theirs_s = statistics.median(ours_s), statistics.median(peer_s)
    return Line(case, mine_s, peer_name, theirs_s, theirs_s / mine_s, None, difference, alone(peak, case, args.threads))


def peak(case: str, threads: int) -> float:
    """Memory of our side above the model (and the recorded runs), in a process of its own."""
    torch.set_num_threads(threads)
    ours, _ = CASES[case][0]()
    with peak_memory() as found:
        ours()
    return found.mib


def main() -> int:
    """Run what the command line asks for; 1 if the numbers of the two sides do not agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.circuits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the lines there, as a JSON list")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases to run (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of ours (default: 3)")
    parser.add_argument("--peer-repeats", type=int, default=1, help="of them, turns of a slow peer too (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [run_case(case, args) for case in args.only]
    for line in lines:
        assert line.peer_s is not None
        agree = "" if line.max_abs_diff is None else f", differ by at most {line.max_abs_diff:.1e}"
        times = f"{line.ours_s / line.peer_s:.2f} of them" if line.peer in PASSES else f"{line.ratio:.1f} times faster"
        print(f"{line.name}: ours {line.ours_s:.3f} s, {line.peer} {line.peer_s:.3f} s: {times}{agree}")
    if args.json:
        write_json(args.json, lines)
    return int(any(line.max_abs_diff is not None and not line.max_abs_diff <= TOLERANCE for line in lines))


if __name__ == "__main__":
    sys.exit(main())
