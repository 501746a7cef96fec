"""From saved or fresh results to the data of a report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspatch.report.data import Attention, Confirmed, Estimate, Example, Gate, ReportData, Takeover
from crosspatch.report.levels import baseline, level_of, remarks_of
from crosspatch.report.words import METRICS, UNITS

if TYPE_CHECKING:
    from crosspatch.patching import Localization
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
        "findings": remarks_of(joined(results)),
        "methodology": method_of([r.methodology for r in results]),
        "environment": environment_of(made_by),
        "cost": cost_of(results),
    }
    return ReportData(**(fields | extra))


def joined(results: Sequence[SweepResult]) -> SweepResult:
    """The levels as one table."""
    return results[0] if len(results) == 1 else type(results[0]).concat(results)


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


def report_of_localization(found: Localization, **extra: Any) -> ReportData:
    """The report of everything that `localize` found.

    Args:
        found: what `localize` returned, or `Localization.load` read.
        extra: further fields of `ReportData`, such as `command`.
    """
    about, gap = found.about, gap_of(found)
    task, model = about["task"], about["model"]
    fields: dict[str, Any] = {
        "description": task["description"],
        "varies": task["varies"],
        "holds": task["holds"],
        "provenance": task["provenance"],
        "model_facts": model_facts(model),
        "examples": tuple(example_of(pair) for pair in found.examples),
        "gates": gates_of(found.gates),
        "forced": bool(found.gates.get("forced")),
        "attention": tuple(attention_of(view) for view in found.attention),
        "takeovers": takeovers_of(found.conditional.to_dict("records"), gap),
        "confirmed": tuple(confirmed_of(row) for row in found.confirmed.to_dict("records")),
        "n_held_out": int(task.get("n_held_out", 0)),
        "findings": remarks_of(found.drill.result, found.findings),
    }
    data = report_of(found.drill.levels, **(fields | extra))
    whole = {"wall time": duration(about["seconds"])} if about.get("seconds") else {}
    settings = about.get("settings", {})
    asked = {name: str(settings[name]) for name in ("top", "alpha", "min_effect", "k") if name in settings}
    return replace(data, cost=data.cost | whole, methodology=data.methodology | asked)


def gap_of(found: Localization) -> float:
    """Mean clean minus mean corrupt value of the primary metric."""
    return float(np.nanmean(next(iter(found.drill.levels.values())).gap()))


def model_facts(model: Mapping[str, Any]) -> dict[str, str]:
    """Class and sizes as a person says them."""
    heads = f"{model['n_heads']} heads"
    if model["n_kv_heads"] != model["n_heads"]:
        heads += f" ({model['n_kv_heads']} key/value heads)"
    size = f"{model['n_layers']} layers, {heads}, d_model {model['d_model']}, vocabulary {model['vocab']:,}"
    return {"class": model["class"], "parameters": f"{model['parameters']:,}", "size": size}


def takeovers_of(rows: Sequence[Mapping[str, Any]], gap: float, most: int = 12) -> tuple[Takeover, ...]:
    """The rows of a conditional ablation that say most: backups first, then by growth."""

    def estimate(row: Mapping[str, Any], name: str) -> Estimate:
        mean = as_float(row[name])
        return Estimate(
            mean, as_float(row[f"{name}_low"]), as_float(row[f"{name}_high"]), mean / gap if gap else math.nan
        )

    ranked = sorted(rows, key=lambda row: (not row["backup"], -abs(as_float(row["growth"]))))
    return tuple(
        Takeover(
            row["removed"],
            row["part"],
            estimate(row, "alone"),
            estimate(row, "after"),
            estimate(row, "growth"),
            as_float(row["repair"]),
            bool(row["backup"]),
        )
        for row in ranked[:most]
    )


def confirmed_of(row: Mapping[str, Any]) -> Confirmed:
    """One row of the held-out confirmation."""
    held = {
        name: Estimate(*(as_float(row[f"{name}_{end}"]) for end in ("held_out", "low", "high", "held_out")))
        for name in ("denoise", "noise")
    }
    train = (as_float(row["denoise_train"]), as_float(row["noise_train"]))
    return Confirmed(row["address"], *train, held["denoise"], held["noise"], bool(row["held_up"]))


def as_float(value: Any) -> float:
    """A number, NaN for what JSON had to write as null."""
    return math.nan if value is None else float(value)


def example_of(pair: Mapping[str, Any]) -> Example:
    """One pair from its JSON: tokens and token spans of both sides, answers, metric values."""
    return Example(
        tuple(pair["clean"]),
        tuple(pair["corrupt"]),
        {name: (int(a), int(b)) for name, (a, b) in pair.get("spans", {}).items()},
        {name: (int(a), int(b)) for name, (a, b) in pair.get("corrupt_spans", {}).items()},
        tuple(pair.get("answers", ())),
        tuple(pair.get("wrong", ())),
        as_float(pair.get("clean_value")),
        as_float(pair.get("corrupt_value")),
    )


def attention_of(view: Mapping[str, Any]) -> Attention:
    """One head's pattern from its JSON."""
    corrupt = view.get("corrupt_pattern")
    return Attention(
        view["head"],
        int(view["example"]),
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
