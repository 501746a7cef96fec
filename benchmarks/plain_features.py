"""Sparse feature circuits as published, written plainly: dictionaries in the forward pass, hooks on a GPT-2's modules.

After Marks et al. 2025 (arXiv 2403.19647), sections 3.1 and appendix A: every activation is rewritten as reconstruction
plus error term, gradients upstream of a dictionary are those of the activation itself (pass-through), integrated
gradients move one place at a time, and edges take one backward pass for each downstream (position, feature).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.problem import Problem
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.features import NodeSet

Change = Callable[[Tensor], Tensor]


class PlainFeatures:
    """A problem with one dictionary for each of some places, in the order of the computation.

    Args:
        problem: prompt pairs; the metric is the logit difference at the last token, added up over pairs.
        dictionaries: by place (`input`, `a3`, `m3`, `r3.post`).
    """

    def __init__(self, problem: Problem, dictionaries: dict[str, Dictionary]) -> None:
        self.problem, self.dictionaries = problem, dictionaries
        self.index = torch.arange(len(problem.clean))
        self.right, self.wrong = torch.tensor(problem.right), torch.tensor(problem.wrong)
        problem.hf.requires_grad_(False)
        with torch.no_grad():
            self.clean, self.corrupt = self.activations(problem.clean), self.activations(problem.corrupt)

    def module(self, place: str) -> torch.nn.Module:
        body = self.problem.hf.transformer
        if place == "input":
            return body.drop
        block = body.h[int(place[1:].split(".")[0])]
        return {"a": block.attn, "m": block.mlp, "r": block}[place[0]]

    @contextmanager
    def changing(self, changes: dict[str, Change]) -> Iterator[None]:
        """Activations at some places are replaced by a function of themselves."""
        with ExitStack() as stack:
            for place, change in changes.items():

                def hook(_: Any, __: Any, out: Any, change: Change = change) -> Any:
                    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

                stack.callback(self.module(place).register_forward_hook(hook).remove)
            yield

    def activations(self, tokens: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(place: str) -> Change:
            def change(x: Tensor) -> Tensor:
                found[place] = x
                return x

            return change

        with self.changing({place: keep(place) for place in self.dictionaries}):
            self.metric(tokens)
        return found

    def metric(self, tokens: Tensor | None = None) -> Tensor:
        logits = self.problem.hf(self.problem.clean if tokens is None else tokens, logits_to_keep=1).logits[:, -1]
        return (logits[self.index, self.right] - logits[self.index, self.wrong]).sum()

    def split(self, place: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and error term."""
        dictionary = self.dictionaries[place]
        f = dictionary.encode(x)
        return f, x - dictionary.decode(f)

    def spliced(self, place: str, nodes: dict[str, tuple[Tensor, Tensor]] | None = None) -> Change:
        """The dictionary in the forward pass, its error term held fixed, the gradient passed through.

        Args:
            nodes: receives features and error term, whose gradients are wanted.
        """

        def change(x: Tensor) -> Tensor:
            x = x if x.requires_grad else x.detach().requires_grad_(True)
            f, error = self.split(place, x)
            error = error.detach()
            if nodes is not None:
                error.requires_grad_(True)
                f.retain_grad()
                nodes[place] = (f, error)
            out = self.dictionaries[place].decode(f) + error
            passed: list[Tensor] = []
            out.register_hook(passed.append)
            x.register_hook(lambda _: passed[0])
            return out

        return change

    @torch.no_grad()
    def effects(self, place: str, gradients: tuple[Tensor, Tensor]) -> Tensor:
        """(clean - corrupt) times gradient, added up over tokens, mean over pairs: features, then the error term."""
        (f, e), (f2, e2) = self.split(place, self.clean[place]), self.split(place, self.corrupt[place])
        features = (gradients[0] * (f - f2)).sum(1).mean(0)
        return torch.cat([features, (gradients[1] * (e - e2)).sum((1, 2)).mean(0, keepdim=True)])

    def atp(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Gradients at features and error terms of all places, by one forward and one backward pass."""
        nodes: dict[str, tuple[Tensor, Tensor]] = {}
        with self.changing({place: self.spliced(place, nodes) for place in self.dictionaries}):
            self.metric().backward()
        return {place: (_grad(f), _grad(error)) for place, (f, error) in nodes.items()}

    def ig(self, steps: int, others: bool) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean gradients between corrupt and clean, the clean end included and the other left out.

        Args:
            others: the dictionaries of the places that are not being moved are in the forward pass as well.
        """
        found = {}
        for place in self.dictionaries:
            with torch.no_grad():
                clean, corrupt = self.split(place, self.clean[place]), self.split(place, self.corrupt[place])
            changes = {p: self.spliced(p) for p in self.dictionaries} if others else {}
            total = [torch.zeros_like(value) for value in clean]
            for k in range(1, steps + 1):
                ends = zip(clean, corrupt, strict=True)
                f, error = (torch.lerp(b, a, k / steps).requires_grad_(True) for a, b in ends)

                def moved(_: Tensor, place: str = place, f: Tensor = f, error: Tensor = error) -> Tensor:
                    return self.dictionaries[place].decode(f) + error

                with self.changing(changes | {place: moved}):
                    self.metric().backward()
                total[0] += _grad(f) / steps
                total[1] += _grad(error) / steps
            found[place] = (total[0], total[1])
        return found

    def edges(self, chosen: NodeSet, up: Sequence[int], down: Sequence[int]) -> Tensor:
        """Effects of some edges, mean over pairs: every place between the two nodes is held at its clean value.

        Args:
            chosen: nodes.
            up, down: numbers of sender and receiver; -1: the logits.
        """
        outer = self.atp()
        computed: dict[str, Tensor] = {}
        leaves: dict[str, Tensor] = {}

        def cut(place: str) -> Change:
            def change(x: Tensor) -> Tensor:
                computed[place], leaves[place] = x, x.detach().requires_grad_(True)
                return leaves[place]

            return change

        with self.changing({place: cut(place) for place in self.dictionaries}):
            value = self.metric()
        nodes, numbers = list(chosen), {place: i for i, place in enumerate(self.dictionaries)}
        used = {node.place for node in nodes}
        changes = {}
        with torch.no_grad():
            for place in used:
                pairs = zip(self.split(place, self.clean[place]), self.split(place, self.corrupt[place]), strict=True)
                changes[place] = [a - b for a, b in pairs]
        parts = {place: self.split(place, computed[place]) for place in used if computed[place].requires_grad}
        matrix = torch.zeros(len(nodes), len(nodes) + 1)

        def add(column: int, scalar: Tensor, senders: list[str]) -> None:
            """One backward pass from a number to everything directly before it."""
            found = torch.autograd.grad(scalar, [leaves[p] for p in senders], retain_graph=True, allow_unused=True)
            for place, r in zip(senders, found, strict=True):
                if r is None:
                    continue
                f, e = changes[place]
                for i, node in enumerate(nodes):
                    if node.place != place:
                        continue
                    if node.feature is None:
                        matrix[i, column] += (r * e).sum()
                    else:
                        at = r @ self.dictionaries[place].decoder[node.feature]
                        matrix[i, column] += (at * f[..., node.feature]).sum()

        for column, node in enumerate(nodes):
            if node.place not in parts:
                continue
            senders = [place for place in used if numbers[place] < numbers[node.place]]
            (f, e), (g_f, g_e) = parts[node.place], outer[node.place]
            for p in range(self.problem.clean.shape[1]):
                if node.feature is None:
                    add(column, (g_e[:, p] * e[:, p]).sum(), senders)
                else:
                    add(column, (g_f[:, p, node.feature] * f[:, p, node.feature]).sum(), senders)
        add(-1, value, list(used))
        return matrix[list(up), list(down)] / len(self.problem.clean)


def _grad(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad
