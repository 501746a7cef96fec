"""The peer: TransformerLens' own activation patching functions, used as its documentation shows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.problem import Problem

FUNCTIONS = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "z": patching.get_act_patch_attn_head_out_all_pos,
    "q": patching.get_act_patch_attn_head_q_all_pos,
    "k": patching.get_act_patch_attn_head_k_all_pos,
    "v": patching.get_act_patch_attn_head_v_all_pos,
    "mlp_out": patching.get_act_patch_mlp_out,
}


def peer_sweeps(problem: Problem) -> Callable[[str], torch.Tensor]:
    """A function from the kind of sweep to the patched metric `[layer, place, example]`.

    What it times is what a user writes: cache the clean run, then the sweep on the corrupt tokens, without autograd.
    """
    with tempfile.TemporaryDirectory() as folder:  # the loader reads the config by name; a folder needs no network
        problem.hf.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, dtype=torch.float32, device="cpu")
    bridge.eval()
    bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    index = torch.arange(len(problem.clean))
    right, wrong = torch.tensor(problem.right), torch.tensor(problem.wrong)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[index, -1, right] - logits[index, -1, wrong]

    def sweep(kind: str) -> torch.Tensor:
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(problem.clean)
            return FUNCTIONS[kind](bridge, problem.corrupt, cache, metric, reduce="none").values

    return sweep
