"""The statistics keep their promises: coverage, uniform p under the null, exact identities, no infinities."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from crosspatch.results import statistics as s

finite = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 6))
matrices = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 8)), elements=finite)


def rng(seed=0):
    return np.random.default_rng(seed)


# --- bootstrap


@pytest.mark.parametrize("n", [6, 16, 40])
def test_the_interval_of_the_mean_covers(n):
    """Nominal 95 %. Plain percentiles would cover 86 % at n = 6; the expanded ones stay near nominal."""
    values = rng(n).normal(1.0, 2.0, (2000, n))
    found = s.bootstrap_mean(values, s.resampler(n, draws=1000, seed=1))
    covered = np.mean((found.low <= 1.0) & (found.high >= 1.0))
    assert 0.92 < covered < 0.98


def test_ignoring_clusters_covers_too_little_and_clusters_repair_it():
    clusters = [f"template {i // 5}" for i in range(60)]
    random = rng(3)
    values = np.repeat(random.normal(0, 1, (1000, 12)), 5, axis=1) + random.normal(0, 0.3, (1000, 60))
    coverage = {}
    for unit, names in [("examples", None), ("clusters", clusters)]:
        sampler = s.resampler(60, names, draws=1000, seed=2)
        found = s.bootstrap_mean(values, sampler)
        coverage[unit] = np.mean((found.low <= 0) & (found.high >= 0))
        assert sampler.unit == unit
    assert coverage["examples"] < 0.75
    assert coverage["clusters"] > 0.91


def test_the_ratio_of_means_covers():
    random = rng(5)
    gap = random.normal(4, 1, 24)
    effects = 0.3 * gap + random.normal(0, 0.5, (1500, 24))
    found = s.bootstrap_ratio_of_means(effects, gap, s.resampler(24, draws=800, seed=4), min_gap=0.1)
    truth = 0.3
    assert 0.92 < np.mean((found.low <= truth) & (found.high >= truth)) < 0.98


def test_one_cluster_falls_back_to_examples_and_says_so():
    assert s.resampler(4, ["a"] * 4).unit == "examples"
    two = s.resampler(4, ["a", "a", "b", "b"])
    assert (two.unit, two.n_units) == ("clusters", 2)
    assert (two.weights[:, 0] == two.weights[:, 1]).all()


def test_one_example_has_no_interval():
    found = s.bootstrap_mean(np.array([[1.0]]), s.resampler(1))
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()


@given(matrices)
def test_intervals_hold_the_extremes_and_shift_with_the_data(values):
    sampler = s.resampler(values.shape[1], draws=200)
    found, shifted = s.bootstrap_mean(values, sampler), s.bootstrap_mean(values + 10, sampler)
    assert (values.min(1) - 1e-9 <= found.low).all()
    assert (found.high <= values.max(1) + 1e-9).all()
    np.testing.assert_allclose(shifted.low, found.low + 10, atol=1e-6)


def test_intervals_are_seeded_and_do_not_depend_on_other_rows_or_blocks(monkeypatch):
    values = rng(1).normal(size=(9, 12))
    sampler = s.resampler(12, seed=7)
    whole = s.bootstrap_mean(values, sampler)
    monkeypatch.setattr(s, "_BLOCK_BYTES", 8 * 2000 * 2)
    blocked = s.bootstrap_mean(values, s.resampler(12, seed=7))
    np.testing.assert_allclose(whole.low, blocked.low)
    assert (s.bootstrap_mean(values, s.resampler(12, seed=8)).low != whole.low).any()


def test_examples_that_were_not_measured_are_left_out():
    values = rng(2).normal(5, 1, (1, 30))
    holes = np.concatenate([values, np.full((1, 30), np.nan)], axis=1)
    labels = [str(i) for i in range(60)]
    found = s.bootstrap_mean(holes, s.resampler(60, labels))
    assert found.low[0] < values.mean() < found.high[0]
    nothing = s.bootstrap_mean(np.full((1, 5), np.nan), s.resampler(5))
    assert np.isnan(nothing.low[0])


# --- sign-flip test


def by_hand(values):
    sums = [abs(np.dot(signs, values)) for signs in itertools.product([1, -1], repeat=len(values))]
    return np.mean(np.array(sums) >= abs(values.sum()) * (1 - 1e-12))


@given(hnp.arrays(np.float64, st.integers(1, 7), elements=st.integers(-5, 5).map(float)))
def test_the_exact_p_value_is_the_share_of_sign_patterns(values):
    assert s.sign_flip_p(values[None])[0] == pytest.approx(by_hand(values))


@pytest.mark.parametrize(("n", "clusters"), [(10, None), (30, None), (40, [str(i // 4) for i in range(40)])])
def test_p_is_uniform_when_nothing_is_there(n, clusters):
    random = rng(n)
    values = random.normal(size=(1500, n))
    if clusters:
        values += np.repeat(random.normal(size=(1500, 10)), 4, axis=1)
    p = s.sign_flip_p(values, clusters, draws=4000)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_ignoring_clusters_would_find_things_that_are_not_there():
    values = np.repeat(rng(9).normal(size=(500, 10)), 4, axis=1)
    assert (s.sign_flip_p(values, draws=2000) < 0.05).mean() > 0.2
    assert (s.sign_flip_p(values, [str(i // 4) for i in range(40)]) < 0.05).mean() < 0.08


@given(hnp.arrays(np.float64, (3, 9), elements=st.integers(-5, 5).map(float)), st.integers(0, 99))
def test_rounding_breaks_no_ties(values, seed):
    """Effects as float32 gives them: the p of exact ones, whichever way the last digits fall."""
    off = values + rng(seed).uniform(-1, 1, values.shape) * 1e-6 * np.abs(values)
    np.testing.assert_allclose(s.sign_flip_p(off), s.sign_flip_p(values))


@given(hnp.arrays(np.float64, (4, 20), elements=st.floats(-9, 9)), st.floats(0, 2))
def test_tolerance_makes_p_larger_only(values, rounding):
    assert (s.sign_flip_p(values, rounding=rounding) >= s.sign_flip_p(values)).all()


def test_effects_within_rounding_are_none():
    noise = rng(1).uniform(0.5, 1, (1, 12)) * 3e-6  # all of one sign, as rounding can be
    assert s.sign_flip_p(noise)[0] == s.smallest_p(12)
    assert s.sign_flip_p(noise, rounding=3e-6)[0] == 1
    assert s.sign_flip_p(noise + 0.1, rounding=3e-6)[0] == s.smallest_p(12)


def test_shares_of_a_total_that_may_be_zero_are_none():
    effects = rng(3).normal(1, 0.1, (2, 12))
    sampler = s.resampler(12)
    share, around = s.share_of_total(effects, rng(4).normal(0.02, 1, 12), sampler)
    assert np.isnan([share, around.low, around.high]).all()
    share, around = s.share_of_total(effects, np.full(12, -2.0), sampler)
    np.testing.assert_allclose(share, -effects.mean(axis=1) / 2)
    assert (around.low < share).all() and (share < around.high).all()
    share, around = s.share_of_total(effects[:, :1], np.array([2.0]), s.resampler(1))  # no interval, but a share
    np.testing.assert_allclose(share, effects[:, 0] / 2)
    assert np.isnan(around.low).all()


def test_few_clusters_are_not_flipped_as_wholes():
    clusters = ["a"] * 6 + ["b"] * 6
    assert (s.flip_units(12, clusters) == np.arange(12)).all()
    assert s.flip_units(12, [str(i // 2) for i in range(12)]).max() == 5


def test_strong_effects_reach_the_smallest_p_and_it_is_never_zero():
    for n in (4, 12, 16, 50):
        assert s.sign_flip_p(np.ones((1, n)))[0] == pytest.approx(s.smallest_p(n))
        assert s.smallest_p(n) > 0


def test_p_of_nothing_changed_is_one_and_of_nothing_measured_is_missing():
    p = s.sign_flip_p(np.array([[0.0, 0, 0, 0], [np.nan] * 4]))
    assert p[0] == 1
    assert np.isnan(p[1])


# --- false discovery rate


p_values = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1, allow_nan=False))


@given(p_values)
def test_benjamini_hochberg_is_monotone_and_equals_scipy(p):
    q = s.benjamini_hochberg(p)
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= 0).all()
    assert ((q >= p - 1e-12) & (q <= 1)).all()
    np.testing.assert_allclose(q, stats.false_discovery_control(p), atol=1e-12)


def test_missing_p_values_are_no_tests():
    q = s.benjamini_hochberg(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(q, [0.02, np.nan, 0.04])


# --- interaction and gates


@given(hnp.arrays(np.float64, (4, 5), elements=finite))
def test_interaction_is_the_second_difference_of_the_game(f):
    """f[2 x + y]: the part's value from run x, all else from run y (0 corrupt, 1 clean); spec 1.2."""
    kk, kc, ck, cc = f
    denoise, noise = ck - kk, cc - kc
    np.testing.assert_allclose(s.interaction(noise[None], denoise[None])[0], cc - kc - ck + kk, atol=1e-9)


