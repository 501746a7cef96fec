"""The model in which nodes read each other along kept edges only, computed exactly, receiver by receiver.

Each chosen node has a value. That of d (feature j of the place D) is what j is in the activation that D would have if
every place that D reads directly held

    x = (base) + sum over its chosen nodes u of (value of u where the edge u -> d is kept, else u's replacement) v_u

and nothing else of the model were changed: error terms in the same way, the logits as one more receiver. Places between
that are not chosen are computed by the model; no other chosen place lies between, since it would be read in the
parent's stead (see `structure`). Two readings of the base, that is of all nodes which are not chosen:

- `kept`: they are replaced. With all edges this is the model with everything outside the node set replaced.
- `cut`: they are present, read everything, and everything reads them. With no edge cut this is the model.

Tokens of no span have no nodes: they read every chosen node, and everything reads them.

Receivers that read the same are one computation: everything between the parents and the place is run once for each
different set of kept parents. Where the place adds up its parents (the residual stream) nothing is run at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosspatch.attribution.forward import trace
from crosspatch.attribution.points import BUDGET_MIB, MIB, row_bytes
from crosspatch.errors import CircuitError
from crosspatch.features.basis import Bases, Basis
from crosspatch.features.forward import Ablated
from crosspatch.features.gradients import token_masks
from crosspatch.features.nodes import NodeSet
from crosspatch.features.replaced import natural
from crosspatch.features.structure import LOGITS, Way, Ways, direct_ways
from crosspatch.graph import ModelShape
from crosspatch.model.run import Key


class _Reached(Exception):
    """Ends a run at the place that was to be computed."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@dataclass(frozen=True, eq=False)
class Receivers:
    """The chosen nodes of one place that something reads.

    Attributes:
        numbers: in the whole list.
        column: of each, among the place's chosen features; their number for the error term.
        span: of each.
        group: of each, the set of parents that it reads.
        reads: by group, which nodes of the whole list it reads. The last group reads all, if `whole`.
        whole: whether the activation with all that is present is needed too.
    """

    numbers: list[int]
    column: Int[np.ndarray, " node"]
    span: Int[np.ndarray, " node"]
    group: Int[np.ndarray, " node"]
    reads: Bool[np.ndarray, "group sender"]
    whole: bool


@dataclass(eq=False)
class Plan:
    """What has to be computed for one set of edges; the same for all pairs.

    Attributes:
        bases: places in the order of the computation.
        nodes: the chosen nodes.
        features: by place, which features are chosen, at any span.
        has_error: by place, whether the error term is, at any span.
        receivers: by place.
        into_logits: which nodes the logits read.
        cut: the reading of the base (see above).
        ways: what each place reads.
        first: the first block that has a place.
    """

    bases: Bases
    nodes: NodeSet
    features: dict[Key, Tensor]
    has_error: dict[Key, bool]
    receivers: dict[Key, Receivers]
    into_logits: Bool[np.ndarray, " sender"]
    cut: bool
    ways: dict[Key, Ways]
    first: int

    def passes(self, shape: ModelShape) -> float:
        """About how many forward passes of the model it costs, blocks counted whole."""
        blocks = shape.n_layers - start_of(LOGITS, self.ways, shape, self.first)
        for key, r in self.receivers.items():
            if not adds(self.ways[key]):
                blocks += len(r.reads) * (last_of(key, shape) + 1 - start_of(key, self.ways, shape, self.first))
        return blocks / shape.n_layers


def plan(
    shape: ModelShape, bases: Bases, nodes: NodeSet, edges: Bool[np.ndarray, "up down"], *, cut: bool, covered: bool
) -> Plan:
    """Which receivers read the same.

    Args:
        bases: the places that count; all others are left to the model.
        nodes: over these places.
        edges: which there are, between the nodes as the set lists them, the logits last (`EdgeSet.matrix`); in the
            `cut` reading those that are not.
        covered: whether every token belongs to a span.

    Raises:
        CircuitError: an edge where there is no direct way.
    """
    listed = list(nodes)
    ways = direct_ways(shape, [basis.key for basis in bases])
    places = [basis.place for basis in bases]
    place = np.array([places.index(node.place) for node in listed], dtype=np.int64)
    ready = np.zeros((len(bases) + 1, len(bases)), dtype=bool)  # receiver (the logits last), sender
    for d, key in enumerate([*(basis.key for basis in bases), LOGITS]):
        ready[d] = [basis.key in ways[key] for basis in bases]
    may = ready[np.append(place, len(bases))][:, place].T
    if (edges & ~may).any():
        u, d = np.argwhere(edges & ~may)[0]
        into = "the logits" if d == len(listed) else str(listed[d])
        raise CircuitError(
            f"nothing leads from {listed[u]} to {into} without passing another place",
            where="edges",
            fix="use edges of `feature_edges` with the same bases",
        )
    reads = (may & ~edges if cut else edges).T  # [receiver, sender]
    everything = cut or not covered
    needed = _needed(reads, place, everything)
    receivers, features, has_error = {}, {}, {}
    spans = {name: i for i, name in enumerate(nodes.spans)}
    for p, basis in enumerate(bases):
        mine = [i for i in np.flatnonzero(place == p).tolist() if needed[i]]
        chosen = sorted({f for i in mine if (f := listed[i].feature) is not None})
        at = {feature: column for column, feature in enumerate(chosen)}
        features[basis.key] = torch.tensor(chosen, dtype=torch.long)
        has_error[basis.key] = any(listed[i].feature is None for i in mine)
        if not mine and not everything:
            continue
        rows, group = np.unique(reads[mine], axis=0, return_inverse=True)
        if everything:
            rows = np.concatenate([rows, np.ones((1, len(listed)), dtype=bool)])
        receivers[basis.key] = Receivers(
            mine,
            np.array([len(chosen) if (f := listed[i].feature) is None else at[f] for i in mine], dtype=np.int64),
            np.array([spans[listed[i].span] for i in mine], dtype=np.int64),
            group.reshape(-1),
            rows,
            everything,
        )
    first = min((basis.key[0] for basis in bases), default=0)
    return Plan(bases, nodes, features, has_error, receivers, reads[-1], cut, ways, first)


