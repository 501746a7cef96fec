"""Path patching: Crosspatch against plain hooks, TransformerLens, the literal construction, and plain forward passes.

    .venv-bench/bin/python -m benchmarks.paths --json out/benchmarks/paths.json --only logits edges

Both sides compute the same numbers from the same weights and tokens and take turns. Plain hooks are the three-pass
procedure of Wang et al. 2022 as a careful user writes it: both plain runs are cached once, so that a sender costs one
further pass (into the logits) or two (into a head's query).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

import crosspatch as cp
from benchmarks.measure import alone, peak_memory, timed
from benchmarks.problem import Problem, gpt2_small
from benchmarks.sweeps import TOLERANCE, Line, log, write_json
from crosspatch.graph import edges
from crosspatch.paths import Pairs, evaluate, from_edges, path_patch, paths
from crosspatch.paths.automaton import COUNTER, REFERENCE
from crosspatch.paths.evaluate import make_plan
from crosspatch.paths.places import first_difference
from crosspatch.paths.readers import Readers

N_PAIRS, WINDOW_PAIRS, RECEIVER = 16, 4, (9, 9)
HOOKS, EDGE_SHARE, SOURCES = "plain hooks", 0.3, [(8, 0), (8, 5), (9, 3)]
EDGES = {"edges": EDGE_SHARE, "edges_beyond_runs": EDGE_SHARE, "few_beyond_runs": 0.02, "most_beyond_runs": 0.9}
"""Edge sets, and the share of all edges that is in them: the whole call, and less both plain runs, which all
hypotheses on the same pairs share."""
CASES = ("logits", "logits_frozen", "query", "query_frozen", *EDGES, "windows")
Side = Callable[[], Tensor]


def pairs_of(problem: Problem, reference: Tensor, other: Tensor) -> Pairs:
    n, length = reference.shape
    return Pairs(
        reference.tolist(),
        other.tolist(),
        [(length - 1,)] * n,
        [(token,) for token in problem.right],
        [[token] for token in problem.right],
        [[token] for token in problem.wrong],
        [{} for _ in range(n)],
        [str(i) for i in range(n)],
        "random tokens",
    )


def ours_senders(problem: Problem, receivers: list[str], mlps: str) -> tuple[Side, list[tuple[int, int]]]:
    """Logit difference of every pair when one sender's direct paths into the receivers are corrupted."""
    model = cp.load(problem.hf, problem.tokenizer, name="gpt2-small-random")
    pairs = pairs_of(problem, problem.clean, problem.corrupt)

    def run() -> Tensor:
        return torch.from_numpy(path_patch(model, pairs, "a*.h*", receivers, mlps=mlps).effect)

    shape = model.shape
    last = shape.n_layers if receivers == ["logits"] else RECEIVER[0]
    return run, [(layer, head) for layer in range(last) for head in range(shape.n_heads)]


