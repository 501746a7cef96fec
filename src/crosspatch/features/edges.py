"""Direct effects between chosen nodes (Marks et al. 2025, arXiv 2403.19647, section 3.1 and appendix A.1).

The edge from u to d is the effect on the metric of giving d the value it would have if u alone were replaced, along
paths on which no other place is passed: every place between is held at its clean value. To first order that is

    (clean - replaced value of u) . J^T s,    s = the gradient of (g . d) at the activation that d is part of,

J the Jacobian from u's activation to d's with the places between held, and g the gradient of the metric at d: the same
(averaged, where it is integrated) one that gives d's own effect. One pull-back of s serves every u; between places of
the residual stream J is the identity and costs nothing; and one pull-back serves all tokens of a span. Nodes are chosen
first, from averages over examples, so that no example's share of an edge is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.forward import Trace, trace
from crosspatch.attribution.points import BUDGET_MIB, MIB, Progress
from crosspatch.attribution.rules import Rules
from crosspatch.attribution.setup import Setup
from crosspatch.errors import CircuitError
from crosspatch.features.basis import Bases, Basis
from crosspatch.features.edge_scores import FeatureEdges
from crosspatch.features.gradients import example_chunks, gradients, how, token_masks
from crosspatch.features.nodes import NodeSet
from crosspatch.features.replaced import Replacement, ReplacementName, Values, replacement
from crosspatch.features.structure import LOGITS, Way, Ways, direct_ways
from crosspatch.model.run import Key


class _PatternKept(Rules):
    """The same gradients with attention written out: batches of backward passes share its parts."""

    @property
    def pattern(self) -> Callable[[Tensor], Tensor] | None:
        return super().pattern or (lambda pattern: pattern)


@dataclass(frozen=True, eq=False)
class _End:
    """The chosen nodes at one place.

    Attributes:
        features: their numbers, without repetition.
        numbers: of the nodes in the whole list.
        column: for each node, its place in `features`; len(features) for the error term.
        span: for each node.
    """

    basis: Basis
    features: Tensor
    numbers: list[int]
    column: Tensor
    span: Tensor

    @property
    def with_error(self) -> bool:
        return bool((self.column == len(self.features)).any())


def feature_edges(
    setup: Setup,
    bases: Bases,
    nodes: NodeSet,
    replaced: ReplacementName | Replacement = "paired",
    *,
    method: str = "atp",
    steps: int = 10,
    rule: str = "midpoint",
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> FeatureEdges:
    """All direct effects between the nodes of a set, and of each on the metric (`logits`).

    Args:
        bases: every place that counts as a node: those between two nodes are held even if none of their own is chosen.
        nodes: as `FeatureEffects.top` or `above` give them.
        replaced, method, steps, rule: as in `feature_effects`. The gradient at the downstream node is the method's,
            the Jacobian between the two is the clean run's.
        budget_mib: memory for one chunk of pairs, and for one batch of pull-backs.

    Raises:
        CircuitError: a node at a place that none of `bases` has.
        As `feature_effects`.
    """
    chosen = how(method, steps, rule)
    listed = list(nodes)
    ends = _ends(bases, nodes)
    used = tuple(basis for basis in bases if basis.key in ends)
    table = replacement(setup, used, replaced)
    ways = direct_ways(setup.model.shape, [basis.key for basis in bases])
    pairs = _pairs(ends, ways)
    total = np.zeros((len(setup), len(pairs)))
    column = {pair: i for i, pair in enumerate(pairs)}
    done = 0
    for chunk in example_chunks(setup, used, budget_mib) if used else ():
        part = setup.select(chunk)
        masks = token_masks(part, nodes.spans)
        values, each = gradients(part, used, chosen, table, budget_mib)
        outer = {basis.key: gradient for basis, gradient in each}
        work = _Chunk(part, values, masks, ways, ends, outer, _held(part, bases, chosen.rules), budget_mib)
        for key in (*ends, LOGITS):
            for up, down, found in work.into(key):
                at = [column[(u, d)] for d in down for u in up]
                total[np.ix_(chunk, at)] = found.transpose(0, 1).flatten(1).double().cpu().numpy()
        done += len(chunk)
        if progress is not None:
            progress(done, len(setup))
    numbers = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    origin = {**setup.provenance, "method": method, "replacement": table.name}
    return FeatureEdges(listed, numbers[:, 0], numbers[:, 1], total, list(setup.clusters), setup.digests, origin)


def _ends(bases: Bases, nodes: NodeSet) -> dict[Key, _End]:
    by_place = {basis.place: basis for basis in bases}
    span_of = {name: i for i, name in enumerate(nodes.spans)}
    found = {}
    for place, group in groupby(enumerate(nodes), key=lambda item: item[1].place):
        members = list(group)
        if (basis := by_place.get(place)) is None or nodes.keep[place].shape[1] != basis.n_nodes:
            raise CircuitError(f"there are no such nodes at {place}", where="edges", fix="use nodes of these bases")
        features = sorted({node.feature for _, node in members if node.feature is not None})
        at = {index: i for i, index in enumerate(features)}
        columns = [len(features) if node.feature is None else at[node.feature] for _, node in members]
        found[basis.key] = _End(
            basis,
            torch.tensor(features, dtype=torch.long),
            [number for number, _ in members],
            torch.tensor(columns),
            torch.tensor([span_of[node.span] for _, node in members]),
        )
    return found


def _pairs(ends: dict[Key, _End], ways: dict[Key, Ways]) -> list[tuple[int, int]]:
    """Numbers of sender and receiver of every edge that may exist; the receiver -1 is the logits."""
    found = []
    for key in (*ends, LOGITS):
        downs = [-1] if key == LOGITS else ends[key].numbers
        ups = [u for parent in ways[key] if parent in ends for u in ends[parent].numbers]
        found += [(u, d) for u in ups for d in downs]
    return found


@dataclass(eq=False)
class _Held:
    """A clean run in which every place is a leaf: nothing passes one.

    Attributes:
        run: the run; its activations at the places are the leaves.
        computed: what the model computed at each place from the leaves before it.
        value: the metric, summed over examples.
    """

    run: Trace
    computed: dict[Key, Tensor]
    value: Tensor


def _held(part: Setup, bases: Bases, rules: Rules) -> _Held:
    computed: dict[Key, Tensor] = {}

    def cut(key: Key) -> Callable[[Tensor], Tensor]:
        def keep(x: Tensor) -> Tensor:
            computed[key] = x
            return x.detach().requires_grad_(True)

        return keep

    held = _PatternKept(rules.norms, rules.mlp, rules.attention)
    insert = {basis.key: cut(basis.key) for basis in bases}
    lengths = [len(ids) for ids in part.clean]
    run = trace(part.model, part.model.embed(part.clean), lengths, part.read, insert=insert, rules=held)
    with torch.enable_grad():
        return _Held(run, computed, part.measure(run.hidden).sum())


@dataclass(eq=False)
class _Chunk:
    """Examples of equal length, with what their edges need."""

    part: Setup
    values: Values
    masks: Float[Tensor, "span example position"]
    ways: dict[Key, Ways]
    ends: dict[Key, _End]
    outer: dict[Key, Float[Tensor, "token d"]]
    held: _Held
    budget_mib: float | None
    changes: dict[Key, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def into(self, key: Key) -> list[tuple[list[int], list[int], Float[Tensor, "down example up"]]]:
        """Edges into the nodes of one place, or into the logits: numbers of senders, of receivers, and values."""
        parents = {parent: way for parent, way in self.ways[key].items() if parent in self.ends}
        if not parents:
            return []
        if key == LOGITS:
            return self._into_logits(list(parents))
        end = self.ends[key]
        # Where tokens do not mix, one pull-back of all tokens serves every span, which is then cut out of the result.
        local = max(parents.values()) < Way.ACROSS
        found: list[tuple[list[int], list[int], Tensor]] = []
        for some in self._batches(end, local):
            seeds, members = self._seeds(end, some, local)
            pulled = self._pull(key, parents, seeds)
            for parent, r in pulled.items():
                given = r[members]
                if local:
                    given = given * self._tokens(end.span[some])[..., None].to(given)
                numbers = [end.numbers[i] for i in some]
                found.append((self.ends[parent].numbers, numbers, self._contract(parent, given)))
        return found

    def _into_logits(self, parents: Sequence[Key]) -> list[tuple[list[int], list[int], Tensor]]:
        elsewhere = {parent for key, ways in self.ways.items() if key != LOGITS for parent in ways}
        found = self.held.run.gradients(self.held.value, parents, keep=True)
        edges = []
        for parent in parents:
            # What only the logits read has no other effect: the edge is the node's own, integrated or not.
            g = found[parent].flatten(1) if parent in elsewhere else self.outer[parent]
            edges.append((self.ends[parent].numbers, [-1], self._contract(parent, g[None])))
        return edges

    def _batches(self, end: _End, local: bool) -> list[list[int]]:
        """Nodes whose pull-backs fit into the budget together; those of one feature stay together."""
        tokens, shape = self.values.n * self.values.length, self.part.model.shape
        bytes_each = 8.0 * tokens * (6 * shape.d_model + 3 * shape.d_mlp + shape.n_heads * self.values.length)
        size = max(1, int((self.budget_mib or BUDGET_MIB) * MIB / bytes_each))
        order = sorted(range(len(end.numbers)), key=lambda i: (int(end.column[i]), int(end.span[i])))
        if not local:
            return [order[at : at + size] for at in range(0, len(order), size)]
        groups = [list(members) for _, members in groupby(order, key=lambda i: int(end.column[i]))]
        return [list(chain(*groups[at : at + size])) for at in range(0, len(groups), size)]

    def _tokens(self, spans: Tensor) -> Float[Tensor, "node token"]:
        return self.masks[spans].flatten(1)

    @torch.no_grad()
    def _seeds(self, end: _End, some: list[int], local: bool) -> tuple[Float[Tensor, "seed token d"], Tensor]:
        """What backward passes begin with, and which of them belongs to each node."""
        x, g, basis = self.values.at[end.basis.place], self.outer[end.basis.key], end.basis
        columns, spans = end.column[some], end.span[some]
        if local:
            columns, members = columns.unique(return_inverse=True)
            weights = x.new_ones(len(columns), len(x))
        else:
            members = torch.arange(len(some))
            weights = self._tokens(spans).to(x)
        seeds = x.new_zeros(len(columns), *x.shape)
        error = columns == len(end.features)
        index = end.features[columns[~error]].to(x.device)
        seeds[~error] = basis.pull(x, index, basis.along(g, index).T.to(x) * weights[~error])
        if error.any():
            seeds[error] = basis.pull_error(x, g * weights[error][..., None]).to(x)
        return seeds, members

    def _pull(self, key: Key, parents: Ways, seeds: Tensor) -> dict[Key, Float[Tensor, "seed token d"]]:
        found = {parent: seeds for parent, way in parents.items() if way is Way.SAME}
        others = [parent for parent in parents if parent not in found]
        if not others:
            return found
        out = self.held.computed[key]
        gradients = torch.autograd.grad(
            out,
            [self.held.run.at[parent] for parent in others],
            seeds.reshape(len(seeds), *out.shape).to(out),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        for parent, gradient in zip(others, gradients, strict=True):
            like = self.values.at[self.ends[parent].basis.place]
            none = like.new_zeros(len(seeds), *like.shape)
            found[parent] = none if gradient is None else gradient.flatten(2)
        return found

    @torch.no_grad()
    def _contract(self, parent: Key, r: Float[Tensor, "down token d"]) -> Float[Tensor, "down example up"]:
        """From pull-backs at an activation to its chosen nodes: times their change, added up over their tokens."""
        end = self.ends[parent]
        if parent not in self.changes:
            self.changes[parent] = self._changes(end)
        change, moved = self.changes[parent]
        products = end.basis.along(r, end.features.to(r.device)) * change
        if moved is not None:
            products = torch.cat([products, (r * moved).sum(-1, keepdim=True).to(products)], -1)
        by_token = products[..., end.column].unflatten(1, (self.values.n, self.values.length)).double()
        masks = self.masks[end.span].permute(1, 2, 0).to(by_token)
        return (by_token * masks).sum(2)

    def _changes(self, end: _End) -> tuple[Float[Tensor, "token feature"], Float[Tensor, "token d"] | None]:
        """Clean minus replaced value of the chosen features at a place, and of its error term, if it was chosen."""
        basis, values = end.basis, self.values
        x = values.at[basis.place]
        index = end.features.to(x.device)
        if not end.with_error:
            return basis.only(x, index) - values.features(basis, index), None
        change = basis.features(x) - values.features(basis)
        return change[:, index], (x - values.whole(basis)).to(change) - basis.written(change)