def _needed(
    reads: Bool[np.ndarray, "receiver sender"], place: Int[np.ndarray, " node"], everything: bool
) -> list[bool]:
    """Which nodes the logits depend on."""
    if everything:
        return [True] * len(place)
    needed = reads[-1].copy()
    for p in sorted(set(place.tolist()), reverse=True):
        here = (place == p) & needed
        needed |= reads[:-1][here].any(0)
    return needed.tolist()


def adds(ways: Ways) -> bool:
    """Whether a place is the sum of what it reads, and of what no chosen place changes."""
    return all(way is Way.SAME for way in ways.values())


def last_of(key: Key, shape: ModelShape) -> int:
    """The last block that a place needs run."""
    return shape.n_layers - 1 if key == LOGITS else key[0] - (key[1] == "resid_pre")


def start_of(key: Key, ways: dict[Key, Ways], shape: ModelShape, first: int) -> int:
    """The block from which a place is computed: the last one whose input is read, or else the first."""
    return max([layer for layer, kind in ways[key] if kind == "resid_pre"], default=first)


@dataclass(eq=False)
class _Place:
    """The values of a place's chosen nodes at each token, once they are known.

    Attributes:
        base: the activation with every chosen node as the base has it.
        kept, lost: what a reader's view of each feature differs from the base by where it reads it, and where not.
        error_kept, error_lost: the same of the error term; None: it is not chosen.
    """

    base: Float[Tensor, "token d"]
    kept: Float[Tensor, "token feature"]
    lost: Float[Tensor, "token feature"]
    error_kept: Tensor | None
    error_lost: Tensor | None


