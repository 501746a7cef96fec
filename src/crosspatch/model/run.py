"""What goes into and comes out of the executor: runs, edits, rows, readouts. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.errors import InterventionError
from crosspatch.graph.names import Site

if TYPE_CHECKING:
    from crosspatch.model.model import Model

# The places of one block at which a run can be changed, in the order of the computation. Rows join a pass there.
STAGES = ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_act", "mlp_out", "resid_post")
Key = tuple[int, str]  # (layer, one of STAGES): names one stored activation


@dataclass(frozen=True)
class FromRun:
    """The value that ``run`` had at the same site on its example ``example``.

    ``positions``: where to read, one for each edited position; None = the same positions.
    """

    run: Run
    example: int
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Blocked:
    """For a pattern: its queries do not see these keys. The softmax runs over the keys that are left; where none is,
    the head gives zero. (Pattern entries cannot say this once the softmax is saturated: what is left is rounded off.)
    """

    keys: tuple[int, ...]


Value = FromRun | Tensor | Callable[[Tensor], Tensor] | Blocked


@dataclass(frozen=True)
class Edit:
    """One change to one run: ``site`` at ``positions`` takes ``value``.

    ``value`` is a :class:`FromRun`, a tensor that broadcasts to ``[position, width]``, or a function from the
    present value ``[position, width]`` to the new one; for a pattern also :class:`Blocked`. Positions may be negative
    (from the end of the prompt).
    """

    site: Site
    positions: tuple[int, ...]
    value: Value


@dataclass(frozen=True)
class Row:
    """One patched forward: example ``example`` of the base run with ``edits`` made to it."""

    example: int
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Readout:
    """Logits at the positions that are read, for one chunk of rows.

    ``row[i]`` is the index (into the rows given to ``replay``) that ``logits[i]`` belongs to; a row's reads come in
    the order of its example's ``read`` positions. ``columns`` are the token ids of the columns, None = all of them.
    """

    logits: Float[Tensor, "read column"]
    columns: Int[Tensor, " column"] | None
    row: Int[Tensor, " read"]
    example: Int[Tensor, " read"]
    position: Int[Tensor, " read"]


@dataclass
class Cost:
    """What a replay did, and what one full forward pass for each row would have done.

    A unit is one token through one block.
    """

    rows: int = 0
    unchanged_rows: int = 0
    token_layers: float = 0.0
    naive_token_layers: float = 0.0
    chunks: int = 0

    @property
    def saved(self) -> float:
        """Fraction of the naive work that was not done."""
        return 1.0 - self.token_layers / self.naive_token_layers if self.naive_token_layers else 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.rows + other.rows,
            self.unchanged_rows + other.unchanged_rows,
            self.token_layers + other.token_layers,
            self.naive_token_layers + other.naive_token_layers,
            self.chunks + other.chunks,
        )


def store_key(site: Site, n_layers: int) -> Key:
    """Where the value of a site is stored. ``r5.post`` is ``r6``; a neuron is a column of the hidden layer."""
    kind, layer = site.kind, site.layer
    if kind == "input":
        return 0, "resid_pre"
    if kind == "logits" or layer is None:
        raise InterventionError(
            "logits are read, not stored or edited",
            where=str(site),
            fix="read them with Run.logits(); edit the last residual stream instead, e.g. r11.post",
        )
    if kind == "resid_post" and layer + 1 < n_layers:
        return layer + 1, "resid_pre"
    return layer, "mlp_act" if kind == "neuron" else kind


@dataclass(eq=False)
class Run:
    """Activations of a set of prompts, packed token by token (no padding).

    ``store[(layer, kind)]`` is ``[token, ...]`` over all tokens of all examples, or, for ``pattern``, a list of
    ``[head, query, key]`` per example. What is not stored is recorded when it is first asked for.
    """

    model: Model
    tokens: list[list[int]] = field(repr=False)
    read: list[tuple[int, ...]] = field(repr=False)
    edits: tuple[tuple[Edit, ...], ...] = field(default=(), repr=False)
    store: dict[Key, Tensor | list[Tensor]] = field(default_factory=dict, repr=False)
    hidden: Float[Tensor, "read d_model"] = field(default_factory=lambda: torch.empty(0), repr=False)

    def __post_init__(self) -> None:
        self.offset = [0]
        for ids in self.tokens:
            self.offset.append(self.offset[-1] + len(ids))
        self.read_offset = [0]
        for positions in self.read:
            self.read_offset.append(self.read_offset[-1] + len(positions))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def edited(self) -> bool:
        return any(self.edits)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored. A memory budget does not count them: they stay as long as the run does.

        A sweep's two runs hold, beside what was asked for, keys and values of all layers from the first patched one.
        """
        kept = [self.hidden]
        for stored in self.store.values():
            kept += [stored] if isinstance(stored, Tensor) else stored
        return sum(tensor.nbytes for tensor in kept)

    def packed(self, key: Key) -> Float[Tensor, "token ..."]:
        """A stored activation of all tokens of all examples."""
        stored = self.store[key]
        assert isinstance(stored, Tensor), f"{key} is kept per example"
        return stored

    def value(self, site: Site | str, example: int) -> Tensor:
        """The activation at ``site`` for every position of one example.

        Returns:
            ``[position, width]``; a pattern is ``[query, key]``. Zero beyond what a causal query sees.

        Raises:
            AddressError: the model has no such site.
        """
        from crosspatch.model.replay import ensure  # the executor writes runs; a run asks it for what is missing

        site = self.model.site(site)
        key = store_key(site, self.model.shape.n_layers)
        ensure(self, [key])
        stored = self.store[key]
        if isinstance(stored, list):
            return stored[example][site.index]
        value = stored[self.offset[example] : self.offset[example + 1]]
        if site.index is None:
            return value
        return value[:, site.index, None] if site.kind == "neuron" else value[:, site.index]

    def logits(self, columns: Sequence[int] | Tensor | None = None) -> Float[Tensor, "read column"]:
        """Logits at the read positions of all examples, in order; ``columns`` restricts them to some tokens."""
        return self.model.unembed(self.hidden, columns)
