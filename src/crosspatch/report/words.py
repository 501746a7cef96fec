"""The sentences of the report: what was found, with numbers and intervals, and how far it reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from crosspatch.report.data import Effect, Estimate, Level, ReportData
from crosspatch.report.figures import RESIDUAL
from crosspatch.report.svg import interval, percent, signed

SIGNIFICANT = 0.05
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
PARTS = ("z", "attn_out", "mlp_out", "q", "k", "v", "pattern", "mlp_act", "neuron")
PLURALS = {"z": "attention heads", "attn_out": "attention blocks", "mlp_out": "MLP blocks"}


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
    """The result in one to three sentences, the strongest part first."""
    said = []
    parts = [e for level in data.levels for e in level.effects if e.kind == "z"]
    kind = "z"
    if not parts:
        kind = "attn_out"
        parts = [e for level in data.levels for e in level.effects if e.kind in ("attn_out", "mlp_out")]
    if parts:
        said.append(_parts_sentence(parts, kind))
    routes = route(data)
    if routes:
        said.append(routes)
    takeover = max(
        data.takeovers, key=lambda t: t.growth.mean if math.isfinite(t.growth.mean) else -math.inf, default=None
    )
    if takeover is not None and takeover.growth.low > 0:
        said.append(
            f"When {takeover.removed} is removed, {takeover.part} takes over part of its work: its effect grows by "
            f"{_with_interval(takeover.growth)}."
        )
    return said


def _parts_sentence(parts: Sequence[Effect], kind: str) -> str:
    name = PLURALS[kind] if kind == "z" else "blocks"
    first = ""
    if any(math.isfinite(e.q) for e in parts):
        patched = {(e.kind, e.layer, e.index) for e in parts}
        moving = {(e.kind, e.layer, e.index) for e in parts if e.q < SIGNIFICANT}
        first = f"Of {len(patched)} {name} patched, {len(moving)} move the metric reliably (q < {SIGNIFICANT}). "
    helping = max(parts, key=lambda e: signed_size(e))
    hurting = min(parts, key=lambda e: signed_size(e))
    said = first
    if signed_size(helping) > 0:
        clauses = []
        if math.isfinite(helping.denoise.mean):
            clauses.append(
                f"restores {percent(helping.denoise.share)} of the gap ({_with_interval(helping.denoise)}) when its "
                "clean value enters the corrupt run"
            )
        if math.isfinite(helping.noise.mean):
            clauses.append(
                f"breaks {percent(helping.noise.share)} ({_with_interval(helping.noise)}) when its corrupt value "
                "enters the clean run"
            )
        said += f"The strongest, {helping.address}, {' and '.join(clauses)}{_gate_clause(helping)}."
    if signed_size(hurting) < 0 and hurting.q < SIGNIFICANT:
        said += (
            f" Working against the behaviour: {hurting.address} (denoise {percent(hurting.denoise.share)}, noise "
            f"{percent(hurting.noise.share)})."
        )
    return said.strip()


def signed_size(effect: Effect) -> float:
    """The share of larger absolute value of the two directions, with its sign."""
    shares = [e.share for e in (effect.denoise, effect.noise) if math.isfinite(e.share)]
    return max(shares, key=abs, default=0.0)


def _gate_clause(effect: Effect) -> str:
    if not effect.gate or not math.isfinite(effect.interaction.mean):
        return ""
    return f"; the two differ by INT = {_with_interval(effect.interaction)}, {effect.gate}"


def route(data: ReportData) -> str:
    """At which layer the information is at which role, read off the residual stream's denoise effects."""
    rows = [e for level in data.levels for e in level.effects if e.kind in RESIDUAL and e.layer is not None]
    by_role: dict[str, list[Effect]] = {}
    for effect in rows:
        if math.isfinite(effect.denoise.share):
            by_role.setdefault(effect.position, []).append(effect)
    clauses = []
    for role, effects in by_role.items():
        strong = sorted(e.layer for e in effects if e.denoise.share >= 0.5 and e.layer is not None)
        if strong and role != "*":
            where = (
                f"before layer {strong[0]}"
                if strong[0] == strong[-1]
                else f"from layer {strong[0]} to layer {strong[-1]}"
            )
            clauses.append((strong[0], f"at {role} {where}"))
    if not clauses:
        return ""
    listed = [text for _, text in sorted(clauses, key=lambda c: c[0])]
    return f"In the residual stream, at least half of the gap is carried {_and(listed)}."


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _with_interval(estimate: Estimate) -> str:
    span = interval(estimate.low, estimate.high)
    return signed(estimate.mean) + (f" {span}" if span else "")


def top_parts(levels: Sequence[Level], count: int = 24) -> list[Effect]:
    """The rows worth a line each: single parts (not the cumulative residual stream), by size, at most `count`."""
    parts = [e for level in levels for e in level.effects if e.kind in PARTS]
    return sorted(parts, key=lambda e: -e.size)[:count]
