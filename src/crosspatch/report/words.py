"""The sentences of the report: what was found, with numbers and intervals, and how far it reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from crosspatch.report.data import Effect, Estimate, ReportData
from crosspatch.report.figures import RESIDUAL
from crosspatch.report.svg import interval, percent, signed

METRICS = {
    "logit_diff": "logit difference",
    "answer_logit": "logit of the answer",
    "wrong_logit": "logit of the wrong answer",
    "log_prob": "log-probability",
    "prob": "probability",
    "prob_diff": "probability difference",
    "rank_gap": "logit gap to the best competitor",
    "kl": "KL divergence",
    "js": "Jensen\N{EN DASH}Shannon divergence",
    "cross_entropy": "cross-entropy",
}
UNITS = {
    "logit_diff": "logits",
    "answer_logit": "logits",
    "wrong_logit": "logits",
    "rank_gap": "logits",
    "log_prob": "nats",
    "kl": "nats",
    "js": "nats",
    "entropy": "nats",
    "cross_entropy": "nats",
    "prob": "probability",
    "rank": "ranks",
}
KIND_WORDS = {
    "input": "embedding",
    "resid_pre": "residual stream",
    "resid_mid": "residual stream",
    "resid_post": "residual stream",
    "attn_out": "attention block",
    "mlp_out": "MLP block",
    "z": "head output",
    "q": "query",
    "k": "key",
    "v": "value",
    "pattern": "attention pattern",
    "mlp_act": "MLP neurons",
    "neuron": "MLP neuron",
}


def scope(data: ReportData) -> str:
    """How far the result reaches (guide, A6 and A8)."""
    varies = (
        f"what differs between the two prompts of a pair ({data.varies})"
        if data.varies
        else "what differs between the two prompts of a pair"
    )
    holds = (
        f" What both prompts share ({data.holds}) stays invisible to it."
        if data.holds
        else " What both prompts share stays invisible to it."
    )
    return (
        f"This result is about {varies}, on {data.n_examples} pairs of the task "
        f"\N{LEFT DOUBLE QUOTATION MARK}{data.task}\N{RIGHT DOUBLE QUOTATION MARK}, in {data.model}.{holds} "
        "It holds for prompts like these and claims nothing wider, nor that the parts found are the fewest possible."
    )


def behaviour(data: ReportData) -> str:
    """The two unpatched runs, and the gap that all shares refer to."""
    return (
        f"The model scores {_with_interval(data.clean)} on the clean prompts and {_with_interval(data.corrupt)} on the "
        f"corrupt ones ({data.metric}, mean over {data.n_examples} pairs). All shares below are of this gap of "
        f"{signed(data.clean.mean - data.corrupt.mean).lstrip('+')}."
    )


def headline(data: ReportData) -> list[str]:
    """The result in a few sentences, the parts first."""
    said = []
    heads = [(level, [e for e in level.effects if e.kind == "z"]) for level in data.levels]
    blocks = [(level, [e for e in level.effects if e.kind in ("attn_out", "mlp_out")]) for level in data.levels]
    for kind, found in (("attention heads", heads), ("blocks", blocks)):
        level, parts = max(found, key=lambda pair: len(pair[1]), default=(None, []))
        if level is not None and parts:
            said.append(_parts_sentence(parts, kind))
            break
    routes = route(data)
    if routes:
        said.append(routes)
    takeover = max(data.takeovers, key=lambda t: t.growth.mean, default=None)
    if takeover is not None and takeover.backup:
        said.append(
            f"When {takeover.removed} is removed, {takeover.part} takes over part of its work: its effect grows by "
            f"{_with_interval(takeover.growth)}."
        )
    return said


def _parts_sentence(parts: Sequence[Effect], kind: str) -> str:
    patched = {(e.kind, e.layer, e.index) for e in parts}
    moving = {(e.kind, e.layer, e.index) for e in parts if e.matters}
    if not moving:
        return f"None of the {len(patched)} {kind} patched has an effect that can be told from none."
    verb = "moves" if len(moving) == 1 else "move"
    said = f"Of {len(patched)} {kind} patched, {len(moving)} {verb} the metric reliably."
    best = max((e for e in parts if e.matters), key=signed_size)
    worst = min((e for e in parts if e.matters), key=signed_size)
    if signed_size(best) > 0:
        clauses = []
        if math.isfinite(best.denoise.mean):
            amount = f"{percent(best.denoise.share)} of the gap ({_with_interval(best.denoise)})"
            clauses.append(f"restores {amount} when its clean value enters the corrupt run")
        if math.isfinite(best.noise.mean):
            amount = f"{percent(best.noise.share)} ({_with_interval(best.noise)})"
            clauses.append(f"breaks {amount} when its corrupt value enters the clean run")
        said += f" The strongest, {best.address}, {' and '.join(clauses)}{_gate_clause(best)}."
    if signed_size(worst) < 0:
        shares = f"denoise {percent(worst.denoise.share)}, noise {percent(worst.noise.share)}"
        said += f" Working against the behaviour: {worst.address} ({shares})."
    return said


def signed_size(effect: Effect) -> float:
    """The share of larger absolute value of the two directions, with its sign."""
    shares = [e.share for e in (effect.denoise, effect.noise) if math.isfinite(e.share)]
    return max(shares, key=abs, default=0.0)


def _gate_clause(effect: Effect) -> str:
    if effect.gate not in ("and-like", "or-like", "additive") or not math.isfinite(effect.interaction.mean):
        return ""
    return f"; the two differ by INT = {_with_interval(effect.interaction)}, {effect.gate}"


def route(data: ReportData) -> str:
    """At which layer the information is at which role, read off the residual stream's denoise effects."""
    by_role: dict[str, list[tuple[float, str]]] = {}
    for effect in (e for level in data.levels for e in level.effects if e.kind in RESIDUAL):
        if effect.position != "*" and effect.denoise.share >= 0.5:
            by_role.setdefault(effect.position, []).append(_depth(effect))
    clauses = []
    for role, found in by_role.items():
        (first, start), (last, end) = min(found), max(found)
        where = f"from {start} to {end}" if first != last else start if start.startswith("after") else f"before {start}"
        clauses.append((first, f"at {role} {where}"))
    if not clauses:
        return ""
    listed = [text for _, text in sorted(clauses)]
    return f"In the residual stream, at least half of the gap is carried {_and(listed)}."


def _depth(effect: Effect) -> tuple[float, str]:
    """How deep a place in the residual stream is, and the layer that reads it (or has just written it)."""
    layer = effect.layer or 0
    if effect.kind == "resid_mid":
        return layer + 0.5, f"the MLP of layer {layer}"
    if effect.kind == "resid_post":
        return layer + 1, f"after layer {layer}"
    return layer, f"layer {layer}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _with_interval(estimate: Estimate) -> str:
    span = interval(estimate.low, estimate.high)
    return signed(estimate.mean) + (f" {span}" if span else "")
