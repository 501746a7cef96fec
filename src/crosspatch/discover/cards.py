"""What the features of a cluster's circuit stand for there: where in its contexts they are active."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from crosspatch.dictionaries.cards import feature_cards
from crosspatch.features.basis import Bases, Features
from crosspatch.features.nodes import Node
from crosspatch.model import Model

TOP, AROUND, TOKENS = 2, 8, 6
"""Contexts of a feature, tokens on either side in them, and promoted tokens."""


def circuit_cards(
    model: Model, bases: Bases, nodes: Iterable[Node], contexts: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Cards of the features among some nodes, as JSON values.

    They are of these contexts alone: a feature that is active on many things in other text is shown with what it is
    active on here. Neurons and error terms have none.

    Args:
        nodes: grouped by place.
        contexts: token ids of the cluster's contexts. The first token does not count (it is often the mark of the
            beginning, with activations of its own) unless no context has another one.
    """
    by_place = {basis.place: basis.dictionary for basis in bases if isinstance(basis, Features)}
    skip = min(1, max(map(len, contexts)) - 1)
    found = []
    for place, group in groupby(nodes, key=lambda node: node.place):
        features = [node.feature for node in group if node.feature is not None]
        if features and place in by_place:
            found += feature_cards(
                model, by_place[place], contexts, features, top=TOP, around=AROUND, tokens=TOKENS, drop_first=skip
            )
    return [_plain(card.plain()) for card in found]


def _plain(card: dict[str, Any]) -> dict[str, Any]:
    """Activations to four digits, which is what a reader sees; the histogram of a few contexts says nothing."""

    def short(value: float | None) -> float | None:
        return None if value is None else float(np.format_float_positional(value, 4, unique=False, fractional=False))

    top = [{**context, "values": list(map(short, context["values"]))} for context in card["top"]]
    named = {name: [[token, short(score)] for token, score in card[name]] for name in ("promoted", "suppressed")}
    numbers = {name: short(card[name]) for name in ("density", "mean", "maximum")}
    kept = {name: card[name] for name in ("feature", "reads", "writes")}
    return {**kept, **numbers, "top": top, **named}
