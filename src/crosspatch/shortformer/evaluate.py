"""What the induction model can do, measured on rows that it was not trained on, and which heads look responsible.

``python -m crosspatch.shortformer.evaluate [FOLDER]`` measures a trained model and rewrites its card: ``card.json``
for machines, ``README.md`` for people.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.graph import Site
from crosspatch.model import Model, load, record
from crosspatch.shortformer import corpus, induction_path

ROWS = 128
"""Rows of each kind that the card is measured on."""
SEED = 20_000
"""Seed of the card's rows."""
OFFSETS = 5
"""Attention of the first layer is shown for the token itself and the four before it."""


@dataclass(frozen=True)
class Scores:
    """Means over rows; losses in nats per token.

    Attributes:
        text_loss: held-out text, all targets.
        copied_loss, copied_accuracy: the syllables (not the first) of names that the same row has spelled out
            before, up to there: what induction is for. Accuracy: the target is the most probable token.
        copied_ambiguous: accuracy on those of them whose token before them was followed by something else too.
        first_loss, second_loss, second_accuracy: repeated random tokens, first and second time (without the first
            token of the second time, which nothing announces).
    """

    text_loss: float
    copied_loss: float
    copied_accuracy: float
    copied_ambiguous: float
    first_loss: float
    second_loss: float
    second_accuracy: float


@torch.no_grad()
def _log_probs(model: Model, rows: Sequence[Sequence[int]], batch: int = 32) -> Float[Tensor, "row position vocab"]:
    """Of the next token, at every position of rows of one length but the last."""
    inputs = torch.tensor(rows, device=model.device)[:, :-1]
    logits = [model.hf(input_ids=inputs[i : i + batch]).logits for i in range(0, len(rows), batch)]
    return torch.cat([part.float().log_softmax(-1).cpu() for part in logits])


def copied(tokenizer: Any, row: Sequence[int]) -> list[tuple[int, bool]]:
    """Targets of a row that finish something it has spelled out before.

    Returns:
        (index of the target, ambiguous) of every syllable of a name, but the first, such that the row holds the name
        up to and with this syllable earlier. Ambiguous: earlier in the row something else followed the same one token.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(row))
    seen: set[tuple[int, ...]] = set()
    followers: dict[int, set[int]] = {}
    found = []
    for i in range(1, len(row)):
        if tokens[i][0] == "-":
            start = next(j for j in range(i - 1, -1, -1) if tokens[j][0] != "-")
            name = tuple(row[start : i + 1])
            if name in seen:
                found.append((i, len(followers[row[i - 1]]) > 1))
            seen.add(name)
        followers.setdefault(row[i - 1], set()).add(row[i])
    return found


def measure(model: Model, n: int, seed: int | str) -> Scores:
    """:class:`Scores` on ``n`` held-out text rows and ``n`` rows of repeated random tokens."""
    text = corpus.rows(model.tokenizer, n, seed)
    targets = torch.tensor(text)[:, 1:]
    log_probs = _log_probs(model, text)
    losses = -log_probs.gather(-1, targets[..., None])[..., 0]
    right = log_probs.argmax(-1) == targets
    spots = [(r, i - 1, ambiguous) for r, row in enumerate(text) for i, ambiguous in copied(model.tokenizer, row)]
    at = tuple(torch.tensor(part) for part in zip(*spots, strict=True))
    twice = corpus.repeated(model.tokenizer, n, seed)
    again = torch.tensor(twice)[:, 1:]
    log_probs = _log_probs(model, twice)
    repeat_losses = -log_probs.gather(-1, again[..., None])[..., 0]
    half = again.shape[1] // 2
    return Scores(
        text_loss=losses.mean().item(),
        copied_loss=losses[at[:2]].mean().item(),
        copied_accuracy=right[at[:2]].float().mean().item(),
        copied_ambiguous=right[at[:2]][at[2]].float().mean().item(),
        first_loss=repeat_losses[:, :half].mean().item(),
        second_loss=repeat_losses[:, half + 1 :].mean().item(),
        second_accuracy=(log_probs.argmax(-1) == again)[:, half + 1 :].float().mean().item(),
    )


def attention_by_offset(model: Model, rows: Sequence[Sequence[int]], layer: int = 0) -> Float[Tensor, "head offset"]:
    """Mean attention of each head of a layer to the token itself, the one before it, and so on.

    Queries from the last offset on, so that every offset exists for all of them.
    """

    def by_offset(pattern: Tensor) -> Tensor:
        return torch.stack([pattern.diagonal(-k)[OFFSETS - 1 - k :].mean() for k in range(OFFSETS)])

    return _mean_over_patterns(model, rows, layer, by_offset)


def induction_scores(model: Model, rows: Sequence[Sequence[int]], layer: int = 1) -> Float[Tensor, " head"]:
    """Mean attention of each head, in the second half of rows of :func:`corpus.repeated`, to the token that followed
    the present one in the first half."""
    half = (len(rows[0]) - 1) // 2
    return _mean_over_patterns(model, rows, layer, lambda pattern: pattern.diagonal(1 - half)[2:].mean())


def _mean_over_patterns(
    model: Model, rows: Sequence[Sequence[int]], layer: int, read: Callable[[Float[Tensor, "query key"]], Tensor]
) -> Tensor:
    """What ``read`` sees in every head's pattern, averaged over the rows (without their last tokens)."""
    sites = [Site("pattern", layer, head) for head in range(model.shape.n_heads)]
    run = record(model, [row[:-1] for row in rows], sites)
    return torch.stack(
        [torch.stack([read(run.value(site, i)) for i in range(len(rows))]).mean(0) for site in sites]
    ).cpu()


