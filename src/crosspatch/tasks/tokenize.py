"""From text to token ids: prompts, answers and spans of a task for one tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosspatch.errors import TaskError
from crosspatch.tasks.encode import Bos, CharSpan, Encoded, Encoder
from crosspatch.tasks.findings import GateFinding
from crosspatch.tasks.pairs import Pair, Side, Task

TokenSpan = tuple[int, int]
SHOWN = 5  # examples that a message spells out


@dataclass(frozen=True)
class TokenizedTask:
    """A task in token ids. Lists run over the examples; position 0 is the first token given to the model.

    Args:
        task: the task in text.
        encoder: the tokenizer with its policy on what stands before the text.
        clean, corrupt: token ids, unpadded.
        answers, wrong: ids of the *first* token of every right / wrong answer, without repeats.
        answer_tokens, wrong_tokens: all tokens of every answer; longer than one where an answer is split.
        spans, corrupt_spans: name -> half-open token span. Always with "END", the last token. A span that the corrupt
            prompt does not define itself is there only if both prompts have the same number of tokens.
        findings: what tokenising had to say (merged answers, special tokens inside a prompt).
    """

    task: Task
    encoder: Encoder
    clean: list[list[int]]
    corrupt: list[list[int]]
    answers: list[list[int]]
    wrong: list[list[int]]
    answer_tokens: list[list[list[int]]]
    wrong_tokens: list[list[list[int]]]
    spans: list[dict[str, TokenSpan]]
    corrupt_spans: list[dict[str, TokenSpan]]
    findings: tuple[GateFinding, ...]

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def bos(self) -> Bos:
        """What stands before the text of every prompt, and by whose decision."""
        return self.encoder.bos

    @property
    def clusters(self) -> list[str]:
        """Template of each example: the unit of clustered intervals."""
        return [p.template for p in self.task.pairs]

    def ids(self, side: Side) -> list[list[int]]:
        return self.clean if side == "clean" else self.corrupt

    def strings(self, example: int, side: Side = "clean") -> list[str]:
        """One readable string per token of one prompt."""
        return [self.encoder.readable(i) for i in self.ids(side)[example]]

    def display(self, example: int, side: Side = "clean") -> str:
        """The tokens of one prompt on one line, parted by bars."""
        return show(self.strings(example, side))

    def span_names(self) -> list[str]:
        """Names that every example has, in order of appearance; "END" last."""
        names = [n for n in self.spans[0] if all(n in s for s in self.spans)]
        return [n for n in names if n != "END"] + ["END"]

    def select(self, examples: Sequence[int]) -> TokenizedTask:
        """These examples only, in this order."""
        pairs = tuple(self.task.pairs[i] for i in examples)
        return tokenize_pairs(dataclasses.replace(self.task, pairs=pairs), self.encoder)


def show(tokens: Sequence[str]) -> str:
    """Tokens on one line, parted by bars; line breaks and tabs made visible."""
    return "|".join(t.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") for t in tokens)


def tokenize(task: Task, tokenizer: Any, add_bos: bool | None = None) -> TokenizedTask:
    """Encode the prompts, answers and spans of a task.

    Args:
        task: the pairs as text.
        tokenizer: a Hugging Face tokenizer; slow ones work too.
        add_bos: None = the tokenizer decides; True or False overrules it. What was done is in `.bos`.

    Raises:
        TaskError: a prompt without tokens, a span without tokens, or no tokenizer.
    """
    if tokenizer is None:
        raise TaskError(
            "no tokenizer", where=f"task {task.name!r}", fix="pass the model's tokenizer, e.g. model.tokenizer"
        )
    return tokenize_pairs(task, Encoder(tokenizer, add_bos))


def tokenize_pairs(task: Task, encoder: Encoder) -> TokenizedTask:
    """`tokenize` with an encoder that exists already."""
    encoder.prime([text for p in task.pairs for text in (p.clean, *(p.clean + a for a in p.answers + p.wrong))])
    clean = [encoder.encode(p.clean) for p in task.pairs]
    corrupt = [encoder.encode(p.corrupt) for p in task.pairs]
    answer_tokens, wrong_tokens, merged = [], [], []
    for i, pair in enumerate(task.pairs):
        found = {
            kind: [encoder.continuation(pair.clean, a) for a in getattr(pair, kind)] for kind in ("answers", "wrong")
        }
        answer_tokens.append([c.ids for c in found["answers"]])
        wrong_tokens.append([c.ids for c in found["wrong"]])
        if not all(c.exact for c in found["answers"] + found["wrong"]):
            merged.append(i)
    spans, corrupt_spans = [], []
    for i, pair in enumerate(task.pairs):
        spans.append(_token_spans(pair, "clean", clean[i], i, task.name))
        corrupt_spans.append(_corrupt_spans(pair, clean[i], corrupt[i], spans[i], i, task.name))
    return TokenizedTask(
        task=task,
        encoder=encoder,
        clean=[e.ids for e in clean],
        corrupt=[e.ids for e in corrupt],
        answers=[_first_tokens(a) for a in answer_tokens],
        wrong=[_first_tokens(a) for a in wrong_tokens],
        answer_tokens=answer_tokens,
        wrong_tokens=wrong_tokens,
        spans=spans,
        corrupt_spans=corrupt_spans,
        findings=tuple(_findings(task.pairs, encoder, clean, corrupt, merged)),
    )


def _first_tokens(answers: list[list[int]]) -> list[int]:
    return list(dict.fromkeys(ids[0] for ids in answers))


def _token_spans(pair: Pair, side: Side, encoded: Encoded, example: int, task: str) -> dict[str, TokenSpan]:
    spans = {}
    for name, chars in pair.char_spans(side).items():
        text = pair.clean if side == "clean" else pair.corrupt
        found = token_span(encoded.offsets, chars, text)
        if found is None:
            raise TaskError(
                f"no token holds the characters {chars} ({text[slice(*chars)]!r})",
                where=f"task {task!r}, example {example}, span {name!r} of the {side} prompt",
                fix="let the span cover at least one character that is not a space",
            )
        spans[name] = found
    spans["END"] = (len(encoded.ids) - 1, len(encoded.ids))
    return spans


def token_span(offsets: Sequence[CharSpan], chars: CharSpan, text: str) -> TokenSpan | None:
    """The smallest half-open token span that holds all these characters; None if no token does.

    A space that is a token of its own belongs to the word after it, as it does where the tokenizer joins the two.
    Without that, words that are known to the tokenizer and words that are spelt out would not align.
    """
    start, end = chars
    inside = [i for i, (s, e) in enumerate(offsets) if s < end and e > start]
    if not inside:
        return None
    first = inside[0]
    before = offsets[first - 1] if first > 0 else (0, 0)
    if before[1] == offsets[first][0] and text[slice(*before)] == " ":
        first -= 1
    return first, inside[-1] + 1


def _corrupt_spans(
    pair: Pair, clean: Encoded, corrupt: Encoded, spans: dict[str, TokenSpan], example: int, task: str
) -> dict[str, TokenSpan]:
    out = _token_spans(pair, "corrupt", corrupt, example, task)
    if len(clean.ids) == len(corrupt.ids):
        out = {name: out.get(name, span) for name, span in spans.items()} | out
    return out


def _findings(
    pairs: Sequence[Pair], encoder: Encoder, clean: list[Encoded], corrupt: list[Encoded], merged: list[int]
) -> list[GateFinding]:
    out = []
    if merged:
        shown = tuple(f"{i}: {pairs[i].clean[-30:]!r} + {pairs[i].answers[0]!r}" for i in merged[:SHOWN])
        out.append(
            GateFinding(
                "answer-merges",
                "warning",
                f"in {len(merged)} of {len(pairs)} examples the tokenizer merges the end of the prompt with an answer; "
                "the answer's tokens were taken as they are after a neutral character",
                tuple(merged),
                shown,
                "end the prompt at a word's end and begin the answer with a space",
            )
        )
    n_bos = len(encoder.bos.ids)
    special = [
        i
        for i, (a, b) in enumerate(zip(clean, corrupt, strict=True))
        if any(t in encoder.special for t in a.ids[n_bos:] + b.ids[n_bos:])
    ]
    if special:
        out.append(
            GateFinding(
                "special-tokens",
                "warning",
                f"{len(special)} of {len(pairs)} prompts spell special tokens inside the text "
                f"(such as {encoder.tokenizer.all_special_tokens[0]!r}), which the tokenizer takes as control tokens",
                tuple(special),
                tuple(f"{i}: {pairs[i].clean!r}" for i in special[:SHOWN]),
                "take them out of the text; use add_bos=True for a beginning-of-text token",
            )
        )
    glued = [i for i, p in enumerate(pairs) if p.clean[-1].isalpha() and any(a[0].isalpha() for a in p.answers)]
    if glued:
        out.append(
            GateFinding(
                "answer-without-space",
                "warning",
                f"in {len(glued)} of {len(pairs)} examples the answer continues the prompt's last word without a space",
                tuple(glued),
                tuple(f"{i}: {pairs[i].clean[-30:] + pairs[i].answers[0]!r}" for i in glued[:SHOWN]),
                "begin the answer with a space if it is a new word, e.g. ' Mary'",
            )
        )
    return out
