"""From saved or fresh results to the data of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspatch.report.data import Attention, Example, Gate, Remark, ReportData
from crosspatch.report.levels import baseline, level_of, remarks_of
from crosspatch.report.words import METRICS, UNITS

if TYPE_CHECKING:
    from crosspatch.results import Methodology, SweepResult

METHOD = (
    "granularity",
    "component",
    "source",
    "positions",
    "direction",
    "window",
    "given",
    "metrics",
    "mode",
    "split",
    "corruption",
)


def report_of(levels: Mapping[str, SweepResult], **extra: Any) -> ReportData:
    """The report of one sweep, or of the levels of a drill.

    Args:
        levels: name of each level to its result, coarse to fine; all of the same task and model.
        extra: further fields of `ReportData` (gates, examples, attention, ...).
    """
    results = list(levels.values())
    first = results[0]
    metric = first.metrics[0]
    made_by = first.methodology
    fields: dict[str, Any] = {
        "task": made_by.task,
        "model": made_by.model,
        "metric": METRICS.get(metric, metric),
        "unit": UNITS.get(metric, ""),
        "n_examples": made_by.n_examples,
        "clean": baseline(first, "clean"),
        "corrupt": baseline(first, "corrupt"),
        "forced": any(r.methodology.forced for r in results),
        "levels": tuple(level_of(result, name) for name, result in levels.items()),
        "findings": unique_remarks(results),
        "methodology": method_of([r.methodology for r in results]),
        "environment": environment_of(made_by),
        "cost": cost_of(results),
    }
    return ReportData(**(fields | extra))


def unique_remarks(results: Sequence[SweepResult]) -> tuple[Remark, ...]:
    """The findings of all levels, most serious first; what several levels say in the same words is said once."""
    merged: dict[tuple[str, str, str], Remark] = {}
    for result in results:
        for remark in remarks_of(result):
            key = (remark.severity, remark.title, remark.detail)
            rows = merged[key].rows if key in merged else ()
            together = tuple(dict.fromkeys(rows + remark.rows))
            merged[key] = Remark(remark.severity, remark.title, remark.detail, remark.fix, together, remark.code)
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(merged.values(), key=lambda r: order[r.severity]))


def method_of(all_of_them: Sequence[Methodology]) -> dict[str, str]:
    """The methodology in words; tuples of several levels are joined."""
    said = {}
    for name in METHOD:
        values: dict[str, None] = {}
        for one in all_of_them:
            value = getattr(one, name)
            values |= dict.fromkeys(map(str, value) if isinstance(value, tuple) else [str(value)])
        text = ", ".join(v for v in values if v)
        if text:
            said[name] = text
    return said


def environment_of(made_by: Methodology) -> dict[str, str]:
    """Versions, seeds and hashes."""
    hashes = {"task": made_by.task_hash, "model config": made_by.config_hash, "model weights": made_by.weights_hash}
    said = {"dtype": made_by.dtype}
    said |= {f"{name} hash": value for name, value in hashes.items()}
    said |= {f"seed of {name}": str(seed) for name, seed in made_by.seeds.items()}
    return said | dict(made_by.versions)


def cost_of(results: Sequence[SweepResult]) -> dict[str, str]:
    """What it took, and what was saved against one full forward pass per patch."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.cost)
    said = {}
    if "seconds" in total:
        said["wall time"] = duration(total["seconds"])
    patched = total.get("patched_forwards", 0)
    spent = total.get("forward_equivalents", 0)
    if patched and spent:
        said["less work than one forward pass per patch"] = f"{patched / spent:.1f}\N{MULTIPLICATION SIGN}"
    if patched:
        said["patched runs"] = f"{patched:,.0f}"
        said["work, in full forward passes"] = f"{spent:,.0f}"
    if total.get("unchanged_forwards"):
        said["of them without any change, skipped"] = f"{total['unchanged_forwards']:,.0f}"
    return said


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


GATE_WORDS = {
    "behaviour": "The model shows the behaviour",
    "behaviour-examples": "Every pair shows the behaviour",
    "accuracy": "The model prefers the right answer",
    "corruption": "The corruption takes the answer away",
    "alignment": "The prompts of a pair align",
    "single-token-answers": "Answers are single tokens",
    "answers-differ": "Right and wrong answers differ",
    "clean-differs": "Clean differs from corrupt",
    "duplicates": "Pairs differ from each other",
    "context": "Prompts fit into the model's context",
    "vocabulary": "Token ids exist in the model",
    "answer-merges": "Answers stay apart from the prompt",
    "special-tokens": "Prompts hold no control tokens",
    "answer-without-space": "Answers begin a new word",
}
GATE_STATES = {"info": "passed", "warning": "warning", "failure": "failed"}


def gates_of(report: Mapping[str, Any]) -> tuple[Gate, ...]:
    """The gates from `GateReport.to_dict()`, failures first."""
    order = ("failure", "warning", "info")
    found = sorted(report["findings"], key=lambda f: order.index(f["level"]))
    return tuple(
        Gate(
            GATE_WORDS.get(f["code"], str(f["code"]).replace("_", " ").replace("-", " ").capitalize()),
            GATE_STATES[f["level"]],
            f["message"],
            f.get("fix") or "",
            tuple(f.get("shown") or ()),
        )
        for f in found
    )


def example_of(pair: Mapping[str, Any]) -> Example:
    """One pair from its JSON: tokens and token spans of both sides, answers, metric values."""
    return Example(
        tuple(pair["clean"]),
        tuple(pair["corrupt"]),
        {name: (int(a), int(b)) for name, (a, b) in pair.get("spans", {}).items()},
        {name: (int(a), int(b)) for name, (a, b) in pair.get("corrupt_spans", {}).items()},
        tuple(pair.get("answers", ())),
        tuple(pair.get("wrong", ())),
    )


def attention_of(view: Mapping[str, Any]) -> Attention:
    """One head's pattern from its JSON."""
    corrupt = view.get("corrupt_pattern")
    return Attention(
        view["head"],
        tuple(view["tokens"]),
        square(view["pattern"]),
        {name: (int(a), int(b)) for name, (a, b) in view.get("spans", {}).items()},
        tuple(view.get("corrupt_tokens", ())),
        None if corrupt is None else square(corrupt),
    )


def square(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """A pattern whose rows may be cut off at the diagonal, as a full matrix."""
    n = len(rows)
    full = np.zeros((n, n))
    for i, row in enumerate(rows):
        full[i, : len(row)] = row[:n]
    return full
