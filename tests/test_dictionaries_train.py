"""Trainers: planted features are found, gradients are right, interrupted runs go on exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from toys import random_network

from crosspatch.dictionaries.dictionary import CrossLayer, Dictionary
from crosspatch.dictionaries.places import read_place
from crosspatch.dictionaries.train import (
    Activations,
    Arrays,
    BatchTopK,
    Gated,
    Job,
    JumpReLU,
    Matryoshka,
    PAnneal,
    Report,
    Settings,
    Standard,
    TopK,
    contexts,
    sweep,
    train,
)
from crosspatch.dictionaries.train.batch_topk import largest_of_batch
from crosspatch.dictionaries.train.coder import Coder, Moment, Terms, Variant
from crosspatch.dictionaries.train.dead import resample
from crosspatch.dictionaries.train.jumprelu import Jump, Step
from crosspatch.dictionaries.train.largest import keep_largest
from crosspatch.dictionaries.train.p_anneal import power_sum
from crosspatch.dictionaries.train.penalised import penalised
from crosspatch.dictionaries.train.sparse import Chosen, decoded, picked
from crosspatch.dictionaries.train.topk import auxiliary
from crosspatch.dictionaries.train.worker import Worker
from crosspatch.errors import DictionaryError, InterventionError
from crosspatch.model import record

D, TRUE, ACTIVE = 16, 24, 2.0
SETTINGS = Settings(
    steps=400, batch=256, lr_warmup=20, sparsity_warmup=50, dead_after=1000, resample_every=100, lr_decay=0.3
)
VARIANTS: dict[str, Variant] = {
    "standard": Standard(l1=0.2),
    "gated": Gated(l1=0.6),
    "topk": TopK(k=2),
    "batch_topk": BatchTopK(k=2, memory=50),
    "jumprelu": JumpReLU(target_l0=2.0, bandwidth=0.2, start=0.1),
    "matryoshka": Matryoshka(k=2, memory=50, prefixes=(0.75, 1.0)),
    "p_anneal": PAnneal(l1=0.15),
}


def planted(seed: int, n: int = 8_000, d: int = D, true: int = TRUE, offset: float = 1.0) -> tuple[Tensor, Tensor]:
    """More unit directions than dimensions, each rarely active, around a mean; and the activations [token, d]."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(true, d, generator=g)
    directions /= directions.norm(dim=1, keepdim=True)
    active = torch.rand(n, true, generator=g) < ACTIVE / true
    sizes = torch.where(active, 1 + torch.rand(n, true, generator=g), 0)
    mean = offset * torch.randn(d, generator=g)
    return directions, sizes @ directions + mean


def recall(found: Tensor, true: Tensor) -> float:
    cosines = torch.nn.functional.normalize(true, dim=1) @ torch.nn.functional.normalize(found, dim=1).T
    return float((cosines.max(1).values > 0.9).double().mean())


def job(variant: Variant, width: int = 32, **more: Any) -> Job:
    return Job(variant, **({"reads": "r1", "width": width, "lr": 1e-2} | more))


def fvu(dictionary: Dictionary, x: Tensor, y: Tensor | None = None) -> float:
    y = x if y is None else y
    return float(dictionary.error(x, y).pow(2).sum() / (y - y.mean(0)).pow(2).sum())


# -- what is learned ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_planted_features_are_found(name: str) -> None:
    """From three beginnings, on three sets of directions."""
    recalls = []
    for seed in range(3):
        true, x = planted(seed)
        x = 7 * x  # the units of the activations do not matter
        reports: list[Report] = []
        settings = replace(SETTINGS, seed=seed)
        [found] = train(Arrays({"r1": x}), job(VARIANTS[name]), settings, progress=reports.append, every=100)
        recalls.append(recall(found.decoder, true))
        features = found.encode(x)
        l0 = float((features > 0).sum(1).double().mean())
        assert fvu(found, x) < 0.25 and 1 < l0 < 6
        torch.testing.assert_close(found.decoder.norm(dim=1), torch.ones(32))
        [last] = reports[-1].jobs
        assert (reports[-1].step, reports[-1].tokens) == (400, 400 * 256)
        assert last.l0 == pytest.approx(l0, rel=0.2) and last.fvu == pytest.approx(fvu(found, x), rel=0.3)
        torch.testing.assert_close(reports[-1].dictionary(0).encoder, found.encoder)
        if name in ("batch_topk", "matryoshka", "jumprelu"):  # thresholds, not a selection: a token alone is the same
            torch.testing.assert_close(found.encode(x[:1]), features[:1])
            assert l0 == pytest.approx(2, rel=0.15)
    assert min(recalls) >= 0.75 and sum(recalls) / 3 >= 0.85


