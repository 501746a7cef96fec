"""A page of feature cards: where features are active, how strongly, which tokens they raise and lower.

The same page asks a person to judge the features, where answers are wanted (SHIFT): a choice for each card, and the
answers as JSON to save. Everything that comes from a prompt, a file or a model is escaped, and the page asks for
nothing over the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from crosspatch.report.html import POLICY, template, template_text
from crosspatch.report.svg import signed, tag
from crosspatch.report.tokens import visible

if TYPE_CHECKING:
    from crosspatch.dictionaries.cards import Card, Context
    from crosspatch.report.features_cards import Shown


@dataclass(frozen=True)
class Question:
    """What a person is asked about every card.

    Args:
        text: the question.
        choices: answers, the first one the default.
        file: the name of the answers file that the page offers to save: a JSON object with `answers`, feature name ->
            choice, and `notes`, feature name -> text.
        chosen: answers that were given before, by feature name.
    """

    text: str
    choices: tuple[str, ...] = ("keep", "remove")
    file: str = "answers.json"
    chosen: Mapping[str, str] | None = None


@dataclass(frozen=True)
class _Row:
    name: str
    place: str
    anchor: str
    facts: str
    histogram: Markup
    contexts: tuple[Markup, ...]
    raised: tuple[tuple[str, str], ...]
    lowered: tuple[tuple[str, str], ...]
    note: str
    chosen: str


def cards_page(
    cards: Sequence[Card],
    title: str,
    *,
    facts: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    question: Question | None = None,
) -> str:
    """The page as text.

    Args:
        cards: in the order in which they are shown.
        title: of the page.
        facts: about the model, the dictionaries and the text, by name.
        notes: feature name (`r2.post/17`) -> a line for its card, its effect say.
        question: asks for a judgement of every card.
    """
    rows = [_row(card, i, notes or {}, question) for i, card in enumerate(cards)]
    return template("feature_cards.html.j2").render(
        title=title,
        facts=dict(facts or {}),
        rows=rows,
        places=list(dict.fromkeys(row.place for row in rows)),
        question=question,
        policy=POLICY,
        style=Markup(template_text("style.css") + template_text("feature_cards.css")),
        script=Markup(template_text("report.js")),
        own_script=Markup(template_text("feature_cards.js")) if question else "",
    )


def card_name(card: Card) -> str:
    """`r2.post/17`."""
    return f"{' '.join(card.reads)}/{card.feature}"


def _row(card: Card, number: int, notes: Mapping[str, str], question: Question | None) -> _Row:
    name = card_name(card)
    if card.top:
        said = (
            f"active at {density_words(card.density)} of tokens; mean {card.mean:.3g} where it is active, at most "
            f"{card.maximum:.3g}"
        )
    else:
        said = "never active in this text"
    return _Row(
        name,
        " ".join(card.reads),
        f"card-{number}",
        said,
        _histogram(card) if card.top else Markup(""),
        tuple(context_line(context, card.maximum) for context in card.top),
        tuple((visible(token), signed(score, 2)) for token, score in card.promoted),
        tuple((visible(token), signed(score, 2)) for token, score in card.suppressed),
        notes.get(name, ""),
        (question.chosen or {}).get(name, question.choices[0]) if question else "",
    )


def context_line(context: Context | Shown, largest: float) -> Markup:
    """A context, its active tokens tinted; the token that it was chosen for is outlined."""
    boxes: list[Markup] = []
    silent: list[str] = []  # tokens without activation need no element each: pages have many
    for i, (token, value) in enumerate(zip(context.tokens, context.values, strict=True)):
        if value <= 0 and i != context.at:
            silent.append(visible(token))
            continue
        boxes.append(escape("".join(silent)))
        silent.clear()
        share = min(1.0, max(0.0, value / largest)) if largest > 0 else 0.0
        boxes.append(
            tag(
                "span",
                visible(token),
                class_="at dest" if i == context.at else "at",
                style=f"--a:{100 * share:.0f}%",
                title=f"{value:.3g}" if value > 0 else None,
            )
        )
    boxes.append(escape("".join(silent)))
    strength = tag("span", f"{context.values[context.at]:.3g}", class_="strength")
    return tag("li", strength, tag("span", *boxes, class_="words"))


def _histogram(card: Card, width: float = 200.0, height: float = 44.0) -> Markup:
    """Counts of activations above 0, from 0 on the left to the largest on the right (square roots: rare ones show)."""
    counts, edges = card.histogram
    highest = max(*counts, 1) ** 0.5
    each = width / len(counts)
    bars = [
        tag(
            "rect",
            tag("title", f"{n} tokens between {low:.3g} and {high:.3g}"),
            x=i * each,
            y=height - height * n**0.5 / highest,
            width=each - 1,
            height=height * n**0.5 / highest,
        )
        for i, (n, low, high) in enumerate(zip(counts, edges[:-1], edges[1:], strict=True))
    ]
    base = tag("line", x1=0.0, x2=width, y1=height, y2=height)
    label = f"Histogram of activations above 0, up to {edges[-1]:.3g}"
    size = f"0 0 {width:.0f} {height + 1:.0f}"
    drawn = tag(
        "svg", *bars, base, class_="hist", viewBox=size, width=width, height=height + 1, role="img", aria_label=label
    )
    ends = tag("span", "0"), tag("span", "activation"), tag("span", f"{edges[-1]:.3g}")
    return drawn + tag("div", *ends, class_="ends", style=f"width:{width:.0f}px")


def density_words(share: float) -> str:
    """A share of tokens, of which rare ones keep two digits."""
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"