class Hooked:
    """GPT-2 under forward hooks on its own modules."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.hf = problem, problem.hf
        self.blocks = problem.hf.transformer.h
        self.d_head = problem.hf.config.n_embd // problem.hf.config.n_head
        self.index = torch.arange(len(problem.clean))
        self.right, self.wrong = torch.tensor(problem.right), torch.tensor(problem.wrong)

    @torch.inference_mode()
    def cache(self, tokens: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Head outputs and MLP outputs of a plain run, and its metric."""
        z: list[Tensor] = []
        mlp: list[Tensor] = []
        with ExitStack() as stack:
            for block in self.blocks:
                stack.callback(block.attn.c_proj.register_forward_pre_hook(lambda _, a: z.append(a[0].clone())).remove)
                stack.callback(block.mlp.register_forward_hook(lambda _, a, out: mlp.append(out.clone())).remove)
            logits = self.hf(tokens).logits
        return z, mlp, self.metric(logits)

    def metric(self, logits: Tensor) -> Tensor:
        return logits[self.index, -1, self.wrong] - logits[self.index, -1, self.right]

    @torch.inference_mode()
    def frozen_run(
        self, sender: tuple[int, int], clean: tuple, corrupt: tuple, freeze_mlps: bool, catch: list[Tensor] | None
    ) -> Tensor:
        """Pass B: the sender from the corrupt run, all other heads (and MLPs) from the clean one."""
        layer, head = sender
        columns = slice(head * self.d_head, (head + 1) * self.d_head)
        with ExitStack() as stack:
            for at, block in enumerate(self.blocks):
                z = clean[0][at]
                if at == layer:
                    z = z.clone()
                    z[..., columns] = corrupt[0][at][..., columns]
                stack.callback(block.attn.c_proj.register_forward_pre_hook(lambda _, a, z=z: (z,)).remove)
                if freeze_mlps:
                    stack.callback(block.mlp.register_forward_hook(lambda _, a, o, m=clean[1][at]: m).remove)
            if catch is not None:
                attn = self.blocks[RECEIVER[0]].attn.c_attn
                stack.callback(attn.register_forward_hook(lambda _, a, out: catch.append(out.clone())).remove)
            return self.metric(self.hf(self.problem.clean).logits)

    @torch.inference_mode()
    def query_run(self, caught: Tensor) -> Tensor:
        """Pass C: the receiver's query from pass B, everything else live."""
        start = RECEIVER[1] * self.d_head

        def write(_: torch.nn.Module, args: tuple, out: Tensor) -> Tensor:
            out = out.clone()
            out[..., start : start + self.d_head] = caught[..., start : start + self.d_head]
            return out

        hook = self.blocks[RECEIVER[0]].attn.c_attn.register_forward_hook(write)
        try:
            return self.metric(self.hf(self.problem.clean).logits)
        finally:
            hook.remove()

    def senders(self, senders: list[tuple[int, int]], freeze_mlps: bool, query: bool) -> Tensor:
        clean, corrupt = self.cache(self.problem.clean), self.cache(self.problem.corrupt)
        rows = []
        for sender in senders:
            caught: list[Tensor] | None = [] if query else None
            value = self.frozen_run(sender, clean, corrupt, freeze_mlps, caught)
            rows.append((self.query_run(caught[0]) if caught else value) - clean[2])
        return torch.stack(rows).double()


def direct_path(problem: Problem) -> tuple[Side, Side]:
    """Some heads into every later head's query: ours, and TransformerLens' `get_act_patch_direct_path`."""
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    model = cp.load(problem.hf, problem.tokenizer, name="gpt2-small-random")
    pairs = pairs_of(problem, problem.corrupt, problem.clean)  # it puts clean values into the corrupt run
    shape = model.shape
    later = [[(a, h) for a in range(layer + 1, shape.n_layers) for h in range(shape.n_heads)] for layer, _ in SOURCES]
    sets = [
        ~paths(f"** -> a{layer}.h{head} -> a{a}.h{h}.q -> ** -> logits")
        for (layer, head), receivers in zip(SOURCES, later, strict=True)
        for a, h in receivers
    ]
    right, wrong = torch.tensor(problem.right), torch.tensor(problem.wrong)
    index = torch.arange(len(right))

    def ours() -> Tensor:
        found: dict[int, Tensor] = {}

        def on_read(readout: cp.paths.PathReadout) -> None:
            if readout.number >= 0:
                logits = model.unembed(readout.hidden, columns)
                chosen = torch.tensor(readout.pairs)
                value = logits[torch.arange(len(chosen)), place[right[chosen]]]
                value = value - logits[torch.arange(len(chosen)), place[wrong[chosen]]]
                found[readout.number] = found.get(readout.number, torch.zeros(())) + value.sum()

        evaluate(model, sets, pairs, on_read)
        return torch.stack([found[i] for i in range(len(sets))]) / len(right)

    columns = sorted({*problem.right, *problem.wrong})
    place = torch.zeros(shape.vocab, dtype=torch.long)
    place[columns] = torch.arange(len(columns))
    with tempfile.TemporaryDirectory() as folder:
        problem.hf.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, dtype=torch.float32, device="cpu")
    bridge.eval()
    bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)

    def metric(logits: Tensor) -> Tensor:
        return (logits[index, -1, right] - logits[index, -1, wrong]).mean()

    def peer() -> Tensor:
        with torch.inference_mode():
            _, clean = bridge.run_with_cache(problem.clean)
            _, corrupt = bridge.run_with_cache(problem.corrupt)
            rows = []
            for (layer, head), receivers in zip(SOURCES, later, strict=True):
                table = patching.get_act_patch_direct_path(
                    bridge, problem.corrupt, clean, corrupt, metric, layer, head, "q", verbose=False
                )
                rows += [table[a, h] for a, h in receivers]
        return torch.stack(rows)

    return ours, peer


