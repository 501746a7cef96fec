"""ACDC: batched, cached and resumable, against the loop that tests one edge at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from circuit_twin import random_masks, random_setup, slow_masks, tiny

from crosspatch.attribution.recorded import record_pairs
from crosspatch.circuits.acdc import acdc, acdc_scores
from crosspatch.circuits.masked import run_masks
from crosspatch.errors import CircuitError
from crosspatch.graph import edge_table
from crosspatch.metrics import KL


def literal(setup, threshold, ablation="paired", absolute=False, forward=False, start=None, evaluate=run_masks):
    """One edge at a time, as the paper has it: (circuit, [(edge, change, cut)])."""
    table = edge_table(setup.model.shape)
    keep = table.exists.copy() if start is None else start.copy()
    worse = -1 if setup.metric.better == "higher" else 1
    current = evaluate(setup, [keep], ablation).mean()
    log = []
    for v in range(len(table.receivers))[::-1]:
        senders = [u for u in range(len(table.senders)) if keep[u, v]]
        for u in senders if forward else senders[::-1]:
            keep[u, v] = False
            after = evaluate(setup, [keep], ablation).mean()
            change = worse * (after - current)
            change = abs(change) if absolute else change
            cut = bool(change < threshold)
            keep[u, v] = not cut
            current = after if cut else current
            log.append((table.number(u, v), change, cut))
    return keep, log


@pytest.mark.parametrize("threshold", [0.01, 0.1])
@pytest.mark.parametrize(("family", "ablation"), [("gpt2", "paired"), ("gpt2", "zero"), ("llama", "mean-all")])
def test_acdc_is_the_literal_loop(family, ablation, threshold):
    setup = random_setup(tiny(family, 2), (5, 4))
    found = acdc(setup, threshold, ablation)
    keep, log = literal(setup, threshold, ablation)
    assert np.array_equal(found.keep, keep)
    assert found.edges.tolist() == [edge for edge, _, _ in log]
    assert found.cut.tolist() == [cut for _, _, cut in log]
    np.testing.assert_allclose(found.change, [change for _, change, _ in log], atol=1e-5)
    assert 0 < keep.sum() < edge_table(setup.model.shape).exists.sum()
    assert found.value == pytest.approx(run_masks(setup, [keep], ablation).mean(), abs=1e-5)
    assert found.start == pytest.approx(run_masks(setup, [edge_table(setup.model.shape).exists], ablation).mean())


def test_acdc_with_the_slow_engine_and_kl():
    setup = random_setup(tiny("gpt_neox", 1), (4, 5), metric=KL())
    found = acdc(setup, 0.02)
    keep, _ = literal(setup, 0.02, evaluate=slow_masks)
    assert np.array_equal(found.keep, keep)
    assert (found.change[found.cut] < 0.02).all()
    assert (found.change[~found.cut] >= 0.02).all()


def test_criterion_order_and_start():
    setup = random_setup(tiny("gpt2", 2), (5,))
    table = edge_table(setup.model.shape)
    found = acdc(setup, 0.1, change="absolute", order="forward")
    keep, log = literal(setup, 0.1, absolute=True, forward=True)
    assert np.array_equal(found.keep, keep)
    assert found.edges.tolist() == [edge for edge, _, _ in log]
    start = random_masks(setup.model, (0.7,))[0]
    found = acdc(setup, 0.1, start=start)
    assert np.array_equal(found.keep, literal(setup, 0.1, start=start)[0])
    assert not (found.keep & ~start).any()
    scores = np.random.default_rng(0).normal(size=table.exists.shape)
    found = acdc(setup, 0.1, order=scores)
    last = found.edges[: int(table.reach[-1])] - table.number(0, len(table.receivers) - 1)
    assert last.tolist() == np.argsort(np.abs(scores[:, -1])).tolist()


def test_a_stopped_search_goes_on_where_it_was(tmp_path):
    setup = random_setup(tiny("gpt2", 2), (5, 4))
    whole = acdc(setup, 0.1)
    file = tmp_path / "acdc.json"

    class Stop(Exception):
        pass

    def stop(done, of):
        if done > of / 2:
            raise Stop

    with pytest.raises(Stop):
        acdc(setup, 0.1, checkpoint=file, progress=stop)
    n_seen = len(json.loads(file.read_text())["edges"])
    assert 0 < n_seen < len(whole.edges)
    rest = acdc(setup, 0.1, checkpoint=file)
    assert np.array_equal(rest.keep, whole.keep)
    assert rest.edges.tolist() == whole.edges.tolist()
    assert rest.evaluations < whole.evaluations
    assert rest.value == pytest.approx(whole.value, abs=1e-5)
    with pytest.raises(CircuitError, match="threshold"):
        acdc(setup, 0.2, checkpoint=file)
    with pytest.raises(CircuitError, match="search"):
        acdc(setup.select([1, 0]), 0.1, checkpoint=file)
    stored = json.loads(file.read_text())
    for damage in ({"edges": [-1] * len(stored["edges"])}, {"cut": []}, {"change": "all"}):
        file.write_text(json.dumps(stored | damage))
        with pytest.raises(CircuitError, match=r"cannot be read|damaged"):
            acdc(setup, 0.1, checkpoint=file)


def test_scores_are_the_smallest_threshold_that_cuts():
    setup = random_setup(tiny("gpt2", 1), (5, 4))
    table = edge_table(setup.model.shape)
    thresholds = (0.3, 0.01, 1.0)
    found = acdc_scores(setup, thresholds)
    expected = np.full(table.exists.shape, np.inf)
    for threshold in sorted(thresholds)[::-1]:
        expected[~acdc(setup, threshold, recorded=record_pairs(setup)).keep] = threshold
    np.testing.assert_array_equal(found[table.exists], expected[table.exists])
    assert np.isnan(found[~table.exists]).all()
    assert len(np.unique(found[table.exists])) > 2


def test_what_cannot_be_searched_is_refused():
    setup = random_setup(tiny("gpt2", 1), (5,))
    with pytest.raises(CircuitError, match="criterion"):
        acdc(setup, 0.1, change="better")
    with pytest.raises(CircuitError, match="order"):
        acdc(setup, 0.1, order="random")
    with pytest.raises(CircuitError, match="scores"):
        acdc(setup, 0.1, order=np.zeros(3))
    with pytest.raises(CircuitError, match="mask"):
        acdc(setup, 0.1, start=np.zeros(3, dtype=bool))
