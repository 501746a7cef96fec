"""The text form of a set of paths, and its parser.

    input -> a0.* -> a1.h5.k -> logits          one path pattern: hops and links, from the input to the logits
    ** -> {a9.h6, a9.h9} -> logits@END          any way into two heads, and straight from them to the answer
    input ~> a10.h7.q -> logits                 `~>`: through any number of MLPs, or none
    input -> a0.*[-2..0] -> a1.h5.v -> logits   attention from at most two tokens back

A hop names nodes (`a0.h1`, `a[0-3].*`, `m*`, `*` is any head or MLP), for a head which input the path takes (`.q`,
`.k`, `.v`; none: any of them), where (`@S1`, `@-1`), and how far back the head reads (`[-2..0]`, relative to the
position it writes to; its query is at 0; `[-1..1]` where attention is bidirectional). `@` on `.k` or `.v` is the
position whose key or value is read, otherwise the position that the node writes to. A link `->` is one direct edge;
`-> ** ->` is any route.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from crosspatch.errors import AddressError, PathError
from crosspatch.graph import ModelShape, Site, comes_before, nodes, parse_position, suggest
from crosspatch.graph.select import glob_regex

Link = Literal["direct", "mlps", "any"]
Channel = Literal["q", "k", "v"]
CHANNELS: tuple[Channel, ...] = ("q", "k", "v")
ARROWS: dict[Link, str] = {"direct": "->", "mlps": "~>", "any": "-> ** ->"}

_WINDOW = re.compile(r"\[\s*(-?[0-9]{1,9})\s*\.\.\s*(-?[0-9]{1,9})\s*\]$")
_NEARLY_WINDOW = re.compile(r"\[(?:[^\]]*\.\.|\s*[-+\N{MINUS SIGN}])")
_WRITE_WINDOW = "write [-2..0] for the token itself and the two before it"
_CHANNEL = re.compile(r"\.(?:([qkv])|\[([qkv](?:\s*,\s*[qkv])*)\])$")
_TOKEN = re.compile(r"\s*(->|~>|[^\s~>-](?:[^~>-]|-(?!>)|~(?!>))*)")
_GRAMMAR = "write for example: input -> a0.* -> a1.h5.k -> logits"


@dataclass(frozen=True)
class Step:
    """One alternative of a hop.

    Attributes:
        name: pattern of node names.
        channels: inputs of a head that the path may take; None = any.
        at: position, as written.
        window: how far from the position written to a head may read, both ends included.
        start, end: where it stands in the text.
    """

    name: str
    channels: frozenset[Channel] | None
    at: int | str | None
    window: tuple[int, int] | None
    start: int
    end: int

    @property
    def reads_at(self) -> bool:
        """Whether `at` is the position read (keys, values) and not the position written."""
        return self.channels is not None and "q" not in self.channels

    def __str__(self) -> str:
        channels = "" if self.channels is None else "".join(sorted(self.channels))
        channels = f".{channels}" if len(channels) == 1 else f".[{','.join(channels)}]" if channels else ""
        window = "" if self.window is None else f"[{self.window[0]}..{self.window[1]}]"
        return f"{self.name}{channels}{'' if self.at is None else f'@{self.at}'}{window}"


@dataclass(frozen=True)
class Hop:
    """Alternatives for one node of a path."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return str(self.steps[0]) if len(self.steps) == 1 else f"{{{', '.join(map(str, self.steps))}}}"


@dataclass(frozen=True)
class Route:
    """A parsed pattern: hops from the input to the logits; `links[i]` joins hops i and i + 1."""

    text: str
    hops: tuple[Hop, ...]
    links: tuple[Link, ...]

    def __str__(self) -> str:
        parts = [str(self.hops[0])]
        for link, hop in zip(self.links, self.hops[1:], strict=True):
            parts += [ARROWS[link], str(hop)]
        return " ".join(parts)


def refuse(text: str, start: int, end: int, what: str, fix: str) -> PathError:
    """An error that points at the offending part of a pattern."""
    line = text.replace("\n", " ")
    return PathError(f"{what}\n  {line}\n  {' ' * start}{'^' * max(1, end - start)}", where="path pattern", fix=fix)