KINDS = ("autoencoder", "transcoder", "crosscoder", "cross_layer")


@pytest.mark.parametrize(("name", "kind"), sorted({*product(VARIANTS, KINDS)} - {("topk", "cross_layer")}))
def test_the_first_reconstruction_has_the_size_of_its_target(name: str, kind: str) -> None:
    """Also with many more features than dimensions, of which half are active in a ReLU dictionary."""
    _, x = planted(0)
    values = {"r0.mid": x, "r1.mid": 5 * x.roll(1, 0), "m0": x.roll(2, 1), "m1": 3 * x.roll(3, 0)}
    reads, writes = {
        "autoencoder": ("r0.mid", None), "transcoder": ("r0.mid", "m0"), "crosscoder": (("r0.mid", "r1.mid"), None),
        "cross_layer": (("r0.mid", "r1.mid"), ("m0", "m1")),
    }[kind]  # fmt: skip
    made = job(VARIANTS[name], reads=reads, writes=writes, width=512, cross_layer=kind == "cross_layer")
    stream = Arrays(values)
    stream.open(list(values), 4096, 0)
    worker = Worker(made, SETTINGS, 0, stream.sample(), torch.device("cpu"))
    inputs, target = worker.normalised(stream.draw())
    at = Moment(0, 1, 0.0, torch.zeros(512, dtype=torch.bool))
    encoder = worker.coder.params["encoder"]

    def first(scale: float) -> Tensor:
        trial = Coder(worker.coder.params | {"encoder": encoder * scale}, worker.coder.n_writes, worker.coder.tied)
        made.variant.prepare(trial)
        with torch.no_grad():
            return made.variant.terms(trial, inputs, target, at).reconstruction

    if worker.coder.tied:
        errors = {scale: (target - first(scale)).norm() / target.norm() for scale in (0.8, 1.0, 1.25)}
        assert errors[1.0] < (0.5 if name in ("standard", "gated", "p_anneal") else 1)
        if name != "jumprelu":
            assert errors[1.0] == min(errors.values())
    else:
        assert first(1.0).norm() / target.norm() == pytest.approx(1, abs=0.05)


def test_random_directions_are_not_those_of_data_made_with_the_same_seed() -> None:
    """`torch.Generator().manual_seed(0)` makes planted directions in many tests: the answer must not be in the seed."""
    for seed in range(3):
        true, x = planted(seed)
        settings = replace(SETTINGS, steps=1, seed=seed)
        [found] = train(Arrays({"r1": x}), job(Standard()), settings)
        assert recall(found.decoder, true) < 0.2


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_finds_what_a_map_does(skip: bool) -> None:
    """Features in the input, other directions in the output, and perhaps a linear part."""
    true, x = planted(0, offset=0.5)
    g = torch.Generator().manual_seed(5)
    out = torch.nn.functional.normalize(torch.randn(TRUE, 8, generator=g), dim=1)
    linear = 0.5 * torch.randn(8, D, generator=g)
    y = torch.relu(x @ true.T - 0.9 - (x.mean(0) @ true.T)) @ out * 5 + 2
    y = y + x @ linear.T if skip else y
    made = job(TopK(k=3), reads="m1.in", writes="m1", skip=skip)
    [found] = train(Arrays({"m1.in": x, "m1": y}), made, SETTINGS)
    assert (found.reads, found.writes, found.d_out) == (("m1.in",), ("m1",), 8)
    assert fvu(found, x, y) < (0.1 if skip else 0.3)
    if skip:
        [without] = train(Arrays({"m1.in": x, "m1": y}), replace(made, skip=False), SETTINGS)
        assert fvu(found, x, y) < 0.7 * fvu(without, x, y)


def test_a_crosscoder_finds_features_of_two_places() -> None:
    g = torch.Generator().manual_seed(3)
    true, x = planted(0, offset=0.0)
    mix = torch.randn(D, D, generator=g)
    second = 20 * x @ mix  # the same features in other directions, in other units
    made = job(TopK(k=2), reads=("r1", "r2"))
    [found] = train(Arrays({"r1": x, "r2": second}), made, SETTINGS)
    assert recall(found.decoder_at("r1"), true) >= 0.9
    assert recall(found.decoder_at("r2"), true @ mix) >= 0.9
    assert found.reads == ("r1", "r2") and found.decoder_at("r2").shape == (32, D)
    both = torch.cat([x, second], 1)
    error = found.error(both)
    for part, whole in zip(error.chunk(2, 1), both.chunk(2, 1), strict=True):
        assert part.pow(2).sum() < 0.3 * (whole - whole.mean(0)).pow(2).sum()


