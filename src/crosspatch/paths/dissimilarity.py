"""How far two outputs of a model are apart: what a path hypothesis is scored by.

A dissimilarity is zero for equal outputs and never negative, so that its mean cannot hide over- and undershoots that
cancel (Goldowsky-Dill et al. 2023, section 2). Signed changes are `attribute`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.errors import MetricError


@dataclass(frozen=True)
class Reads:
    """What a dissimilarity may look at, one row per read.

    Attributes:
        target: the token that should come next; -1 where there is none.
        answers, wrong: right and wrong answers, padded with -1.
    """

    target: Int[Tensor, " read"]
    answers: Int[Tensor, "read answer"]
    wrong: Int[Tensor, "read wrong"]


Logits = Float[Tensor, "read vocab"]
Score = Callable[[Logits, Reads], Float[Tensor, " read"]]


@dataclass(frozen=True)
class Dissimilarity:
    """Compares the reference run's logits with those of a patched run.

    Attributes:
        name: as results call it.
        compare: (reference logits, patched logits, reads) -> one number per read, in float64.
        signed: the quantity whose change `attribute` and `difference_of_means` show; a loss, so that larger is worse.
        unit: of `compare`, and of `signed` unless `signed_unit` says otherwise.
        answers_only: whether logits of the pairs' answers are all that it looks at, so that no others are computed.
        signed_needs_targets: whether only `signed` needs to know which token comes next, so that pairs without
            targets have a dissimilarity and no signed quantity.
        quantity: what `signed` is, in words.
        signed_unit: of `signed`, where it differs.
    """

    name: str
    compare: Callable[[Logits, Logits, Reads], Float[Tensor, " read"]]
    signed: Score
    unit: str
    answers_only: bool = False
    signed_needs_targets: bool = False
    quantity: str = "loss"
    signed_unit: str | None = None

    @property
    def unit_of_signed(self) -> str:
        return self.unit if self.signed_unit is None else self.signed_unit

    def signed_or_nan(self, logits: Logits, reads: Reads) -> Float[Tensor, " read"]:
        """`signed`, or NaN where the reads lack what only it needs."""
        if self.signed_needs_targets and bool((reads.target < 0).any()):
            return torch.full((len(logits),), torch.nan, dtype=torch.float64, device=logits.device)
        return self.signed(logits, reads)


def loss(logits: Logits, reads: Reads) -> Float[Tensor, " read"]:
    """Cross-entropy of the next token, in nats."""
    if (reads.target < 0).any():
        raise MetricError(
            "the pairs do not say which token comes next",
            where="loss",
            fix="use pairs of a task with answers, text_pairs(...), or dissimilarity='kl'",
        )
    return -logits.double().log_softmax(-1).gather(1, reads.target[:, None])[:, 0]


def logit_diff_loss(logits: Logits, reads: Reads) -> Float[Tensor, " read"]:
    """Mean logit of the wrong answers less that of the right ones."""
    if not ((reads.answers >= 0).any(1) & (reads.wrong >= 0).any(1)).all():
        raise MetricError(
            "a logit difference needs a right and a wrong answer for every pair",
            where="abs_logit_diff",
            fix="use pairs of a task that has both, or dissimilarity='kl'",
        )
    return _mean_of(logits, reads.wrong) - _mean_of(logits, reads.answers)


def _mean_of(logits: Logits, tokens: Int[Tensor, "read token"]) -> Float[Tensor, " read"]:
    there = tokens >= 0
    picked = logits.gather(1, tokens.clamp(min=0)).double()
    return torch.where(there, picked, 0).sum(1) / there.sum(1)


def _kl(reference: Logits, patched: Logits, reads: Reads) -> Float[Tensor, " read"]:
    p, q = reference.double().log_softmax(-1), patched.double().log_softmax(-1)
    each = torch.where(p > -torch.inf, p.exp() * (p - q), 0)  # a token that cannot come adds nothing
    return each.sum(-1).clamp(min=0)  # rounding may leave -1e-17


DISSIMILARITIES = {
    d.name: d
    for d in (
        Dissimilarity("kl", _kl, loss, "nats", signed_needs_targets=True),
        Dissimilarity("abs_loss", lambda r, p, x: (loss(r, x) - loss(p, x)).abs(), loss, "nats"),
        Dissimilarity(
            "sq_loss", lambda r, p, x: (loss(r, x) - loss(p, x)) ** 2, loss, "nats squared", signed_unit="nats"
        ),
        Dissimilarity(
            "abs_logit_diff",
            lambda r, p, x: (logit_diff_loss(r, x) - logit_diff_loss(p, x)).abs(),
            logit_diff_loss,
            "logits",
            answers_only=True,
            quantity="logit difference, wrong less right",
        ),
    )
}


def resolve(dissimilarity: str | Dissimilarity) -> Dissimilarity:
    """By name, or one's own.

    Raises:
        MetricError: no such name.
    """
    if isinstance(dissimilarity, Dissimilarity):
        return dissimilarity
    if dissimilarity not in DISSIMILARITIES:
        raise MetricError(
            f"{dissimilarity!r} is no dissimilarity",
            where="dissimilarity",
            fix=f"use one of {', '.join(DISSIMILARITIES)}, or a paths.Dissimilarity of your own",
        )
    return DISSIMILARITIES[dissimilarity]


def require_nonnegative(values: Float[Tensor, " read"], name: str) -> Float[Tensor, " read"]:
    """Refuse a signed quantity: its mean over pairs lets over- and undershoots cancel.

    Raises:
        MetricError: a negative value, or none (NaN), which a mean would leave out unseen.
    """
    if values.isnan().any():
        raise MetricError(
            f"it is undefined at {int(values.isnan().sum())} reads",
            where=f"dissimilarity {name!r}",
            fix="give 0 for equal outputs and a number for all others",
        )
    if (values < 0).any():
        raise MetricError(
            f"it returned {float(values.min()):.4g}; a dissimilarity is never negative, because signed changes cancel "
            "in the average",
            where=f"dissimilarity {name!r}",
            fix="take its absolute value or square; use paths.attribute to see signs",
        )
    return values
