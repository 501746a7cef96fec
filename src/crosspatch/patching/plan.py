"""Which rows a sweep has: cells, each a joint patch of one or more sites at one position."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from crosspatch.errors import AddressError
from crosspatch.graph import ALL, Address, ModelShape, Site, select, validate
from crosspatch.patching.positions import REST, roles
from crosspatch.tasks.tokenize import TokenizedTask

Positions = Literal["roles", "tokens", "all"] | Sequence[int | str] | None

GRANULARITY = {
    "input": "residual",
    "resid_pre": "residual",
    "resid_mid": "residual",
    "resid_post": "residual",
    "attn_out": "block",
    "mlp_out": "block",
    "z": "head",
    "q": "qkv",
    "k": "qkv",
    "v": "qkv",
    "pattern": "qkv",
    "mlp_act": "neuron",
    "neuron": "neuron",
}
"""How fine a kind of site is, coarse to fine."""


@dataclass(frozen=True)
class Cell:
    """One row of the effect table: `sites` patched together at `position`.

    Attributes:
        sites: one site, or a window of the same site in consecutive layers.
        position: a token index, a span, `rest`, or `*`.
        parent: address of the coarser row that this one is a part of.
        control: empty, or what kind of random control this row is.
    """

    sites: tuple[Site, ...]
    position: int | str
    parent: str = ""
    control: str = ""

    @property
    def site(self) -> Site:
        """The only site, or the one in the middle of the window."""
        return self.sites[len(self.sites) // 2]

    @property
    def granularity(self) -> str:
        return GRANULARITY[self.site.kind]

    @property
    def address(self) -> str:
        """Canonical name; a window prints as `a[3-5]@END`, and can be read back as a pattern."""
        name = str(self.site)
        if len(self.sites) > 1:
            low, high = self.sites[0].layer, self.sites[-1].layer
            name = re.sub(r"^([ram])\d+", rf"\1[{low}-{high}]", name)
        return name if self.position == ALL else f"{name}@{self.position}"


def plan_cells(
    shape: ModelShape,
    tokenized: TokenizedTask,
    sites: str | Iterable[str | Site | Address],
    positions: Positions = None,
    window: int = 1,
) -> list[Cell]:
    """Rows of a sweep, in the order of computation.

    Args:
        shape: the model's sizes.
        tokenized: the task, whose spans can be named.
        sites: patterns (see `graph.select`) or addresses. `a5@END` and `a5@*` say where; names without a position are
            patched at each of `positions`.
        positions: "roles" (each span of the task, the rest, END), "tokens" (each token index), "all" (every token at
            once), or a list. Default: roles where the task has any, else tokens where all prompts are equally long.
        window: number of consecutive layers patched together, around each layer; cut at the ends of the model.

    Raises:
        AddressError: a pattern or position that does not exist, or a window of sites that have no layer.
    """
    if window < 1:
        raise AddressError(f"a window of {window} layers", where="window", fix="use window=1 or more")
    cells: dict[Cell, None] = {}
    found = _sites(shape, tokenized, sites)
    wanted = _positions(tokenized, positions) if any(where is None for _, where in found) else []
    for site, where in found:
        for position in wanted if where is None else [where]:
            cells.setdefault(Cell(_window(shape, site, window), position))
    if not cells:
        raise AddressError("no sites", where="sites", fix="use for example sites='r*' or sites=['a5.h3@END']")
    return list(cells)


def _sites(
    shape: ModelShape, tokenized: TokenizedTask, sites: str | Iterable[str | Site | Address]
) -> list[tuple[Site, int | str | None]]:
    """Sites with the position that was given with them, None where none was."""
    spans = [*tokenized.span_names(), REST]
    found: dict[tuple[Site, int | str | None], None] = {}
    pieces = re.split(r",(?![^\[]*\])", sites) if isinstance(sites, str) else list(sites)
    for piece in pieces:
        if isinstance(piece, Site):
            found.setdefault((validate(piece, shape), None))
        elif isinstance(piece, Address):
            address = validate(piece, shape, spans)
            found.setdefault((address.site, address.position))
        else:
            for address in select(piece.strip(), shape, spans):
                found.setdefault((address.site, address.position if "@" in piece else None))
    for site, _ in found:
        if site.kind == "logits":
            raise AddressError("logits are read, not patched", where="logits", fix=f"use r{shape.n_layers - 1}.post")
    return sorted(found, key=lambda item: item[0])


def _positions(tokenized: TokenizedTask, positions: Positions) -> list[int | str]:
    longest = max(len(ids) for ids in [*tokenized.clean, *tokenized.corrupt])
    shortest = min(len(ids) for ids in [*tokenized.clean, *tokenized.corrupt])
    if positions is None:
        positions = "roles" if tokenized.span_names() != ["END"] else "tokens"
    if positions == "all":
        return [ALL]
    if positions == "roles":
        return list(roles(tokenized))
    if positions == "tokens":
        if shortest != longest:
            raise AddressError(
                f"token indices do not mean the same in prompts of {shortest} to {longest} tokens",
                where="positions",
                fix="name the parts with spans= in the pairs and use positions='roles', or positions='all'",
            )
        return list(range(longest))
    if isinstance(positions, str):
        raise AddressError(
            f"positions={positions!r}",
            where="positions",
            fix="use 'roles', 'tokens', 'all', or a list such as ['END', 4]",
        )
    known = [*tokenized.span_names(), REST, ALL]
    unknown = [p for p in positions if isinstance(p, str) and p not in known]
    if unknown:
        raise AddressError(
            f"the task has no span {unknown[0]!r}",
            where="positions",
            fix=f"use one of {', '.join(known)}, or a token index",
        )
    return list(positions)


def _window(shape: ModelShape, site: Site, window: int) -> tuple[Site, ...]:
    if window == 1:
        return (site,)
    if site.layer is None:
        raise AddressError("a window needs sites that have a layer", where=str(site), fix="use r*, a*, m*, or window=1")
    low = max(0, site.layer - (window - 1) // 2)
    high = min(shape.n_layers - 1, site.layer + window // 2)
    return tuple(Site(site.kind, layer, site.index, site.grouped) for layer in range(low, high + 1))
