"""Effects of features and error terms: exact means over examples, and the largest of every example. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from crosspatch.errors import CircuitError, ResultError
from crosspatch.features.nodes import NodeSet
from crosspatch.results.statistics import bootstrap_mean, resampler

_COLUMNS = {"example": np.int32, "place": np.int16, "span": np.int16, "node": np.int32, "value": np.float64}


@dataclass(eq=False)
class Kept:
    """The largest effects of each example, span and place, and what was left out.

    Attributes:
        example, place, span, node, value: one entry each; `node` is the column (features, then the error term, which
            is always kept).
        dropped: sum of what was left out.
        dropped_abs: sum of its absolute values: 0 where nothing is missing.
    """

    example: Int[np.ndarray, " entry"]
    place: Int[np.ndarray, " entry"]
    span: Int[np.ndarray, " entry"]
    node: Int[np.ndarray, " entry"]
    value: Float[np.ndarray, " entry"]
    dropped: Float[np.ndarray, "place example span"]
    dropped_abs: Float[np.ndarray, "place example span"]
    _parts: list[tuple[np.ndarray, ...]] = field(default_factory=list, repr=False, init=False)

    @classmethod
    def empty(cls, n_examples: int, places: Sequence[str], n_spans: int) -> Kept:
        example, place, span, node, value = (np.zeros(0, dtype) for dtype in _COLUMNS.values())
        shape = (len(places), n_examples, n_spans)
        return cls(example, place, span, node, value, np.zeros(shape), np.zeros(shape))

    def add(
        self,
        effects: Float[np.ndarray, "example span node"],
        examples: Sequence[int],
        place: int,
        has_error: bool,
        keep: int | None,
    ) -> None:
        """Take in the effects of some examples at one place."""
        width = effects.shape[2] - has_error
        size = np.abs(effects)
        wanted = effects != 0
        if keep is not None and (wanted[..., :width].sum(-1) > keep).any():
            inner = size[..., :width]
            border = np.partition(inner, width - keep, axis=-1)[..., width - keep, None] if keep else np.inf
            marked = np.ones_like(wanted)
            marked[..., :width] = above = inner > border
            # Of equals at the border the first: which are kept must not depend on how they were sorted.
            equal = inner == border
            marked[..., :width] |= equal & (equal.cumsum(-1) <= keep - above.sum(-1, keepdims=True))
            wanted &= marked
        left = np.where(wanted, 0.0, effects)
        self.dropped[place, list(examples)] = left.sum(-1)
        self.dropped_abs[place, list(examples)] = np.abs(left).sum(-1)
        row, span, node = np.nonzero(wanted)
        numbers = np.asarray(examples)[row]
        self._parts.append((numbers, np.full(len(row), place), span, node, effects[row, span, node]))

    def done(self) -> Kept:
        """All that was taken in, as arrays."""
        if self._parts:
            columns = (np.concatenate(column) for column in zip(*self._parts, strict=True))
            for (name, dtype), column in zip(_COLUMNS.items(), columns, strict=True):
                setattr(self, name, column.astype(dtype))
            self._parts = []
        return self


@dataclass(eq=False)
class FeatureEffects:
    """How much every feature and error term matters; make it with `feature_effects`.

    Attributes:
        places: names, in the order of the computation.
        has_error: by place, whether its last node is an error term.
        blocks: by place, the block that computes it; -1 for the input.
        spans: names; `("*",)`: all tokens added up.
        mean: by place, the exact mean over examples of every node.
        kept: effects of single examples.
        clean: the metric of each example.
        clusters: what intervals resample.
        pairs: digests of the pairs.
        origin: JSON values: how they were found.
    """

    places: list[str]
    has_error: dict[str, bool]
    blocks: dict[str, int]
    spans: tuple[str, ...]
    mean: dict[str, Float[np.ndarray, "span node"]]
    kept: Kept
    clean: Float[np.ndarray, " example"]
    clusters: list[str]
    pairs: list[str]
    origin: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        nodes = sum(mean.size for mean in self.mean.values())
        return f"<FeatureEffects {self.origin.get('method')}: {nodes:,} nodes, {len(self.clean)} examples>"

    def above(self, threshold: float, *, start_block: int = -1) -> NodeSet:
        """Nodes whose mean effect is larger than a threshold in absolute value (the paper's T_N).

        Args:
            start_block: nodes of earlier blocks are left out; -1: the input may be in.
        """
        return self._marked(lambda size: size > threshold, f"above {threshold:g}", start_block)

    def top(self, n: int, *, start_block: int = -1) -> NodeSet:
        """The n nodes of largest absolute mean effect; of equal ones those computed first. Never one without effect.

        Raises:
            CircuitError: a negative number.
        """
        if n < 0:
            raise CircuitError(f"{n} nodes", where="FeatureEffects.top", fix="give a number of nodes")
        places = [place for place in self.places if self.blocks[place] >= start_block]
        sizes = np.concatenate([np.abs(self.mean[place]).ravel() for place in places] or [np.zeros(0)])
        chosen = np.zeros(len(sizes), dtype=bool)
        chosen[np.argsort(-sizes, kind="stable")[:n]] = True
        chosen &= sizes > 0
        cuts = np.cumsum([self.mean[place].size for place in places])[:-1]
        parts = dict(zip(places, np.split(chosen, cuts), strict=True)) if places else {}
        keep = {
            place: parts[place].reshape(mean.shape) if place in parts else np.zeros(mean.shape, dtype=bool)
            for place, mean in self.mean.items()
        }
        return NodeSet(keep, self.has_error, self.spans, f"top {n}")

    def active(self) -> NodeSet:
        """All nodes with any mean effect: what random nodes are drawn from."""
        return self._marked(lambda size: size > 0, "active", -1)

    def values_of(self, nodes: NodeSet) -> Float[np.ndarray, "example node"]:
        """Effects of single examples, in the order in which a set lists its nodes; NaN: not kept.

        Raises:
            ResultError: the set's spans are not those scored.
        """
        if nodes.spans != self.spans:
            raise ResultError(f"nodes at {nodes.spans}, effects at {self.spans}", where="values_of")
        found = []
        for place, keep in nodes.keep.items():
            at = self.places.index(place)
            dense = np.full((len(self.clean), *keep.shape), np.nan)
            dense[np.nonzero(self.kept.dropped_abs[at] == 0)] = 0.0
            if self.has_error[place]:
                dense[..., -1] = 0.0
            here = self.kept.place == at
            dense[self.kept.example[here], self.kept.span[here], self.kept.node[here]] = self.kept.value[here]
            spans, columns = np.nonzero(keep.T)[::-1]
            found.append(dense[:, spans, columns])
        return np.concatenate(found, axis=1) if found else np.zeros((len(self.clean), 0))

    def frame(self, n: int = 50, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """The n largest nodes: mean effect, and its interval over resampled clusters of pairs (NaN where effects of
        single examples were not kept)."""
        nodes = self.top(n)
        values = self.values_of(nodes).T
        ends = bootstrap_mean(np.nan_to_num(values), resampler(len(self.clean), self.clusters, draws=draws, seed=seed))
        whole = ~np.isnan(values).any(1)
        listed = list(nodes)
        means = [
            self.mean[node.place][self.spans.index(node.span), -1 if node.feature is None else node.feature]
            for node in listed
        ]
        frame = pd.DataFrame(
            {
                "node": [str(node) for node in listed],
                "place": [node.place for node in listed],
                "feature": pd.array([node.feature for node in listed], dtype="Int64"),
                "span": [node.span for node in listed],
                "effect": np.asarray(means, dtype=np.float64),
                "low": np.where(whole, ends.low, np.nan),
                "high": np.where(whole, ends.high, np.nan),
            }
        )
        order = frame["effect"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].reset_index(drop=True)

    def _marked(self, wanted: Any, name: str, start_block: int) -> NodeSet:
        keep = {place: wanted(np.abs(mean)) & (self.blocks[place] >= start_block) for place, mean in self.mean.items()}
        return NodeSet(keep, self.has_error, self.spans, name)
