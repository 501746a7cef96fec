"""Path patching that was stopped goes on where it was, with the numbers of a run that was not."""

from __future__ import annotations

import copy
import json

import numpy as np
import pandas as pd
import pytest
from path_toys import random_pairs, small

import crosspatch as cp
from crosspatch.errors import ResultError
from crosspatch.paths import Pairs, decohere, mediation, path_patch, paths, refine, test_paths
from crosspatch.paths import kept as module
from crosspatch.results.checkpoint import Parts

TINY = 1e-6
"""MiB: so little that every pair is a chunk of its own."""


class Stopped:
    """Progress that is stopped by hand once it has come so far; remembers where it was before."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.seen: list[float] = []

    def __call__(self, done: float, total: float) -> None:
        self.seen.append(done)
        if done >= self.at:
            raise KeyboardInterrupt


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """How many pairs every call of `measure` measured."""
    seen: list[int] = []
    measure = module.measure

    def counting(model, sets, pairs, *args, **kwargs):
        seen.append(len(pairs) - len(kwargs.get("skip", ())))
        return measure(model, sets, pairs, *args, **kwargs)

    monkeypatch.setattr(module, "measure", counting)
    return seen


def stopped(call, at: float, folder, **options) -> Stopped:
    progress = Stopped(at)
    with pytest.raises(KeyboardInterrupt):
        call(**options, checkpoint=folder, progress=progress, budget_mib=TINY)
    return progress


def same(a: object, b: object) -> None:
    """Numbers that are equal up to rounding (these models compute in float64), and words that are equal."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            same(a[name], b[name])
    elif isinstance(a, np.ndarray | float):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b, rtol=1e-9, atol=1e-12)
    elif hasattr(a, "__dataclass_fields__"):
        for name in a.__dataclass_fields__:
            same(getattr(a, name), getattr(b, name))
    else:
        assert a == b


