"""Node attribution: what replacing each activation would do, from gradients, all sites at once.

For a site the estimate of `metric(clean) - metric(site replaced)` is the sum over tokens of (clean - replaced value)
times the gradient of the metric at that same site:

- at the clean run (AtP; Nanda 2023; Syed, Rager & Conmy 2023, arXiv 2310.10348),
- averaged over runs whose input, or whose own activation, lies between replaced and clean (integrated gradients;
  Sundararajan, Taly & Yan 2017, arXiv 1703.01365; Hanna, Pezzelle & Belinkov 2024, arXiv 2403.17806),
- with the propagation rules of RelP in the place of derivatives,
- with the two corrections of AtP* (Kramár et al. 2024, arXiv 2403.00745): the QK fix (see `qkfix`), and GradDrop.

GradDrop repeats the backward pass once a layer, with no gradient through what that layer writes, so that a direct and
an indirect effect that cancel are seen apart. Scores are absolute values, summed over the L passes and divided by the
number of passes in which the site has a gradient: L - 1 for a site inside a block, L for the input and the residual
stream (the paper has sites of the first sort only). They have no sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.ablation import Ablation, Store
from crosspatch.attribution.forward import Trace
from crosspatch.attribution.points import (
    BUDGET_MIB,
    CLEAN,
    INPUT,
    MIB,
    Point,
    Progress,
    chunks,
    few,
    require_gradient,
    run_at,
    span_masks,
)
from crosspatch.attribution.qkfix import fixed_effects
from crosspatch.attribution.rules import PLAIN, Rules
from crosspatch.attribution.setup import Setup
from crosspatch.errors import AddressError, MetricError
from crosspatch.graph import Site
from crosspatch.model import Model
from crosspatch.model.run import Key, store_key

_BY_HEAD = ("q", "k", "v", "z")
NodeScores = Float[np.ndarray, "example span site"]


@dataclass
class Place:
    """The sites that share one stored activation, and the columns of the result that they fill.

    Attributes:
        whole: columns of the activation as a whole.
        columns, index: columns of single heads or neurons, and which ones.
    """

    whole: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    index: list[int] = field(default_factory=list)


def places_of(model: Model, sites: Sequence[Site | str]) -> dict[Key, Place]:
    """Where sites are stored.

    Raises:
        AddressError: a site that the model does not have, or that has no score of its own.
    """
    found: dict[Key, Place] = {}
    for column, named in enumerate(sites):
        site = model.site(named)
        if site.kind in ("pattern", "logits"):
            raise AddressError(
                f"{site} has no score as a node",
                where="node attribution",
                fix="score its head's q and k" if site.kind == "pattern" else "score what writes to the last stream",
            )
        place = found.setdefault(store_key(site, model.shape.n_layers), Place())
        if site.index is None:
            place.whole.append(column)
        else:
            place.columns.append(column)
            place.index.append(site.index)
    return found


def node_keys(model: Model, sites: Sequence[Site | str]) -> list[Key]:
    """Activations that an ablation must replace for these sites to be scored (`mean_of(..., keys=...)`)."""
    return list(dict.fromkeys([INPUT, *places_of(model, sites)]))


def node_scores(
    setup: Setup,
    sites: Sequence[Site | str],
    ablation: Ablation,
    points: Sequence[Point] = CLEAN,
    *,
    rules: Rules = PLAIN,
    qk_fix: bool = False,
    grad_drop: bool = False,
    spans: Sequence[str] | None = None,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> NodeScores:
    """Estimated effect of replacing each site, the input being interpolated; one span of all tokens if none are named.

    Args:
        points: `CLEAN`, or `integration_points` for integrated gradients over inputs.
        qk_fix: queries and keys get the exact change of their head's pattern, and the gradient at the head's output.
        grad_drop: combine backward passes with one layer dropped each; scores are absolute. With `qk_fix`: AtP*.
        budget_mib: memory for one chunk of pairs.

    Raises:
        AddressError: a site that cannot be scored.
        MetricError: a metric with no gradient at the clean run; GradDrop on a model of one layer.
    """
    require_gradient(setup, points)
    places = places_of(setup.model, sites)
    drops: Sequence[int | None] = (None,)
    if grad_drop:
        rules, drops = replace(rules, can_drop=True), range(setup.model.shape.n_layers)
        if len(drops) < 2:
            raise MetricError("there is no other layer to drop", where="GradDrop", fix="use plain AtP on one layer")
    fixed = {key for key in places if key[1] in ("q", "k")} if qk_fix else set()
    out = np.zeros((len(setup), len(spans or ("*",)), len(sites)))
    done = 0
    for chunk in chunks(setup, len(points), budget_mib):
        part = setup.select(chunk)
        work = _Chunk(part, places, spans, budget_mib)
        at_clean = work.prepare(setup, chunk, ablation, points, rules, fixed)
        total = torch.zeros(len(drops), *out[chunk].shape, dtype=torch.float64)
        for some in few(points, len(chunk), len(part.clean[0]), setup, budget_mib):
            run, value = at_clean or run_at(part, work.clean, work.replaced, some, rules, neurons=work.neurons)
            for d, layer in enumerate(drops):
                if grad_drop:
                    rules.dropped = layer
                work.add(total[d], run, run.gradients(value, work.gradient_keys(fixed), keep=d + 1 < len(drops)), fixed)
        out[chunk] = (total.abs().sum(0) / _passes(setup.model, sites) if grad_drop else total[0]).numpy()
        done += len(chunk)
        if progress is not None:
            progress(done, len(setup))
    return out


def node_scores_by_activation(
    setup: Setup,
    sites: Sequence[Site | str],
    ablation: Ablation,
    points: Sequence[Point],
    *,
    rules: Rules = PLAIN,
    spans: Sequence[str] | None = None,
    budget_mib: float | None = None,
    progress: Progress | None = None,
) -> NodeScores:
    """As `node_scores`, with gradients from runs in which that activation alone lies between replaced and clean.

    All heads of a layer, or all neurons, move together, so that their scores add up to the effect of replacing them
    all as steps grow. One pass for each activation and point, from its layer on.
    """
    require_gradient(setup, points)
    places = places_of(setup.model, sites)
    out = np.zeros((len(setup), len(spans or ("*",)), len(sites)))
    done = 0
    for chunk in chunks(setup, len(points), budget_mib):
        part = setup.select(chunk)
        keys = list(dict.fromkeys([*places, *((layer, "resid_pre") for layer, _ in places)]))
        recorded = part.record_clean(keys)
        clean = {key: recorded.packed(key) for key in keys}
        replaced = ablation.store(setup, chunk, {key: clean[key] for key in places})
        total = torch.zeros(out[chunk].shape, dtype=torch.float64)
        for key, place in places.items():
            work = _Chunk(part, {key: place}, spans, budget_mib, clean, replaced)
            for some in few(points, len(chunk), len(part.clean[0]), setup, budget_mib):
                run, value = run_at(part, clean, replaced, some, rules, only=key)
                work.add(total, run, run.gradients(value, [key]), set())
            done += len(chunk)
            if progress is not None:
                progress(done, len(setup) * len(places))
        out[chunk] = total.numpy()
    return out


def _passes(model: Model, sites: Sequence[Site | str]) -> Float[Tensor, " site"]:
    """Backward passes of GradDrop in which a site has a gradient."""
    streams = ("input", "resid_pre", "resid_mid", "resid_post")
    inside = [model.site(site).kind not in streams for site in sites]
    return model.shape.n_layers - torch.tensor(inside, dtype=torch.float64)


@dataclass
class _Chunk:
    """Examples of equal length: what their sites hold, and what takes its place."""

    part: Setup
    places: dict[Key, Place]
    spans: Sequence[str] | None
    budget_mib: float | None
    clean: Store = field(default_factory=dict)
    replaced: Store = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.n, self.length = len(self.part), len(self.part.clean[0])
        self.masks = span_masks(self.part, self.spans)
        self.neurons = any(kind == "mlp_act" for _, kind in self.places)

    def gradient_keys(self, fixed: set[Key]) -> list[Key]:
        """Where gradients are needed: at every site, or at the output of its head."""
        keys = [(key[0], "z") if key in fixed else key for key in self.places]
        return list(dict.fromkeys(keys))

    def prepare(
        self,
        setup: Setup,
        chunk: list[int],
        ablation: Ablation,
        points: Sequence[Point],
        rules: Rules,
        fixed: set[Key],
    ) -> tuple[Trace, Tensor] | None:
        """Find the clean values and their replacements; where the only point is the clean run, that run too."""
        beside = [(layer, kind) for layer, _ in fixed for kind in ("q", "k", "v")]
        wanted = list(self.places)
        at_clean = None
        if points == CLEAN:
            embedded = self.part.model.embed(self.part.clean)
            at_clean = run_at(self.part, {INPUT: embedded}, {}, CLEAN, rules, neurons=self.neurons)
            self.clean = {key: at_clean[0].at[key].detach() for key in [*wanted, *beside]}
        else:
            wanted = list(dict.fromkeys([INPUT, *wanted]))
            recorded = self.part.record_clean([*wanted, *beside])
            self.clean = {key: recorded.packed(key) for key in [*wanted, *beside]}
        self.replaced = ablation.store(setup, chunk, {key: self.clean[key] for key in wanted})
        return at_clean

    @torch.no_grad()
    def add(
        self, total: Float[Tensor, "example span site"], run: Trace, gradients: dict[Key, Tensor], fixed: set[Key]
    ) -> None:
        """Add one group of points to the scores."""
        for key, place in self.places.items():
            given = gradients[(key[0], "z") if key in fixed else key]
            gradient = given.unflatten(0, (-1, self.n, self.length)).sum(0)
            if key in fixed:
                found = self._through_pattern(key, gradient, run)
            else:
                change = (self.clean[key] - self.replaced[key]).unflatten(0, (self.n, self.length))
                found = self._products(key, change.to(gradient) * gradient)
            if place.whole:
                total[:, :, place.whole] += found.sum(-1, keepdim=True).cpu()
            if place.columns:
                total[:, :, place.columns] += found[..., place.index].cpu()

    def _products(self, key: Key, product: Float[Tensor, "example position ..."]) -> Float[Tensor, "example span part"]:
        """Sums over the tokens of each span, by head or neuron where there are some."""
        if key[1] != "mlp_act":
            product = product.sum(-1, keepdim=key[1] not in _BY_HEAD)
        return torch.einsum("snt,nti->nsi", self.masks.to(product.device, torch.float64), product.double())

    def _through_pattern(self, key: Key, gradient: Tensor, run: Trace) -> Float[Tensor, "example span part"]:
        layer, kind = key
        q, k, v = (self.clean[(layer, name)].unflatten(0, (self.n, self.length)) for name in ("q", "k", "v"))
        new = self.replaced[key].unflatten(0, (self.n, self.length))
        budget = (self.budget_mib or BUDGET_MIB) * MIB
        return fixed_effects(kind, (q, k, v), new, gradient, run.rules[layer], self.masks, budget)
