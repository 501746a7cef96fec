"""A task is a list of prompt pairs that differ in one thing, with the answers that count.

Plain data: frozen dataclasses that turn into JSON and back. Nothing here knows a tokenizer or a model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from crosspatch.errors import TaskError

if TYPE_CHECKING:
    from crosspatch.tasks.tokenize import TokenizedTask

Side = Literal["clean", "corrupt"]
CharSpan = tuple[int, int]


def _texts(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True)
class Pair:
    """One clean prompt and one corrupt prompt.

    Args:
        clean: prompt on which the model shows the behaviour. Ends before the answer, without a trailing space.
        corrupt: the same prompt with the decisive part exchanged.
        answers: texts that count as right after the clean prompt. They continue the prompt, so a word carries
            its leading space (`" Mary"`). Several = a set.
        wrong: texts that count as wrong, same form. May be empty where the metric needs none.
        spans: name -> where in the clean prompt; a half-open character range, or a text that occurs there once.
        corrupt_spans: the same for the corrupt prompt. Names left out are taken to sit at the clean span's tokens,
            which is only possible if both prompts have the same number of tokens.
        template: what the pair shares with others of its kind (unit of held-out splits and of clustered intervals).
        corruption: name of what was done to the clean prompt.
        meta: further facts that are worth keeping; JSON values.

    Raises:
        TaskError: an empty prompt or answer, or a span that is not in its prompt.
    """

    clean: str
    corrupt: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    spans: Mapping[str, str | CharSpan] = field(default_factory=dict)
    corrupt_spans: Mapping[str, str | CharSpan] = field(default_factory=dict)
    template: str = ""
    corruption: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("answers", "wrong"):
            object.__setattr__(self, name, _texts(getattr(self, name)))
        for name in ("spans", "corrupt_spans"):
            spans = {k: v if isinstance(v, str) else (int(v[0]), int(v[1])) for k, v in getattr(self, name).items()}
            object.__setattr__(self, name, spans)
        for side in ("clean", "corrupt"):
            if not isinstance(getattr(self, side), str) or not getattr(self, side):
                raise TaskError(f"the {side} prompt is {getattr(self, side)!r}", fix="give a text that is not empty")
        if not self.answers or not all(isinstance(a, str) and a for a in self.answers + self.wrong):
            raise TaskError(
                f"answers={self.answers!r}, wrong={self.wrong!r}",
                where=f"pair {self.clean!r}",
                fix="give at least one right answer, and no empty text, e.g. answers=(' Mary',), wrong=(' John',)",
            )
        self.char_spans("clean")
        self.char_spans("corrupt")

    def char_spans(self, side: Side) -> dict[str, CharSpan]:
        """Spans of one side as half-open character ranges of that prompt."""
        text = self.clean if side == "clean" else self.corrupt
        spans = self.spans if side == "clean" else self.corrupt_spans
        return {name: _char_span(text, name, span, side) for name, span in spans.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `Pair.from_dict` reads it back. Fields that say nothing are left out."""
        out: dict[str, Any] = {"clean": self.clean, "corrupt": self.corrupt, "answers": list(self.answers)}
        out["wrong"] = list(self.wrong)
        for name in ("spans", "corrupt_spans"):
            if getattr(self, name):
                out[name] = {k: v if isinstance(v, str) else list(v) for k, v in getattr(self, name).items()}
        for name in ("template", "corruption"):
            if getattr(self, name):
                out[name] = getattr(self, name)
        if self.meta:
            out["meta"] = dict(self.meta)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Pair:
        unknown = set(data) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise TaskError(
                f"unknown fields {sorted(unknown)} in a pair", fix="use the fields of crosspatch.tasks.Pair"
            )
        return cls(**data)


def _char_span(text: str, name: str, span: str | CharSpan, side: str) -> CharSpan:
    where = f"span {name!r} of the {side} prompt {text!r}"
    if name == "END":
        raise TaskError("END is defined for every prompt (its last token)", where=where, fix="choose another name")
    if isinstance(span, str):
        found = text.count(span) if span else 0
        if found != 1:
            raise TaskError(f"the text {span!r} occurs {found} times", where=where, fix="give a range (start, end)")
        start = text.index(span)
        return start, start + len(span)
    start, end = span
    if not 0 <= start < end <= len(text):
        raise TaskError(
            f"the range {span} does not lie in a text of {len(text)} characters",
            where=where,
            fix="give a half-open range 0 <= start < end <= len(text)",
        )
    return start, end