def labels_of(denoise, noise, gap=1.0, n=12, spread=0.0, tolerance=0.02):
    wiggle = spread * np.linspace(-1, 1, n)
    d, e = (np.full((1, n), float(x)) for x in (denoise, noise))
    sampler = s.resampler(n)
    between = s.bootstrap_mean(s.interaction(e + wiggle, d), sampler)
    return s.gate_labels(between, s.bootstrap_mean(d, sampler), s.bootstrap_mean(e, sampler), gap, tolerance)[0]


def test_gates_have_the_textbook_labels():
    assert labels_of(denoise=0, noise=1) == "and-like"
    assert labels_of(denoise=1, noise=0) == "or-like"
    assert labels_of(denoise=0.5, noise=0.5) == "additive"
    assert labels_of(denoise=0.5, noise=0.51) == "additive"
    assert labels_of(denoise=0, noise=0) == "none"
    assert labels_of(denoise=0.5, noise=0.5, spread=3) == "unclear"
    assert labels_of(denoise=np.nan, noise=0.5) == ""


def test_gates_do_not_depend_on_which_way_the_metric_points():
    assert labels_of(denoise=0, noise=-1, gap=-1) == "and-like"
    assert labels_of(denoise=-1, noise=0, gap=-1) == "or-like"
    assert labels_of(denoise=-1, noise=-1, gap=-1) == "additive"


