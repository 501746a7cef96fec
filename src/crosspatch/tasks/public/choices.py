"""Public sets that make in-context prompts: function tasks, and multiple choice on the colours of things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from crosspatch.errors import TaskError
from crosspatch.tasks.generate.base import Vocabulary
from crosspatch.tasks.pairs import CharSpan, Pair, Task
from crosspatch.tasks.public.source import Source, left_out, read_json

SHOTS = 5  # demonstrations in a function-task prompt


def sources(folder: Path) -> Iterator[Source]:
    todd = "github.com/ericwtodd/function_vectors, MIT licence; Todd et al. 2023 (arXiv 2310.15213); prompts made here"
    place = folder / "function-tasks"
    for path in sorted(place.glob("*/*.json")) if place.is_dir() else ():
        yield Source(f"function/{path.stem}", path, todd, _function, ("query", "shuffled-labels"))
    mib = "github.com/aaronmueller/MIB, Apache-2.0; Mueller et al. 2025 (arXiv 2504.13151); questions made here"
    yield Source("mcqa/colors", folder / "mcqa" / "object_color_pairs.json", mib, _colors, ("order",))


def _function(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None) -> Task:
    """`SHOTS` demonstrations and a query. "query": another query, with another answer. "shuffled-labels": the outputs
    of the demonstrations are permuted so that none is right (Todd et al., section 2), which takes the task away."""
    rows = [
        (r["input"], r["output"])
        for r in read_json(path)
        if isinstance(r["input"], str) and isinstance(r["output"], str)
    ]
    rng = Random(f"{path.stem}/{seed}")
    pairs = []
    for i, (x, y) in enumerate(rows):
        others = [j for j in rng.sample(range(len(rows)), min(len(rows), 4 * SHOTS)) if j != i]
        demos = [rows[j] for j in others[:SHOTS]]
        partner = next((rows[j] for j in others[SHOTS:] if rows[j][1] != y), None)
        if len(demos) < SHOTS or partner is None:
            continue
        outputs = [out for _, out in demos]
        if corruption == "query":
            corrupt_demos, corrupt_query, wrong = demos, partner[0], [f" {partner[1]}"]
        else:
            turned = outputs[1:] + outputs[:1]
            if any(a == b for a, b in zip(outputs, turned, strict=True)):
                continue
            corrupt_demos = [(a, out) for (a, _), out in zip(demos, turned, strict=True)]
            corrupt_query, wrong = x, list(dict.fromkeys(f" {out}" for out in outputs if out != y))
        clean, spans = _few_shot(demos, x)
        corrupt, corrupt_spans = _few_shot(corrupt_demos, corrupt_query)
        pairs.append(Pair(clean, corrupt, (f" {y}",), tuple(wrong), spans, corrupt_spans, path.stem, corruption))
    if not pairs:
        raise TaskError(
            f"{len(rows)} rows do not suffice for {SHOTS} demonstrations", where=str(path), fix="use another set"
        )
    varies, holds = {
        "query": ("the query, and with it the answer", "the demonstrations and the function that they show"),
        "shuffled-labels": ("which output stands after which input of the demonstrations", "all words, and the query"),
    }[corruption]
    note = left_out(len(rows) - len(pairs), "no demonstrations or partner with another output")
    return Task(path.stem, tuple(pairs), note, varies, holds, f"does '{path.stem}' from {SHOTS} demonstrations")


def _few_shot(demos: list[tuple[str, str]], query: str) -> tuple[str, dict[str, CharSpan]]:
    text, spans = "", {}
    for i, (x, y) in enumerate(demos, 1):
        text += f"Q: {x}\nA: "
        spans[f"output{i}"] = (len(text), len(text) + len(y))
        text += f"{y}\n\n"
    spans["query"] = (len(text) + 3, len(text) + 3 + len(query))
    return text + f"Q: {query}\nA:", spans


def _colors(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None) -> Task:
    """Two choices, which trade places in the corrupt prompt."""
    rows = [(r["object"], r["color"]) for r in read_json(path)]
    colors = sorted({color for _, color in rows})
    rng = Random(f"colors/{seed}")
    pairs = []
    for thing, color in rows:
        other = rng.choice([c for c in colors if c != color])
        right = rng.randint(0, 1)
        choices = [other, color] if right else [color, other]
        clean, spans = _question(thing, color, choices)
        corrupt, corrupt_spans = _question(thing, color, choices[::-1])
        answers, wrong = (f" {'AB'[right]}",), (f" {'BA'[right]}",)
        pairs.append(Pair(clean, corrupt, answers, wrong, spans, corrupt_spans, "two choices", corruption))
    varies, holds = "which letter stands before the right colour", "the question and the two colours"
    return Task(
        "colors", tuple(pairs), "", varies, holds, "answers a multiple-choice question on the colour of a thing"
    )


def _question(thing: str, color: str, choices: list[str]) -> tuple[str, dict[str, CharSpan]]:
    article = "An" if thing[0] in "aeiou" else "A"
    text = f"{article} {thing} is {color}. What color is {article.lower()} {thing}?\n"
    spans = {}
    for letter, choice in zip("AB", choices, strict=True):
        text += f"{letter}. "
        spans[f"choice{letter}"] = (len(text), len(text) + len(choice))
        text += f"{choice}\n"
    return text + "Answer:", spans