@lru_cache(maxsize=4096)
def parse_route(text: str) -> Route:
    """Read one pattern.

    Raises:
        PathError: points at what cannot be read.
    """
    tokens = _tokens(text)
    if not tokens:
        raise refuse(text, 0, 1, "no path is written here", _GRAMMAR)
    hops: list[Hop] = []
    links: list[Link] = []
    link: Link | None = None
    for i, (token, start) in enumerate(tokens):
        if token in ("->", "~>"):
            if i == 0 or tokens[i - 1][0] in ("->", "~>"):
                raise refuse(text, start, start + 2, "an arrow without a node before it", _GRAMMAR)
            arrow: Link = "mlps" if token == "~>" else "direct"
            link = "any" if link == "any" else arrow
        elif token == "**":
            if not hops:
                hops.append(Hop((Step("input", None, None, None, start, start + 2),)))
            link = "any"
        else:
            if hops:
                assert link is not None
                links.append(link)
            hops.append(Hop(tuple(_steps(text, token, start))))
            link = None
    if tokens[-1][0] in ("->", "~>", "**") or len(hops) < 2:
        raise refuse(text, max(0, len(text) - 1), len(text), "the path does not end at a node", _GRAMMAR)
    _require_ends(text, hops)
    return Route(text, tuple(hops), tuple(links))


def _tokens(text: str) -> list[tuple[str, int]]:
    found, at = [], 0
    while at < len(text) and text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise refuse(text, at, at + 1, f"cannot read {text[at : at + 8]!r}", _GRAMMAR)
        found.append((match[1].rstrip(), match.start(1)))
        at = match.end()
    return found


def _steps(text: str, token: str, start: int) -> Iterable[Step]:
    if not token.startswith("{"):
        yield _step(text, token, start)
        return
    if not token.endswith("}"):
        what = "something stands behind the brace" if "}" in token else "a brace is not closed"
        fix = "write it inside, for each node: {a9.h6@END, a9.h9@END}" if "}" in token else "write {a9.h6, a9.h9}"
        raise refuse(text, start, start + len(token), what, fix)
    at = start + 1
    for part in re.split(r",(?![^\[]*\])", token[1:-1]):
        if not part.strip():
            raise refuse(text, start, start + len(token), "a node is missing in the braces", "write {a9.h6, a9.h9}")
        yield _step(text, part.strip(), at + len(part) - len(part.lstrip()))
        at += len(part) + 1


def _step(text: str, token: str, start: int) -> Step:
    end, rest, window = start + len(token), token, None
    if re.search(r"\s", re.sub(r"\[[^\]]*\]", "", token)):
        raise refuse(text, start, end, "two nodes without an arrow between them", _GRAMMAR)
    if found := _WINDOW.search(rest):
        window, rest = (int(found[1]), int(found[2])), rest[: found.start()]
        if window[0] > window[1]:
            raise refuse(text, start, end, "a window runs from further back to further on", _WRITE_WINDOW)
    if _NEARLY_WINDOW.search(rest):
        raise refuse(text, start, end, "a window is two whole numbers and stands at the end", _WRITE_WINDOW)
    rest, sign, position = rest.partition("@")
    at: int | str | None = None
    if sign:
        try:
            at = parse_position(position)
        except AddressError as error:
            raise refuse(text, start, end, error.what, "write @-1, @4 or @name of a span") from error
        at = None if at == "*" else at
    channels = None
    if found := _CHANNEL.search(rest):
        channels, rest = frozenset(re.findall(r"[qkv]", found[0])), rest[: found.start()]
    if not re.fullmatch(r"[\w*?\[\],.\- ]+", rest) or "**" in rest:
        raise refuse(text, start, end, f"{token!r} is no node", f"{suggest(rest)}; {_GRAMMAR}")
    try:
        glob_regex(rest)
    except AddressError as error:
        raise refuse(text, start, end, error.what, error.fix or _GRAMMAR) from error
    return Step(rest, channels, at, window, start, end)


def parse_step(text: str) -> Step:
    """Read one node of a path, such as `a1.h5.k@S1`.

    Raises:
        PathError: points at what cannot be read.
    """
    return _step(text, text, 0)


def _require_ends(text: str, hops: list[Hop]) -> None:
    for hop, name, other in ((hops[0], "input", "** ->"), (hops[-1], "logits", "-> logits")):
        first, last = hop.steps[0].start, hop.steps[-1].end
        if [step.name for step in hop.steps] != [name]:
            what = f"a path {'starts' if name == 'input' else 'ends'} at {name!r}"
            fix = f"put {other!r} {'before it (any way in)' if name == 'input' else 'after it'}"
            raise refuse(text, first, last, what, fix)
        if hop.steps[0].channels or hop.steps[0].window:
            raise refuse(text, first, last, f"{name!r} has no q, k, v and no window", f"write {name} or {name}@END")
    for hop in hops[1:-1]:
        for step in hop.steps:
            if step.name in ("input", "logits"):
                raise refuse(text, step.start, step.end, f"{step.name!r} inside a path", _GRAMMAR)


