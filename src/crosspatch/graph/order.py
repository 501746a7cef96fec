"""Which site can feed which: nodes write to the residual stream, receivers read it, edges join them."""

from __future__ import annotations

from collections.abc import Iterator

from crosspatch.graph.names import Site
from crosspatch.graph.shape import ModelShape

_SLOTS = 6  # points in time per block, see _times


def nodes(shape: ModelShape) -> list[Site]:
    """The senders: the input, every head, every MLP, in the order of computation."""
    found = [Site("input")]
    for layer in range(shape.n_layers):
        found += [Site("z", layer, head) for head in range(shape.n_heads)] + _mlp(layer, shape)
    return found


def receivers(shape: ModelShape) -> list[Site]:
    """What reads the residual stream: q of every head, k and v of every key/value head, every MLP, the logits."""
    found = []
    for layer in range(shape.n_layers):
        found += [Site("q", layer, head) for head in range(shape.n_heads)]
        found += [key_value(kind, layer, group, shape) for kind in ("k", "v") for group in range(shape.n_kv_heads)]
        found += _mlp(layer, shape)
    return [*found, Site("logits")]


def _mlp(layer: int, shape: ModelShape) -> list[Site]:
    """The block's MLP, where it has one."""
    return [Site("mlp_out", layer)] if shape.has_mlp else []


def key_value(kind: str, layer: int, group: int, shape: ModelShape) -> Site:
    """Key or value of a key/value head, spelled as this model needs it."""
    return Site(kind, layer, group, grouped=shape.grouped)


def edges(shape: ModelShape) -> Iterator[tuple[Site, Site]]:
    """Every (sender, receiver) between which information can flow directly."""
    senders = nodes(shape)
    for receiver in receivers(shape):
        for sender in senders:
            if comes_before(sender, receiver, shape):
                yield sender, receiver


def comes_before(sender: Site, receiver: Site, shape: ModelShape) -> bool:
    """Whether what `receiver` reads can contain what `sender` writes.

    A strict partial order. Heads of one layer never precede each other; `a5` precedes `m5` where blocks are
    sequential and not where they are parallel.
    """
    return _times(sender, shape)[1] < _times(receiver, shape)[0]


def _times(site: Site, shape: ModelShape) -> tuple[float, float]:
    """When a site reads the residual stream and when its value is part of the stream again.

    Within a block: 0 resid_pre, 1 attention reads, 2 it writes, 3 resid_mid, 4 the MLP reads, 5 it writes; parallel
    blocks read at 1 and write at 5. Reading never comes after writing, which makes the order transitive.
    """
    if site.kind == "input":
        return (-1, -1)
    if site.kind == "logits":
        return (_SLOTS * shape.n_layers + 1, float("inf"))
    start = _SLOTS * (site.layer or 0)
    if site.kind in ("resid_pre", "resid_mid", "resid_post"):
        at = start + {"resid_pre": 0, "resid_mid": 3, "resid_post": _SLOTS}[site.kind]
        return (at, at)
    if shape.parallel:
        return (start + 1, start + 5)
    return (start + 4, start + 5) if site.kind in ("mlp_out", "mlp_act", "neuron") else (start + 1, start + 2)


def children(site: Site, shape: ModelShape) -> list[Site]:
    """The parts that a site is made of, one level finer; empty when there is nothing finer. `site` must be valid here.

    A residual site gives the blocks that wrote to it since the residual site before (`r0` gives the input); an
    attention block its heads; a head its query, key and value (of its key/value head) and pattern; an MLP its neurons.
    """
    layer, index = site.layer or 0, site.index or 0
    match site.kind:
        case "resid_pre":
            return [Site("attn_out", layer - 1), *_mlp(layer - 1, shape)] if layer else [Site("input")]
        case "resid_mid":
            return [Site("attn_out", layer)]
        case "resid_post":
            return [Site("attn_out", layer), *_mlp(layer, shape)]
        case "attn_out":
            return [Site("z", layer, head) for head in range(shape.n_heads)]
        case "z":
            group = shape.group_of(index)
            return [
                Site("q", layer, index),
                key_value("k", layer, group, shape),
                key_value("v", layer, group, shape),
                Site("pattern", layer, index),
            ]
        case "mlp_out":
            return [Site("neuron", layer, n) for n in range(shape.d_mlp)] if shape.has_neurons else []
        case _:
            return []
