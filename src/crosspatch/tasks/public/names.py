"""Public sets of indirect object identification."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from crosspatch.errors import TaskError
from crosspatch.tasks.generate import ioi
from crosspatch.tasks.generate.base import Behaviour, Vocabulary, next_word
from crosspatch.tasks.pairs import Pair, Task
from crosspatch.tasks.public.source import Source, json_lines, read_json

_TWO_NAMES = re.compile(r"\b([A-Z]\w+) and ([A-Z]\w+)\b")


def sources(folder: Path) -> Iterator[Source]:
    task = "task of Wang et al. 2022 (arXiv 2211.00593)"
    yield Source(
        "ioi/eap_ig",
        folder / "ioi" / "ioi_eap_ig.csv",
        f"github.com/hannamw/EAP-IG, MIT licence; Hanna et al. 2024 (arXiv 2403.17806); {task}",
        _eap_ig,
        ("symmetric", "s2-new"),
    )
    yield Source(
        "ioi/dpa",
        folder / "ioi" / "ioi_dpa.jsonl",
        f"github.com/lab-paper-code/dual_path_attribution, MIT licence; {task}; corrupt prompts made here",
        _dpa,
        ("symmetric", "swap", "order"),
    )
    yield Source(
        "ioi/mib",
        folder / "ioi" / "mib_templates.json",
        f"templates of github.com/aaronmueller/MIB, Apache-2.0; Mueller et al. 2025 (arXiv 2504.13151); {task}; ",
        _mib,
        tuple(ioi.CORRUPTIONS),
    )


def _eap_ig(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None) -> Task:
    """Names are taken from the text; the token ids in the file belong to another tokenizer."""
    column = {"symmetric": "corrupted_hard", "s2-new": "corrupted"}[corruption]
    pairs = []
    with path.open(encoding="utf-8", newline="") as f:
        for number, row in enumerate(csv.DictReader(f), 2):
            where = f"{path}, line {number}"
            io, s = _io_and_subject(row["clean"], where)
            pairs.append(_pair(row["clean"], row[column], io, s, corruption, where))
    return _task(pairs, corruption)


def _dpa(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None) -> Task:
    pairs = []
    for number, row in enumerate(json_lines(path), 1):
        where, clean = f"{path}, line {number}", row["prompt"]
        io, s = _io_and_subject(clean, where)
        if io != row["answer"]:
            raise TaskError(
                f"the answer {row['answer']!r} is not the name said once", where=where, fix="use the original file"
            )
        corrupt_names, _ = ioi.roles(corruption, io, s, ["", "", ""])
        spans = _spans(clean, io, s)
        corrupt = clean
        for role, name in sorted(zip(("IO", "S1", "S2"), corrupt_names, strict=True), key=lambda x: -spans[x[0]][0]):
            corrupt = corrupt[: spans[role][0]] + name + corrupt[spans[role][1] :]
        pairs.append(_pair(clean, corrupt, io, s, corruption, where))
    return _task(pairs, corruption)


def _mib(path: Path, corruption: str, seed: int, words: Vocabulary, n: int | None) -> Task:
    fields = {"name_A": "A", "name_B": "B", "name_C": "S", "place": "PLACE", "object": "OBJECT"}
    frames = [re.sub(r"\{(\w+)\}", lambda m: "{" + fields[m[1]] + "}", t) for t in read_json(path)]
    names, places, objects = (read_json(path.with_name(f"mib_{kind}.json")) for kind in ("names", "places", "objects"))
    # No object begins with a vowel, so the templates with "an" would not be English.
    material = ioi.Material([f for f in frames if "an {OBJECT}" not in f], names, places, objects)

    def draw(rng: Random, kind: str, vocabulary: Vocabulary) -> Pair:
        return ioi.draw(rng, kind, vocabulary, material)

    behaviour = Behaviour("ioi/mib", ioi.IOI.description, "the MIB templates", ioi.CORRUPTIONS, draw)
    tokenizer = words.encoder.tokenizer if words.encoder else None
    return behaviour.make(n if n is not None else 64, seed, corruption, tokenizer)


def _task(pairs: list[Pair], corruption: str) -> Task:
    kind = ioi.CORRUPTIONS[corruption]
    return Task("ioi", tuple(pairs), "", kind.varies, kind.holds, ioi.IOI.description)


def _io_and_subject(text: str, where: str) -> tuple[str, str]:
    """The name that is said once and the one that is said again."""
    match = _TWO_NAMES.search(text)
    counts = {name: len(_places(text, name)) for name in match.groups()} if match else {}
    by_count = {count: name for name, count in counts.items()}
    if set(by_count) != {1, 2}:
        raise TaskError(
            f"found the names {counts} in {text!r}", where=where, fix="one name must be said once and one twice"
        )
    return by_count[1], by_count[2]


def _places(text: str, name: str) -> list[tuple[int, int]]:
    return [m.span() for m in re.finditer(rf"\b{re.escape(name)}\b", text)]


def _spans(clean: str, io: str, s: str) -> dict[str, tuple[int, int]]:
    first, second = _places(clean, s)
    spans = {"IO": _places(clean, io)[0], "S1": first, "S1+1": next_word(clean, first[1]), "S2": second}
    return dict(sorted(spans.items(), key=lambda item: item[1]))


def _pair(clean: str, corrupt: str, io: str, s: str, corruption: str, where: str) -> Pair:
    """Spans of the corrupt prompt: the same slots, moved by the difference in length of the names before them."""
    spans = _spans(clean, io, s)
    slots = sorted((span, role) for role, span in spans.items())
    names = {role: span for role, span in spans.items() if role != "S1+1"}
    pattern, at = "", 0
    for (start, end), role in slots:
        pattern += re.escape(clean[at:start])
        pattern += f"(?P<{role}>\\w+)" if role in names else f"(?P<next>{re.escape(clean[start:end])})"
        at = end
    match = re.fullmatch(pattern + re.escape(clean[at:]), corrupt)
    if match is None:
        raise TaskError(f"{corrupt!r} is not {clean!r} with other names", where=where, fix="use the original file")
    corrupt_spans = {role: match.span(role if role in names else "next") for role in spans}
    template = re.sub(r"\b(the|an?) \w+(?= to$)", r"\1 {OBJECT}", _template(clean, io, spans))
    order = "ABB" if spans["IO"] < spans["S1"] else "BAB"
    return Pair(
        clean, corrupt, (f" {io}",), (f" {s}",), spans, corrupt_spans, template, corruption, {"order": order}
    )  # fmt: skip


def _template(clean: str, io: str, spans: dict[str, tuple[int, int]]) -> str:
    """The sentence without its names and place: what examples share."""
    fields = {"IO": "A", "S1": "B", "S2": "S"} if spans["IO"] < spans["S1"] else {"IO": "B", "S1": "A", "S2": "S"}
    text = clean
    for role in sorted(fields, key=lambda r: -spans[r][0]):
        text = text[: spans[role][0]] + "{" + fields[role] + "}" + text[spans[role][1] :]
    text = re.sub(r"(?<=\bthe )\w+", "{PLACE}", text)
    return re.sub(r"\bgot an? \w+|\bfound an? \w+", lambda m: m[0].rsplit(" ", 1)[0] + " {OBJECT}", text)
