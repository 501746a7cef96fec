"""What the evaluation of circuits found: raw values per pair, and everything that is derived from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from crosspatch.circuits import shares
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.stored import Stored
from crosspatch.errors import GateError
from crosspatch.results.statistics import Resampler, benjamini_hochberg, resampler
from crosspatch.tasks.findings import GateFinding

ALPHA = 0.05
SUFFICIENT = NECESSARY = 0.8
"""A circuit is called sufficient (necessary) when the interval of faithfulness (necessity) lies above this share."""
FAITHFUL = 1.2
"""A circuit whose interval lies above this share does something else than the model."""
ABOVE_ONE = 1 + 1e-6
CLAIMS = ("sufficiency", "faithfulness-random", "necessity", "necessity-random")
"""Codes of what the verdict says of a circuit, holds or fails; other codes are cautions."""
ORDERS_APART = 0.2
"""Difference between the ratio of means and the mean of ratios that is worth a warning."""


@dataclass(eq=False)
class CircuitEvaluation(Stored):
    """Circuits on the same pairs, in both directions, beside random circuits of the same size and control models.

    All values are raw metric values per pair.

    Attributes:
        circuits: what was evaluated.
        pairs: a digest of every pair's tokens.
        clusters: what intervals resample.
        clean, empty: whole model; every edge cut.
        kept: everything outside the circuit cut: is it sufficient?
        cut: the circuit cut, the rest of the model whole: is it necessary?
        random_kept, random_cut: the same of random connected circuits of the same size.
        random_edges: their sizes.
        control_clean, control_empty, control_kept, control_cut: the same on models with permuted weights.
        findings: of the gates. A failure means that no circuit may be claimed from these numbers.
        methodology: everything that the numbers depend on.
    """

    dims: ClassVar = {
        "clean": ("example",),
        "empty": ("example",),
        "kept": ("circuit", "example"),
        "cut": ("circuit", "example"),
        "random_kept": ("circuit", "draw", "example"),
        "random_cut": ("circuit", "draw", "example"),
        "random_edges": ("circuit", "draw"),
        "control_clean": ("control", "example"),
        "control_empty": ("control", "example"),
        "control_kept": ("control", "circuit", "example"),
        "control_cut": ("control", "circuit", "example"),
    }

    circuits: list[Circuit]
    pairs: list[str]
    clusters: list[str]
    clean: Float[np.ndarray, " example"]
    empty: Float[np.ndarray, " example"]
    kept: Float[np.ndarray, "circuit example"]
    cut: Float[np.ndarray, "circuit example"]
    random_kept: Float[np.ndarray, "circuit draw example"]
    random_cut: Float[np.ndarray, "circuit draw example"]
    random_edges: Int[np.ndarray, "circuit draw"]
    control_clean: Float[np.ndarray, "control example"]
    control_empty: Float[np.ndarray, "control example"]
    control_kept: Float[np.ndarray, "control circuit example"]
    control_cut: Float[np.ndarray, "control circuit example"]
    findings: list[GateFinding] = field(default_factory=list)
    methodology: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> Float[np.ndarray, " example"]:
        """Whole model minus everything cut."""
        return self.clean - self.empty

    @cached_property
    def _sampler(self) -> Resampler:
        about = self.methodology
        return resampler(len(self.clean), self.clusters, draws=about["n_boot"], seed=about["seed"])

    @property
    def failures(self) -> list[GateFinding]:
        return [f for f in self.findings if f.level == "failure"]

    @property
    def ok(self) -> bool:
        """Whether every gate passed."""
        return not self.failures

    def require(self) -> CircuitEvaluation:
        """This evaluation, if every gate passed.

        Raises:
            GateError: a gate failed.
        """
        if self.ok:
            return self
        raise GateError(
            "no circuit may be claimed\n" + "\n".join(map(str, self.failures)), where="evaluate", fix="see above"
        )

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per circuit.

        `faithfulness` = (kept - empty) / (clean - empty) and `necessity` = (clean - cut) / (clean - empty), ratios of
        means as MIB computes them, 1 for the whole model and 0 for nothing in both; `..._of_pairs`: the mean of the
        pairs' own ratios, without the pairs (`..._left_out`) whose gap is below a tenth of the median. `_low`, `_high`:
        95 % intervals over resampled clusters of pairs. `random_...`: 2.5, 50 and 97.5 % of random connected circuits
        of the same size; `p_...` and `q_...`: of "no better than such a circuit", and corrected over all circuits and
        both directions (Benjamini & Hochberg).
        """
        table = pd.DataFrame(
            {
                "circuit": [c.name or f"circuit {i}" for i, c in enumerate(self.circuits)],
                "edges": [c.n_edges for c in self.circuits],
                "nodes": [c.n_nodes for c in self.circuits],
                "share_of_edges": [c.n_edges / len(c.table) for c in self.circuits],
                "weighted_edges": [c.weighted_edge_count for c in self.circuits],
            }
        )
        gap, tests = self.gap, []
        rows = {
            "faithfulness": (self.kept - self.empty, self.random_kept - self.empty),
            "necessity": (self.clean - self.cut, self.clean - self.random_cut),
        }
        for name, (effects, drawn) in rows.items():
            share = shares.ratio_of_means(effects, gap, self._sampler)
            of_pairs, left_out = shares.mean_of_ratios(effects, gap, self._sampler)
            for label, found in ((name, share), (f"{name}_of_pairs", of_pairs)):
                table[label], table[f"{label}_low"], table[f"{label}_high"] = found.value, found.low, found.high
            table[f"{name}_left_out"] = left_out
            random = shares.ratio_of_means(drawn.reshape(-1, len(gap)), gap).value.reshape(drawn.shape[:2])
            band, p = shares.against_random(share.value, random)
            for i, end in enumerate(("low", "median", "high")):
                table[f"random_{name}_{end}"] = band[:, i]
            table[f"p_{name}"] = p
            tests.append(p)
        q = benjamini_hochberg(np.concatenate(tests)).reshape(len(tests), -1)
        for name, corrected in zip(rows, q, strict=True):
            table[f"q_{name}"] = corrected
        table["above_one"] = (table["faithfulness"] > ABOVE_ONE) | (table["necessity"] > ABOVE_ONE)
        return table

    def verdict(self) -> list[GateFinding]:
        """What holds (info) and what fails for each circuit, after the gates: codes `gates`, `sufficiency`,
        `necessity`, `faithfulness-random`, `necessity-random` (more than random circuits of its size) and, where it
        applies, `above-one` and `orders` (the two ways of averaging disagree)."""
        found = []
        if self.failures:
            codes = ", ".join(f.code for f in self.failures)
            found.append(
                GateFinding("gates", "failure", f"gates failed ({codes}): what follows does not support any claim")
            )
        for row in self.frame.to_dict("records"):
            found += _of_row(row, self.random_edges.shape[1])
        return found

    def summary(self) -> list[str]:
        """One line for each circuit: what holds and what does not."""
        lines = []
        start = "" if self.ok else "gates failed; "
        for row in self.frame.to_dict("records"):
            said, parts = _of_row(row, self.random_edges.shape[1]), []
            for word, level in (("holds", "info"), ("fails", "failure"), ("beware", "warning")):
                codes = [f.code for f in said if f.level == level and (f.code in CLAIMS or level == "warning")]
                parts += [f"{word}: {', '.join(codes)}"] if codes else []
            lines.append(f"{row['circuit']} ({row['edges']:,} edges): {start}{'; '.join(parts)}")
        return lines

    def __str__(self) -> str:
        about = self.methodology
        lines = [
            f"{len(self.circuits)} circuit(s) on {len(self.clean)} pairs ({about['pairs']}), {about['metric']}, "
            f"{about['ablation']} ablation: whole model {self.clean.mean():.3g}, all cut {self.empty.mean():.3g}",
            *map(str, self.findings),
        ]
        for row in self.frame.to_dict("records"):
            lines.append(
                f"{row['circuit']}: {row['edges']:,} edges ({row['share_of_edges']:.1%}), {row['nodes']} nodes"
            )
            for name in ("faithfulness", "necessity"):
                lines.append(
                    f"  {name} {_interval(row, name)}; per pair {_interval(row, f'{name}_of_pairs')}; random circuits "
                    f"{row[f'random_{name}_low']:.2f} to {row[f'random_{name}_high']:.2f} (q = {row[f'q_{name}']:.2g})"
                )
        return "\n".join([*lines, "verdict:", *(f"  {line}" for line in map(str, self.verdict()))])


