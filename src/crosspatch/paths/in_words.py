"""A set of paths in words: its size, and the parts of the model that its paths pass through."""

from __future__ import annotations

from decimal import Decimal

from crosspatch.graph import ModelShape
from crosspatch.paths.automaton import Vocabulary
from crosspatch.paths.language import CHANNELS, Channel
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import PathSet
from crosspatch.paths.walk import Walk


def explain(paths_: PathSet, shape: ModelShape, pairs: Pairs | None = None, example: int = 0) -> str:
    """A set in words: its size, and the nodes that every path, some paths and no path of it pass through.

    A head is shown with the inputs that its paths take (`a1.h5.k`), without where they take all three. Raises as
    `inspect.count`.
    """
    walk = Walk(paths_, shape, pairs, example)
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
