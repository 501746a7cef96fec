"""Networks wired by hand on which an approximation goes wrong, with the exact effects that it misses.

All are the Llamas of `toys.py`: residual dimensions are named variables, a prompt is `w<i> x<bit> y<bit> ?`, and the
logit difference of `yes` and `no` at the question is `6 OUT - 3`: 3 where the answer is yes and -3 where it is no.
Effects are of replacing a node's whole output, or what one receiver reads of it, by its value on the other prompt, in
logits: `noise` the fall of the clean run's logit difference, `denoise` the rise of the corrupt run's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from toys import (
    BIT_X,
    BIT_Y,
    D_HEAD,
    IS_X,
    IS_Y,
    OUT,
    SHARP,
    A,
    and_network,
    backup_network,
    blank,
    copy_head,
    gate_task,
    hidden_unit,
    or_network,
    tokenizer,
)  # fmt: skip

from crosspatch.model import Model, load
from crosspatch.tasks.pairs import Task


@dataclass(frozen=True)
class Toy:
    """A network, its task, and the true effects. What is not listed has an effect of exactly zero.

    Attributes:
        build: makes the network.
        clean, corrupt: the two inputs; fillers differ between pairs.
        noise, denoise: by node (`a0.h0`, `m1`) or by a head's input (`a1.h0.q`).
        edges: fall of the clean run's logit difference when only this edge carries the corrupt value.
        together: the same for several nodes at once.
    """

    build: Callable[[], Model]
    clean: str
    corrupt: str
    noise: dict[str, float]
    denoise: dict[str, float]
    edges: dict[str, float]
    together: dict[tuple[str, ...], float] = field(default_factory=dict)

    def task(self, n: int = 12) -> Task:
        return gate_task(n, self.clean, self.corrupt)


@torch.no_grad()
def saturated_network() -> Model:
    """A query that decides everything through an attention pattern which is exactly 0 or 1.

    `a0.h0` copies x to A. The query of `a1.h0` is positive where A is 0 and negative where it is 1, so that it attends
    to x or to y; it copies y's bit to OUT. On `x1 y1` it reads 1 from y, on `x0 y1` it looks at x and reads 0. The
    pattern is one-hot in float32 in both runs, so that no gradient passes the softmax: AtP gives `a0.h0`, `input` and
    `a1.h0.q` an effect of zero, exact patching gives each of them all 6. Recomputing the pattern with the patched query
    (the QK fix of AtP*, Kramar et al. 2024, arXiv 2403.00745) gives 6.
    """
    model = blank()
    copy_head(model, 0, 0, IS_X, BIT_X, A)
    copy_head(model, 1, 0, IS_X, BIT_Y, OUT)
    attention = model.model.layers[1].self_attn
    attention.q_proj.weight[0, A] = -2 * SHARP
    attention.k_proj.weight[0, IS_Y] = -1.0
    return load(model, tokenizer(), name="saturated")


def cancelling_network() -> Model:
    """A direct effect that is undone by an indirect one in the gradient, and by half of it only in truth.

    `a0.h0` adds 2 x to OUT, `m1` takes relu(OUT - 1) away. On `x1` OUT is 2 - 1 = 1, on `x0` it is 0. At the clean run
    one unit of OUT more makes `m1` write one less: the gradient at `a0.h0` is exactly zero, and so is its AtP score.
    The exact effect is 6: 12 straight to the logits, of which `m1` takes 6 back. Without the gradient through layer 1
    (GradDrop of AtP*) the score is the direct 12. At the corrupt run the neuron is off, and AtP says 12 where 6 is
    true.
    """
    model = blank()
    copy_head(model, 0, 0, IS_X, BIT_X, OUT, weight=2.0)
    hidden_unit(model, 1, 0, {OUT: 1.0}, -1.0, -1.0)
    return load(model, tokenizer(), name="cancelling")


TOYS = {
    "saturated": Toy(
        saturated_network, "x1 y1", "x0 y1",
        noise={"input": 6, "a0.h0": 6, "a0.h0.v": 6, "a1.h0": 6, "a1.h0.q": 6},
        denoise={"input": 6, "a0.h0": 6, "a0.h0.v": 6, "a1.h0": 6, "a1.h0.q": 6},
        edges={"input->a0.h0.v": 6, "a0.h0->a1.h0.q": 6, "a1.h0->logits": 6},
    ),
    "cancelling": Toy(
        cancelling_network, "x1 y1", "x0 y0",
        noise={"input": 6, "a0.h0": 6, "a0.h0.v": 6, "m1": -6},
        denoise={"input": 6, "a0.h0": 6, "a0.h0.v": 6, "m1": -6},
        edges={"input->a0.h0.v": 6, "a0.h0->logits": 12, "a0.h0->m1": -6, "m1->logits": -6},
    ),
    # Either input breaks it, both are needed to mend it: denoising one at a time finds nothing.
    "and": Toy(
        and_network, "x1 y1", "x0 y0",
        noise={"input": 6, "a0.h0": 6, "a0.h0.v": 6, "a0.h1": 6, "a0.h1.v": 6, "m1": 6},
        denoise={"input": 6, "m1": 6},
        edges={"input->a0.h0.v": 6, "input->a0.h1.v": 6, "a0.h0->m1": 6, "a0.h1->m1": 6, "m1->logits": 6},
        together={("a0.h0", "a0.h1"): 6},
    ),
    # Either input mends it, both are needed to break it: noising one at a time finds nothing. At the clean run
    # relu(A + B) - relu(A + B - 1) has slope 0, so that AtP finds nothing either.
    "or": Toy(
        or_network, "x1 y1", "x0 y0",
        noise={"input": 6, "m1": 6},
        denoise={"input": 6, "a0.h0": 6, "a0.h0.v": 6, "a0.h1": 6, "a0.h1.v": 6, "m1": 6},
        edges={"m1->logits": 6},
        together={("a0.h0", "a0.h1"): 6},
    ),
    # The backup steps in where the first head is missing: noise finds neither head alone. Cutting only what the logits
    # read of the first head does break it, because the backup's query still sees that head write; cutting only what
    # that query reads makes the backup write a second time.
    "backup": Toy(
        backup_network, "x1 y1", "x0 y0",
        noise={"input": 6, "a1.h0.q": -6},
        denoise={"input": 6, "a0.h0": 6, "a0.h0.v": 6, "a1.h0.v": 6},
        edges={"a0.h0->logits": 6, "a0.h0->a1.h0.q": -6},
        together={("a0.h0", "a1.h0"): 6},
    ),
}  # fmt: skip
assert D_HEAD == 4  # the weights above use the first dimension of head 0
