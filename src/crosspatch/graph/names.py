"""Sites and addresses: the names of a model's activations, their parser and their printer.

The table of names is in docs/architecture.md. Parsing needs no model; `validate` checks a name against one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import total_ordering
from typing import TypeVar

from crosspatch.errors import AddressError
from crosspatch.graph.shape import ModelShape
from crosspatch.graph.suggest import suggest

ALL = "*"
"""The position that means every token."""

KINDS = (
    "input",
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_act",
    "neuron",
    "mlp_out",
    "resid_post",
    "logits",
)
"""Every kind of site, in the order in which one block computes them."""

INDEXED = frozenset({"q", "k", "v", "pattern", "z", "neuron"})
"""Kinds whose index is a head, a key/value head (k, v) or a neuron."""

_OF_MLP = frozenset({"resid_mid", "mlp_act", "neuron", "mlp_out"})
_RANK = {kind: rank for rank, kind in enumerate(KINDS)}
_NUMBER = "(0|[1-9][0-9]*)"
_GRAMMAR = re.compile(
    rf"(?P<single>input|logits)"
    rf"|r(?P<r>{_NUMBER})(?:\.(?P<r_part>mid|post))?"
    rf"|a(?P<a>{_NUMBER})(?:\.h(?P<h>{_NUMBER})(?:\.(?P<h_part>z|q|k|v|pattern))?"
    rf"|\.kv(?P<kv>{_NUMBER})\.(?P<kv_part>k|v))?"
    rf"|m(?P<m>{_NUMBER})(?:\.(?P<act>act)|\.n(?P<n>{_NUMBER}))?"
)
_INT = re.compile(r"0|-?[1-9][0-9]*")
_SPAN = re.compile(r"[^\W\d][^\s@,*?\[\]]*")
_FORMAT = {
    "resid_pre": "r{0}",
    "resid_mid": "r{0}.mid",
    "resid_post": "r{0}.post",
    "attn_out": "a{0}",
    "z": "a{0}.h{1}",
    "mlp_out": "m{0}",
    "mlp_act": "m{0}.act",
    "neuron": "m{0}.n{1}",
}


@total_ordering
@dataclass(frozen=True)
class Site:
    """One activation of the model. Sorts in the order of computation.

    Args:
        kind: one of `KINDS`.
        layer: block number; None for `input` and `logits`.
        index: head (q, pattern, z), key/value head (k, v) or neuron; None for the other kinds.
        grouped: print a key or value as `a5.kv1.k` (a model with grouped queries) rather than `a5.h1.k`.
            Spelling only: it takes no part in equality.

    Raises:
        AddressError: an unknown kind, or a layer or index that is missing, negative or not wanted.
    """

    kind: str
    layer: int | None = None
    index: int | None = None
    grouped: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in _RANK:
            raise AddressError(f"unknown kind of site {self.kind!r}", fix=f"use one of {', '.join(KINDS)}")
        for name, value, wanted in (
            ("layer", self.layer, self.kind not in ("input", "logits")),
            ("index", self.index, self.kind in INDEXED),
        ):
            if (value is not None) != wanted or (value is not None and value < 0):
                needs = "needs a" if wanted else "takes no"
                raise AddressError(f"kind {self.kind!r} {needs} {name}, got {value}", where="Site")

    def __str__(self) -> str:
        if self.kind in ("input", "logits"):
            return self.kind
        template = _FORMAT.get(self.kind) or f"a{{0}}.{'kv' if self.grouped else 'h'}{{1}}.{self.kind}"
        return template.format(self.layer, self.index)

    @property
    def order(self) -> tuple[float, int, int]:
        """Sort key: layer, place in the block, index."""
        layer = (-1 if self.kind == "input" else float("inf")) if self.layer is None else self.layer
        return (layer, _RANK[self.kind], self.index or 0)

    def __lt__(self, other: Site) -> bool:
        return self.order < other.order


@total_ordering
@dataclass(frozen=True)
class Address:
    """A site at a position.

    Args:
        site: the activation.
        position: a token index (negative counts from the end), a span's name, or `"*"` for every token.

    Raises:
        AddressError: a position that could not be read back.
    """

    site: Site
    position: int | str = ALL

    def __post_init__(self) -> None:
        if isinstance(self.position, str) and self.position != ALL and not _SPAN.fullmatch(self.position):
            raise AddressError(
                f"{self.position!r} is not a position",
                where=str(self.site),
                fix="use a token index (4, -1), the name of a span, or *",
            )

    def __str__(self) -> str:
        return str(self.site) if self.position == ALL else f"{self.site}@{self.position}"

    def __lt__(self, other: Address) -> bool:
        return (self.site, _position_key(self.position)) < (other.site, _position_key(other.position))


def _position_key(position: int | str) -> tuple[int, int, str]:
    """All tokens first, then indices from the start, indices from the end, spans by name."""
    if isinstance(position, int):
        return (1 if position >= 0 else 2, position, "")
    return (0 if position == ALL else 3, 0, position)


def parse_site(text: str) -> Site:
    """The site that `text` names; `parse_site(str(site)) == site`.

    Raises:
        AddressError: not a name of a site; the fix names the one that was probably meant.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise AddressError(f"{text!r} is not the name of a site", fix=suggest(text))
    g = match.groupdict()
    if g["single"]:
        return Site(g["single"])
    if g["r"]:
        return Site(f"resid_{g['r_part'] or 'pre'}", int(g["r"]))
    if g["m"]:
        layer = int(g["m"])
        return Site("neuron", layer, int(g["n"])) if g["n"] else Site("mlp_act" if g["act"] else "mlp_out", layer)
    if g["kv"]:
        return Site(g["kv_part"], int(g["a"]), int(g["kv"]), grouped=True)
    return Site(g["h_part"] or "z", int(g["a"]), int(g["h"])) if g["h"] else Site("attn_out", int(g["a"]))