def test_a_cross_layer_transcoder_finds_what_layers_add() -> None:
    """Two layers; the features that the first one reads are written again in the second."""
    true, x = planted(0, offset=0.0)
    other, x2 = planted(1, offset=0.5)
    g = torch.Generator().manual_seed(5)
    out = [torch.nn.functional.normalize(torch.randn(TRUE, D, generator=g), dim=1) for _ in range(3)]
    code, code2 = torch.relu(x @ true.T - 0.9), torch.relu((x2 - x2.mean(0)) @ other.T - 0.7)
    values = {"r0.mid": x, "r1.mid": x2, "m0": code @ out[0], "m1": code @ out[1] + code2 @ out[2] + 3}
    made = job(BatchTopK(k=4, memory=50), reads=("r0.mid", "r1.mid"), writes=("m0", "m1"), width=64, cross_layer=True)
    [whole] = train(Arrays(values), made, SETTINGS)
    coder = CrossLayer.split(whole)
    assert [layer.writes for layer in coder.layers] == [("m0", "m1"), ("m1",)]
    both = torch.cat([x, x2], 1)
    found = coder.decode(coder.encode([x, x2]))
    torch.testing.assert_close(torch.cat([found["m0"], found["m1"]], 1), whole.reconstruct(both), rtol=1e-4, atol=1e-4)
    for place, reconstruction in found.items():
        y = values[place]
        assert (y - reconstruction).pow(2).sum() < 0.3 * (y - y.mean(0)).pow(2).sum()
    for wrong in (replace(whole, encoder=whole.encoder + 1), replace(whole, decoder=whole.decoder + 1)):
        with pytest.raises(DictionaryError, match="other layers"):
            CrossLayer.split(wrong)
    with pytest.raises(DictionaryError, match="select among the features of all layers"):
        replace(made, variant=TopK(k=4))
    with pytest.raises(DictionaryError, match="cross-layer"):
        replace(made, width=63)


def test_a_sweep_trades_sparsity_for_error() -> None:
    _, x = planted(0)
    jobs = sweep(job(TopK(k=1)), [1, 2, 4])
    assert [made.label for made in jobs] == [f"topk k={k} r1 32" for k in (1, 2, 4)]
    found = train(Arrays({"r1": x}), jobs, replace(SETTINGS, steps=100))
    assert [d.k for d in found] == [1, 2, 4]
    errors = [fvu(d, x) for d in found]
    assert errors == sorted(errors, reverse=True)
    assert [made.variant.l1 for made in sweep(job(Standard()), [0.1, 0.2])] == [0.1, 0.2]  # type: ignore[attr-defined]


def test_bfloat16_learns_as_well() -> None:
    true, x = planted(0)
    [found] = train(Arrays({"r1": x}), job(TopK(k=2)), replace(SETTINGS, steps=250, autocast=True))
    assert found.dtype == torch.float32
    assert recall(found.decoder, true) >= 0.9


# -- losses and gradients ----------------------------------------------------------------------------------------------


def coder(
    variant: Variant, seed: int = 0, d: int = 5, width: int = 8, dead: Sequence[int] = ()
) -> tuple[Coder, Moment]:
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(width, d, generator=g, dtype=torch.float64), dim=1)
    params = {
        "encoder": rows + 0.3 * torch.randn(width, d, generator=g, dtype=torch.float64),
        "encoder_bias": 0.1 * torch.randn(width, generator=g, dtype=torch.float64),
        "decoder": rows,
        "decoder_bias": 0.1 * torch.randn(d, generator=g, dtype=torch.float64),
    }
    made = Coder(params, 1, tied=True)
    variant.prepare(made)
    for value in params.values():
        value.requires_grad_()
    mask = torch.zeros(width, dtype=torch.bool)
    mask[list(dead)] = True
    return made, Moment(500, 1000, 1.0, mask)


