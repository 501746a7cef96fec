"""Effects of features and error terms: the closed form against autograd through dictionaries, exact ones, integrals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_setups import setup_on
from feature_cases import FAMILIES, all_places, bases, family, random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import WORDS, linear_network

from crosspatch.attribution import points
from crosspatch.attribution.ablation import Paired
from crosspatch.attribution.forward import trace
from crosspatch.attribution.nodes import node_scores
from crosspatch.attribution.rules import relp
from crosspatch.dictionaries.dictionary import Dictionary
from crosspatch.dictionaries.places import write_place
from crosspatch.errors import CircuitError, DictionaryError, InterventionError, MetricError, TaskError
from crosspatch.features import Features, Node, bases_of, exact_effects, feature_effects, replacement, templatic
from crosspatch.features.found import Kept
from crosspatch.features.gradients import clean_keys
from crosspatch.features.replaced import values_of
from crosspatch.metrics import evaluate
from crosspatch.model import Row, replay


def run_with(setup, insert):
    embedded = setup.model.embed(setup.clean)
    lengths = [len(ids) for ids in setup.clean]
    return trace(setup.model, embedded, lengths, setup.read, insert=insert)


@pytest.mark.parametrize("name", FAMILIES)
def test_decomposition_is_exact(name: str) -> None:
    setup = family(name)
    plain = run_with(setup, {}).hidden

    def rebuilt(basis):
        def change(x: Tensor) -> Tensor:
            return basis.compose(basis.features(x)) + basis.error(x)

        return change

    found = run_with(setup, {basis.key: rebuilt(basis) for basis in bases(setup)}).hidden
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["standard", "topk", "constant_norm", "layer_norm"])
def test_closed_form_equals_autograd_with_pass_through(kind: str) -> None:
    """Dictionaries in the forward pass, error terms held, gradients passed through them as the authors do."""
    setup = family("gpt2")
    about = {"selection": "topk", "k": 5} if kind == "topk" else {"normalise": kind if "norm" in kind else "none"}
    spliced = bases(setup, **about)
    leaves: dict[str, tuple[Tensor, Tensor]] = {}

    def splice(basis):
        def change(x: Tensor) -> Tensor:
            f = basis.features(x).detach().requires_grad_(True)
            e = basis.error(x).detach().requires_grad_(True)
            leaves[basis.place] = f, e
            whole = basis.compose(f) + e
            return whole + (x - x.detach())  # the value is `whole`; upstream gets its gradient unchanged

        return change

    run = run_with(setup, {basis.key: splice(basis) for basis in spliced})
    value = setup.measure(run.hidden).sum()
    tensors = [leaf for pair in leaves.values() for leaf in pair]
    found = torch.autograd.grad(value, tensors)
    effects = feature_effects(setup, spliced, "zero", keep=None)
    for i, basis in enumerate(spliced):
        f, e = (tensor.detach() for tensor in leaves[basis.place])
        per_feature = (found[2 * i] * f).sum(0) / len(setup)
        error = (found[2 * i + 1] * e).sum() / len(setup)
        wanted = np.append(per_feature.numpy(), error.item())
        np.testing.assert_allclose(effects.mean[basis.place][0], wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("replaced", ["paired", "mean", "mean-all", "zero"])
def test_integrals_add_up_to_replacing_the_place_at_every_place(replaced: str) -> None:
    setup = family("llama")
    every = bases(setup)
    table = replacement(setup, every, replaced)
    found = feature_effects(setup, every, table, method="ig", steps=60, keep=None)
    run = setup.record_clean(clean_keys(every))
    values = values_of(setup, every, table, {b.key: run.packed(b.key) for b in every}, run.hidden)
    for basis in every:
        new = values.whole(basis)
        moved = setup.measure(run_with(setup, {basis.key: new}).hidden)
        wanted = (setup.measure(run.hidden) - moved).detach().double().mean().item()
        assert found.mean[basis.place].sum() == pytest.approx(wanted, rel=5e-3, abs=2e-3)


def test_zero_replacement_ends_at_the_decoder_bias_for_features_and_at_zero_for_neurons() -> None:
    setup = family("gpt2")
    dictionary = random_dictionary(setup.model, "m1")
    features, neurons = bases_of(setup.model, [dictionary]), bases_of(setup.model, (), ["m1"])
    run = setup.record_clean(clean_keys(features))
    for split, end in ((features, dictionary.decoder_bias), (neurons, torch.zeros_like(dictionary.decoder_bias))):
        values = values_of(setup, split, replacement(setup, split, "zero"), {(1, "mlp_out"): run.store[1, "mlp_out"]},
                           run.hidden)  # fmt: skip
        torch.testing.assert_close(values.whole(split[0]), end.expand(15, -1))


def test_gradients_and_integrals_are_exact_on_a_linear_model() -> None:
    setup = setup_on(linear_network(), vocab=len(WORDS))
    g = torch.Generator().manual_seed(3)
    parts = [torch.randn(9, 8, generator=g), torch.randn(9, generator=g), torch.randn(9, 8, generator=g)]
    dictionaries = [
        Dictionary(*parts, torch.zeros(8), torch.zeros(9), (place,), (place,)) for place in ("a0", "r0.post", "a1")
    ]
    split = bases_of(setup.model, dictionaries)
    nodes = [Node(basis.place, f) for basis in split for f in (0, 4, 8, None)]
    exact = exact_effects(setup, split, nodes)
    assert np.abs(exact).max() > 0.1
    for method in ("atp", "ig"):
        found = feature_effects(setup, split, method=method, steps=2, keep=None)
        values = np.stack([_of(found, node) for node in nodes], 1)
        np.testing.assert_allclose(values, exact, rtol=2e-4, atol=2e-4)


def _of(found, node) -> np.ndarray:
    """Effects of every example, from the kept entries."""
    out = np.zeros(len(found.clean))
    kept, width = found.kept, found.mean[node.place].shape[1]
    column = width - 1 if node.feature is None else node.feature
    here = (kept.place == found.places.index(node.place)) & (kept.node == column)
    here &= kept.span == found.spans.index(node.span)
    out[kept.example[here]] = kept.value[here]
    return out


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_integrals_are_closer_to_exact_effects_than_gradients(name: str) -> None:
    setup = family(name)
    every = bases(setup, ["input", "m0", "r1.post", "a1.z"])
    nodes = [Node(basis.place, f) for basis in every for f in (*range(8), None)]
    exact = exact_effects(setup, every, nodes)
    gap = {}
    for method in ("atp", "ig"):
        found = feature_effects(setup, every, method=method, keep=None)
        gap[method] = np.abs(np.stack([_of(found, node) for node in nodes], 1) - exact).mean()
    assert gap["ig"] < gap["atp"]


def test_exact_effects_agree_with_a_finite_step() -> None:
    """An exact effect of a small replacement is its gradient: checks the gradient, the direction and the sign."""
    setup = family("olmo2")
    every = bases(setup)
    atp = feature_effects(setup, every, "paired", keep=None)
    step = 1e-5
    run = setup.record_clean(clean_keys(every))
    values = values_of(setup, every, replacement(setup, every, "paired"), {b.key: run.packed(b.key) for b in every},
                       run.hidden)  # fmt: skip
    for basis in every:
        x, new = values.at[basis.place], values.whole(basis)
        change = (basis.features(new) - basis.features(x))[:, :3]
        rows = []
        for j in range(3):
            moved = (x + step * change[:, j, None] * basis.dictionary.decoder[j]).unflatten(0, (3, 5))
            rows += [Row(i, write_place(setup.model, basis.place, range(5), moved[i])) for i in range(3)]
        out = torch.zeros(len(rows), dtype=torch.float64)

        def on_read(readout, out=out):
            at, found = evaluate([setup.metric], readout, setup.targets)
            out[at] = found[setup.metric.name].double()

        replay(run, rows, on_read, columns=setup.columns)
        wanted = (setup.measure(run.hidden) - out.unflatten(0, (3, 3))).T.numpy() / step
        got = np.stack([_of(atp, Node(basis.place, j)) for j in range(3)], 1)
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-4)


def test_relp_gives_features_the_gradient_by_its_rules() -> None:
    setup = family("llama")
    every = bases(setup, ["m0", "r1.post"])
    found = feature_effects(setup, every, "zero", method="relp", keep=None)
    run = trace(setup.model, setup.model.embed(setup.clean), [5] * 3, setup.read, rules=relp())
    g = run.gradients(setup.measure(run.hidden).sum(), [basis.key for basis in every])
    for basis in every:
        f = basis.features(run.at[basis.key].detach())
        wanted = (g[basis.key] @ basis.dictionary.decoder.T * f).sum(0) / 3
        np.testing.assert_allclose(found.mean[basis.place][0, :-1], wanted.numpy(), atol=1e-10)


def test_spans_and_positions_add_up_to_all_tokens() -> None:
    setup = family("gpt2")
    every = bases(setup, ["m0", "r1.post"])
    whole = feature_effects(setup, every)
    by_span = feature_effects(setup, every, spans=["first", "rest"])
    named, names = templatic(setup)
    by_position = feature_effects(named, every, spans=names)
    assert by_position.spans == ("t0", "t1", "t2", "t3", "t4")
    for place in whole.places:
        np.testing.assert_allclose(by_span.mean[place].sum(0), whole.mean[place][0], atol=1e-12)
        np.testing.assert_allclose(by_position.mean[place].sum(0), whole.mean[place][0], atol=1e-12)
        np.testing.assert_allclose(by_position.mean[place][:2].sum(0), by_span.mean[place][0], atol=1e-12)
    with pytest.raises(TaskError, match="different things"):
        templatic(family("gpt2", lengths=(5, 6)))


@given(seed=st.integers(0, 1000), keep=st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_what_is_dropped_is_counted(seed: int, keep: int) -> None:
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(3, 2, 11)) * (rng.random((3, 2, 11)) < 0.6)
    kept = Kept.empty(4, ["m0"], 2)
    kept.add(effects, [2, 0, 3], 0, True, keep)
    kept = kept.done()
    dense = np.zeros((4, 2, 11))
    dense[kept.example, kept.span, kept.node] = kept.value
    np.testing.assert_allclose(dense.sum(-1)[[2, 0, 3]] + kept.dropped[0, [2, 0, 3]], effects.sum(-1), atol=1e-12)
    absolute = np.abs(dense).sum(-1)[[2, 0, 3]] + kept.dropped_abs[0, [2, 0, 3]]
    np.testing.assert_allclose(absolute, np.abs(effects).sum(-1), atol=1e-12)
    np.testing.assert_array_equal(dense[[2, 0, 3], :, -1], effects[..., -1])  # error terms always
    left = np.where(dense[[2, 0, 3]] == 0, np.abs(effects), 0)[..., :-1].max(-1)
    least = np.where(dense[[2, 0, 3], :, :-1] == 0, np.inf, np.abs(effects[..., :-1])).min(-1)
    assert (left <= least).all()
    assert ((dense[..., :-1] != 0).sum(-1) <= keep).all()


def test_means_are_exact_whatever_is_kept_and_chunks_do_not_matter() -> None:
    setup = family("gpt2", lengths=(6, 6, 5, 6, 5))
    every = bases(setup)
    full = feature_effects(setup, every, method="ig", steps=3, keep=None)
    few = feature_effects(setup, every, method="ig", steps=3, keep=2, budget_mib=0.01)
    for place in full.places:
        np.testing.assert_allclose(few.mean[place], full.mean[place], atol=1e-12)
    nodes = full.top(12)
    assert len(nodes) == 12
    assert [str(node) for node in few.top(12)] == [str(node) for node in nodes]
    np.testing.assert_allclose(full.values_of(nodes).mean(0), [_of(full, node).mean() for node in nodes], atol=1e-12)
    assert np.isnan(few.values_of(nodes)).any()
    table = full.frame(12)
    assert (table["low"] <= table["effect"]).all() and (table["effect"] <= table["high"]).all()
    assert table["effect"].abs().is_monotonic_decreasing


def test_top_and_above_agree_and_leave_early_blocks_out() -> None:
    setup = family("gpt2")
    every = bases(setup)
    found = feature_effects(setup, every)
    top = found.top(20)
    least = min(abs(found.mean[n.place][0, -1 if n.feature is None else n.feature]) for n in top)
    assert {str(node) for node in found.above(least * (1 - 1e-9))} == {str(node) for node in top}
    late = found.top(20, start_block=1)
    assert len(late) == 20 and {node.place for node in late} <= {"a1", "m1", "r1.post", "a2", "m2", "r2.post"}
    with pytest.raises(CircuitError):
        found.top(-1)


def test_neurons_are_a_basis_of_every_place() -> None:
    setup = family("gemma2")
    places = [*all_places(setup.model), "m1.act", "a1.z"]
    found = feature_effects(setup, bases_of(setup.model, (), places), keep=None)
    assert found.places.index("a1.z") < found.places.index("a1") < found.places.index("m1.act")
    assert found.mean["m1.act"].shape == (1, 80) and not found.has_error["m1.act"]
    wanted = node_scores(setup, ["m1", "a1", "r1.post", "m1.act"], Paired()).mean((0, 1))
    got = [found.mean[place].sum() for place in ("m1", "a1", "r1.post", "m1.act")]
    np.testing.assert_allclose(got, wanted, rtol=1e-8)


def test_bases_that_make_no_sense_are_refused() -> None:
    setup = family("gpt2")
    model = setup.model
    good = random_dictionary(model, "r1.post")
    with pytest.raises(DictionaryError, match="same activation"):
        bases_of(model, [good], ["r2"])
    with pytest.raises(DictionaryError, match="autoencoder"):
        bases_of(model, [Dictionary(*_parts(good), ("m1.in",), ("m1",))])
    with pytest.raises(DictionaryError, match="read only"):
        bases_of(model, [], ["m1.norm"])
    with pytest.raises(DictionaryError, match="numbers"):
        bases_of(family("llama", seed=1).model, [Dictionary(*_parts(good), ("m0.act",), ("m0.act",))])
    split = bases_of(model, [good])
    with pytest.raises(MetricError, match="unknown method"):
        feature_effects(setup, split, method="eap")
    with pytest.raises(InterventionError, match="unknown replacement"):
        feature_effects(setup, split, "median")  # type: ignore[arg-type]
    with pytest.raises(CircuitError, match="no node"):
        exact_effects(setup, split, [Node("r1.post", 99)])
    short = family("gpt2", lengths=(5, 6))
    with pytest.raises(InterventionError, match="mean is itself"):
        replacement(short, split, "mean")


def _parts(d: Dictionary) -> tuple[Tensor, ...]:
    return d.encoder, d.encoder_bias, d.decoder, d.decoder_bias, d.threshold


def test_gradients_at_the_clean_run_cost_one_pass_and_dictionaries_take_no_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = family("gpt2")
    every = bases(setup)
    counts = {"forward": 0, "backward": 0, "encode": 0, "decode": 0}

    def counted(name: str, function):
        def count(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return count

    monkeypatch.setattr(points, "trace", counted("forward", points.trace))
    monkeypatch.setattr(torch.autograd, "grad", counted("backward", torch.autograd.grad))
    monkeypatch.setattr(Dictionary, "encode", counted("encode", Dictionary.encode))
    monkeypatch.setattr(Features, "written", counted("decode", Features.written))
    feature_effects(setup, every)
    assert counts == {"forward": 1, "backward": 1, "encode": 2 * len(every), "decode": 0}
