"""Scores of edges or nodes: one number per example and part, and where they came from. Plain data, no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float

from crosspatch.errors import ResultError
from crosspatch.graph import ModelShape, edge_table
from crosspatch.results.files import (
    digest,
    lists_to_rows,
    read_json,
    read_parquet,
    rows_to_lists,
    to_parquet,
    write_atomic,
    write_json,
)
from crosspatch.results.statistics import benjamini_hochberg, bootstrap_mean, resampler, sign_flip_p

FORMAT, VERSION = "crosspatch-scores", 1
ALL_TOKENS = ("*",)


@dataclass(eq=False)
class Scores:
    """How much each part matters: the (estimated or exact) effect of cutting it, `metric(clean) - metric(cut)`.

    Positive: the part helps. Scores of two methods are in the same unit and may be compared; which method, metric,
    ablation and pairs made them is in `origin`.

    Attributes:
        level: "edge" (numbered as in `edge_table(shape)`) or "node".
        parts: names of the edges or sites.
        values: `[example, span, part]`, in the metric's unit. NaN: not scored.
        spans: names of the spans; `("*",)`: all tokens summed.
        clean, cut: the metric of each example in the clean run, and with everything cut.
        clusters: what intervals resample.
        shape: the model's sizes.
        origin: JSON values: method, metric, ablation, steps, rule, task, model, examples, passes, seconds.
    """

    level: Literal["edge", "node"]
    parts: list[str]
    values: Float[np.ndarray, "example span part"]
    spans: tuple[str, ...]
    clean: Float[np.ndarray, " example"]
    cut: Float[np.ndarray, " example"]
    clusters: list[str]
    shape: ModelShape
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (len(self.clusters), len(self.spans), len(self.parts))
        if self.values.shape != wanted:
            raise ResultError(f"values of shape {self.values.shape}, expected {wanted}", where="Scores")
        if self.level == "edge" and len(self.parts) != len(edge_table(self.shape)):
            raise ResultError(f"{len(self.parts)} parts of {len(edge_table(self.shape))} edges", where="Scores")

    def __repr__(self) -> str:
        n, spans, parts = self.values.shape
        what = f"{self.origin.get('method', '?')} of {self.origin.get('metric', '?')}"
        at = "" if self.spans == ALL_TOKENS else f" at {spans} spans"
        return f"<Scores {what}: {parts:,} {self.level}s{at}, {n} examples>"

    @property
    def gap(self) -> float:
        """Mean metric of the clean run less that with everything cut: what there is to explain."""
        return float((self.clean - self.cut).mean())

    @cached_property
    def per_example(self) -> Float[np.ndarray, "example part"]:
        """Spans added up."""
        return self.values.sum(1)

    @cached_property
    def mean(self) -> Float[np.ndarray, " part"]:
        """Mean over examples, spans added up."""
        return self.per_example.mean(0)

    def select(self, examples: np.ndarray | list[int]) -> Scores:
        """Some examples only; an example may be there several times (a bootstrap resample)."""
        at = np.asarray(examples)
        return dataclasses.replace(
            self,
            values=self.values[at],
            clean=self.clean[at],
            cut=self.cut[at],
            clusters=[self.clusters[i] for i in at],
        )

    def frame(self, tests: bool = True, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """One row per part and span: mean, clustered bootstrap interval, share of the gap, p and corrected q.

        Args:
            tests: intervals and permutation tests too; they take a while for a million edges.
        """
        n, spans, parts = self.values.shape
        flat = self.values.transpose(1, 2, 0).reshape(spans * parts, n)
        frame = pd.DataFrame(
            {
                "part": np.tile(np.array(self.parts, dtype=object), spans),
                "span": np.repeat(np.array(self.spans, dtype=object), parts),
                "score": flat.mean(1),
            }
        )
        gap = self.gap
        frame["share"] = frame["score"] / gap if gap else np.nan
        if tests:
            band = bootstrap_mean(flat, resampler(n, self.clusters, draws=draws, seed=seed))
            p = sign_flip_p(flat, self.clusters, seed=seed)
            frame["low"], frame["high"], frame["p"], frame["q"] = band.low, band.high, p, benjamini_hochberg(p)
        return frame

    def top(self, n: int = 10, absolute: bool = True) -> pd.DataFrame:
        """The n strongest parts with their intervals, strongest first."""
        flat = self.values.mean(0).ravel()
        size = np.nan_to_num(np.abs(flat) if absolute else flat, nan=-np.inf)
        order = np.argsort(-size, kind="stable")[:n]
        span, part = np.unravel_index(order, self.values.shape[1:])
        band = bootstrap_mean(self.values[:, span, part].T, resampler(len(self.values), self.clusters))
        return pd.DataFrame(
            {
                "part": [self.parts[i] for i in part],
                "span": [self.spans[i] for i in span],
                "score": flat[order],
                "low": band.low,
                "high": band.high,
                "share": flat[order] / self.gap if self.gap else np.nan,
            }
        )

    def save(self, folder: str | Path) -> Path:
        """Write `scores.json` and a Parquet file with the values, atomically.

        Returns:
            The folder.
        """
        folder = Path(folder)
        n, spans, parts = self.values.shape
        values = to_parquet(pa.table({"values": rows_to_lists(self.values.reshape(n, spans * parts))}))
        name = f"scores-{digest(values)[:12]}.parquet"
        write_atomic(folder / name, values)
        write_json(
            folder / "scores.json",
            {
                "format": FORMAT,
                "version": VERSION,
                "level": self.level,
                "spans": list(self.spans),
                "parts": self.parts if self.level == "node" else None,
                "shape": dataclasses.asdict(self.shape),
                "clean": self.clean.tolist(),
                "cut": self.cut.tolist(),
                "clusters": self.clusters,
                "origin": self.origin,
                "values": name,
                "sha256": digest(values),
            },
        )
        return folder


def load_scores(folder: str | Path) -> Scores:
    """Read what `Scores.save` wrote.

    Raises:
        ResultError: a file that is missing, cut off, edited, or something else.
    """
    folder = Path(folder)
    place = str(folder / "scores.json")
    data = read_json(folder / "scores.json")
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise ResultError("holds no scores", where=place, fix="give the folder that `crosspatch circuit find` wrote")
    try:
        shape = ModelShape(**data["shape"])
        table = read_parquet(folder / Path(str(data["values"])).name, data["sha256"])
        parts = edge_table(shape).names() if data["parts"] is None else [str(name) for name in data["parts"]]
        spans, clusters = tuple(map(str, data["spans"])), [str(name) for name in data["clusters"]]
        values = lists_to_rows(table, "values", len(spans) * len(parts), place)
        values = values.reshape(len(clusters), len(spans), len(parts))
        clean, cut = (np.asarray(data[side], dtype=np.float64) for side in ("clean", "cut"))
        return Scores(data["level"], parts, values, spans, clean, cut, clusters, shape, dict(data["origin"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(f"cannot be read ({error})", where=place, fix="restore it from a copy") from error