HELD_BACK = {("gated", "decoder"), ("gated", "decoder_bias"), ("jumprelu", "threshold")}


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """Of the loss as it is, with respect to every parameter; but where a gradient is held back or is an estimate."""
    variant = VARIANTS[name]
    if name == "jumprelu":
        variant = replace(variant, bandwidth=1e-9)  # type: ignore[type-var]
    made, at = coder(variant, dead=[6, 7])
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    variant.terms(made, x, x, at)
    state = dict(made.state)  # p has fallen already: where it falls, the penalty is held at its value

    def loss() -> Tensor:
        made.state = dict(state)
        return variant.terms(made, x, x, at).loss

    loss().backward()
    held = {"topk", "batch_topk", "matryoshka"}  # the error that AuxK reconstructs is held fixed
    for parameter, value in made.params.items():
        if (name, parameter) in HELD_BACK:
            continue
        assert value.grad is not None
        if name in held:
            continue
        for index in range(0, value.numel(), 3):
            flat, step = value.data.view(-1), 1e-6
            flat[index] += step
            up = loss()
            flat[index] -= 2 * step
            down = loss()
            flat[index] += step
            assert ((up - down) / (2 * step)).item() == pytest.approx(
                float(value.grad.view(-1)[index]), rel=1e-4, abs=1e-7
            )


@pytest.mark.parametrize("name", ["topk", "batch_topk", "matryoshka"])
def test_gradients_with_no_dead_feature(name: str) -> None:
    variant = VARIANTS[name]
    made, at = coder(variant)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    variant.terms(made, x, x, at).loss.backward()
    for value in made.params.values():
        for index in range(0, value.numel(), 3):
            flat, step = value.data.view(-1), 1e-6
            flat[index] += step
            up = variant.terms(made, x, x, at).loss
            flat[index] -= 2 * step
            down = variant.terms(made, x, x, at).loss
            flat[index] += step
            assert value.grad is not None
            assert ((up - down) / (2 * step)).item() == pytest.approx(
                float(value.grad.view(-1)[index]), rel=1e-4, abs=1e-7
            )


def test_the_gated_decoder_learns_from_its_own_reconstruction_only() -> None:
    made, at = coder(VARIANTS["gated"])
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    terms = VARIANTS["gated"].terms(made, x, x, at)
    f = torch.relu(made.pre(x)).detach()  # gains are 1 and biases equal at the beginning
    torch.testing.assert_close(terms.active, (f > 0).sum(0).float())
    penalty = 0.6 * (f * made.row_norms()).sum(1).mean()
    plain = (x - made.decode(torch.relu(made.pre(x, torch.zeros(8))).detach() * (f > 0), x)).pow(2).sum(
        1
    ).mean() + penalty
    [wanted] = torch.autograd.grad(plain, made.params["decoder"], retain_graph=True)
    [found] = torch.autograd.grad(terms.loss, made.params["decoder"])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("which", ["jump", "step"])
def test_straight_through_gradients_are_those_of_the_expected_value(which: str) -> None:
    """Averaged over many inputs the estimate is the slope of the average, which finite differences see."""
    g = torch.Generator().manual_seed(0)
    pre = torch.randn(2_000_000, 1, generator=g, dtype=torch.float64)
    threshold = torch.tensor([0.6], dtype=torch.float64, requires_grad=True)
    function = Jump.apply if which == "jump" else Step.apply
    function(pre, threshold, 0.1).mean().backward()

    def mean(at: float) -> float:
        return float(torch.where(pre > at, pre if which == "jump" else 1.0, 0).mean())

    slope = (mean(0.65) - mean(0.55)) / 0.1
    assert threshold.grad is not None
    assert float(threshold.grad) == pytest.approx(slope, rel=0.02)


def test_auxk_reconstructs_the_error_with_dead_features() -> None:
    made, at = coder(TopK(k=2), dead=[1, 4, 6])
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    pre, error = made.pre(x), torch.randn(7, 5, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    best = pre[:, [1, 4, 6]].topk(2)
    e_hat = sum(
        torch.where((best.indices == j).any(1), pre[:, i], 0)[:, None] * made.params["decoder"][i]
        for j, i in enumerate([1, 4, 6])
    )
    wanted = (error - e_hat).pow(2).sum() / error.pow(2).sum()
    torch.testing.assert_close(auxiliary(made, pre, error, 2, at), wanted)
    one = replace(at, dead=torch.arange(8) == 4)
    half = 0.5 * (error - pre[:, [4]] * made.params["decoder"][4]).pow(2).sum() / error.pow(2).sum()
    torch.testing.assert_close(auxiliary(made, pre, error, 2, one), half)
    assert auxiliary(made, pre, error, 2, replace(at, dead=torch.zeros(8, dtype=torch.bool))) == 0
    assert torch.isfinite(auxiliary(made, pre, 0 * error, 2, at))  # nothing is left to reconstruct


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keeping_the_largest(dtype: torch.dtype) -> None:
    """Both ways of finding them, and their gradient."""
    g = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.randperm(50, generator=g) for _ in range(6)]).to(dtype).requires_grad_()
    for k in (1, 7, 50, 60):
        kept = keep_largest(rows, k)
        assert torch.equal(kept, torch.where(rows >= 50 - k, rows, 0))
        [grad] = torch.autograd.grad(kept.sum(), rows)
        assert torch.equal(grad, (rows >= 50 - k).to(dtype))


