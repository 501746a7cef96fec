"""Random dictionaries on small models of every family, for the tests of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attribution_setups import family_setup

from crosspatch.attribution.setup import Setup
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.places import place_width, read_place
from crosspatch.features.basis import Bases, bases_of
from crosspatch.model import Model, record

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2", "olmo2")
"""Absolute and rotary positions, grouped queries, parallel blocks, norms after attention and MLP."""


def random_dictionary(model: Model, place: str, width: int = 24, seed: int = 0, **about: object) -> Dictionary:
    """A dictionary that knows nothing, with about a third of its features active and an error of ordinary size."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 90, (4, 6), generator=g).tolist()
    x = read_place(record(model, tokens), (place,))
    d = place_width(model, place)
    encoder = torch.randn(width, d, generator=g, dtype=torch.float64) / (x.std() * d**0.5)
    decoder = 0.3 * torch.randn(width, d, generator=g, dtype=torch.float64) * x.std() / d**0.5
    return Dictionary(
        encoder.to(model.dtype),
        torch.full((width,), -0.4, dtype=model.dtype),
        decoder.to(model.dtype),
        x.mean(0),
        torch.zeros(width, dtype=model.dtype),
        (place,),
        (place,),
        **about,  # type: ignore[arg-type]
    )


def all_places(model: Model) -> list[str]:
    """The paper's places: input, attention and MLP outputs, outputs of blocks."""
    layers = range(model.shape.n_layers)
    return ["input", *(name for layer in layers for name in (f"a{layer}", f"m{layer}", f"r{layer}.post"))]


def bases(setup: Setup, places: Sequence[str] | None = None, **about: object) -> Bases:
    model = setup.model
    names = all_places(model) if places is None else places
    return bases_of(model, [random_dictionary(model, name, seed=i, **about) for i, name in enumerate(names)])


def family(name: str, lengths: Sequence[int] = (5, 5, 5), **about: object) -> Setup:
    return family_setup(name, lengths=lengths, **about)
