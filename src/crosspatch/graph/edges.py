"""All edges of a model as one table: senders by receivers, with names, numbers and masks.

The graph is that of Conmy et al. 2023 (arXiv 2304.14997) with one input node: every head and MLP sends, every query,
key, value and MLP input and the logits receive. Keys and values are counted once per key/value head.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool

from crosspatch.errors import AddressError
from crosspatch.graph.names import Site, parse_site, validate
from crosspatch.graph.order import comes_before, nodes, receivers
from crosspatch.graph.shape import ModelShape

ARROW = "->"


class EdgeTable:
    """Numbers and names of a model's edges; make it with `edge_table`.

    Attributes:
        shape: the model's sizes.
        senders, receivers: sites, in the order of computation.
        exists: `[sender, receiver]`, whether information can flow directly. Edges are numbered row by row of its
            transpose: all edges into the first receiver, then all into the second.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self.senders, self.receivers = tuple(nodes(shape)), tuple(receivers(shape))
        self.sender_number = {site: i for i, site in enumerate(self.senders)}
        self.receiver_number = {site: i for i, site in enumerate(self.receivers)}
        self.reach = np.array([sum(comes_before(u, v, shape) for u in self.senders) for v in self.receivers])
        # Senders that come before a receiver are the first ones: they are in the order of computation.
        self.exists: Bool[np.ndarray, "sender receiver"] = np.arange(len(self.senders))[:, None] < self.reach[None]
        self.exists.setflags(write=False)

    def __len__(self) -> int:
        return int(self.reach.sum())

    @cached_property
    def node_of_receiver(self) -> tuple[tuple[int, ...], ...]:
        """For each receiver the senders whose output depends on it: a key/value head serves several heads."""
        found = []
        for site in self.receivers:
            if site.kind == "logits":
                heads: tuple[Site, ...] = ()
            elif site.kind == "mlp_out":
                heads = (site,)
            else:
                index = site.index or 0
                shared = self.shape.heads_of(index) if site.kind in ("k", "v") else (index,)
                heads = tuple(Site("z", site.layer, head) for head in shared)
            found.append(tuple(self.sender_number[head] for head in heads))
        return tuple(found)

    def number(self, sender: int, receiver: int) -> int:
        """The number of an edge among all, from the numbers of its ends."""
        return int(self.reach[:receiver].sum()) + sender

    def flat(self, matrix: np.ndarray) -> np.ndarray:
        """`[..., sender, receiver]` -> `[..., edge]`, existing edges only, by number."""
        return np.swapaxes(matrix, -1, -2)[..., self.exists.T]

    def matrix(self, flat: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """`[..., edge]` -> `[..., sender, receiver]`; `fill` where there is no edge."""
        out = np.full((*flat.shape[:-1], len(self.receivers), len(self.senders)), fill, dtype=flat.dtype)
        out[..., self.exists.T] = flat
        return np.swapaxes(out, -1, -2)

    def name(self, sender: int, receiver: int) -> str:
        """`a0.h1->a2.h3.q`"""
        return f"{self.senders[sender]}{ARROW}{self.receivers[receiver]}"

    def names(self) -> list[str]:
        """Names of all edges, by number."""
        senders = [str(site) for site in self.senders]
        return [f"{senders[u]}{ARROW}{v}" for v, n in zip(self.receivers, self.reach, strict=True) for u in range(n)]

    def parse(self, name: str) -> tuple[int, int]:
        """The numbers of an edge's ends.

        Raises:
            AddressError: no edge of this model.
        """
        left, arrow, right = name.partition(ARROW)
        if not arrow:
            raise AddressError(f"{name!r} is no edge", fix="write for example a0.h1->a2.h3.q, input->m0 or m3->logits")
        sender, receiver = (validate(parse_site(part.strip()), self.shape) for part in (left, right))
        for site, known, what in ((sender, self.sender_number, "send"), (receiver, self.receiver_number, "receive")):
            if site not in known:
                raise AddressError(
                    f"{site} does not {what}",
                    where=name,
                    fix="senders are input, heads and MLPs; receivers are q, k, v, MLPs and logits",
                )
        u, v = self.sender_number[sender], self.receiver_number[receiver]
        if not self.exists[u, v]:
            raise AddressError(f"{receiver} comes before {sender} writes", where=name, fix="name a later receiver")
        return u, v


@lru_cache(maxsize=8)
def edge_table(shape: ModelShape) -> EdgeTable:
    """The edges of a model of this shape."""
    return EdgeTable(shape)
