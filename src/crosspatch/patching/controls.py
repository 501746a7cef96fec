"""Random controls of the same size: what would an effect look like if the site, or the direction, were arbitrary?

Two kinds, marked in the table's `control` column:

- `random site`: the same kind and number of sites at the same kind of position, drawn at random from those that the
  sweep did not choose. Where the sweep has them all there are none: then every row is the others' control.
- `random direction`: the sweep's own strongest rows, with the inserted difference replaced by a random vector of equal
  norm at every position. It tells what is due to the *content* of the difference from what any push of that size does.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crosspatch.graph import ModelShape, Site, key_value
from crosspatch.model import Blocked, Edit, FromRun
from crosspatch.model.run import store_key
from crosspatch.patching.plan import Cell
from crosspatch.patching.positions import Spot
from crosspatch.patching.sources import BASE, Bound, Direction, Setting, seed_of
from crosspatch.results.evidence import RANDOM_DIRECTION, RANDOM_SITE

PER_GRANULARITY = 8


def random_sites(cells: Sequence[Cell], shape: ModelShape, seed: int, n: int = PER_GRANULARITY) -> list[Cell]:
    """Up to `n` cells per granularity, like the sweep's in kind, number of sites and position, and not among them."""
    generator = random.Random(seed)
    taken = {(_stored(cell.sites, shape), cell.position) for cell in cells}
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.granularity].append(cell)
    found: dict[tuple[tuple[Site, ...], int | str], Cell] = {}
    for group in groups.values():
        pool = sorted(
            {
                (sites, cell.position)
                for cell in group
                for sites in _like(cell.sites, shape, generator)
                if (_stored(sites, shape), cell.position) not in taken
            },
            key=lambda item: (item[0], str(item[1])),
        )
        for sites, position in generator.sample(pool, min(n, len(pool))):
            found[sites, position] = Cell(sites, position, control=RANDOM_SITE)
    return list(found.values())


def _stored(sites: tuple[Site, ...], shape: ModelShape) -> tuple[tuple[int, str, int | None], ...]:
    """One spelling for sites of two names: `r5.post` is `r6`."""
    return tuple((*store_key(site, shape.n_layers), site.index) for site in sites)


def _like(
    sites: tuple[Site, ...], shape: ModelShape, generator: random.Random, tries: int = 16
) -> list[tuple[Site, ...]]:
    """Windows of the same kind and length elsewhere in the model."""
    first = sites[0]
    if first.layer is None:
        return []
    found = []
    for _ in range(tries):
        low = generator.randrange(shape.n_layers - len(sites) + 1)
        index = first.index
        if index is not None:
            size = {"neuron": shape.d_mlp, "k": shape.n_kv_heads, "v": shape.n_kv_heads}.get(first.kind, shape.n_heads)
            index = generator.randrange(size)
        found.append(tuple(_site(first.kind, low + i, index, shape) for i in range(len(sites))))
    return found


def _site(kind: str, layer: int, index: int | None, shape: ModelShape) -> Site:
    if kind in ("k", "v"):
        assert index is not None
        return key_value(kind, layer, index, shape)
    return Site(kind, layer, index)


def random_directions(cells: Sequence[Cell], strength: Sequence[float], n: int = PER_GRANULARITY) -> list[Cell]:
    """The `n` strongest cells of each granularity, marked to be run with `RandomDirection`.

    Attention patterns are left out: a random vector is no pattern.
    """
    groups: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for index, cell in enumerate(cells):
        if not cell.control and cell.site.kind != "pattern" and strength[index] > 0:
            groups[cell.granularity].append((-strength[index], index))
    chosen = sorted(index for group in groups.values() for _, index in sorted(group)[:n])
    return [replace(cells[index], control=RANDOM_DIRECTION) for index in chosen]


@dataclass(frozen=True)
class RandomDirection(Bound):
    """The base value plus a random vector as long as the difference that `source` would insert, per position."""

    source: Bound
    setting: Setting
    seed: int

    def edit(self, direction: Direction, site: Site, example: int, spot: Spot, draw: int) -> Edit | None:
        meant = self.source.edit(direction, site, example, spot, draw)
        if meant is None or site.kind == "pattern":
            return meant
        run = self.setting.runs[BASE[direction]]
        base = run.value(site, example)[list(meant.positions)].float()
        size = (_value(meant, base).float() - base).norm(dim=-1, keepdim=True)
        generator = torch.Generator().manual_seed(seed_of(self.seed, direction, site, example, spot.name, draw))
        push = torch.randn(base.shape, generator=generator).to(base)
        return Edit(site, meant.positions, (base + push * size / push.norm(dim=-1, keepdim=True)).to(run.model.dtype))


def _value(edit: Edit, base: Tensor) -> Tensor:
    """The value that an edit would insert."""
    if isinstance(edit.value, FromRun):
        at = edit.positions if edit.value.positions is None else edit.value.positions
        return edit.value.run.value(edit.site, edit.value.example)[list(at)].to(base.device)
    assert not isinstance(edit.value, Blocked)  # only patterns are blocked, and those get no push
    return edit.value.to(base) if isinstance(edit.value, Tensor) else edit.value(base)
