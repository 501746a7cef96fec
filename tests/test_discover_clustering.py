"""Clusters: planted ones are found, seeds repeat, and agreement is measured as it is defined."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import SpectralClustering
from sklearn.manifold import spectral_embedding
from sklearn.metrics import adjusted_rand_score

from crosspatch.discover import (
    Clustering,
    Samples,
    angular_similarity,
    baselines,
    cluster,
    comparison,
    histogram_vectors,
    load_clustering,
    rand_index,
    stability,
)
from crosspatch.discover.agreement import adjusted_rand, leave_out
from crosspatch.discover.clustering import _KMeans, ordered, spectral_space, unit
from crosspatch.errors import ResultError, TaskError


def planted(
    k: int = 5, each: int = 16, d: int = 40, noise: float = 0.15, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Directions with vectors of all lengths around them."""
    draw = np.random.default_rng(seed)
    centres = np.linalg.qr(draw.standard_normal((d, k)))[0].T
    truth = draw.permutation(np.repeat(np.arange(k), each))
    x = centres[truth] + noise * draw.standard_normal((len(truth), d)) / d**0.5
    return (x * 10.0 ** draw.uniform(-6, 3, (len(truth), 1))).astype(np.float32), truth


def samples_of(answers: list[int], labels: list[str] | None = None, ends: list[int] | None = None) -> Samples:
    ends = ends or list(range(len(answers)))
    return Samples(
        [(1, end) for end in ends], np.array(answers), np.zeros(len(answers)), np.arange(len(answers)), labels,
        {i: str(i) for i in range(200)},
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- clustering


@pytest.mark.parametrize("method", ["spectral", "kmeans"])
@pytest.mark.parametrize("k", [2, 5, 9])
def test_planted_clusters_are_found(method, k) -> None:
    values, truth = planted(k)
    found = cluster(values, k, method=method)
    assert adjusted_rand_score(truth, found.labels) == 1
    assert all(adjusted_rand_score(truth, again) == 1 for again in found.repeats)


def test_kmeans_in_batches_finds_them_too(monkeypatch) -> None:
    from crosspatch.discover import clustering

    monkeypatch.setattr(clustering, "MOST_WHOLE", 100)
    monkeypatch.setattr(clustering, "ROWS", 64)
    values, truth = planted(5, each=200)
    assert adjusted_rand_score(truth, cluster(values, 5, method="kmeans", repeats=0).labels) > 0.99


def test_the_number_of_clusters_is_chosen_by_how_many_are_large_enough() -> None:
    values, truth = planted(8, each=6)
    found = cluster(values, contexts=list(range(48)), least=5, repeats=0)
    tried = {row["k"]: row["clusters"] for row in found.about["chosen"]["tried"]}
    assert found.about["k"] == min(k for k, n in tried.items() if n == max(tried.values()))
    assert adjusted_rand_score(truth, found.labels) > 0.7
    # The same context again and again is one context.
    same = cluster(values, contexts=["x"] * 48, least=2, repeats=0)
    assert {row["clusters"] for row in same.about["chosen"]["tried"]} == {0}


def test_auto_is_spectral_up_to_a_size(monkeypatch) -> None:
    from crosspatch.discover import clustering

    values, _ = planted()
    assert cluster(values, 5, repeats=0).about["method"] == "spectral"
    monkeypatch.setattr(clustering, "MOST_SPECTRAL", 10)
    assert cluster(values, 5, repeats=0).about["method"] == "kmeans"


@pytest.mark.parametrize("method", ["spectral", "kmeans"])
def test_seeds_repeat(method) -> None:
    values, _ = planted(6, noise=1.5)
    a, b = (cluster(values, 10, method=method, seed=3, repeats=2) for _ in range(2))
    assert np.array_equal(a.labels, b.labels)
    assert all(np.array_equal(x, y) for x, y in zip(a.repeats, b.repeats, strict=True))
    assert np.array_equal(a.repeats[0], cluster(values, 10, method=method, seed=4, repeats=0).labels)


def test_the_spectral_space_is_scikit_learns() -> None:
    values, _ = planted(4, noise=1.0)
    similarity = angular_similarity(values)
    ours = spectral_space(similarity, 5)
    theirs = spectral_embedding(similarity.astype(np.float64), n_components=5, drop_first=False, random_state=0)
    for column in range(5):
        a, b = ours[:, column], theirs[:, column]
        assert abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) == pytest.approx(1, abs=1e-5)
    values, _ = planted(4)
    labels = SpectralClustering(4, affinity="precomputed", random_state=0).fit_predict(angular_similarity(values))
    assert adjusted_rand_score(labels, cluster(values, 4, repeats=0).labels) == 1


def test_both_ways_to_the_eigenvectors_agree() -> None:
    values, _ = planted(6, each=20, noise=2.0)
    similarity = angular_similarity(values)
    few, many = spectral_space(similarity, 10), spectral_space(similarity, 60)  # Lanczos, then all of LAPACK
    assert np.allclose(np.abs(few), np.abs(many[:, :10]), atol=1e-6)


def test_angular_similarity_is_1_for_equal_half_for_right_angles_and_0_for_opposite_vectors() -> None:
    x = np.array([[1, 0], [5, 0], [0, 1e-30], [-2, 0], [0, 0]], dtype=np.float32)
    wanted = [[1, 1, 0.5, 0, 0.5], [1, 1, 0.5, 0, 0.5], [0.5, 0.5, 1, 0.5, 0.5], [0, 0, 0.5, 1, 0.5], [0.5] * 4 + [1]]
    assert np.allclose(angular_similarity(x), wanted, atol=1e-3)


