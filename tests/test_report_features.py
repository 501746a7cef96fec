"""The report of feature circuits: it draws what the circuit holds, says what the numbers say, and escapes all of it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from feature_cases import bases, family
from html_elements import Elements

from crosspatch.errors import CircuitError, ResultError
from crosspatch.features import (
    EdgeEvaluation,
    FeatureEvaluation,
    Node,
    evaluate_edges,
    evaluate_nodes,
    save_circuit,
    save_effects,
)
from crosspatch.features.curve import Curve, load_curves, save_curves
from crosspatch.features.curves import size_curves, sizes_up_to
from crosspatch.features.search import EDGE_SHARE, FeatureSearch, find_features, mean_effects
from crosspatch.report import features_files as files
from crosspatch.report import write_report
from crosspatch.report.data import Estimate, ReportData
from crosspatch.report.features_cards import FeatureCard, Shown, cards_from
from crosspatch.report.features_curves import curve_rows, curves_chart
from crosspatch.report.features_graph import MOST_LINES, GraphEdge, GraphNode, feature_graph, place_words
from crosspatch.report.features_saved import read_page
from crosspatch.report.html import POLICY, render
from crosspatch.report.svg import signed
from crosspatch.results.files import write_json

EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><b onmouseover=alert(1)>",
    "{{ 7 * 7 }}",
)
PLACES = ["m0", "r0.post", "m1", "r1.post"]


@pytest.fixture(scope="module")
def setup():
    return family("gpt2", lengths=(5,) * 8)


@pytest.fixture(scope="module")
def every(setup):
    return bases(setup, PLACES)


@pytest.fixture(scope="module")
def found(setup, every):
    search = FeatureSearch(method="atp", nodes=14, exact=5, positions="spans", spans=("first", "rest"))
    return find_features(setup.split(0.5, 0)[0], every, search)


@pytest.fixture(scope="module")
def judged(setup, every, found):
    common = {"start_block": 0, "n_random": 2}
    nodes = evaluate_nodes(setup, every, [found.circuit], "mean-all", population=found.effects.active(), **common)
    edges = evaluate_edges(setup, every, found.circuit, [found.edges.top(6), found.edges.top(20)], "mean-all", **common)
    return Curve("features", "atp", "nodes", nodes), Curve("edges", "atp", "", edges)


def card(place: str, feature: int) -> dict:
    context = {"tokens": list(EVIL), "values": [0.0, 1.0, 2.0, 0.5], "at": 2, "prompt": 0, "position": 2}
    return {
        "reads": [place], "feature": feature, "density": 0.1, "maximum": 2.0, "top": [context],
        "promoted": [[EVIL[0], 1.0]], "suppressed": [[EVIL[1], 1.0]],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path, setup, found, judged) -> Path:
    """A folder with everything in it, hostile names throughout."""
    save_effects(found.effects, tmp_path)
    save_circuit(tmp_path, dataclasses.replace(found.circuit, name=EVIL[0]), found.edges)
    save_curves(tmp_path / files.EVALUATION, [judged[0]])
    save_curves(tmp_path / files.EDGES, [judged[1]])
    save_curves(tmp_path / files.CURVES, [dataclasses.replace(judged[0], kind=EVIL[1], method=EVIL[2])])
    exact = [{"node": str(n), "values": found.exact[:, i].tolist()} for i, n in enumerate(found.measured)]
    write_json(tmp_path / files.EXACT, {"exact": exact})
    cards = [card(node.place, node.feature) for node in found.circuit if node.feature is not None]
    write_json(tmp_path / files.CARDS, {"cards": cards})
    finding = {"code": EVIL[0], "level": "failure", "message": EVIL[1], "fix": EVIL[2], "shown": [EVIL[3]]}
    write_json(tmp_path / files.GATES, {"forced": True, "findings": [finding]})
    settings = {"edge_threshold": 0.0, "pairs": {"metric": EVIL[2]}}
    run = {"format": files.FORMAT, "version": files.VERSION, "title": EVIL[3], "settings": settings}
    run |= {
        "asked": {"data": EVIL[0]},
        "facts": {EVIL[1]: EVIL[2]},
        "spans": ["first", "rest"],
        "labels": {"rest": EVIL[0]},
        "also": [[EVIL[1], "x"]],
    }
    write_json(tmp_path / files.RUN, run)
    return tmp_path


# ------------------------------------------------------------------------------------------------------------ search


def test_search_is_the_two_passes(setup, every, found) -> None:
    assert list(found.circuit) == list(found.effects.top(14))
    assert found.edges.nodes == list(found.circuit)
    assert found.edge_threshold == pytest.approx(EDGE_SHARE * min(map(abs, mean_effects(found.effects, found.circuit))))
    assert set(found.measured) == set(found.effects.top(5))
    assert found.exact.shape == (4, 5)
    by_threshold = find_features(
        setup.split(0.5, 0)[0], every, dataclasses.replace(found.search, threshold=0.0, edge_threshold=0.5, exact=0)
    )
    assert len(by_threshold.circuit) == sum(int((mean != 0).sum()) for mean in found.effects.mean.values())
    assert by_threshold.edge_threshold == 0.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"positions": "spans", "spans": ()}, "no spans"),
        ({"positions": "aggregate"}, "have no named spans"),
        ({"positions": "everywhere"}, "unknown positions"),
        ({"threshold": 1e9}, "no node has a larger effect"),
    ],
)
def test_settings_that_cannot_be_are_refused(setup, every, found, wrong, words) -> None:
    with pytest.raises(CircuitError, match=words):
        find_features(setup, every, dataclasses.replace(found.search, **wrong))


# ------------------------------------------------------------------------------------------------------------ curves


def test_sizes_grow_to_everything() -> None:
    assert sizes_up_to(70) == [1, 2, 5, 10, 20, 50, 70]
    assert sizes_up_to(1) == [1]
    assert sizes_up_to(0) == []


def test_curves_end_at_the_whole_model(setup, every, found) -> None:
    curves = size_curves(
        setup, every, found.effects, start_block=0, errors=["nodes", "removed"], baselines=["outputs", "hidden"],
        methods=["atp"], replaced="mean-all", n_random=1,
    )  # fmt: skip
    assert [(curve.kind, curve.errors) for curve in curves] == [
        ("features", "nodes"), ("features", "removed"), ("neurons, outputs", ""), ("neurons, hidden", ""),
    ]  # fmt: skip
    for curve in curves:
        rows = curve_rows(curve)
        sizes = [row["nodes"] for row in rows]
        assert sizes == sorted(sizes)
        np.testing.assert_allclose(curve.evaluation.model, curves[0].evaluation.model)
    # Every dimension of the outputs kept is the model; with nothing kept that is what features have with nothing kept.
    assert curve_rows(curves[2])[-1]["faithfulness"] == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(curves[2].evaluation.empty, curves[0].evaluation.empty, atol=1e-6)
    assert all(row["nodes"] == row["features"] for row in curve_rows(curves[1]))
    figure = curves_chart(curves)
    for panel in figure.panels:
        ElementTree.fromstring(str(panel.element()))
    assert str(figure.html).count("<circle") == 2 * sum(row["nodes"] > 0 for c in curves for row in curve_rows(c))


def test_evaluations_are_read_as_written(judged, tmp_path) -> None:
    read = load_curves(save_curves(tmp_path, judged))
    for before, after in zip(judged, read, strict=True):
        assert (before.kind, before.method, before.errors) == (after.kind, after.method, after.errors)
        one, other = before.evaluation, after.evaluation
        assert type(one) is type(other)
        assert one.about == other.about
        for name in ("model", "empty", "kept", "cut", "random_kept", "random_cut"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert [list(s) for s in one.sets] == [list(s) for s in other.sets]
        pd.testing.assert_frame_equal(one.frame, other.frame)
    assert isinstance(read[1].evaluation, EdgeEvaluation)
    assert isinstance(read[0].evaluation, FeatureEvaluation)
    assert [len(edges) for edges in read[1].evaluation.edges] == [6, 20]


@pytest.mark.parametrize("broken", ["format", "rows", "node", "place"])
def test_broken_evaluations_are_refused(judged, tmp_path, broken) -> None:
    save_curves(tmp_path, judged[:1])
    path = tmp_path / "evaluations.json"
    data = json.loads(path.read_text())
    entry = data["evaluations"][0]
    if broken == "format":
        data["format"] = "other"
    elif broken == "rows":
        entry["n_random"] += 1
    elif broken == "node":
        for told in entry["places"].values():
            told["nodes"] = 1
    else:
        entry["places"] = []
    path.write_text(json.dumps(data))
    with pytest.raises(ResultError):
        load_curves(tmp_path)


# ------------------------------------------------------------------------------------------------------------- graph


def graph_of(n_edges: int = 3) -> tuple[list[GraphNode], list[GraphEdge]]:
    told = FeatureCard(0.1, 2.0, (EVIL[0],), (), (Shown((EVIL[2], " b"), (1.0, 0.0), 0),))
    nodes = [
        GraphNode(Node("m0", 3), 1.0, 0.5, 1.5, 0.9, told),
        GraphNode(Node("m0", None), -0.4, float("nan"), float("nan"), float("nan"), None),
        GraphNode(Node("r1.post", 7), 0.2, 0.1, 0.3, float("nan"), None),
    ]
    edges = [GraphEdge(0, 2, 0.5, 0.4, 0.6), GraphEdge(1, 2, -0.3, -0.4, -0.2), GraphEdge(2, -1, 0.2, 0.1, 0.3)]
    return nodes, (edges * (n_edges // 3 + 1))[:n_edges]


def test_features_and_error_terms_have_their_own_shapes() -> None:
    nodes, edges = graph_of()
    figure = feature_graph(nodes, edges, PLACES)
    drawing = ElementTree.fromstring(str(figure.panels[0].element()))
    assert len([e for e in drawing.iter("polygon")]) == 1
    assert len([e for e in drawing.iter("rect") if "unit" in e.get("class", "")]) == 2
    lines = [e for e in drawing.iter("path") if "edge" in e.get("class", "")]
    assert len(lines) == 3
    widths = {e.get("class"): float(e.get("stroke-width") or 0) for e in lines}
    assert "edge down" in widths
    wide = {(e.get("data-a"), e.get("data-b")): float(e.get("stroke-width") or 0) for e in lines}
    assert wide["0", "2"] > wide["1", "2"] > wide["2", "3"]
    said = [e.text or "" for e in drawing.iter("title")]
    assert any("m0/3" in text and "exact +0.90" in text and "raises" in text for text in said)
    assert any("error term" in text for text in said)
    rows = [e.text for e in drawing.iter("text") if e.get("class") == "s"]
    assert rows == ["MLP 0", "stream 1"]


def test_rows_stand_in_the_order_of_the_computation() -> None:
    nodes, edges = graph_of()
    drawing = ElementTree.fromstring(str(feature_graph(nodes, edges, PLACES).panels[0].element()))
    heights = {e.text: float(e.get("y") or 0) for e in drawing.iter("text") if e.get("class") == "s"}
    assert heights["MLP 0"] > heights["stream 1"]  # upwards


def test_columns_are_spans_with_a_token_below() -> None:
    nodes, edges = graph_of()
    nodes = [
        dataclasses.replace(one, node=one.node._replace(span=span)) for one, span in zip(nodes, "aba", strict=True)
    ]
    figure = feature_graph(nodes, edges, PLACES, ["a", "b"], {"a": EVIL[0]})
    drawing = ElementTree.fromstring(str(figure.panels[0].element()))
    words = [e.text for e in drawing.iter("text") if e.get("class") == "s"]
    assert words[:2] == [f"a ({EVIL[0]})", "b"]
    assert "Columns are spans" in str(figure.caption)


def test_only_the_strongest_edges_are_drawn_and_the_rest_are_counted() -> None:
    nodes, edges = graph_of(MOST_LINES + 9)
    figure = feature_graph(nodes, edges, PLACES)
    assert str(figure.html).count('class="edge') == MOST_LINES
    assert f"{MOST_LINES} strongest of {MOST_LINES + 9} edges" in str(figure.caption)


def test_places_in_words() -> None:
    words = {"a2": "attention 2", "m0": "MLP 0", "r3.post": "stream 3", "r3.mid": "stream 3 mid", "input": "input"}
    words |= {"r0": "input", "r2": "stream before 2", "a1.z": "attention 1 z", "m2.act": "MLP 2 act"}
    assert {place: place_words(place) for place in words} == words


def test_cards_that_are_no_cards_are_refused() -> None:
    assert cards_from({"cards": [card("m0", 3)]})["m0/3"].token == EVIL[2]
    broken = card("m0", 3)
    broken["top"][0]["at"] = 9
    with pytest.raises(ValueError, match="without its token"):
        cards_from({"cards": [broken]})


# -------------------------------------------------------------------------------------------------------------- page


def test_nothing_hostile_gets_through_and_nothing_is_fetched(folder) -> None:
    page = write_report(folder).read_text()
    found = Elements(page)
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not [tag for tag, _ in found.tags if tag in ("img", "iframe", "link", "object")]
    assert not [a for _, attrs in found.tags for a in attrs if a.startswith("on")]
    assert "{{ 7 * 7 }}" in page
    assert "49" not in re.findall(r"<title>(.*?)</title>", page)[0]
    assert not re.search(r"""(src|href)=["']?https?:""", page)
    assert str(POLICY).split(";")[0] in page.replace("&#39;", "'")