@pytest.mark.parametrize("dead", [[], [1, 4, 6]])
def test_topk_by_what_is_chosen_is_topk_by_dense_products(dead: list[int]) -> None:
    """Loss, activity and all gradients, with AuxK and without."""
    variant = TopK(k=3)
    made, at = coder(variant, dead=dead)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = variant.terms(made, x, x, at)
    pre = made.pre(x)
    f = keep_largest(torch.relu(pre), 3)
    y_hat = made.decode(f, x)
    loss = (x - y_hat).pow(2).sum(1).mean()
    if dead:
        best = pre[:, dead].topk(3).indices
        aux = torch.zeros_like(pre[:, dead]).scatter(1, best, pre[:, dead].gather(1, best))
        e_hat = aux @ made.params["decoder"][dead]
        error = (x - y_hat).detach()
        loss = loss + variant.auxk * (error - e_hat).pow(2).sum() / error.pow(2).sum()
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.reconstruction, y_hat)
    torch.testing.assert_close(found.active.double(), (f > 0).double().sum(0))
    assert float(found.l0) == pytest.approx(float((f > 0).sum() / 7))
    params = list(made.params.values())
    wanted = torch.autograd.grad(loss, params)
    for a, b in zip(torch.autograd.grad(found.loss, params), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_products_with_chosen_entries_are_dense_products() -> None:
    """Also where a feature is chosen by no token, or by all, and where tokens choose it in any order."""
    g = torch.Generator().manual_seed(0)
    x, encoder, decoder = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (6, 9, 9))
    bias = torch.randn(9, generator=g, dtype=torch.float64)
    index = torch.stack([torch.tensor([8, *(torch.randperm(7, generator=g)[:2]).tolist()]) for _ in range(6)])
    chosen = Chosen(index, 9)
    for value in (encoder, bias, decoder):
        value.requires_grad_()
    pre = x @ encoder.T + bias
    values = picked(pre, chosen, x, encoder, bias)
    out = decoded(values, chosen, decoder)
    code = torch.zeros_like(pre).scatter(1, index, pre.gather(1, index))
    torch.testing.assert_close(out, code @ decoder)
    weights = torch.randn(6, 4, generator=g, dtype=torch.float64)
    found = torch.autograd.grad((out * weights).sum(), (encoder, bias, decoder))
    wanted = torch.autograd.grad((code @ decoder * weights).sum(), (encoder, bias, decoder))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_the_penalised_code_by_pieces_is_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    from crosspatch.dictionaries.train import penalised as module

    g = torch.Generator().manual_seed(0)
    x, target, encoder, decoder = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (10, 10, 6, 6))
    bias, norms = torch.randn(2, 6, generator=g, dtype=torch.float64).unbind()
    inputs = [value.clone().requires_grad_() for value in (target, encoder, bias, decoder, norms)]
    target, encoder, bias, decoder, norms = inputs
    f = torch.relu(x @ encoder.T + bias)
    loss = (target - f @ decoder).pow(2).sum(1).mean() + 0.3 * f.mean(0) @ norms
    wanted = torch.autograd.grad(2 * loss, inputs)
    for piece in (10**6, 4 * 6, 1):  # all at once; four, four and two; one by one
        monkeypatch.setattr(module, "_PIECE", piece)
        found = penalised(x, target, encoder, bias, decoder, norms, 0.3)
        torch.testing.assert_close(found.loss, loss)
        torch.testing.assert_close(found.decoded, f @ decoder)
        torch.testing.assert_close(found.sums, f.sum(0))
        assert float(found.positive) == (f > 0).sum()
        for a, b in zip(torch.autograd.grad(2 * found.loss, inputs), wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_batch_topk_keeps_the_largest_and_remembers_the_smallest_kept() -> None:
    pre = torch.tensor([[5.0, 4, 3], [0.5, 0, 0.1]])
    assert torch.equal(largest_of_batch(pre, 2), torch.tensor([[5.0, 4, 3], [0.5, 0, 0]]))
    made, at = coder(BatchTopK(k=2, memory=4))
    variant, smallest, weights = BatchTopK(k=2, memory=4), [], []
    for i in range(3):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        variant.terms(made, x, x, at)
        smallest.append(made.pre(x).flatten().topk(12).values[-1].item())
        weights = [0.75 * w for w in weights] + [1.0]
    wanted = sum(w * s for w, s in zip(weights, smallest, strict=True)) / sum(weights)
    torch.testing.assert_close(variant.finish(made).threshold, torch.full((8,), wanted, dtype=torch.float64))


def test_matryoshka_is_the_mean_over_prefixes() -> None:
    variant = Matryoshka(k=3, prefixes=(0.25, 0.5, 1.0))
    made, at = coder(variant)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    terms, f = variant.terms(made, x, x, at), largest_of_batch(torch.relu(made.pre(x)), 3)
    wanted = [
        (x - f[:, :m] @ made.params["decoder"][:m] - made.params["decoder_bias"]).pow(2).sum(1).mean()
        for m in (2, 4, 8)
    ]
    torch.testing.assert_close(terms.loss, sum(wanted) / 3)
    with pytest.raises(DictionaryError, match="do not rise"):
        Matryoshka(prefixes=(0.5, 0.25, 1.0))


def test_p_anneal_keeps_the_penalty_where_p_changes() -> None:
    variant = PAnneal(l1=1.0, last=0.2, changes=4, start=0.2)
    assert [round(variant.power(Moment(s, 100, 1.0, torch.zeros(0))), 3) for s in (0, 19, 40, 60, 70, 99)] == [
        1.0, 1.0, 0.8, 0.6, 0.4, 0.2,
    ]  # fmt: skip
    made, at = coder(variant)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    losses = [variant.terms(made, x, x, replace(at, step=step, steps=100)).loss for step in (0, 40, 60, 99)]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])
    assert made.state["p"] == pytest.approx(0.2)
    values = torch.rand(3, 4)
    torch.testing.assert_close(power_sum(values, torch.tensor(1.0)), values.sum(1).mean())


