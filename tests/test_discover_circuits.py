"""Circuits of clusters, the whole run, and its pages: resumed exactly, failing alone, and safe to open."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from families import make
from feature_cases import random_dictionary

from crosspatch.dictionaries.places import place_keys, read_place
from crosspatch.discover import (
    CircuitSettings,
    Clustering,
    DiscoverSettings,
    Samples,
    cluster_circuits,
    discover,
    read_clusters,
    setup_of_samples,
)
from crosspatch.discover.clusters import CLUSTER, CLUSTER_VERSION
from crosspatch.errors import CircuitError, ResultError, TaskError
from crosspatch.features import bases_of, evaluate_nodes, load_circuit
from crosspatch.model import load, record
from crosspatch.report.discover import write_index

HOSTILE = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", '" onmouseover="alert(3)', "&lt;b&gt;",
           "\u202eevil", "\x00")  # fmt: skip
SMALL = CircuitSettings(nodes=8, edges=10, method="atp", start_block=0, n_random=2)


@pytest.fixture(scope="module")
def model():
    return load(make("llama", dtype=torch.float32), name="toy")


@pytest.fixture(scope="module")
def bases(model):
    return bases_of(model, dictionaries_of(model))


def dictionaries_of(model):
    return [random_dictionary(model, place, seed=i) for i, place in enumerate(("a0", "m0", "r0.post", "m1", "r1.post"))]


@pytest.fixture(scope="module")
def samples() -> Samples:
    draw = np.random.default_rng(0)
    contexts = [tuple(draw.integers(1, 90, 3 + i % 2).tolist()) for i in range(30)]
    tokens = {i: HOSTILE[i] if i < len(HOSTILE) else f" w{i}" for i in range(90)}
    labels = [f"{HOSTILE[0]} {i % 3}" for i in range(30)]
    answers = draw.integers(0, 6, 30)
    return Samples(contexts, answers, draw.random(30), np.arange(30), labels, tokens, {"text": HOSTILE[1]})


@pytest.fixture(scope="module")
def clustering() -> Clustering:
    labels = np.repeat([0, 1, 2, 3], [12, 9, 7, 2])
    return Clustering(labels, [labels], {"method": "spectral", "k": 4})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ----------------------------------------------------------------------------------------------------------- circuits


def test_every_cluster_with_enough_documents_gets_a_circuit(model, samples, clustering, bases, tmp_path) -> None:
    found = cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL)
    assert [one["cluster"] for one in found] == [0, 1, 2]  # the last has two documents
    assert [one["samples"] for one in found] == [12, 9, 7]
    assert [one["cluster"] for one in read_clusters(tmp_path)] == [0, 1, 2]
    nodes, edges = load_circuit(tmp_path / "c00001")
    assert {str(node) for node in nodes} == {node["node"] for node in found[1]["nodes"]}
    assert edges is not None
    sizes = [abs(node["effect"]) for node in found[1]["nodes"]]
    assert sizes == sorted(sizes, reverse=True)


def test_edges_have_intervals_and_features_cards_of_the_clusters_own_contexts(
    model, samples, clustering, bases, tmp_path
) -> None:
    [one] = cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL, most=1)
    nodes, edges = load_circuit(tmp_path / "c00000")
    names = [str(node) for node in nodes] + ["logits"]
    mean = {(names[u], names[d]): v for u, d, v in zip(edges.up, edges.down, edges.values.mean(0), strict=True)}
    assert 0 < len(one["edges"]) <= SMALL.edges
    for edge in one["edges"]:
        assert edge["effect"] == pytest.approx(mean[edge["from"], edge["to"]])
        assert edge["low"] <= edge["effect"] + 1e-9
        assert edge["effect"] <= edge["high"] + 1e-9
    saved = json.loads((tmp_path / "c00000" / "cards.json").read_text("utf-8"))["cards"]
    assert [f"{card['reads'][0]}/{card['feature']}" for card in saved] == [
        str(n) for n in nodes if n.feature is not None
    ]
    inside = {str(token) for i in clustering.members(0) for token in samples.contexts[i]}
    assert any(card["top"] for card in saved)
    for card in saved:
        place = next(basis for basis in bases if basis.place == card["reads"][0])
        for context in card["top"]:
            assert set(context["tokens"]) <= inside
            ids = samples.contexts[clustering.members(0)[context["prompt"]]]
            ran = record(model, [list(ids)], keys=place_keys(model, {place.place}))
            f = place.features(read_place(ran, [place.place]))[context["position"], card["feature"]]
            assert context["values"][context["at"]] == pytest.approx(float(f), rel=1e-3)


def test_only_the_largest_nodes_have_cards(model, samples, clustering, bases, tmp_path, monkeypatch) -> None:
    from crosspatch.discover import circuits

    monkeypatch.setattr(circuits, "CARDS", 3)
    monkeypatch.setattr(circuits, "CARDS_OF_PLACE", 1)
    [one] = cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL, most=1)
    saved = json.loads((tmp_path / "c00000" / "cards.json").read_text("utf-8"))["cards"]
    first = {node["place"]: node["node"] for node in reversed(one["nodes"])}  # of every place the largest
    features = {node["node"] for node in one["nodes"] if node["feature"] is not None}
    wanted = {node["node"] for node in one["nodes"][:3]} | set(first.values())
    assert {f"{card['reads'][0]}/{card['feature']}" for card in saved} == wanted & features
    assert not features <= wanted


def test_circuits_without_edges_and_of_one_token_are_circuits(model, bases, tmp_path) -> None:
    draw = np.random.default_rng(1)
    tiny = Samples([(int(t),) for t in draw.integers(1, 90, 8)], draw.integers(0, 6, 8), draw.random(8), np.arange(8),
                   None, {i: f"w{i}" for i in range(90)}, {})  # fmt: skip
    settings = CircuitSettings(nodes=4, edges=0, method="atp", start_block=0, n_random=1)
    [one] = cluster_circuits(model, tiny, Clustering(np.zeros(8, np.int64), []), bases, tmp_path, settings)
    assert "error" not in one
    assert one["edges"] == []
    assert load_circuit(tmp_path / "c00000")[1] is None
    assert (tmp_path / "c00000" / "cards.json").is_file()


def test_progress_grows_inside_a_cluster(model, samples, clustering, bases, tmp_path) -> None:
    seen: list[float] = []
    cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL, most=2, progress=lambda a, b: seen.append(a))
    assert seen == sorted(seen)
    assert {1.0, 2.0} <= set(seen)
    assert any(0 < share < 1 for share in seen)
    again: list[float] = []
    cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL, most=2, progress=lambda a, b: again.append(a))
    assert again == [1, 2]


def test_what_is_said_of_a_circuit_is_what_the_features_room_says(model, samples, clustering, bases, tmp_path) -> None:
    [one] = cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL, most=1)
    nodes, _ = load_circuit(tmp_path / "c00000")
    setup = setup_of_samples(model, samples, clustering.members(0).tolist())
    again = evaluate_nodes(setup, bases, [nodes], "zero", start_block=0, n_random=0, held_out=0.5, seed=0).frame.iloc[0]
    assert one["evaluation"]["faithfulness"] == pytest.approx(again["faithfulness"])
    assert one["evaluation"]["m_model"] == pytest.approx(again["m_model"])


def test_stopping_and_going_on_gives_the_same_files(model, samples, clustering, bases, tmp_path) -> None:
    cluster_circuits(model, samples, clustering, bases, tmp_path / "whole", SMALL)

    def stop(done: float, total: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster_circuits(model, samples, clustering, bases, tmp_path / "part", SMALL, progress=stop)
    first = {name: (tmp_path / "part" / name).stat().st_mtime_ns for name in contents(tmp_path / "part")}
    assert len(first) < len(contents(tmp_path / "whole"))
    cluster_circuits(model, samples, clustering, bases, tmp_path / "part", SMALL)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert all((tmp_path / "part" / name).stat().st_mtime_ns == when for name, when in first.items())


def test_other_settings_or_dictionaries_are_computed_anew(model, samples, clustering, bases, tmp_path) -> None:
    [a] = cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL, most=1)
    [b] = cluster_circuits(model, samples, clustering, bases, tmp_path, CircuitSettings(nodes=3, start_block=0), most=1)
    assert len(a["nodes"]), len(b["nodes"]) == (8, 3)
    others = bases_of(model, [random_dictionary(model, basis.place, seed=9) for basis in bases])
    [c] = cluster_circuits(model, samples, clustering, others, tmp_path, SMALL, most=1)
    assert c["nodes"] != a["nodes"]


def test_an_error_in_one_cluster_is_noted_and_tried_again(
    model, samples, clustering, bases, tmp_path, monkeypatch
) -> None:
    from crosspatch.discover import circuits

    real, calls = circuits._circuit, []

    def sometimes(setup, *rest):
        calls.append(len(setup))
        if len(setup) == 9:
            raise RuntimeError("out of memory <b>\nmore")
        return real(setup, *rest)

    monkeypatch.setattr(circuits, "_circuit", sometimes)
    found = cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL)
    assert ["error" in one for one in found] == [False, True, False]
    assert found[1]["error"]["what"] == "out of memory <b>"
    monkeypatch.setattr(circuits, "_circuit", real)
    again = cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL)
    assert not any("error" in one for one in again)
    assert calls == [12, 9, 7]


def test_a_damaged_record_is_computed_again(model, samples, clustering, bases, tmp_path) -> None:
    [a] = cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL, most=1)
    path = tmp_path / "c00000" / "cluster.json"
    path.write_text(path.read_text("utf-8")[:50], "utf-8")
    [b] = cluster_circuits(model, samples, clustering, bases, tmp_path, SMALL, most=1)
    assert a == b


def test_files_of_circuits_that_were_replaced_or_failed_or_have_no_cluster_go(
    model, samples, clustering, bases, tmp_path, monkeypatch
) -> None:
    from crosspatch.discover import circuits

    def found(**about) -> set[str]:
        cluster_circuits(model, samples, clustering, bases, tmp_path, CircuitSettings(start_block=0, **about), most=1)
        return {path.name.partition("-")[0] for path in (tmp_path / "c00000").iterdir()}

    found(nodes=6)
    mine, gone = [tmp_path / "c00000" / "edges-mine.parquet", tmp_path / "c00000" / "notes.txt"], tmp_path / "c00099"
    [first] = (tmp_path / "c00000").glob("edges-*.parquet")
    for path in mine:
        path.write_text("x", "utf-8")
    shutil.copytree(tmp_path / "c00000", gone)
    shutil.copytree(tmp_path / "c00000", tmp_path / "c00098")
    for path in mine:
        (gone / path.name).unlink()
    assert found(nodes=4) == {"cluster.json", "cards.json", "feature", "edges", "notes.txt"}
    [second] = set((tmp_path / "c00000").glob("edges-*.parquet")) - set(mine)
    assert second != first
    assert second.name in (tmp_path / "c00000" / "feature-circuit.json").read_text("utf-8")
    assert not gone.exists()
    assert {path.name for path in (tmp_path / "c00098").iterdir()} == {path.name for path in mine}
    assert len(list(load_circuit(tmp_path / "c00000")[0])) == 4
    assert found(nodes=4, edges=0) == {"cluster.json", "cards.json", "feature", "edges", "notes.txt"}
    assert set((tmp_path / "c00000").glob("edges-*.parquet")) == {mine[0]}

    def fails(*_) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(circuits, "_circuit", fails)
    assert found(nodes=5) == {"cluster.json", "edges", "notes.txt"}
    assert all(path.is_file() for path in mine)


@pytest.mark.parametrize(
    "wrong", [{"nodes": 0}, {"most": 2}, {"held_out": 1.0}, {"replaced": "paired"}, {"errors": "some"}], ids=str
)
def test_settings_that_mean_nothing_are_refused(wrong) -> None:
    with pytest.raises(CircuitError):
        CircuitSettings(**wrong)


def test_a_start_block_beyond_all_places_is_refused(model, samples, clustering, bases, tmp_path) -> None:
    with pytest.raises(CircuitError, match="no place"):
        cluster_circuits(model, samples, clustering, bases, tmp_path, CircuitSettings(start_block=9))


# ---------------------------------------------------------------------------------------------------------- whole run


@pytest.fixture(scope="module")
def embedded():
    import crosspatch as cp

    return cp.load("embedded")


def settings_of(**about) -> DiscoverSettings:
    return DiscoverSettings(
        **{"text": "embedded", "n": 40, "vectors": "gradients", "dims": 256, "k": 4, "repeats": 1, "circuits": 1,
           "circuit": CircuitSettings(nodes=5, edges=0, method="atp", most=6, n_random=1)} | about
    )  # fmt: skip


def run(model, folder: Path, progress=None, **about):
    from crosspatch.discover import read_documents

    made = [random_dictionary(model, place, seed=i) for i, place in enumerate(("a1", "r2.post"))]
    return discover(model, read_documents("embedded", "t"), folder, made, settings_of(**about), progress=progress)


def test_a_run_that_is_stopped_in_any_step_ends_in_the_same_results(embedded, tmp_path) -> None:
    run(embedded, tmp_path / "whole")
    wanted = contents(tmp_path / "whole")
    for stage in ("samples", "gradients", "circuits"):

        def stop(name: str, done: float, total: float, stage: str = stage) -> None:
            if name == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(embedded, tmp_path / "part", stop)
    run(embedded, tmp_path / "part")
    assert contents(tmp_path / "part") == wanted
    assert {"samples.json", "clusters.json", "comparison.csv", "vectors/vectors.npy"} <= set(wanted)


def test_more_circuits_can_be_asked_for_later_but_nothing_else_changed(embedded, tmp_path) -> None:
    one = run(embedded, tmp_path)
    two = run(embedded, tmp_path, circuits=2)
    assert two.circuits[0] == one.circuits[0]
    assert len(two.circuits) == 2
    with pytest.raises(ResultError, match=r"\(n\)"):
        run(embedded, tmp_path, n=50)


def test_vectors_of_features_need_dictionaries(embedded, tmp_path) -> None:
    with pytest.raises(TaskError, match="need dictionaries"):
        discover(embedded, ["x"], tmp_path, (), settings_of(vectors="features"))


# -------------------------------------------------------------------------------------------------------------- pages


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag) -> None:
        self._inside = ""

    def handle_data(self, data) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def pages(model, samples, clustering, bases, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    samples.save(folder)
    clustering.save(folder, samples.hash)
    cluster_circuits(model, samples, clustering, bases, folder / "circuits", SMALL, most=2)
    write_index(folder)
    return folder


def test_hostile_tokens_are_text_on_every_page(pages) -> None:
    for path in [pages / "index.html", *(pages / "pages").glob("*.html")]:
        text = path.read_text("utf-8")
        page = _Page(text)
        assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "base")]
        assert not [1 for _, attributes in page.tags for name in attributes if name.startswith("on")]
        assert "alert(1)</script>" not in text
        assert "\u202e" not in text
        assert "\x00" not in text
        policies = [attributes.get("content") for tag, attributes in page.tags if "http-equiv" in attributes]
        assert [str(policy).startswith("default-src 'none'") for policy in policies] == [True]
        for tag, attributes in page.tags:
            assert not str(attributes.get("src") or "").strip(), tag
            assert not str(attributes.get("href") or "").startswith(("http", "javascript", "//"))
    scripts = len(_Page((pages / "index.html").read_text("utf-8")).scripts)
    assert scripts == 2  # the data and ours
    assert "<script>alert(1)</script>" in _Page((pages / "pages" / "c00000.html").read_text("utf-8")).text


def test_the_index_knows_every_cluster(pages, samples, clustering) -> None:
    data = json.loads(_Page((pages / "index.html").read_text("utf-8")).scripts[0])
    assert [one["size"] for one in data] == [12, 9, 7, 2]
    for one in data:
        members = clustering.members(one["id"])
        assert sum(n for _, n in one["answers"]) == len(members)  # there are six answers at most
        assert one["purity"] == pytest.approx(np.bincount(members % 3).max() / len(members), abs=1e-4)
        assert (pages / one["page"]).is_file()
    assert data[0]["nodes"]
    assert not data[3]["nodes"]
    assert data[0]["faithfulness"] is not None


def test_a_cluster_page_shows_every_context_with_its_loss(pages, samples, clustering) -> None:
    text = (pages / "pages" / "c00002.html").read_text("utf-8")
    assert text.count('class="ctx"') == 7
    for i in clustering.members(2):
        assert f"{samples.losses[i]:.3f}" in text
    assert "No circuit" not in text
    assert 'href="c00001.html"' in text
    assert 'href="c00003.html"' in text


def test_many_clusters_stay_small(samples, tmp_path) -> None:
    from crosspatch.report.discover import _rarity, index_page, record

    one = Clustering(np.zeros(30, dtype=np.int64), [])
    records = [record(samples, one, 0, None, _rarity(samples))] * 2000
    page = index_page(samples, one, records, [], {})
    assert len(page) < 6e6
    assert page.count("<article") == 0  # the script draws those that are looked at


def test_a_failed_cluster_says_why(samples, clustering, tmp_path) -> None:
    samples.save(tmp_path)
    clustering.save(tmp_path, samples.hash)
    folder = tmp_path / "circuits" / "c00000"
    folder.mkdir(parents=True)
    failed = {"format": CLUSTER, "version": CLUSTER_VERSION, "cluster": 0, "key": {}, "error": {"what": HOSTILE[1]}}
    (folder / "cluster.json").write_text(json.dumps(failed), "utf-8")
    write_index(tmp_path)
    page = (tmp_path / "pages" / "c00000.html").read_text("utf-8")
    assert "No circuit" in page
    assert HOSTILE[1] not in page


def test_a_folder_without_results_is_refused(tmp_path) -> None:
    with pytest.raises(ResultError):
        write_index(tmp_path)
