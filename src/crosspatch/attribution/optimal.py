"""Optimal ablation: for every sender the constant whose presence hurts least, learned by gradient descent.

Zero, mean and resampled values change more than they take away: they put something in the sender's place that the
model misreads. The constant `a* = argmin_a E[loss with the sender's output set to a]` keeps that to a minimum, so that
what is lost with it is information that the sender carried (Li & Janson 2024, arXiv 2409.09951). One vector per sender,
for all prompts and all positions, learned on the clean prompts.

Alone (the default): each sender's constant is optimal where that sender is replaced and all others are not; the
senders of a block are trained together in one batch. Jointly: one set of constants for random subsets of senders, each
replaced with probability `share` in every example and step, as circuits replace many at once.

Objectives: "kl" is the Kullback-Leibler divergence of the model's prediction on the clean prompt from the prediction
with the sender replaced, averaged over the reads; "metric" is the squared change of the setup's metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.ablation import Constants, Store, sender_keys
from crosspatch.attribution.forward import trace
from crosspatch.attribution.points import BUDGET_MIB, MIB, Progress, row_bytes
from crosspatch.attribution.setup import Setup
from crosspatch.errors import InterventionError
from crosspatch.graph import nodes
from crosspatch.model.run import Key, Run

Objective = Literal["kl", "metric"]
_TRIALS = 8  # random subsets an example that joint constants are judged on


@dataclass(frozen=True, eq=False)
class Learned:
    """Learned constants and how they were learned.

    Attributes:
        ablation: the constants, to be used as any other ablation.
        senders: names of the senders, or "all" where constants were learned jointly.
        curve: loss of every step's batch.
        start, end: loss over all pairs of the mean over tokens, which training starts from, and of what is kept: the
            learned constant, or the mean where training did not improve on it.
        objective: what was minimised.
    """

    ablation: Constants
    senders: tuple[str, ...]
    curve: Float[np.ndarray, "step sender"]
    start: Float[np.ndarray, " sender"]
    end: Float[np.ndarray, " sender"]
    objective: str


def optimal_constants(
    setup: Setup,
    *,
    objective: Objective = "kl",
    joint: bool = False,
    share: float = 0.5,
    steps: int = 100,
    batch: int = 8,
    lr: float = 0.1,
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Learn a constant for the input, every head and every MLP.

    Args:
        objective: "kl" or "metric"; see the module's text.
        joint: one set of constants for random subsets of senders, instead of each for itself.
        share: chance of each sender to be replaced, where joint.
        steps: of Adam (Kingma & Ba 2015), with a rate that falls linearly to zero.
        batch: clean prompts a step, drawn without replacement.
        lr: rate at the start, in units of each activation's root mean square around its mean.
        seed: of the draws; the same seed gives the same constants.
        budget_mib: memory for one pass.

    Raises:
        InterventionError: an unknown objective, no steps, or a share out of range.
    """
    if objective not in get_args(Objective) or steps < 1 or batch < 1 or not 0 < share <= 1:
        raise InterventionError(
            f"objective {objective!r}, {steps} steps of {batch} prompts, share {share:g}",
            where="optimal ablation",
            fix=f"use one of {', '.join(get_args(Objective))}, at least one step and prompt, and a share up to 1",
        )
    work = _Training(setup, objective, budget_mib)
    draw = torch.Generator().manual_seed(seed)
    passes = _Joint(work, share, draw, seed) if joint else _Alone(work)
    start = passes.evaluate()
    optimizer = torch.optim.Adam(work.shift.values(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    curve = []
    for step in range(steps):
        chosen = torch.randperm(len(setup), generator=draw)[:batch].tolist()
        optimizer.zero_grad()
        curve.append(passes.losses(chosen, learn=True))
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    end = passes.evaluate()
    passes.forget(end >= start)
    names = ("all",) if joint else tuple(map(str, nodes(setup.model.shape)))
    kept = torch.minimum(start, end)
    values = {key: value.detach() for key, value in work.constants().items()}
    made = Constants(values, name="optimal-joint" if joint else "optimal")
    return Learned(made, names, torch.stack(curve).numpy(), start.numpy(), kept.numpy(), objective)


class _Training:
    """The clean run, the constants in training, and the loss of rows in which some of them are in place."""

    def __init__(self, setup: Setup, objective: Objective, budget_mib: float | None) -> None:
        self.setup, self.objective, self.shape = setup, objective, setup.model.shape
        self.budget = (budget_mib or BUDGET_MIB) * MIB
        self.keys = sender_keys(self.shape)
        below: list[Key] = [(layer, "resid_pre") for layer in range(self.shape.n_layers)]
        self.run: Run = setup.record_clean(list(dict.fromkeys([*self.keys, *below])))
        values = {key: self.run.packed(key) for key in self.keys}
        values = {key: value.to(torch.promote_types(value.dtype, torch.float32)) for key, value in values.items()}
        self.mean: Store = {key: value.mean(0) for key, value in values.items()}
        self.scale = {
            key: (value - self.mean[key]).square().mean().sqrt().clamp(min=1e-6) for key, value in values.items()
        }
        self.shift: Store = {key: torch.zeros_like(mean, requires_grad=True) for key, mean in self.mean.items()}
        with torch.no_grad():
            self.clean_metric = setup.measure(self.run.hidden)

    def constants(self) -> Store:
        """The present constants; they have gradients."""
        return {key: self.mean[key] + self.scale[key] * self.shift[key] for key in self.keys}

    def size(self, examples: Sequence[int]) -> int:
        """Rows that fit into one pass."""
        longest = max(len(self.setup.clean[i]) for i in examples)
        return max(1, int(self.budget / row_bytes(self.setup, longest)))

    def loss(
        self, examples: Sequence[int], first: int, insert: dict[Key, Callable[[Tensor], Tensor]]
    ) -> Float[Tensor, " row"]:
        """Loss of rows, from one layer on.

        Args:
            examples: the example of each row.
            insert: what is put in place, by functions of all rows' packed tokens.
        """
        setup, run = self.setup, self.run
        tokens = torch.cat([torch.arange(run.offset[i], run.offset[i + 1]) for i in examples])
        embedded = run.packed((first, "resid_pre"))[tokens]
        made = trace(
            setup.model,
            embedded,
            [len(setup.clean[i]) for i in examples],
            [setup.read[i] for i in examples],
            insert=insert,
            first=first,
        )
        with torch.enable_grad():
            if self.objective == "metric":
                change = setup.measure(made.hidden, examples) - self.clean_metric[list(examples)]
                return change.float().square()
            slots = [s for i in examples for s in range(run.read_offset[i], run.read_offset[i + 1])]
            wanted = setup.model.unembed(run.hidden[slots]).float().log_softmax(-1)
            found = setup.model.unembed(made.hidden).float().log_softmax(-1)
            each = (wanted.exp() * (wanted - found)).sum(-1)
            counts = torch.tensor([len(setup.read[i]) for i in examples])
            row = torch.repeat_interleave(torch.arange(len(examples)), counts).to(each.device)
            summed = each.new_zeros(len(examples)).index_add(0, row, each)
            return summed / counts.to(summed)

    def learn(self, loss: Float[Tensor, ""], keys: Sequence[Key]) -> None:
        """Add the gradient of a loss to that of some constants."""
        shifts = [self.shift[key] for key in keys]
        for shift, found in zip(shifts, torch.autograd.grad(loss, shifts, allow_unused=True), strict=True):
            if found is not None:
                shift.grad = found if shift.grad is None else shift.grad + found

    def owners(self, examples: Sequence[int], values: Tensor) -> Tensor:
        """A value of each row, for each of its tokens."""
        return torch.repeat_interleave(values, torch.tensor([len(self.setup.clean[i]) for i in examples]), 0)


class _Alone:
    """Each sender replaced by itself; the senders that share an activation are rows of one pass."""

    def __init__(self, work: _Training) -> None:
        self.work = work

    def blocks(self) -> Iterator[tuple[Key, slice]]:
        """Activations, and the senders that they hold."""
        at = 0
        for key in self.work.keys:
            n = self.work.shape.n_heads if key[1] == "z" else 1
            yield key, slice(at, at + n)
            at += n

    def losses(self, examples: Sequence[int], learn: bool = False) -> Float[Tensor, " sender"]:
        """Mean loss of every sender, float64."""
        work = self.work
        examples = sorted(examples, key=lambda i: len(work.setup.clean[i]))
        out = torch.zeros(len(nodes(work.shape)), dtype=torch.float64)
        for key, span in self.blocks():
            n = span.stop - span.start
            rows = [(i, head) for i in examples for head in range(n)]
            size = work.size(examples)
            for lo in range(0, len(rows), size):
                some = rows[lo : lo + size]
                which = [i for i, _ in some]
                head = work.owners(which, torch.tensor([head for _, head in some]))
                loss = work.loss(which, key[0], {key: self._one(key, head)})
                if learn:
                    work.learn(loss.sum() / len(examples), [key])
                heads = torch.tensor([head for _, head in some])
                out[span].index_add_(0, heads, loss.detach().double().cpu() / len(examples))
        return out

    def _one(self, key: Key, head: Tensor) -> Callable[[Tensor], Tensor]:
        constant = self.work.constants()[key]

        def put(x: Tensor) -> Tensor:
            if key[1] != "z":
                return constant.to(x).expand_as(x)
            mine = torch.arange(x.shape[1])[None, :, None] == head[:, None, None]
            return torch.where(mine.to(x.device), constant.to(x), x)

        return put

    def evaluate(self) -> Float[Tensor, " sender"]:
        """Loss over all pairs."""
        return self.losses(range(len(self.work.setup)))

    @torch.no_grad()
    def forget(self, worse: Tensor) -> None:
        """Go back to the mean for these senders."""
        for key, span in self.blocks():
            self.work.shift[key].view(span.stop - span.start, -1)[worse[span]] = 0


class _Joint:
    """Random subsets of all senders replaced at once."""

    def __init__(self, work: _Training, share: float, draw: torch.Generator, seed: int) -> None:
        self.work, self.share, self.draw, self.seed = work, share, draw, seed

    def losses(self, examples: Sequence[int], learn: bool = False) -> Float[Tensor, " one"]:
        """Mean loss, float64."""
        work, total = self.work, torch.zeros(1, dtype=torch.float64)
        examples = sorted(examples, key=lambda i: len(work.setup.clean[i]))
        size = work.size(examples)
        for lo in range(0, len(examples), size):
            some = examples[lo : lo + size]
            loss = work.loss(some, 0, {key: self._some(key, some) for key in work.keys})
            if learn:
                work.learn(loss.sum() / len(examples), work.keys)
            total += loss.detach().double().cpu().sum() / len(examples)
        return total

    def _some(self, key: Key, examples: Sequence[int]) -> Callable[[Tensor], Tensor]:
        constant = self.work.constants()[key]
        n = self.work.shape.n_heads if key[1] == "z" else 1
        cut = torch.rand(len(examples), n, generator=self.draw) < self.share
        cut = self.work.owners(examples, cut)

        def put(x: Tensor) -> Tensor:
            return torch.where(cut.unflatten(1, (-1, 1) if key[1] == "z" else (1,)).to(x.device), constant.to(x), x)

        return put

    def evaluate(self) -> Float[Tensor, " one"]:
        """Loss over all pairs with subsets that are the same at every call."""
        before, self.draw = self.draw, torch.Generator().manual_seed(self.seed)
        found = torch.stack([self.losses(range(len(self.work.setup))) for _ in range(_TRIALS)]).mean(0)
        self.draw = before
        return found

    @torch.no_grad()
    def forget(self, worse: Tensor) -> None:
        """Go back to the means."""
        if bool(worse[0]):
            for shift in self.work.shift.values():
                shift.zero_()