def edge_sets(problem: Problem, share: float) -> tuple[Side, Side, Side]:
    """A random circuit; one plain forward pass of the same prompts, the unit that its cost is stated in; and the two
    plain runs within our side, which do not depend on the hypothesis."""
    model = cp.load(problem.hf, problem.tokenizer, name="gpt2-small-random")
    pairs = pairs_of(problem, problem.clean, problem.corrupt)
    draw = random.Random(0)
    chosen = from_edges([(str(u), str(v)) for u, v in edges(model.shape) if draw.random() < share])
    readers = Readers(make_plan(model, [chosen], pairs)[0], model)
    first = first_difference([pairs.reference, pairs.counterfactual])
    out: list[Tensor] = []

    def ours() -> Tensor:
        evaluate(model, [chosen], pairs, lambda readout: out.append(readout.hidden))
        return out[-1]

    @torch.inference_mode()
    def plain() -> Tensor:
        return model.hf(problem.clean, logits_to_keep=1).logits

    def runs() -> Tensor:
        run = cp.record(model, pairs.reference, read=pairs.read, keys=readers.keys(REFERENCE))
        keys = readers.keys(COUNTER)
        return cp.record(model, pairs.counterfactual, read=pairs.read, keys=keys, prefix=run, begin=first).hidden

    return ours, plain, runs


def windows() -> tuple[Side, Side]:
    """Layer-0 heads restricted to a window: the closed form, and one run of layer 0 for every position."""
    torch.manual_seed(0)
    problem = gpt2_small(
        WINDOW_PAIRS, 300, 0, n_layer=2, n_head=8, n_embd=256, vocab_size=1000, bos_token_id=0, eos_token_id=0
    )
    model = cp.load(problem.hf, problem.tokenizer, name="two layers")
    pairs = pairs_of(problem, problem.clean, problem.corrupt)
    claim = ~paths("** -> a1.h5.[q,k,v] -> logits") | paths("input -> a0.*[-2..0] -> a1.h5.[q,k,v] -> logits")
    out: list[Tensor] = []

    def ours() -> Tensor:
        evaluate(model, [claim], pairs, lambda readout: out.append(readout.hidden))
        return out[-1]

    @torch.inference_mode()
    def literal() -> Tensor:
        return torch.cat([literal_windows(problem, pair) for pair in range(WINDOW_PAIRS)])

    return ours, literal


def literal_windows(problem: Problem, pair: int) -> Tensor:
    """Final states when the input of head 1.5 at position i comes from layer-0 heads that see the reference at i-2..i
    only: layer 0 is run anew for every position, for each of q, k and v, on a prompt mixed for it."""
    model, clean, corrupt = problem.hf.transformer, problem.clean[pair : pair + 1], problem.corrupt[pair : pair + 1]
    length, d_head = clean.shape[1], model.h[0].attn.head_dim
    where = torch.arange(length)[None]

    def embedded(tokens: Tensor) -> Tensor:
        return model.wte(tokens) + model.wpe(where)

    def layer0(tokens: Tensor) -> Tensor:
        return model.h[0].attn(model.h[0].ln_1(embedded(tokens)))[0]

    def after_mlp(x: Tensor) -> Tensor:
        return model.h[0].mlp(model.h[0].ln_2(x))

    plain_r, plain_c = layer0(clean), layer0(corrupt)
    mid_c = embedded(corrupt) + plain_c
    rows = {kind: torch.empty(length, model.config.n_embd) for kind in "qkv"}
    for kind in "qkv":
        for i in range(length):
            inside = (where >= i - 2) & (where <= i)
            mixed = layer0(torch.where(inside, clean, corrupt))[0, i]
            rows[kind][i] = embedded(corrupt)[0, i] + mixed + after_mlp(mid_c)[0, i]
    mid_r = embedded(clean) + plain_r
    x_r = mid_r + after_mlp(mid_r)
    block = model.h[1]
    qkv = block.attn.c_attn(block.ln_1(x_r)).unflatten(-1, (3, -1, d_head))
    private = {kind: block.attn.c_attn(block.ln_1(rows[kind][None])).unflatten(-1, (3, -1, d_head)) for kind in "qkv"}
    q, k, v = (qkv[:, :, n].clone() for n in range(3))
    for n, (kind, value) in enumerate(zip("qkv", (q, k, v), strict=True)):
        value[:, :, 5] = private[kind][:, :, n, 5]
    z = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
    )
    # The MLP of block 1 reads the reference stream: the claim is about the head's direct path to the logits.
    z_r = torch.nn.functional.scaled_dot_product_attention(
        *(qkv[:, :, n].transpose(1, 2) for n in range(3)), is_causal=True
    )
    attn_r, attn = (block.attn.c_proj(value.transpose(1, 2).flatten(2)) for value in (z_r, z))
    out = x_r + attn + block.mlp(block.ln_2(x_r + attn_r))
    return model.ln_f(out[:, -1])