@dataclass(frozen=True)
class Task:
    """Prompt pairs with what they are about.

    Args:
        name: short, used in file names.
        pairs: at least one.
        provenance: where the pairs come from (source, licence, citation, how they were made).
        varies: what differs between clean and corrupt; a result is about this difference only.
        holds: what is the same on both sides, to which a result is blind.
        description: the behaviour in one sentence.
    """

    name: str
    pairs: tuple[Pair, ...]
    provenance: str = ""
    varies: str = ""
    holds: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple(self.pairs))
        if not self.pairs:
            raise TaskError("no pairs", where=f"task {self.name!r}", fix="give at least one Pair")

    def __len__(self) -> int:
        return len(self.pairs)

    @classmethod
    def from_lists(
        cls,
        name: str,
        clean: Sequence[str],
        corrupt: Sequence[str],
        answers: Sequence[str | Sequence[str]],
        wrong: Sequence[str | Sequence[str]] | None = None,
        **statements: str,
    ) -> Task:
        """A task from parallel lists, one entry per pair. `statements` are `varies`, `holds`, `provenance`, ...

        Raises:
            TaskError: the lists have different lengths; nothing is broadcast or cut.
        """
        columns = {"clean": clean, "corrupt": corrupt, "answers": answers}
        columns |= {"wrong": wrong if wrong is not None else [()] * len(clean)}
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) > 1 or any(isinstance(column, str) for column in columns.values()):
            raise TaskError(
                "the lists do not pair up: " + ", ".join(f"{n} {key}" for key, n in lengths.items()),
                where=f"task {name!r}",
                fix="give lists with one entry per pair (repeat a prompt that is used several times)",
            )
        pairs = [Pair(a, b, _texts(right), _texts(bad)) for a, b, right, bad in zip(*columns.values(), strict=True)]
        return cls(name, tuple(pairs), **statements)

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Names of the corruptions, in order of appearance."""
        return tuple(dict.fromkeys(p.corruption for p in self.pairs))

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the pairs, in order: equal hash = the same experiment."""
        text = json.dumps([p.to_dict() for p in self.pairs], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `Task.from_dict` reads it back."""
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "pairs"}
        out["pairs"] = [p.to_dict() for p in self.pairs]
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Task:
        pairs = tuple(Pair.from_dict(p) for p in data["pairs"])
        return cls(pairs=pairs, **{f.name: data.get(f.name, "") for f in dataclasses.fields(cls) if f.name != "pairs"})

    def filter(self, keep: Callable[[Pair], bool]) -> Task:
        """The pairs for which `keep` is true. Raises TaskError if none is."""
        return dataclasses.replace(self, pairs=tuple(p for p in self.pairs if keep(p)))

    def sample(self, n: int, seed: int = 0) -> Task:
        """`n` pairs without replacement, in the order of the task.

        Raises:
            TaskError: fewer than `n` pairs.
        """
        if not 1 <= n <= len(self):
            raise TaskError(f"cannot sample {n} of {len(self)} pairs", where=f"task {self.name!r}", fix="ask for fewer")
        chosen = sorted(random.Random(seed).sample(range(len(self)), n))
        return dataclasses.replace(self, pairs=tuple(self.pairs[i] for i in chosen))

    def split(
        self, held_out: float = 0.25, seed: int = 0, by: Literal["template", "pair"] | None = None
    ) -> tuple[Task, Task]:
        """Split into (train, held out) so that nothing is on both sides.

        No prompt text, clean or corrupt, occurs in both parts: pairs that share a prompt stay together, and so do
        pairs of one template when splitting by template. Held-out prompts of known templates test new words;
        held-out templates test new sentences, which is the stronger claim.

        Args:
            held_out: wanted share of the held-out part, in (0, 1). Groups are kept whole, so the share is approximate.
            seed: which groups are held out.
            by: "template" or "pair"; by default "template" if there is more than one group that way, else "pair".

        Raises:
            TaskError: all pairs hang together, so that no split without leakage exists.
        """
        if not 0 < held_out < 1:
            raise TaskError(f"held_out={held_out}", where=f"task {self.name!r}", fix="give a share between 0 and 1")
        groups = self._groups(by_template=by != "pair")
        if by is None and len(groups) < 2:
            groups = self._groups(by_template=False)
        if len(groups) < 2:
            raise TaskError(
                f"all {len(self)} pairs hang together (shared prompts" + (" or one template)" if by != "pair" else ")"),
                where=f"splitting task {self.name!r}",
                fix="add pairs with other prompts" + (", or split with by='pair'" if by == "template" else ""),
            )
        random.Random(seed).shuffle(groups)
        target = held_out * len(self)
        chosen: set[int] = set()
        taken = 0
        for group in groups:
            if abs(len(chosen) + len(group) - target) < abs(len(chosen) - target) and taken < len(groups) - 1:
                chosen.update(group)
                taken += 1
        if not chosen:
            chosen.update(sorted(groups, key=len)[0])
        parts = [[p for i, p in enumerate(self.pairs) if (i in chosen) == held] for held in (False, True)]
        train, test = (dataclasses.replace(self, pairs=tuple(part)) for part in parts)
        return train, dataclasses.replace(test, name=f"{self.name}-held-out")

    def _groups(self, by_template: bool) -> list[list[int]]:
        """Connected components of pairs (as indices) that share a prompt, or a template where asked."""
        parent = list(range(len(self.pairs)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        first: dict[tuple[str, str], int] = {}
        for i, pair in enumerate(self.pairs):
            keys = [("prompt", pair.clean), ("prompt", pair.corrupt)]
            for key in keys + ([("template", pair.template)] if by_template else []):
                parent[root(i)] = root(first.setdefault(key, i))
        groups: dict[int, list[int]] = defaultdict(list)
        for i in range(len(self.pairs)):
            groups[root(i)].append(i)
        return list(groups.values())

    def tokenize(self, tokenizer: Any, add_bos: bool | None = None) -> TokenizedTask:
        """Token ids, answers and spans for one tokenizer; see `crosspatch.tasks.tokenize.tokenize`."""
        from crosspatch.tasks.tokenize import tokenize

        return tokenize(self, tokenizer, add_bos=add_bos)


def concat(tasks: Iterable[Task], name: str | None = None) -> Task:
    """The pairs of several tasks, in order; the statements are joined where they differ.

    Use it to put several corruptions of one behaviour into one table (spec rule A7).
    """
    parts = list(tasks)
    if not parts:
        raise TaskError("no tasks to join", fix="give at least one Task")

    def joined(attribute: str) -> str:
        return " / ".join(dict.fromkeys(getattr(t, attribute) for t in parts if getattr(t, attribute)))

    texts = {f: joined(f) for f in ("provenance", "varies", "holds", "description")}
    label = name or "+".join(dict.fromkeys(t.name for t in parts))
    return Task(label, tuple(p for t in parts for p in t.pairs), **texts)