# -- dead features -----------------------------------------------------------------------------------------------------


def test_replacing_changes_dead_features_only_and_in_place() -> None:
    made, _ = coder(Standard())
    optimizer = torch.optim.Adam(list(made.params.values()), lr=1e-3)
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    Standard().terms(made, x, x, Moment(0, 1, 1.0, torch.zeros(8, dtype=torch.bool))).loss.backward()
    optimizer.step()
    before = {name: value.detach().clone() for name, value in made.params.items()}
    dead = torch.zeros(8, dtype=torch.bool)
    dead[[2, 5]] = True
    error = torch.zeros_like(x)
    error[3] = torch.arange(5)  # the only token with an error
    assert resample(made, optimizer, dead, x, error, torch.Generator().manual_seed(0)) == 2
    for name in ("encoder", "decoder", "encoder_bias"):
        assert torch.equal(made.params[name][~dead], before[name][~dead])
        moments = optimizer.state[made.params[name]]
        assert (moments["exp_avg"][dead] == 0).all() and (moments["exp_avg"][~dead] != 0).any()
    direction = error[3] / error[3].norm()
    torch.testing.assert_close(made.params["decoder"][2].detach(), direction)
    size = 0.2 * before["encoder"][~dead].norm(dim=1).mean()
    torch.testing.assert_close(made.params["encoder"][5].detach(), direction * size)
    assert resample(made, optimizer, ~dead & dead, x, error, torch.Generator()) == 0


@pytest.mark.parametrize("name", ["standard", "topk"])
def test_dead_features_come_back(name: str) -> None:
    """Training begins with almost all features far below their threshold."""
    _, x = planted(0)
    dead: dict[bool, float] = {}
    for revive in (True, False):
        variant = VARIANTS[name]
        settings = replace(SETTINGS, steps=200, dead_after=1000, resample_every=50 if revive else 10_000)
        if name == "topk" and not revive:
            variant = TopK(k=2, auxk=0.0)
        made = job(Sunk(variant))
        reports: list[Report] = []
        train(Arrays({"r1": x}), made, settings, progress=reports.append)
        dead[revive] = reports[-1].jobs[0].dead
    assert dead[True] < 0.4 < dead[False]


