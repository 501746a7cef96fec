"""Parts of a node: which dimensions or neurons of its output belong to a circuit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from crosspatch.errors import CircuitError
from crosspatch.graph import ModelShape, Site, edge_table, parse_site, validate


@dataclass(frozen=True)
class Neurons:
    """The part of a node's output that belongs to a circuit.

    Args:
        kept: indices, ascending.
        basis: `output`, dimensions of what the node adds to the residual stream (`d_model` of them, as EAP-IG and MIB
            count), or `hidden`, neurons of an MLP (`d_mlp`) or dimensions of a head before W_O (`d_head`).
    """

    kept: tuple[int, ...]
    basis: Literal["output", "hidden"] = "output"

    def width(self, site: Site, shape: ModelShape) -> int:
        """How many there are to choose from."""
        if self.basis == "output" or site.kind == "input":
            return shape.d_model
        return shape.d_mlp if site.kind == "mlp_out" else shape.d_head


def checked_neurons(neurons: Mapping[str, Neurons], shape: ModelShape) -> dict[str, Neurons]:
    """Neurons by the canonical names of senders, in the order of computation.

    Raises:
        CircuitError: not a sender, or numbers that are not ascending or too large.
    """
    table, found = edge_table(shape), {}
    for name, part in neurons.items():
        site = validate(parse_site(name), shape)
        if site not in table.sender_number:
            raise CircuitError(f"{name} is no node", where="Circuit.neurons", fix="name senders, a5.h3 or m2")
        kept, width = tuple(map(int, part.kept)), part.width(site, shape)
        if (
            part.basis not in ("output", "hidden")
            or list(kept) != sorted(set(kept))
            or (kept and not 0 <= kept[0] <= kept[-1] < width)
        ):
            raise CircuitError(
                f"{part.basis} {kept[:4]}... are not ascending numbers below {width}", where=f"Circuit.neurons[{name}]",
                fix="Neurons(kept, basis) with basis output (of d_model) or hidden (of d_mlp or d_head)",
            )  # fmt: skip
        found[str(site)] = Neurons(kept, part.basis)
    return dict(sorted(found.items(), key=lambda item: table.sender_number[parse_site(item[0])]))
