"""The five tests of the circuit hypothesis of Shi et al. 2024 (arXiv 2410.13032), each with its null stated.

s is the metric of one pair with the sign turned so that more is better, M the whole model, C the circuit (everything
else cut), ~C the model with the circuit cut, D(X, Y) the mean over pairs of (s(X) - s(Y))^2.

In the three *ideal* tests the null is what the claim wants: a small p speaks against the circuit, a large one for
nothing (few pairs give large p-values too). In the two *relaxed* tests a small p speaks for the circuit. `passes` says
what follows in words, and the power of a test is told by its number of pairs or draws.

Where this differs from the paper is said at each test, and here for all: p-values of permutations count the observed
one, so that they are never 0; random circuits are those of `circuits.random`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.judge import Judge, Progress, held_out_pairs
from crosspatch.circuits.minimality import one_less
from crosspatch.circuits.random import random_circuits, random_inflations, random_like
from crosspatch.circuits.stored import Stored
from crosspatch.results.statistics import benjamini_hochberg

if TYPE_CHECKING:
    from crosspatch.attribution.ablation import Ablation, AblationName
    from crosspatch.attribution.setup import Setup

ALPHA = 0.05


@dataclass(frozen=True)
class Outcome:
    """What one test found.

    Attributes:
        name, null: what it is called; the null hypothesis.
        ideal: whether the null is what the claim wants (then rejecting it speaks against the circuit).
        statistic, meaning: the number that was computed, and what it is.
        p: NaN where the test could not be made.
        n: pairs, draws or edges that went in.
    """

    name: str
    null: str
    ideal: bool
    statistic: float
    meaning: str
    p: float
    n: int


@dataclass(eq=False)
class HypothesisTests(Stored):
    """The values that the tests are made of; raw metric values per pair.

    Attributes:
        circuit: the circuit C.
        edges: names of the circuit's edges that were tested for minimality.
        clean, empty, kept, cut: M, everything cut, C, ~C.
        without: C without the edge.
        inflated, inflated_without: C with a random walk added; the same without a random edge of the addition.
        random_kept, random_cut: random circuits of the size of C, and the model without them.
        outside_cut: the model without a random circuit of that size outside C; empty where there is none.
        outside_edges: how many edges these had.
        methodology: everything that the numbers depend on.
    """

    dims: ClassVar = {
        "clean": ("example",),
        "empty": ("example",),
        "kept": ("example",),
        "cut": ("example",),
        "without": ("edge", "example"),
        "inflated": ("inflation", "example"),
        "inflated_without": ("inflation", "example"),
        "random_kept": ("draw", "example"),
        "random_cut": ("draw", "example"),
        "outside_cut": ("outside", "example"),
        "outside_edges": ("outside",),
    }

    circuit: Circuit
    edges: list[str]
    clean: Float[np.ndarray, " example"]
    empty: Float[np.ndarray, " example"]
    kept: Float[np.ndarray, " example"]
    cut: Float[np.ndarray, " example"]
    without: Float[np.ndarray, "edge example"]
    inflated: Float[np.ndarray, "inflation example"]
    inflated_without: Float[np.ndarray, "inflation example"]
    random_kept: Float[np.ndarray, "draw example"]
    random_cut: Float[np.ndarray, "draw example"]
    outside_cut: Float[np.ndarray, "outside example"]
    outside_edges: Int[np.ndarray, " outside"]
    methodology: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def tests(self) -> list[Outcome]:
        """Equivalence, independence, minimality, sufficiency, and partial necessity against random circuits of the
        whole model and of the complement."""
        about = self.methodology
        sign, q = (1.0 if about["better"] == "higher" else -1.0), about["quantile"]
        return [
            equivalence(sign * self.kept, sign * self.clean, about["epsilon"]),
            independence(self.cut, self.clean, about["n_permutations"], about["seed"]),
            _minimality(self.edge_frame),
            relaxed("sufficiency", distance(self.kept, self.clean), distance(self.random_kept, self.clean), q,
                    nearer=True),
            relaxed("partial necessity", distance(self.cut, self.clean), distance(self.random_cut, self.clean), q,
                    nearer=False),
            relaxed("partial necessity, outside", distance(self.cut, self.clean),
                    distance(self.outside_cut, self.clean), q, nearer=False),
        ]  # fmt: skip

    @cached_property
    def edge_frame(self) -> pd.DataFrame:
        """Minimality edge by edge: `effect` = D(C, C without it), `beats` = share of random edges of inflated circuits
        with a smaller effect, `p` of "it beats at least `quantile` of them", `p_bonferroni`, and `redundant`."""
        quantile = self.methodology["quantile"]
        reference = distance(self.inflated_without, self.inflated)
        effect = distance(self.without, self.kept)
        wins = (effect[:, None] > reference[None]).sum(1)
        n = len(reference)
        p = stats.binom.cdf(wins, n, quantile) if n else np.full(len(effect), np.nan)
        corrected = np.minimum(p * len(p), 1)
        return pd.DataFrame(
            {
                "edge": self.edges,
                "effect": effect,
                "beats": wins / n if n else np.nan,
                "p": p,
                "p_bonferroni": corrected,
                "redundant": corrected <= ALPHA,
            }
        )

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per test, with q corrected over all of them (Benjamini & Hochberg) and `passes`: whether the circuit
        stands the test at the corrected level 0.05. NaN p: not made, `passes` is None."""
        table = pd.DataFrame([vars(test) for test in self.tests])
        table["q"] = benjamini_hochberg(table["p"].to_numpy(float))
        rejected = table["q"] <= ALPHA
        passes = np.where(table["ideal"], ~rejected, rejected).astype(object)
        passes[table["p"].isna().to_numpy()] = None
        table["passes"] = passes
        return table

    def __str__(self) -> str:
        lines = [f"{self.circuit.name or 'circuit'} ({self.circuit.n_edges:,} edges) on {len(self.clean)} pairs"]
        for row in self.frame.to_dict("records"):
            if row["passes"] is None:
                word = "not made"
            elif row["ideal"]:
                word = "not rejected" if row["passes"] else "REJECTED, against the circuit"
            else:
                word = "rejected, for the circuit" if row["passes"] else "NOT rejected"
            lines.append(
                f"  {row['name']}: null '{row['null']}' {word}; {row['meaning']} = {row['statistic']:.3g}, "
                f"n = {row['n']}, p = {row['p']:.2g}, q = {row['q']:.2g}"
            )
        return "\n".join(lines)


