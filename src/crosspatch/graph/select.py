"""Choose many addresses with one pattern: `a*.h*@END, r[3-7]@*`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from crosspatch.errors import AddressError
from crosspatch.graph.names import ALL, Address, Site, parse_position, parse_site, validate
from crosspatch.graph.shape import ModelShape

_RANGE = re.compile(r"(-?[0-9]{1,9})-(-?[0-9]{1,9})")
_LONGEST = 10_000
"""Numbers that a range may hold: patterns come from files, and each number is written out."""
_MAGIC = re.compile(r"[*?\[]")


def select(patterns: str, shape: ModelShape, spans: Iterable[str] | None = None) -> list[Address]:
    """The addresses of a model that a comma-separated list of patterns names.

    In a site `*` stands for any characters but a dot, `?` for one, `[3-7]`, `[0,2,5]` and `[q,k]` for one of those
    listed: `a*` is every attention block, `a*.h*` every head, `a*.*.[k,v]` all keys and values. `logits` (read only)
    must be written out. After `@`, `*` is every token at once; brackets list indices or spans, and other globs match
    the names in `spans`, one address per match (`@?*` is each span).

    A pattern for MLPs (`m*`) matches nothing, and is no error, in a model that has none.

    Returns:
        Addresses in the order of computation (positions in the order given), without duplicates.

    Raises:
        AddressError: a pattern that cannot be read or matches nothing; says what there is instead.
    """
    spans = None if spans is None else list(spans)
    found: dict[Address, None] = {}
    for pattern in _split(patterns):
        site_pattern, at, position_pattern = pattern.partition("@")
        positions = _positions(position_pattern, spans, pattern) if at else [ALL]
        for site in _sites(site_pattern, shape):
            for position in positions:
                found.setdefault(validate(Address(site, position), shape, spans))
    return sorted(found, key=lambda address: address.site)


def _split(patterns: str) -> list[str]:
    """Split at commas outside brackets."""
    if patterns.count("[") != patterns.count("]"):
        raise AddressError(f"brackets do not close in {patterns!r}", fix="write for example r[3-7] or a5.h[0,2]")
    parts = [part.strip() for part in re.split(r",(?![^\[]*\])", patterns)]
    if not all(parts):
        raise AddressError(f"empty pattern in {patterns!r}", fix="write for example a*.h*@END, r[3-7]")
    return parts


def _choices(inside: str) -> list[str]:
    """The alternatives of one bracket: `3-7` counts, anything else stands for itself."""
    listed: list[str] = []
    for item in inside.split(","):
        bounds = _RANGE.fullmatch(item.strip())
        if bounds:
            low, high = int(bounds[1]), int(bounds[2])
            if high < low:
                raise AddressError(f"the range [{item.strip()}] runs backwards", fix=f"write [{high}-{low}]")
            if high - low >= _LONGEST:
                raise AddressError(f"the range [{item.strip()}] is too long", fix="write * for all")
            listed += [str(n) for n in range(low, high + 1)]
        elif item.strip():
            listed.append(item.strip())
    return listed


def glob_regex(glob: str) -> re.Pattern[str]:
    parts = []
    for piece in re.findall(r"\[[^\]]*\]|.", glob):
        if piece[0] == "[":
            parts.append(f"(?:{'|'.join(re.escape(choice) for choice in _choices(piece[1:-1]))})")
        else:
            parts.append({"*": "[^.]*", "?": "[^.]"}.get(piece, re.escape(piece)))
    return re.compile("".join(parts))


def _positions(pattern: str, spans: list[str] | None, where: str) -> list[int | str]:
    bracket = re.fullmatch(r"\[([^\]]*)\]", pattern)
    if bracket:
        return [parse_position(choice) for choice in _choices(bracket[1])]
    if pattern == ALL or not _MAGIC.search(pattern):
        return [parse_position(pattern)]
    matched = [span for span in spans or () if glob_regex(pattern).fullmatch(span)]
    if not matched:
        raise AddressError(
            f"no span matches {pattern!r}",
            where=where,
            fix=f"the spans are {', '.join(spans)}" if spans else "pass spans= to match their names",
        )
    return list(matched)


def _sites(pattern: str, shape: ModelShape) -> list[Site]:
    """Walk down the dots of the name, keeping what matches at every level."""
    if not _MAGIC.search(pattern):
        return [validate(parse_site(pattern), shape)]
    if pattern[0] == "m" and not shape.has_mlp:
        return []
    names = [""]
    for depth, piece in enumerate(pattern.split(".")):
        wanted = glob_regex(piece)
        offered = [(name, part) for name in names for part in _parts(name, shape)]
        names = [f"{name}.{part}" if name else part for name, part in offered if wanted.fullmatch(part)]
        if not names:
            raise AddressError(
                f"nothing matches {pattern!r}",
                where=f"piece {depth + 1}, {piece!r}",
                fix=f"there {_ranges([part for _, part in offered])}",
            )
    names = [name for name in names if not re.search(r"\.kv\d+$", name)]  # a key/value head alone is no site
    if not names:
        raise AddressError(f"{pattern!r} names key/value heads as a whole", fix=f"use {pattern}.k or {pattern}.v")
    return [parse_site(name) for name in names]


def _parts(name: str, shape: ModelShape) -> list[str]:
    """What can follow `name` and a dot; the first names when `name` is empty."""
    if name == "":
        letters = "ram" if shape.has_mlp else "ra"
        return ["input", *(f"{letter}{layer}" for layer in range(shape.n_layers) for letter in letters)]
    *parents, last = name.split(".")
    if not parents:
        if last[0] == "r":
            return ["mid", "post"] if shape.has_resid_mid else ["post"]
        if last[0] == "a":
            return [f"h{head}" for head in range(shape.n_heads)] + (
                [f"kv{group}" for group in range(shape.n_kv_heads)] if shape.grouped else []
            )
        return ["act", *(f"n{n}" for n in range(shape.d_mlp))] if last[0] == "m" and shape.has_neurons else []
    if re.fullmatch(r"kv\d+", last):
        return ["k", "v"]
    if re.fullmatch(r"h\d+", last):
        return ["z", "q", "pattern"] if shape.grouped else ["z", "q", "k", "v", "pattern"]
    return []


def _ranges(names: list[str]) -> str:
    """`a0 to a11, m0 to m11, input` for a long list of names."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rstrip("0123456789"), []).append(name)
    listed = [
        f"{group[0]} to {group[-1]}" if len(group) > 1 and group[0] != group[-1] else group[0]
        for group in groups.values()
    ]
    return f"are {', '.join(listed)}" if listed else "is nothing below that"
