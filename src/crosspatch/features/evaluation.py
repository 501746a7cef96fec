"""What the evaluation of sets of nodes found: raw values per pair, and the shares that follow from them. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from crosspatch.features.nodes import NodeSet
from crosspatch.results import statistics
from crosspatch.results.statistics import bootstrap_mean, bootstrap_ratio_of_means, resampler


@dataclass(eq=False)
class FeatureEvaluation:
    """Sets of nodes on the same pairs; make it with `evaluate_nodes`. All values are raw metric values per pair.

    Attributes:
        sets: what was evaluated.
        pairs: digests of the pairs.
        clusters: what intervals resample.
        model, empty: the whole model; every node replaced.
        kept: all nodes outside the set replaced.
        cut: the set's nodes replaced, all others kept.
        random_kept, random_cut: the same of random sets with as many features at every place.
        about: JSON values: everything that the numbers depend on.
    """

    sets: list[NodeSet]
    pairs: list[str]
    clusters: list[str]
    model: Float[np.ndarray, " example"]
    empty: Float[np.ndarray, " example"]
    kept: Float[np.ndarray, "set example"]
    cut: Float[np.ndarray, "set example"]
    random_kept: Float[np.ndarray, "set draw example"]
    random_cut: Float[np.ndarray, "set draw example"]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> Float[np.ndarray, " example"]:
        """Whole model minus every node replaced."""
        return self.model - self.empty

    @property
    def has_gap(self) -> bool:
        """Whether there is something to explain: the interval of the mean gap does not hold 0. Shares of a gap that
        may be 0 mean nothing."""
        sampler = resampler(len(self.gap), self.clusters, draws=self.about["n_boot"], seed=self.about["seed"])
        ends = bootstrap_mean(self.gap[None], sampler)
        return bool(ends.low[0] > 0 or ends.high[0] < 0)

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each set: numbers of features and error terms, raw means `m_model`, `m_kept`, `m_cut`, `m_empty`,
        `faithfulness` and `completeness` (ratios of means; NaN where the mean gap is below a tenth of the median one),
        95 % intervals over resampled clusters (`_low`, `_high`), and the 2.5, 50 and 97.5 % quantiles of random sets
        (`random_...`)."""
        gap, floor = self.gap, statistics.default_min_gap(self.gap)
        sampler = resampler(len(gap), self.clusters, draws=self.about["n_boot"], seed=self.about["seed"])
        table = pd.DataFrame(
            {
                "set": [nodes.name or f"set {i}" for i, nodes in enumerate(self.sets)],
                "features": [nodes.n_features for nodes in self.sets],
                "error_terms": [nodes.n_errors for nodes in self.sets],
                "m_model": float(self.model.mean()),
                "m_kept": self.kept.mean(1),
                "m_cut": self.cut.mean(1),
                "m_empty": float(self.empty.mean()),
            }
        )
        for name, values, drawn in (
            ("faithfulness", self.kept, self.random_kept),
            ("completeness", self.cut, self.random_cut),
        ):
            effects = values - self.empty
            ends = bootstrap_ratio_of_means(effects, gap, sampler, floor)
            table[name] = statistics.ratio_of_means(effects, gap, floor)
            table[f"{name}_low"], table[f"{name}_high"] = ends.low, ends.high
            flat = (drawn - self.empty).reshape(-1, len(gap))
            random = statistics.ratio_of_means(flat, gap, floor).reshape(len(drawn), -1)
            for label, q in (("low", 0.025), ("median", 0.5), ("high", 0.975)):
                known = random.shape[1] > 0
                table[f"random_{name}_{label}"] = np.quantile(random, q, axis=1) if known else np.nan
        return table

    def __str__(self) -> str:
        about = self.about
        lines = [
            f"{len(self.sets)} set(s) on {len(self.model)} pairs, {about['replacement']} replacement from block "
            f"{about['start_block']} on, error terms: {about['error_terms']}: model {self.model.mean():.3g}, "
            f"every node replaced {self.empty.mean():.3g}"
        ]
        if not self.has_gap:
            lines.append("the two cannot be told apart: there is nothing to explain, and no share below means anything")
        for row in self.frame.to_dict("records"):
            lines.append(
                f"  {row['set']}: {self._size(row)}: faithfulness "
                f"{row['faithfulness']:.3f} [{row['faithfulness_low']:.3f}, {row['faithfulness_high']:.3f}], random "
                f"{row['random_faithfulness_low']:.2f} to {row['random_faithfulness_high']:.2f}; completeness "
                f"{row['completeness']:.3f} [{row['completeness_low']:.3f}, {row['completeness_high']:.3f}]"
            )
        return "\n".join(lines)

    def _size(self, row: Mapping[str, Any]) -> str:
        """What a row of the table is made of, in words."""
        return f"{row['features']} features, {row['error_terms']} error terms"