def head_table(model: Model, n: int, seed: int | str) -> dict[str, list[list[float]]]:
    """What the heads look at: ``offsets`` of the first layer on text, ``induction`` of every layer on repeats."""
    offsets = attention_by_offset(model, corpus.rows(model.tokenizer, n, seed))
    repeats = corpus.repeated(model.tokenizer, n, seed)
    induction = [induction_scores(model, repeats, layer) for layer in range(model.shape.n_layers)]
    return {
        "offsets": [[round(x, 3) for x in row] for row in offsets.tolist()],
        "induction": [[round(x, 3) for x in row.tolist()] for row in induction],
    }


def write_card(folder: Path, training: dict[str, Any]) -> dict[str, Any]:
    """Measure the model in ``folder`` and write its ``card.json`` and ``README.md``."""
    model = load(folder)
    card = {
        "parameters": sum(p.numel() for p in model.hf.parameters()),
        "training": training,
        "rows": ROWS,
        "seed": SEED,
        "scores": {name: round(value, 4) for name, value in asdict(measure(model, ROWS, SEED)).items()},
        "heads": head_table(model, ROWS // 2, SEED),
    }
    texts = {"card.json": json.dumps(card, indent=2) + "\n", "README.md": render(card, model)}
    for name, text in texts.items():
        partial = folder / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder / name)
    return card


def render(card: dict[str, Any], model: Model) -> str:
    """The model card as Markdown."""
    t, s, shape = card["training"], card["scores"], model.shape
    offsets = "\n".join(
        f"| 0.{head} | {' | '.join(f'{x:.2f}' for x in row)} |" for head, row in enumerate(card["heads"]["offsets"])
    )
    induction = "\n".join(
        f"| {layer} | {' | '.join(f'{x:.2f}' for x in row)} |" for layer, row in enumerate(card["heads"]["induction"])
    )
    ago = " | ".join(["itself", "1 before", *(f"{k} before" for k in range(2, OFFSETS))])
    wall, cpu = (f"{t[key] / 60:.0f} minutes" for key in ("wall_s", "cpu_s"))
    return f"""---
license: mit
language: en
pipeline_tag: text-generation
---
# induction-2l

A small attention-only decoder for the study of induction heads: {shape.n_layers} layers of {shape.n_heads} heads,
d_model {shape.d_model}, d_head {shape.d_head}, no MLP, vocabulary {shape.vocab}, {model.context} positions,
{card["parameters"]:,} parameters. Positions are "shortformer" positions: learned, and added to the inputs of queries
and keys only, after the norm, so that values and the residual stream do not know where they stand.
Stored in float16, loaded in float32.

    import crosspatch
    model = crosspatch.load("induction-2l")

## Training

    python -m crosspatch.shortformer.train --out DIR --steps {t["steps"]} --seed {t["seed"]} --threads {t["threads"]}

From scratch on {t["tokens"]:,} tokens of the package's own generator (`crosspatch/shortformer/corpus.py`): {{text}} %
simple English about people and places with made-up names of two to four syllables, a token each; {{repeat}} % rows in
which one sequence of random tokens repeats; {{chunks}} % rows of random chunks and copies of earlier ones. No text by
anyone else. AdamW, peak learning rate {t["peak_lr"]}, {t["batch_rows"]} rows of {corpus.ROW} tokens a step. Measured:
{wall} of wall-clock time, {cpu} of processor time, {t["threads"]} threads, device {t["device"]}, torch {t["torch"]}.
The seed fixes the rows; another processor or version can round differently, so retraining gives an equivalent model,
not the same bytes (and the same heads may come out in another order).

## Held-out numbers

{card["rows"]} rows each, seed {card["seed"]}, made-up names that are in no training row. Nats per token. "Copied": the
syllables, but the first, of names that the same row has spelled out before; "ambiguous": those before which the same
token was followed by something else earlier in the row, so that one token of context does not suffice.

| measure | value |
| --- | --- |
| loss, text | {s["text_loss"]:.3f} |
| loss, copied syllables | {s["copied_loss"]:.3f} |
| accuracy, copied syllables | {s["copied_accuracy"]:.3f} |
| accuracy, ambiguous copied syllables | {s["copied_ambiguous"]:.3f} |
| loss, random tokens, first time | {s["first_loss"]:.3f} |
| loss, random tokens, second time | {s["second_loss"]:.3f} |
| accuracy, random tokens, second time | {s["second_accuracy"]:.3f} |

## What the heads look at

Averages of attention, as a first look; they are no proof of what a head does.

First layer, held-out text, attention to the token

| head | {ago} |
| --- | {" | ".join("---" for _ in range(OFFSETS))} |
{offsets}

Repeated random tokens, attention from the second time to the token after the first time ("induction score")

| layer | {" | ".join(f"head {h}" for h in range(shape.n_heads))} |
| --- | {" | ".join("---" for _ in range(shape.n_heads))} |
{induction}

## Limits

- It knows the sentence frames and the words of its corpus and nothing else.
- Natural text rewards copying less regularly; what this model does is an example of induction, not a measurement of it
  in language models.
""".format(**{kind: round(100 * share) for kind, share in corpus.SHARES.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a trained induction model again and rewrite its card.")
    parser.add_argument("folder", nargs="?", type=Path, default=induction_path())
    args = parser.parse_args()
    training = json.loads((args.folder / "card.json").read_text(encoding="utf-8"))["training"]
    print(json.dumps(write_card(args.folder, training)["scores"], indent=2))


if __name__ == "__main__":
    main()
