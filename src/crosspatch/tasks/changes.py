"""Finding the words that differ between two prompts, so that pairs of unequal length can align by spans."""

from __future__ import annotations

import dataclasses
import re

from crosspatch.tasks.pairs import CharSpan, Task


def changed_words(clean: str, corrupt: str) -> list[tuple[CharSpan, CharSpan]]:
    """Runs of neighbouring words that differ, as character ranges in both prompts.

    Empty if the prompts have different numbers of words: then nothing says which word stands for which.
    """
    words = [list(re.finditer(r"\S+", text)) for text in (clean, corrupt)]
    if len(words[0]) != len(words[1]):
        return []
    runs: list[tuple[CharSpan, CharSpan]] = []
    previous = -2
    for i, (a, b) in enumerate(zip(*words, strict=True)):
        left, right = _trim(a, b)
        if a.group() == b.group():
            continue
        if previous == i - 1 and clean[runs[-1][0][1] : left[0]].isspace():  # no punctuation between the two words
            (start, _), (corrupt_start, _) = runs.pop()
            left, right = (start, left[1]), (corrupt_start, right[1])
        runs.append((left, right))
        previous = i
    return runs


def _trim(a: re.Match[str], b: re.Match[str]) -> tuple[CharSpan, CharSpan]:
    """The ranges of two words without the punctuation that both end with."""
    ends = re.search(r"[^\w]*$", a.group()), re.search(r"[^\w]*$", b.group())
    tail = len(ends[0].group()) if ends[0] and ends[1] and ends[0].group() == ends[1].group() else 0
    if tail in (len(a.group()), len(b.group())):
        tail = 0
    return (a.start(), a.end() - tail), (b.start(), b.end() - tail)


def mark_changes(task: Task) -> Task:
    """The task with a span for every run of changed words: `changed`, or `changed1`, `changed2`, ... if there are
    several.

    Pairs that have spans of their own, or whose prompts have different numbers of words, stay as they are.
    """
    pairs = []
    for pair in task.pairs:
        runs = changed_words(pair.clean, pair.corrupt) if not pair.spans else []
        if runs:
            names = ["changed"] if len(runs) == 1 else [f"changed{i}" for i in range(1, len(runs) + 1)]
            spans = {name: clean for name, (clean, _) in zip(names, runs, strict=True)}
            corrupt_spans = {name: corrupt for name, (_, corrupt) in zip(names, runs, strict=True)}
            pair = dataclasses.replace(pair, spans=spans, corrupt_spans=corrupt_spans)
        pairs.append(pair)
    return dataclasses.replace(task, pairs=tuple(pairs))
