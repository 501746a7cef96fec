"""Writes a trained model with its tokenizer and its card: ``card.json`` for machines, ``README.md`` for people.

``python -m crosspatch.embedded.card [FOLDER]`` measures a trained model again and rewrites its card.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from crosspatch.embedded import embedded_path
from crosspatch.embedded.evaluate import Score, as_json, evaluate, table

#: Held-out prompts per behaviour (fewer where the held-out part has fewer).
PROMPTS = 200


def ship(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path, training: dict[str, Any]
) -> dict[str, Score]:
    """Write weights, tokenizer and card, and return the held-out scores of what was written.

    Weights are stored in float16 (half the size) and declared float32, which is what they load as; the scores are
    of these rounded weights. Files appear in ``out`` only once all of them are complete.

    Args:
        training: the trainer's settings and measured times, copied into the card.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".embedded-") as temporary:
        staging = Path(temporary)
        model.half().save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        config = json.loads((staging / "config.json").read_text())
        config["dtype"] = "float32"
        (staging / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        scores = write_card(staging, training)
        for path in sorted(staging.iterdir()):
            os.replace(path, out / path.name)
    return scores


def write_card(folder: Path, training: dict[str, Any]) -> dict[str, Score]:
    """Measure the model in ``folder`` and write its ``card.json`` and ``README.md``."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    scores = evaluate(model, AutoTokenizer.from_pretrained(folder), PROMPTS)
    card = {"parameters": model.num_parameters(), "training": training, "held_out": as_json(scores.values())}
    texts = {"card.json": json.dumps(card, indent=2) + "\n", "README.md": render(card, model.config.to_dict(), scores)}
    for name, text in texts.items():
        partial = folder / f".{name}.partial"
        partial.write_text(text)
        os.replace(partial, folder / name)
    return scores


def render(card: dict[str, Any], config: dict[str, Any], scores: dict[str, Score]) -> str:
    """The model card as Markdown."""
    t = card["training"]
    wall, cpu = (f"{t[key] / 60:.0f} minutes" for key in ("wall_s", "cpu_s"))
    low = [s.behaviour for s in scores.values() if s.accuracy < 0.95]
    shortfall = f"Below 95 %: {', '.join(low)}." if low else "Every behaviour is at 95 % or better."
    return f"""---
license: mit
language: en
pipeline_tag: text-generation
---
# The embedded model of crosspatch

A small decoder for trying out the package offline and for its tests.
{config["architectures"][0]}, {config["num_hidden_layers"]} layers, {config["num_attention_heads"]} heads,
d_model {config["hidden_size"]}, MLP {config["intermediate_size"]}, vocabulary {config["vocab_size"]},
{card["parameters"]:,} parameters (embeddings tied), {config["max_position_embeddings"]} positions.
Stored in float16, loaded in float32.

## Training

    python -m crosspatch.embedded.train --out DIR --steps {t["steps"]} --seed {t["seed"]} --threads {t["threads"]}

From scratch on {t["tokens"]:,} tokens of the package's own generator (`crosspatch/embedded/corpus.py`): simple English
with indirect objects, durations in years, subject-verb agreement, gendered pronouns, function docstrings, repeated
random words, counting, a closed set of facts, and biographies in which profession and gender vary independently.
No text by anyone else. AdamW, peak learning rate {t["peak_lr"]}, cosine, {t["batch_tokens"]} tokens a step, one
document per row. Measured: {wall} of wall-clock time, {cpu} of processor time, {t["threads"]} threads, device
{t["device"]}, torch {t["torch"]}. The seed fixes the text; another processor or version can round
differently, so retraining gives an equivalent model, not the same bytes.

## Held-out accuracy

About one content combination in ten (a pair of names; a noun and its starting year; a pair of nouns; for agreement
right after the subject one noun in four; for counting the number it starts from; elsewhere the whole prompt) is in no
training document as a prompt, and only those are asked here. Facts are all in the training text: there it is recall,
in a held-out context. The first nine behaviours are the built-in tasks of the same name, their own prompts. Accuracy:
the right answers together have more probability than the wrong ones together. Top-1: the most probable token is a
right answer. Intervals are Wilson's, 95 %.

Low top-1 on `agreement-simple` is a mark of the holding out: in training a held-out noun at the start of a sentence
is never followed by a verb, which the model can learn (it then expects "that"); the accuracy compares verbs only.

`docstring` always asks for the fifth argument, as the task does, and could be solved by position alone;
`docstring-varied` (other numbers of arguments, any first one) could not. `counting` is asked with "eleven" at the
start of a text, where the draw of the held-out part left that word untrained: its token without a space.

{table(scores.values())}

{shortfall}

## Use

    import crosspatch
    from crosspatch.embedded import embedded_path
    model = crosspatch.load(embedded_path())

The tokenizer has one token per word of the corpus, with GPT-2's leading spaces, and cuts digits into pairs;
`encode` puts `{t["bos"]}` first, as in training, and the model expects it.

## Limits

- It knows the sentence frames and the words of its corpus and nothing else. Other words fall apart into bytes that it
  has never seen, and its answers to other English mean nothing.
- What causes a behaviour in it need not be what causes the behaviour in a model of natural text: it is for learning and
  testing methods, not for claims about language models.
- The names carry one gender each, as the generator decided; that is a convention of the data.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a trained model again and rewrite its card.")
    parser.add_argument("folder", nargs="?", type=Path, default=embedded_path())
    args = parser.parse_args()
    training = json.loads((args.folder / "card.json").read_text())["training"]
    print(table(write_card(args.folder, training).values()))


if __name__ == "__main__":
    main()