def run_case(case: str, args: argparse.Namespace) -> Line:
    """Warm up, take turns, compare."""
    problem = gpt2_small(N_PAIRS)
    peer_name = HOOKS
    if case in EDGES:
        ours, peer, runs = edge_sets(problem, EDGES[case])
        peer_name = "one plain forward pass"
    elif case == "windows":
        ours, peer = windows()
        peer_name = "literal construction"
    elif case == "query_frozen":
        ours, peer = direct_path(problem)
        peer_name = "TransformerLens get_act_patch_direct_path"
    else:
        receivers = ["logits"] if "logits" in case else [f"a{RECEIVER[0]}.h{RECEIVER[1]}.q"]
        ours, senders = ours_senders(problem, receivers, "frozen" if "frozen" in case else "direct")
        hooked = Hooked(problem)

        def peer() -> Tensor:
            return hooked.senders(senders, "frozen" in case, "query" in case)

    log.print(f"{case}: warming up")
    ours()
    if case in EDGES:
        peer()
        runs()
    ours_s, peer_s, difference = [], [], None
    for turn in range(args.repeats):
        seconds, mine = timed(ours)
        ours_s.append(seconds - timed(runs)[0] if case.endswith("beyond_runs") else seconds)
        if turn < (args.repeats if case in EDGES else args.peer_repeats):
            seconds, theirs = timed(peer)
            peer_s.append(seconds)
            if case not in EDGES:
                difference = (mine - theirs).abs().max().item()
        log.print(f"{case}: turn {turn + 1} of {args.repeats}: ours {ours_s[-1]:.3f} s, peer {peer_s[-1]:.3f} s")
    mine_s, theirs_s = statistics.median(ours_s), statistics.median(peer_s)
    return Line(case, mine_s, peer_name, theirs_s, theirs_s / mine_s, None, difference, alone(peak, case, args))


def peak(case: str, args: argparse.Namespace) -> float | None:
    """Memory of our side above the model, in a process of its own."""
    torch.set_num_threads(args.threads)
    problem = gpt2_small(N_PAIRS)
    if case in EDGES:
        ours = edge_sets(problem, EDGES[case])[0]
    elif case in ("windows", "query_frozen"):
        return None
    else:
        receivers = ["logits"] if "logits" in case else [f"a{RECEIVER[0]}.h{RECEIVER[1]}.q"]
        ours, _ = ours_senders(problem, receivers, "frozen" if "frozen" in case else "direct")
    with peak_memory() as found:
        ours()
    return found.mib


def main() -> int:
    """Run what the command line asks for; 1 if the numbers of the two sides do not agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paths", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the lines there, as a JSON list")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases to run (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of ours (default: 3)")
    parser.add_argument("--peer-repeats", type=int, default=1, help="of them, turns of the peer as well (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [run_case(case, args) for case in args.only]
    for line in lines:
        assert line.peer_s is not None
        agree = "" if line.max_abs_diff is None else f", differ by at most {line.max_abs_diff:.1e}"
        print(f"{line.name}: ours {line.ours_s:.3f} s, {line.peer} {line.peer_s:.3f} s, ratio {line.ratio:.2f}{agree}")
    if args.json:
        write_json(args.json, lines)
    return int(any(line.max_abs_diff is not None and not line.max_abs_diff <= TOLERANCE for line in lines))


if __name__ == "__main__":
    sys.exit(main())
