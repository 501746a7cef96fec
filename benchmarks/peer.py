"""The peer: TransformerLens' own activation patching functions, used as its documentation shows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.problem import Problem
from crosspatch.graph import EdgeTable, Site

FUNCTIONS = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "z": patching.get_act_patch_attn_head_out_all_pos,
    "q": patching.get_act_patch_attn_head_q_all_pos,
    "k": patching.get_act_patch_attn_head_k_all_pos,
    "v": patching.get_act_patch_attn_head_v_all_pos,
    "mlp_out": patching.get_act_patch_mlp_out,
}


def bridge_of(problem: Problem) -> TransformerBridge:
    """The problem's model as TransformerLens sees it, its weights as they are."""
    with tempfile.TemporaryDirectory() as folder:  # the loader reads the config by name; a folder needs no network
        problem.hf.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, dtype=torch.float32, device="cpu")
    bridge.eval()
    bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    return bridge


def peer_sweeps(problem: Problem) -> Callable[[str], torch.Tensor]:
    """A function from the kind of sweep to the patched metric `[layer, place, example]`.

    What it times is what a user writes: cache the clean run, then the sweep on the corrupt tokens, without autograd.
    """
    bridge = bridge_of(problem)
    index = torch.arange(len(problem.clean))
    right, wrong = torch.tensor(problem.right), torch.tensor(problem.wrong)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[index, -1, right] - logits[index, -1, wrong]

    def sweep(kind: str) -> torch.Tensor:
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(problem.clean)
            return FUNCTIONS[kind](bridge, problem.corrupt, cache, metric, reduce="none").values

    return sweep


def peer_edges(problem: Problem, table: EdgeTable) -> Callable[[], torch.Tensor]:
    """`metric(clean) - metric(edge cut)` `[example, edge]`: both runs cached, then `run_with_hooks` for each edge."""
    bridge = bridge_of(problem)
    bridge.set_use_split_qkv_input(True)
    bridge.set_use_hook_mlp_in(True)
    bridge.set_use_attn_result(True)
    index = torch.arange(len(problem.clean))
    right, wrong = torch.tensor(problem.right), torch.tensor(problem.wrong)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[index, -1, right] - logits[index, -1, wrong]

    def written(cache: Any, site: Site) -> torch.Tensor:
        if site.kind == "input":
            return cache["blocks.0.hook_resid_pre"]
        if site.kind == "mlp_out":
            return cache[f"blocks.{site.layer}.hook_mlp_out"]
        return cache[f"blocks.{site.layer}.attn.hook_result"][:, :, site.index]

    def read(site: Site) -> str:
        if site.kind == "logits":
            return f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
        return f"blocks.{site.layer}." + ("hook_mlp_in" if site.kind == "mlp_out" else f"hook_{site.kind}_input")

    def add(at: Any, change: torch.Tensor, x: torch.Tensor, hook: Any) -> torch.Tensor:
        x = x.clone()
        x[at] += change
        return x

    def sweep() -> torch.Tensor:
        with torch.inference_mode():
            logits, clean = bridge.run_with_cache(problem.clean)
            _, corrupt = bridge.run_with_cache(problem.corrupt)
            base, rows = metric(logits), []
            for receiver, site in enumerate(table.receivers):
                at = (slice(None), slice(None), site.index) if site.kind in "qkv" else ...
                for sender in table.senders[: int(table.reach[receiver])]:
                    hook = (read(site), partial(add, at, written(corrupt, sender) - written(clean, sender)))
                    rows.append(base - metric(bridge.run_with_hooks(problem.clean, fwd_hooks=[hook])))
            return torch.stack(rows, 1)

    return sweep