def test_centres_of_kmeans_are_on_the_sphere_and_each_sample_is_with_the_nearest() -> None:
    values, _ = planted(6, noise=2.0)
    runner = _KMeans(values)
    labels = runner.run(6, 0)
    x = unit(values)
    centres = np.stack([x[labels == c].sum(0) for c in range(6)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    assert np.array_equal((x @ centres.T).argmax(1), labels)  # a fixed point of Lloyd's steps


def test_no_cluster_is_empty_where_vectors_differ() -> None:
    values, _ = planted(2, each=20)
    assert len(np.unique(_KMeans(values).run(10, 0))) == 10


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_clusters_are_numbered_from_the_largest(labels) -> None:
    found = ordered(np.array(labels))
    sizes = np.bincount(found)
    assert (np.diff(sizes) <= 0).all()
    assert adjusted_rand_score(labels, found) == 1


@pytest.mark.parametrize(
    ("values", "options"),
    [(np.eye(3), {"k": 4}), (np.eye(3), {"k": 0}), (np.ones((1, 2)), {"k": 1}), (np.eye(3), {"method": "magic"}),
     (np.array([[1.0, np.nan], [0, 1], [1, 1]]), {"k": 2}), (np.array([[1.0, np.inf], [0, 1], [1, 1]]), {"k": 2})],
)  # fmt: skip
def test_what_cannot_be_clustered_is_refused(values, options) -> None:
    with pytest.raises(TaskError):
        cluster(values, **options)


def test_a_clustering_comes_back_from_its_file(tmp_path) -> None:
    values, _ = planted()
    found = cluster(values, repeats=2)
    found.save(tmp_path, "abc")
    again = load_clustering(tmp_path, "abc")
    assert np.array_equal(again.labels, found.labels)
    assert again.about == found.about
    with pytest.raises(ResultError, match="other samples"):
        load_clustering(tmp_path, "xyz")
    path = tmp_path / "clusters.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"labels": [-1, 0]}), "utf-8")
    with pytest.raises(ResultError, match="cannot be read"):
        load_clustering(tmp_path, "abc")


# ---------------------------------------------------------------------------------------------------------- agreement


@given(st.data(), st.integers(1, 20))
def test_the_adjusted_rand_index_is_scikit_learns(data, n) -> None:
    a, b = (np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))) for _ in range(2))
    assert adjusted_rand(a, b) == pytest.approx(adjusted_rand_score(a, b))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_equal_partitions_agree_and_shuffled_ones_do_not(seed, k) -> None:
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, k, 120)
    documents = np.repeat(np.arange(60), 2)
    assert rand_index(truth, draw.permutation(k)[truth], documents)[0] == 1
    value, low, high = rand_index(truth, draw.integers(0, k, 120), documents)
    assert abs(value) < 0.2
    assert low <= value <= high


def test_the_interval_is_the_jackknife_of_the_mean() -> None:
    """For a mean, leaving out one at a time gives the usual standard error."""
    x = np.random.default_rng(0).standard_normal(20)
    value, low, high = leave_out(lambda kept: float(x[kept].mean()), np.arange(20))
    assert value == pytest.approx(x.mean())
    assert (high - low) / 2 == pytest.approx(2.093 * x.std(ddof=1) / 20**0.5, rel=1e-3)


def test_intervals_leave_out_whole_documents() -> None:
    x = np.repeat(np.random.default_rng(0).standard_normal(10), 30)
    documents = np.repeat(np.arange(10), 30)
    clustered = leave_out(lambda kept: float(x[kept].mean()), documents)
    single = leave_out(lambda kept: float(x[kept].mean()), np.arange(300))
    assert clustered[2] - clustered[1] > 3 * (single[2] - single[1])


def test_stability_is_the_mean_over_pairs_of_runs() -> None:
    draw = np.random.default_rng(0)
    runs = [draw.integers(0, 3, 50) for _ in range(4)]
    pairs = [adjusted_rand_score(runs[i], runs[j]) for i in range(4) for j in range(i)]
    value, low, high = stability(runs)
    assert value == pytest.approx(np.mean(pairs))
    assert low < value < high
    assert stability([runs[0]] * 3) == (1, 1, 1)
    assert np.isnan(stability(runs[:1])[0])


def test_the_table_has_baselines_truth_and_null() -> None:
    values, truth = planted(4, each=15)
    samples = samples_of((truth % 2 + 5).tolist(), [f"b{t}" for t in truth], (truth // 2 + 7).tolist())
    frame = comparison(samples, {"vectors": cluster(values, 4), **baselines(samples)}).set_index("clustering")
    assert frame.loc["vectors", "truth"] == 1
    assert frame.loc["vectors", "stability"] == 1
    assert frame.loc["vectors", "homogeneity"] == pytest.approx(1)
    assert frame.loc["answer token", "clusters"] == 2
    assert frame.loc["answer token", "answer"] == 1
    assert 0 < frame.loc["answer token", "truth"] < 1
    assert frame.loc["last token and answer", "truth"] == 1
    assert frame.loc["vectors", "null_high"] < 0.1
    assert pd.isna(frame.loc["last token", "stability"])
    unlabelled = samples_of([5] * 60)
    assert "truth" not in comparison(unlabelled, {"vectors": Clustering(truth, [])})


def test_some_samples_can_be_judged_alone() -> None:
    truth = np.repeat([0, 1], 10)
    labels = truth.copy()
    labels[15:] = 0
    samples = samples_of([5] * 20, [f"b{t}" for t in truth])
    frame = comparison(samples, {"x": labels}, chosen=range(15))
    assert frame["truth"].item() == 1


def test_histograms_count_tokens() -> None:
    samples = samples_of([5, 5], ends=[1, 3])
    assert histogram_vectors(samples).tolist() == [[2, 0], [1, 1]]