def matching(step: Step, text: str, shape: ModelShape) -> list[Site]:
    """The nodes of a model that a step names.

    Raises:
        PathError: none, or inputs that such a node does not have; says what there is instead.
    """
    return list(_matching(step, text, shape))


@lru_cache(maxsize=4096)
def _matching(step: Step, text: str, shape: ModelShape) -> tuple[Site, ...]:
    pieces = step.name.split(".")
    if step.name == "input":
        return (Site("input"),)
    if step.name == "logits":
        return (Site("logits"),)
    kind, own = (pieces[0][:1], glob_regex(pieces[0]))
    found = []
    for site in nodes(shape):
        if site.kind == "input" or not own.fullmatch(f"{'a' if site.kind == 'z' else 'm'}{site.layer}"):
            continue
        if len(pieces) == 1 or (site.kind == "z" and len(pieces) == 2 and _is_head(pieces[1], site.index or 0, shape)):
            found.append(site)
    if not found:
        heads = f"a0.h0 to a{shape.n_layers - 1}.h{shape.n_heads - 1}"
        mlps = f" and MLPs m0 to m{shape.n_layers - 1}" if shape.has_mlp else " and no MLPs"
        hint = "the residual stream is no node: name what writes to it, or ** for any route; " if kind == "r" else ""
        what = f"no node matches {step.name!r}"
        if kind == "m" and len(pieces) > 1:
            # The neurons of an MLP share its norm and its weights: a path set knows the MLP as one node.
            what = f"the parts of an MLP are no nodes of paths: {step.name!r}"
            hint = f"name {pieces[0]} as a whole, or patch neurons with `crosspatch patch --sites '{pieces[0]}.n*'`; "
        raise refuse(text, step.start, step.end, what, f"{hint}there are heads {heads}{mlps}")
    if (step.channels or step.window) and all(site.kind != "z" for site in found):
        raise refuse(text, step.start, step.end, "an MLP has no q, k, v and no window", f"write {step.name}")
    if step.window and step.window[1] > 0 and shape.causal:
        what = "a window runs to at most 0: no token sees later ones here"
        raise refuse(text, step.start, step.end, what, _WRITE_WINDOW)
    if step.channels or step.window:
        found = [site for site in found if site.kind == "z"]
    return tuple(found)


def _is_head(piece: str, head: int, shape: ModelShape) -> bool:
    pattern = glob_regex(piece)
    return bool(pattern.fullmatch(f"h{head}")) or (
        shape.grouped and piece.startswith("kv") and bool(pattern.fullmatch(f"kv{shape.group_of(head)}"))
    )


def require_possible(route: Route, shape: ModelShape) -> None:
    """Refuse a pattern with a hop, or an alternative in braces, that no path of the model passes.

    A step that stands for several nodes may hold some that nothing reaches.

    Raises:
        PathError: points at the step.
    """
    found = [[matching(step, route.text, shape) for step in hop.steps] for hop in route.hops]
    before = found[0][0]
    for i, hop in enumerate(route.hops[1:], 1):
        reached = [[v for v in sites if any(comes_before(u, v, shape) for u in before)] for sites in found[i]]
        if not any(reached):
            raise _unreached(route, hop.steps[0].start, hop.steps[-1].end, before[0], found[i][0][0])
        for step, sites, left in zip(hop.steps, found[i], reached, strict=True):
            if not left:
                raise _unreached(route, step.start, step.end, before[0], sites[0])
        for step, sites in zip(route.hops[i - 1].steps, found[i - 1], strict=True):
            if not any(comes_before(u, v, shape) for u in sites for some in reached for v in some):
                raise _unreached(route, step.start, step.end, sites[0], next(v for some in reached for v in some))
        before = [v for some in reached for v in some]


def _unreached(route: Route, start: int, end: int, sender: Site, receiver: Site) -> PathError:
    what = f"{sender} cannot feed {receiver}: it does not come before it"
    fix = "a sender comes before its receiver; heads of one layer do not feed each other"
    return refuse(route.text, start, end, what, fix)
