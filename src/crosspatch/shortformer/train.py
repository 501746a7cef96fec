"""Train the induction model: ``python -m crosspatch.shortformer.train --out DIR``.

Seeded and offline; about twenty minutes on one CPU core with the defaults, which are those of the shipped weights.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from crosspatch.embedded.train import learning_rate
from crosspatch.model import load
from crosspatch.shortformer import ShortformerConfig, ShortformerForCausalLM, corpus
from crosspatch.shortformer.evaluate import measure, write_card

WARMUP = 100
"""Steps until the largest learning rate."""


def build_model(tokenizer: PreTrainedTokenizerBase) -> ShortformerForCausalLM:
    """The architecture, freshly initialised from torch's global seed.

    Positions start as sinusoids (Vaswani et al. 2017), as large as the normalised stream that they are added to, and
    are learned from there: a shift by one position is then a linear map, and previous-token heads form early.
    """
    model = ShortformerForCausalLM(
        ShortformerConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            num_hidden_layers=2,
            num_attention_heads=8,
            max_position_embeddings=corpus.ROW - 1,
            initializer_range=0.04,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.bos_token_id,
        )
    )
    positions = model.model.embed_positions.weight
    n, width = positions.shape
    angle = torch.arange(n)[:, None] * 10_000 ** (-torch.arange(0, width, 2) / width)
    with torch.no_grad():
        positions.copy_(torch.stack([angle.sin(), angle.cos()], -1).flatten(1))
    return model


def batches(tokenizer: PreTrainedTokenizerBase, seed: int, size: int) -> Iterator[Tensor]:
    """Batches ``[row, token]`` of ``size`` training rows, without end."""
    for pool in corpus.training_rows(tokenizer, seed):
        for lo in range(0, len(pool) - size + 1, size):
            yield torch.tensor(pool[lo : lo + size])


def train(out: Path, *, steps: int, seed: int, peak: float, size: int, threads: int, device: str, every: int) -> None:
    """Train, measure, and write weights, tokenizer and card into ``out``."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    tokenizer = corpus.build_tokenizer()
    model: Any = build_model(tokenizer)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    recent = 0.0
    for step, rows in zip(range(steps), batches(tokenizer, seed, size), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warmup=WARMUP)
        rows = rows.to(device)
        logits = model(input_ids=rows[:, :-1]).logits
        loss = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent += loss.item()
        if (step + 1) % every == 0:
            now = measure(load(model.eval(), tokenizer, verify=False), 64, "watched")
            model.train()
            left = (time.perf_counter() - wall) / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1}/{steps} loss {recent / every:.3f}, {left:.0f} s left | text {now.text_loss:.3f} | "
                f"copied {now.copied_loss:.3f} ({now.copied_accuracy:.2f}, ambiguous {now.copied_ambiguous:.2f}) | "
                f"repeats {now.first_loss:.2f} -> {now.second_loss:.2f} ({now.second_accuracy:.2f})",
                flush=True,
            )
            recent = 0.0
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    training = {
        "steps": steps,
        "seed": seed,
        "rows_sha256": corpus.digest(tokenizer, seed),
        "tokens": steps * size * (corpus.ROW - 1),
        "batch_rows": size,
        "peak_lr": peak,
        "threads": threads,
        "device": device,
        "torch": torch.__version__.partition("+")[0],
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
    }
    print(json.dumps(ship(model.cpu(), tokenizer, out, training), indent=2))


def ship(
    model: ShortformerForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path, training: dict[str, Any]
) -> dict[str, Any]:
    """Write weights, tokenizer and card, and return the scores of what was written.

    Weights are stored in float16 (half the size) and declared float32, which is what they load as; the scores are of
    these rounded weights. Files appear in ``out`` only once all of them are complete.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".induction-") as temporary:
        staging = Path(temporary)
        model.half().save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        config = json.loads((staging / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float32"
        (staging / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        card = write_card(staging, training)
        for path in sorted(staging.iterdir()):
            path.chmod(0o644)  # the weights are written for their owner only
            os.replace(path, out / path.name)
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the induction model from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, tokenizer and card")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--rows", type=int, default=32, help="rows per step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--every", type=int, default=100, help="steps between measurements")
    a = parser.parse_args()
    train(
        a.out, steps=a.steps, seed=a.seed, peak=a.peak, size=a.rows, threads=a.threads, device=a.device, every=a.every
    )


if __name__ == "__main__":
    main()
