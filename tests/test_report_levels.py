"""From the effect table to figures: nothing is lost or mixed up on the way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from crosspatch.report import gate_plot, heat_maps
from crosspatch.report.levels import baseline, control_band, effects_of, level_of, remarks_of
from crosspatch.results import Finding, Methodology, SweepResult

N = 8


def sweep(directions: tuple[str, ...] = ("denoise", "noise"), corruption: tuple[str, ...] = ("",)) -> SweepResult:
    """Two layers of two heads, the residual stream, a control; row i restores i / 10 of the gap and breaks 2i / 10."""
    names = [
        ("a0.h0", "z", 0, 0),
        ("a0.h1", "z", 0, 1),
        ("a1.h0", "z", 1, 0),
        ("a1.h1", "z", 1, 1),
        ("r0", "resid_pre", 0, None),
    ]
    rows = [
        {
            "address": f"{name}@END", "kind": kind, "layer": layer, "index": index, "position": "END",
            "granularity": "head" if kind == "z" else "residual", "corruption": c,
        }
        for c in corruption
        for name, kind, layer, index in names
    ]  # fmt: skip
    rows.append({**rows[0], "address": "a0.h0@END", "control": "random direction"})
    table = pd.DataFrame(rows).fillna({"control": ""})
    gap = np.linspace(1.0, 3.0, N)
    corrupt = np.linspace(-1, 1, N)
    share = np.arange(len(rows))[:, None] / 10
    methodology = Methodology(
        granularity=("head",), component=("z",), source="paired", positions=("END",), direction=directions,
        metrics=("logit_diff", "prob"), task="t", task_hash="h", n_examples=N, model="m", config_hash="c",
        weights_hash="w", dtype="float32",
    )  # fmt: skip
    denoise = dict.fromkeys(("logit_diff", "prob"), corrupt + share * gap) if "denoise" in directions else {}
    noise = dict.fromkeys(("logit_diff", "prob"), corrupt + gap - 2 * share * gap) if "noise" in directions else {}
    findings = [
        Finding("odd", "note", "text", [1], "", ""),
        Finding("bad", "error", "text", [3, 3], "A title", "A fix"),
    ]
    return SweepResult(
        table, denoise, noise, dict.fromkeys(("logit_diff", "prob"), corrupt + gap),
        {m: corrupt.copy() for m in ("logit_diff", "prob")}, [f"t{i % 4}" for i in range(N)], methodology, findings,
    )  # fmt: skip


def test_effects_carry_the_table_and_leave_controls_out() -> None:
    result = sweep()
    effects = effects_of(result)
    assert [e.address for e in effects] == ["a0.h0@END", "a0.h1@END", "a1.h0@END", "a1.h1@END", "r0@END"]
    third = effects[2]
    assert (third.layer, third.index, third.kind) == (1, 0, "z")
    assert effects[4].index is None
    assert third.denoise.share == pytest.approx(0.2)
    assert third.noise.share == pytest.approx(0.4)
    assert third.denoise.mean == pytest.approx(0.4)
    assert third.interaction.mean == pytest.approx(0.4)
    assert third.denoise.low < 0.4 < third.denoise.high
    np.testing.assert_allclose(third.each_noise, 0.4 * np.linspace(1, 3, N))


def test_the_band_is_the_range_of_the_controls() -> None:
    band = control_band(sweep())
    assert band.denoise == pytest.approx((1.0, 1.0))
    assert band.noise == pytest.approx((2.0, 2.0))
    assert "1 random controls" in band.words or "random direction" in band.words


def test_levels_keep_every_metric() -> None:
    level = level_of(sweep())
    assert list(level.others) == ["prob"]
    assert level_of(sweep(), metric="prob").others.keys() == {"logit_diff"}


def test_findings_become_remarks_in_order_of_severity() -> None:
    first, second = remarks_of(sweep())
    assert (first.severity, first.title, first.rows, first.fix) == ("error", "A title", ("a1.h1@END",), "A fix")
    assert (second.severity, second.title, second.rows) == ("note", "odd", ("a0.h1@END",))


def test_findings_of_one_title_become_one_remark() -> None:
    result = sweep()
    result.findings = [Finding("few", "note", text, [row], "Few") for text, row in (("a", 0), ("b", 1), ("a", 1))]
    (only,) = remarks_of(result)
    assert (only.details, only.rows) == (("a", "b"), ("a0.h0@END", "a0.h1@END"))


def test_baseline_is_the_mean_with_an_interval() -> None:
    estimate = baseline(sweep(), "clean")
    assert estimate.mean == pytest.approx(2.0)
    assert estimate.low < 2.0 < estimate.high


def test_figures_of_a_sweep_for_notebooks() -> None:
    maps = heat_maps(sweep())
    assert list(maps) == ["Residual stream", "Attention heads"]
    assert all(len(figure.panels) == 2 for figure in maps.values())
    assert len(heat_maps(sweep(("noise",)))["Attention heads"].panels) == 1
    assert "a1.h1@END" in gate_plot(sweep()).panels[0].body


def test_several_corruptions_are_kept_apart() -> None:
    result = sweep(corruption=("S2", "names"))
    keys = [e.key for e in effects_of(result)]
    assert len(keys) == len(set(keys)) == 10
    assert "a1.h1@END (names)" in keys
    assert list(heat_maps(result)) == [
        "Residual stream (S2)", "Attention heads (S2)", "Residual stream (names)", "Attention heads (names)",
    ]  # fmt: skip
    assert remarks_of(result)[0].rows == ("a1.h1@END (S2)",)


def test_a_gap_of_zero_shows_raw_effects_instead_of_shares() -> None:
    result = sweep()
    for metric in result.clean:
        result.clean[metric] = result.corrupt[metric].copy()
    figure = heat_maps(result)["Attention heads"]
    assert "raw effect" in str(figure.caption)
    assert figure.panels
