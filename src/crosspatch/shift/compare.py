"""SHIFT, everything that it has to beat, and everything that knows more than it (Marks et al. 2025, arXiv 2403.19647,
section 4 and table 2), on the same held-out texts.

| method | kind | what it is |
|---|---|---|
| original | baseline | the classifier of the ambiguous set |
| concept bottleneck | baseline | logistic regression on cosines with words of the labels |
| random features | baseline | as many features as SHIFT took out, drawn among those with any effect, several draws |
| SHIFT | SHIFT | the features that were judged irrelevant taken out |
| SHIFT, retrained | SHIFT | and the head fitted again on the ambiguous set |
| random features, retrained | baseline | what retraining alone does |
| input features only (, retrained) | control | the same judge on features of the embedding alone |
| cue words removed | control | no features at all: words that tell the other attribute deleted, a new head |
| mean embeddings, cue words removed | control | and no model: the mean of the embeddings |
| feature skyline | skyline | as many features of the circuit, by their effect on telling the other attribute |
| neuron skyline | skyline | the same with dimensions of the same activations, replaced by their means |
| oracle | skyline | a head trained on balanced texts |

The two controls answer a critique of the experiment: where a list of words does as well, the data do not show that
features deeper in the model were needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosspatch.features.basis import Bases, bases_of
from crosspatch.features.nodes import NodeSet
from crosspatch.features.replaced import Replacement, ReplacementName
from crosspatch.results.statistics import bootstrap_mean, resampler
from crosspatch.shift.ablate import Feature, feature_set, pooled_without, text_means
from crosspatch.shift.circuit import INPUT_PLACE, ProbeCircuit, Stage
from crosspatch.shift.data import Labelled
from crosspatch.shift.judges import Judge, Judgement, about, ask
from crosspatch.shift.probe import Prompts, fit_logistic, pooled, prompts_of, train_probe
from crosspatch.shift.result import ORIGINAL, JudgedFeature, Kind, Method, ShiftResult

BOTH = "both labels of a balanced set"
SHOWN = 5
"""Tokens of a card that a result keeps."""


def shift(found: ProbeCircuit, judge: Judge, *, progress: Stage | None = None) -> ShiftResult:
    """Take out what a judge says has nothing to do with the task, and compare.

    Args:
        found: of `probe_circuit`.
        judge: see `judges`.

    Raises:
        CircuitError: a verdict that is none, or answers to other features.
    """
    told = progress or (lambda name, done, total: None)
    judgements = ask(judge, found.candidates)
    work = _Work(found, told)
    work.run(judgements, about(judge))
    test = found.splits.test
    names = tuple(test.group_name(g) for g in range(4))
    return ShiftResult(
        work.methods,
        np.asarray(test.labels),
        np.asarray(test.spurious),
        names,  # type: ignore[arg-type]
        judged_features(found, judgements),
        found.nodes.n_errors,
        {
            "model": found.model.name,
            "data": found.splits.origin,
            "label": list(test.label_names),
            "other": list(test.spurious_names),
            "texts": {name: getattr(found.splits, name).counts() for name in ("ambiguous", "balanced", "test")},
            "judge": about(judge),
            "classifier": found.probe.trained_by,
            "layers": {str(layer): loss for layer, loss in found.layers.items()},
            "places": [basis.place for basis in found.bases],
            "settings": asdict(found.settings),
        },
        work.left_out,
    )


def removed_features(found: ProbeCircuit, judgements: Mapping[str, Judgement]) -> list[Feature]:
    """Features of the circuit that were judged irrelevant."""
    own = set(found.circuit_features)
    chosen = [(c.place, c.feature) for c in found.candidates if judgements[c.name].verdict == "ablate"]
    return [feature for feature in chosen if feature in own]


def judged_features(found: ProbeCircuit, judgements: Mapping[str, Judgement]) -> list[JudgedFeature]:
    """Every candidate with its effect, interval and judgement."""
    chosen = feature_set(found.bases, [(c.place, c.feature) for c in found.candidates])
    values = found.effects.values_of(chosen)
    ends = bootstrap_mean(np.nan_to_num(values).T, resampler(len(values), seed=found.settings.seed))
    column = {(node.place, node.feature): i for i, node in enumerate(chosen)}
    own, made = set(found.circuit_features), []
    for c in found.candidates:
        i = column[c.place, c.feature]
        known = not np.isnan(values[:, i]).any() and np.isfinite(ends.low[i])
        low, high = (float(ends.low[i]), float(ends.high[i])) if known else (None, None)
        verdict, reason = judgements[c.name]
        active = tuple(dict.fromkeys(context.tokens[context.at] for context in c.card.top))[:SHOWN]
        promoted = tuple(token for token, _ in c.card.promoted[:SHOWN])
        inside = (c.place, c.feature) in own
        made.append(JudgedFeature(c.name, c.effect, low, high, verdict, reason, inside, active, promoted))
    return made


@dataclass(frozen=True)
class _Planned:
    """A method that takes nodes out: one set of them, or several draws."""

    name: str
    kind: Kind
    told: str
    sets: tuple[NodeSet, ...]


class _Work:
    """The methods, in the order of the table."""

    def __init__(self, found: ProbeCircuit, told: Stage) -> None:
        self.found, self.told = found, told
        self.methods: list[Method] = []
        self.left_out: dict[str, str] = {}
        self.splits, self.settings, self.layer = found.splits, found.settings, found.probe.layer
        self.setups = {name: found.setup(getattr(found.splits, name)) for name in ("ambiguous", "test")}

    def run(self, judgements: Mapping[str, Judgement], judge: str) -> None:
        found, test = self.found, self.splits.test
        removed = removed_features(found, judgements)
        ours = feature_set(found.bases, removed)
        self._add(ORIGINAL, "baseline", "", 0, [found.probe.predicts(found.pooled(test))])
        self._concepts()
        planned = [
            *self._random(ours),
            _Planned("SHIFT", "SHIFT", judge, (ours,)),
            *self._input_only(judgements, judge),
        ]
        skyline = self._feature_skyline(len(removed))
        self.told("ablation", 0, 1)
        each = self._ablated([*planned, *skyline], found.bases, "zero")
        for plan in planned:
            self._heads(plan, each)
        self._cues()
        for plan in skyline:
            self._heads(plan, each)
        self._neuron_skyline(len(removed))
        self._add(
            "oracle", "skyline", BOTH, 0, [self._fitted(found.pooled(self.splits.balanced), self.splits.balanced)]
        )

    def _add(
        self, name: str, kind: Kind, told: str, ablated: int, predicted: Sequence[Bool[np.ndarray, " text"]]
    ) -> None:
        self.methods.append(Method(name, kind, told, ablated, np.stack(predicted)))

    def _fitted(
        self, x: Float[Tensor, "text d_model"], data: Labelled, at: Tensor | None = None
    ) -> Bool[np.ndarray, " text"]:
        """What a head that is fitted on some texts says about the test texts (`at`: as it reads them)."""
        s = self.settings
        head = train_probe(x, data.labels, self.layer, s.training, s.seed)
        return head.predicts(self.found.pooled(self.splits.test) if at is None else at)

    def _ablated(
        self, planned: Sequence[_Planned], bases: Bases, replaced: ReplacementName | Replacement
    ) -> dict[str, dict[int, Float[Tensor, "text d_model"]]]:
        """Mean residual streams of test and ambiguous texts without each set of nodes, by the set's `id`."""
        sets = [nodes for plan in planned for nodes in plan.sets]
        found = {}
        for name, setup in self.setups.items():
            if name == "test" or self.settings.retrain:

                def told(done: float, total: float, name: str = name) -> None:
                    self.told(f"ablation, {name} texts", done, total)

                budget = self.settings.budget_mib
                made = pooled_without(setup, bases, sets, replaced, budget_mib=budget, progress=told)
                found[name] = {id(nodes): x for nodes, x in zip(sets, made, strict=True)}
        return found

    def _heads(self, plan: _Planned, each: Mapping[str, Mapping[int, Tensor]]) -> None:
        """With nodes taken out: what the head says, and what a new one says."""
        own, size = [id(nodes) for nodes in plan.sets], plan.sets[0].n_features
        self._add(plan.name, plan.kind, plan.told, size, [self.found.probe.predicts(each["test"][i]) for i in own])
        if self.settings.retrain:
            again = [self._fitted(each["ambiguous"][i], self.splits.ambiguous, each["test"][i]) for i in own]
            self._add(f"{plan.name}, retrained", plan.kind, plan.told, size, again)

    def _concepts(self) -> None:
        """Cosines with the words' own representations, less their mean, then a logistic regression."""
        words, name = self.splits.concepts, "concept bottleneck"
        if len(words) < 2:
            self.left_out[name] = "no words of the labels were given"
            return
        last = []
        for ids in prompts_of(self.found.model, [f" {word}" for word in words]).ids:
            last.append(pooled(self.found.model, Prompts([ids], len(ids) - 1), [self.layer])[self.layer][0])
        vectors = torch.stack(last)
        vectors = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)

        def cosines(data: Labelled) -> Float[Tensor, "text word"]:
            return torch.nn.functional.normalize(self.found.pooled(data), dim=1) @ vectors.T

        weight, bias = fit_logistic(cosines(self.splits.ambiguous), self.splits.ambiguous.labels)
        logits = cosines(self.splits.test) @ weight + bias
        self._add(name, "baseline", f"{len(words)} words of the labels", 0, [(logits > 0).cpu().numpy()])

    def _random(self, like: NodeSet) -> list[_Planned]:
        """As many features at every place, drawn among all that have any effect."""
        population = self.found.effects.active()
        draws = [np.random.default_rng([self.settings.seed, i]) for i in range(self.settings.n_random)]
        if not draws:
            self.left_out["random features"] = "no draws were asked for"
            return []
        return [_Planned("random features", "baseline", "", tuple(like.random_like(population, d) for d in draws))]

    def _input_only(self, judgements: Mapping[str, Judgement], judge: str) -> list[_Planned]:
        name = "input features only"
        if INPUT_PLACE not in self.found.effects.places:
            self.left_out[name] = "no dictionary of the input was given"
            return []
        chosen = [c for c in self.found.candidates if c.place == INPUT_PLACE and judgements[c.name].verdict == "ablate"]
        features = feature_set(self.found.bases, [(c.place, c.feature) for c in chosen])
        return [_Planned(name, "control", judge, (features,))]

    def _cues(self) -> None:
        names = ("cue words removed", "mean embeddings, cue words removed")
        if not self.splits.cues:
            self.left_out |= dict.fromkeys(names, "no words that tell the other attribute were given")
            return
        plain, test = (data.without(self.splits.cues) for data in (self.splits.ambiguous, self.splits.test))
        told = f"{len(self.splits.cues)} words of the other attribute"
        for name, layer in zip(names, (self.layer, -1), strict=True):
            x, at = (self.found.pooled(data, layer) for data in (plain, test))
            self._add(name, "control", told, 0, [self._fitted(x, plain, at)])

    def _feature_skyline(self, n: int) -> list[_Planned]:
        """The n features of the circuit that most help the logit to tell the other attribute."""
        if not n:
            self.left_out["feature skyline"] = "SHIFT took nothing out, and it takes out as many"
            return []
        effects, _ = self.found.effects_by_attribute(self.found.bases)
        best = sorted(((float(effects[p][f]), (p, f)) for p, f in self.found.circuit_features), reverse=True)
        chosen = [feature for effect, feature in best[:n] if effect > 0]
        return [_Planned("feature skyline", "skyline", BOTH, (feature_set(self.found.bases, chosen),))]

    def _neuron_skyline(self, n: int) -> None:
        """The n dimensions of the same activations that most help it, replaced by their means."""
        found = self.found
        if not n:
            self.left_out["neuron skyline"] = "SHIFT took nothing out, and it takes out as many"
            return
        neurons = bases_of(found.probed, neurons=[basis.place for basis in found.bases])
        means = text_means(found.setup(self.splits.balanced), neurons, self.settings.budget_mib)
        scored, _ = found.effects_by_attribute(neurons)
        every = sorted(((float(v), (p, i)) for p, mean in scored.items() for i, v in enumerate(mean)), reverse=True)
        picked = feature_set(neurons, [neuron for effect, neuron in every[:n] if effect > 0])
        plan = _Planned("neuron skyline", "skyline", BOTH, (picked,))
        self._heads(plan, self._ablated([plan], neurons, means))
