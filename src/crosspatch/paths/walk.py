"""All paths of a set on a model, walked from the logits back: the readers that they pass and what may still come.

Nothing is enumerated: the paths that a state of the automaton still allows are counted once for every reader
(dynamic programming from the input on), in integers of any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from crosspatch.errors import PathError
from crosspatch.graph import ModelShape
from crosspatch.paths.automaton import EMPTY, Automaton, Place, State, Vocabulary, vocabulary
from crosspatch.paths.compile import reader_level
from crosspatch.paths.language import CHANNELS, Channel
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import PathSet
from crosspatch.paths.places import resolve, windows_at

DEAD = -1
"""The state in which no path can come any more."""
Spot = tuple[int, int, int]
"""A reader: how many nodes come before it, the number of the state it is in, the token it reads."""
Through = tuple[int, Channel, int]
"""A node, the input of it that a path takes, the token it reads."""


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


class Walk:
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