def test_the_page_says_what_was_found(folder, found, judged) -> None:
    page = write_report(folder).read_text()
    row = judged[0].evaluation.frame.iloc[0]
    numbers = [f"m({name}) {signed(row[column])}" for name, column in
               (("model", "m_model"), ("circuit", "m_kept"), ("nothing", "m_empty"))]  # fmt: skip
    for words in (*numbers, "Start block 0", "Edge by edge", "beside neurons", "Forced."):
        assert words in page, words
    for node in found.circuit:
        assert f">{node}</span>" in page
    assert page == write_report(folder).read_text()


def test_the_page_needs_no_torch(folder) -> None:
    code = (
        f"import sys; from crosspatch.report import write_report; write_report({str(folder)!r}); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_of_a_localisation_shows_the_circuit_beside_it(folder) -> None:
    about = {"task": "t", "model": "m", "metric": "logit difference", "unit": "logits", "n_examples": 4}
    page = read_page(folder)
    value = Estimate(1.0, 0.5, 1.5, 1.0)
    data = ReportData(**about, clean=value, corrupt=value, features=page)
    shown = render(data)
    assert "Sparse features" in shown
    assert 'href="features/report.html"' in shown
    assert str(page.graph.html) in shown
    found = Elements(shown)
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not [tag for tag, _ in found.tags if tag in ("img", "iframe", "object")]
    assert "Sparse features" not in render(dataclasses.replace(data, features=None))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (files.RUN, {"settings": {}}),
        (files.RUN, {"format": "other"}),
        (files.CARDS, {"cards": [{"reads": ["m0"]}]}),
        (files.EXACT, {"exact": [{"node": "m0/1", "values": [1.0]}]}),
        (files.GATES, {"findings": 3}),
    ],
)
def test_damaged_files_are_refused(folder, name, change) -> None:
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(data | change))
    with pytest.raises(ResultError):
        write_report(folder)
