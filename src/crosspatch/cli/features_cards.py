"""The work of `crosspatch features card`: which features, their cards, the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspatch.cli.console import Bars, finite
from crosspatch.cli.features_inputs import load_dictionaries, text_of
from crosspatch.errors import DictionaryError

if TYPE_CHECKING:
    from crosspatch.dictionaries import Card, Dictionary
    from crosspatch.dictionaries.text import Prompts
    from crosspatch.model import Model

JSON, PAGE = "cards.json", "cards.html"


def cards_of(
    model: Model,
    given: Sequence[str] | None,
    features: Sequence[str],
    places: Sequence[str] | None,
    sample: int,
    source: str | None,
    context: int,
    tokens: int,
    top: int,
    seed: int,
    shown: Bars,
) -> tuple[list[Card], dict[str, Any]]:
    """Cards of the features that were named, or of some at random, and what to say of all of them.

    Raises:
        DictionaryError: no such feature, or no dictionary of that place.
    """
    from crosspatch.dictionaries import feature_cards

    dictionaries = load_dictionaries(model, given)
    if unknown := [place for place in places or () if place not in dictionaries]:
        raise DictionaryError(
            f"no dictionary of {unknown[0]}", where="--place", fix=f"there are {', '.join(dictionaries)}"
        )
    text = text_of(model, source, context=context, tokens=0, held_out=tokens, seed=seed)
    wanted = named(features, dictionaries)
    if not features:
        wanted = {
            place: living(model, dictionaries[place], text.held_out, sample, seed) for place in places or dictionaries
        }
    cards: list[Card] = []
    for i, (place, numbers) in enumerate(wanted.items()):
        shown.stage("reading contexts", i, len(wanted))
        cards += feature_cards(model, dictionaries[place], text.held_out, numbers, top=top)
    return cards, {"model": model.name, "text": text.about}


def named(features: Sequence[str], dictionaries: dict[str, Dictionary]) -> dict[str, list[int]]:
    """`r2.post/17` -> place and numbers, in the order in which they were typed.

    Raises:
        DictionaryError: not such a name, or no dictionary of that place.
    """
    found: dict[str, list[int]] = {}
    for text in features:
        place, _, number = text.rpartition("/")
        if not number.isdecimal() or not place:
            raise DictionaryError(f"{text!r} is no feature", where="card", fix="name it PLACE/NUMBER, as r2.post/17")
        if place not in dictionaries:
            raise DictionaryError(f"no dictionary of {place}", where=text, fix=f"there are {', '.join(dictionaries)}")
        found.setdefault(place, []).append(int(number))
    return found


def living(model: Model, dictionary: Dictionary, prompts: Prompts, n: int, seed: int) -> list[int]:
    """Features at random among those that are active somewhere in the prompts."""
    from crosspatch.dictionaries import measure

    alive = np.flatnonzero(measure(model, dictionary, prompts, ce=False).firing)
    chosen = np.random.default_rng(seed).permutation(alive)[:n]
    return sorted(map(int, chosen))


def write(out: Path, cards: Sequence[Card], about: dict[str, Any]) -> str:
    """`cards.json` and the page; returns the page's path."""
    from crosspatch.report.feature_cards import cards_page
    from crosspatch.results.files import write_atomic, write_json

    write_json(out / JSON, finite({**about, "cards": [card.plain() for card in cards]}))
    text = about["text"]
    facts = {"model": about["model"], "text": f"{text['source']}, {text['held_out_tokens']:,} tokens held out"}
    page = cards_page(cards, f"{len(cards)} feature{'' if len(cards) == 1 else 's'} of {about['model']}", facts=facts)
    write_atomic(out / PAGE, page.encode())
    return str(out / PAGE)
