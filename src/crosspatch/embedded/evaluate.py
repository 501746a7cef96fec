"""Held-out accuracy of a model on each behaviour of the corpus.

``python -m crosspatch.embedded.evaluate [FOLDER] [--n 300]`` prints a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from crosspatch.embedded import corpus, embedded_path
from crosspatch.tasks.builtin import list_tasks, make_task


@dataclass(frozen=True)
class Score:
    """How often the model gets a behaviour right on ``n`` held-out prompts, with a 95 % Wilson interval.

    ``accuracy``: the right answers together have more probability than the wrong ones together (as in Hanna et al.
    2023; with one of each, the logit difference is positive). ``top1``: the most probable token of the whole
    vocabulary is a right answer.
    """

    behaviour: str
    n: int
    accuracy: float
    low: float
    high: float
    top1: float


def prompts(behaviour: str, n: int, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> list[corpus.Example]:
    """Up to ``n`` held-out prompts of a behaviour: of the built-in task of that name, or else of the corpus.

    A built-in task's prompts are sorted by :func:`crosspatch.embedded.corpus.reserved`, and only those that were kept
    out of the training text are taken.
    """
    if behaviour not in {task.name for task in list_tasks()}:
        return corpus.held_out(behaviour, n, seed)
    found: dict[str, corpus.Example] = {}
    for round_ in range(30):
        for pair in make_task(behaviour, n=64, seed=1000 * seed + round_, tokenizer=tokenizer).pairs:
            if len(found) < n and corpus.reserved(behaviour, pair.clean):
                found[pair.clean] = corpus.Example(behaviour, pair.clean, pair.answers, pair.wrong, pair.clean)
        if len(found) == n:
            break
    return list(found.values())


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927)."""
    share, z2n = successes / n, z * z / n
    centre = (share + z2n / 2) / (1 + z2n)
    half = z / (1 + z2n) * sqrt(share * (1 - share) / n + z2n / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _one_token(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[int]:
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    for text, found in zip(texts, ids, strict=True):
        if len(found) != 1:
            raise ValueError(f"answer {text!r} is {len(found)} tokens, not one, in this tokenizer")
    return [found[0] for found in ids]


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    behaviour: str,
    examples: list[corpus.Example],
    batch: int = 64,
) -> Score:
    """Accuracy and top-1 on examples of one behaviour.

    Raises:
        ValueError: an answer is not one token in this tokenizer.
    """
    correct = top = 0
    device = next(model.parameters()).device
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        # Right padding: with causal attention no prompt sees it.
        encoded = [tokenizer.encode(example.prompt) for example in part]
        width = max(map(len, encoded))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in encoded], device=device)
        logits = model(input_ids=ids).logits.float().cpu()
        last = logits[torch.arange(len(part)), torch.tensor([len(row) - 1 for row in encoded])]
        for row, example in zip(last.log_softmax(-1), part, strict=True):
            answers, wrong = _one_token(tokenizer, example.answers), _one_token(tokenizer, example.wrong)
            correct += bool(row[answers].logsumexp(0) > row[wrong].logsumexp(0))
            top += int(row.argmax()) in answers
    n = len(examples)
    low, high = wilson(correct, n)
    return Score(behaviour, n, correct / n, low, high, top / n)


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int = 300, seed: int = 0
) -> dict[str, Score]:
    """A score per behaviour on up to ``n`` held-out prompts each."""
    return {name: score(model, tokenizer, name, prompts(name, n, tokenizer, seed)) for name in corpus.BEHAVIOURS}


def table(scores: Iterable[Score]) -> str:
    """The scores as a Markdown table."""
    lines = ["| behaviour | n | accuracy | 95 % interval | top-1 |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {s.behaviour} | {s.n} | {s.accuracy:.3f} | {s.low:.3f} to {s.high:.3f} | {s.top1:.3f} |" for s in scores
    ]
    return "\n".join(lines)


def as_json(scores: Iterable[Score]) -> dict[str, dict[str, float]]:
    """The scores as plain data for ``card.json``."""
    return {s.behaviour: {k: v for k, v in asdict(s).items() if k != "behaviour"} for s in scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=evaluate.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=embedded_path())
    parser.add_argument("--n", type=int, default=300, help="prompts per behaviour")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()
    print(table(evaluate(model, AutoTokenizer.from_pretrained(args.folder), args.n).values()))


if __name__ == "__main__":
    main()
