"""Dictionaries of features: one form for all kinds, reading and writing, training, measuring."""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.dictionaries.cards import Card, Context, feature_cards
    from crosspatch.dictionaries.dictionary import CrossLayer, Dictionary
    from crosspatch.dictionaries.load import FORMATS, load_cross_layer, load_dictionary
    from crosspatch.dictionaries.measure import Estimate, Measures, measure
    from crosspatch.dictionaries.places import place_width, read_place, to_residual, write_place
    from crosspatch.dictionaries.save import save_dictionary
    from crosspatch.dictionaries.shipped import shipped, shipped_path
    from crosspatch.dictionaries.text import Text, read_text
    from crosspatch.dictionaries.train import (
        Activations,
        Arrays,
        BatchTopK,
        Gated,
        Job,
        JumpReLU,
        Matryoshka,
        PAnneal,
        Report,
        Settings,
        Standard,
        TopK,
        contexts,
        sweep,
        train,
    )

__all__ = [
    "FORMATS",
    "Activations",
    "Arrays",
    "BatchTopK",
    "Card",
    "Context",
    "CrossLayer",
    "Dictionary",
    "Estimate",
    "Gated",
    "Job",
    "JumpReLU",
    "Matryoshka",
    "Measures",
    "PAnneal",
    "Report",
    "Settings",
    "Standard",
    "Text",
    "TopK",
    "contexts",
    "feature_cards",
    "load_cross_layer",
    "load_dictionary",
    "measure",
    "place_width",
    "read_place",
    "read_text",
    "save_dictionary",
    "shipped",
    "shipped_path",
    "sweep",
    "to_residual",
    "train",
    "write_place",
]

make_lazy(
    __name__,
    {
        "cards": ("Card", "Context", "feature_cards"),
        "dictionary": ("CrossLayer", "Dictionary"),
        "load": ("FORMATS", "load_cross_layer", "load_dictionary"),
        "measure": ("Estimate", "Measures", "measure"),
        "places": ("place_width", "read_place", "to_residual", "write_place"),
        "save": ("save_dictionary",),
        "shipped": ("shipped", "shipped_path"),
        "text": ("Text", "read_text"),
        "train": (
            "Activations",
            "Arrays",
            "BatchTopK",
            "Gated",
            "Job",
            "JumpReLU",
            "Matryoshka",
            "PAnneal",
            "Report",
            "Settings",
            "Standard",
            "TopK",
            "contexts",
            "sweep",
            "train",
        ),
    },
)
