"""Train the embedded model: ``python -m crosspatch.embedded.train --out DIR``.

Seeded and offline; well under an hour on two CPU cores with the defaults, which are those of the shipped weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from crosspatch.embedded import corpus
from crosspatch.embedded.card import ship
from crosspatch.embedded.evaluate import score, table
from crosspatch.embedded.tokenizer import BOS, MAX_LENGTH, build_tokenizer

#: Weight in the loss of a word that its context does not determine (a name drawn at random, say). Most words are of
#: that sort, and at full weight their noise drowns what there is to learn; at none the model would not be a language
#: model.
PLAIN_WEIGHT = 0.05


def build_model(vocabulary: int, bos: int) -> LlamaForCausalLM:
    """The architecture, freshly initialised from torch's global seed."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=384,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=bos,
        eos_token_id=bos,
        pad_token_id=bos,
    )
    config.use_cache = False
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> list[tuple[list[int], list[float]]]:
    """Token ids of each document between two BOS, and each token's weight in the loss.

    The words that the context determines share a weight of 1, so that a repeated sequence, of which half is
    determined, counts no more than a sentence with one such word.
    """
    pieces = [document.split(corpus.MARK) for document in documents]
    # Marks stand at word boundaries, so that the pieces have the tokens that the whole has.
    ids = iter(tokenizer([piece for parts in pieces for piece in parts], add_special_tokens=False)["input_ids"])
    [bos] = tokenizer.encode(BOS, add_special_tokens=False)
    rows = []
    for parts in pieces:
        row, weight = [bos], [0.0]
        for i in range(len(parts)):
            piece = next(ids)
            row += piece
            weight += [1 / (len(parts) - 1) if i else PLAIN_WEIGHT] + [PLAIN_WEIGHT] * (len(piece) - 1)
        rows.append(([*row, bos][:MAX_LENGTH], [*weight, PLAIN_WEIGHT][:MAX_LENGTH]))
    return rows


def batches(
    tokenizer: PreTrainedTokenizerBase, seed: int, tokens: int, pool: int = 16_384
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Inputs, targets and loss weights ``[document, position]`` of about ``tokens`` tokens, without end.

    One document per row, so that every prompt starts at position 0 after BOS as it does when the tasks run it.
    Documents of similar length go together (right padding, weight 0), batches in random order.
    """
    text = corpus.documents(seed)
    rng = Random(f"crosspatch batches {seed}")
    while True:
        rows = sorted(encode(tokenizer, list(islice(text, pool))), key=lambda row: len(row[0]))
        parts: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in rows:
            if (len(parts[-1]) + 1) * len(row[0]) > tokens:
                parts.append([])
            parts[-1].append(row)
        rng.shuffle(parts)
        for part in parts:
            width = max(len(ids) for ids, _ in part)
            ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part])
            weight = torch.tensor([weight + [0.0] * (width - len(weight)) for _, weight in part])
            yield ids[:, :-1], ids[:, 1:], weight[:, 1:]


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(out: Path, *, steps: int, seed: int, peak: float, tokens: int, threads: int, device: str, every: int) -> None:
    """Train, evaluate, and write weights, tokenizer and card into ``out``."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    tokenizer = build_tokenizer(seed)
    [bos] = tokenizer.encode(BOS, add_special_tokens=False)
    with torch.device(device):
        model = build_model(len(tokenizer), bos)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    watched = {name: corpus.held_out(name, 100, seed=1) for name in corpus.BEHAVIOURS}
    seen, recent = 0, 0.0
    for step, (inputs, targets, weight) in enumerate(islice(batches(tokenizer, seed, tokens), steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warmup=200)
        logits = model(input_ids=inputs.to(device)).logits
        losses = cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), reduction="none")
        weights = weight.to(device).flatten()
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += int((weight > 0).sum())
        recent += loss.item()
        if (step + 1) % every == 0:
            scores = " ".join(
                f"{name} {score(model, tokenizer, name, examples).accuracy:.2f}" for name, examples in watched.items()
            )
            elapsed = time.perf_counter() - wall
            left = elapsed / (step + 1) * (steps - step - 1)
            progress = f"step {step + 1}/{steps} loss {recent / every:.3f} {elapsed:.0f} s, {left:.0f} s left"
            print(f"{progress} | {scores}", flush=True)
            recent = 0.0
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    training = {
        "steps": steps,
        "seed": seed,
        "corpus_sha256": corpus.digest(seed),
        "tokens": seen,
        "batch_tokens": tokens,
        "peak_lr": peak,
        "threads": threads,
        "device": device,
        "torch": torch.__version__.partition("+")[0],
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "bos": BOS,
    }
    print(table(ship(model.cpu(), tokenizer, out, training).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded model from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, tokenizer and model card")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--every", type=int, default=250, help="steps between progress lines")
    args = parser.parse_args()
    train(
        args.out, steps=args.steps, seed=args.seed, peak=args.lr, tokens=args.batch_tokens, threads=args.threads,
        device=args.device, every=args.every,
    )  # fmt: skip


if __name__ == "__main__":
    main()
