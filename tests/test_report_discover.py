"""The circuit on a cluster's page: what is drawn is what was found, with edges and without, and text stays text."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_elements import Elements
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.discover import Clustering, Samples
from crosspatch.discover.clusters import CLUSTER, CLUSTER_VERSION
from crosspatch.errors import ResultError
from crosspatch.features.nodes import Node
from crosspatch.report import write_report
from crosspatch.report.discover import _headline, nats, title_of, write_index
from crosspatch.report.discover_circuit import LISTED, NARROW, WIDE, cluster_circuit
from crosspatch.report.features_graph import GraphEdge, GraphNode, feature_graph, fitting

EVIL = "</script><img src=x onerror=alert(1)>"
PLACES = ["m0", "r0.post", "m1", "r1.post"]


def node(place: str, feature: int | None, effect: float) -> dict[str, Any]:
    name = str(Node(place, feature))
    return {"node": name, "place": place, "feature": feature, "effect": effect, "low": effect - 1, "high": effect + 1}


def edge(a: str, b: str, effect: float) -> dict[str, Any]:
    return {"from": a, "to": b, "effect": effect, "low": effect - 0.5, "high": effect + 0.5}


def a_cluster(**about: Any) -> dict[str, Any]:
    """What `cluster.json` holds."""
    nodes = [node("r1.post", 3, 2.0), node("m1", 5, -1.5), node("r0.post", None, 1.0), node("m0", 7, 0.25)]
    edges = [edge("r1.post/3", "logits", 2.0), edge("m1/5", "r1.post/3", -1.5), edge("m0/7", "r0.post/error", 0.25)]
    judged = {"m_model": -0.0004, "m_kept": -1.234567891, "m_cut": -5.0, "m_empty": -6.0, "faithfulness": 0.794}
    judged |= {"faithfulness_low": 0.7, "faithfulness_high": 0.9, "completeness": 0.1, "has_gap": True}
    settings = {"method": "ig", "steps": 5, "replaced": "zero"}
    return {
        "format": CLUSTER, "version": CLUSTER_VERSION, "cluster": 0, "samples": 8, "searched": 4, "judged": 4,
        "nodes": nodes, "edges": edges, "evaluation": judged | {"random_faithfulness_median": -0.2},
        "key": {"places": PLACES, "start_block": 0, "settings": settings},
    } | about  # fmt: skip


def a_card(place: str, feature: int, token: str) -> dict[str, Any]:
    top = {"tokens": ["so", token, " x"], "values": [0.0, 2.0, 1.0], "at": 1, "prompt": 0, "position": 1}
    return {"reads": [place], "feature": feature, "density": 0.1, "maximum": 2.0, "top": [top],
            "promoted": [[token, 1.0]], "suppressed": []}  # fmt: skip


def a_folder(folder: Path, data: dict[str, Any], cards: list[dict[str, Any]]) -> Path:
    """Samples in two clusters, the first one with a circuit."""
    samples = Samples([(1, 2, 3)] * 12, np.arange(12) % 3, np.full(12, 1e-5), np.arange(12), None,
                      {i: f" w{i}" for i in range(4)}, {"text": "t"})  # fmt: skip
    samples.save(folder)
    clustering = Clustering(np.repeat([0, 1], [8, 4]), [], {"method": "spectral", "k": 2})
    clustering.save(folder, samples.hash)
    own = folder / "circuits" / "c00000"
    own.mkdir(parents=True)
    (own / "cluster.json").write_text(json.dumps(data), "utf-8")
    (own / "cards.json").write_text(json.dumps({"cards": cards}), "utf-8")
    return folder


def drawings(page: str) -> list[str]:
    return re.findall(r'<figure class="graph (?:wide|narrow)">.*?</figure>', page, re.S)


def drawn(svg: str) -> tuple[int, int]:
    """(boxes with the logits, edges)."""
    tags = Elements(svg).tags
    classes = [str(attributes.get("class") or "") for _, attributes in tags]
    return classes.count("part"), sum(one.startswith("edge") for one in classes)


# -------------------------------------------------------------------------------------------------------------- pages


def test_a_page_draws_every_node_and_edge_of_its_circuit(tmp_path) -> None:
    write_index(a_folder(tmp_path, a_cluster(), [a_card("r1.post", 3, " token")]))
    page = (tmp_path / "pages" / "c00000.html").read_text("utf-8")
    graphs = drawings(page)
    assert [drawn(one) for one in graphs] == [(5, 3), (5, 3)]  # for a page, and for a small screen
    for one in graphs:
        assert "r1.post/3\neffect +2.00 [+1.00, +3.00]" in one
        assert "m1/5 \N{RIGHTWARDS ARROW} r1.post/3\neffect \N{MINUS SIGN}1.50" in one
        assert ">token</text>" in one
        assert "error term" in one
    assert not drawings((tmp_path / "pages" / "c00001.html").read_text("utf-8"))
    for said in ("79\N{NO-BREAK SPACE}%", "[70\N{NO-BREAK SPACE}%, 90\N{NO-BREAK SPACE}%]", "\N{MINUS SIGN}1.23"):
        assert said in page
    assert "1.2345" not in page
    assert "blocks before" not in page  # the circuit begins at block 0


def test_a_circuit_without_edges_is_drawn_by_place_and_effect(tmp_path) -> None:
    write_index(a_folder(tmp_path, a_cluster(edges=[]), []))
    page = (tmp_path / "pages" / "c00000.html").read_text("utf-8")
    assert [drawn(one) for one in drawings(page)] == [(5, 0), (5, 0)]
    assert "No edges were computed" in page
    assert "Strongest edges" not in page


@pytest.mark.parametrize("cards", [True, False], ids=["cards", "no cards"])
def test_hostile_text_in_a_circuit_stays_text(tmp_path, cards) -> None:
    places = ["m0", EVIL]
    nodes = [node(EVIL, 3, 2.0), node("m0", 1, 1.0)]
    data = a_cluster(nodes=nodes, edges=[edge("m0/1", f"{EVIL}/3", 1.0)])
    data["key"]["places"] = places
    folder = a_folder(tmp_path, data, [a_card(EVIL, 3, EVIL), a_card("m0", 1, "\u202e")] if cards else [])
    write_index(folder)
    for path in [folder / "index.html", *(folder / "pages").glob("*.html")]:
        text = path.read_text("utf-8")
        tags = Elements(text).tags
        assert not [name for name, _ in tags if name in ("img", "iframe", "object", "base")]
        assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
        assert "\u202e" not in text
    page = (folder / "pages" / "c00000.html").read_text("utf-8")
    assert page.count("<script") == 1
    assert "&lt;img" in page


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data["edges"].append(edge("m0/7", "m0/999", 1.0)),
        lambda data: data["nodes"].append({"node": "m0/1"}),
        lambda data: data["nodes"].append(node("nowhere", 1, 1.0)),
        lambda data: data["evaluation"].pop("m_kept"),
        lambda data: data.update(nodes=3),
    ],
    ids=range(5),
)
def test_a_circuit_that_makes_no_sense_is_named(tmp_path, spoil) -> None:
    data = a_cluster()
    spoil(data)
    with pytest.raises(ResultError, match="not what") as caught:
        write_index(a_folder(tmp_path, data, []))
    assert "c00000" in str(caught.value.where)
    assert "--resume" in str(caught.value.fix)


def test_a_page_lists_the_largest_of_many_nodes(tmp_path) -> None:
    nodes = [node("m0", i, 200.0 - i) for i in range(150)]
    write_index(a_folder(tmp_path, a_cluster(nodes=nodes, edges=[]), []))
    page = (tmp_path / "pages" / "c00000.html").read_text("utf-8")
    listed = re.findall(r'class="addr"[^>]*>m0/(\d+)<', page)
    assert list(map(int, listed)) == list(range(LISTED))
    assert f"the {LISTED} largest of 150" in page
    assert "150 nodes alone keep" in page


def test_shares_that_mean_nothing_are_not_given(tmp_path) -> None:
    data = copy.deepcopy(a_cluster())
    shares = ("faithfulness", "faithfulness_low", "faithfulness_high", "completeness", "random_faithfulness_median")
    data["evaluation"] |= dict.fromkeys(shares) | {"has_gap": False}
    circuit = cluster_circuit(data, tmp_path)
    assert "%" not in circuit.headline + circuit.compared
    assert "no share means anything" in circuit.warning
    assert not cluster_circuit(a_cluster(), tmp_path).warning


def test_a_circuit_no_better_than_random_nodes_says_so(tmp_path) -> None:
    data = a_cluster()
    data["evaluation"] |= {"faithfulness_low": 0.1, "random_faithfulness_median": 0.2}
    assert cluster_circuit(data, tmp_path).warning.startswith("Not enough")
    write_index(a_folder(tmp_path, data, []))
    assert "Not enough" in (tmp_path / "pages" / "c00000.html").read_text("utf-8")


# --------------------------------------------------------------------------------------------- from what is saved


def test_the_pages_are_made_again_without_a_model_and_pages_of_an_earlier_result_go(tmp_path) -> None:
    folder = a_folder(tmp_path / "found", a_cluster(), [a_card("r1.post", 3, EVIL)])
    write_index(folder)
    made = [folder / "index.html", *(folder / "pages").iterdir()]
    wanted = {path: path.read_bytes() for path in made}
    assert len(wanted) == 3
    for path in wanted:
        path.unlink()
    old, mine = folder / "pages" / "c00002.html", [folder / "pages" / name for name in ("c2.html", "notes.html")]
    for path in (old, *mine):
        path.write_text("x", "utf-8")
    (folder / "discover.json").write_text('{"format": "crosspatch-discover", "settings": {}}', "utf-8")
    write_report(folder)
    page = (folder / "index.html").read_bytes()
    (folder / "discover.json").unlink()
    write_index(folder)
    assert {path: path.read_bytes() for path in wanted} == wanted
    assert page != wanted[folder / "index.html"]  # it also says the settings
    assert not old.exists()
    assert all(path.is_file() for path in mine)
    code = (
        f"import sys; from crosspatch.report.discover import write_index; write_index({str(folder)!r}); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pages_outside_the_folder_are_left_alone(tmp_path) -> None:
    folder = a_folder(tmp_path / "found", a_cluster(), [])
    other = tmp_path / "other"
    other.mkdir()
    (other / "c00007.html").write_text("mine", "utf-8")
    (folder / "pages").symlink_to(other)
    write_index(folder)
    assert (other / "c00007.html").is_file()


RUN = {"format": "crosspatch-discover", "version": 1, "settings": {"positions": 1, "vectors": "features", "seed": 0}}
TABLE = "clustering,clusters,stability,stability_low,stability_high,answer\n{},{},1,,,0.5\n"


def test_what_a_run_has_beside_clusters_is_said(tmp_path) -> None:
    folder = a_folder(tmp_path, a_cluster(), [])
    (folder / "discover.json").write_text(json.dumps(RUN | {"settings": {"seed": "\ud800"}}), "utf-8")
    (folder / "comparison.csv").write_text(TABLE.format(EVIL, 2), "utf-8")
    page = write_report(folder).read_text("utf-8")
    assert "<dd>\\ud800</dd>" in page
    assert "&lt;img src=x" in page
    assert "<img" not in page
    assert '<td data-h="clusters">2</td>' in page


def change(path: Path, spoil: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text("utf-8"))
    spoil(data)
    path.write_text(json.dumps(data), "utf-8")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("samples.json", lambda path: path.unlink()),
        ("samples.json", lambda path: path.write_text("[" * 100_000, "utf-8")),
        ("samples.json", lambda path: change(path, lambda data: data["tokens"].pop("1"))),
        ("samples.json", lambda path: change(path, lambda data: data["origin"].update(counts=[1]))),
        ("samples.json", lambda path: change(path, lambda data: data["origin"].update(counts={"sure": EVIL}))),
        ("clusters.json", lambda path: path.unlink()),
        ("clusters.json", lambda path: change(path, lambda data: data["labels"].__setitem__(0, 10**9))),
        ("clusters.json", lambda path: change(path, lambda data: data["labels"].__setitem__(0, 10**30))),
        ("clusters.json", lambda path: change(path, lambda data: data["labels"].pop())),
        ("clusters.json", lambda path: change(path, lambda data: data.update(labels=[]))),
        ("clusters.json", lambda path: change(path, lambda data: data.update(labels=[[0], [1]]))),
        ("clusters.json", lambda path: change(path, lambda data: data["about"].update(chosen=3))),
        ("discover.json", lambda path: path.write_text("{", "utf-8")),
        ("discover.json", lambda path: change(path, lambda data: data.update(format="other"))),
        ("discover.json", lambda path: change(path, lambda data: data.update(settings=[]))),
        ("discover.json", lambda path: change(path, lambda data: data["settings"].update(features=[1]))),
        ("comparison.csv", lambda path: path.write_text("", "utf-8")),
        ("comparison.csv", lambda path: path.write_bytes(b"\xff\xfe\x00")),
        ("comparison.csv", lambda path: path.write_text("clustering,clusters\na,2\n", "utf-8")),
        ("comparison.csv", lambda path: path.write_text(TABLE.format("a", EVIL), "utf-8")),
        ("comparison.csv", lambda path: path.write_text(TABLE.format("a", ""), "utf-8")),
        ("circuits/c00000/cluster.json", lambda path: path.write_text("{", "utf-8")),
        ("circuits/c00000/cluster.json", lambda path: change(path, lambda data: data.update(version=1))),
        ("circuits/c00000/cluster.json", lambda path: change(path, lambda data: data.update(cluster=1))),
        ("circuits/c00000/cluster.json", lambda path: change(path, lambda data: data.update(error="no"))),
        ("circuits/c00000/cluster.json",
         lambda path: change(path, lambda data: data["evaluation"].update(faithfulness=math.inf))),
        ("circuits/c00000/cards.json", lambda path: path.write_text("{", "utf-8")),
        ("circuits/c00000/cards.json", lambda path: path.write_text('{"cards": [{"reads": ["m0"]}]}', "utf-8")),
    ],
)  # fmt: skip
def test_a_file_that_was_damaged_is_named_with_what_to_do(tmp_path, name, spoil) -> None:
    folder = a_folder(tmp_path, a_cluster(), [])
    (folder / "discover.json").write_text(json.dumps(RUN), "utf-8")
    (folder / "comparison.csv").write_text(TABLE.format("a", 2), "utf-8")
    write_report(folder)
    spoil(folder / name)
    with pytest.raises(ResultError) as caught:
        write_report(folder)
    assert str(folder / name) in str(caught.value.where)
    assert caught.value.fix


# ------------------------------------------------------------------------------------------------------------ drawing


def many(n: int, place: str = "m0") -> list[GraphNode]:
    draw = np.random.default_rng(0)
    return [GraphNode(Node(place, i), float(e), math.nan, math.nan, math.nan, None)
            for i, e in enumerate(draw.normal(size=n))]  # fmt: skip


@pytest.mark.parametrize("edges", [True, False], ids=["edges", "none"])
@pytest.mark.parametrize(("room", "widest"), [(WIDE, 1024), (NARROW, 400)])
def test_a_drawing_fits_its_page_with_the_largest_nodes(room, widest, edges) -> None:
    nodes = many(60) + many(3, "m1")
    chosen = fitting(nodes, room, bars=not edges)
    inside = [nodes[i] for i in chosen]
    lines = [GraphEdge(0, -1, 1.0, math.nan, math.nan)] if edges else []
    [panel] = feature_graph(inside, lines, ["m0", "m1"], narrow=room == NARROW).panels
    assert panel.width <= widest
    kept = [abs(one.effect) for one in inside if one.node.place == "m0"]
    left = [abs(one.effect) for i, one in enumerate(nodes[:60]) if i not in chosen]
    assert 3 <= len(kept) < 60
    assert min(kept) >= max(left)
    assert kept == sorted(kept, reverse=True)
    assert sum(one.node.place == "m1" for one in inside) == 3


def test_without_edges_rows_begin_with_the_largest_and_bars_are_as_long_as_effects() -> None:
    nodes = many(9)
    [panel] = feature_graph(nodes, [], ["m0"]).panels
    rects = [attributes for name, attributes in Elements(str(panel.body)).tags if name == "rect"]
    boxes = [float(str(one["x"])) for one in rects if "unit" in str(one.get("class"))]
    bars = [one for one in rects if one.get("class") in ("w0", "neg")]
    by_effect = sorted(range(9), key=lambda i: -abs(nodes[i].effect))
    assert sorted(range(9), key=lambda i: boxes[i]) == by_effect
    lengths = np.array([float(str(one["width"])) for one in bars])
    effects = np.array([one.effect for one in nodes])
    np.testing.assert_allclose(lengths / lengths.max(), np.maximum(np.abs(effects) / np.abs(effects).max(), 1 / 44),
                               atol=0.01)  # fmt: skip
    assert [one["class"] == "w0" for one in bars] == (effects >= 0).tolist()


# -------------------------------------------------------------------------------------------------------------- words


@given(st.floats(0, 100))
def test_a_loss_is_never_rounded_to_nothing(loss) -> None:
    said = nats(loss)
    assert said != "0.000"
    assert abs(float(said.removeprefix("< ")) - loss) <= 0.00101


def test_a_cluster_is_called_by_its_answers() -> None:
    about = {"id": 4, "answers": [[" a", 5], [" ", 2], ["b", 1], ["c", 1]], "distinct": 6}
    quoted = "\N{LEFT DOUBLE QUOTATION MARK}{}\N{RIGHT DOUBLE QUOTATION MARK}".format
    assert title_of(about) == f"Cluster 4: {quoted('a')}, {quoted(' ')}, {quoted('b')} and 3 more"
    assert title_of({"id": 0, "answers": [["x", 1]], "distinct": 1}) == f"Cluster 0: {quoted('x')}"


def test_the_headline_does_not_praise_what_tokens_do_as_well() -> None:
    def row(name: str, truth: float) -> dict[str, Any]:
        return {"clustering": name, "truth": truth, "truth_low": truth - 0.1, "truth_high": truth + 0.1}

    worse = _headline([row("features", 0.16), row("token histogram", 0.21), row("answer token", 0.1)])
    assert "no more than the best clustering by tokens alone (token histogram)" in worse
    assert "0.16 [0.06, 0.26] against 0.21 [0.11, 0.31]" in worse
    better = _headline([row("features", 0.3), row("answer token", 0.05)])
    assert "doing more than" in better
    assert "\N{MINUS SIGN}0.05" in better
    assert not _headline([{"clustering": "features"}, {"clustering": "answer token"}])
