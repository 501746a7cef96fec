"""Pairs of inputs: the reference that important paths see, and the counterfactual that all others see."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from crosspatch.errors import PathError, TaskError
from crosspatch.tasks.pairs import Task
from crosspatch.tasks.tokenize import TokenizedTask

Spans = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Pairs:
    """Aligned inputs. The distribution that they are drawn from is part of any claim tested on them.

    Attributes:
        reference, counterfactual: token ids; the two of a pair have equal lengths.
        read: positions whose logits are compared.
        targets: for each read the token that should come next; -1 where there is none.
        answers, wrong: token ids of right and wrong answers, where the pairs come from a task.
        spans: named positions of the reference, half open.
        clusters: what intervals resample: template, or row of a text.
        provenance: where the pairs come from.
        others: further counterfactuals, `[which][pair]`, for paths that do not share one (`with_others`).

    Raises:
        PathError: prompts of a pair that differ in length, or lists that do; a pair without reads; reads or spans
            outside of the prompt.
    """

    reference: list[list[int]]
    counterfactual: list[list[int]]
    read: list[tuple[int, ...]]
    targets: list[tuple[int, ...]]
    answers: list[list[int]]
    wrong: list[list[int]]
    spans: list[Spans]
    clusters: list[str]
    provenance: str
    others: list[list[list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = ("counterfactual", "read", "targets", "answers", "wrong", "spans", "clusters")
        wrong = [name for name in names if len(getattr(self, name)) != len(self.reference)]
        if wrong:
            raise PathError(
                f"{len(self.reference)} references, but {len(getattr(self, wrong[0]))} of {wrong[0]}",
                where="Pairs",
                fix="give one of each per pair",
            )
        sides = [self.counterfactual, *self.others]
        if any(len(side) != len(self.reference) for side in sides):
            raise PathError(
                "a list of others has another length", where="Pairs", fix="give one prompt per pair in each"
            )
        for i, (a, b) in ((i, both) for side in sides for i, both in enumerate(zip(self.reference, side, strict=True))):
            if len(a) != len(b):
                raise PathError(
                    f"the two prompts have {len(a)} and {len(b)} tokens, so that a position of one has no partner",
                    where=f"pair {i}",
                    fix="use prompts of equal length",
                )
        for i in range(len(self.reference)):
            self._require_inside(i)

    def _require_inside(self, i: int) -> None:
        n, read, targets = len(self.reference[i]), self.read[i], self.targets[i]
        outside = {name: ends for name, ends in self.spans[i].items() if not 0 <= ends[0] <= ends[1] <= n}
        if not read or not all(0 <= at < n for at in read):
            what, fix = f"the reads {list(read)} of a prompt of {n} tokens", "give at least one, counted from 0"
        elif len(targets) != len(read):
            what, fix = f"{len(targets)} targets for {len(read)} reads", "give one per read, -1 where there is none"
        elif outside:
            (name, (start, end)), *_ = outside.items()
            what = f"span {name!r} from {start} to {end} is not in a prompt of {n} tokens"
            fix = "give the first token and the one after the last"
        else:
            return
        raise PathError(what, where=f"pair {i}", fix=fix)

    def __len__(self) -> int:
        return len(self.reference)

    @property
    def hash(self) -> str:
        """Of tokens, reads and answers; equal for equal pairs."""
        parts: list[object] = [self.reference, self.counterfactual, self.read, self.targets, self.answers, self.wrong]
        parts += [self.others] if self.others else []
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def select(self, examples: Sequence[int]) -> Pairs:
        """These pairs only, in this order."""
        parts = {
            name: [getattr(self, name)[i] for i in examples]
            for name in (
                "reference",
                "counterfactual",
                "read",
                "targets",
                "answers",
                "wrong",
                "spans",
                "clusters",
            )
        }
        others = [[side[i] for i in examples] for side in self.others]
        return Pairs(**parts, provenance=self.provenance, others=others)

    def with_others(self, n: int, seed: int = 0) -> Pairs:
        """These pairs with `n` further counterfactuals each: those of other pairs of the same length, all different.

        Pairs for which there are not as many are left out; the provenance says how many.

        Raises:
            TaskError: none is left.
        """
        draw = np.random.default_rng(seed)
        lengths: dict[int, dict[tuple[int, ...], None]] = {}
        for ids in self.counterfactual:
            lengths.setdefault(len(ids), {})[tuple(ids)] = None
        found: dict[int, list[list[int]]] = {}
        for i, ids in enumerate(self.counterfactual):
            pool = [other for other in lengths[len(ids)] if other not in (tuple(ids), tuple(self.reference[i]))]
            if len(pool) >= n:
                found[i] = [list(pool[chosen]) for chosen in draw.permutation(len(pool))[:n]]
        if not found:
            raise TaskError(
                f"no pair has {n} other counterfactual prompts of its length", where="pairs", fix="use more pairs"
            )
        lost = len(self) - len(found)
        kept = self.provenance + (f", {lost} pairs without {n} others of their length left out" if lost else "")
        others = [[rows[which] for rows in found.values()] for which in range(n)]
        return replace(self.select(list(found)), others=others, provenance=kept)

    def split(self, held_out: float, seed: int) -> tuple[Pairs, Pairs]:
        """Two parts; pairs with the same reference prompt stay together. Of one template both may have pairs.

        Args:
            held_out: share of the pairs in the second part.

        Raises:
            TaskError: too few pairs, or a share that leaves one part empty.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, ids in enumerate(self.reference):
            groups.setdefault(tuple(ids), []).append(i)
        order = np.random.default_rng(seed).permutation(len(groups))
        listed = list(groups.values())
        rest: list[int] = []
        for g in order:
            if len(rest) < held_out * len(self):
                rest += listed[g]
        kept = sorted(set(range(len(self))) - set(rest))
        if not kept or not rest:
            raise TaskError(
                f"{len(self)} pairs cannot be split with {held_out:g} of them held out",
                where="pairs",
                fix="use more pairs, and a share between 0 and 1",
            )
        return self.select(kept), self.select(sorted(rest))


