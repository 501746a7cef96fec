"""A circuit: which edges of a model are kept, and where it came from. Plain data; needs no model and no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.circuits import files, flow
from crosspatch.circuits.neurons import Neurons, checked_neurons
from crosspatch.errors import AddressError, CircuitError
from crosspatch.graph import ALL, Address, EdgeTable, ModelShape, Site, edge_table, parse_site, validate

if TYPE_CHECKING:
    from crosspatch.paths import PathSet

NO_SPANS = (ALL,)
"""What a circuit without spans is kept at: every token."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges of a model that are kept; all others are cut (their sender's output is replaced for that receiver).

    Combine with `|`, `&`, `-`, `~`; two circuits are equal when they keep the same edges (and neurons) of models of the
    same shape, whatever their names and origins.

    Attributes:
        shape: the model's sizes.
        keep: `[sender, receiver]`, or `[sender, receiver, span]` where `spans` are given; read only. Senders and
            receivers are numbered as in `edge_table(shape)`.
        spans: names of spans, and `*` for every token. An edge is kept at the tokens of a span: what the receiver reads
            there of what the sender writes there. At tokens of no listed span nothing is kept. Without spans every
            edge is kept or cut at all tokens alike.
        neurons: sender -> the part of its output that is kept; senders that are not listed are kept whole.
        name: for people.
        origin: where it came from, as JSON values: method, metric, ablation, task hash, model, size asked and got,
            seeds, ...

    Raises:
        CircuitError: sizes that do not fit, an edge that the model lacks, an origin that JSON has no word for.
    """

    shape: ModelShape
    keep: Bool[np.ndarray, "sender receiver ..."]
    spans: tuple[str, ...] = ()
    neurons: Mapping[str, Neurons] = field(default_factory=dict)
    name: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table, spans = edge_table(self.shape), tuple(map(str, self.spans))
        keep = np.array(self.keep, dtype=bool)  # a copy, so that nobody else writes to it
        wanted = (len(table.senders), len(table.receivers), *((len(spans),) if spans else ()))
        if keep.shape != wanted:
            raise CircuitError(
                f"keep has shape {keep.shape}, this model and these spans need {wanted}",
                where="Circuit.keep",
                fix="[sender, receiver] without spans, [sender, receiver, span] with; numbered as in edge_table(shape)",
            )
        if len(set(spans)) < len(spans):
            raise CircuitError(f"a span twice in {', '.join(spans)}", where="Circuit.spans", fix="name each once")
        for span in spans:
            Address(Site("input"), span)  # raises on a name that could not be read back
        missing = np.argwhere(keep.reshape(*wanted[:2], -1).any(-1) & ~table.exists)
        if len(missing):
            u, v = missing[0]
            raise CircuitError(
                f"{table.senders[u]} cannot feed {table.receivers[v]}: it does not come before it",
                where="Circuit.keep",
                fix="mask with edge_table(shape).exists",
            )
        keep.setflags(write=False)
        set_ = object.__setattr__
        set_(self, "keep", keep)
        set_(self, "spans", spans)
        set_(self, "neurons", MappingProxyType(checked_neurons(self.neurons, self.shape)))
        set_(self, "origin", MappingProxyType(_plain_json(self.origin)))

    # -- making ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_mask(cls, shape: ModelShape, keep: np.ndarray, **about: Any) -> Circuit:
        """From a mask `[sender, receiver]` or `[sender, receiver, span]`, or `[edge]` or `[edge, span]` by number.

        Entries where there is no edge must be false. `about`: the other attributes.
        """
        table, keep = edge_table(shape), np.asarray(keep, dtype=bool)
        if keep.ndim and keep.shape[0] == len(table) and keep.shape[:2] != table.exists.shape:
            keep = np.moveaxis(table.matrix(np.moveaxis(keep, 0, -1), False), (-2, -1), (0, 1))
        return cls(shape, keep, **about)

    @classmethod
    def full(cls, shape: ModelShape, **about: Any) -> Circuit:
        """Every edge (at every span, where spans are given)."""
        exists = edge_table(shape).exists
        n = len(about.get("spans", ()))
        return cls(shape, np.repeat(exists[..., None], n, -1) if n else exists, **about)

    @classmethod
    def empty(cls, shape: ModelShape, **about: Any) -> Circuit:
        """No edge."""
        n = len(about.get("spans", ()))
        return cls(shape, np.zeros((*edge_table(shape).exists.shape, *((n,) if n else ())), dtype=bool), **about)

    @classmethod
    def from_edges(cls, shape: ModelShape, names: Iterable[str], **about: Any) -> Circuit:
        """From names of edges: `a0.h1->a2.h3.q`, `input->m0`, `m3->logits`, with spans `a0.h1->a2.h3.q@S1`.

        Spans are those that the names use, in their order, unless `spans` lists them. With spans a name without one
        means every span that is listed.

        Raises:
            AddressError: not an edge of this model.
            CircuitError: a span that is not listed; names with and without a span, and none listed.
        """
        parts = [(edge.strip(), span.strip()) for edge, _, span in (name.partition("@") for name in names)]
        listed = "spans" in about
        spans = tuple(about.pop("spans", dict.fromkeys(span for _, span in parts if span)))
        table = edge_table(shape)
        keep = np.zeros((*table.exists.shape, max(len(spans), 1)), dtype=bool)
        for edge, span in parts:
            if span and span not in spans:
                raise CircuitError(f"span {span!r} is not listed", where=edge, fix=f"list it in spans={spans}")
            if not span and spans and not listed:
                raise CircuitError("some edges name a span and this one does not", where=edge, fix="write edge@span")
            keep[(*table.parse(edge), spans.index(span) if span else slice(None))] = True
        return cls(shape, keep if spans else keep[..., 0], spans, **about)

    @classmethod
    def from_nodes(cls, shape: ModelShape, names: Iterable[str], **about: Any) -> Circuit:
        """All edges between some nodes (`a5.h3`, `m2`), the input and the logits.

        A key or value that several query heads share is kept when one of these heads is.

        Raises:
            AddressError: not a sender of this model.
        """
        table = edge_table(shape)
        inside = np.zeros(len(table.senders), dtype=bool)
        inside[0] = True
        for name in names:
            site = validate(parse_site(str(name).strip()), shape)
            if site not in table.sender_number:
                raise AddressError(f"{site} is no node", fix="nodes are input, heads (a5.h3) and MLPs (m2)")
            inside[table.sender_number[site]] = True
        return cls(shape, inside[:, None] & _ports_of(table, inside) & table.exists, **about)

    # -- algebra -----------------------------------------------------------------------------------------------------

    def __or__(self, other: Circuit) -> Circuit:
        return self._joined(other, "|", np.logical_or)

    def __and__(self, other: Circuit) -> Circuit:
        return self._joined(other, "&", np.logical_and)

    def __sub__(self, other: Circuit) -> Circuit:
        return self._joined(other, "-", np.greater)

    def __invert__(self) -> Circuit:
        """Every other edge of the model (at these spans)."""
        self._without_neurons("~")
        exists = edge_table(self.shape).exists
        keep = (exists[..., None] if self.spans else exists) & ~self.keep
        return Circuit(self.shape, keep, self.spans, name=f"~{self.name}", origin={"not": dict(self.origin)})

    def __le__(self, other: Circuit) -> bool:
        """Whether all edges of this circuit are in the other."""
        return not (self - other).n_edges

    def __contains__(self, edge: str) -> bool:
        """`"a0.h1->m2" in circuit`; with `@span` at that span, without at any."""
        edge, _, span = edge.partition("@")
        if span and span not in self.spans:
            raise CircuitError(f"no span {span!r}", where=edge, fix=f"this circuit has {self.spans or 'no spans'}")
        return bool(
            self.keep[(*edge_table(self.shape).parse(edge), *((self.spans.index(span),) if span else ()))].any()
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        mine, theirs = ((c.shape, c.spans, dict(c.neurons)) for c in (self, other))
        return mine == theirs and np.array_equal(self.keep, other.keep)

    def __hash__(self) -> int:
        return hash((self.shape, self.spans, self._digest))

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(np.packbits(self.keep).tobytes()).hexdigest()

    def _joined(self, other: Circuit, sign: str, how: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Circuit:
        self.require_like(other)
        for one in (self, other):
            one._without_neurons(sign)
        parts = [one.name or "?" for one in (self, other)]
        origin = {sign: [dict(self.origin), dict(other.origin)]}
        return Circuit(
            self.shape, how(self.keep, other.keep), self.spans, name=f"({f' {sign} '.join(parts)})", origin=origin
        )

    def _without_neurons(self, sign: str) -> None:
        if self.neurons:
            raise CircuitError(
                f"{sign} is not defined for circuits that keep a part of a node",
                where=self.name or "Circuit",
                fix="leave the neurons out: circuit.with_(neurons={})",
            )

    def require_like(self, other: Circuit) -> None:
        """Refuse a circuit of another model, or with other spans.

        Raises:
            CircuitError: says which.
        """
        if self.shape != other.shape:
            raise CircuitError(
                f"circuits of different models: {self.shape} and {other.shape}",
                where=other.name or "Circuit", fix="compare circuits of one model",
            )  # fmt: skip
        if self.spans != other.spans:
            raise CircuitError(
                f"circuits with different spans: {self.spans or 'none'} and {other.spans or 'none'}",
                where=other.name or "Circuit",
                fix="bring them to the same ones with restrict(spans), or to none with any_span()",
            )

    # -- changing ----------------------------------------------------------------------------------------------------

    def with_(self, **changes: Any) -> Circuit:
        """A copy with other attributes."""
        return replace(self, **{"neurons": dict(self.neurons), "origin": dict(self.origin), **changes})

    def restrict(self, spans: Sequence[str]) -> Circuit:
        """Only at the tokens of these spans: a circuit without spans gets them, another keeps those of its own.

        Raises:
            CircuitError: no spans, or one that this circuit does not have.
        """
        unknown = [span for span in spans if self.spans and span not in self.spans]
        if unknown or not spans:
            what = f"no span {unknown[0]!r}" if unknown else "no spans were given"
            raise CircuitError(
                what, where=self.name or "Circuit", fix=f"use some of {', '.join(self.spans or ['END'])}"
            )
        if self.spans:
            keep = self.keep[..., [self.spans.index(span) for span in spans]]
        else:
            keep = np.repeat(self.keep[..., None], len(spans), -1)
        return self.with_(keep=keep, spans=tuple(spans))

    def any_span(self) -> Circuit:
        """The same edges at all tokens: those kept at any span."""
        return self.with_(keep=self.cube.any(-1), spans=())

    def pruned(self) -> Circuit:
        """Without the edges that are on no path of kept edges from the input to the logits.

        The rule is that of `circuits.flow`: a head is fed when any of its query, key and value is. A node of which no
        neuron is kept sends nothing. Nothing is left to prune afterwards.
        """
        sends = (self.shares > 0)[:, None, None]
        keep = flow.on_path(self.cube & sends, self.shape, self.spans or NO_SPANS)
        left = {str(self.table.senders[u]) for u in np.flatnonzero(keep.any((1, 2)))}
        neurons = {name: part for name, part in self.neurons.items() if name in left}
        return self.with_(keep=keep if self.spans else keep[..., 0], neurons=neurons)

    # -- what is in it -----------------------------------------------------------------------------------------------

    @property
    def table(self) -> EdgeTable:
        """Numbers and names of the model's edges."""
        return edge_table(self.shape)

    @property
    def cube(self) -> Bool[np.ndarray, "sender receiver span"]:
        """`keep` with an axis of spans in any case; one, of every token, without spans."""
        return self.keep if self.spans else self.keep[..., None]

    @property
    def flat(self) -> Bool[np.ndarray, "edge ..."]:
        """The mask by number of edge."""
        return np.swapaxes(self.keep, 0, 1)[self.table.exists.T]

    @property
    def n_edges(self) -> int:
        """Edges that are kept; an edge at two spans counts twice."""
        return int(self.keep.sum())

    @property
    def n_nodes(self) -> int:
        """Nodes in the circuit, the input among them, the logits not; see `node_mask`."""
        return int(self.node_mask.sum())

    @property
    def is_connected(self) -> bool:
        """Whether every kept edge lies on a path from the input to the logits (so, vacuously, without edges)."""
        return self.pruned().n_edges == self.n_edges

    @cached_property
    def node_mask(self) -> Bool[np.ndarray, " sender"]:
        """Senders that an edge leaves, or that one enters through an input of their own.

        An edge into a key or value that several heads share puts none of them into the circuit.
        """
        table = self.table
        keep = np.asarray(self.cube.any(-1))
        inside = np.asarray(keep.any(1))
        for v, nodes in enumerate(table.node_of_receiver):
            if len(nodes) == 1 and keep[:, v].any():
                inside[nodes[0]] = True
        inside.setflags(write=False)
        return inside

    def readers(self, receiver: int) -> list[str]:
        """The parts that a receiver belongs to: of heads that share a key or value those that are in the circuit."""
        nodes = self.table.node_of_receiver[receiver]
        inside = [u for u in nodes if self.node_mask[u]] or nodes
        return [str(self.table.senders[u]) for u in inside] or ["logits"]

    def nodes(self) -> list[str]:
        """Names of the nodes in the circuit, in the order of computation; the logits are a receiver and not listed."""
        return [str(self.table.senders[u]) for u in np.flatnonzero(self.node_mask)]

    def edges(self) -> list[tuple[str, str]]:
        """(sender, receiver) of every edge that is kept anywhere, by number."""
        table = self.table
        return [(str(table.senders[u]), str(table.receivers[v])) for v, u in np.argwhere(self.cube.any(-1).T)]

    def edge_names(self) -> list[str]:
        """`a0.h1->a2.h3.q` for every kept edge, by number; with spans `a0.h1->a2.h3.q@S1`."""
        table = self.table
        found = []
        for v, u, s in np.argwhere(np.swapaxes(self.cube, 0, 1)):
            found.append(table.name(int(u), int(v)) + (f"@{self.spans[s]}" if self.spans else ""))
        return found

    @property
    def shares(self) -> Float[np.ndarray, " sender"]:
        """The kept share of every sender's neurons, 1 where no part of it is cut."""
        found = np.ones(len(self.table.senders))
        for name, part in self.neurons.items():
            site = parse_site(name)
            found[self.table.sender_number[site]] = len(part.kept) / part.width(site, self.shape)
        return found

    @property
    def weighted_edge_count(self) -> float:
        """Kept edges, each counted by the kept share of its sender's neurons (MIB: Mueller et al. 2025, 2504.13151)."""
        return float((self.cube.sum((1, 2)) * self.shares).sum())

    def at_tokens(
        self, spans: Mapping[str, tuple[int, int]], n_tokens: int
    ) -> Bool[np.ndarray, "sender receiver token"]:
        """The kept edges token by token of one prompt.

        Args:
            spans: the prompt's half-open token spans by name; may hold more than this circuit's.

        Raises:
            CircuitError: a span of this circuit that the prompt lacks, or that lies outside it.
        """
        covers = np.zeros((max(len(self.spans), 1), n_tokens), dtype=bool)
        for i, span in enumerate(self.spans or NO_SPANS):
            start, stop = (0, n_tokens) if span == ALL else spans.get(span, (-1, -1))
            if not 0 <= start <= stop <= n_tokens:
                what = f"span {span!r} is {(start, stop)}" if span in spans else f"the prompt has no span {span!r}"
                raise CircuitError(what, where=f"a prompt of {n_tokens} tokens", fix="give the span's token range")
            covers[i, start:stop] = True
        return (self.cube.astype(np.uint8) @ covers.astype(np.uint8)).astype(bool)

    def to_paths(self) -> PathSet:
        """The paths that use kept edges only, for `crosspatch.paths`. An edge into a shared key names all its heads.

        Raises:
            CircuitError: kept by span or by neuron, which edge sets of paths do not know.
        """
        from crosspatch.paths.pathset import from_edges, nothing

        if self.spans or self.neurons:
            what, fix = ("spans", "any_span()") if self.spans else ("parts of nodes", "with_(neurons={})")
            raise CircuitError(
                f"a circuit with {what} is no set of edges", where=self.name or "Circuit", fix=f"use {fix}"
            )
        return from_edges(self.edges()) if self.n_edges else nothing()

    # -- text and files ----------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        where = f" at {', '.join(self.spans)}" if self.spans else ""
        name = f"{self.name}: " if self.name else ""
        total = len(self.table) * max(len(self.spans), 1)
        return (
            f"{name}{self.n_edges:,} of {total:,} edges{where}, {self.n_nodes:,} of {len(self.table.senders):,} nodes"
        )

    def __repr__(self) -> str:
        return f"<Circuit {self}>"

    def describe(self) -> str:
        """The circuit as text, layer by layer: what every part reads."""
        from crosspatch.circuits.describe import describe

        return describe(self)

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` reads them back."""
        return files.to_json(self)

    @classmethod
    def from_json(cls, data: object, where: str = "circuit") -> Circuit:
        """Read what `to_json` made.

        Raises:
            CircuitError: anything else; names the place.
        """
        return files.from_json(data, where)

    def save(self, path: str | Path) -> None:
        """Write a JSON file, atomically.

        Raises:
            CircuitError: it cannot be written.
        """
        files.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read a file that `save` wrote.

        Raises:
            CircuitError: it cannot be read, or is no circuit; names the place.
        """
        return files.load(Path(path))


def _ports_of(table: EdgeTable, inside: Bool[np.ndarray, " sender"]) -> Bool[np.ndarray, " receiver"]:
    """The receivers of some nodes, and the logits."""
    return np.array([not nodes or bool(inside[list(nodes)].any()) for nodes in table.node_of_receiver])


def _plain_json(value: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CircuitError(
            f"cannot be written as JSON ({error})", where="Circuit.origin", fix="use text, numbers, lists and objects"
        ) from error
