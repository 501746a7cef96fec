"""What is in a set of paths: how many, which ones, one in particular, and whether two sets are equal.

Without pairs a path is a list of nodes and inputs, `input -> a0.h1.v -> a1.h5.k -> logits`; a set that names positions
or windows needs the prompt of one example, in which every step is at a token,
`input@1 -> a0.h1.v@1 -> a1.h5.k@2 -> logits@4` (the token that is read; a query and an MLP read the token they write
to). A path in this form is a pattern of the language, and the only path that it matches.
"""

from __future__ import annotations

import hashlib
from itertools import islice

from crosspatch.errors import PathError
from crosspatch.graph import ModelShape
from crosspatch.paths.automaton import vocabulary
from crosspatch.paths.language import Channel, Route, matching, parse_route, refuse, require_possible
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import PathSet, nothing
from crosspatch.paths.places import resolve
from crosspatch.paths.walk import Walk


def count(paths_: PathSet, shape: ModelShape, pairs: Pairs | None = None, example: int = 0) -> int:
    """The number of paths in a set.

    Args:
        pairs, example: count paths from token to token in this prompt, to the positions that are read; any token may
            read itself and every earlier one (every one where attention is bidirectional). Needed by sets that name
            positions or windows.

    Raises:
        PathError: a set that does not fit the model, or that needs pairs.
        AddressError: a position that the prompt lacks.
    """
    walk = Walk(paths_, shape, pairs, example)
    return sum(map(walk.completions, walk.starts()))


def has_path(paths_: PathSet, shape: ModelShape, pairs: Pairs | None = None, example: int = 0) -> bool:
    """Whether a set has any path; stops at the first. Raises as `count`."""
    walk = Walk(paths_, shape, pairs, example)
    return any(map(walk.alive, walk.starts()))


def require_some(paths_: PathSet, shape: ModelShape, pairs: Pairs | None = None) -> None:
    """Refuse a set in which no path is left: it says nothing about any model.

    `nothing()` passes: it is asked for by name. Where positions or windows are named one of the pairs must have a path.

    Raises:
        PathError: no path is left, or as `count`.
    """
    if paths_ == nothing():
        return
    words = vocabulary([paths_], shape)
    local = bool(words.positions or words.windows)
    examples = range(len(pairs)) if pairs is not None and local else [0]
    if not any(has_path(paths_, shape, pairs if local else None, i) for i in examples):
        raise PathError(
            "no path is left in this set",
            where=str(paths_),
            fix="parts of it exclude each other, or a position comes after the one that should read it; look at the "
            "parts with paths.explain(...), or write nothing() if that is what is meant",
        )


def contains(paths_: PathSet, path: str, shape: ModelShape, pairs: Pairs | None = None, example: int = 0) -> bool:
    """Whether one path is in a set.

    Args:
        path: `input -> a0.h1.v -> m1 -> logits`, direct edges between single nodes, for heads with the input taken;
            with pairs also the token read at every step, `input@0 -> a0.h1.v@0 -> m1@3 -> logits@3`.

    Raises:
        PathError: not a single path of this model; points at the place. Else as `count`.
        AddressError: a position that the prompt lacks.
    """
    walk = Walk(paths_, shape, pairs, example)
    route, automaton = parse_route(path.strip()), walk.automaton
    require_possible(route, shape)
    steps = [_single(route, i, walk) for i in range(len(route.hops))]
    at = steps[-1][2]
    state = automaton.start(paths_, walk.places[at])
    for i in range(len(steps) - 2, 0, -1):
        node, channel, reads = steps[i]
        moves = channel in ("k", "v")
        if reads not in (walk.seen(at) if moves else (at,)):
            hop = route.hops[i].steps[0]
            what = (
                "a token cannot be read before it is there"
                if moves
                else "a query and an MLP stay at the token they read"
            )
            raise refuse(
                route.text,
                hop.start,
                hop.end,
                what,
                f"the step after it reads token {at}, so that this one writes there: name token "
                f"{f'{at} or an earlier one' if moves else at}",
            )
        state = automaton.write(state, node, walk.places[at])
        state = automaton.read(state, node, channel, walk.reading(at, reads))
        at = reads
    if steps[0][2] != at:
        hop = route.hops[0].steps[0]
        what = f"the step after it reads token {at}"
        raise refuse(route.text, hop.start, hop.end, what, f"the input that it reads is input@{at}")
    return automaton.holds(automaton.write(state, 0, walk.places[at]))


def listed(
    paths_: PathSet, shape: ModelShape, limit: int = 20, pairs: Pairs | None = None, example: int = 0
) -> list[str]:
    """The first `limit` paths as text, ordered by their last node, then by the one before it. Raises as `count`."""
    walk = Walk(paths_, shape, pairs, example)
    return list(islice((text for spot in walk.starts() for text in walk.texts(spot)), limit))


def canonical(paths_: PathSet, shape: ModelShape, pairs: Pairs | None = None, example: int = 0) -> str:
    """A hash that equal sets share, however they are written: of the smallest automaton that accepts the paths.

    With pairs it is about the paths of this prompt. Raises as `count`.
    """
    walk = Walk(paths_, shape, pairs, example)
    found = [f"{spot[2]}:{walk.digest(spot)}" for spot in walk.starts() if walk.completions(spot)]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:32]


def equal(a: PathSet, b: PathSet, shape: ModelShape, pairs: Pairs | None = None, example: int = 0) -> bool:
    """Whether two sets hold the same paths (with pairs: of this prompt). Raises as `count`."""
    return not has_path((a - b) | (b - a), shape, pairs, example)


def _single(route: Route, i: int, walk: Walk) -> tuple[int, Channel, int]:
    """Node, input and token of one step of a path."""
    hop, text = route.hops[i], route.text
    step = hop.steps[0]

    def wrong(what: str, fix: str) -> PathError:
        return refuse(text, step.start, hop.steps[-1].end, what, fix)

    if i and route.links[i - 1] != "direct":
        raise wrong("a single path has direct edges only", "write every node that it passes, joined by ->")
    found = matching(step, text, walk.words.shape)
    if len(hop.steps) > 1 or len(found) > 1 or step.window is not None:
        raise wrong(f"{str(hop)!r} is not one node", "write one path, e.g. input -> a0.h1.v -> logits")
    site = found[0]
    if site.kind == "z" and (step.channels is None or len(step.channels) != 1):
        raise wrong("which input of the head?", f"write {site}.q, {site}.k or {site}.v")
    if (step.at is None) == walk.local:
        fix = "write the token read, e.g. input@0" if walk.local else "leave @... out, or give pairs="
        raise wrong(
            "a path in a prompt names the token at every step" if walk.local else "there are no tokens here", fix
        )
    tokens = range(1) if step.at is None or walk.pairs is None else resolve(step.at, walk.pairs, walk.example)
    if len(tokens) != 1:
        raise wrong(f"@{step.at} is {len(tokens)} tokens", "name one of them by its index")
    channel: Channel = next(iter(step.channels)) if step.channels else "q"
    return walk.automaton.index.get(site, -1), channel, tokens[0]
