"""The discovery loop: extend or shorten a hypothesis by one step, measure every candidate, keep the best, repeat.

Steps are those of `paths.candidates`. All are measured together on the same pairs, once a step. What was picked looks
better than it is, so that all hypotheses on the way are scored on held-out pairs at the end, beside random hypotheses
of as many patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.errors import PathError
from crosspatch.model import Model
from crosspatch.paths.candidates import Step, hypothesis, random_hypotheses, steps
from crosspatch.paths.compile import Plan
from crosspatch.paths.dissimilarity import Dissimilarity, resolve
from crosspatch.paths.evaluate import Progress
from crosspatch.paths.kept import Kept, keep_steps, kept_in, measure_kept, steps_kept
from crosspatch.paths.norms import Norms
from crosspatch.paths.pairs import Pairs, pairs_of
from crosspatch.paths.pathset import PathSet, everything, nothing
from crosspatch.results import statistics
from crosspatch.tasks.pairs import Task


@dataclass
class StepTable:
    """Every candidate step, measured on the same pairs.

    Attributes:
        steps: the candidates.
        change: AUE after less AUE before, per pair; negative: the step explains more.
        before: AUE per pair.
        total: null hypothesis per pair.
        clusters, seed: for intervals.
    """

    steps: list[Step]
    change: Float[np.ndarray, "step pair"]
    before: Float[np.ndarray, " pair"]
    total: Float[np.ndarray, " pair"]
    clusters: list[str]
    seed: int

    def __str__(self) -> str:
        head = f"explained {self.explained():.1%} before any of {len(self.steps)} steps, on {len(self.before)} pairs"
        return f"{head}\n{self.frame().head(10).to_string(index=False, float_format=lambda x: f'{x:.4g}')}"

    def explained(self, step: Step | None = None) -> float:
        """Proportion explained before any step, or after one of them."""
        after = self.before if step is None else self.before + self.change[self.steps.index(step)]
        return float(_shares(after[None], self.total)[0])

    def frame(self) -> pd.DataFrame:
        """Candidates, the largest gain first; `gain` is in proportion explained, with interval, p and q."""
        sampler = statistics.resampler(len(self.before), self.clusters, seed=self.seed)
        gain = -self.change
        between = statistics.bootstrap_ratio_of_means(gain, self.total, sampler, 0.0)
        p = statistics.sign_flip_p(gain, self.clusters, seed=self.seed)
        table = pd.DataFrame(
            {
                "step": [step.kind for step in self.steps],
                "pattern": [step.pattern for step in self.steps],
                "gain": gain.mean(axis=1) / self.total.mean(),
                "low": between.low,
                "high": between.high,
                "p": p,
                "q": statistics.benjamini_hochberg(p),
            }
        )
        return table.sort_values("gain", ascending=False, kind="stable")


def sweep_steps(
    model: Model,
    patterns: Sequence[str],
    pairs: Pairs | Task,
    candidates: Sequence[Step] | None = None,
    *,
    dissimilarity: str | Dissimilarity = "kl",
    always: PathSet | None = None,
    norms: Norms = "recomputed",
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> StepTable:
    """Measure every one-step change of a hypothesis.

    Args:
        patterns: the hypothesis, as `** -> ...` patterns; none is the null hypothesis.
        candidates: default: all of `steps`.
        always: paths that stay on the reference in every hypothesis.
        norms, budget_mib, progress, on_plan: see `evaluate`.

    Raises:
        PathError: no candidates, or patterns that do not fit.
    """
    patterns, pairs = _each_once(patterns), pairs_of(pairs, model.tokenizer)
    found = list(steps(patterns, model.shape) if candidates is None else candidates)
    options: dict[str, Any] = {"norms": norms, "budget_mib": budget_mib, "progress": progress, "on_plan": on_plan}
    return _measured(None, model, patterns, pairs, found, resolve(dissimilarity), always, seed, options)


def _measured(
    kept: Kept | None,
    model: Model,
    patterns: Sequence[str],
    pairs: Pairs,
    candidates: list[Step],
    dissimilarity: Dissimilarity,
    always: PathSet | None,
    seed: int,
    options: dict[str, Any],
) -> StepTable:
    """Candidates, measured; numbers that are kept are not measured again. `options` are those of `evaluate`."""
    if not candidates:
        raise PathError("there is no step to take", where="refine", fix="allow more nodes or positions")
    null = always if always is not None else nothing()
    sets = [null, hypothesis(patterns) | null, *(hypothesis(step.taken(patterns)) | null for step in candidates)]
    got = measure_kept(kept, model, sets, pairs, dissimilarity, **options)
    return StepTable(candidates, got.apart[2:] - got.apart[1], got.apart[1], got.apart[0], pairs.clusters, seed)


@dataclass
class Refinement:
    """A greedy run.

    Attributes:
        patterns: the hypothesis at the end.
        log: one row per step taken: the step, proportion explained on the pairs searched and on held-out ones, for
            these with its interval (on the pairs searched the best was picked, so that an interval would say too much).
            The first row is the beginning, all its patterns in one.
        random: proportion explained on the held-out pairs by random hypotheses of as many patterns.
        floor: per held-out pair, AUE when all paths carry the reference and every node is computed all the same.
        about: what was asked.
    """

    patterns: list[str]
    log: pd.DataFrame
    random: Float[np.ndarray, " draw"]
    floor: Float[np.ndarray, " pair"]
    about: dict[str, Any]

    def __str__(self) -> str:
        lines = [
            self.log.to_string(index=False, float_format=lambda x: f"{x:.3f}"),
            f"numerical floor (AUE at all paths, held-out pairs) {float(self.floor.mean()):.1e}",
        ]
        if len(self.random):
            last = float(self.log["explained_held_out"].iloc[-1])
            lines.append(
                f"random hypotheses of {len(self.patterns)} patterns explain {np.median(self.random):.1%} (median) and "
                f"at most {self.random.max():.1%} of {len(self.random)}; this one {last:.1%} (held-out pairs)"
            )
        return "\n".join(lines)


def refine(
    model: Model,
    patterns: Sequence[str],
    pairs: Pairs | Task,
    *,
    max_steps: int = 8,
    min_gain: float = 0.01,
    held_out: float = 0.3,
    nodes: str = "a*.h*, m*",
    positions: Sequence[str] = (),
    n_random: int = 20,
    dissimilarity: str | Dissimilarity = "kl",
    always: PathSet | None = None,
    norms: Norms = "recomputed",
    seed: int = 0,
    budget_mib: float | None = None,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
) -> Refinement:
    """Take the best step again and again, as long as its interval lies above `min_gain`.

    Args:
        patterns: where to begin; an empty list is the null hypothesis.
        pairs: or a task, whose clean prompts are the references.
        max_steps: at most so many.
        min_gain: proportion explained that a step must add (an interval's lower end for additions). A removal may lose
            up to this much, because a smaller claim is a stronger one.
        held_out: share of the pairs that only score the steps.
        n_random: random hypotheses to compare with.
        always: paths that stay on the reference in every hypothesis.
        norms, budget_mib: see `evaluate`.
        progress: called with (steps done, steps at most, the scoring on held-out pairs being the last).
        checkpoint: a folder for this search alone, which keeps every step taken, and of the step in progress every
            finished chunk of pairs. A search that goes on from there with the same budget takes the same steps, with
            the same numbers, bit for bit.

    Raises:
        PathError: patterns that do not fit.
        TaskError: too few pairs to split.
        ResultError: the checkpoint is of another search (names what differs), or was damaged.
    """
    if max_steps < 1:
        raise PathError(f"{max_steps} steps", where="refine", fix="allow one at least")
    pairs = pairs_of(pairs, model.tokenizer)
    patterns = _each_once(patterns)
    searched, rest = pairs.split(held_out, seed)
    chosen = resolve(dissimilarity)
    null = always if always is not None else nothing()
    about = {
        "dissimilarity": chosen.name,
        "min_gain": min_gain,
        "nodes": nodes,
        "positions": list(positions),
        "seed": seed,
        "always": None if always is None else always.to_json(),
        "norms": norms,
    }
    asked = about | {"start": list(patterns), "max_steps": max_steps, "held_out": held_out, "n_random": n_random}
    del asked["dissimilarity"], asked["norms"]  # `kept_in` notes these of every work
    kept = kept_in(checkpoint, "refinement", model, pairs, chosen, norms, **asked)
    rows, ended = steps_kept(kept)
    on_the_way = [list(patterns)]
    for row in rows[1:]:
        on_the_way.append(Step(row["step"], row["pattern"]).taken(on_the_way[-1]))
    options: dict[str, Any] = {"norms": norms, "budget_mib": budget_mib}
    while not ended:
        now, number = on_the_way[-1], len(rows) - 1
        options["progress"] = _part(progress, number, max_steps)
        candidates = steps(now, model.shape, nodes=nodes, positions=positions)
        table = _measured(kept, model, now, searched, candidates, chosen, always, seed, options)
        rows[-1]["explained"] = table.explained()
        step = _best(table.frame(), min_gain)
        if step is not None:
            on_the_way.append(step.taken(now))
            rows.append({"step": step.kind, "pattern": step.pattern, "explained": table.explained(step)})
        ended = step is None or len(rows) > max_steps
        if kept is not None:
            keep_steps(kept, rows, ended)
    now = on_the_way[-1]
    drawn = random_hypotheses(model.shape, len(now), nodes, positions, n_random if now else 0, seed)
    sets = [null, *(hypothesis(one) | null for one in [*on_the_way, *drawn]), everything()]
    options |= {"progress": _part(progress, max_steps, max_steps), "anew": {len(sets) - 1}}
    got = measure_kept(kept, model, sets, rest, chosen, **options)
    shares = _shares(got.apart[1:-1], got.apart[0])
    sampler = statistics.resampler(len(rest), rest.clusters, seed=seed)
    between = statistics.bootstrap_ratio_of_means(got.apart[1 : 1 + len(rows)], got.apart[0], sampler, 0.0)
    for row, share, low, high in zip(rows, shares, between.low, between.high, strict=False):
        row |= {"explained_held_out": float(share), "held_out_low": 1 - high, "held_out_high": 1 - low}
    rows[0]["pattern"] = "; ".join(on_the_way[0])
    about |= {
        "pairs": pairs.provenance,
        "pairs_hash": pairs.hash,
        "searched": len(searched),
        "held_out": len(rest),
        "model": model.name,
    }
    return Refinement(now, pd.DataFrame(rows), shares[len(rows) :], got.apart[-1], about)


def _each_once(patterns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([patterns] if isinstance(patterns, str) else patterns))


def _part(progress: Progress | None, number: int, max_steps: int) -> Progress | None:
    """Progress of the pairs of one step as progress of the whole search."""
    if progress is None:
        return None
    return lambda done, total: progress(number + done / total, max_steps + 1)


def _best(table: pd.DataFrame, min_gain: float) -> Step | None:
    """The removal that costs least, if it costs next to nothing; else the addition that surely gains most."""
    free = table[(table["step"] == "remove") & (table["low"] > -min_gain)]
    good = table[(table["step"] == "add") & (table["low"] > min_gain)]
    row = free.iloc[0] if len(free) else good.iloc[0] if len(good) else None
    return None if row is None else Step(row["step"], row["pattern"])


def _shares(unexplained: Float[np.ndarray, "set pair"], total: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " set"]:
    """Proportions explained."""
    ate = float(np.nanmean(total))
    return 1 - np.nanmean(unexplained, axis=1) / ate if ate > 0 else np.full(len(unexplained), np.nan)
