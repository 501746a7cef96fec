"""What the page of a feature circuit says about a feature, from the cards that were saved. Untrusted text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crosspatch.report.tokens import visible

TOKENS = 6
"""Promoted tokens that are named."""


@dataclass(frozen=True)
class Shown:
    """One context: tokens, activations at them, and the token that it was chosen for."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    at: int


@dataclass(frozen=True)
class FeatureCard:
    """A feature in words.

    Attributes:
        density: share of tokens at which it is active.
        maximum: its largest activation.
        raises, lowers: tokens.
        contexts: the strongest first.
    """

    density: float
    maximum: float
    raises: tuple[str, ...]
    lowers: tuple[str, ...]
    contexts: tuple[Shown, ...]

    @property
    def token(self) -> str:
        """The token of the strongest context."""
        return self.contexts[0].tokens[self.contexts[0].at] if self.contexts else ""

    def said(self) -> list[str]:
        """Lines of a tooltip."""
        lines = []
        if self.contexts:
            top = self.contexts[0]
            words = [f"\N{LEFT-POINTING ANGLE BRACKET}{t.strip()}\N{RIGHT-POINTING ANGLE BRACKET}" if i == top.at else t
                     for i, t in enumerate(top.tokens)]  # fmt: skip
            lines.append("most active: " + visible("".join(words).strip()))
        else:
            lines.append("never active in the text looked at")
        if self.raises:
            lines.append("raises: " + " ".join(visible(token.strip()) for token in self.raises[:TOKENS]))
        return lines


def cards_from(saved: Mapping[str, Any]) -> dict[str, FeatureCard]:
    """`m1/304` -> card, from `cards.json`.

    Raises:
        KeyError, TypeError, ValueError: something else.
    """
    found = {}
    for card in saved["cards"]:
        contexts = tuple(
            Shown(tuple(map(str, c["tokens"])), tuple(map(float, c["values"])), int(c["at"])) for c in card["top"]
        )
        if any(not 0 <= c.at < len(c.tokens) or len(c.tokens) != len(c.values) for c in contexts):
            raise ValueError("a context without its token")
        found[f"{' '.join(map(str, card['reads']))}/{int(card['feature'])}"] = FeatureCard(
            float(card["density"]),
            0.0 if card["maximum"] is None else float(card["maximum"]),
            tuple(str(token) for token, _ in card["promoted"]),
            tuple(str(token) for token, _ in card["suppressed"]),
            contexts,
        )
    return found