def distance(values: Float[np.ndarray, "*row example"], to: Float[np.ndarray, ...]) -> Float[np.ndarray, " row"]:
    """D: mean squared difference over pairs."""
    return ((values - to) ** 2).mean(-1)


def equivalence(
    circuit: Float[np.ndarray, " example"], model: Float[np.ndarray, " example"], epsilon: float = 0.1
) -> Outcome:
    """Null: |P(s(C) > s(M)) - 1/2| <= epsilon: circuit and model outdo each other equally often.

    The statistic is the share of pairs on which the circuit scores higher; p = P(a share at least as far from 1/2) for
    the binomial distribution at the edge of the null, 1/2 + epsilon. Pairs with equal scores say nothing and are left
    out, which the paper assumes not to occur; where all are equal, p = 1. The release of the paper's own code compares
    the mean difference of the scores with 1/2 instead of this share. The test sees the sign only, and not how far the
    scores are apart: that is faithfulness.
    """
    apart = circuit - model
    apart = apart[apart != 0]
    n, wins = len(apart), int((apart > 0).sum())
    if n:
        counts = np.arange(n + 1)
        far = np.abs(counts / n - 0.5) >= abs(wins / n - 0.5) - 1e-12
        p = float(stats.binom.pmf(counts[far], n, 0.5 + epsilon).sum())
    else:
        p = 1.0
    null = f"circuit and model score higher equally often (to within {epsilon:g})"
    return Outcome(
        "equivalence", null, True, wins / n if n else 0.5, "share of pairs on which C beats M", min(p, 1.0), n
    )


