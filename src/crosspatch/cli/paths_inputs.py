"""What `crosspatch paths` works on: pairs of a task or of a text, and hypotheses from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from crosspatch.cli.console import note
from crosspatch.cli.inputs import load_task
from crosspatch.errors import PathError, TaskError

if TYPE_CHECKING:
    from crosspatch.model import Model
    from crosspatch.paths.files import Hypotheses
    from crosspatch.paths.pairs import Pairs
    from crosspatch.paths.pathset import PathSet
    from crosspatch.tasks import GateReport
    from crosspatch.tasks.tokenize import TokenizedTask

LARGEST_TEXT = 2**26
EXPLAINED = 64
"""Tokens of a prompt whose paths are still explained."""
FEWEST = 2
"""Counterfactuals of an attribution: with one there would be no interval."""


@dataclass(frozen=True)
class Given:
    """What a command runs on.

    Attributes:
        pairs: reference and counterfactual.
        gates: what the gates said; None for a text, which has no behaviour to check.
        following: of an attribution, the token that should come after the reference prompt; empty otherwise.
        about: what the pairs are, in words.
    """

    pairs: Pairs
    gates: GateReport | None = None
    following: str = ""
    about: dict[str, str] = field(default_factory=dict)

    @property
    def forced(self) -> bool:
        """Whether a gate failed and the run went on."""
        return self.gates is not None and self.gates.forced


@dataclass(frozen=True)
class Asked:
    """The options that say which pairs are meant."""

    task: str
    corruption: str | None
    n: int
    seed: int
    reference: str
    text: Path | None
    length: int
    force: bool


def pairs_of(model: Model, asked: Asked) -> Given:
    """Pairs to score hypotheses on.

    Raises:
        TaskError, GateError: see `load_task` and the gates. PathError: prompts of unequal lengths, a text too short.
    """
    from crosspatch.paths.pairs import task_pairs, text_pairs

    if asked.text is not None:
        rows, about = text_rows(model, asked.text, asked.length)
        return Given(text_pairs(rows, asked.n, asked.seed, str(asked.text)), about=about)
    tokenized, report = _gated(model, asked)
    side: Any = asked.reference
    return Given(task_pairs(tokenized, side), report, about=_told(tokenized))


def attribution_pairs(model: Model, asked: Asked, example: int | None, answers_only: bool) -> Given:
    """One reference prompt with many counterfactuals; of the first example that can be one, where none is named.

    Of a text: row `example` against other rows. Of a task: the clean prompt of pair `example` against the corrupt
    prompts of all other pairs that have as many tokens. What comes next is read at every token of the prompt, at the
    last one the right answer; with `answers_only` only there.

    Raises:
        TaskError: no such pair, or fewer than two prompts of that length.
    """
    from crosspatch.paths.pairs import Pairs, fixed_reference

    if asked.text is not None:
        rows, about = text_rows(model, asked.text, asked.length)
        row = example or 0
        _require_example(row, len(rows), str(asked.text))
        return Given(fixed_reference(rows, row, asked.n, asked.seed), None, _decoded(model, rows[row][-1]), about)
    tokenized, report = _gated(model, asked)
    partners = [_partners(tokenized, i) for i in range(len(tokenized))]
    enough = [i for i, found in enumerate(partners) if len(found) >= FEWEST]
    where = f"task {tokenized.task.name!r}"
    if example is None and enough:
        example = enough[0]
    example = example or 0
    _require_example(example, len(tokenized), where)
    others = partners[example]
    ids = tokenized.clean[example]
    if len(others) < FEWEST:
        other = f"choose another --example ({', '.join(map(str, enough[:5]))}), or " if enough else ""
        raise TaskError(
            f"{len(others)} other corrupt prompts have {len(ids)} tokens as the clean prompt of pair {example} has",
            where=where,
            fix=f"at least {FEWEST} are needed: {other}raise --n",
        )
    answers, wrong = tokenized.answers[example], tokenized.wrong[example]
    last, n = len(ids) - 1, len(others)
    answer = answers[0] if answers else -1
    read = (last,) if answers_only else tuple(range(len(ids)))
    targets = (answer,) if answers_only else (*ids[1:], answer)
    pairs = Pairs(
        [list(ids)] * n,
        [tokenized.corrupt[i] for i in others],
        [read] * n,
        [targets] * n,
        [answers] * n,
        [wrong] * n,
        [tokenized.spans[example]] * n,
        [tokenized.clusters[i] for i in others],
        f"task {tokenized.task.name} ({tokenized.task.hash}), clean prompt of pair {example} against {n} corrupt ones",
    )
    return Given(pairs, report, _decoded(model, answer) if answers else "", _told(tokenized))


def _partners(tokenized: TokenizedTask, example: int) -> list[int]:
    """Other pairs whose corrupt prompt has as many tokens as this pair's clean prompt."""
    length = len(tokenized.clean[example])
    return [i for i, row in enumerate(tokenized.corrupt) if i != example and len(row) == length]


