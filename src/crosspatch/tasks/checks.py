"""The single checks behind the gates: what token ids alone can tell, and tests on plain arrays of numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import bdtrc

from crosspatch.tasks.align import FIX, PositionMap, align, alignment_problems
from crosspatch.tasks.findings import GateFinding
from crosspatch.tasks.tokenize import SHOWN, TokenizedTask, show

ALPHA = 0.05  # level of the test of accuracy against chance


# ------------------------------------------------------------------------------------------------- without a model


def static_gates(
    tokenized: TokenizedTask,
    positions: PositionMap | None = None,
    *,
    context: int | None = None,
    vocab: int | None = None,
    answer_tokens_matter: bool = True,
) -> list[GateFinding]:
    """Everything that token ids alone can tell.

    Args:
        tokenized: the task.
        positions: its alignment, if it is known already.
        context: most tokens that the model takes.
        vocab: number of token ids that the model knows.
        answer_tokens_matter: whether the metric reads the tokens of the answers.
    """
    positions = positions or align(tokenized)
    found = [*tokenized.findings, _alignment(positions), _differs(tokenized), *_duplicates(tokenized)]
    if answer_tokens_matter:
        found += [_single_tokens(tokenized), *_answers_differ(tokenized)]
    if context is not None:
        found += _too_long(tokenized, context)
    if vocab is not None:
        found += _unknown_ids(tokenized, vocab)
    return found


def _alignment(positions: PositionMap) -> GateFinding:
    n, failing = len(positions), positions.failing
    if failing:
        message = f"{len(failing)} of {n} pairs do not align"
        return GateFinding("alignment", "failure", message, failing, tuple(alignment_problems(positions)), FIX)
    by_spans = sum(p.kind == "spans" for p in positions.pairs)
    return GateFinding("alignment", "info", f"{n - by_spans} pairs align token by token, {by_spans} by spans")


def _differs(tokenized: TokenizedTask) -> GateFinding:
    same = tuple(i for i, (a, b) in enumerate(zip(tokenized.clean, tokenized.corrupt, strict=True)) if a == b)
    if not same:
        return GateFinding("clean-differs", "info", "clean and corrupt differ in every pair")
    return GateFinding(
        "clean-differs",
        "failure",
        f"clean and corrupt are equal in {len(same)} of {len(tokenized)} pairs, where no patch can have an effect",
        same,
        tuple(f"{i}: {tokenized.display(i)}" for i in same[:SHOWN]),
        "change in the corrupt prompt what the answer depends on",
    )


def _duplicates(tokenized: TokenizedTask) -> list[GateFinding]:
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
    for i, pair in enumerate(zip(map(tuple, tokenized.clean), map(tuple, tokenized.corrupt), strict=True)):
        seen[pair].append(i)
    groups = [group for group in seen.values() if len(group) > 1]
    if not groups:
        return []
    return [
        GateFinding(
            "duplicates",
            "warning",
            f"{sum(len(g) - 1 for g in groups)} of {len(tokenized)} pairs repeat another, so intervals are too narrow",
            tuple(i for g in groups for i in g[1:]),
            tuple(f"{g}: {tokenized.display(g[0])}" for g in groups[:SHOWN]),
            "keep one of each, with all its answers as a set",
        )
    ]


def _single_tokens(tokenized: TokenizedTask) -> GateFinding:
    def split(i: int) -> list[list[int]]:
        return [ids for ids in tokenized.answer_tokens[i] + tokenized.wrong_tokens[i] if len(ids) > 1]

    failing = tuple(i for i in range(len(tokenized)) if split(i))
    if not failing:
        return GateFinding("single-token-answers", "info", "every answer is one token")
    readable = tokenized.encoder.readable
    shown = (f"{i}: " + ", ".join(show([readable(t) for t in ids]) for ids in split(i)[:3]) for i in failing[:SHOWN])
    return GateFinding(
        "single-token-answers",
        "failure",
        f"in {len(failing)} of {len(tokenized)} pairs an answer has several tokens; metrics read the first only",
        failing,
        tuple(shown),
        "choose answers that are one token with their leading space, keep the other pairs with "
        "tokenized.select(report.passing), or use a metric on text (cross_entropy)",
    )


def _answers_differ(tokenized: TokenizedTask) -> list[GateFinding]:
    rows = zip(tokenized.answers, tokenized.wrong, strict=True)
    failing = {i: sorted(set(right) & set(wrong)) for i, (right, wrong) in enumerate(rows) if set(right) & set(wrong)}
    if not failing:
        return []
    readable = tokenized.encoder.readable
    return [
        GateFinding(
            "answers-differ",
            "failure",
            f"in {len(failing)} of {len(tokenized)} pairs a right and a wrong answer begin with the same token",
            tuple(failing),
            tuple(f"{i}: {[readable(t) for t in ids]}" for i, ids in list(failing.items())[:SHOWN]),
            "choose answers whose first tokens differ",
        )
    ]


def _too_long(tokenized: TokenizedTask, context: int) -> list[GateFinding]:
    sizes = [max(len(a), len(b)) for a, b in zip(tokenized.clean, tokenized.corrupt, strict=True)]
    failing = tuple(i for i, n in enumerate(sizes) if n > context)
    if not failing:
        return []
    message = f"{len(failing)} of {len(sizes)} prompts are longer than the model's context of {context} tokens"
    shown = tuple(f"{i}: {sizes[i]} tokens" for i in failing[:SHOWN])
    return [
        GateFinding(
            "context", "failure", message, failing, shown, "shorten them, or use tokenized.select(report.passing)"
        )
    ]


def _unknown_ids(tokenized: TokenizedTask, vocab: int) -> list[GateFinding]:
    sides = zip(tokenized.clean, tokenized.corrupt, tokenized.answers, tokenized.wrong, strict=True)
    failing = tuple(i for i, lists in enumerate(sides) if max(t for ids in lists for t in ids) >= vocab)
    if not failing:
        return []
    message = (
        f"{len(failing)} of {len(tokenized)} pairs have token ids that the model (vocabulary {vocab}) does not know"
    )
    return [GateFinding("vocabulary", "failure", message, failing, fix="tokenize with the model's own tokenizer")]


# --------------------------------------------------------------------------------------------- on arrays of numbers


def behaviour(
    clean: Float[np.ndarray, " example"],
    corrupt: Float[np.ndarray, " example"],
    k: float = 2.0,
    better: Literal["higher", "lower"] = "higher",
    metric: str = "metric",
    shown: Sequence[str] = (),
) -> list[GateFinding]:
    """Does the clean prompt beat the corrupt one by k standard errors of the paired gap?

    gap_i = clean_i - corrupt_i (sign turned where lower is better); the gate asks for mean(gap) > k * sd(gap) / sqrt(n)
    and mean(gap) > 0. With one example there is no standard error, and the gate only warns.

    Args:
        clean, corrupt: the metric per example.
        k: standard errors.
        better: which way the metric points.
        metric: its name, for messages.
        shown: a readable text per example.
    """
    gap = (clean - corrupt) * (1.0 if better == "higher" else -1.0)
    n = len(gap)
    if bad := tuple(np.flatnonzero(~np.isfinite(gap)).tolist()):
        message = f"{metric} is not a finite number in {len(bad)} of {n} examples"
        return [
            GateFinding(
                "behaviour", "failure", message, bad, _pick(shown, bad), "check the model's dtype and the metric"
            )
        ]
    mean = float(gap.mean())
    error = float(gap.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    numbers = (
        f"{metric}: clean {clean.mean():.3g}, corrupt {corrupt.mean():.3g}, gap {mean:.3g} +- {error:.2g} (n = {n})"
    )
    weak = tuple(np.flatnonzero(gap <= 0).tolist())
    if mean <= 0 or (n > 1 and mean <= k * error):
        return [
            GateFinding(
                "behaviour",
                "failure",
                f"{numbers}: the clean prompts do not beat the corrupt ones by {k:g} standard errors",
                weak,
                _pick(shown, weak),
                "use a model that does this task, other prompts, or a corruption that changes the answer",
            )
        ]
    if n == 1:
        return [
            GateFinding("behaviour", "warning", f"{numbers}: one example has no standard error", fix="use more pairs")
        ]
    found = [GateFinding("behaviour", "info", numbers)]
    if weak:
        message = f"in {len(weak)} of {n} examples the clean prompt does not beat the corrupt one"
        found.append(GateFinding("behaviour-examples", "warning", message, weak, _pick(shown, weak)))
    return found


def preference(
    prefers: Bool[np.ndarray, " example"],
    chance: float | None = 0.5,
    flips: Bool[np.ndarray, " example"] | None = None,
    shown: Sequence[str] = (),
) -> list[GateFinding]:
    """Does the model prefer the right answer on the clean prompts?

    Args:
        prefers: per example, whether it does.
        chance: probability of preferring it by guessing among the right and wrong answers; the accuracy must exceed
            it by a one-sided binomial test at level 0.05. None where there are no wrong answers: then the right one
            must be the most likely token of all in at least half of the examples.
        flips: per example, whether the model prefers the wrong answer on the corrupt prompt.
        shown: a readable text per example.
    """
    n, right = len(prefers), int(prefers.sum())
    failing = tuple(np.flatnonzero(~prefers).tolist())
    what = "prefers the right answer to the wrong" if chance is not None else "has the right answer on top"
    message = f"on {right} of {n} clean prompts the model {what}"
    fix = "use a model that does this task, or keep the examples that it does with tokenized.select(...)"
    too_few = False
    if chance is None:
        fails = right < n / 2
    else:
        fails = bool(bdtrc(right - 1, n, chance) >= ALPHA)  # P(at least this many right by guessing)
        too_few = chance**n >= ALPHA and right == n
        message += f" (chance {chance:.2g})"
    if too_few:
        message += ": too few examples to tell from chance"
        found = [GateFinding("accuracy", "warning", message, fix="use more pairs")]
    elif fails:
        found = [GateFinding("accuracy", "failure", message, failing, _pick(shown, failing), fix)]
    else:
        found = [GateFinding("accuracy", "warning" if failing else "info", message, failing, _pick(shown, failing))]
    if flips is not None and chance is not None:
        kind = (
            "flips the answer" if flips.mean() > 0.5 else "takes the answer away without putting the other in its place"
        )
        message = f"on {int(flips.sum())} of {n} corrupt prompts the model prefers the wrong answer: it mostly {kind}"
        found.append(GateFinding("corruption", "info", message))
    return found


def _pick(shown: Sequence[str], examples: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{i}: {shown[i]}" for i in examples[:SHOWN]) if shown else ()
