"""Who says which features of a circuit have nothing to do with the task: a person, or a labelled substitute for one.

A judge is any function from a `Candidate` to a verdict; what it is stands in every result. Only `ablate` takes a
feature out: what a judge is unsure of stays.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from crosspatch.dictionaries.cards import Card
from crosspatch.errors import CircuitError
from crosspatch.results.files import write_json

Verdict = Literal["keep", "ablate", "unsure"]
PERSON = "a person, by feature cards"


class Judgement(NamedTuple):
    """What a judge says about a feature, and why."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Candidate:
    """A feature that is judged.

    Attributes:
        place, feature: which one.
        effect: its mean effect on the classifier's logit, the right class being positive.
        card: where it is active and what it promotes.
    """

    place: str
    feature: int
    effect: float
    card: Card

    @property
    def name(self) -> str:
        """`r2.post/17`."""
        return f"{self.place}/{self.feature}"


Judge = Callable[[Candidate], Judgement | Verdict]


def ask(judge: Judge, candidates: Iterable[Candidate]) -> dict[str, Judgement]:
    """Every candidate's judgement, by name.

    Raises:
        CircuitError: a verdict that is none.
    """
    found = {}
    for candidate in candidates:
        said = judge(candidate)
        judgement = Judgement(said) if isinstance(said, str) else said
        if judgement.verdict not in get_args(Verdict):
            raise CircuitError(
                f"{judgement.verdict!r} is no verdict",
                where=f"judge, {candidate.name}",
                fix=f"say one of {', '.join(get_args(Verdict))}",
            )
        found[candidate.name] = judgement
    return found


def about(judge: Judge) -> str:
    """What a judge is, in words."""
    return str(getattr(judge, "about", f"the function {getattr(judge, '__name__', type(judge).__name__)}"))


@dataclass(frozen=True)
class TokenList:
    """Ablates what is about words of a list: features that are active on them, or promote them.

    Attributes:
        words: the list; case does not matter.
        share: of the card's contexts, or of its promoted tokens, from which a feature counts as about them.
    """

    words: frozenset[str]
    share: float = 0.5

    @classmethod
    def of(cls, words: Iterable[str], share: float = 0.5) -> TokenList:
        return cls(frozenset(word.strip().casefold() for word in words), share)

    @property
    def about(self) -> str:
        return f"a list of {len(self.words)} words (not a person): active on them or promoting them"

    def __call__(self, candidate: Candidate) -> Judgement:
        card = candidate.card
        active = [context.tokens[context.at] for context in card.top]
        promoted = [token for token, _ in card.promoted]
        hits = [sum(self._listed(token) for token in tokens) for tokens in (active, promoted)]
        said = f"active on listed words in {hits[0]} of {len(active)} contexts, {hits[1]} of {len(promoted)} promoted"
        shares = [n / len(tokens) if tokens else 0.0 for n, tokens in zip(hits, (active, promoted), strict=True)]
        if max(shares) >= self.share:
            return Judgement("ablate", said)
        return Judgement("keep" if max(shares) < self.share / 2 else "unsure", said)

    def _listed(self, token: str) -> bool:
        return token.strip().casefold() in self.words


@dataclass(frozen=True)
class ByScores:
    """Ablates what speaks more of the other attribute than of the label, by two scores of each feature.

    Attributes:
        scores: feature name -> (score for the other attribute, score for the label).
        about: where the scores come from, and which labels they needed.
        unit: what the scores are, for reasons.
    """

    scores: Mapping[str, tuple[float, float]]
    about: str
    unit: str

    def __call__(self, candidate: Candidate) -> Judgement:
        other, label = self.scores[candidate.name]
        said = f"{self.unit}: {other:+.3g} for the other attribute, {label:+.3g} for the label"
        if other <= 0 and label <= 0:
            return Judgement("unsure", said)
        return Judgement("ablate" if other > label else "keep", said)


@dataclass(frozen=True)
class Answers:
    """What a person said, read from a file.

    Attributes:
        answers: feature name -> verdict.
        notes: feature name -> what the person wrote.
        source: the file.
    """

    answers: Mapping[str, Verdict]
    notes: Mapping[str, str]
    source: str

    @property
    def about(self) -> str:
        return f"{PERSON} ({self.source})"

    def __call__(self, candidate: Candidate) -> Judgement:
        if candidate.name not in self.answers:
            raise CircuitError(
                f"has no answer for {candidate.name}",
                where=self.source,
                fix="answer every feature of the cards page; 'unsure' is an answer. Answers belong to one circuit: "
                "use the command that wrote the page",
            )
        return Judgement(self.answers[candidate.name], self.notes.get(candidate.name, ""))


def read_answers(path: str | Path) -> Answers:
    """Answers from the file that the cards page saves, a template that was filled in, or a CSV with the columns
    `feature` and `verdict` (and `note`).

    Raises:
        CircuitError: not there, not of that form, or a word that is no verdict.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        answers, notes = _from_csv(text) if path.suffix.lower() == ".csv" else _from_json(text)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise CircuitError(
            f"cannot be read as answers ({error})",
            where=str(path),
            fix='give JSON {"answers": {"r2.post/17": "ablate", ...}} or a CSV with columns feature, verdict',
        ) from error
    for name, verdict in answers.items():
        if verdict not in get_args(Verdict):
            raise CircuitError(
                f"{verdict!r} is no verdict for {name}" if verdict else f"{name} has no verdict yet",
                where=str(path),
                fix=f"say one of {', '.join(get_args(Verdict))}",
            )
    return Answers(answers, notes, path.name)  # type: ignore[arg-type]


def _from_json(text: str) -> tuple[dict[str, str], dict[str, str]]:
    data: dict[str, Any] = json.loads(text)
    told, notes = data["answers"], data.get("notes", {})
    return {str(k): str(v) for k, v in told.items()}, {str(k): str(v) for k, v in notes.items()}


def _from_csv(text: str) -> tuple[dict[str, str], dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    told = {row["feature"]: (row["verdict"] or "").strip() for row in rows}
    return told, {row["feature"]: row.get("note") or "" for row in rows}


def write_template(path: Path, candidates: Sequence[Candidate]) -> bool:
    """An answers file with every verdict still to be given; an existing file is left as it is.

    Returns:
        whether it was written.
    """
    if path.exists():
        return False
    write_json(path, {"answers": {c.name: "" for c in candidates}, "notes": {c.name: "" for c in candidates}})
    return True
