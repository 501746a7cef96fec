"""What the report is made of: plain data, no torch, nothing that knows how it was computed or stored."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from crosspatch.report.circuits import CircuitPage
    from crosspatch.report.features import FeaturePage


@dataclass(frozen=True)
class Estimate:
    """A mean over examples in the metric's own unit, its interval, and the same as a share of the clean-corrupt gap."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    share: float = math.nan

    @property
    def excludes_zero(self) -> bool:
        """The interval lies wholly on one side of zero (false where there is no interval)."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Effect:
    """One row of the effect table under one metric.

    Attributes:
        denoise: clean value into the corrupt run, effect in metric units (positive: the part helps).
        noise: corrupt value into the clean run, same sign convention.
        interaction: noise minus denoise.
        gate: `and-like`, `or-like`, `additive`, or empty where one direction was not run.
        q_denoise, q_noise: permutation p-values after false-discovery correction (NaN: not tested).
        each_denoise, each_noise: the effect of every example (NaN: not run).
        matters: in one direction or the other the effect is significant and not small (`results.evidence`).
    """

    address: str
    kind: str
    layer: int | None
    index: int | None
    position: str
    denoise: Estimate = Estimate()
    noise: Estimate = Estimate()
    interaction: Estimate = Estimate()
    gate: str = ""
    q_denoise: float = math.nan
    q_noise: float = math.nan
    each_denoise: Float[np.ndarray, " example"] = field(default_factory=lambda: np.empty(0), repr=False)
    each_noise: Float[np.ndarray, " example"] = field(default_factory=lambda: np.empty(0), repr=False)
    parent: str = ""
    corruption: str = ""
    matters: bool = False

    @property
    def size(self) -> float:
        """The larger absolute share of the two directions; what parts are ranked by.

        Where the clean-corrupt gap is too small for shares it is the larger absolute mean, 0 where nothing was run.
        """
        both = (self.denoise, self.noise)
        shares = [abs(e.share) for e in both if math.isfinite(e.share)]
        return max(shares or [abs(e.mean) for e in both if math.isfinite(e.mean)], default=0.0)

    @property
    def key(self) -> str:
        """What tells this row from every other: the address, and the corruption where there are several."""
        return f"{self.address} ({self.corruption})" if self.corruption else self.address

    @property
    def q(self) -> float:
        """The smaller of the two corrected p-values (NaN where neither was tested)."""
        tested = [q for q in (self.q_denoise, self.q_noise) if math.isfinite(q)]
        return min(tested, default=math.nan)


@dataclass(frozen=True)
class Band:
    """Where the effects of size-matched random sets of parts fall (metric units), one band per direction."""

    denoise: tuple[float, float] | None = None
    noise: tuple[float, float] | None = None
    words: str = ""


@dataclass(frozen=True)
class Level:
    """One step of the drill: the rows of one granularity under the primary metric, and under the others.

    Attributes:
        rule: what a row had to fulfil to matter, in words.
    """

    name: str
    effects: tuple[Effect, ...]
    others: dict[str, tuple[Effect, ...]] = field(default_factory=dict)
    band: Band = Band()
    rule: str = ""


@dataclass(frozen=True)
class Example:
    """One pair as the model reads it. Spans are half-open token ranges by role."""

    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    spans: dict[str, tuple[int, int]]
    corrupt_spans: dict[str, tuple[int, int]]
    answers: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    clean_value: float = math.nan
    corrupt_value: float = math.nan


@dataclass(frozen=True)
class Attention:
    """The pattern of one head on one example: `[destination, source]`, rows sum to one."""

    head: str
    example: int
    tokens: tuple[str, ...]
    pattern: Float[np.ndarray, "destination source"]
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    corrupt_tokens: tuple[str, ...] = ()
    corrupt_pattern: Float[np.ndarray, "destination source"] | None = None


@dataclass(frozen=True)
class Gate:
    """One check made before anything ran. `state` is `passed`, `warning` or `failed`."""

    name: str
    state: str
    detail: str
    fix: str = ""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Takeover:
    """One row of a conditional ablation: what `part` is worth alone, and after `removed` is gone (metric units).

    `repair` is the share of the removed part's full effect that this part makes up for; `backup` says that the growth
    is significant and not small.
    """

    removed: str
    part: str
    alone: Estimate
    after: Estimate
    growth: Estimate
    repair: float = math.nan
    backup: bool = False


@dataclass(frozen=True)
class Confirmed:
    """One of the top rows, run again on pairs that the search did not see. All numbers are shares of the gap.

    Attributes:
        denoise_train, noise_train: on the pairs of the search.
        denoise, noise: on the held-out pairs, with intervals.
        held_up: every direction that mattered in the search still does, the same way.
    """

    address: str
    denoise_train: float
    noise_train: float
    denoise: Estimate
    noise: Estimate
    held_up: bool


@dataclass(frozen=True)
class Remark:
    """Findings of the diagnosis that have the same title, and the addresses that they concern.

    `severity` is `error`, `warning` or `note`.
    """

    severity: str
    title: str
    details: tuple[str, ...] = ()
    fix: str = ""
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything that a report says.

    Attributes:
        metric: name of the primary metric; `unit` its unit in words.
        clean, corrupt: its mean (with interval) on the two unpatched runs.
        methodology: what was done, name to value, in the order to show.
        environment: versions, hashes, seeds, times, name to value.
        circuit: the circuit that the localisation ended with; its own page stands in the folder `circuit`.
        features: a feature circuit that was found in the folder `features`, of this behaviour or another.
    """

    task: str
    model: str
    metric: str
    n_examples: int
    clean: Estimate
    corrupt: Estimate
    varies: str = ""
    holds: str = ""
    description: str = ""
    provenance: str = ""
    unit: str = ""
    model_facts: dict[str, str] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    gates: tuple[Gate, ...] = ()
    forced: bool = False
    levels: tuple[Level, ...] = ()
    attention: tuple[Attention, ...] = ()
    takeovers: tuple[Takeover, ...] = ()
    confirmed: tuple[Confirmed, ...] = ()
    n_held_out: int = 0
    findings: tuple[Remark, ...] = ()
    methodology: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    cost: dict[str, str] = field(default_factory=dict)
    circuit: CircuitPage | None = None
    features: FeaturePage | None = None
    command: str = ""
    python: str = ""

    def level(self, name: str) -> Level | None:
        """The level of that name, if it was run."""
        return next((level for level in self.levels if level.name == name), None)