@dataclass(frozen=True)
class Sunk(Variant):
    """A variant whose features start far below zero, but for four of them."""

    inner: Variant
    none: int = 0
    name: ClassVar[str] = "sunk"
    sparsity: ClassVar[str] = "none"

    @property
    def resamples(self) -> bool:  # type: ignore[override]
        return self.inner.resamples

    def prepare(self, coder: Coder) -> None:
        self.inner.prepare(coder)
        coder.params["encoder_bias"][4:] = -3.0

    def terms(self, coder: Coder, x: Tensor, y: Tensor, at: Moment) -> Terms:
        return self.inner.terms(coder, x, y, at)


# -- streams and resuming ----------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def interrupted(make: Any, jobs: list[Job], settings: Settings, path: Path) -> list[Dictionary]:
    """Train, stop in the middle after a save, and go on with everything new."""

    def stop(report: Report) -> None:
        if report.step >= 30:
            raise Stop

    with pytest.raises(Stop):
        train(make(), jobs, settings, checkpoint=path, save_every=8, progress=stop, every=10)
    return train(make(), jobs, settings, checkpoint=path, save_every=8)


def same(a: Dictionary, b: Dictionary) -> None:
    for name, value in vars(a).items():
        if isinstance(value, Tensor):
            assert torch.equal(value, getattr(b, name)), name


def test_every_variant_resumes_exactly(tmp_path: Path) -> None:
    _, x = planted(0, n=1000)
    jobs = [job(variant) for variant in VARIANTS.values()]
    settings = replace(SETTINGS, steps=50, dead_after=500, resample_every=10)
    whole = train(Arrays({"r1": x}), jobs, settings)
    resumed = interrupted(lambda: Arrays({"r1": x}), jobs, settings, tmp_path / "run.pt")
    for a, b in zip(whole, resumed, strict=True):
        same(a, b)


def prompts(n: int = 60, seed: int = 0) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 200, (int(k),), generator=g).tolist() for k in torch.randint(2, 12, (n,), generator=g)]


def test_training_on_a_model_resumes_exactly(tmp_path: Path) -> None:
    model, _ = random_network()

    def stream() -> Activations:
        return Activations(model, prompts(), buffer=200, tokens_per_pass=100)

    jobs = [
        job(TopK(k=3), width=48), job(Standard(l1=0.1), reads="a1.z"),
        job(BatchTopK(k=3), reads="m1.in", writes="m1", skip=True), job(Standard(l1=0.1), reads=("r1", "r2")),
    ]  # fmt: skip
    settings = replace(SETTINGS, steps=50, batch=32)
    whole = train(stream(), jobs, settings)
    for a, b in zip(whole, interrupted(stream, jobs, settings, tmp_path / "run.pt"), strict=True):
        same(a, b)
    assert [d.reads for d in whole] == [("r1",), ("a1.z",), ("m1.in",), ("r1", "r2")]
    assert all(torch.isfinite(d.encoder).all() for d in whole)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    _, x = planted(0, n=500)
    path, settings = tmp_path / "run.pt", replace(SETTINGS, steps=3)
    train(Arrays({"r1": x}), job(TopK(k=2)), settings, checkpoint=path)
    with pytest.raises(DictionaryError, match="jobs differ"):
        train(Arrays({"r1": x}), job(TopK(k=3)), settings, checkpoint=path)
    with pytest.raises(DictionaryError, match="stream differ"):
        train(Arrays({"r1": x + 1}), job(TopK(k=2)), settings, checkpoint=path)
    with pytest.raises(DictionaryError, match="steps, seed differ"):
        train(Arrays({"r1": x}), job(TopK(k=2)), replace(settings, seed=1, steps=4), checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DictionaryError, match="is no checkpoint"):
        train(Arrays({"r1": x}), job(TopK(k=2)), settings, checkpoint=path)


