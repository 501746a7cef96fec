"""Every finding of the checklist, on results made so that it must (and must not) be there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from crosspatch.metrics import resolve_metrics
from crosspatch.patching import Zero, diagnose
from crosspatch.results import Methodology, SweepResult
from crosspatch.results.evidence import control_size, matters

N = 32


def result(
    denoise, noise, *, metrics=None, control=None, addresses=None, n=N, clusters=None, clean=2.0, corrupt=0.0, **changes
):
    """A sweep in which row i restores `denoise[i]` and breaks `noise[i]` of a gap of 2, with a little spread.

    `metrics`: for further metrics, name -> (denoise effects, noise effects, clean value, corrupt value).
    """
    rng = np.random.default_rng(0)
    wanted = {"logit_diff": (denoise, noise, clean, corrupt)} | (metrics or {})
    base = {side: {} for side in ("clean", "corrupt")}
    patched = {"denoise": {}, "noise": {}}
    for name, (restores, breaks, high, low) in wanted.items():
        base["clean"][name] = np.broadcast_to(np.asarray(high, float), n).copy()
        base["corrupt"][name] = np.broadcast_to(np.asarray(low, float), n).copy()
        for direction, values in (("denoise", restores), ("noise", breaks)):
            if values is None:
                continue
            effect = np.stack([np.broadcast_to(np.asarray(v, float), n) for v in values])
            effect = effect + 0.01 * rng.standard_normal(effect.shape) * (np.abs(effect) > 0)
            start = base["corrupt"][name] if direction == "denoise" else base["clean"][name]
            patched[direction][name] = start + effect if direction == "denoise" else start - effect
    count = len(denoise if denoise is not None else noise)
    rows = pd.DataFrame(
        {
            "address": addresses or [f"a{i}.h0@END" for i in range(count)],
            "kind": "z",
            "layer": range(count),
            "index": 0,
            "position": ["END" if i % 2 else "S2" for i in range(count)],
            "granularity": "head",
            "control": control or [""] * count,
        }
    ).assign(parent="", corruption=changes.pop("corruption", "swap"))
    method = Methodology(
        granularity=("head",), component=("z",), source="other run", positions=("END",), direction=("denoise", "noise"),
        metrics=tuple(wanted), task="t", task_hash="0", n_examples=n, model="m", config_hash="0", weights_hash="0",
        dtype="float32", corruption="swap",
    )  # fmt: skip
    return SweepResult(rows, patched["denoise"], patched["noise"], base["clean"], base["corrupt"],
                       clusters or [f"T{i % 8}" for i in range(n)], dataclasses.replace(method, **changes))  # fmt: skip


def codes(found, **kwargs):
    return {finding.code: finding for finding in diagnose(found, **kwargs)}


def test_a_sound_result_gets_notes_only():
    found = codes(result([1.9, 0.5, 0.0], [1.9, 0.5, 0.0]))
    assert {f.severity for f in found.values()} == {"note"}
    assert {"scope", "one-corruption"} == set(found)


def test_gate_labels_become_sentences():
    found = codes(result([1.9, 0.0, 1.9], [0.0, 1.9, 1.9]))
    assert found["redundant"].rows == [0]
    assert found["needs-company"].rows == [1]
    assert "not absence" in found["redundant"].text


def test_more_than_all_and_less_than_nothing():
    found = codes(result([3.0, -0.6, 1.0], [1.0, -0.6, 1.0]))
    assert found["overshoot"].rows == [0]
    assert found["negative-parts"].rows == [1]


def test_one_direction():
    found = codes(result(None, [1.0, 0.5]))
    assert "parts with a backup (OR)" in found["one-direction"].text
    assert not {"redundant", "needs-company"} & set(found)


def test_few_examples_and_one_template():
    found = codes(result([1.0] * 4, [1.0] * 4, n=6, clusters=["T"] * 6))
    assert "cannot turn into q" in found["few-examples"].text
    assert "one-template" in found
    assert "few-examples" not in codes(result([1.0] * 4, [1.0] * 4))


def test_few_examples_are_judged_by_their_interval():
    small = result([1.0, 0.0], [1.0, 0.0], n=4, clusters=list("abcd"))
    assert matters(small, small.frame())["denoise"].tolist() == [True, False]


def test_wide_intervals():
    spread = np.linspace(-3, 4, N)
    found = codes(result([spread, 1.0], [spread, 1.0], clusters=[f"e{i}" for i in range(N)]))
    assert found["wide-intervals"].rows == [0]


def test_examples_that_go_both_ways_and_the_order_of_averaging():
    mixed = np.where(np.arange(N) % 9 == 0, -1.0, 1.5)
    found = codes(result([mixed, 1.0], [mixed, 1.0]))
    assert found["mixed-signs"].rows == [0]
    gaps = np.where(np.arange(N) % 4 == 0, 0.4, 2.0)
    assert codes(result([0.8, 0.0], [0.8, 0.0], clean=gaps))["averaging-order"].rows == [0]


def test_no_gap_and_the_wrong_sign():
    gap = np.full(N, 2.0)
    gap[3], gap[5] = 0.0, -1.0
    found = codes(result([1.0], [1.0], clean=gap))
    assert "1 of 32 examples (3)" in found["small-denominators"].text
    assert "(5)" in found["reversed-examples"].text


@pytest.mark.parametrize("kind", ["random site", "random direction"])
def test_not_above_random(kind):
    same = "a1.h0@END" if kind == "random direction" else "a9.h0@END"
    swept = result([1.5, 0.4, 0.5], [1.5, 0.4, 0.0], control=["", "", kind], addresses=["a0.h0@END", "a1.h0@END", same])
    found = codes(swept)
    assert found["not-above-random"].rows == [1]
    assert "denoise" in found["not-above-random"].title
    own = control_size(swept, "denoise").round(1).tolist()
    assert own[:2] == ([0.0, 0.5] if kind == "random direction" else [0.5, 0.5])


def test_metrics_that_disagree_are_an_error_in_a_confirmatory_run():
    opposed = {"log_prob": ([-0.5, 0.5], [-0.5, 0.5], 0.0, -1.0)}
    assert codes(result([1.0, 1.0], [1.0, 1.0], metrics=opposed))["metrics-disagree"].severity == "warning"
    strict = codes(result([1.0, 1.0], [1.0, 1.0], metrics=opposed, mode="confirmatory"))["metrics-disagree"]
    assert (strict.severity, strict.rows) == ("error", [0])


def test_kl_without_logit_difference():
    kl = {"kl": ([0.0, 0.0], [-0.6, -0.6], 0.0, 1.0)}
    assert codes(result([1.0, 0.0], [1.0, 0.0], metrics=kl))["kl-without-logit-diff"].rows == [1]


def test_damage_looks_like_help():
    parts = {"answer_logit": ([-0.5, 0.5], [0.0, 0.0], 1.0, 0.0), "entropy": ([0.3, -0.3], [0.0, 0.0], 1.0, 2.0)}
    assert codes(result([1.0, 1.0], [1.0, 1.0], metrics=parts))["damage"].rows == [0]


def test_curved_and_saturated_metrics():
    swept = result([0.5], [0.5])
    for name in ("denoise", "noise", "clean", "corrupt"):
        values = getattr(swept, name)
        setattr(swept, name, {"prob": 0.475 * values.pop("logit_diff")})
    found = codes(swept)
    assert {"no-linear-metric", "probability-only", "saturation"} <= set(found)


def test_sources_corruptions_and_force_are_named():
    assert "off the distribution" in codes(result([1.0], [1.0]), source=Zero())["off-distribution"].text
    assert codes(result([1.0], [1.0], forced=True))["forced"].severity == "error"
    two = result([1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], addresses=["a0.h0@S", "a1.h0@S"] * 2)
    two.rows["corruption"] = ["x", "x", "y", "y"]
    found = codes(two)["corruption-specific"]
    assert "1 of 2 parts matter under some corruptions only (a1.h0@S)" in found.text
    assert found.rows == [1]


def test_nothing_found_is_not_absence():
    assert "not evidence of absence" in codes(result([0.0], [0.0]))["nothing-found"].text


def test_positions():
    swept = result([1.0, 1.0], [1.0, 1.0])
    assert "end-only" not in codes(swept)
    swept.rows["position"] = "END"
    assert "end-only" in codes(swept)


def test_order_and_shape_of_findings():
    found = diagnose(result([3.0, -0.6], [1.0, -0.6], forced=True), metrics=resolve_metrics("logit_diff"))
    order = ["error", "warning", "note"]
    assert [order.index(f.severity) for f in found] == sorted(order.index(f.severity) for f in found)
    assert all(f.title and f.text.endswith((".", "!")) for f in found)
    assert len({f.code for f in found}) >= 5
