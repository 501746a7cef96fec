"""How gradients pass norms, activations, products and attention: as they are, or by the rules of RelP.

RelP (Jafari et al. 2025, arXiv 2508.21258) puts the propagation rules of layer-wise relevance propagation in the place
of the derivative: norms with a fixed scale, activations as `x * (f(x) / x)` with the quotient fixed, half of the
gradient to each factor of a gated product, attention patterns fixed (Ali et al. 2022, arXiv 2202.07304).
GradDrop (Kramár et al. 2024, arXiv 2403.00745, section 3.2.2) repeats the backward pass with what one layer writes cut
out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crosspatch.errors import ModelError
from crosspatch.model import Model
from crosspatch.model.norms import Norm, frozen_norm

_SMALL = 1e-4


@dataclass
class Rules:
    """What happens to gradients on their way down.

    Attributes:
        norms: "derivative", or "frozen" scales.
        mlp: "derivative", or "identity": the RelP rules for activations and gated products.
        attention: "derivative", or "frozen" patterns. With frozen patterns queries and keys have no gradient.
        dropped: layer whose writes gradients do not pass (GradDrop); may be changed between backward passes.
        can_drop: whether `dropped` will be used.
    """

    norms: str = "derivative"
    mlp: str = "derivative"
    attention: str = "derivative"
    dropped: int | None = None
    can_drop: bool = False

    @property
    def changes_mlp(self) -> bool:
        return self.mlp == "identity"

    @property
    def pattern(self) -> Callable[[Tensor], Tensor] | None:
        """What is done to attention patterns."""
        return Tensor.detach if self.attention == "frozen" else None

    def norm(self, norm: Norm, x: Tensor) -> Tensor:
        """A norm's output, differentiable by the rule."""
        return norm(x) if self.norms == "derivative" else frozen_norm(norm, x.detach())(x)

    def written(self, x: Tensor, layer: int) -> Tensor:
        """What a block adds to the residual stream; gradients pass unless the layer is dropped."""
        if not self.can_drop or not x.requires_grad:
            return x
        seen = x.view_as(x)
        seen.register_hook(lambda g: torch.zeros_like(g) if self.dropped == layer else None)
        return seen

    @contextmanager
    def active(self, model: Model) -> Iterator[None]:
        """While active, the model's MLPs are differentiated by the RelP rules. Their values do not change.

        Raises:
            ModelError: a mixture of experts, or an MLP whose activation is no module of its own.
        """
        with ExitStack() as stack:
            for layer, block in enumerate(model.anatomy.blocks):
                if block.mlp is not None:
                    _mlp_rules(model, layer, stack)
            yield


PLAIN = Rules()


def relp() -> Rules:
    """All rules of RelP."""
    return Rules(norms="frozen", mlp="identity", attention="frozen")


def _mlp_rules(model: Model, layer: int, stack: ExitStack) -> None:
    block = model.anatomy.blocks[layer]
    owner = block.mlp if isinstance(block.mlp, nn.Module) else block.layer
    inside = [part for part in owner.modules() if part not in set(block.attn.modules())]
    functions = [part for part in inside if _is_activation(part)]
    if not model.shape.has_neurons or len(functions) != 1:
        raise ModelError(
            f"the MLP has {len(functions)} activation modules"
            f"{'' if model.shape.has_neurons else ' and no single hidden layer'}; the rules need one of each",
            where=f"layer {layer}",
            fix="use method='eap-ig' or 'atp' instead of RelP",
        )
    names = dict(owner.named_modules())
    gates = [
        up for gate, up in (("gate_proj", "up_proj"), ("gate_up_proj", "gate_up_proj")) if {gate, up} <= set(names)
    ]
    share = 0.5 if gates else 1.0
    function = functions[0]
    plain = function.forward

    def identity_rule(x: Tensor, *args: Any) -> Tensor:
        with torch.no_grad():
            y = plain(x, *args)
            near = plain(torch.full_like(x[..., :1], _SMALL)) / _SMALL
            slope = torch.where(x.abs() > _SMALL, y / torch.where(x.abs() > _SMALL, x, torch.ones_like(x)), near)
        return y.detach() + share * slope * (x - x.detach())  # y may be x itself

    function.forward = identity_rule
    stack.callback(lambda: vars(function).pop("forward", None))
    for name in gates:

        def halve(_: Any, args: Any, out: Tensor, fused: bool = name == "gate_up_proj") -> Tensor:
            if not fused:
                return 0.5 * out + 0.5 * out.detach()
            gate, up = out.chunk(2, -1)
            return torch.cat([gate, 0.5 * up + 0.5 * up.detach()], -1)

        stack.callback(names[name].register_forward_hook(halve).remove)


def _is_activation(part: nn.Module) -> bool:
    leaf = not list(part.children()) and not list(part.parameters())
    name = type(part).__name__.lower()
    return leaf and not any(word in name for word in ("dropout", "identity", "rotary"))
