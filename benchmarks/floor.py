"""The fewest floating-point operations that an exact answer to a sweep needs.

A sweep is a set of (cell, example) questions: what are two logits of the last token when one activation of the
base run takes the value that it has in the source run? The two prompts of an example agree before token `first`
and have `length` tokens. For each question the only work that cannot be avoided is the work that is both

* *downstream* of the change (everything else is known from the base run, which is recorded once), and
* *upstream* of the last token's logits (in the last layer only that token needs its query, its attention output
  and its MLP, while keys and values are needed wherever they changed).

So, with the projections' costs per token (two operations per multiply-add)

    q = 2 D H d,   k = v = 2 D K d,   o = 2 H d D,   mlp = 2 D M (matrices),

and attention of 4 H d for each (query, key) pair (its score, and its weighted value):

* a residual stream changed at position p only, at layer l: q, k, v at p; attention of the query p to p + 1 keys,
  and of every later query to the one key that changed; o and mlp at the positions from p on;
* from there on, residual streams changed at all positions from p on: q, k, v, o, mlp there, and attention of those
  queries to all their keys;
* in the last layer: k and v at the changed positions; q, o and mlp at the last token; its attention;
* one head's output z at all positions from `first` on: its part of o, 2 d D, then mlp, at those positions. One
  head's query: also its attention, to all keys; key: attention to the changed keys; value: the weighted values;
* an MLP's output at p: nothing in its own layer.

A cell whose position is before `first` changes nothing and needs nothing. Both runs are recorded once: the base
in full (but in the last layer only k and v outside of the last token), the source from `first` on, because what
comes before is the base's. Two columns of the unembedding are counted for each question. Norms, activation
functions, softmax and additions are left out, which makes the floor lower and the reported fraction smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SWEEPS = ("resid_pre", "z", "q", "k", "v", "mlp_out")
"""The sweeps that can be counted: layer x position for `resid_pre` and `mlp_out`, layer x head for the others."""
BY_POSITION = ("resid_pre", "mlp_out")


@dataclass(frozen=True)
class Sizes:
    """What the count needs to know about a sequential decoder."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    mlp_matrices: int = 2

    @property
    def q(self) -> int:
        return 2 * self.d_model * self.n_heads * self.d_head

    @property
    def kv(self) -> int:
        return 4 * self.d_model * self.n_kv_heads * self.d_head

    @property
    def o(self) -> int:
        return self.q

    @property
    def mlp(self) -> int:
        return 2 * self.d_model * self.d_mlp * self.mlp_matrices

    @property
    def pair(self) -> int:
        """One (query, key) pair, all heads."""
        return 4 * self.n_heads * self.d_head


def _stream(s: Sizes, layer: int, first: int, length: int) -> int:
    """Layers from `layer` on, whose residual stream has changed at all positions from `first` on."""
    if layer >= s.n_layers:
        return 0
    n = length - first
    keys = (first + 1 + length) * n // 2  # the sum of t + 1 over the queries
    inner = n * (s.q + s.kv + s.o + s.mlp) + keys * s.pair
    return (s.n_layers - 1 - layer) * inner + n * s.kv + s.q + length * s.pair + s.o + s.mlp


def _resid(s: Sizes, layer: int, position: int, length: int) -> int:
    """The residual stream into `layer` changed at one position."""
    if layer >= s.n_layers:
        return 0
    after = length - 1 - position
    if layer < s.n_layers - 1:
        own = s.q + s.kv + (position + 1 + after) * s.pair + (after + 1) * (s.o + s.mlp)
        return own + _stream(s, layer + 1, position, length)
    query = s.q + length * s.pair if after == 0 else s.pair
    return s.kv + query + s.o + s.mlp


def _head(s: Sizes, kind: str, layer: int, first: int, length: int) -> int:
    """One head's z, q, k or v changed at all positions from `first` on."""
    last = layer == s.n_layers - 1
    queries = range(length - 1, length) if last else range(first, length)
    width = 2 * s.d_head * (s.n_heads // s.n_kv_heads if kind in "kv" else 1)  # of half a pair
    changed = sum(t + 1 - first for t in queries)
    attention = {
        "z": 0,
        "q": 2 * width * sum(t + 1 for t in queries),
        "k": 2 * width * changed,
        "v": width * changed,
    }[kind]
    return attention + len(queries) * (width * s.d_model + s.mlp) + _stream(s, layer + 1, first, length)


def question_flops(s: Sizes, kind: str, layer: int, place: int, first: int, length: int) -> int:
    """One (cell, example): `place` is a position for `resid_pre` and `mlp_out`; for heads it does not matter.

    Raises:
        ValueError: a kind that is not in `SWEEPS`.
    """
    unembed = 2 * 2 * s.d_model
    if kind in BY_POSITION:
        start = layer if kind == "resid_pre" else layer + 1
        if place < first or (start == s.n_layers and place != length - 1):
            return 0
        return _resid(s, start, place, length) + unembed
    if kind in ("z", "q", "k", "v"):
        return _head(s, kind, layer, first, length) + unembed
    raise ValueError(f"cannot count {kind!r}; one of {', '.join(SWEEPS)}")


def record_flops(s: Sizes, first: int, length: int) -> int:
    """The base run and the source run of one example."""
    return _stream(s, 0, 0, length) + _stream(s, 0, first, length)


def sweep_flops(s: Sizes, kind: str, examples: Sequence[tuple[int, int]]) -> int:
    """A whole sweep, both runs included; `examples` are (first differing token, length)."""
    heads = s.n_heads if kind in ("z", "q") else s.n_kv_heads
    total = 0
    for first, length in examples:
        places = length if kind in BY_POSITION else heads
        total += record_flops(s, first, length)
        total += sum(question_flops(s, kind, la, pl, first, length) for la in range(s.n_layers) for pl in range(places))
    return total
