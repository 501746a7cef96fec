"""How good a dictionary is on a model's own activations, prompt by prompt.

| measure | definition |
|---|---|
| L0 | active features per token |
| FVU | sum of squared errors over sum of squared deviations from the mean activation, over all tokens |
| CE | mean cross-entropy of the next token: of the model, with the reconstruction put in, with an ablation put in |
| loss recovered | (CE ablated - CE reconstructed) / (CE ablated - CE model); the ablation, zero or mean, is named |
| density | share of tokens at which a feature is active; dead = none of the tokens measured |

Intervals resample whole prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.places import place_keys, read_place, write_place
from crosspatch.errors import DictionaryError
from crosspatch.model import Model, Readout, Row, Run, record, replay
from crosspatch.results.statistics import bootstrap_ratio_of_means, resampler

PerPrompt = Float[np.ndarray, " prompt"]
Ablation = Literal["zero", "mean"]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval (NaN where there are fewer than two prompts)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True, eq=False)
class Measures:
    """What `measure` found; one entry per prompt, sums over its tokens or its predictions.

    Args:
        tokens: tokens of every prompt that count.
        active: active features, summed over tokens.
        squared_error, deviation: of FVU.
        firing: tokens at which each feature is active.
        predictions: next tokens of every prompt that were predicted; None where CE was not measured.
        ce: cross-entropy in nats, summed over predictions: `model`, `dictionary`, `ablated`.
        ablation: what `ablated` is.
        decoder_max_cosine: of every feature, the largest cosine of its decoder row with another's.
    """

    tokens: PerPrompt
    active: PerPrompt
    squared_error: PerPrompt
    deviation: PerPrompt
    firing: Int[np.ndarray, " feature"]
    decoder_max_cosine: Float[np.ndarray, " feature"]
    predictions: PerPrompt | None = None
    ce: dict[str, PerPrompt] = field(default_factory=dict)
    ablation: str = "zero"

    @property
    def l0(self) -> Estimate:
        return _ratio(self.active, self.tokens)

    @property
    def fvu(self) -> Estimate:
        return _ratio(self.squared_error, self.deviation)

    @property
    def loss_recovered(self) -> Estimate:
        """See the module.

        Raises:
            DictionaryError: cross-entropy was not measured.
        """
        self._need_ce()
        return _ratio(self.ce["ablated"] - self.ce["dictionary"], self.ce["ablated"] - self.ce["model"])

    @property
    def ce_increase(self) -> Estimate:
        """Nats per prediction that the reconstruction costs."""
        self._need_ce()
        assert self.predictions is not None
        return _ratio(self.ce["dictionary"] - self.ce["model"], self.predictions)

    @property
    def density(self) -> Float[np.ndarray, " feature"]:
        return self.firing / self.tokens.sum()

    @property
    def dead(self) -> float:
        """Share of features that were active nowhere, in `tokens.sum()` tokens."""
        return float((self.firing == 0).mean())

    def density_histogram(self, bins: int = 20) -> tuple[Int[np.ndarray, " bin"], Float[np.ndarray, " edge"]]:
        """Living features by log10 of their density: counts and edges, from one token in all to every token."""
        edges = np.linspace(-np.log10(max(self.tokens.sum(), 10)), 0, bins + 1)
        alive = np.log10(self.density[self.firing > 0])
        return np.histogram(np.clip(alive, edges[0], edges[-1]), edges)[0], edges

    def summary(self) -> dict[str, Any]:
        """Plain data for a table or a card."""
        names = ["l0", "fvu", *(["ce_increase", "loss_recovered"] if self.ce else [])]
        found = {name: getattr(self, name) for name in names}
        return {
            **{name: {"value": e.value, "low": e.low, "high": e.high} for name, e in found.items()},
            "dead": self.dead,
            "tokens": int(self.tokens.sum()),
            "prompts": len(self.tokens),
            "decoder_max_cosine": float(np.median(self.decoder_max_cosine)),
            **({"ablation": self.ablation} if self.ce else {}),
        }

    def require(self, *, l0: float | None = None, fvu: float | None = None, tolerance: float = 0.05) -> None:
        """Check against published values: a dictionary that was read wrongly, or put in the wrong place, is far off.

        Args:
            l0, fvu: as published, by the definitions above.
            tolerance: largest relative difference.

        Raises:
            DictionaryError: a value differs by more.
        """
        for name, wanted in (("l0", l0), ("fvu", fvu)):
            found = getattr(self, name).value
            if wanted is not None and not abs(found - wanted) <= tolerance * abs(wanted):
                raise DictionaryError(
                    f"{name} is {found:.4g}, expected {wanted:.4g}",
                    where="Measures",
                    fix="check the place, the format, the text, and how the published value was measured",
                )

    def _need_ce(self) -> None:
        if not self.ce:
            raise DictionaryError("cross-entropy was not measured", where="Measures", fix="measure(..., ce=True)")


def measure(
    model: Model,
    dictionary: Dictionary,
    prompts: Sequence[Sequence[int]] | Int[Tensor, "prompt position"],
    *,
    drop_first: int = 1,
    ce: bool = True,
    ablation: Ablation = "zero",
    tokens_per_pass: int = 4096,
) -> Measures:
    """Measure a dictionary where it belongs in a model.

    Args:
        model, dictionary: the two.
        prompts: token ids; not those that it was trained on.
        drop_first: positions at the start of each prompt that do not count and are not replaced.
        ce: also run the model with the reconstruction, and with the ablation, put in.
        ablation: what loss recovered is measured against: `zero` or the `mean` activation over these prompts.
        tokens_per_pass: how many tokens go through the model together.

    Raises:
        DictionaryError: a dictionary of other widths than the model's, or prompts with nothing to measure.
        AddressError: the model has no such place.
    """
    texts = [[int(token) for token in prompt] for prompt in prompts]
    texts = [text for text in texts if len(text) > drop_first]
    if not texts:
        raise DictionaryError(f"no prompt has more than {drop_first} tokens", where="measure")
    parts = []
    for run in runs(model, dictionary, texts, tokens_per_pass, ce):
        parts.append(_reconstruction(run, dictionary, drop_first))
    n = sum(part["n"] for part in parts)
    mean = sum(part["sum"] for part in parts) / n
    deviation = np.concatenate([_deviation(part, mean) for part in parts])
    found = {name: np.concatenate([part[name] for part in parts]) for name in ("tokens", "active", "squared_error")}
    losses: dict[str, list[np.ndarray]] = {"model": [], "dictionary": [], "ablated": []}
    if ce:
        for run in runs(model, dictionary, texts, tokens_per_pass, ce):
            for name, value in _losses(run, dictionary, drop_first, mean if ablation == "mean" else None).items():
                losses[name].append(value)
    return Measures(
        **found,
        deviation=deviation,
        firing=sum((part["firing"] for part in parts), np.zeros(dictionary.width, dtype=np.int64)),
        decoder_max_cosine=max_cosines(dictionary.decoder).double().cpu().numpy(),
        predictions=np.array([len(text) - 1.0 for text in texts]) if ce else None,
        ce={name: np.concatenate(value) for name, value in losses.items()} if ce else {},
        ablation=ablation,
    )


@torch.no_grad()
def max_cosines(rows: Float[Tensor, "feature d"], block: int = 4096) -> Float[Tensor, " feature"]:
    """The largest cosine of every row with another one; -1 where there is no other."""
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    found = []
    for at in range(0, len(unit), block):
        cosines = unit[at : at + block] @ unit.T
        here = torch.arange(len(cosines), device=rows.device)
        cosines[here, here + at] = -1
        found.append(cosines.max(1).values)
    return torch.cat(found)


def runs(
    model: Model, dictionary: Dictionary, texts: list[list[int]], tokens_per_pass: int, read_all: bool
) -> Iterator[Run]:
    """The prompts through the model, in order, a few at a time."""
    keys = place_keys(model, {*dictionary.reads, *dictionary.writes})
    at = 0
    while at < len(texts):
        end, tokens = at, 0
        while end < len(texts) and (end == at or tokens + len(texts[end]) <= tokens_per_pass):
            tokens += len(texts[end])
            end += 1
        read = [list(range(len(text))) for text in texts[at:end]] if read_all else None
        yield record(model, texts[at:end], keys=keys, read=read)
        at = end


@torch.no_grad()
def _reconstruction(run: Run, dictionary: Dictionary, drop_first: int) -> dict[str, Any]:
    """Per prompt: tokens, active features, squared error, and what the deviation from the mean needs."""
    x, y = read_place(run, dictionary.reads), read_place(run, dictionary.writes)
    for name, have, want in (("reads", x, dictionary.d_in), ("writes", y, dictionary.d_out)):
        if have.shape[1] != want:
            raise DictionaryError(
                f"{name} {want} numbers per token, the model has {have.shape[1]} there", where=repr(dictionary)
            )
    counts = torch.tensor([len(text) for text in run.tokens])
    position = torch.cat([torch.arange(int(count)) for count in counts])
    keep = (position >= drop_first).to(x.device)
    prompt = torch.repeat_interleave(torch.arange(len(counts)), counts).to(x.device)[keep]
    x, y = x[keep], y[keep].double()
    f = dictionary.encode(x)
    active = f > 0
    error = (y - dictionary.decode(f, x).double()).pow(2).sum(1)

    def per_prompt(values: Tensor) -> np.ndarray:
        zeros = torch.zeros(len(counts), *values.shape[1:], dtype=torch.float64, device=values.device)
        return zeros.index_add(0, prompt, values.double()).cpu().numpy()

    sums = per_prompt(y)
    return {
        "n": len(y),
        "sum": sums.sum(0),
        "sums": sums,
        "squares": per_prompt(y.pow(2).sum(1)),
        "tokens": per_prompt(torch.ones_like(error)),
        "active": per_prompt(active.sum(1)),
        "squared_error": per_prompt(error),
        "firing": active.sum(0).cpu().numpy(),
    }


def _deviation(part: dict[str, Any], mean: np.ndarray) -> PerPrompt:
    """Sum over a prompt's tokens of the squared distance from the mean of all."""
    return part["squares"] - 2 * part["sums"] @ mean + part["tokens"] * (mean @ mean)