def test_a_stream_gives_the_activations_of_every_token_once_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All places of a row belong to one token, first tokens are left out, every token comes before any comes again."""
    model, _ = random_network()
    texts = prompts(seed=1)  # no token has the activations of another one
    run = record(model, texts)
    keep = torch.cat([torch.arange(len(text)) >= 1 for text in texts])
    everything = {place: read_place(run, [place])[keep] for place in ("r1", "a1.z")}
    n = len(everything["r1"])
    passes = []
    from crosspatch.dictionaries.train import stream as module

    monkeypatch.setattr(module, "record", lambda *a, **k: passes.append(1) or record(*a, **k))
    stream = Activations(model, texts, buffer=n, tokens_per_pass=50)
    stream.open(["r1", "a1.z"], 16, seed=3)

    def tokens(rows: dict[str, Tensor]) -> list[int]:
        near = [torch.cdist(rows[place].double(), everything[place].double()).argmin(1) for place in everything]
        assert torch.equal(*near)
        for place, index in zip(everything, near, strict=True):
            torch.testing.assert_close(rows[place], everything[place][index], rtol=1e-4, atol=1e-5)
        return near[0].tolist()

    assert sorted(tokens(stream.sample())) == list(range(n))
    at_first = len(passes)
    drawn = [t for _ in range(n // 2 // 16) for t in tokens(stream.draw())]
    assert len(set(drawn)) == len(drawn) and len(passes) == at_first
    assert drawn != sorted(drawn)
    stream.draw()
    assert len(passes) > at_first  # refilled
    other = Activations(model, texts, buffer=n, tokens_per_pass=50)
    other.open(["r1", "a1.z"], 16, seed=4)
    assert tokens(other.draw()) != drawn[:16]


def test_layers_above_the_last_place_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same activations as a run to the end."""
    model, _ = random_network()
    texts = prompts(n=5)
    run = record(model, texts, ["a0", "r1"])
    last = model.anatomy.blocks[-1]
    calls: list[int] = []
    last.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    short = record(model, texts, ["a0", "r1"], read=[()] * 5, budget_mib=0.01)
    for key, value in run.store.items():
        torch.testing.assert_close(short.store[key], value)
    assert not calls and len(short.logits()) == 0
    torch.testing.assert_close(short.value("r1.post", 3), run.value("r1.post", 3))  # what is missing is recorded
    pattern = record(model, texts, ["a1.h0.pattern"], read=[()] * 5).value("a1.h0.pattern", 2)
    torch.testing.assert_close(pattern, run.value("a1.h0.pattern", 2))
    with pytest.raises(InterventionError, match="give at least one"):
        record(model, texts, read=[(0,), *[()] * 4])


def test_contexts_are_the_text() -> None:
    _, tokenizer = random_network()
    words = [f"t{i}" for i in range(23)]
    found = contexts(tokenizer, [" ".join(words[:9]), " ".join(words[9:])], 6, bos=199)
    assert found.shape == (4, 6) and (found[:, 0] == 199).all()
    assert found[:, 1:].flatten().tolist() == list(range(20))
    assert len(contexts(tokenizer, [" ".join(words)], 5, limit=2)) == 2
    with pytest.raises(DictionaryError, match="fewer than 30"):
        contexts(tokenizer, [" ".join(words)], 30)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: job(TopK(k=40)), "k is 40 of 32"),
        (lambda: job(Standard(), width=0), "width 0"),
        (lambda: job(Standard(l1=-1.0)), "l1 is -1.0"),
        (lambda: job(Standard(), skip=True), "learns nothing"),
        (lambda: Settings(steps=0), "steps is 0"),
        (lambda: Settings(lr_decay=2), "lr_decay is 2"),
        (lambda: Arrays({"r1": torch.zeros(2, 3), "r2": torch.zeros(3, 3)}), "lengths differ"),
        (lambda: train(Arrays({"r1": torch.randn(9, 4)}), job(Standard(), reads="r2"), SETTINGS), "no array for r2"),
        (lambda: train(Arrays({"r1": torch.ones(9, 4)}), job(Standard()), SETTINGS), "the spread 0"),
        (lambda: train(Arrays({"r1": torch.randn(9, 4)}), [], SETTINGS), "nothing to train"),
        (lambda: Activations(random_network()[0], [[1]]), "no prompt has more than 1"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(DictionaryError, match=said):
        make()


def test_a_loss_that_is_not_finite_stops_training() -> None:
    _, x = planted(0, n=500)
    with pytest.raises(DictionaryError, match="the loss is not finite"):
        train(Arrays({"r1": x}), job(Standard(), lr=1e30), replace(SETTINGS, steps=40, clip=1e30), every=10)


def test_schedules() -> None:
    settings = Settings(steps=100, lr_warmup=9, lr_decay=0.2, sparsity_warmup=4)
    assert [settings.lr_factor(step) for step in (0, 4, 9, 80, 90, 99)] == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0.05])
    assert [settings.sparsity_factor(step) for step in (0, 4, 50)] == pytest.approx([0.2, 1, 1])
