"""Sources: what value each of them inserts, on activations that are known."""

from __future__ import annotations

import pytest
import torch
import toys

from crosspatch.errors import AddressError, InterventionError, TaskError
from crosspatch.graph import parse_site
from crosspatch.metrics import resolve_metrics
from crosspatch.model import FromRun
from crosspatch.patching.experiment import prepare
from crosspatch.patching.plan import plan_cells
from crosspatch.patching.positions import Spots, roles
from crosspatch.patching.references import Mean, Resample
from crosspatch.patching.sources import (
    Function,
    GaussianNoise,
    Given,
    OtherRun,
    Zero,
    as_source,
    embedding_std,
)
from crosspatch.tasks.align import align
from crosspatch.tasks.pairs import Pair, Task


@pytest.fixture(scope="module")
def world():
    model, words = toys.random_network()
    tokenized = toys.random_task(n=6).tokenize(words)
    return prepare(model, tokenized, resolve_metrics("logit_diff"))


def spot(world, position, example=0, side="clean"):
    return world.spots.spot(side, example, position)


def inserted(world, source, site="a1.h2", position="END", example=0, draw=0, direction="noise"):
    """The value that a source inserts, as a tensor."""
    site = parse_site(site)
    edit = source.bind(world.setting, [site]).edit(direction, site, example, spot(world, position, example), draw)
    if isinstance(edit.value, FromRun):
        return edit.value.run.value(site, edit.value.example)[list(edit.value.positions or edit.positions)]
    if isinstance(edit.value, torch.Tensor):
        return edit.value
    side = "clean" if direction == "noise" else "corrupt"
    return edit.value(world.runs[side].value(site, example)[list(edit.positions)])


def values(world, side, site="a1.h2"):
    return [world.runs[side].value(site, i) for i in range(len(world.tokenized))]


def test_other_run_is_the_paired_prompt(world):
    for direction, other in (("noise", "corrupt"), ("denoise", "clean")):
        expected = values(world, other)[3][[-1]]
        assert torch.equal(inserted(world, OtherRun(), example=3, direction=direction), expected)


def test_zero_given_and_function(world):
    assert inserted(world, Zero()).tolist() == [0.0]
    tensor = torch.arange(8.0)
    assert torch.equal(inserted(world, Given(tensor)), tensor)
    assert torch.equal(inserted(world, Given({"a1.h2": tensor})), tensor)
    assert torch.equal(inserted(world, Function(lambda x: 2 * x)), 2 * values(world, "clean")[0][[-1]])
    with pytest.raises(InterventionError, match=r"no value is given for m1(?s:.*)a1\.h2"):
        Given({"a1.h2": tensor}).bind(world.setting, [parse_site("m1")])


@pytest.mark.parametrize("per", ["position", "span", "all"])
def test_mean(world, per):
    got = inserted(world, Mean("corrupt", per), position="changed")
    rows = values(world, "corrupt")
    expected = torch.cat(rows).mean(0) if per == "all" else torch.stack([row[2] for row in rows]).mean(0)
    assert torch.allclose(got, expected, atol=1e-6)


def test_mean_keeps_to_the_template():
    model = toys.and_network()
    tokenized = toys.gate_task(6).tokenize(model.tokenizer)
    world = prepare(model, tokenized, resolve_metrics("logit_diff"))
    got = inserted(world, Mean("clean"), "r0", 0, example=1)
    alike = [i for i in range(6) if tokenized.clusters[i] == tokenized.clusters[1]]
    assert alike == [1, 4]
    rows = values(world, "clean", "r0")
    assert torch.allclose(got, torch.stack([rows[i][[0]] for i in alike]).mean(0))


def test_mean_over_other_prompts(world):
    prompts = [world.tokenized.clean[0], world.tokenized.corrupt[1], world.tokenized.clean[2][:2]]
    got = inserted(world, Mean(prompts), "r1", 4)
    expected = torch.stack([world.runs["clean"].value("r1", 0)[[4]], world.runs["corrupt"].value("r1", 1)[[4]]]).mean(0)
    assert torch.allclose(got, expected, atol=1e-6)
    with pytest.raises(InterventionError, match=r"none of the 1 reference prompts(?s:.*)Mean\(per='all'\)"):
        inserted(world, Mean([[1, 2]]), "r1", 4)


def test_mean_over_a_task(world):
    other = toys.random_task(seed=5, n=3)
    got = inserted(world, Mean(other), "r0", "changed")
    ids = [ids[2] for ids in other.tokenize(world.model.tokenizer).clean]
    assert torch.allclose(got, world.model.embed([[i] for i in ids]).mean(0), atol=1e-6)


