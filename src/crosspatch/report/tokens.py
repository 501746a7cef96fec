"""Prompts as the model reads them: one box per token, coloured and named by role. Prompt text is untrusted."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from markupsafe import Markup

from crosspatch.report.data import Example
from crosspatch.report.svg import tag

WHITE = {
    "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
    "\t": "\N{RIGHTWARDS ARROW TO BAR}",
    "\r": "\N{SYMBOL FOR CARRIAGE RETURN}",
}


def visible(token: str) -> str:
    """The token with what cannot be seen made visible: line ends, control and direction marks, an empty string.

    Direction overrides and control characters would otherwise change how the rest of the page reads.
    """
    if token == "":
        return "\N{EMPTY SET}"
    return "".join(_visible(c) for c in token)


def _visible(character: str) -> str:
    if character in WHITE:
        return WHITE[character]
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn"):
        return f"\\u{ord(character):04x}"
    return character


def role_names(examples: Sequence[Example]) -> list[str]:
    """All span names, in order of first appearance in the prompt; `END` last."""
    first: dict[str, int] = {}
    for example in examples:
        for name, (start, _) in example.spans.items():
            first.setdefault(name, start)
    return sorted(first, key=lambda name: (name == "END", first[name]))


def token_line(
    tokens: Sequence[str], spans: dict[str, tuple[int, int]], roles: Sequence[str], differs: Sequence[bool]
) -> Markup:
    """One prompt: tokens in reading order, spans tinted by role with the role's name, changed tokens underlined."""
    starts = {
        start: name
        for name, (start, stop) in sorted(spans.items(), key=lambda s: s[0] == "END", reverse=True)
        if stop > start
    }
    boxes: list[Markup] = []
    position = 0
    while position < len(tokens):
        name = starts.get(position)
        stop = min(spans[name][1], len(tokens)) if name else position + 1
        boxes_here = []
        for i in range(position, stop):
            changed = i < len(differs) and differs[i]
            title = f"token {i}" + (", differs from its partner" if changed else "")
            boxes_here.append(tag("span", visible(tokens[i]), class_="tok changed" if changed else "tok", title=title))
        if name:
            number = roles.index(name) % 8 if name in roles else 0
            boxes.append(tag("span", *boxes_here, tag("i", name), class_=f"role r{number}"))
        else:
            boxes += boxes_here
        position = max(stop, position + 1)
    return tag("span", *boxes, class_="tokens")


def example_block(example: Example, roles: Sequence[str], number: int) -> Markup:
    """Clean above corrupt, with the answers that count."""
    same = len(example.clean) == len(example.corrupt)
    differs = [a != b for a, b in zip(example.clean, example.corrupt, strict=False)] if same else []
    rows = []
    for name, tokens, spans, answers in (
        ("clean", example.clean, example.spans, example.answers),
        ("corrupt", example.corrupt, example.corrupt_spans or example.spans, ()),
    ):
        line = token_line(tokens, spans, roles, differs)
        if answers:
            line += tag("span", "\N{RIGHTWARDS ARROW} ", tag("b", *_either(answers)), class_="ans")
            if example.wrong:
                line += tag("span", " not ", *_either(example.wrong), class_="ans wrong")
        rows.append(tag("div", tag("span", name, class_="side"), tag("div", line), class_="run"))
    return tag("div", *rows, class_="example", aria_label=f"example {number}", role="group")


def _either(answers: Sequence[str], most: int = 4) -> tuple[str]:
    words = ", ".join(visible(a).strip() or visible(a) for a in answers[:most])
    more = len(answers) - most
    return (words + (f" or {more} others" if more > 0 else ""),)