@torch.no_grad()
def _losses(run: Run, dictionary: Dictionary, drop_first: int, mean: np.ndarray | None) -> dict[str, PerPrompt]:
    """Cross-entropy of every prompt, summed: as it is, with the reconstruction, with the ablation."""
    model, x = run.model, read_place(run, dictionary.reads)
    put_in = {"dictionary": dictionary.reconstruct(x).to(x)}
    constant = torch.zeros(dictionary.d_out) if mean is None else torch.from_numpy(mean)
    put_in["ablated"] = constant.to(x).expand(len(x), -1)
    found = {"model": _cross_entropy(run.logits(), run)}
    for name, value in put_in.items():
        rows = []
        for i, text in enumerate(run.tokens):
            positions = range(drop_first, len(text))
            mine = value[run.offset[i] + drop_first : run.offset[i + 1]].chunk(len(dictionary.writes), dim=1)
            pairs = zip(dictionary.writes, mine, strict=True)
            rows.append(Row(i, tuple(edit for place, v in pairs for edit in write_place(model, place, positions, v))))
        totals = np.zeros(len(rows))

        def add(readout: Readout, totals: np.ndarray = totals) -> None:
            for row in readout.row.unique().tolist():
                mine = readout.row == row
                totals[row] = _one(readout.logits[mine.to(readout.logits.device)], run.tokens[row])

        replay(run, rows, add)
        found[name] = totals
    return found


def _cross_entropy(logits: Float[Tensor, "read vocab"], run: Run) -> PerPrompt:
    pairs = zip(logits.split([len(text) for text in run.tokens]), run.tokens, strict=True)
    return np.array([_one(mine, text) for mine, text in pairs])


def _one(logits: Float[Tensor, "position vocab"], text: list[int]) -> float:
    """Sum over positions of -log p(next token)."""
    following = torch.tensor(text[1:], device=logits.device)
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), following, reduction="sum"))


def _ratio(above: PerPrompt, below: PerPrompt) -> Estimate:
    """Ratio of sums, prompts resampled as wholes."""
    total = float(below.sum())
    value = float(above.sum()) / total if total else float("nan")
    ends = bootstrap_ratio_of_means(above[None], below, resampler(len(above)), min_gap=0.0)
    return Estimate(value, float(ends.low[0]), float(ends.high[0]))
