"""A linear classifier on the mean residual stream of a text, and the model up to it as a model of its own.

The mean over tokens of a linear head's outputs is the head's output on the mean. So the model up to block l with the
head in the place of the unembedding, read at every token, is a model whose "logits" of the two classes are the
classifier's, and everything that works on a `Model` works on it: effects, circuits, exact patching, ablation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crosspatch.attribution.setup import Setup
from crosspatch.errors import MetricError, ModelError, TaskError
from crosspatch.metrics import Metric, Targets
from crosspatch.metrics.base import View
from crosspatch.model import Model, record
from crosspatch.tasks.encode import Encoder

Training = Literal["adamw", "logistic"]
"""How a head is fitted: AdamW, rate 0.01, one epoch, as in the paper, which takes thousands of texts to get anywhere;
or logistic regression with an L2 penalty."""
TEXT = "text"
"""Name of the span of tokens that count."""
BATCH, RATE = 8, 0.01


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier: class 1 where `weight . x + bias` is above 0, x the mean residual stream behind a block.

    Attributes:
        layer: the block.
        weight, bias: in the units of the residual stream.
        trained_by: how, in words.
    """

    layer: int
    weight: Float[Tensor, " d_model"]
    bias: float
    trained_by: str = ""

    def logits(self, pooled: Float[Tensor, "text d_model"]) -> Float[Tensor, " text"]:
        """Above 0 for class 1."""
        return pooled.double() @ self.weight.double().to(pooled.device) + self.bias

    def predicts(self, pooled: Float[Tensor, "text d_model"]) -> Bool[np.ndarray, " text"]:
        """Whether each text is of class 1."""
        return (self.logits(pooled) > 0).cpu().numpy()


@dataclass(frozen=True)
class Prompts:
    """Texts as token ids.

    Attributes:
        ids: of each text.
        first: the first token of each that counts: the beginning-of-text token does not, unless asked for.
    """

    ids: list[list[int]]
    first: int

    def reads(self) -> list[tuple[int, ...]]:
        """Positions that are averaged over."""
        return [tuple(range(self.first, len(ids))) for ids in self.ids]


def prompts_of(model: Model, texts: Sequence[str], *, with_bos: bool = False, limit: int = 128) -> Prompts:
    """Tokenise texts.

    Args:
        with_bos: average over the beginning-of-text token as well (the authors' Pythia runs have none to leave out,
            their Gemma runs leave it out).
        limit: tokens after which a text is cut off.

    Raises:
        TaskError: no tokenizer, or a text without tokens.
    """
    if model.tokenizer is None:
        raise TaskError("the model has no tokenizer", where=model.name, fix="load it with one")
    encoder = Encoder(model.tokenizer)
    longest = min(limit, model.context or limit)
    ids = [encoder.encode(text).ids[:longest] for text in texts]
    first = 0 if with_bos else len(encoder.bos.ids)
    if empty := [i for i, each in enumerate(ids) if len(each) <= first]:
        raise TaskError("has no tokens", where=f"text {empty[0]}", fix="leave it out")
    return Prompts(ids, first)


@torch.no_grad()
def pooled(model: Model, prompts: Prompts, layers: Sequence[int]) -> dict[int, Float[Tensor, "text d_model"]]:
    """Mean residual streams of texts behind some blocks (-1: the input of the first), in double precision."""
    last = model.shape.n_layers - 1
    keys = {
        layer: (layer, "resid_post") if layer == last else (layer + 1, "resid_pre") for layer in dict.fromkeys(layers)
    }
    parts: dict[int, list[Tensor]] = {layer: [] for layer in keys}
    for at in range(0, len(prompts.ids), 64):
        run = record(model, prompts.ids[at : at + 64], keys=list(keys.values()))
        for layer, key in keys.items():
            x = run.packed(key).double()
            ends = zip(run.offset[:-1], run.offset[1:], strict=True)
            parts[layer] += [x[start + prompts.first : end].mean(0) for start, end in ends]
    return {layer: torch.stack(found) for layer, found in parts.items()}


def train_probe(
    x: Float[Tensor, "text d_model"], labels: Sequence[int], layer: int, how: Training = "logistic", seed: int = 0
) -> Probe:
    """Fit a head. The same inputs and seed give the same one.

    Raises:
        MetricError: an unknown way, or labels of one class only.
    """
    if how not in get_args(Training):
        raise MetricError(f"unknown training {how!r}", where="probe", fix=f"use {' or '.join(get_args(Training))}")
    if set(labels) != {0, 1}:
        raise MetricError("the texts are all of one class", where="probe", fix="give texts of both")
    y = torch.tensor(list(labels), dtype=torch.float64, device=x.device)
    if how == "logistic":
        weight, bias = fit_logistic(x, y)
        return Probe(layer, weight, bias, "logistic regression, L2 penalty 1, on inputs of unit spread")
    weight, bias = _adamw(x.double(), y, seed)
    return Probe(layer, weight, bias, f"AdamW, rate {RATE:g}, batches of {BATCH}, one epoch")