def independence(
    complement: Float[np.ndarray, " example"],
    model: Float[np.ndarray, " example"],
    n_permutations: int = 1000,
    seed: int = 0,
) -> Outcome:
    """Null: s(~C) and s(M) are independent over pairs: without the circuit nothing is left that knows the task.

    The statistic is HSIC (Gretton et al. 2007), trace(K H L H) / (n - 1)^2 with Gaussian kernels on both scores, p by
    permuting pairs. Each kernel has its own width, the median distance between two pairs (the paper's code uses one
    width for both, the median distance between a score of one and a score of the other, which depends on the scales of
    both). A complement whose score is constant is independent: p = 1. Pairs of one template are exchanged with those of
    others, as in the paper, so that dependence by template counts as dependence.
    """
    n = len(model)
    name, meaning = "independence", "HSIC of s(~C) and s(M)"
    null = "the complement's score is independent of the model's"
    if n < 4:
        return Outcome(name, null, True, np.nan, meaning, np.nan, n)
    k, inner = _centred(complement), _centred(model)
    observed = float((k * inner).sum())
    rng = np.random.default_rng(seed)
    reached = 0
    for _ in range(n_permutations):
        order = rng.permutation(n)
        reached += (k[np.ix_(order, order)] * inner).sum() >= observed - 1e-12 * n
    return Outcome(name, null, True, observed / (n - 1) ** 2, meaning, (1 + reached) / (1 + n_permutations), n)


def _centred(values: Float[np.ndarray, " example"]) -> Float[np.ndarray, "example example"]:
    """A Gaussian kernel with the median distance for its width, centred; zero where all values are equal."""
    apart = np.abs(values[:, None] - values[None])
    upper = apart[np.triu_indices(len(values), 1)]
    width = float(np.median(upper)) or float(upper.max())
    if width == 0:
        return np.zeros_like(apart)
    kernel = np.exp(-(apart**2) / (2 * width**2))
    kernel -= kernel.mean(0)
    centred: np.ndarray = kernel - kernel.mean(1, keepdims=True)
    return centred


def _minimality(frame: pd.DataFrame) -> Outcome:
    """Null: every edge e of the circuit beats at least the share `quantile` of random edges of inflated circuits.

    An inflated circuit is C with a random walk added; its effect is D(C+, C+ without one random edge of the addition).
    For e the count of draws that D(C, C without e) exceeds is tested with a binomial test (smaller than `quantile`?),
    and p is multiplied by the number of edges (Bonferroni): the smallest is the p-value of the circuit, and an edge
    with a corrected p of at most 0.05 is redundant. Equal effects count against the edge, as in the paper's code: an
    edge without any effect is no better than a random one.
    """
    tested = frame["p_bonferroni"].dropna()
    return Outcome(
        "minimality", "every edge matters more than random added edges do", True,
        float(frame["redundant"].mean()) if len(tested) else np.nan, "share of redundant edges",
        float(tested.min()) if len(tested) else np.nan, len(tested),
    )  # fmt: skip


