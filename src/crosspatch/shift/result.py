"""What SHIFT and its baselines came to: predictions text by text, and the accuracies that follow. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from crosspatch.errors import ResultError
from crosspatch.results.files import read_json, write_json
from crosspatch.results.statistics import bootstrap_mean, holm, interval_of, resampler, sign_flip_p

FORMAT, VERSION, FILE = "crosspatch-shift", 1, "shift.json"
Kind = Literal["baseline", "SHIFT", "control", "skyline"]
ORIGINAL = "original"


@dataclass(frozen=True, eq=False)
class Method:
    """One way to a classifier, and what it says about the test texts.

    Attributes:
        name: in tables.
        kind: what it is there for.
        told: what it knew beside the labels of the ambiguous set.
        ablated: how many features or neurons were taken out.
        predicted: class 1 or not, by draw (more than one for random features) and text.
    """

    name: str
    kind: Kind
    told: str
    ablated: int
    predicted: Bool[np.ndarray, "draw text"]


@dataclass(frozen=True)
class JudgedFeature:
    """A feature, what it does to the classifier, and what was said about it.

    Attributes:
        name: `r2.post/17`.
        effect: on the classifier's logit on ambiguous texts, the right class being positive; `low`, `high`: its
            interval over texts.
        verdict, reason: of the judge.
        in_circuit: False: a feature of the input that only the control looks at.
        active_on: tokens that it is most active on.
        promotes: tokens that it promotes.
    """

    name: str
    effect: float
    low: float | None
    high: float | None
    verdict: str
    reason: str
    in_circuit: bool
    active_on: tuple[str, ...] = ()
    promotes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ShiftResult:
    """Make it with `shift`.

    Attributes:
        methods: the original classifier first.
        labels, spurious: of the test texts.
        group_names: the four groups, in the order of `data.GROUPS`.
        features: what was judged, largest effect first.
        n_errors: error terms in the circuit, which nobody judges.
        about: JSON values: everything that the numbers depend on.
        left_out: methods that were not run, and why.
    """

    methods: Sequence[Method]
    labels: Int[np.ndarray, " text"]
    spurious: Int[np.ndarray, " text"]
    group_names: tuple[str, str, str, str]
    features: Sequence[JudgedFeature]
    n_errors: int
    about: Mapping[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<ShiftResult: {len(self.methods)} methods on {len(self.labels)} texts>"

    def method(self, name: str) -> Method:
        """By name.

        Raises:
            ResultError: none of that name.
        """
        for method in self.methods:
            if method.name == name:
                return method
        names = ", ".join(m.name for m in self.methods)
        raise ResultError(f"no method {name!r}", where="ShiftResult", fix=f"there are {names}")

    def right(self, name: str) -> Float[np.ndarray, " text"]:
        """Share of a method's draws that give each text its label."""
        return (self.method(name).predicted == (self.labels == 1)).mean(0)

    def groups(self, name: str) -> dict[str, float]:
        """A method's accuracy in each group."""
        right, group = self.right(name), 2 * self.labels + self.spurious
        return {label: float(right[group == g].mean()) for g, label in enumerate(self.group_names)}

    def group_intervals(self, name: str, *, draws: int = 2000, seed: int = 0) -> dict[str, tuple[float, float, float]]:
        """A method's accuracy in each group, and the ends of its interval over the group's texts."""
        right, group = self.right(name), 2 * self.labels + self.spurious
        found = {}
        for g, label in enumerate(self.group_names):
            own = right[group == g]
            if not len(own):
                found[label] = (float("nan"),) * 3
                continue
            ends = bootstrap_mean(own[None], resampler(len(own), draws=draws, seed=seed))
            mean = float(own.mean())
            found[label] = (mean, *_widened(mean, float(ends.low[0]), float(ends.high[0]), len(own)))
        return found

    def frame(self, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """One row for each method.

        `label` and `spurious` are the shares of test texts whose prediction is the label, or the other attribute (0.5:
        it says nothing of it); `worst` is the accuracy of the worst group. Intervals resample texts (of several draws
        the mean is taken; `band_low` and `band_high` are the draws' extremes); where all texts agree, which resampling
        takes for certainty, they are the exact binomial ones. `gain` is the accuracy beyond the
        original's on the same texts, `p` its sign-flip p-value and `p_holm` that with Holm's correction over methods.
        """
        sampler = resampler(len(self.labels), draws=draws, seed=seed)
        base, group = self.right(ORIGINAL), 2 * self.labels + self.spurious
        rows = []
        for method in self.methods:
            right = method.predicted == (self.labels == 1)
            other = (method.predicted == (self.spurious == 1)).mean(0)
            means = np.stack([right.mean(0), other, right.mean(0) - base])
            ends = bootstrap_mean(means, sampler)
            worst = self._worst(right, np.ones((1, len(self.labels))))
            worst_ends = interval_of(self._worst(right, sampler.weights)[None], sampler)
            band, worst_group = right.mean(1), min(self.groups(method.name).items(), key=lambda item: item[1])[0]
            n, n_worst = len(self.labels), int((group == self.group_names.index(worst_group)).sum())
            rows.append(
                {
                    "method": method.name,
                    "kind": method.kind,
                    "told": method.told,
                    "ablated": method.ablated,
                    "draws": len(right),
                    **_shares("label", means[0].mean(), ends.low[0], ends.high[0], n),
                    **_shares("spurious", means[1].mean(), ends.low[1], ends.high[1], n),
                    **_shares("worst", worst[0], worst_ends.low[0], worst_ends.high[0], n_worst),
                    "worst_group": worst_group,
                    **_columns("gain", means[2].mean(), ends.low[2], ends.high[2]),
                    "band_low": band.min(),
                    "band_high": band.max(),
                    "p": sign_flip_p(means[2:], seed=seed)[0] if method.name != ORIGINAL else np.nan,
                }
            )
        frame = pd.DataFrame(rows)
        frame["p_holm"] = holm(frame["p"].to_numpy())
        return frame

    def _worst(
        self, right: Bool[np.ndarray, "draw text"], weights: Float[np.ndarray, "sample text"]
    ) -> Float[np.ndarray, " sample"]:
        """Accuracy in the worst group, meaned over draws; groups that a sample lacks do not count."""
        group = 2 * self.labels + self.spurious
        found = []
        for g in range(4):
            w = weights[:, group == g]
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append((w @ right[:, group == g].T) / w.sum(1, keepdims=True))
        return np.nanmin(np.stack(found), axis=0).mean(1)

    def save(self, folder: str | Path) -> Path:
        """Write `shift.json`, atomically; the folder."""
        folder = Path(folder)
        methods = [
            {**asdict(method), "predicted": ["".join(map(str, row)) for row in method.predicted.astype(int)]}
            for method in self.methods
        ]
        data = {
            "format": FORMAT,
            "version": VERSION,
            "methods": methods,
            "labels": "".join(map(str, self.labels)),
            "spurious": "".join(map(str, self.spurious)),
            "group_names": list(self.group_names),
            "features": [asdict(feature) for feature in self.features],
            "n_errors": self.n_errors,
            "about": dict(self.about),
            "left_out": dict(self.left_out),
        }
        write_json(folder / FILE, data)
        return folder


def load_shift(folder: str | Path) -> ShiftResult:
    """Read what `ShiftResult.save` wrote.

    Raises:
        ResultError: missing, cut off, edited, or something else.
    """
    path = Path(folder) / FILE
    data = read_json(path)
    try:
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise ValueError("another format")
        methods = [
            Method(**{**entry, "predicted": np.stack([_bits(row) == 1 for row in entry["predicted"]])})
            for entry in data["methods"]
        ]
        labels, spurious = _bits(data["labels"]), _bits(data["spurious"])
        if any(m.predicted.shape[1] != len(labels) for m in methods) or len(labels) != len(spurious):
            raise ValueError("predictions of other texts")
        features = [
            JudgedFeature(**{**entry, **{name: tuple(entry[name]) for name in ("active_on", "promotes")}})
            for entry in data["features"]
        ]
        names = tuple(map(str, data["group_names"]))
        if not len(labels):
            raise ValueError("no texts")
        if len(names) != 4 or ORIGINAL not in [m.name for m in methods]:
            raise ValueError("groups or the original classifier are missing")
        return ShiftResult(
            methods, labels, spurious, names, features, int(data["n_errors"]), data["about"], data["left_out"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultError(
            f"is not what crosspatch shift writes ({error})", where=str(path), fix="restore it from a copy"
        ) from error


def _bits(text: str) -> Int[np.ndarray, " text"]:
    if set(text) - {"0", "1"}:
        raise ValueError("a class that is not 0 or 1")
    return np.array([int(c) for c in text], dtype=np.int64)


def _widened(share: float, low: float, high: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share; where all n texts agree the exact binomial one (Clopper and Pearson 1934)."""
    far = 1 - ((1 - level) / 2) ** (1 / max(n, 1))
    if share == 0:
        return 0.0, float(np.fmax(high, far))
    return (float(np.fmin(low, 1 - far)), 1.0) if share == 1 else (low, high)


def _shares(name: str, value: float, low: float, high: float, n: int) -> dict[str, float]:
    return _columns(name, value, *_widened(float(value), float(low), float(high), n))


def _columns(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
