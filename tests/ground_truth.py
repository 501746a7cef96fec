"""Transformers with known circuits: those in `shared/ground-truth`, and a tiny one that is written here by hand."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crosspatch.compiled import KnownCircuit, load_compiled, read_known_circuit
from crosspatch.model import Model
from crosspatch.paths import Pairs, PathSet, paths

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "ground-truth"
PROGRAMS = ("reverse", "xproportion", "histogram", "shuffle-dyck2")
needs_ground_truth = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the compiled transformers (shared/ground-truth beside the repository) are not here"
)


@lru_cache
def compiled(program: str) -> tuple[Model, KnownCircuit]:
    """A compiled transformer and what is known of it."""
    return load_compiled(FOLDER / program), read_known_circuit(FOLDER / program)


@lru_cache
def weights_of(program: str) -> dict[str, Tensor]:
    return load_file(FOLDER / program / "model.safetensors")


def resample_pairs(known: KnownCircuit, shift: int = 1) -> Pairs:
    """Every example against the one that it is resampled from, read at all positions after BOS."""
    reference, counter = known.tokens(), known.tokens(shift)
    n, length = len(reference), len(reference[0])
    return Pairs(reference, counter, [tuple(range(1, length))] * n, [(-1,) * (length - 1)] * n,
                 [[]] * n, [[]] * n, [{"END": (length - 1, length)}] * n, [str(i) for i in range(n)],
                 f"{known.program.name}, example i against i + {shift}")  # fmt: skip


def through(edge: str) -> PathSet:
    """All paths along one edge, such as `a0.h0->m0`; cutting the edge is `~through(edge)`."""
    sender, _, receiver = edge.partition("->")
    before = "" if sender == "input" else "** -> "
    after = "" if receiver == "logits" else " -> ** -> logits"
    return paths(f"{before}{sender} -> {receiver}{after}")


def masked_output(
    weights: Mapping[str, Tensor], tokens: Sequence[Sequence[int]], cut: Collection[str], instead: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The forward pass of the ground truth, written out: what cutting edges does, whatever stands in for them.

    Shares nothing with the package. Bidirectional models only.

    Args:
        weights: tensors of the folder.
        cut: edges whose receiver reads `instead[sender] [example, position, d_model]` in place of the sender's output.

    Returns:
        the output `[example, position, column]`, and what every node writes.
    """
    ids = torch.tensor(tokens)
    wrote = {"input": weights["embed.W_E"][ids] + weights["pos_embed.W_pos"][: ids.shape[1]]}

    into: dict[str, list[str]] = {}
    for edge in cut:
        sender, _, receiver = edge.partition("->")
        into.setdefault(receiver, []).append(sender)

    def read(receiver: str) -> Tensor:
        stream = sum(wrote.values(), torch.zeros(()))
        return stream + sum((instead[u] - wrote[u] for u in into.get(receiver, ())), torch.zeros(()))

    for layer in range(sum(name.endswith("W_in") for name in weights)):
        heads = {}
        attn, mlp = ({n: weights[f"blocks.{layer}.{part}.W_{n}"] for n in names} for part, names in
                     (("attn", ("Q", "K", "V", "O")), ("mlp", ("in", "out"))))  # fmt: skip
        for h in range(len(attn["Q"])):
            name = f"a{layer}.h{h}"
            q, k, v = (read(f"{name}.{x.lower()}") @ attn[x][h] for x in "QKV")
            pattern = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
            heads[name] = pattern @ v @ attn["O"][h]
        wrote |= heads
        wrote[f"m{layer}"] = torch.relu(read(f"m{layer}") @ mlp["in"]) @ mlp["out"]
    return read("logits") @ weights["unembed.W_U"], wrote


SHARE_EDGES = ("tok_embed->a0.h0<v>", "a0.h0->m0", "m0->logits")
IS_A, MEAN_A, OUT = range(3)


def write_share(folder: Path) -> Path:
    """A program by hand, in the layout of the ground truth: the share of `a` among all tokens.

    One layer of two heads: `a0.h0` attends to all tokens alike and writes the mean of "is a", `m0` copies it to the
    output; `a0.h1` is all zeros, and the positions are read by nothing. Resampling any of the three edges changes the
    output by the difference of two examples' shares, cutting one to zero by the share.
    """
    sizes = {"n_layers": 1, "n_heads": 2, "d_model": 4, "d_head": 2, "d_mlp": 3, "n_ctx": 4, "d_vocab": 3, "d_out": 1}
    config = {"name": "share", "rule": "the share of a", **sizes, "causal": False, "layer_norm": False,
              "activation": "relu", "attention_scale": "1/sqrt(d_head)", "output_kind": "numerical",
              "vocab": ["BOS", "a", "b"], "output_values": None,
              "residual_labels": ["is_a", "mean_a", "out", "position"]}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (3, 4), "pos_embed.W_pos": (4, 4), "unembed.W_U": (4, 1)}
    attn = {f"W_{p}": (2, 4, 2) for p in "QKV"} | {f"b_{p}": (2, 2) for p in "QKV"} | {"W_O": (2, 2, 4), "b_O": (4,)}
    mlp = {"W_in": (4, 3), "b_in": (3,), "W_out": (3, 4), "b_out": (4,)}
    shapes |= {f"blocks.0.attn.{n}": s for n, s in attn.items()} | {f"blocks.0.mlp.{n}": s for n, s in mlp.items()}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state["embed.W_E"][1, IS_A] = 1
    state["pos_embed.W_pos"][:, 3] = torch.arange(4.0)
    state["blocks.0.attn.W_V"][0, IS_A, 0] = state["blocks.0.attn.W_O"][0, 0, MEAN_A] = 1
    state["blocks.0.mlp.W_in"][MEAN_A, 0] = state["blocks.0.mlp.W_out"][0, OUT] = 1
    state["unembed.W_U"][OUT, 0] = 1
    inputs = [[0, 1, 1, 2], [0, 2, 1, 2], [0, 2, 2, 2], [0, 1, 1, 1]]
    shares = [ids.count(1) / 4 for ids in inputs]
    apart = [abs(b - a) for a, b in zip(shares, [*shares[1:], shares[0]], strict=True)]
    effects = {"resample_mean_abs": sum(apart) / 4, "resample_max_abs": max(apart), "resample_mean": 0.0,
               "zero_mean_abs": sum(shares) / 4, "zero_max_abs": max(shares), "mean_mean_abs": 0.25,
               "mean_max_abs": 0.375, "zero_any_length_max_abs": max(shares)}  # fmt: skip
    yes = dict.fromkeys(("resample", "zero", "mean"), True)
    edge: dict[str, Any] = {"necessary": yes | {"zero_any_length": True}, "effects": effects}
    circuit = {
        "threshold": 0.001,
        "nodes": [{"name": n, "effects": effects} for n in ("tok_embed", "a0.h0", "m0")] + [{"name": "logits"}],
        "edges": [{"name": name, "in_minimal": yes, **edge} for name in SHARE_EDGES],
        "edges_single_input": [{"name": "input->a0.h0<v>", **edge}],
    }
    rows = [{"token_ids": ids, "target": [share] * 3, "output": [[share]] * 4}
            for ids, share in zip(inputs, shares, strict=True)]  # fmt: skip
    examples = {"examples": rows, "short_examples": [{"token_ids": [0, 1], "target": [0.5], "output": [[0.5]] * 2}]}
    folder.mkdir(exist_ok=True)
    for name, data in (("config", config), ("circuit", circuit), ("examples", examples)):
        (folder / f"{name}.json").write_text(json.dumps(data))
    save_file(state, folder / "model.safetensors")
    return folder