def pairs_of(given: Pairs | Task, tokenizer: Any) -> Pairs:
    """Pairs as they are, or those of a task, its clean prompts as references.

    Raises:
        PathError: a pair of the task whose prompts differ in length, or something else than pairs and tasks.
    """
    if isinstance(given, Pairs):
        return given
    if isinstance(given, Task):
        return task_pairs(given.tokenize(tokenizer))
    raise PathError(
        f"{type(given).__name__} is neither a task nor pairs",
        where="pairs",
        fix="give a Task, task_pairs(...) or Pairs",
    )


def task_pairs(tokenized: TokenizedTask, reference: Literal["clean", "corrupt"] = "clean") -> Pairs:
    """Pairs of a task: the important paths see the `reference` prompt, all others the other one.

    Raises:
        PathError: a pair whose prompts differ in length.
    """
    other: Literal["clean", "corrupt"] = "corrupt" if reference == "clean" else "clean"
    left, right = tokenized.ids(reference), tokenized.ids(other)
    unequal = [i for i, (a, b) in enumerate(zip(left, right, strict=True)) if len(a) != len(b)]
    if unequal:
        i = unequal[0]
        raise PathError(
            f"{len(unequal)} pairs differ in length ({len(left[i])} and {len(right[i])} tokens), so that a position of "
            "one prompt has no partner",
            where=f"example {i} of task {tokenized.task.name!r}",
            fix="use a corruption that replaces tokens one by one, or leave these pairs out",
        )
    answers, wrong = tokenized.answers, tokenized.wrong
    if reference == "corrupt":
        answers, wrong = wrong, answers
    spans = tokenized.spans if reference == "clean" else tokenized.corrupt_spans
    return Pairs(
        left,
        right,
        [(len(ids) - 1,) for ids in left],
        [(ids[0] if ids else -1,) for ids in answers],
        answers,
        wrong,
        list(spans),
        tokenized.clusters,
        f"task {tokenized.task.name} ({tokenized.task.hash}), reference {reference}",
    )


def text_pairs(rows: Int[np.ndarray, "row token"], n: int, seed: int = 0, provenance: str = "text") -> Pairs:
    """`n` independent pairs of rows of a text, each drawn with replacement; the next token is read at every position.

    Args:
        rows: token ids; the last token of a row is a target only.

    Raises:
        PathError: fewer than two rows, or rows of fewer than two tokens.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] < 2:
        raise PathError(f"rows of shape {list(rows.shape)}", where="text_pairs", fix="give [row, token], two of each")
    draw = np.random.default_rng(seed)
    chosen = draw.integers(len(rows), size=n)
    others = (chosen + draw.integers(1, len(rows), size=n)) % len(rows)
    length = rows.shape[1] - 1
    return Pairs(
        rows[chosen, :-1].tolist(),
        rows[others, :-1].tolist(),
        [tuple(range(length))] * n,
        [tuple(row) for row in rows[chosen, 1:].tolist()],
        [[] for _ in range(n)],
        [[] for _ in range(n)],
        [{"END": (length - 1, length)} for _ in range(n)],
        [f"row {i}" for i in chosen.tolist()],
        f"{provenance}: {n} independent pairs of {len(rows)} rows, seed {seed}",
    )


def fixed_reference(rows: Int[np.ndarray, "row token"], row: int, n: int, seed: int = 0) -> Pairs:
    """One reference row with `n` counterfactual ones, drawn from the others with replacement: for attribution.

    Raises:
        PathError: no such row, or as `text_pairs`.
    """
    rows = np.asarray(rows)
    made = text_pairs(rows, n, seed)
    if not 0 <= row < len(rows):
        raise PathError(f"there is no row {row}", where="fixed_reference", fix=f"use 0 to {len(rows) - 1}")
    draw = np.random.default_rng(seed)
    others = (row + draw.integers(1, len(rows), size=n)) % len(rows)
    length = rows.shape[1] - 1
    reference, targets = rows[row, :-1].tolist(), tuple(rows[row, 1:].tolist())
    return Pairs(
        [list(reference) for _ in range(n)],
        rows[others, :-1].tolist(),
        made.read,
        [targets] * n,
        made.answers,
        made.wrong,
        [{"END": (length - 1, length)} for _ in range(n)],
        [f"row {i}" for i in others.tolist()],
        f"row {row} against {n} others of {len(rows)}, seed {seed}",
    )