def relaxed(
    name: str, value: float | np.ndarray, drawn: Float[np.ndarray, " draw"], quantile: float, *, nearer: bool
) -> Outcome:
    """Sufficiency and partial necessity: is the circuit beyond a share of random circuits of its size?

    Sufficiency (`nearer`): null P(D(C, M) <= D(random, M)) <= quantile. Partial necessity: null P(D(~C, M) >
    D(~random, M)) <= quantile, in which the random circuits are drawn from the whole model, or from the edges outside
    C. A binomial test of the count of random circuits that C outdoes. A draw that scores the same as C (it may be C)
    counts against the circuit, in sufficiency too, where the paper's code counts it for it. Cutting C may do more
    damage than cutting everything; that a circuit is necessary in this sense does not make it the only one.
    """
    wins = int((value < drawn).sum() if nearer else (value > drawn).sum())
    n = len(drawn)
    verb = "alone is nearer to the model" if nearer else "when cut does more damage"
    where = " outside it" if name.endswith("outside") else ""
    null = f"the circuit {verb} than at most {quantile:.0%} of random circuits{where}"
    if not n:
        return Outcome(name, null, False, np.nan, "share of random circuits outdone", np.nan, 0)
    p = float(stats.binom.sf(wins - 1, n, quantile))
    return Outcome(name, null, False, wins / n, "share of random circuits outdone", p, n)


def hypothesis_tests(
    setup: Setup,
    circuit: Circuit,
    *,
    ablation: AblationName | Ablation = "paired",
    held_out: float = 0.5,
    seed: int = 0,
    quantile: float = 0.9,
    epsilon: float = 0.1,
    n_random: int = 100,
    n_permutations: int = 1000,
    max_edges: int | None = None,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> HypothesisTests:
    """Run the tests of Shi et al. 2024 on a circuit; see the functions of each for its null and statistic.

    Args:
        setup, ablation, held_out, seed, budget_mib, progress: as in `evaluate`.
        circuit: the circuit.
        quantile: share of random circuits (and random edges) that must be outdone; the paper's q*.
        epsilon: how far from 1/2 the share of pairs may be in the test of equivalence.
        n_random: random circuits, random circuits outside, and inflated circuits, this many of each. A relaxed test can
            only pass with at least 29 (0.9^29 < 0.05).
        n_permutations: of the test of independence.
        max_edges: test this many random edges of the circuit for minimality, not all.

    Raises:
        CircuitError: an empty circuit.
    """
    from crosspatch.attribution.ablation import resolve_ablation

    chosen = resolve_ablation(ablation, setup)
    judged, told = held_out_pairs(setup, held_out, seed)
    judge = Judge(judged, chosen, budget_mib=budget_mib, progress=progress)
    names, smaller = one_less(circuit, most=max_edges, seed=seed)
    whole = not (~circuit).n_edges
    inflations = [] if whole else random_inflations(circuit, n_random, seed=seed)
    outside = [] if whole else _outside(circuit, n_random, seed)
    random = random_like(circuit, n_random, seed=seed)
    inflated, less = [a for a, _ in inflations], [b for _, b in inflations]
    values = judge.values([judge.full, judge.empty, circuit, *smaller, *inflated, *less, *random])
    ends = np.cumsum([3, len(smaller), len(inflated), len(less)])
    without = judge.without([circuit, *random, *outside])
    return HypothesisTests(
        circuit=circuit,
        edges=names,
        clean=values[0],
        empty=values[1],
        kept=values[2],
        cut=without[0],
        without=values[ends[0] : ends[1]],
        inflated=values[ends[1] : ends[2]],
        inflated_without=values[ends[2] : ends[3]],
        random_kept=values[ends[3] :],
        random_cut=without[1 : 1 + n_random],
        outside_cut=without[1 + n_random :],
        outside_edges=np.array([c.n_edges for c in outside], dtype=np.int64),
        methodology=judge.methodology(
            pairs=told,
            held_out=held_out,
            seed=seed,
            quantile=quantile,
            epsilon=epsilon,
            n_random=n_random,
            n_permutations=n_permutations,
            runs=judge.n_runs,
        ),
    )


def _outside(circuit: Circuit, n: int, seed: int) -> list[Circuit]:
    """Random circuits of its size of edges that the circuit lacks; none where there are too few."""
    rest = ~circuit
    if rest.pruned().n_edges < circuit.n_edges:
        return []
    return random_circuits(circuit.shape, circuit.n_edges, n, seed=seed, spans=circuit.spans, within=rest)
