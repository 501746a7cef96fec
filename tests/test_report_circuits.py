"""The report of circuits: it draws what the circuit holds, says what the numbers say, and escapes everything."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from html_elements import Elements
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspatch.attribution.scores import ALL_TOKENS, Scores
from crosspatch.circuits import Circuit, select
from crosspatch.circuits.evaluation import CircuitEvaluation
from crosspatch.circuits.frontier import Frontier
from crosspatch.circuits.specificity import Specificity
from crosspatch.circuits.stability import stability
from crosspatch.errors import CrosspatchError, ResultError
from crosspatch.graph import ModelShape, edge_table
from crosspatch.report import circuits_figures as charts
from crosspatch.report import circuits_files as files
from crosspatch.report import circuits_sections as sections
from crosspatch.report import write_report
from crosspatch.report.circuits import CircuitPage, render
from crosspatch.report.circuits_graph import MOST_LINES, circuit_graph
from crosspatch.report.circuits_layout import Box, End, lay_out
from crosspatch.report.circuits_saved import read_ranking
from crosspatch.report.html import POLICY
from crosspatch.results.files import write_json
from crosspatch.tasks.findings import GateFinding

EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><b onmouseover=alert(1)>",
    "{{ 7 * 7 }}",
)
N = 12


def shape_of(n_layers: int = 3, n_heads: int = 4, n_kv_heads: int = 4, parallel: bool = False) -> ModelShape:
    return ModelShape(n_layers, n_heads, n_kv_heads, 16, 4, 16, 50, parallel, True, True)


def scored(shape: ModelShape, seed: int = 0) -> Scores:
    """Scores of every edge on twelve pairs, with a signal."""
    rng = np.random.default_rng(seed)
    table = edge_table(shape)
    signal = rng.standard_t(3, size=len(table))
    values = signal + 0.3 * rng.normal(size=(N, len(table)))
    about = {"method": "eap-ig", "metric": EVIL[0], "ablation": "paired"}
    clusters = [str(i % 4) for i in range(N)]
    return Scores(
        "edge", table.names(), values[:, None], ALL_TOKENS, np.full(N, 9.0), np.full(N, 1.0), clusters, shape, about
    )


def evaluated(circuit: Circuit, kept: float = 0.93, failed: bool = False) -> CircuitEvaluation:
    """The circuit keeps and cutting it loses a given share; random circuits keep about nothing."""
    wobble = np.linspace(-0.1, 0.1, N)
    clean, empty = np.full(N, 9.0) + wobble, np.full(N, 1.0)
    random = 1.0 + 0.1 * np.random.default_rng(0).normal(size=(1, 20, N))
    none = np.zeros((0, N))
    findings = [GateFinding("gap", "failure" if failed else "info", EVIL[1], fix=EVIL[2] if failed else None)]
    return CircuitEvaluation(
        [circuit], [str(i) for i in range(N)], [str(i % 4) for i in range(N)], clean, empty,
        (empty + kept * (clean - empty))[None], empty[None] + 0.2, random, 9.0 + 0 * random,
        np.full((1, 20), circuit.n_edges), none, none, np.zeros((0, 1, N)), np.zeros((0, 1, N)), findings,
        {"n_boot": 200, "seed": 0, "metric": EVIL[0], "ablation": "paired", "pairs": EVIL[1], "n_random": 20,
         "random_circuits": "walks", "runs": 9},
    )  # fmt: skip


def grown(shape: ModelShape, scores: Scores) -> Frontier:
    sizes = [2, 10, 40, len(edge_table(shape))]
    circuits = select.nested(scores.mean, shape, sizes, absolute=True)
    kept = np.array([1.2, 5.0, 8.5, 9.0])[:, None] + np.zeros((4, N))
    random = np.ones((4, 5, N)) + np.arange(5)[None, :, None] / 10
    random[-1] = 9.0
    nominal = np.array(sizes) / len(edge_table(shape))
    return Frontier(
        circuits, nominal, [str(i) for i in range(N)], [str(i % 4) for i in range(N)], np.full(N, 9.0),
        np.full(N, 1.0), kept, random, [GateFinding("areas", "info", EVIL[3])], {"n_boot": 100, "seed": 0},
    )  # fmt: skip


def specific(circuit: Circuit) -> Specificity:
    one = np.full((2, N), 9.0)
    kept = np.full((2, 2, N), 1.5)
    kept[0, 0] = kept[1, 1] = 8.6
    return Specificity(
        [EVIL[0], "other"], [circuit, circuit], [[str(i % 4) for i in range(N)]] * 2, np.full(2, N), one,
        np.ones((2, N)), kept, 10 - kept, np.full((2, 3, N), 1.1), np.full((2, 3, N), 8.0), [],
        {"n_boot": 100, "seed": 0, "better": ["higher", "higher"]},
    )  # fmt: skip


def saved(tmp_path, shape: ModelShape | None = None, **changes):
    """A folder with everything in it, hostile names throughout."""
    shape = shape or shape_of()
    scores = scored(shape)
    circuit = select.path_aware(scores.mean, shape, 20, absolute=True).with_(name=EVIL[2])
    circuit.save(tmp_path / files.CIRCUIT)
    scores.save(tmp_path / files.SCORES)
    evaluated(circuit, **changes).save(tmp_path / files.EVALUATION)
    grown(shape, scores).save(tmp_path / files.FRONTIER)
    steady = stability(
        scores.per_example, lambda s: select.path_aware(s, shape, 20, absolute=True), shape, n_boot=4, n_null=3
    )
    steady.save(tmp_path / files.STABILITY)
    specific(circuit).save(tmp_path / files.SPECIFICITY)
    names = circuit.edge_names()
    rows = [
        {"part": names[i], "drawn": "top" if i < 5 else "sample", "estimate": 1.0 - i, "exact": None if i == 7 else 0.5,
         "low": 0.1, "high": 0.9}
        for i in range(8)
    ]  # fmt: skip
    write_json(tmp_path / files.VERIFICATION, {"describe": EVIL[1], "theta": 0.2, "summary": {}, "rows": rows})
    pair = {"clean_prompt": EVIL[0], "corrupt_prompt": EVIL[1], "answers": EVIL[2], "wrong": EVIL[3]}
    write_json(tmp_path / files.WORST, {"pairs": [pair | {"clean": 5.0, "circuit": -1.0}]})
    run = {"format": files.FORMAT, "version": files.VERSION, "title": EVIL[3], "settings": {"metric": "logit_diff"}}
    run |= {"asked": {"data": EVIL[0]}, "facts": {EVIL[1]: EVIL[2]}, "spans": ["S1", "END"], "also": [[EVIL[1], "x"]]}
    write_json(tmp_path / files.RUN, run)
    return circuit


# ------------------------------------------------------------------------------------------------------------- graph


def drawing(figure) -> ElementTree.Element:
    return ElementTree.fromstring(str(figure.panels[0].element()))


def lines_of(figure) -> list[ElementTree.Element]:
    return [e for e in drawing(figure).iter("path") if e.get("class", "").startswith("edge")]


def test_every_edge_is_a_line_coloured_by_sign_and_wide_by_size() -> None:
    shape = shape_of()
    names = ["input->a0.h1.v", "a0.h1->a2.h0.k", "a0.h1->m1", "m1->logits", "a2.h0->logits"]
    circuit = Circuit.from_edges(shape, names)
    score = dict(zip(names, (3.0, -2.0, 0.5, 0.01, 4.0), strict=True))
    flat = np.zeros(len(circuit.table))
    for name, value in score.items():
        flat[circuit.table.number(*circuit.table.parse(name))] = value
    lines = lines_of(circuit_graph(circuit, flat))
    said = {line.find("title").text.split("\n")[0].replace(" \N{RIGHTWARDS ARROW} ", "->"): line for line in lines}
    assert set(said) == set(names)
    assert {name for name, line in said.items() if "down" in line.get("class")} == {"a0.h1->a2.h0.k"}
    widths = {name: float(line.get("stroke-width")) for name, line in said.items()}
    assert sorted(names, key=lambda n: abs(score[n])) == sorted(names, key=lambda n: widths[n])


def test_information_flows_upwards_and_lines_end_at_their_port() -> None:
    shape = shape_of()
    circuit = Circuit.from_edges(shape, ["input->a1.h0.q", "input->a1.h0.k", "input->a1.h0.v", "a1.h0->logits"])
    ends = {}
    for line in lines_of(circuit_graph(circuit)):
        numbers = [float(v) for v in re.findall(r"-?[\d.]+", line.get("d"))]
        assert numbers[1] > numbers[-1]  # y grows downwards
        ends[line.find("title").text] = numbers[-2]
    q, k, v = (next(x for said, x in ends.items() if said.endswith(f"a1.h0.{port}")) for port in "qkv")
    assert q < k < v


def test_thin_edges_are_counted_where_they_enter() -> None:
    shape = shape_of(6, 8)
    scores = scored(shape)
    circuit = select.path_aware(scores.mean, shape, MOST_LINES + 150, absolute=True)
    figure = circuit_graph(circuit, scores.mean)
    assert len(lines_of(figure)) == MOST_LINES
    counts = [int(t.text or t.find("title").tail) for t in drawing(figure).iter("text")
              if "more" in t.get("class", "") and "part" not in "".join(t.itertext())
              and (t.text or t.find("title").tail)]  # fmt: skip
    assert sum(counts) == 150
    assert f"{MOST_LINES} strongest of {MOST_LINES + 150}" in figure.caption


def test_spans_are_columns_and_a_value_is_read_in_the_column_of_its_head() -> None:
    shape = shape_of()
    edges = ["input->a0.h1.v@S1", "input->a0.h1.q@S2", "a0.h1->m1@S2", "m1->a2.h0.v@S2", "a2.h0->logits@END"]
    figure = circuit_graph(Circuit.from_edges(shape, edges, spans=("S1", "S2", "END")), order=("S1", "S2", "END"))
    texts = ["".join(t.itertext()) for t in drawing(figure).iter("text")]
    assert [t for t in texts if t in ("S1", "S2", "END")] == ["S1", "S2", "END"]
    assert texts.count("a0.h1") == texts.count("a2.h0") == 1
    boxes = {("".join(t.itertext())): float(t.get("x")) for t in drawing(figure).iter("text")}
    assert boxes["a0.h1"] < boxes["a2.h0"]
    assert abs(boxes["a0.h1"] - boxes["S2"]) < abs(boxes["a0.h1"] - boxes["S1"])


def test_heads_that_share_a_key_stand_in_one_box() -> None:
    shape = shape_of(2, 4, 2)
    names = ["input->a0.h0.q", "input->a0.kv0.k", "input->a0.h1.q", "a0.h0->logits", "a0.h1->logits"]
    figure = circuit_graph(Circuit.from_edges(shape, names))
    parts = [g for g in drawing(figure).iter("g") if g.get("class") == "part"]
    shared = [g for g in parts if "a0.kv0" in "".join(g.itertext())]
    assert len(shared) == 1
    assert all(name in "".join(shared[0].itertext()) for name in ("a0.h0", "a0.h1"))


@settings(max_examples=25, deadline=None)
@given(
    n_layers=st.integers(1, 5), group=st.sampled_from([1, 2]), n_kv=st.integers(1, 3), parallel=st.booleans(),
    n=st.integers(1, 60), seed=st.integers(0, 99), often=st.booleans(),
)  # fmt: skip
def test_any_circuit_is_drawn_inside_its_frame_without_overlapping_boxes(
    n_layers, group, n_kv, parallel, n, seed, often
) -> None:
    shape = shape_of(n_layers, n_kv * group, n_kv, parallel)
    scores = scored(shape, seed)
    circuit = select.path_aware(scores.mean, shape, min(n, len(edge_table(shape))), absolute=True)
    seen = np.random.default_rng(seed).uniform(0.5, 1, len(circuit.table)) if often else None
    figure = circuit_graph(circuit, scores.mean, seen, gap=scores.gap)
    panel, found = figure.panels[0], drawing(figure)
    assert len(lines_of(figure)) >= circuit.n_edges
    boxes = []
    for part in (g for g in found.iter("g") if g.get("class") == "part"):
        rect = next(part.iter("rect"))
        x, y, wide, tall = (float(rect.get(k)) for k in ("x", "y", "width", "height"))
        assert x >= -1 and x + wide <= panel.width + 1 and y >= -1 and y + tall <= panel.height + 1
        boxes.append((x, y, wide, tall))
    for i, (x, y, wide, tall) in enumerate(boxes):
        for u, v, w, t in boxes[i + 1 :]:
            assert x + wide <= u + 0.1 or u + w <= x + 0.1 or y + tall <= v + 0.1 or v + t <= y + 0.1


def test_a_line_bows_around_a_box_that_is_in_its_way() -> None:
    low, middle, high = (Box(name, "", level, False, {name: []}) for level, name in enumerate(("a", "b", "c")))
    lines = [End(low, "a", middle, "b"), End(middle, "b", high, "c"), End(low, "a", high, "c")]
    laid = lay_out([low, middle, high], lines)
    xs = [float(v) for v in re.findall(r"-?[\d.]+", laid.routes[2])][0::2]
    assert max(abs(x - laid.x_of(middle)) for x in xs) > middle.width / 2


def test_an_empty_circuit_is_drawn_too() -> None:
    assert "0 edges" in circuit_graph(Circuit.empty(shape_of())).alt


# ----------------------------------------------------------------------------------------------------------- figures


def test_the_frontier_marks_the_circuit_and_keeps_inside() -> None:
    shape = shape_of()
    found = grown(shape, scored(shape))
    figure = charts.frontier_chart(found.frame.to_dict("records"), found.n_total, {"edges": 20, "faithfulness": 7.0})
    assert len(figure.panels) == 2
    for panel in figure.panels:
        root = ElementTree.fromstring(str(panel.element()))
        marked = [p for p in root.iter("path") if "mean" in p.get("class", "")]
        assert len(marked) == 1
        for circle in root.iter("circle"):
            assert 0 <= float(circle.get("cx")) <= panel.width
            assert 0 <= float(circle.get("cy")) <= panel.height


def test_wrong_signs_are_told_apart_in_the_scatter() -> None:
    rows = [
        {"part": "a", "drawn": "top", "estimate": 1.0, "exact": 0.9, "low": 0.8, "high": 1.0},
        {"part": "b", "drawn": "top", "estimate": 1.0, "exact": -0.4, "low": -0.5, "high": -0.3},
        {"part": "c", "drawn": "sample", "estimate": 0.1, "exact": 0.0, "low": 0.0, "high": 0.0},
        {"part": "d", "drawn": "sample", "estimate": np.nan, "exact": 0.0, "low": 0.0, "high": 0.0},
    ]
    root = ElementTree.fromstring(str(charts.scatter(rows, "logits", 0.1).panels[0].element()))
    tones = {c.find("title").text.split(" ")[0]: c.get("class") for c in root.iter("circle")}
    assert tones == {"a": "d", "b": "n", "c": "flat"}


# -------------------------------------------------------------------------------------------------------------- page


def test_the_page_is_made_from_the_folder_and_shows_every_section(tmp_path) -> None:
    saved(tmp_path)
    page = write_report(tmp_path).read_text()
    ids = {attrs.get("id") for tag, attrs in Elements(page).tags if tag == "section"}
    assert ids >= {"circuit", "holds", "frontier", "stability", "specificity", "exact", "edges", "worst", "question"}
    assert "alone keep 93 %" in page
    assert "Every gate and every test of the verdict passed." in page
    links = {a["href"] for tag, a in Elements(page).tags if tag == "a" and a.get("href", "").startswith("#")}
    assert {link[1:] for link in links} <= {a.get("id") for _, a in Elements(page).tags}


def test_nothing_hostile_gets_through_and_nothing_is_fetched(tmp_path) -> None:
    saved(tmp_path)
    page = write_report(tmp_path).read_text()
    found = Elements(page)
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not [tag for tag, _ in found.tags if tag in ("img", "iframe", "link", "object")]
    assert not [a for _, attrs in found.tags for a in attrs if a.startswith("on")]
    assert "{{ 7 * 7 }}" in page and "49" not in re.findall(r"<title>(.*?)</title>", page)[0]
    assert not re.search(r"""(src|href)=["']?https?:""", page)
    assert str(POLICY).split(";")[0] in page.replace("&#39;", "'")


