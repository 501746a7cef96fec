"""What is in a set of paths: how many, which ones, one in particular, in words, and whether two sets are equal.

Nothing is enumerated: the paths that a state of the automaton still allows are counted once for every reader
(dynamic programming from the input on), in integers of any size. Without pairs a path is a list of nodes and inputs,
`input -> a0.h1.v -> a1.h5.k -> logits`; a set that names positions or windows needs the prompt of one example, in which
every step is at a token, `input@1 -> a0.h1.v@1 -> a1.h5.k@2 -> logits@4` (the token that is read; a query and an MLP
read the token they write to). A path in this form is a pattern of the language, and the only path that it matches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice

from crosspatch.errors import PathError
from crosspatch.graph import ModelShape
from crosspatch.paths.automaton import EMPTY, Automaton, Place, State, Vocabulary, vocabulary
from crosspatch.paths.compile import reader_level
from crosspatch.paths.language import CHANNELS, Channel, Route, matching, parse_route, refuse, require_possible
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import PathSet, nothing
from crosspatch.paths.places import resolve, windows_at

DEAD = -1
"""The state in which no path can come any more."""
Spot = tuple[int, int, int]
"""A reader: how many nodes come before it, the number of the state it is in, the token it reads."""
Through = tuple[int, Channel, int]
"""A node, the input of it that a path takes, the token it reads."""


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
    walk = _Walk(paths_, shape, pairs, example)
    return sum(map(walk.completions, walk.starts()))


def has_path(paths_: PathSet, shape: ModelShape, pairs: Pairs | None = None, example: int = 0) -> bool:
    """Whether a set has any path; stops at the first. Raises as `count`."""
    walk = _Walk(paths_, shape, pairs, example)
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
    walk = _Walk(paths_, shape, pairs, example)
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
    walk = _Walk(paths_, shape, pairs, example)
    return list(islice((text for spot in walk.starts() for text in walk.texts(spot)), limit))


def canonical(paths_: PathSet, shape: ModelShape, pairs: Pairs | None = None, example: int = 0) -> str:
    """A hash that equal sets share, however they are written: of the smallest automaton that accepts the paths.

    With pairs it is about the paths of this prompt. Raises as `count`.
    """
    walk = _Walk(paths_, shape, pairs, example)
    found = [f"{spot[2]}:{walk.digest(spot)}" for spot in walk.starts() if walk.completions(spot)]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:32]


def equal(a: PathSet, b: PathSet, shape: ModelShape, pairs: Pairs | None = None, example: int = 0) -> bool:
    """Whether two sets hold the same paths (with pairs: of this prompt). Raises as `count`."""
    return not has_path((a - b) | (b - a), shape, pairs, example)


def explain(paths_: PathSet, shape: ModelShape, pairs: Pairs | None = None, example: int = 0) -> str:
    """A set in words: its size, and the nodes that every path, some paths and no path of it pass through.

    A head is shown with the inputs that its paths take (`a1.h5.k`), without where they take all three. Raises as
    `count`.
    """
    walk = _Walk(paths_, shape, pairs, example)
    total = sum(map(walk.completions, walk.starts()))
    whole = sum(walk.all_paths(level, at) for level, _, at in walk.starts())
    tokens = "" if pairs is None else f" from token to token in example {example}"
    if total in (0, whole):
        return f"{'Every one' if total else 'None'} of the {_number(whole)} paths{tokens}."
    through = walk.through()
    inputs: dict[int, set[Channel]] = {}
    paths_of: dict[int, int] = {}
    for (node, channel, _), n in through.items():
        inputs.setdefault(node, set()).add(channel)
        paths_of[node] = paths_of.get(node, 0) + n
    nodes = range(1, len(walk.words.nodes))
    lines = [f"{_number(total)} of {_number(whole)} paths{tokens} ({float(Decimal(total) / Decimal(whole)):.2g})."]
    for title, chosen in (
        ("Every path goes through", [n for n in nodes if paths_of.get(n, 0) == total]),
        ("Some go through", [n for n in nodes if 0 < paths_of.get(n, 0) < total]),
        ("None goes through", [n for n in nodes if not paths_of.get(n, 0)]),
    ):
        if chosen:
            lines.append(f"{title} {', '.join(_names(chosen, inputs, walk.words))}.")
    if pairs is not None:
        for title, where in (("They start at", walk.sources()), ("They are read at", walk.sinks())):
            lines.append(f"{title} token{'s' if len(where) > 1 else ''} {_runs(where)}.")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Prompt:
    """Tokens of one example as the automaton sees them; one nameless token where no pairs are given."""

    places: list[Place]
    windows: list[frozenset[tuple[int, int]]]  # by how far back the token read is (`windows_at`)
    read: tuple[int, ...]


def _prompt(words: Vocabulary, pairs: Pairs | None, example: int) -> _Prompt:
    if pairs is None:
        if words.positions or words.windows:
            named = [f"@{p}" for p in words.positions] + [f"[{low}..{high}]" for low, high in words.windows]
            raise PathError(
                f"the set names positions ({', '.join(named)}), which are tokens of a prompt",
                where="path set",
                fix="give pairs=, and example= for another than the first",
            )
        return _Prompt([Place()], [frozenset()], (0,))
    if not 0 <= example < len(pairs):
        raise PathError(f"there is no example {example}", where="path set", fix=f"use 0 to {len(pairs) - 1}")
    ids = pairs.reference[example]
    at = {position: resolve(position, pairs, example) for position in words.positions}
    places = [Place(frozenset(name for name, where in at.items() if i in where)) for i in range(len(ids))]
    return _Prompt(places, windows_at(words, len(ids)), tuple(sorted(set(pairs.read[example]))))


class _Walk:
    """All paths of a set on a model (and a prompt), as the readers they pass and what may still come.

    States, and what a token is to the automaton, are numbered: the same steps are asked for at very many tokens.
    """

    def __init__(self, paths_: PathSet, shape: ModelShape, pairs: Pairs | None, example: int) -> None:
        self.set, self.local = paths_, pairs is not None
        self.words = vocabulary([paths_], shape)
        self.pairs, self.example = pairs, example
        prompt = _prompt(self.words, pairs, example)
        self.places, self.windows, self.read = prompt.places, prompt.windows, prompt.read
        self.kinds = [self.places.index(place) for place in self.places]
        self.offsets = [self.windows.index(found) for found in self.windows]
        self.automaton = Automaton(self.words)
        self.levels = [0, *(reader_level(site, self.words) for site in self.words.nodes[1:])]
        self.states: list[State] = []
        self._numbers: dict[State, int] = {}
        self._wrote: dict[tuple[int, int, int], int] = {}
        self._entered: dict[tuple[int, int, Channel, int, int], int] = {}
        self._counts: dict[Spot, int] = {}
        self._whole: dict[tuple[int, int], int] = {}
        self._alive: dict[Spot, bool] = {}
        self._digests: dict[Spot, str] = {}

    def starts(self) -> list[Spot]:
        last = len(self.words.nodes)
        return [(last, self._number(self.automaton.start(self.set, self.places[at])), at) for at in self.read]

    def seen(self, at: int) -> range:
        """Tokens whose keys and values a head that writes to one token reads."""
        return range(at + 1 if self.words.shape.causal else len(self.places))

    def reading(self, at: int, reads: int) -> Place:
        """Where a node that writes to one token reads another."""
        return Place(self.places[reads].positions, self.windows[at - reads])

    def steps(self, spot: Spot) -> Iterator[tuple[Through, Spot]]:
        """The ways on from a reader: a node that it reads, and how this node is entered."""
        level, state, at = spot
        for node in range(1, level):
            wrote = self._write(state, node, at)
            if wrote == DEAD:
                continue
            head, below = self.words.nodes[node].kind == "z", self.levels[node]
            for channel in CHANNELS if head else CHANNELS[:1]:
                for reads in self.seen(at) if channel != "q" else (at,):
                    key = (wrote, node, channel, self.kinds[reads], self.offsets[at - reads])
                    to = self._entered.get(key)
                    if to is None:
                        state_to = self.automaton.read(self.states[wrote], node, channel, self.reading(at, reads))
                        to = self._entered[key] = self._number(state_to)
                    if to != DEAD:
                        yield (node, channel, reads), (below, to, reads)

    def _write(self, state: int, node: int, at: int) -> int:
        key = (state, node, self.kinds[at])
        if key not in self._wrote:
            self._wrote[key] = self._number(self.automaton.write(self.states[state], node, self.places[at]))
        return self._wrote[key]

    def _number(self, state: State) -> int:
        if state in EMPTY:
            return DEAD
        if state not in self._numbers:
            self._numbers[state] = len(self.states)
            self.states.append(state)
        return self._numbers[state]

    def from_input(self, spot: Spot) -> bool:
        """Whether the path that begins at the input and is read here belongs to the set."""
        wrote = self._write(spot[1], 0, spot[2]) if spot[1] != DEAD else DEAD
        return wrote != DEAD and self.automaton.holds(self.states[wrote])

    def completions(self, spot: Spot) -> int:
        """How many ways there are from the input to a reader."""
        if spot not in self._counts:
            self._counts[spot] = int(self.from_input(spot)) + sum(self.completions(n) for _, n in self.steps(spot))
        return self._counts[spot]

    def alive(self, spot: Spot) -> bool:
        if spot not in self._alive:
            self._alive[spot] = self.from_input(spot) or any(self.alive(n) for _, n in self.steps(spot))
        return self._alive[spot]

    def all_paths(self, level: int, at: int) -> int:
        """How many ways there are from the input to a reader in the whole network."""
        if (level, at) not in self._whole:
            total = 1
            for node in range(1, level):
                head, below = self.words.nodes[node].kind == "z", self.levels[node]
                total += self.all_paths(below, at)
                total += 2 * sum(self.all_paths(below, reads) for reads in self.seen(at)) if head else 0
            self._whole[level, at] = total
        return self._whole[level, at]

    def digest(self, spot: Spot) -> str:
        """Equal for readers with equal ways on."""
        if spot not in self._digests:
            lines = ["input"] if self.from_input(spot) else []
            lines += [f"{n}{c}{p} {self.digest(to)}" for (n, c, p), to in self.steps(spot) if self.completions(to)]
            self._digests[spot] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return self._digests[spot]

    def texts(self, spot: Spot, after: tuple[str, ...] = ()) -> Iterator[str]:
        at = f"@{spot[2]}" if self.local else ""
        after = after or (f"logits{at}",)
        if self.from_input(spot):
            yield " -> ".join((f"input{at}", *after))
        for (node, channel, reads), to in self.steps(spot):
            if self.alive(to):
                name, where = str(self.words.nodes[node]), f"@{reads}" if self.local else ""
                name = f"{name}.{channel}" if name[0] == "a" else name
                yield from self.texts(to, (f"{name}{where}", *after))

    def arrivals(self) -> dict[Spot, int]:
        """How many ways lead from the logits back to each reader."""
        found: dict[Spot, int] = dict.fromkeys(self.starts(), 1)
        levels: dict[int, list[Spot]] = {len(self.words.nodes): list(found)}
        for level in sorted(set(self.levels) | set(levels), reverse=True):
            for spot in levels.get(level, []):
                for _, to in self.steps(spot):
                    if self.completions(to):
                        if to not in found:
                            found[to] = 0
                            levels.setdefault(to[0], []).append(to)
                        found[to] += found[spot]
        return found

    def through(self) -> dict[Through, int]:
        """How many paths enter each node in each way."""
        found: dict[Through, int] = {}
        for spot, n in self.arrivals().items():
            for way, to in self.steps(spot):
                if self.completions(to):
                    found[way] = found.get(way, 0) + n * self.completions(to)
        return found

    def sources(self) -> list[int]:
        """Tokens whose input some path starts at."""
        return sorted({spot[2] for spot in self.arrivals() if self.from_input(spot)})

    def sinks(self) -> list[int]:
        """Read tokens that some path ends at."""
        return [spot[2] for spot in self.starts() if self.completions(spot)]


def _single(route: Route, i: int, walk: _Walk) -> tuple[int, Channel, int]:
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


def _number(n: int) -> str:
    return f"{n:,}" if n < 10**9 else f"{Decimal(n):.3g}"


def _names(chosen: list[int], inputs: dict[int, set[Channel]], words: Vocabulary) -> list[str]:
    """Names of nodes, whole layers and runs of layers as one."""
    layers: dict[tuple[str, str, frozenset[Channel]], list[int]] = {}
    heads: dict[tuple[int, frozenset[Channel]], list[int]] = {}
    for node in chosen:
        site, taken = words.nodes[node], frozenset(inputs.get(node, ()))
        if site.kind == "z":
            heads.setdefault((site.layer or 0, taken), []).append(site.index or 0)
        else:
            layers.setdefault(("m", "", frozenset()), []).append(site.layer or 0)
    for (layer, taken), found in heads.items():
        part = _part(found, words.shape.n_heads)
        layers.setdefault(("a", part, taken), []).append(layer)
    names = []
    for (letter, part, taken), found in sorted(layers.items(), key=lambda item: (min(item[1]), item[0][0], item[0][1])):
        shown = sorted(taken, key=CHANNELS.index)
        channels = "" if len(shown) in (0, 3) else f".{shown[0]}" if len(shown) == 1 else f".[{','.join(shown)}]"
        whole = found == list(range(words.shape.n_layers)) and len(found) > 1
        names.append(f"{letter}{'*' if whole else _range(found)}{f'.{part}' if part else ''}{channels}")
    return names


def _part(heads: list[int], n_heads: int) -> str:
    return "*" if len(heads) == n_heads and n_heads > 1 else f"h{_range(heads)}"


def _range(numbers: list[int]) -> str:
    """`3`, `[3-5]` or `[1,4,6-9]`, as patterns write it."""
    return f"[{_runs(numbers)}]" if len(numbers) > 1 else str(numbers[0])


def _runs(numbers: list[int]) -> str:
    """`3`, `3-5` or `1,4,6-9`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