def parse_position(text: str) -> int | str:
    """A token index, a span's name, or `"*"`.

    Raises:
        AddressError: none of these.
    """
    if _INT.fullmatch(text):
        return int(text)
    if text == ALL or _SPAN.fullmatch(text):
        return text
    raise AddressError(f"{text!r} is not a position", fix="use a token index (4, -1), the name of a span, or *")


def parse_address(text: str) -> Address:
    """The address that `text` names; without `@` it means every token. `parse_address(str(a)) == a`.

    Raises:
        AddressError: the site or the position cannot be read.
    """
    site, at, position = text.partition("@")
    return Address(parse_site(site), parse_position(position) if at else ALL)


Named = TypeVar("Named", Site, Address)


def validate(item: Named, shape: ModelShape, spans: Collection[str] | None = None) -> Named:
    """Check that a site or address exists in a model, and return it.

    Args:
        item: a site or an address.
        shape: the model's sizes.
        spans: names of the spans that the task defines ; not checked when None.

    Raises:
        AddressError: out of range, or not present in this kind of model; says what there is instead.
    """
    if isinstance(item, Address):
        validate(item.site, shape)
        named = isinstance(item.position, str) and item.position != ALL
        if named and spans is not None and item.position not in spans:
            raise AddressError(
                f"the task has no span {item.position!r}",
                where=str(item),
                fix=f"use one of {', '.join(sorted(spans))}, a token index, or *",
            )
        return item
    site, name = item, str(item)
    if site.layer is not None and site.layer >= shape.n_layers:
        raise AddressError(
            f"layer {site.layer} does not exist",
            where=name,
            fix=f"this model has {shape.n_layers} layers, 0 to {shape.n_layers - 1}",
        )
    if site.kind in _OF_MLP and not shape.has_mlp:
        raise AddressError(
            "the blocks of this model are attention only, they have no MLP",
            where=name,
            fix=f"use r{site.layer}.post, a{site.layer} or a head of it (a{site.layer}.h0)",
        )
    if site.kind == "resid_mid" and shape.parallel:
        raise AddressError(
            "attention and MLP run in parallel in this model, with no stream between",
            where=name,
            fix=f"use r{site.layer}, r{site.layer}.post, a{site.layer} or m{site.layer}",
        )
    if site.kind in ("mlp_act", "neuron") and not shape.has_neurons:
        raise AddressError(
            "the MLP is a mixture of experts, which has no single set of neurons",
            where=name,
            fix=f"use m{site.layer} (the MLP block as one node)",
        )
    if site.kind in ("k", "v"):
        _validate_key_value(site, shape)
    elif site.kind in INDEXED:
        what, size = ("neuron", shape.d_mlp) if site.kind == "neuron" else ("head", shape.n_heads)
        if site.index is not None and site.index >= size:
            raise AddressError(
                f"{what} {site.index} does not exist",
                where=name,
                fix=f"this model has {size} {what}s per layer, 0 to {size - 1}",
            )
    return item


def _validate_key_value(site: Site, shape: ModelShape) -> None:
    index, kv = site.index or 0, shape.n_kv_heads
    written = shape.n_heads if shape.grouped and not site.grouped else kv
    if index >= written:
        what = "head" if not site.grouped else "key/value head"
        raise AddressError(
            f"{what} {index} does not exist",
            where=str(site),
            fix=f"this model has {written} {what}s per layer, 0 to {written - 1}",
        )
    if shape.grouped and not site.grouped:
        group = shape.group_of(index)
        heads = shape.heads_of(group)
        right = Site(site.kind, site.layer, group, grouped=True)
        raise AddressError(
            "query heads share keys and values in this model",
            where=str(site),
            fix=f"use {right}, which heads {heads[0]} to {heads[-1]} read",
        )
    if site.grouped and not shape.grouped:
        raise AddressError(
            "every head of this model has keys and values of its own",
            where=str(site),
            fix=f"use {Site(site.kind, site.layer, index)}",
        )