def test_noise_has_the_asked_size_and_repeats():
    model, words = toys.random_network()
    world = prepare(model, toys.random_task(n=2).tokenize(words), resolve_metrics("logit_diff"))
    std = embedding_std(model)
    assert std == pytest.approx(float(model.hf.get_input_embeddings().weight.detach().std()), rel=0.02)
    source, base = GaussianNoise(scale=3.0), values(world, "clean", "input")[0]
    draws = torch.stack([inserted(world, source, "input", "*", draw=d) - base for d in range(10)])
    assert float(draws.std()) == pytest.approx(3 * std, rel=0.05)
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], inserted(world, GaussianNoise(scale=3.0), "input", "*") - base)
    assert not torch.equal(draws[0], inserted(world, GaussianNoise(seed=1), "input", "*") - base)


def test_resample_draws_other_prompts_without_replacement(world):
    rows = values(world, "corrupt")
    found = []
    for draw in range(5):
        value = inserted(world, Resample("corrupt", draws=5), example=1, draw=draw)
        found.append(next(i for i, row in enumerate(rows) if torch.equal(row[[-1]], value)))
    assert sorted(found) == [0, 2, 3, 4, 5]


def test_what_is_no_source_is_refused_with_the_source_that_was_meant():
    for given, meant in (
        (None, "no source was given"),
        (torch.zeros(3), r"Given\(tensor\)"),
        (lambda x: x, r"Function\(fn\)"),
        (Zero, r"Zero\(\.\.\.\)"),
        ("mean", "str is not a source"),
    ):
        with pytest.raises(InterventionError, match=meant):
            as_source(given)
    with pytest.raises(InterventionError, match="at least one draw"):
        GaussianNoise(draws=0)
    with pytest.raises(InterventionError, match="'position', 'span' or 'all'"):
        Mean(per="token")


def test_roles_cover_every_token_once(world):
    names = roles(world.tokenized)
    assert names == ["changed", "rest", "END"]
    covered = sorted(p for name in names for p in spot(world, name).positions)
    assert covered == list(range(5))
    assert [str(c.address) for c in plan_cells(world.model.shape, world.tokenized, "m0")] == [
        "m0@changed", "m0@rest", "m0@END"]  # fmt: skip


def test_unequal_lengths_use_the_alignment():
    model, words = toys.random_network()
    pair = Pair("t1 t2 t3 t9", "t1 t4 t5 t3 t9", " t7", " t8", {"name": "t2"}, {"name": "t4 t5"})
    tokenized = Task("unequal", [pair]).tokenize(words)
    spots = Spots(tokenized, align(tokenized))
    noise = spots.spot("clean", 0, "*")
    assert (noise.positions, noise.paired, noise.partners) == ((0, 1, 2, 3), (0, 1, 2, 3), (0, 2, 3, 4))
    denoise = spots.spot("corrupt", 0, "name")
    assert (denoise.positions, denoise.paired, denoise.partners) == ((1, 2), (2,), (1,))
    world = prepare(model, tokenized, resolve_metrics("logit_diff"))
    assert torch.equal(inserted(world, OtherRun(), "r2", -1), world.runs["corrupt"].value("r2", 0)[[4]])


def test_places_that_do_not_exist_are_named(world):
    with pytest.raises(
        AddressError, match=r"example 0, clean prompt: position 9 does not exist(?s:.*)5 tokens: use 0 to 4"
    ):
        spot(world, 9)
    with pytest.raises(AddressError, match=r"no span 'subject'(?s:.*)END, changed, rest"):
        spot(world, "subject")
    tokenized = Task("bad", [Pair("t1 t2 t3", "t1 t4", " t7", " t8")]).tokenize(world.model.tokenizer)
    with pytest.raises(TaskError, match="no span names what differs"):
        Spots(tokenized, align(tokenized)).spot("clean", 0, 1)


def test_plans_that_do_not_exist_are_named(world):
    plan = lambda *args, **kwargs: plan_cells(world.model.shape, world.tokenized, *args, **kwargs)  # noqa: E731
    for sites, match in (
        ("a9.h0", "layer 9 does not exist(?s:.*)3 layers, 0 to 2"),
        ("blocks.1.hook_resid_pre", "did you mean r1"),
        ("r0@subject", "no span 'subject'"),
        ("logits", r"read, not patched(?s:.*)r2\.post"),
        ("a0.h3.k", r"share keys and values(?s:.*)a0\.kv1\.k"),
    ):
        with pytest.raises(AddressError, match=match):
            plan(sites)
    with pytest.raises(AddressError, match="'roles', 'tokens', 'all'"):
        plan("r0", "rolls")
    with pytest.raises(AddressError, match="no span 'S2'"):
        plan("r0", ["S2"])
    with pytest.raises(AddressError, match="have a layer"):
        plan("input", window=3)
    assert [c.address for c in plan("a*", ["END"], window=3)] == ["a[0-1]@END", "a[0-2]@END", "a[1-2]@END"]
    assert [c.address for c in plan("r1@*, m*@END")] == ["m0@END", "r1", "m1@END", "m2@END"]
    assert [c.position for c in plan("r1", "tokens")] == [0, 1, 2, 3, 4]
    assert [c.position for c in plan("r1", "all")] == ["*"]
