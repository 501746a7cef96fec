"""Sender to receiver: what of a part's effect goes straight into another part.

Wang et al. 2022 (arXiv 2211.00593) patch a sender, freeze everything but the MLPs on the way to a receiver, and let the
rest run. With one receiver that is a path hypothesis: the counterfactual flows along
input ~> sender -> receiver ~> logits, the reference along all other paths. With receivers that feed each other there
are two readings, and the three-pass procedure computes the first:

- "last": a path counts if the *last* receiver on it is the one that the sender feeds directly;
- "union": a path counts if the sender feeds any receiver on it directly.

MLPs between the two are "direct" (any number of them may be passed through: they count as part of the direct route, as
in the three-pass procedure) or "frozen" (the sender must write straight into what the receiver reads).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.errors import PathError
from crosspatch.graph import ModelShape, comes_before, select
from crosspatch.model import Model
from crosspatch.paths.automaton import REFERENCE, Automaton, Place, vocabulary
from crosspatch.paths.compile import Plan
from crosspatch.paths.dissimilarity import Dissimilarity, resolve
from crosspatch.paths.evaluate import Progress
from crosspatch.paths.kept import kept_in, measure_kept
from crosspatch.paths.language import matching, parse_step
from crosspatch.paths.measure import PairNumbers
from crosspatch.paths.norms import Norms
from crosspatch.paths.pairs import Pairs, pairs_of
from crosspatch.paths.pathset import PathSet, paths, union
from crosspatch.paths.places import find_atoms
from crosspatch.results import statistics
from crosspatch.tasks.pairs import Task

Mlps = Literal["direct", "frozen"]
Semantics = Literal["last", "union"]
NO_SHARES = "No shares: the interval of the total effect holds zero, or there is none."
ROUNDING = 1e-6
"""How far a signed quantity may be off, relative to its size: about eight units of float32's epsilon, as much as
another batch size changes. (Lower precisions are off by more, which is noise like any other: it differs by pair.)"""


def sender_paths(
    shape: ModelShape, sender: str, receivers: Sequence[str], *, mlps: Mlps = "direct", semantics: Semantics = "last"
) -> PathSet:
    """The paths by which a sender feeds receivers directly and these feed the logits.

    Args:
        shape: of the model.
        sender: `a5.h3`, `m2`, `input`, a glob, with a position if need be (`a5.h3@S1`).
        receivers: `a9.h6.q`, `a9.h6.k@S1`, `m10`, `logits`; a pattern such as `a9.*.q` stands for all that it names.
            Every path ends at the logits, so that they are never the later receiver of two.

    Raises:
        PathError: unknown choices, or names that cannot be read.
    """
    _require(mlps, ("direct", "frozen"), "mlps")
    _require(semantics, ("last", "union"), "semantics")
    if not receivers:
        raise PathError("no receivers were given", where="path_patch", fix="name at least one, e.g. ['logits']")
    arrow = "~>" if mlps == "direct" else "->"
    start = any_way_into(sender)
    found = []
    receivers = [name for receiver in receivers for name in _each(receiver, shape)]
    for receiver in receivers:
        if receiver.split("@")[0] == "logits":
            found.append(paths(f"{start} {arrow} {receiver}"))
            continue
        whole = paths(f"{start} {arrow} {receiver} -> ** -> logits")
        if semantics == "last" and len(receivers) > 1:
            later = [f"** -> {receiver} -> ** -> {r} -> ** -> logits" for r in receivers if _feeds(receiver, r, shape)]
            whole = reduce(lambda a, text: a - paths(text), later, whole)
        found.append(whole)
    return union(found)


def any_way_into(sender: str) -> str:
    """The beginning of a pattern of all paths that reach a sender."""
    return sender if sender.split("@")[0] == "input" else f"** -> {sender}"


def _each(receiver: str, shape: ModelShape) -> list[str]:
    """The receivers that a name or pattern stands for, one node each."""
    if receiver.split("@")[0] == "logits":
        return [receiver]
    step = parse_step(receiver)
    return [str(replace(step, name=str(site))) for site in matching(step, receiver, shape)]


def _feeds(early: str, late: str, shape: ModelShape) -> bool:
    """Whether what one receiver reads can go on into another."""
    if late.split("@")[0] == "logits":
        return False
    (first,), (second,) = (matching(parse_step(name), name, shape) for name in (early, late))
    return comes_before(first, second, shape)


def _require(value: str, allowed: tuple[str, ...], where: str) -> None:
    if value not in allowed:
        raise PathError(f"{value!r} is no choice", where=where, fix=f"use one of {', '.join(allowed)}")


@dataclass
class SenderEffects:
    """Effects of senders on one set of receivers, by pair: signed quantity when the paths carry the counterfactual,
    less that of the reference run (positive: the paths were helping).

    Attributes:
        senders: their names.
        effect: `[sender, pair]`.
        total: the same when everything carries the counterfactual.
        clusters: what intervals resample.
        about: receivers, choices, pairs, cost.
    """

    senders: list[str]
    effect: Float[np.ndarray, "sender pair"]
    total: Float[np.ndarray, " pair"]
    clusters: list[str]
    about: dict[str, Any]

    def frame(self) -> pd.DataFrame:
        """One row per sender: mean effect, its share of the total, intervals, p and q.

        Shares are NaN where the total effect may be zero (`statistics.share_of_total`); p is 1 where all effects are
        within rounding of the quantity that they are differences of (`about["rounding"]`, in its unit).
        """
        sampler = statistics.resampler(self.effect.shape[1], self.clusters, seed=self.about["seed"])
        between = statistics.bootstrap_mean(self.effect, sampler)
        share, around = statistics.share_of_total(self.effect, self.total, sampler)
        p = statistics.sign_flip_p(
            self.effect, self.clusters, seed=self.about["seed"], rounding=self.about.get("rounding", 0.0)
        )
        return pd.DataFrame(
            {
                "sender": self.senders,
                "effect": self.effect.mean(axis=1),
                "low": between.low,
                "high": between.high,
                "share": share,
                "share_low": around.low,
                "share_high": around.high,
                "p": p,
                "q": statistics.benjamini_hochberg(p),
            }
        )

    def top(self, n: int = 10) -> pd.DataFrame:
        """The strongest senders by absolute effect."""
        frame = self.frame()
        return frame.loc[frame["effect"].abs().sort_values(ascending=False, kind="stable").index].head(n)

    def __str__(self) -> str:
        a = self.about
        head = (
            f"{len(self.senders)} senders into {', '.join(a['receivers'])}; MLPs on the way: {a['mlps']}; receivers: "
            f"{a['semantics']}; {a['quantity']} in {a['unit']}; {self.effect.shape[1]} pairs; {a['method']}"
        )
        top = self.top(10)
        said = f"{head}\n{top.to_string(index=False, float_format=lambda x: f'{x:.4g}')}"
        return f"{said}\n{NO_SHARES}" if len(top) and np.isnan(top["share"]).all() else said


def path_patch(
    model: Model,
    pairs: Pairs | Task,
    senders: str | Sequence[str],
    receivers: str | Sequence[str] = "logits",
    *,
    mlps: Mlps = "direct",
    semantics: Semantics = "last",
    dissimilarity: str | Dissimilarity = "abs_logit_diff",
    norms: Norms = "recomputed",
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    checkpoint: str | Path | None = None,
) -> SenderEffects:
    """Every sender against one set of receivers: the counterfactual flows along sender -> receivers, nowhere else.

    >>> path_patch(model, pairs, "a*.h*", ["a9.h6.q"]).top()       # doctest: +SKIP

    Args:
        pairs: or a task, whose clean prompts are the references.
        senders: nodes or patterns such as `"a*.h*"`, `"a*.h*@S2, m*@END"`; `a5.h3.v` is what a head makes of its values
            alone. Senders that no path leads from straight into a receiver are left out of a pattern and refused by
            name.
        receivers: `a9.h6.q`, `a9.h6.k@S1`, `m10`, `logits`; several are patched together.
        mlps, semantics: see the module; both are printed with the result.
        dissimilarity: whose signed quantity is measured.
        norms, budget_mib, progress, on_plan: see `evaluate`.
        checkpoint: a folder that keeps every finished chunk of pairs; what it keeps already is not measured again. The
            numbers are those of an uninterrupted run with the same budget, bit for bit.

    Raises:
        PathError: a sender after its receiver, an unknown part, no path left.
        AddressError: a pattern of senders that matches nothing.
        MetricError: pairs that lack what the quantity needs.
        ResultError: the checkpoint is of another sweep (names what differs), or was damaged.
    """
    chosen = resolve(dissimilarity)
    pairs = pairs_of(pairs, model.tokenizer)
    into = [receivers] if isinstance(receivers, str) else list(receivers)
    for receiver in into:
        require_fit(
            model, paths("** -> logits" if receiver.split("@")[0] == "logits" else f"** -> {receiver} -> logits")
        )
    names, patterned = named(model, senders)
    possible = {name: _possible(model, name, into, mlps, semantics, patterned) for name in names}
    patched = {name: one for name, one in possible.items() if one is not None}
    kept = kept_in(
        checkpoint,
        "senders",
        model,
        pairs,
        chosen,
        norms,
        senders=senders,
        receivers=into,
        mlps=mlps,
        semantics=semantics,
        seed=seed,
    )
    found = measure_kept(
        kept,
        model,
        [~one for one in patched.values()],
        pairs,
        chosen,
        norms=norms,
        budget_mib=budget_mib,
        progress=progress,
        on_plan=on_plan,
    )
    # A set of which the positions leave no path costs nothing: all its classes are the reference run's.
    read = _kinds_read(found.plan, pairs)
    fed = [i for i, classes in enumerate(found.plan.final) if {classes[kind] for kind in read} != {REFERENCE}]
    if not fed or (len(fed) < len(names) and not patterned):
        lost = next((name for i, name in enumerate(patched) if i not in fed), senders)
        raise PathError(
            f"no path leads from {lost} straight into {', '.join(into)}",
            where="path_patch",
            fix="name earlier senders, and positions that both share: along an edge the position stays the same; @ of "
            "a sender is where it writes, @ of .k and .v what is read",
        )
    return SenderEffects(
        [list(patched)[i] for i in fed],
        (found.signed - found.reference_signed)[fed],
        found.counter_signed - found.reference_signed,
        pairs.clusters,
        {
            "receivers": into,
            "mlps": mlps,
            "semantics": semantics if sum(len(_each(r, model.shape)) for r in into) > 1 else "one receiver",
        }
        | about_of(model, pairs, chosen, found, seed),
    )


def _kinds_read(plan: Plan, pairs: Pairs) -> set[int]:
    """The kinds of position that are read anywhere."""
    _, kinds = find_atoms(plan.words, pairs)
    return {row[at] for row, read in zip(kinds, pairs.read, strict=True) for at in read}


def about_of(model: Model, pairs: Pairs, chosen: Dissimilarity, found: PairNumbers, seed: int) -> dict[str, Any]:
    """What makes numbers of senders reproducible."""
    values = np.abs(np.stack([found.reference_signed, found.counter_signed]))
    return {
        "quantity": chosen.quantity,
        "unit": chosen.unit_of_signed,
        "rounding": ROUNDING * float(np.max(values, initial=0.0, where=np.isfinite(values))),
        "pairs": pairs.provenance,
        "pairs_hash": pairs.hash,
        "method": found.plan.describe(),
        "node_evaluations": found.plan.node_evaluations,
        "norms": found.plan.norms,
        "model": model.name,
        "seed": seed,
    }


def named(model: Model, senders: str | Sequence[str]) -> tuple[list[str], bool]:
    """Names that addresses and patterns stand for, and whether any of them was a pattern."""
    listed = [senders] if isinstance(senders, str) else list(senders)
    names: list[str] = []
    patterned = False
    for text in listed:
        magic = any(c in text for c in "*?[,")
        patterned |= magic
        found = [str(a) for a in select(text, model.shape)] if magic else [text]
        names += [name.removesuffix("@*") for name in found]
    return list(dict.fromkeys(names)), patterned


def _possible(
    model: Model, sender: str, receivers: list[str], mlps: Mlps, semantics: Semantics, patterned: bool
) -> PathSet | None:
    """The sender's paths into the receivers that come after it; None where there are none and a pattern was given."""
    fitting, refusal = [], None
    for receiver in receivers:
        try:
            require_fit(model, sender_paths(model.shape, sender, [receiver], mlps=mlps))
            fitting.append(receiver)
        except PathError as error:
            refusal = error
    if refusal is not None and (not patterned or not fitting):
        if patterned:
            return None
        raise refusal
    return sender_paths(model.shape, sender, fitting, mlps=mlps, semantics=semantics)


def require_fit(model: Model, paths_: PathSet) -> None:
    """Refuse a path set that does not fit a model.

    Raises:
        PathError: points at the place.
    """
    Automaton(vocabulary([paths_], model.shape)).start(paths_, Place())
