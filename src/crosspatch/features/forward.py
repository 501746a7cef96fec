"""The model with everything outside a set of nodes replaced, place after place.

At each place in turn the present activation, which what was replaced before has already changed, is encoded; features
outside the set take their replacements, those in it stay as they are now. An error term in the set is what the present
activation has beside its features (`recomputed`, as in the authors' code) or what the clean one had (`clean`). With f
the present and r the replaced features,

    x' = e' + (sum_i r_i v_i + b) + sum over the set of (f_i - r_i) v_i,    e' = kept or replaced error term,

so that only features of the set are encoded unless a present error term is in it. Where few nodes are left out, what
they change is taken off the present activation instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosspatch.attribution.forward import trace
from crosspatch.attribution.setup import Setup
from crosspatch.features.basis import Bases, Basis
from crosspatch.features.gradients import clean_keys, token_masks
from crosspatch.features.nodes import NodeSet
from crosspatch.features.replaced import Replacement, Values, values_of
from crosspatch.model.run import Key

KeptError = Literal["recomputed", "clean"]


@dataclass(eq=False)
class Ablated:
    """Examples of equal length, ready to be run with any set of nodes; make it with `ablated`.

    Attributes:
        values: clean activations and replacements.
        bases: places where nodes are replaced. All others are left to the model.
        start: input of the first block that has such a place, which nothing before can change.
        first: that block.
        kept_error: which error term a set that holds it keeps.
    """

    values: Values
    bases: Bases
    start: Float[Tensor, "token d_model"]
    first: int
    kept_error: KeptError = "recomputed"
    _replaced: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def run(self, nodes: NodeSet) -> Float[Tensor, " example"]:
        """The metric of each example with all nodes outside the set replaced.

        Tokens that belong to no span of the set have no nodes: nothing is replaced there. At a token of several spans
        a node stays if one of them keeps it.
        """
        return self.values.part.measure(self.hidden(nodes)).double()

    @torch.no_grad()
    def hidden(self, nodes: NodeSet) -> Float[Tensor, "read d_model"]:
        """What the metric of `run` is taken of: final-norm outputs at the reads of all examples."""
        part = self.values.part
        masks = token_masks(part, nodes.spans).flatten(1)
        insert = {basis.key: self._change(basis, nodes, masks > 0) for basis in self.bases}
        lengths = [len(ids) for ids in part.clean]
        ran = trace(part.model, self.start, lengths, part.read, insert=insert, first=self.first, gradients=False)
        return ran.hidden

    def _change(self, basis: Basis, nodes: NodeSet, masks: Bool[Tensor, "span token"]) -> Callable[[Tensor], Tensor]:
        kept = torch.from_numpy(nodes.keep[basis.place]).to(masks.device)
        columns, error = kept[:, : basis.width], torch.zeros(masks.shape[1], dtype=torch.bool)
        if basis.has_error:
            error = (masks & kept[:, basis.width, None]).any(0) | ~masks.any(0)

        def change(present: Tensor) -> Tensor:
            x = present.flatten(1)
            left = (~columns).any(0)
            whole = bool(error.all()) and self.kept_error == "recomputed" and 2 * int(left.sum()) <= basis.width
            if whole or not basis.has_error:
                return self._without(basis, x, left, masks, columns).view_as(present)
            return self._with(basis, x, masks, columns, error.to(x.device)).view_as(present)

        return change

    def _without(self, basis: Basis, x: Tensor, left: Tensor, masks: Tensor, columns: Tensor) -> Tensor:
        """The present activation, less what its replaced features change."""
        if not left.any():
            return x
        index = left.nonzero()[:, 0].to(x.device)
        out = ~_at_tokens(masks, columns[:, left]).to(x.device)
        change = (self.values.features(basis, index) - basis.only(x, index)) * out
        return x + basis.written(change, index).to(x)

    def _with(self, basis: Basis, x: Tensor, masks: Tensor, columns: Tensor, error: Tensor) -> Tensor:
        """The replaced activation, with what the kept features and the present error term change."""
        if basis.place not in self._replaced:
            f_replaced = self.values.features(basis)
            self._replaced[basis.place] = basis.compose(f_replaced), basis.error(self.values.whole(basis), f_replaced)
        base, e_replaced = self._replaced[basis.place]
        e = e_replaced
        if bool(error.any()):
            kept = basis.error(x if self.kept_error == "recomputed" else self.values.at[basis.place])
            e = torch.where(error[:, None], kept, e)
        some = columns.any(0) | ~masks.any(0).all()
        if not some.any():
            return (base + e).to(x)
        index = some.nonzero()[:, 0].to(x.device)
        inside = _at_tokens(masks, columns[:, some]).to(x.device)
        change = (basis.only(x, index) - self.values.features(basis, index)) * inside
        return (base + e + basis.written(change, index)).to(x)


def _at_tokens(masks: Bool[Tensor, "span token"], columns: Bool[Tensor, "span node"]) -> Bool[Tensor, "token node"]:
    """Which nodes are kept at each token: those that any of its spans keeps; all, where it has no span."""
    return ((masks.T.float() @ columns.float()) > 0) | ~masks.any(0)[:, None]


@torch.no_grad()
def ablated(
    part: Setup, bases: Bases, replacement: Replacement, start_block: int, kept_error: KeptError = "recomputed"
) -> Ablated:
    """Examples of equal length with everything that running them with sets of nodes needs.

    Args:
        start_block: places of earlier blocks are not touched; -1: the input is replaced too.
        kept_error: see above.
    """
    used = tuple(basis for basis in bases if basis.block >= start_block)
    first = min((basis.key[0] for basis in used), default=0)
    start: Key = (first, "resid_pre")
    run = part.record_clean([*clean_keys(used), start])
    at = {basis.key: run.packed(basis.key) for basis in used}
    values = values_of(part, used, replacement, at, run.hidden)
    return Ablated(values, used, run.packed(start), first, kept_error)
