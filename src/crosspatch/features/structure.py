"""Which places feed which directly, and how: read off the form of the blocks, sequential, parallel or post-norm.

The direct effect of u on d is along everything that leads from u to d without passing another chosen place.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum

from crosspatch.graph import ModelShape
from crosspatch.model.run import Key

LOGITS: Key = (-1, "logits")


class Way(IntEnum):
    """How far a direct path is from doing nothing; of several paths the largest counts."""

    SAME = 0
    """u is added to the residual stream and nothing else happens: the Jacobian is the identity."""
    TOKEN = 1
    """It passes norms or an MLP: tokens do not mix."""
    ACROSS = 2
    """It passes an attention block: a token depends on others."""


Ways = dict[Key, Way]


def direct_ways(shape: ModelShape, chosen: Collection[Key]) -> dict[Key, Ways]:
    """For each chosen place, and for `LOGITS`, the chosen places that it depends on directly."""
    found: dict[Key, Ways] = {}

    def meet(key: Key, given: Ways) -> Ways:
        """What later parts see of an activation: itself, where it is chosen, else what it depends on."""
        if key not in chosen:
            return given
        found[key] = given
        return {key: Way.SAME}

    stream: Ways = {}
    for layer in range(shape.n_layers):
        stream = meet((layer, "resid_pre"), stream)
        heads = meet((layer, "z"), _at_least(stream, Way.ACROSS))
        attention = meet((layer, "attn_out"), _at_least(heads, Way.TOKEN))
        middle = stream if shape.parallel else meet((layer, "resid_mid"), _sum(stream, attention))
        if not shape.has_mlp:
            stream = meet((layer, "resid_post"), _sum(stream, attention))
            continue
        hidden = meet((layer, "mlp_act"), _at_least(middle, Way.TOKEN))
        mlp = meet((layer, "mlp_out"), _at_least(hidden, Way.TOKEN))
        stream = meet((layer, "resid_post"), _sum(_sum(stream, attention) if shape.parallel else middle, mlp))
    found[LOGITS] = _at_least(stream, Way.TOKEN)
    return found


def _at_least(ways: Ways, least: Way) -> Ways:
    return {key: max(way, least) for key, way in ways.items()}


def _sum(a: Ways, b: Ways) -> Ways:
    # Two paths that each do nothing would be twice the identity; blocks have no such pair, since what is chosen in
    # between stands in for what it was made of.
    return {key: max(a.get(key, Way.SAME), b.get(key, Way.SAME)) for key in {**a, **b}}