@dataclass(eq=False)
class EdgeRun:
    """One plan on examples of equal length."""

    ready: Ablated
    plan: Plan
    budget_mib: float | None = None
    _places: dict[Key, _Place] = field(default_factory=dict)
    _span: Int[Tensor, " token"] = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @torch.no_grad()
    def run(self) -> Float[Tensor, " example"]:
        """The metric of each example."""
        part = self.ready.values.part
        masks = token_masks(part, self.plan.nodes.spans).flatten(1) > 0
        # The number of each token's span; of a token of none, one past the last.
        self._span = torch.where(masks.any(0), masks.int().argmax(0), len(masks))
        for basis in self.plan.bases:
            self._places[basis.key] = self._values(basis)
        (hidden,) = self._runs(LOGITS, self.plan.into_logits[None])
        return part.measure(hidden).double()

    def _values(self, basis: Basis) -> _Place:
        plan, values, key = self.plan, self.ready.values, basis.key
        index = plan.features[key].to(values.at[basis.place].device)
        replaced = values.features(basis, index)
        receivers = plan.receivers.get(key)
        whole = values.whole(basis)
        if receivers is None:
            return _Place(whole, torch.zeros_like(replaced), torch.zeros_like(replaced), None, None)
        x = list(self._runs(key, receivers.reads))
        listed, present = self._features(basis, receivers, index, x)
        base, f_base = whole, replaced
        if plan.cut:
            base, f_base = x[-1], basis.only(x[-1], index)
        elif receivers.whole:
            base = torch.where((self._span == len(plan.nodes.spans))[:, None].to(whole.device), x[-1], whole)
        kept, lost = (listed * (f - f_base) for f in (present, replaced))
        if not plan.has_error[key]:
            return _Place(base, kept, lost, None, None)
        at, e = self._errors(basis, receivers, x)
        e_replaced = values.error(basis)
        e_base = basis.error(x[-1]) if plan.cut else e_replaced
        return _Place(base, kept, lost, at * (e - e_base), at * (e_replaced - e_base))

    def _features(
        self, basis: Basis, receivers: Receivers, index: Tensor, x: list[Tensor]
    ) -> tuple[Bool[Tensor, "token feature"], Float[Tensor, "token feature"]]:
        """Which features are nodes at each token, and their values, each in the activation that its node reads."""
        n_tokens = len(self._span)
        listed = torch.zeros(n_tokens, len(index), dtype=torch.bool, device=index.device)
        value: Tensor | None = None
        for g in range(len(x)):
            members = np.flatnonzero((receivers.group == g) & (receivers.column < len(index)))
            if not len(members):
                continue
            columns, inverse = np.unique(receivers.column[members], return_inverse=True)
            found = basis.only(x[g], index[torch.from_numpy(columns)])
            value = found.new_zeros(n_tokens, len(index)) if value is None else value
            here = self._span[:, None] == torch.from_numpy(receivers.span[members])
            tokens, member = here.nonzero(as_tuple=True)
            at = tokens, torch.from_numpy(receivers.column[members])[member]
            listed[at] = True
            value[at] = found[tokens, torch.from_numpy(inverse.reshape(-1))[member]]
        return listed, self.ready.values.features(basis, index) if value is None else value

    def _errors(
        self, basis: Basis, receivers: Receivers, x: list[Tensor]
    ) -> tuple[Bool[Tensor, "token 1"], Float[Tensor, "token d"]]:
        """Where the error term is a node, and its value there."""
        made = torch.zeros_like(self.ready.values.error(basis))
        at = torch.zeros(len(made), 1, dtype=torch.bool, device=made.device)
        for i in np.flatnonzero(receivers.column == len(self.plan.features[basis.key])):
            here = (self._span == int(receivers.span[i]))[:, None].to(made.device)
            made = torch.where(here, basis.error(x[receivers.group[i]]).to(made), made)
            at |= here
        return at, made

    def _runs(self, key: Key, reads: Bool[np.ndarray, "group sender"]) -> Iterator[Float[Tensor, "token d"]]:
        """What is computed at a place (at the logits: what they are computed from) for each group of receivers."""
        plan, values, part = self.plan, self.ready.values, self.ready.values.part
        shape, ways = part.model.shape, plan.ways[key]
        if not ways:  # nothing that it reads is chosen
            yield from [self._clean(key)] * len(reads)
            return
        size = max(1, int((self.budget_mib or BUDGET_MIB) * MIB / (row_bytes(part, values.length) * values.n)))
        start = start_of(key, plan.ways, shape, plan.first)
        parents = [basis for basis in plan.bases if basis.key in ways]
        for at in range(0, len(reads), size):
            some = reads[at : at + size]
            read = {basis.key: self._read(basis, some) for basis in parents}
            if adds(ways):
                total = self._clean(key).expand(len(some), -1, -1)
                for basis in parents:
                    total = total + (read[basis.key] - values.at[basis.place])
                yield from total
                continue
            given = {k: natural(part, k, x.flatten(0, 1)) for k, x in read.items()}
            embedded = given.pop((start, "resid_pre"), None)
            if embedded is None:
                embedded = self.ready.start.repeat(len(some), 1)
            yield from self._through(key, given, embedded, start, len(some)).flatten(1).unflatten(0, (len(some), -1))

    def _through(self, key: Key, given: dict[Key, Tensor], embedded: Tensor, start: int, n: int) -> Tensor:
        """Run the model from what is given to a place, `n` copies of all examples side by side."""
        part = self.ready.values.part
        lengths = [len(ids) for ids in part.clean] * n

        def reached(x: Tensor) -> Tensor:
            raise _Reached(x)

        insert: dict[Key, Tensor | Callable[[Tensor], Tensor]] = {**given}
        if key != LOGITS:
            insert[key] = reached
        try:
            return trace(
                part.model, embedded, lengths, part.read * n, insert=insert, first=start, gradients=False
            ).hidden
        except _Reached as found:
            return found.value

    def _clean(self, key: Key) -> Tensor:
        return self.ready.values.at[next(basis.place for basis in self.plan.bases if basis.key == key)]

    def _read(self, basis: Basis, reads: Bool[np.ndarray, "group sender"]) -> Float[Tensor, "group token d"]:
        """A place as groups of receivers see it."""
        place, receivers = self._places[basis.key], self.plan.receivers.get(basis.key)
        if receivers is None:
            return place.base.expand(len(reads), -1, -1)
        n_features, n_spans = place.kept.shape[1], len(self.plan.nodes.spans)
        marks = torch.zeros(len(reads), n_spans + 1, n_features + 1, dtype=torch.bool)
        at = torch.from_numpy(receivers.span), torch.from_numpy(receivers.column)
        marks[(slice(None), *at)] = torch.from_numpy(reads[:, receivers.numbers])
        kept = marks[:, self._span.cpu()].to(place.base.device)
        index = self.plan.features[basis.key].to(place.base.device)
        moved = torch.where(kept[..., :-1], place.kept, place.lost)
        x = place.base + basis.written(moved, index).to(place.base)
        if place.error_kept is None or place.error_lost is None:
            return x
        return x + torch.where(kept[..., -1:], place.error_kept, place.error_lost).to(x)