def text_rows(model: Model, path: Path, length: int) -> tuple[Int[np.ndarray, "row token"], dict[str, str]]:
    """Rows of `length` + 1 tokens, the last one a target only: the beginnings of the lines that are long enough.

    A line of a `.jsonl` file is a list of token ids or a text in quotes; any other file is plain text.

    Raises:
        PathError: a file that cannot be read, ids that the model does not have, or fewer than two rows.
    """
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise PathError(f"is larger than {LARGEST_TEXT // 2**20} MiB", where=str(path), fix="cut it")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PathError(f"cannot be read ({error})", where=str(path), fix="give a text file in UTF-8") from error
    if model.context is not None and length > model.context:
        raise PathError(
            f"--length {length} is too long", where=str(path), fix=f"the model takes {model.context} tokens"
        )
    encode = _encoder(model, path)
    is_json = path.suffix.lower() in (".jsonl", ".ndjson")
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            value = _value(line, f"{path}, line {number}") if is_json else line
            ids = value if isinstance(value, list) else encode(value)
            _require_ids(ids, model.n_tokens, f"{path}, line {number}")
            rows.append(ids)
    kept = [ids[: length + 1] for ids in rows if len(ids) > length]
    if len(kept) < len(rows):
        note(f"{len(rows) - len(kept)} of {len(rows)} lines have fewer than {length + 1} tokens and are left out.")
    if len(kept) < FEWEST:
        raise PathError(
            f"{len(kept)} lines have {length + 1} tokens or more",
            where=str(path),
            fix="lower --length, or give a text with longer lines (at least two)",
        )
    about = {
        "text": f"{len(kept)} rows of {length} tokens from {path}",
        "left out as too short": str(len(rows) - len(kept)),
    }
    return np.asarray(kept), about


def _encoder(model: Model, path: Path) -> Any:
    from crosspatch.tasks.encode import Encoder

    if model.tokenizer is None:

        def refuse(_: str) -> list[int]:
            raise PathError("the model has no tokenizer", where=str(path), fix="give rows of token ids (.jsonl)")

        return refuse
    encoder = Encoder(model.tokenizer)
    return lambda text: encoder.encode(text).ids


def _value(line: str, where: str) -> str | list[int]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise PathError(
            f"is not JSON ({error})", where=where, fix="one list of token ids or one text per line"
        ) from error
    if isinstance(value, str) or (isinstance(value, list) and all(type(i) is int for i in value)):
        return value
    raise PathError("is neither a list of token ids nor a text", where=where, fix='write [5, 17, 3] or "a text"')


def _require_ids(ids: list[int], vocab: int, where: str) -> None:
    if any(not 0 <= i < vocab for i in ids):
        wrong = next(i for i in ids if not 0 <= i < vocab)
        raise PathError(f"token id {wrong} does not exist", where=where, fix=f"the model has ids 0 to {vocab - 1}")


def _require_example(example: int, n: int, where: str) -> None:
    if not 0 <= example < n:
        raise TaskError(f"there is no example {example}", where=where, fix=f"--example takes 0 to {n - 1}")


def _gated(model: Model, asked: Asked) -> tuple[TokenizedTask, GateReport]:
    """The task in tokens, once the gates let it pass.

    Raises:
        GateError: a gate failed and --force was not given.
    """
    from crosspatch.tasks import gates
    from crosspatch.tasks.tokenize import tokenize

    tokenized = tokenize(load_task(asked.task, model.tokenizer, asked.n, asked.seed, asked.corruption), model.tokenizer)
    return tokenized, gates(model, tokenized).require(asked.force)


def _told(tokenized: TokenizedTask) -> dict[str, str]:
    task = tokenized.task
    said = {"behaviour": task.description, "varies": task.varies, "held fixed": task.holds}
    return {name: text for name, text in said.items() if text}


def _decoded(model: Model, token: int) -> str:
    return str(model.tokenizer.decode([int(token)])) if model.tokenizer is not None else str(token)


def one_hypothesis(found: Hypotheses, name: str | None, path: Path) -> tuple[str, PathSet]:
    """The hypothesis of that name, or the only one.

    Raises:
        PathError: no such name, or several and none was named.
    """
    names = list(found.named)
    listed = ", ".join(map(repr, names))
    if name is None and len(names) > 1:
        raise PathError(f"it holds {len(names)} hypotheses", where=str(path), fix=f"choose one with --name: {listed}")
    chosen = names[0] if name is None else name
    if chosen not in found.named:
        raise PathError(f"no hypothesis {chosen!r}", where=str(path), fix=f"--name takes {listed}")
    return chosen, found.named[chosen]


def in_words(claim: PathSet, model: Model, pairs: Pairs) -> str:
    """What a hypothesis says; of the first prompt where it names positions, and nothing where that prompt is long."""
    from crosspatch.paths.automaton import vocabulary
    from crosspatch.paths.in_words import explain

    words = vocabulary([claim], model.shape)
    if not (words.positions or words.windows):
        return explain(claim, model.shape)
    # Paths from token to token are counted one token at a time.
    return explain(claim, model.shape, pairs) if len(pairs.reference[0]) <= EXPLAINED else ""


def patterns_of(claim: PathSet, name: str) -> list[str]:
    """The patterns of a hypothesis that the discovery loop can change: a union of `** -> ...`.

    Raises:
        PathError: something else than a union, or patterns of another kind.
    """
    from crosspatch.paths.pathset import Combined, Pattern

    if isinstance(claim, Combined) and claim.how == "or":
        return [text for part in claim.parts for text in patterns_of(part, name)]
    text = str(claim.route) if isinstance(claim, Pattern) else None
    start = "input -> ** -> "
    if text is None or not text.startswith(start):
        raise PathError(
            f"{claim} is no plain pattern that begins with '** ->'",
            where=f"hypothesis [{name}]",
            fix="refine changes one pattern at a time: write lines such as ** -> a9.h6.q -> logits, without - and &",
        )
    return [f"** -> {text.removeprefix(start)}"]