def _interval(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _beside_random(row: dict[str, Any], share: str, n_random: int) -> GateFinding:
    code = "faithfulness-random" if share == "faithfulness" else "necessity-random"
    numbers = f"(median {row[f'random_{share}_median']:.2f}, q = {row[f'q_{share}']:.2g})"
    text = f"{row['circuit']}: {share} {{}} that of random circuits of its size {numbers}"
    if row[f"q_{share}"] <= ALPHA:
        return GateFinding(code, "info", text.format("exceeds"))
    if (1 + n_random) * row[f"p_{share}"] < 1.5:
        fix = "use a larger n_random"
        return GateFinding(code, "warning", f"{text.format('exceeds')}, too few of them to be sure", fix=fix)
    return GateFinding(code, "failure", text.format("does not exceed"))


def _of_row(row: dict[str, Any], n_random: int) -> list[GateFinding]:
    name, found = row["circuit"], []
    for code, share, level, what, words in (
        ("sufficiency", "faithfulness", SUFFICIENT, "sufficient", "the circuit alone keeps"),
        ("necessity", "necessity", NECESSARY, "necessary", "without the circuit there goes"),
    ):
        holds = FAITHFUL >= row[f"{share}_low"] > level  # an interval that is not known supports nothing
        found.append(
            GateFinding(
                code,
                "info" if holds else "failure",
                f"{name} is {'' if holds else 'not shown to be '}{what}: {words} {_interval(row, share)} of the gap "
                f"({level:g} to {FAITHFUL:g} wanted)",
            )
        )
        if not np.isnan(row[f"q_{share}"]):
            found.append(_beside_random(row, share, n_random))
    if row["faithfulness"] > ABOVE_ONE:
        found.append(above_one(name, row["faithfulness"], row["faithfulness_low"]))
    if row["necessity"] > ABOVE_ONE:
        found.append(
            GateFinding(
                "above-one",
                _level(row["necessity_low"]),
                f"without {name} there goes {_interval(row, 'necessity')} of the gap: cutting it does more damage than "
                "cutting everything. Parts outside it then push the wrong way, so that this is no measure of how much "
                "the circuit does (Shi et al. 2024, arXiv 2410.13032, saw it with paired prompts and not with zeros)",
                fix="read sufficiency beside it, and try another ablation",
            )
        )
    if abs(row["faithfulness"] - row["faithfulness_of_pairs"]) > ORDERS_APART:
        found.append(
            GateFinding(
                "orders",
                "warning",
                f"{name}: faithfulness is {_interval(row, 'faithfulness')} as a ratio of means and "
                f"{_interval(row, 'faithfulness_of_pairs')} as the mean of the pairs' own ratios: some pairs are not "
                "explained, and those with a large gap hide it",
                fix="look at the pairs, with worst_pairs",
            )
        )
    return found


def _level(low: float) -> Literal["info", "warning"]:
    return "warning" if low > 1 else "info"


def above_one(name: str, value: float, low: float) -> GateFinding:
    """The flag of a faithfulness above 1, with what it means; a warning where its whole interval is above 1."""
    return GateFinding(
        "above-one",
        _level(low),
        f"{name} scores {value:.3f}, above the whole model"
        f"{'' if low > 1 else ' (its interval holds 1)'}: parts that work against the answer were cut, or the cut "
        "itself helps. This is no skill of the circuit. On prompts where the whole model is unsure, the circuit for "
        "indirect objects scored 1.29 and 2.59 because the ablation hid the competing name (Nainani et al. 2024, "
        "arXiv 2411.16105, 'S2 hacking')",
        fix="look at the distance from 1 (CMD), at another ablation, and at KL divergence beside this metric",
    )