def equal(a: object, b: object) -> None:
    """The same numbers, bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            equal(a[name], b[name])
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    elif hasattr(a, "__dataclass_fields__"):
        for name in a.__dataclass_fields__:
            equal(getattr(a, name), getattr(b, name))
    else:
        assert a == b


def works(model, pairs) -> dict:
    claims = {"one": paths("** -> a1.h0 ~> logits"), "two": paths("** -> m0 -> logits")}
    return {
        "senders": lambda **more: path_patch(model, pairs, "a*.h*, m*", ["a1.h1.q", "a2.h0.k@S"], **more),
        "test": lambda **more: test_paths(model, claims, pairs, **more),
        "mediation": lambda **more: mediation(model, pairs, "a0.h1", **more),
        "decohering": lambda **more: decohere(
            model, claims, {"q": paths("** -> a1.*.q -> ** -> logits")}, pairs, **more
        ),
        "refinement": lambda **more: refine(model, [], pairs, max_steps=3, min_gain=0, n_random=3, **more),
    }


@pytest.mark.parametrize("work", ["senders", "test", "mediation", "decohering", "refinement"])
def test_a_stopped_run_goes_on_and_finds_the_same(work, tmp_path, measured) -> None:
    model, pairs = small("gpt2", 3), random_pairs(12, seed=3)
    call = works(model, pairs)[work]
    whole = call()
    measured.clear()
    begun = stopped(call, 1.3 if work == "refinement" else 5, tmp_path)
    assert 1 < len(begun.seen) < 20
    measured.clear()
    went_on = Stopped(np.inf)
    same(call(checkpoint=tmp_path, progress=went_on), whole)
    assert went_on.seen[0] == pytest.approx(begun.seen[-1])  # nothing that was finished is measured again
    if work == "refinement":
        assert len(whole.log) > 3
        searched = len(pairs.split(0.3, 0)[0])
        assert 0 < measured[0] < searched and measured[1:-1] == [searched] * (len(measured) - 2)
    else:
        assert measured == [12 - 5]
    measured.clear()
    same(call(checkpoint=tmp_path), whole)
    assert measured == []


@pytest.mark.parametrize("work", ["senders", "test", "mediation", "decohering", "refinement"])
def test_with_the_same_memory_a_run_that_goes_on_is_equal_bit_for_bit(work, tmp_path, measured) -> None:
    """In float32, with prompts of two lengths and several pairs in a chunk."""
    model = cp.load(copy.deepcopy(small("gpt2", 3).hf).float(), name="gpt2")
    short, long = random_pairs(10, seed=3), random_pairs(10, length=7, seed=4)
    parts = {name: [*getattr(short, name), *getattr(long, name)] for name in vars(short) if name != "provenance"}
    pairs = Pairs(**parts, provenance="two lengths")
    call = works(model, pairs)[work]
    budget = {"budget_mib": 0.1}
    steps = Stopped(np.inf)
    whole = call(progress=steps, **budget)
    assert 3 < len(steps.seen) < 40
    half = steps.seen[len(steps.seen) // 2 :]
    at = next(so_far for so_far in half if work != "refinement" or so_far % 1)  # within a step
    with pytest.raises(KeyboardInterrupt):
        call(checkpoint=tmp_path, progress=Stopped(at), **budget)
    measured.clear()
    equal(call(checkpoint=tmp_path, **budget), whole)
    assert 0 < measured[0] < (len(pairs.split(0.3, 0)[0]) if work == "refinement" else 20)


def test_stopped_again_and_again_it_still_ends_as_it_would_have(tmp_path) -> None:
    model, pairs = small("gpt2", 2), random_pairs(12, seed=3)
    for work in ("senders", "refinement"):
        call = works(small("gpt2", 3), pairs)[work] if work == "senders" else (
            lambda **more: refine(model, ["** -> a1.h0 ~> logits"], pairs, max_steps=2, min_gain=0, n_random=2, **more)
        )  # fmt: skip
        whole, stops, found = call(), 0, None
        while found is None:
            calls = iter(range(10**6))

            def second(*_: float, calls=calls) -> None:
                if next(calls) >= 2:
                    raise KeyboardInterrupt

            try:
                found = call(checkpoint=tmp_path / work, progress=second, budget_mib=TINY)
            except KeyboardInterrupt:
                stops += 1
        assert stops > 3
        same(found, whole)


def test_an_accepted_step_is_kept_before_the_next_begins(tmp_path) -> None:
    model, pairs = small("gpt2", 3), random_pairs(12, seed=3)
    call = works(model, pairs)["refinement"]
    whole = call()
    stopped(call, 2.1, tmp_path)
    state = json.loads((tmp_path / "parts" / "methodology.json").read_text())["refinement"]["state"]
    assert [row["pattern"] for row in state["rows"]] == whole.log["pattern"].tolist()[:3]
    assert not state["ended"]
    assert len(Parts(tmp_path).rows(module.COLUMNS)) == 1  # of the third step one pair


def test_masked_pairs_and_reads_are_those_of_a_plain_run(tmp_path) -> None:
    model, pairs = small("gpt2", 2), random_pairs(4, seed=5, read=(2, 4))
    mask = [[True, False], [True, True], [False, False], [False, False]]
    call = lambda **more: test_paths(  # noqa: E731
        model, {"a": paths("** -> a1.h0 -> logits")}, pairs, mask=mask, dissimilarity="kl", **more
    )
    whole = call()
    assert np.isnan(whole.total).tolist() == [False, False, True, True]
    stopped(call, 2, tmp_path)
    same(call(checkpoint=tmp_path), whole)


REFUSED = {
    "senders": ({"senders": "a0.h*"}, 'senders ("a*.h*" there, "a0.h*" asked for)'),
    "receivers": ({"receivers": "logits"}, "receivers"),
    "mlps": ({"mlps": "frozen"}, 'mlps ("direct" there, "frozen" asked for)'),
    "semantics": ({"semantics": "union"}, "semantics"),
    "norms": ({"norms": "frozen"}, "norms"),
    "dissimilarity": ({"dissimilarity": "kl"}, "dissimilarity"),
    "pairs": ({"pairs": random_pairs(6, seed=9)}, "pairs_hash"),
    "model": ({"model": small("llama", 2)}, "weights_hash"),
}


@pytest.mark.parametrize("changed", REFUSED)
def test_a_sweep_of_something_else_is_refused_with_what_differs(changed, tmp_path) -> None:
    asked = {"model": small("gpt2", 2), "pairs": random_pairs(6), "senders": "a*.h*", "receivers": ["a1.h0.q", "m1"]}
    stopped(path_patch, 3, tmp_path, **asked)
    more, said = REFUSED[changed]
    with pytest.raises(ResultError) as caught:
        path_patch(**asked | more, checkpoint=tmp_path)
    assert said in caught.value.what
    if changed not in ("model", "receivers"):
        assert caught.value.what.count(" there, ") == 1
    assert path_patch(**asked, checkpoint=tmp_path).senders == ["a0.h0", "a0.h1", "a1.h0", "a1.h1"]


@pytest.mark.parametrize(
    "more",
    [{"min_gain": 0.02}, {"max_steps": 3}, {"held_out": 0.4}, {"nodes": "a*.h*"}, {"positions": ["S"]}, {"seed": 1},
     {"n_random": 4}, {"always": paths("** -> m0 -> logits")}, {"patterns": ["** -> m1 -> logits"]}],
    ids=lambda more: next(iter(more)),
)  # fmt: skip
def test_another_search_is_refused_with_what_differs(more, tmp_path) -> None:
    asked = {"model": small("gpt2", 2), "pairs": random_pairs(10), "patterns": [], "max_steps": 2, "n_random": 2}
    stopped(refine, 0.5, tmp_path, **asked)
    name = next(iter(more)).replace("patterns", "start")
    with pytest.raises(ResultError, match=rf"made in another way: {name} \("):
        refine(**asked | more, checkpoint=tmp_path)


def test_with_frozen_norms_the_control_is_measured_in_one_go(tmp_path, measured) -> None:
    """How far frozen scales are from recomputed ones is known only where all pairs were seen."""
    model, pairs = small("gpt2", 3), random_pairs(12, seed=3)
    call = works(model, pairs)["decohering"]
    stopped(call, 5, tmp_path, norms="frozen")
    measured.clear()
    found = call(checkpoint=tmp_path, norms="frozen")
    assert measured == [12]
    assert found.about == call(norms="frozen").about


def test_what_is_refused_leaves_nothing_and_damage_is_named(tmp_path) -> None:
    model, pairs = small("gpt2", 2), random_pairs(6)
    with pytest.raises(Exception, match="no span"):
        path_patch(model, pairs, "a0.h0@T", "logits", checkpoint=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    stopped(works(model, pairs)["test"], 3, tmp_path)
    part = sorted((tmp_path / "parts").glob("part-*"))[0]
    good = part.read_bytes()
    part.write_bytes(good[:-20])
    with pytest.raises(ResultError, match="checksum"):
        works(model, pairs)["test"](checkpoint=tmp_path)
    part.write_bytes(good)
    header = tmp_path / "parts" / "methodology.json"
    for damage in ("{", "[]", '{"test": 3}', '{"test": {"asked": 1}}'):
        kept = header.read_text()
        header.write_text(damage)
        with pytest.raises(ResultError, match=r"methodology\.json"):
            works(model, pairs)["test"](checkpoint=tmp_path)
        header.write_text(kept)


def test_damaged_steps_are_named(tmp_path) -> None:
    model, pairs = small("gpt2", 2), random_pairs(12, seed=3)
    call = lambda **more: refine(model, [], pairs, max_steps=2, min_gain=0, n_random=2, **more)  # noqa: E731
    stopped(call, 1.1, tmp_path)
    header = tmp_path / "parts" / "methodology.json"
    good = json.loads(header.read_text())
    for state in (3, {"rows": []}, {"rows": [{"step": "fly", "pattern": "", "explained": 1}], "ended": False}):
        header.write_text(json.dumps({"refinement": good["refinement"] | {"state": state}}))
        with pytest.raises(ResultError, match="steps that cannot be read"):
            call(checkpoint=tmp_path)
