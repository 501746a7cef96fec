"""From ambiguous texts to the features that a classifier rests on, with a card for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.points import Progress
from crosspatch.attribution.setup import Setup
from crosspatch.dictionaries.cards import feature_cards
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.places import check_place, place_layer, read_place
from crosspatch.errors import CircuitError
from crosspatch.features.basis import Bases, bases_of
from crosspatch.features.effects import feature_effects
from crosspatch.features.found import FeatureEffects
from crosspatch.features.nodes import NodeSet
from crosspatch.model import Model, record
from crosspatch.shift.data import Labelled, Splits
from crosspatch.shift.judges import ByScores, Candidate
from crosspatch.shift.probe import (
    TEXT,
    Probe,
    Prompts,
    Training,
    choose_layer,
    fit_logistic,
    pooled,
    probe_setup,
    probed,
    prompts_of,
    train_probe,
)

Stage = Callable[[str, float, float], None]
"""Progress: name of the stage, done, total."""
INPUT_PLACE = "input"
Means = dict[str, Float[np.ndarray, " node"]]


@dataclass(frozen=True)
class Settings:
    """What a run of SHIFT depends on beside model, dictionaries, texts and judge.

    Attributes:
        layer: the block behind which the classifier reads; None: see `choose_layer`.
        training: of every head (see `probe.Training`).
        method, steps, rule: of effects (see `feature_effects`). The paper: zero ablation, integrated gradients, 10.
        nodes: the circuit is so many nodes of largest effect (features and error terms) ...
        threshold: ... or all above a threshold in absolute value (the paper's T_N), where one is given.
        texts: how many texts effects are averaged over, at most (the paper: 100).
        input_features: how many features of the input the embedding-only control may take out.
        with_bos: let the beginning-of-text token count: in the mean, in effects, and where features are taken out.
        limit: tokens after which a text is cut off.
        retrain: fit heads again on what the ablated model gives.
        n_random: draws of random features.
        seed: of heads, draws and intervals.
        budget_mib: memory for one chunk of texts.
    """

    layer: int | None = None
    training: Training = "logistic"
    method: str = "ig"
    steps: int = 10
    rule: str = "midpoint"
    nodes: int = 200
    threshold: float | None = None
    texts: int = 100
    input_features: int = 30
    with_bos: bool = False
    limit: int = 128
    retrain: bool = True
    n_random: int = 5
    seed: int = 0
    budget_mib: float | None = None


@dataclass(frozen=True, eq=False)
class ProbeCircuit:
    """A classifier and what it rests on; make it with `probe_circuit`.

    Attributes:
        model: the whole model.
        probed: the model up to the classifier (see `probe.probed`).
        probe: the classifier, trained on the ambiguous set.
        layers: cross-entropy on held-out ambiguous texts by block; empty where the block was given.
        splits: the texts.
        settings: with the block that was used.
        bases: every place up to the classifier's block that has a dictionary.
        effects: of all nodes on the signed logit, on the ambiguous set.
        nodes: the circuit.
        candidates: its features, largest effect first, then features of the input that only a control looks at.
    """

    model: Model
    probed: Model
    probe: Probe
    layers: Mapping[int, float]
    splits: Splits
    settings: Settings
    bases: Bases
    effects: FeatureEffects
    nodes: NodeSet
    candidates: Sequence[Candidate]
    _pooled: dict[tuple[tuple[str, ...], int], Tensor] = field(default_factory=dict, repr=False)

    @property
    def circuit_features(self) -> list[tuple[str, int]]:
        """Features of the circuit: place and number."""
        return [(node.place, node.feature) for node in self.nodes if node.feature is not None]

    def prompts(self, data: Labelled) -> Prompts:
        """Texts as tokens."""
        return prompts_of(self.model, data.texts, with_bos=self.settings.with_bos, limit=self.settings.limit)

    def setup(self, data: Labelled, right: Sequence[int] | None = None) -> Setup:
        """A set of texts, ready for effects and ablation; `right`: which class counts as right, the label if None."""
        return probe_setup(self.probed, self.prompts(data), data.labels if right is None else right)

    def pooled(self, data: Labelled, layer: int | None = None) -> Float[Tensor, "text d_model"]:
        """Mean residual streams of a set, of the model as it is."""
        at = self.settings.layer if layer is None else layer
        assert at is not None  # filled in by `probe_circuit`
        if (data.texts, at) not in self._pooled:
            self._pooled[data.texts, at] = pooled(self.model, self.prompts(data), [at])[at]
        return self._pooled[data.texts, at]

    def effects_by_attribute(self, bases: Bases) -> tuple[Means, Means]:
        """Mean effects on the logit signed by the other attribute, and signed by the label, over balanced texts.

        The two agree on texts in which the attributes coincide, and have opposite signs on all others.
        """
        apart = []
        for groups in ((0, 3), (1, 2)):
            chosen = _some(self.splits.balanced, groups, self.settings.texts // 2)
            apart.append(_effects(self.setup(chosen), bases, self.settings).mean)
        same, opposite = ({place: mean[0] for place, mean in means.items()} for means in apart)
        other, label = ({p: (same[p] + sign * opposite[p]) / 2 for p in same} for sign in (-1, 1))
        return other, label


def probe_circuit(
    model: Model,
    dictionaries: Iterable[Dictionary] | Mapping[str, Dictionary],
    splits: Splits,
    settings: Settings | None = None,
    *,
    card_texts: Sequence[str] = (),
    progress: Stage | None = None,
) -> ProbeCircuit:
    """Train the classifier on ambiguous texts, and find the features that its logit rests on (Marks et al. 2025,
    arXiv 2403.19647, section 4, steps 0 and 1).

    Args:
        dictionaries: autoencoders at any places; those behind the classifier's block are left out.
        card_texts: further texts for the cards, beside the ambiguous ones.
        progress: called with a stage's name, what is done and the total.

    Raises:
        CircuitError: no dictionary at or before the classifier's block; no node.
        As `feature_effects`.
    """
    settings = settings or Settings()
    told = progress or (lambda name, done, total: None)
    prompts = prompts_of(model, splits.ambiguous.texts, with_bos=settings.with_bos, limit=settings.limit)
    layers: dict[int, float] = {}
    told("classifier", 0, 1)
    if settings.layer is None:
        every = pooled(model, prompts, range(model.shape.n_layers))
        layer, layers = choose_layer(every, splits.ambiguous.labels, settings.seed)
        settings, x = replace(settings, layer=layer), every[layer]
    else:
        layer = settings.layer
        if not 0 <= layer < model.shape.n_layers:
            raise CircuitError(f"no block {layer}", where="layer", fix=f"use 0 to {model.shape.n_layers - 1}")
        x = pooled(model, prompts, [layer])[layer]
    probe = train_probe(x, splits.ambiguous.labels, layer, settings.training, settings.seed)
    cut = probed(model, probe)
    given = list(dictionaries.values() if isinstance(dictionaries, Mapping) else dictionaries)
    bases = bases_of(cut, [d for d in given if all(place_layer(check_place(p)) <= layer for p in d.reads)])
    if not bases:
        raise CircuitError(
            f"no dictionary at or before block {layer}", where="dictionaries", fix="give some, or a later block"
        )
    chosen = _some(splits.ambiguous, (0, 3), settings.texts)
    some = prompts_of(model, chosen.texts, with_bos=settings.with_bos, limit=settings.limit)
    effects = _effects(
        probe_setup(cut, some, chosen.labels), bases, settings, lambda done, total: told("effects", done, total)
    )
    nodes = effects.top(settings.nodes) if settings.threshold is None else effects.above(settings.threshold)
    if not nodes.n_features:
        raise CircuitError("the circuit has no feature", where="threshold", fix="lower it, or give a number of nodes")
    texts = [*prompts.ids, *prompts_of(model, card_texts, limit=settings.limit).ids] if card_texts else prompts.ids
    candidates = _candidates(model, bases, effects, nodes, settings.input_features, texts, prompts.first, told)
    return ProbeCircuit(model, cut, probe, layers, splits, settings, bases, effects, nodes, candidates)


def _effects(setup: Setup, bases: Bases, settings: Settings, progress: Progress | None = None) -> FeatureEffects:
    return feature_effects(
        setup, bases, "zero", method=settings.method, steps=settings.steps, rule=settings.rule, spans=(TEXT,),
        budget_mib=settings.budget_mib, progress=progress,
    )  # fmt: skip


def _some(data: Labelled, groups: Sequence[int], n: int) -> Labelled:
    """The first texts of some groups, equally many of each, n in all or as many as there are."""
    members = [np.flatnonzero(data.groups == g)[: max(1, n // len(groups))] for g in groups]
    size = min(map(len, members))
    return data.select([int(i) for each in members for i in each[:size]])


def _candidates(
    model: Model,
    bases: Bases,
    effects: FeatureEffects,
    nodes: NodeSet,
    n_input: int,
    texts: list[list[int]],
    first: int,
    told: Stage,
) -> list[Candidate]:
    wanted = {basis.place: [int(i) for i in nodes.keep[basis.place][0, : basis.width].nonzero()[0]] for basis in bases}
    own = {(place, feature) for place, features in wanted.items() for feature in features}
    for place, feature in input_features(effects, n_input):
        if (place, feature) not in own:
            wanted[place].append(feature)
    made: list[Candidate] = []
    for i, basis in enumerate(bases):
        told("cards", i, len(bases))
        if features := wanted[basis.place]:
            dictionary = basis.dictionary  # type: ignore[attr-defined]  # `bases_of` was given dictionaries only
            cards = feature_cards(model, dictionary, texts, features, drop_first=first)
            means = effects.mean[basis.place][0]
            made += [Candidate(basis.place, f, float(means[f]), c) for f, c in zip(features, cards, strict=True)]
    return sorted(made, key=lambda c: ((c.place, c.feature) not in own, -abs(c.effect), c.name))


def input_features(effects: FeatureEffects, n: int) -> list[tuple[str, int]]:
    """The n features of the input of largest effect; none where the input has no dictionary."""
    if INPUT_PLACE not in effects.places:
        return []
    means = abs(effects.mean[INPUT_PLACE][0, :-1])
    return [(INPUT_PLACE, int(i)) for i in (-means).argsort(kind="stable")[:n] if means[i] > 0]


def oracle_judge(found: ProbeCircuit) -> ByScores:
    """Ablates features whose effect helps the logit to tell the other attribute more than to tell the label.

    It knows both labels of the balanced training set: what a judge could know at best, not a judge to be had.
    """
    other, label = found.effects_by_attribute(found.bases)
    scores = {c.name: (float(other[c.place][c.feature]), float(label[c.place][c.feature])) for c in found.candidates}
    return ByScores(scores, "oracle: effects by both labels of the balanced training set", "effect on the logit")


@torch.no_grad()
def probe_judge(found: ProbeCircuit) -> ByScores:
    """Ablates features that serve a classifier of the other attribute more than one of the label.

    At each place two logistic regressions are fitted on mean activations of the balanced training set; a feature's
    score is the difference of its mean between the two classes times the regression's weight along its decoder row (the
    latent score of the SCR evaluation in SAEBench, Karvonen et al. 2025, arXiv 2503.09532, which takes its size). It
    needs texts in which the two attributes do not coincide, with both labels, which SHIFT itself does not.
    """
    data = found.splits.balanced
    prompts = found.prompts(data)
    wanted: dict[str, list[int]] = {}
    for candidate in found.candidates:
        wanted.setdefault(candidate.place, []).append(candidate.feature)
    bases = [basis for basis in found.bases if basis.place in wanted]
    sums: dict[str, list[Tensor]] = {basis.place: [] for basis in bases}
    for at in range(0, len(prompts.ids), 64):
        run = record(found.probed, prompts.ids[at : at + 64], keys=[basis.key for basis in bases])
        for basis in bases:
            x = read_place(run, (basis.place,))
            index = torch.tensor(wanted[basis.place], device=x.device)
            both = torch.cat([x.double(), basis.only(x, index).double()], -1)
            ends = zip(run.offset[:-1], run.offset[1:], strict=True)
            sums[basis.place] += [both[start + prompts.first : end].mean(0).cpu() for start, end in ends]
    scores: dict[str, tuple[float, float]] = {}
    for basis in bases:
        means = torch.stack(sums[basis.place])
        x, f = means[:, : -len(wanted[basis.place])], means[:, -len(wanted[basis.place]) :]
        rows = []
        for classes in (data.spurious, data.labels):
            y = torch.tensor(classes, dtype=torch.bool)
            weight, _ = fit_logistic(x, y.tolist())
            index = torch.tensor(wanted[basis.place])
            rows.append((f[y].mean(0) - f[~y].mean(0)) * basis.along(weight[None].float(), index)[0].double().cpu())
        for i, feature in enumerate(wanted[basis.place]):
            scores[f"{basis.place}/{feature}"] = float(rows[0][i]), float(rows[1][i])
    said = "classifiers of both attributes (not a person), with both labels of the balanced training set"
    return ByScores(scores, said, "difference of means times weight")
