"""Proof, on one model, that the graph is the model: same logits, and nodes that add up to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crosspatch.errors import ModelError
from crosspatch.graph.names import Site
from crosspatch.model.model import Model
from crosspatch.model.replay import record

# Largest error, relative to the largest entry, that rounding can explain in each dtype.
# Families compute norms or softmax in float32 whatever the dtype, so that more cannot be asked of float64.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True)
class CheckItem:
    """One claim: ``error`` is the largest absolute difference over the largest absolute entry."""

    name: str
    claim: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


@dataclass(frozen=True)
class CheckReport:
    model: str
    items: tuple[CheckItem, ...]

    @property
    def passed(self) -> bool:
        return all(item.passed for item in self.items)

    def __str__(self) -> str:
        lines = [f"{self.model}: the graph {'is' if self.passed else 'is NOT'} the model"]
        for item in self.items:
            mark = "ok  " if item.passed else "FAIL"
            lines.append(f"  {mark} {item.claim}: relative error {item.error:.1e} (tolerance {item.tolerance:.0e})")
        return "\n".join(lines)

    def require(self) -> CheckReport:
        """Raise ModelError naming the claim that failed."""
        for item in self.items:
            if not item.passed:
                raise ModelError(
                    f"{item.claim}: relative error {item.error:.1e}, tolerance {item.tolerance:.0e}",
                    where=f"check of {self.model}",
                    fix="this family computes something that Crosspatch does not see; give its parts with "
                    "load(..., layout=crosspatch.Layout(...)) or report the family's name",
                )
        return self


def check(model: Model, tokens: Sequence[Sequence[int]] | None = None, *, quick: bool = False) -> CheckReport:
    """Compare the graph with the model's own forward pass.

    Claims: the logits are the model's; the residual stream after every block is the model's; ``input`` plus all
    attention outputs, and MLP outputs where there are any, is the last residual stream; the heads of a block add up to
    its attention output (before the post norm, where the family has one).

    Args:
        tokens: prompts to use; default: two random prompts of different lengths, seeded, longer than a sliding
            window of up to 64 tokens.
        quick: the logits of one short prompt only.
    """
    model.require_eval()
    prompts = _prompts(model, quick) if tokens is None else [list(map(int, p)) for p in tokens]
    tolerance = TOLERANCE.get(model.dtype, 2e-5)
    layers = range(model.shape.n_layers)
    writers = ("attn_out", "mlp_out") if model.shape.has_mlp else ("attn_out",)
    sites = [] if quick else [Site(kind, i) for i in layers for kind in ("resid_post", *writers)]
    read = [range(len(p)) for p in prompts]
    run = record(model, prompts, sites if quick else [*sites, "input"], read=read)
    errors: dict[str, list[float]] = {}
    for i, prompt in enumerate(prompts):
        logits, blocks = _native(model, prompt)
        ours = run.logits()[run.read_offset[i] : run.read_offset[i + 1]]
        errors.setdefault("logits", []).append(relative_error(ours, logits))
        if quick:
            continue
        for layer, block in enumerate(blocks):
            error = relative_error(run.value(Site("resid_post", layer), i), block)
            errors.setdefault("resid", []).append(error)
        nodes = [run.value(Site(kind, layer), i) for layer in layers for kind in writers]
        total = run.value("input", i) + torch.stack([n.to(model.device) for n in nodes]).sum(0)
        last = run.value(Site("resid_post", model.shape.n_layers - 1), i)
        errors.setdefault("sum", []).append(relative_error(total, last))
        errors.setdefault("heads", []).extend(_heads_error(model, run, layer, i) for layer in layers)
    claims = {
        "logits": "the graph's logits are the model's",
        "resid": "the residual stream after every block is the model's",
        "sum": f"input + attention outputs{' + MLP outputs' if model.shape.has_mlp else ''} = last residual stream",
        "heads": "the heads of a block add up to its attention output",
    }
    return CheckReport(
        model.name, tuple(CheckItem(k, claims[k], max(v, key=_nan_last), tolerance) for k, v in errors.items())
    )


def _nan_last(x: float) -> float:
    return float("inf") if x != x else x


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference over the largest absolute entry of ``b``."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def _prompts(model: Model, quick: bool) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = [8] if quick else [72, 9]
    limit = model.context or 10**9
    return [torch.randint(model.n_tokens, (min(n, limit),), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def _native(model: Model, prompt: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits ``[position, vocab]`` and every block's output, from the untouched model."""
    blocks: list[Tensor] = []

    def note(module: Any, args: Any, output: Any) -> None:
        blocks.append((output[0] if isinstance(output, tuple) else output)[0])

    hooks = [block.layer.register_forward_hook(note) for block in model.anatomy.blocks]
    try:
        ids = torch.tensor([prompt], device=model.device)
        logits = model.hf(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return logits, blocks


@torch.no_grad()
def _heads_error(model: Model, run: Any, layer: int, example: int) -> float:
    """Sum over heads of (one head's z alone through W_O, less the bias) against the attention output."""
    block, heads = model.anatomy.blocks[layer], range(model.shape.n_heads)
    z = torch.stack([run.value(Site("z", layer, h), example) for h in heads], 1)  # [position, head, d_head]
    bias = block.o_proj(torch.zeros_like(z[:1]).flatten(1))
    total = bias.clone()
    for h in heads:
        alone = torch.zeros_like(z)
        alone[:, h] = z[:, h]
        total = total + block.o_proj(alone.flatten(1)) - bias
    return relative_error(block.norm_attn_out(total[None])[0], run.value(Site("attn_out", layer), example))