@torch.enable_grad()
def _adamw(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, float]:
    weight, bias = x.new_zeros(x.shape[1], requires_grad=True), x.new_zeros((), requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=RATE)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    for batch in order.split(BATCH):
        loss = nn.functional.binary_cross_entropy_with_logits(x[batch] @ weight + bias, y[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return weight.detach(), float(bias.detach())


def fit_logistic(x: Float[Tensor, "text d"], y: Sequence[int] | Tensor) -> tuple[Float[Tensor, " d"], float]:
    """Weight and bias of a logistic regression, L2 penalty 1, on inputs centred and divided by their overall spread.

    (One divisor for all dimensions: the directions that vary most stay those that are easiest to use.)
    """
    from sklearn.linear_model import LogisticRegression

    given = x.double().cpu().numpy()
    mean = given.mean(0)
    spread = float(np.sqrt(given.var(0).mean())) or 1.0
    found = LogisticRegression(max_iter=1000).fit((given - mean) / spread, np.asarray(y, dtype=int))
    weight = found.coef_[0] / spread
    return torch.from_numpy(weight).to(x.device), float(found.intercept_[0] - weight @ mean)


def choose_layer(
    x: dict[int, Float[Tensor, "text d_model"]], labels: Sequence[int], seed: int = 0
) -> tuple[int, dict[int, float]]:
    """The block at which a head learns ambiguous texts fastest: smallest cross-entropy on held-out ones, over five
    folds, after one epoch of AdamW. (Once it has converged, every block tells ambiguous texts apart.)

    The paper tuned on ambiguous data too for Pythia; for Gemma it took the block at which the head generalises worst,
    which needs the labels that one is said not to have.

    Returns:
        the block, and the cross-entropy in nats of each.
    """
    y = torch.tensor(list(labels), dtype=torch.float64)
    fold = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)) % min(5, len(y)))
    loss: dict[int, float] = {}
    for layer, each in x.items():
        total = 0.0
        for k in fold.unique():
            held = fold == k
            probe = train_probe(each[~held], y[~held].long().tolist(), layer, "adamw", seed)
            logits = probe.logits(each[held]).cpu()
            total += float(nn.functional.binary_cross_entropy_with_logits(logits, y[held], reduction="sum"))
        loss[layer] = total / len(y)
    return min(loss, key=loss.__getitem__), loss


@dataclass(frozen=True)
class ClassLogit(Metric):
    """The classifier's logit, signed so that the right class is positive: mean over the tokens that are read."""

    linear = True
    needs_wrong = True
    reads = "all"
    known_failure = "grows with the length of the residual stream, whatever the class"

    @property
    def name(self) -> str:
        return "class_logit"

    def values(self, view: View) -> Float[Tensor, " row"]:
        readout, targets = view.readout, view.targets
        logits = readout.logits
        example = readout.example.to(logits.device)
        ids = (each.to(logits.device)[example] for each in (targets.answers, targets.wrong))
        right, wrong = (view.gather(logits, each, float("nan"))[:, 0] for each in ids)
        group = view.group.to(logits.device)
        total = logits.new_zeros(len(view.rows)).index_add(0, group, right - wrong)
        return total / torch.bincount(group)


def probed(model: Model, probe: Probe) -> Model:
    """The model up to the probe's block, with the probe as its head: two "logits" per token, whose difference, averaged
    over tokens, is the probe's logit. Weights are shared with `model`.

    Raises:
        ModelError: a block or a width that the model does not have.
    """
    if not 0 <= probe.layer < model.shape.n_layers or len(probe.weight) != model.shape.d_model:
        raise ModelError(
            f"the probe reads {len(probe.weight)} numbers behind block {probe.layer}",
            where=repr(model),
            fix="use a probe that was trained on this model",
        )
    anatomy, n = model.anatomy, probe.layer + 1
    head = nn.Linear(model.shape.d_model, 2, device=anatomy.blocks[probe.layer].device, dtype=model.dtype)
    with torch.no_grad():
        half = probe.weight.to(head.weight) / 2
        head.weight.copy_(torch.stack([-half, half]))
        head.bias.copy_(torch.tensor([-probe.bias / 2, probe.bias / 2], dtype=torch.float64))
    head.requires_grad_(False)
    parts = dataclasses.replace(
        anatomy, blocks=anatomy.blocks[:n], final_norm=nn.Identity(), lm_head=head, softcap=None
    )
    shape = dataclasses.replace(model.shape, n_layers=n, vocab=2)
    return Model(model.hf, model.tokenizer, parts, shape, f"{model.name}, classifier behind block {probe.layer}")


def probe_setup(model: Model, prompts: Prompts, labels: Sequence[int]) -> Setup:
    """Texts on a model with a probe for its head, ready for effects of features.

    Args:
        model: see `probed`.
        labels: which class counts as right: the label, or the other attribute to see what that depends on.
    """
    n = len(prompts.ids)
    spans = [{TEXT: (prompts.first, len(ids)), "END": (len(ids) - 1, len(ids))} for ids in prompts.ids]
    right = torch.tensor(list(labels))[:, None]
    return Setup(
        model,
        prompts.ids,
        prompts.ids,
        prompts.reads(),
        [tuple(range(len(ids))) for ids in prompts.ids],
        ClassLogit(),
        Targets(right, 1 - right),
        spans,
        [""] * n,
        {"model": model.name, "metric": "class_logit"},
    )