def test_a_failed_gate_leaves_no_claim(tmp_path) -> None:
    saved(tmp_path, failed=True)
    page = write_report(tmp_path).read_text()
    assert "support no claim" in page
    assert "Every gate" not in page


def test_what_was_not_shown_is_said(tmp_path) -> None:
    saved(tmp_path, kept=0.3)
    page = write_report(tmp_path).read_text()
    assert "Not shown: the circuit alone keeps 0.3" in page.replace("\n", " ")


def test_sections_that_are_not_there_are_left_out(tmp_path) -> None:
    import shutil

    saved(tmp_path)
    for name in (files.EVALUATION, files.FRONTIER, files.STABILITY, files.SPECIFICITY, files.SCORES):
        shutil.rmtree(tmp_path / name)
    for name in (files.VERIFICATION, files.WORST):
        (tmp_path / name).unlink()
    page = write_report(tmp_path).read_text()
    ids = {attrs.get("id") for tag, attrs in Elements(page).tags if tag == "section"}
    assert ids == {"circuit", "question", "reproduce"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (files.RUN, "[]"), (files.RUN, '{"format": "x"}'), (files.CIRCUIT, '{"schema": 3}'), (files.WORST, "{}"),
        (files.VERIFICATION, '{"rows": [{}], "describe": "", "theta": "x"}'), ("scores/scores.json", "{}"),
        ("evaluation/result.json", "{"), (files.RANKING, '{"ranking": {"nothing->here": 1}}'),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_with_their_place(tmp_path, name, text) -> None:
    saved(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(CrosspatchError) as refused:
        write_report(tmp_path)
    assert refused.value.what


def test_a_ranking_without_pairs_colours_the_graph(tmp_path) -> None:
    import shutil

    circuit = saved(tmp_path)
    shutil.rmtree(tmp_path / files.SCORES)
    names = circuit.edge_names()
    write_json(tmp_path / files.RANKING, {"ranking": {name: -1.0 for name in names}})
    page = write_report(tmp_path).read_text()
    assert page.count('class="edge down"') == len(names)
    assert 'class="edge up"' not in page


def test_a_ranking_of_something_else_is_refused(tmp_path) -> None:
    circuit = saved(tmp_path)
    (tmp_path / files.RANKING).write_text('{"ranking": [1]}')
    with pytest.raises(ResultError):
        read_ranking(tmp_path, circuit)


def test_a_page_of_a_circuit_alone(tmp_path) -> None:
    circuit = Circuit.from_edges(shape_of(), ["input->m0", "m0->logits"], name=EVIL[0])
    page = render(CircuitPage("alone", sections.drawn(circuit)))
    assert "m0" in page
    assert sum(tag == "script" for tag, _ in Elements(page).tags) == 1