# --- shares of the gap


@given(matrices, st.floats(0, 5))
def test_shares_are_never_infinite_and_what_is_left_out_is_counted(effects, min_gap):
    gap = np.linspace(-2, 2, effects.shape[1]).round(1)
    shares = s.ratios(effects, gap, min_gap)
    assert not np.isinf(shares).any()
    small = (np.abs(gap) < min_gap) | (gap == 0)
    assert (s.left_out(effects, shares) == small.sum()).all()
    assert not np.isinf(s.ratio_of_means(effects, gap, min_gap)).any()


def test_the_two_orders_of_averaging_differ_and_are_what_they_say():
    effects, gap = np.array([[1.0, 1.0, 3.0]]), np.array([1.0, 4.0, 0.01])
    assert s.ratio_of_means(effects, gap, 0.1)[0] == pytest.approx(5 / 5.01)
    shares = s.ratios(effects, gap, 0.1)
    assert s.describe(shares)["effect"][0] == pytest.approx((1 + 0.25) / 2)
    assert s.left_out(effects, shares)[0] == 1
    assert np.isnan(s.ratio_of_means(effects, np.array([1.0, -1.0, 0.0]), 0.1)[0])


def test_describe_is_numpy_without_the_missing():
    values = np.array([[1.0, 2, 3, np.nan], [np.nan] * 4])
    found = s.describe(values)
    assert found["effect"][0] == 2
    assert found["sd"][0] == pytest.approx(1)
    assert [found[k][0] for k in ("min", "q25", "median", "q75", "max", "n")] == [1, 1.5, 2, 2.5, 3, 3]
    assert np.isnan(found["effect"][1])
    assert found["n"][1] == 0


@given(hnp.arrays(np.float64, (3, 7), elements=st.one_of(finite, st.just(np.nan))))
def test_quantiles_are_those_of_numpy(values):
    values[:, 0] = 1.0
    at = [0, 0.025, 0.25, 0.5, 1]
    np.testing.assert_allclose(s._quantiles(values, at), np.nanquantile(values, at, axis=1), atol=1e-9)


def test_worst_cases_come_worst_first():
    assert s.worst_cases(np.array([3.0, np.nan, -1.0, 2.0]), 2) == [2, 3]


@pytest.mark.filterwarnings("error")
def test_infinite_values_give_honest_intervals_and_no_warning():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 1, (5, 24))
    values[1, 3] = np.inf
    values[2, 3] = -np.inf
    values[3, :2] = np.inf, -np.inf
    values[4] = np.inf
    sampler = s.resampler(24)
    ends = s.bootstrap_mean(values, sampler)
    alone = s.bootstrap_mean(values[:1], sampler)
    assert (ends.low[0], ends.high[0]) == (alone.low[0], alone.high[0])  # other rows do not disturb a finite one
    assert np.isfinite(ends.low[1])
    assert ends.high[1] == np.inf  # two resamples of three hold the infinite one
    assert ends.low[2] == -np.inf
    assert np.isfinite(ends.high[2])
    assert np.isnan([ends.low[3], ends.high[3]]).all()
    assert (ends.low[4], ends.high[4]) == (np.inf, np.inf)
    described = s.describe(values)
    np.testing.assert_array_equal(described["effect"][1:], [np.inf, -np.inf, np.nan, np.inf])
    assert described["n"].tolist() == [24] * 5
    np.testing.assert_array_equal(described["max"], [values[0].max(), np.inf, values[2].max(), np.inf, np.inf])
    p = s.sign_flip_p(values)
    assert p[0] < 0.01
    assert np.isnan(p[1:]).all()
    gap = np.full(24, 6.0)
    shares = s.bootstrap_ratio_of_means(values, gap, sampler, 0.1)
    assert shares.high[1] == np.inf
    assert s.ratio_of_means(values, gap, 0.1)[4] == np.inf
    assert s.left_out(values, s.ratios(values, gap, 0.1)).tolist() == [0] * 5
    gap[3] = np.inf  # an infinite gap is no yardstick: that example is left out
    assert np.isfinite(s.bootstrap_ratio_of_means(values, gap, sampler, 0.1).high[1])
    assert s.left_out(values, s.ratios(values, gap, 0.1)).tolist() == [1] * 5
    assert s.worst_cases(values[2], 1) == [3]
    assert s.gate_labels(ends, ends, ends, np.inf) == [""] * 5


@pytest.mark.filterwarnings("error")
def test_equal_infinities_have_no_difference():
    inf = np.inf
    np.testing.assert_array_equal(s.minus(np.array([inf, -inf, 1.0]), np.array([inf, inf, inf])), [np.nan, -inf, -inf])
