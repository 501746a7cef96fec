"""SHIFT: texts, the classifier as a head, effects, ablation, judges, and a model whose right features are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import shift_toys
import torch
from families import VOCAB, make
from feature_cases import random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from crosspatch.errors import CircuitError, CrosspatchError, MetricError, ModelError, ResultError, TaskError
from crosspatch.features import Node, bases_of, exact_effects, feature_effects
from crosspatch.features.forward import ablated
from crosspatch.features.replaced import Replacement
from crosspatch.model import load
from crosspatch.results.statistics import holm
from crosspatch.shift import (
    Probe,
    Settings,
    TokenList,
    biographies,
    feature_set,
    load_shift,
    oracle_judge,
    pooled,
    pooled_without,
    probe_circuit,
    probe_judge,
    probe_setup,
    probed,
    read_answers,
    read_texts,
    removed_features,
    shift,
    splits_of,
    train_probe,
    write_template,
)
from crosspatch.shift.data import Labelled, Splits
from crosspatch.shift.judges import Judgement, ask
from crosspatch.shift.probe import TEXT, Prompts, choose_layer, prompts_of
from crosspatch.shift.result import JudgedFeature, Method, ShiftResult
from crosspatch.tasks import words

# ------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("activities", [1, 2])
@pytest.mark.parametrize("cue", ["both", "pronouns", "names"])
def test_biographies_hold_out_names_traits_and_activities(cue: str, activities: int) -> None:
    made = biographies(n=15, cue=cue, activities=activities, seed=3)
    assert made.ambiguous.counts() == {
        "male professor": 15, "female professor": 0, "male nurse": 0, "female nurse": 15,
    }  # fmt: skip
    assert set(made.test.counts().values()) == {15}
    told = [set(" ".join(each.texts).replace(".", "").split()) for each in (made.balanced, made.test)]
    shared = told[0] & told[1]
    assert not shared & {*words.NAMES, *words.TRAITS}
    assert ("He" in shared) == (cue != "names")
    assert bool(told[0] & set(words.NAMES)) == (cue != "pronouns")
    phrases = [phrase for work in words.PROFESSION_WORK[:2] for phrase in work]
    kinds = [{tuple(p for p in phrases if p in text) for text in each.texts} for each in (made.balanced, made.test)]
    assert not kinds[0] & kinds[1] and all(len(kind) == activities for both in kinds for kind in both)


@pytest.mark.parametrize(
    "wrong",
    [
        {"professions": ("nurse", "nurse")},
        {"professions": ("nurse", "poet")},
        {"n": 0},
        {"cue": "hat"},
        {"activities": 3},
    ],
)
def test_biographies_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(TaskError):
        biographies(**wrong)


def test_texts_that_run_out(monkeypatch) -> None:
    monkeypatch.setattr("crosspatch.shift.data.PATIENCE", 20)
    with pytest.raises(TaskError, match="not 100 different texts"):
        biographies(n=100)


def rows(n: int = 10, skip: tuple[str, str] | None = None) -> list[tuple[str, str, str]]:
    made = [(f"{a} {b} {i}", a, b) for a in ("doc", "art") for b in ("m", "f") for i in range(n)]
    return [row for row in made if row[1:] != skip]


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_splits_do_not_depend_on_the_order_of_the_file(rng, seed: int) -> None:
    given_rows = rows()
    shuffled = given_rows[:]
    rng.shuffle(shuffled)
    a, b = (splits_of(x, ambiguous=[("doc", "f"), ("art", "m")], seed=seed) for x in (given_rows, shuffled))
    assert set(a.test.texts) == set(b.test.texts) and set(a.balanced.texts) == set(b.balanced.texts)
    assert not set(a.test.texts) & set(a.balanced.texts) and not set(a.test.texts) & set(a.ambiguous.texts)
    assert len(set(a.test.counts().values())) == 1
    assert {name for name, n in a.ambiguous.counts().items() if n} == {"f doc", "m art"}


def test_the_more_frequent_pairing_is_the_ambiguous_one() -> None:
    made = splits_of([*rows(4), *((f"more {i}", "doc", "m") for i in range(9))])
    assert made.ambiguous.counts()["m doc"] == made.ambiguous.counts()["f art"] > 0


def test_repeated_texts_are_never_on_both_sides() -> None:
    made = splits_of(rows() * 3)
    assert not set(made.test.texts) & set(made.balanced.texts)
    assert len(set(made.test.texts)) == len(made.test)


def test_texts_that_do_not_do() -> None:
    with pytest.raises(TaskError, match="0 texts of the group"):
        splits_of(rows(skip=("doc", "f")))
    with pytest.raises(TaskError, match="label has 1 values"):
        splits_of([row for row in rows() if row[1] == "doc"])
    with pytest.raises(TaskError, match="pair each of"):
        splits_of(rows(), ambiguous=[("doc", "m"), ("doc", "f")])
    data = shift_toys.texts(2, 0)
    with pytest.raises(TaskError, match="training sets too"):
        Splits(shift_toys.texts(2, 0, (0, 3)), data, data, "")
    with pytest.raises(TaskError, match="ambiguous set"):
        Splits(data, data, shift_toys.texts(2, 40), "")
    with pytest.raises(TaskError, match="no text of the group 'female nurse'"):
        Splits(shift_toys.texts(2, 0, (0, 3)), data, shift_toys.texts(2, 40, (0, 1, 2)), "")


def test_cue_words_are_taken_out_as_words() -> None:
    data = Labelled(("She heard HER brother there.", "her"), (0, 1), (0, 1), ("a", "b"), ("c", "d"))
    assert data.without(["her", "she"]).texts == ("heard brother there.", "her")


def test_reading_texts(tmp_path) -> None:
    path = tmp_path / "bios.jsonl"
    path.write_text('{"text": "a", "label": 21, "spurious": 0}\n\n{"text": "b", "label": 13, "spurious": 1}\n')
    assert read_texts(path) == [("a", "21", "0"), ("b", "13", "1")]
    for bad in (
        "{",
        '{"text": "a", "label": 1}',
        '{"text": " ", "label": 1, "spurious": 0}',
        "[1]",
        '{"text": "a", "label": {}, "spurious": 0}',
    ):
        path.write_text(bad)
        with pytest.raises(TaskError, match="line 1"):
            read_texts(path)
    with pytest.raises(TaskError):
        read_texts(tmp_path / "missing.jsonl")


# -------------------------------------------------------------------------------------------------- classifier


def family_case(name: str, layer: int = 1, place: str | None = None, first: int = 1):
    """A random probe on a small model in double precision, with random dictionaries up to its block."""
    model = load(make(name, dtype=torch.float64), name=name)
    if name in ("llama", "gemma2", "olmo2"):
        from attribution_setups import in_double

        in_double(model.hf)
    draw = torch.Generator().manual_seed(1)
    probe = Probe(layer, torch.randn(model.shape.d_model, generator=draw, dtype=torch.float64), 0.3)
    prompts = Prompts([torch.randint(1, VOCAB, (n,), generator=draw).tolist() for n in (5, 6, 5)], first)
    cut = probed(model, probe)
    setup = probe_setup(cut, prompts, (0, 1, 1))
    layers = range(layer + 1)
    places = ["input", *(p for i in layers for p in (f"a{i}", f"m{i}", f"r{i}.post"))] if place is None else [place]
    bases = bases_of(cut, [random_dictionary(cut, p, width=12, seed=i) for i, p in enumerate(places)])
    return model, probe, prompts, setup, bases


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_the_metric_is_the_signed_logit_of_the_mean_stream(name: str) -> None:
    model, probe, prompts, setup, _ = family_case(name, layer=0)
    found = setup.measure(setup.record_clean().hidden)
    with torch.no_grad():
        for i, (ids, sign) in enumerate(zip(prompts.ids, (-1, 1, 1), strict=True)):
            seen = []
            hook = model.anatomy.blocks[0].layer.register_forward_hook(
                lambda m, a, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            model.hf(input_ids=torch.tensor([ids]))
            hook.remove()
            mean = seen[0][0, 1:].mean(0)
            assert float(found[i]) == pytest.approx(
                sign * float(mean @ probe.weight + 0.3), abs=1e-6 if name == "gemma2" else 1e-9
            )
            assert torch.allclose(pooled(model, prompts, [0])[0][i], mean.double())
    assert pooled(model, prompts, [-1])[-1].shape == (3, model.shape.d_model)


def test_probes_are_deterministic_and_separate_what_is_separable() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(80, 6, generator=draw).double()
    y = (x[:, 2] > 0).long()
    x[:, 2] += 3 * (2 * y - 1)
    for how in ("adamw", "logistic"):
        a, b = (train_probe(x, y.tolist(), 0, how, seed=4) for _ in range(2))  # type: ignore[arg-type]
        assert torch.equal(a.weight, b.weight) and a.bias == b.bias
        assert (a.predicts(x) == (y == 1).numpy()).mean() > 0.95
        assert how in a.trained_by.lower()
    assert not torch.equal(*(train_probe(x, y.tolist(), 0, "adamw", seed=k).weight for k in (4, 5)))
    with pytest.raises(MetricError):
        train_probe(x, [1] * 80, 0)
    with pytest.raises(MetricError):
        train_probe(x, y.tolist(), 0, "sgd")  # type: ignore[arg-type]


def test_the_block_is_the_one_that_tells_held_out_ambiguous_texts_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    y = [i % 2 for i in range(60)]
    noise = torch.randn(60, 4, generator=draw).double()
    told = noise.clone()
    told[:, 0] += 4 * torch.tensor(y)
    layer, loss = choose_layer({0: noise, 1: told, 2: noise}, y)
    assert layer == 1 and set(loss) == {0, 1, 2} and loss[1] < loss[0]


def test_a_probe_of_another_model_is_refused() -> None:
    model = shift_toys.model()
    for probe in (Probe(2, torch.zeros(4), 0.0), Probe(0, torch.zeros(5), 0.0)):
        with pytest.raises(ModelError):
            probed(model, probe)
    with pytest.raises(TaskError):
        prompts_of(load(make("gpt2")), ["a"])


# ------------------------------------------------------------------------------------------------------ effects


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2"])
def test_effects_at_the_probes_own_block_are_exact_and_in_closed_form(name: str) -> None:
    _, probe, _, setup, bases = family_case(name, layer=1, place="r1.post")
    effects = feature_effects(setup, bases, "zero", method="atp", spans=(TEXT,))
    (basis,) = bases
    nodes = [Node("r1.post", i, TEXT) for i in range(basis.width)] + [Node("r1.post", None, TEXT)]
    exact = exact_effects(setup, bases, nodes, "zero")
    assert np.allclose(effects.mean["r1.post"][0], exact.mean(0), atol=1e-9)
    run = setup.record_clean([basis.key])
    signs, along = (-1, 1, 1), basis.along(probe.weight[None])[0]
    for i in range(3):
        f = basis.features(run.packed(basis.key)[run.offset[i] + 1 : run.offset[i + 1]])
        assert np.allclose(exact[i, :-1], (signs[i] * f.mean(0) * along).numpy(), atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "olmo2"])
def test_integrated_effects_add_up_to_the_exact_change_at_every_place(name: str) -> None:
    _, _, _, setup, bases = family_case(name, first=0)
    effects = feature_effects(setup, bases, "zero", method="ig", steps=40, spans=(TEXT,))
    base = setup.measure(setup.record_clean().hidden)
    for basis in bases:
        every = feature_set([basis], [(basis.place, i) for i in range(basis.width)])
        every.keep[basis.place][:, -1] = True
        change = []
        for chunk in setup.chunks(1):
            ready = ablated(setup.select(chunk), (basis,), Replacement("zero"), -1)
            change.append(float(base[chunk[0]] - ready.run(every.complement())[0]))
        assert effects.mean[basis.place].sum() == pytest.approx(np.mean(change), rel=2e-2, abs=2e-4)


# ----------------------------------------------------------------------------------------------------- ablation


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_ablation_is_what_hooks_on_the_modules_do(name: str) -> None:
    model, _, prompts, setup, bases = family_case(name)
    chosen = [(basis.place, i) for basis in bases for i in (1, 4, 7)]
    found = pooled_without(setup, bases, [feature_set(bases, chosen), feature_set(bases, [])])
    blocks = model.hf.transformer.h if name == "gpt2" else model.hf.model.layers
    dictionaries = {basis.place: basis.dictionary for basis in bases}
    parts = {"input": (blocks[0], True)}
    for i, block in enumerate(blocks[:2]):
        parts[f"a{i}"] = (block.attn if name == "gpt2" else block.self_attn, False)
        parts[f"m{i}"], parts[f"r{i}.post"] = (block.mlp, False), (block, False)

    def without(place: str, x: torch.Tensor) -> torch.Tensor:
        d, x = dictionaries[place], x.clone()
        f = d.encode(x[:, 1:])  # the first token does not count
        for i in (1, 4, 7):
            x[:, 1:] -= f[..., i, None] * d.decoder[i]
        return x

    hooks = []
    for place, (part, reads) in parts.items():
        if reads:
            hooks.append(part.register_forward_pre_hook(lambda m, a, p=place: (without(p, a[0]), *a[1:])))
        else:

            def after(m, a, out, p=place):
                return (without(p, out[0]), *out[1:]) if isinstance(out, tuple) else without(p, out)

            hooks.append(part.register_forward_hook(after))
    seen: list[torch.Tensor] = []
    hooks.append(
        blocks[1].register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    )
    with torch.no_grad():
        for ids in prompts.ids:
            model.hf(input_ids=torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    literal = torch.stack([x[0, 1:].mean(0) for x in seen])
    assert torch.allclose(found[0], literal, atol=1e-9)
    assert torch.allclose(found[1], pooled(model, prompts, [1])[1], atol=1e-9)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


# ------------------------------------------------------------------------------------------- the planted features


@pytest.fixture(scope="module")
def planted():
    made = Settings(layer=0, nodes=8, n_random=6, training="logistic", input_features=8, steps=2)
    return probe_circuit(shift_toys.model(), [shift_toys.dictionary()], shift_toys.splits(), made)


def removed_numbers(found, judge) -> set[int]:
    return {feature for _, feature in removed_features(found, ask(judge, found.candidates))}


def test_every_judge_finds_the_planted_features(planted) -> None:
    largest = {c.feature for c in planted.candidates[:4]}
    assert largest == {*shift_toys.CUE_FEATURES, *shift_toys.LABEL_FEATURES}
    for judge in (TokenList.of(planted.splits.cues), oracle_judge(planted), probe_judge(planted)):
        assert removed_numbers(planted, judge) & {*largest} == {*shift_toys.CUE_FEATURES}, judge.about


def test_shift_removes_the_spurious_direction_and_random_features_do_not(planted, tmp_path) -> None:
    result = shift(planted, TokenList.of(planted.splits.cues))
    table = result.frame(draws=200).set_index("method")
    assert table.loc["original", "label"] == 0.5 and table.loc["original", "spurious"] == 1.0
    for name in ("SHIFT", "SHIFT, retrained", "input features only", "feature skyline", "cue words removed", "oracle"):
        assert table.loc[name, ["label", "spurious", "worst"]].tolist() == [1.0, 0.5, 1.0], name
    assert table.loc["random features", "label"] < 0.9
    assert table.loc["random features", "draws"] == 6 and table.loc["SHIFT", "ablated"] == 2
    assert table.loc["SHIFT", "p_holm"] < 0.05 and np.isnan(table.loc["original", "p_holm"])
    assert "not a person" in result.about["judge"]
    again = load_shift(result.save(tmp_path))
    assert again.frame(draws=200).equals(result.frame(draws=200))
    assert list(again.features) == list(result.features) and again.about == json.loads(json.dumps(result.about))
    twice = shift(planted, TokenList.of(planted.splits.cues))
    assert all(np.array_equal(a.predicted, b.predicted) for a, b in zip(result.methods, twice.methods, strict=True))


def test_effects_by_attribute_are_those_of_the_signed_logit(planted) -> None:
    data = planted.splits.balanced
    other, label = planted.effects_by_attribute(planted.bases)
    for found, right in ((other, data.spurious), (label, data.labels)):
        direct = feature_effects(planted.setup(data, right), planted.bases, "zero", spans=(TEXT,))
        assert np.allclose(found["input"], direct.mean["input"][0], atol=1e-6)


def test_what_cannot_be_done_is_left_out_with_the_reason(planted) -> None:
    bare = replace(planted.splits, cues=(), concepts=())
    found = probe_circuit(
        planted.model, [shift_toys.dictionary("r0.post")], bare, replace(planted.settings, n_random=0, retrain=False)
    )
    result = shift(found, lambda candidate: "keep")
    assert set(result.left_out) == {
        "concept bottleneck", "random features", "input features only", "cue words removed",
        "mean embeddings, cue words removed", "feature skyline", "neuron skyline",
    }  # fmt: skip
    assert [m.name for m in result.methods] == ["original", "SHIFT", "oracle"]
    assert np.array_equal(result.method("SHIFT").predicted, result.method("original").predicted)


def test_settings_that_leave_nothing(planted) -> None:
    model, data, one = planted.model, planted.splits, [shift_toys.dictionary("r1.post")]
    with pytest.raises(CircuitError, match="no dictionary"):
        probe_circuit(model, one, data, Settings(layer=0))
    with pytest.raises(CircuitError, match="no block 7"):
        probe_circuit(model, one, data, Settings(layer=7))
    with pytest.raises(CircuitError, match="no feature"):
        probe_circuit(model, one, data, Settings(layer=1, threshold=1e9))


# ------------------------------------------------------------------------------------------------------- judges


def test_judges_say_only_verdicts(planted) -> None:
    with pytest.raises(CircuitError, match="'perhaps' is no verdict"):
        ask(lambda candidate: "perhaps", planted.candidates)  # type: ignore[arg-type,return-value]
    said = ask(lambda candidate: Judgement("unsure", "?"), planted.candidates)
    assert removed_features(planted, said) == []


def test_a_persons_answers(planted, tmp_path) -> None:
    path = tmp_path / "answers.json"
    assert write_template(path, planted.candidates)
    with pytest.raises(CircuitError, match="has no verdict yet"):
        read_answers(path)
    names = list(json.loads(path.read_text())["answers"])
    assert names == [c.name for c in planted.candidates]
    answers = {name: "ablate" if name in ("input/2", "input/3") else "keep" for name in names}
    path.write_text(json.dumps({"answers": answers, "notes": {"input/2": "he"}}))
    assert not write_template(path, planted.candidates)  # what a person wrote is never lost
    judge = read_answers(path)
    assert "a person" in judge.about and removed_numbers(planted, judge) == {2, 3}
    assert ask(judge, planted.candidates)["input/2"].reason == "he"
    table = tmp_path / "answers.csv"
    table.write_text("feature,verdict\n" + "".join(f"{name},{said}\n" for name, said in answers.items()))
    assert removed_numbers(planted, read_answers(table)) == {2, 3}
    path.write_text(json.dumps({"answers": {"input/2": "ablate"}}))
    with pytest.raises(CircuitError, match="has no answer for"):
        ask(read_answers(path), planted.candidates)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"answers": 3}', '{"answers": {"input/2": "remove"}}'])
def test_answers_that_cannot_be_read(text: str, tmp_path) -> None:
    for name in ("a.json", "a.csv"):
        path = tmp_path / name
        path.write_text(text if name.endswith("json") else f"feature,verdict\ninput/2,{text}x\n")
        with pytest.raises(CircuitError):
            read_answers(path)
    with pytest.raises(CircuitError):
        read_answers(tmp_path / "none.json")


# ------------------------------------------------------------------------------------------------------ results


def a_result(seed: int = 0, n: int = 40) -> ShiftResult:
    rng = np.random.default_rng(seed)
    labels, spurious = rng.integers(0, 2, n), rng.integers(0, 2, n)
    labels[:4], spurious[:4] = [0, 0, 1, 1], [0, 1, 0, 1]
    methods = [
        Method("original", "baseline", "", 0, (spurious == 1)[None]),
        Method("SHIFT", "SHIFT", "x", 3, (labels == 1)[None]),
        Method("random", "baseline", "", 3, rng.integers(0, 2, (5, n)) == 1),
    ]
    feature = JudgedFeature("r0.post/1", 0.5, None, None, "keep", "", True, ("a",), ("b",))
    return ShiftResult(methods, labels, spurious, ("a", "b", "c", "d"), [feature], 1, {"x": 1})


def test_the_table_says_what_the_predictions_say() -> None:
    result = a_result()
    table = result.frame(draws=500).set_index("method")
    same = (result.labels == result.spurious).mean()
    assert table.loc["original", "label"] == pytest.approx(same) and table.loc["original", "spurious"] == 1
    assert table.loc["SHIFT", "label"] == 1 and table.loc["SHIFT", "spurious"] == pytest.approx(same)
    assert table.loc["original", "worst"] == 0 and table.loc["SHIFT", "worst"] == 1
    assert table.loc["SHIFT", "gain"] == pytest.approx(1 - same)
    drawn = result.method("random").predicted == (result.labels == 1)
    group = 2 * result.labels + result.spurious
    worst = np.mean([min(row[group == g].mean() for g in range(4)) for row in drawn])
    assert table.loc["random", "worst"] == pytest.approx(worst)
    assert table.loc["random", "band_low"] == drawn.mean(1).min()
    for measure in ("label", "spurious", "worst"):
        assert (table[f"{measure}_low"] <= table[measure] + 1e-9).all()
        assert (table[measure] <= table[f"{measure}_high"] + 1e-9).all()
    with pytest.raises(ResultError):
        result.method("none")


def test_an_interval_of_a_share_that_all_texts_agree_on_is_the_exact_one() -> None:
    result = a_result(n=60)
    table = result.frame(draws=200).set_index("method")
    assert table.loc["SHIFT", "label_high"] == 1
    assert binom.cdf(59, 60, table.loc["SHIFT", "label_low"]) == pytest.approx(0.975)
    group = 2 * result.labels + result.spurious
    for name in ("original", "SHIFT", "random"):
        found = result.group_intervals(name, draws=200)
        for (label, mean), (again, low, high) in zip(result.groups(name).items(), found.values(), strict=True):
            n = int((group == result.group_names.index(label)).sum())
            assert mean == again and low <= mean <= high
            if mean in (0, 1):
                assert (high - low) == pytest.approx(1 - 0.025 ** (1 / n))
    worst = table.loc["original", "worst_group"]
    n = int((group == result.group_names.index(worst)).sum())
    assert table.loc["original", "worst_low"] == 0
    assert binom.cdf(0, n, table.loc["original", "worst_high"]) == pytest.approx(0.025)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.update(version=2),
        lambda data: data.update(labels="0121"),
        lambda data: data["methods"][0].update(predicted=["01"]),
        lambda data: data["methods"].pop(0),
        lambda data: data.pop("features"),
        lambda data: data.update(methods=3),
    ],
)
def test_a_damaged_file_is_refused(spoil, tmp_path) -> None:
    path = a_result().save(tmp_path) / "shift.json"
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CrosspatchError):
        load_shift(tmp_path)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm(p: list[float]) -> None:
    given_p = np.array([*p, np.nan])
    adjusted = holm(given_p)
    assert np.isnan(adjusted[-1])
    assert (adjusted[:-1] >= given_p[:-1]).all() and (adjusted[:-1] <= np.minimum(1, len(p) * given_p[:-1])).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[:-1][order]) >= 0).all()


def test_holm_of_a_textbook_case() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
