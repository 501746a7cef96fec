"""The report of path results: it draws what the claims say, says what the numbers say, and escapes everything."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from html_elements import Elements

from crosspatch.errors import ResultError
from crosspatch.paths.attribute import Attribution
from crosspatch.paths.decohere import Decohering
from crosspatch.paths.mediate import Mediation
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import from_edges, paths
from crosspatch.paths.refine import Refinement
from crosspatch.paths.saved import from_json, load, save, to_json
from crosspatch.paths.scores import PathTest
from crosspatch.paths.sender import NO_SHARES, SenderEffects
from crosspatch.report import paths_figures as figures
from crosspatch.report.data import Gate
from crosspatch.report.html import POLICY
from crosspatch.report.paths import (
    Page,
    attribution_section,
    refinement_section,
    render,
    score_section,
    sweep_section,
)
from crosspatch.report.paths_graph import hypothesis_graph
from crosspatch.report.paths_mediation import decohering_section, mediation_section

EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><b onmouseover=alert(1)>",
    "{{ 7 * 7 }}",
)
N = 12


def scored(explained: float = 0.8, needed: float = 0.9, always: str | None = None) -> PathTest:
    """Two hypotheses on twelve pairs: the first explains a given share of a total effect of 2, the second nothing."""
    total = np.full(N, 2.0)
    wobble = np.linspace(-0.02, 0.02, N)
    unexplained = np.stack([2 * (1 - explained) + wobble, 2 + wobble])
    return PathTest(
        [EVIL[0], "nothing much"],
        np.abs(unexplained),
        np.abs(np.stack([2 * needed + wobble, np.abs(wobble)])),
        total,
        np.full(N, 1e-9),
        np.stack([np.full(N, 0.4), np.full(N, 2.0)]),
        np.full(N, 2.0),
        np.zeros(N),
        [str(i % 4) for i in range(N)],
        {
            "dissimilarity": "kl",
            "unit": "nats",
            "pairs": EVIL[1],
            "pairs_hash": "0",
            "null": "all paths on the counterfactual",
            "hypotheses": {EVIL[0]: "** -> a1.h2.k@S1 -> logits", "nothing much": {"not": "** -> m0 -> ** -> logits"}},
            "always": always,
            "method": EVIL[2],
            "model": EVIL[3],
            "seed": 0,
        },
    )


def attributed() -> Attribution:
    positions = (0, 1, 2)
    effect = np.array([0.0, 1.5, -0.5])
    draws = effect + np.linspace(-0.01, 0.01, 4)[:, None]
    tokens = [EVIL[0], EVIL[1], EVIL[2]]
    return Attribution(positions, effect, effect - 0.1, effect + 0.1, np.array([3.0, 2.0, 1.0]), draws, tokens, "nats")


def swept() -> SenderEffects:
    effect = np.stack([np.full(N, 0.5), np.full(N, -0.25), np.linspace(-1, 1, N)])
    about = {
        "receivers": [EVIL[1]], "mlps": "direct", "semantics": "last", "quantity": "kl", "unit": "nats",
        "pairs": "toy", "pairs_hash": "0", "method": "memoised", "model": "toy", "seed": 0,
    }  # fmt: skip
    return SenderEffects(["a0.h1@S2", "m1@S2", "a1.h0@END"], effect, np.full(N, 1.0), [str(i) for i in range(N)], about)


def refined(n: int = 3) -> Refinement:
    log = pd.DataFrame(
        {
            "step": ["start"] + ["add"] * n,
            "pattern": [""] + [f"** -> a{i}.h0 -> logits" for i in range(n)],
            "explained": np.linspace(0, 0.9, n + 1),
            "explained_held_out": np.linspace(0, 0.7, n + 1),
            "held_out_low": np.linspace(-0.1, 0.6, n + 1),
            "held_out_high": np.linspace(0.1, 0.8, n + 1),
        }
    )
    patterns = [f"** -> a{i}.h0 -> logits" for i in range(n)]
    return Refinement(
        patterns, log, np.array([0.1, 0.3, 0.2]), np.full(4, 1e-9), {"pairs": "toy", "positions": [], "seed": 0}
    )


def whole() -> Page:
    return Page(
        f"Do they? {EVIL[0]}",
        scores=score_section(scored(always="** -> a0.h0 -> logits"), words={EVIL[0]: EVIL[1]}),
        attributions=(attribution_section(attributed(), EVIL[1], paths("** -> a0.h0 -> logits"), EVIL[3]),),
        sweeps=(sweep_section(swept()),),
        refinement=refinement_section(refined()),
        asked={EVIL[0]: EVIL[1]},
        gates=(Gate(EVIL[0], "failed", EVIL[1], EVIL[2], (EVIL[3],)), Gate("fine", "passed", "all well", "", ())),
        forced=True,
        command=f"crosspatch --task '{EVIL[0]}'",
    )


@pytest.fixture(scope="module")
def page() -> str:
    return render(whole())


def test_hostile_text_stays_text(page: str) -> None:
    elements = Elements(page)
    names = [name for name, _ in elements.tags]
    assert names.count("script") == 1
    assert "img" not in names
    for name, attributes in elements.tags:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
    assert "alert(1)" in page, "the text itself must still be readable"
    assert "{{ 7 * 7 }}" in page
    assert "49" not in re.findall(r"<dt>model</dt><dd>(.*?)</dd>", page)[0]


def test_nothing_is_loaded_and_links_lead_somewhere(page: str) -> None:
    elements = Elements(page)
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name, attributes in elements.tags:
        assert name not in ("link", "iframe", "object", "embed", "base")
        assert not {"src", "srcset", "action"} & set(attributes)
        if attributes.get("href"):
            assert attributes["href"][1:] in ids
    assert not re.search(r"https?://(?!www\.w3\.org/)|@import|url\(|fetch\(|innerHTML", page)
    assert [a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"] == [POLICY]


def test_sections_are_there_if_they_have_something_to_say(page: str) -> None:
    sections = {"question", "gates", "scores", "claims", "attribution", "senders", "refinement"}
    ids = {attributes.get("id") for _, attributes in Elements(page).tags}
    assert sections | {"reproduce"} <= ids
    assert 'role="alert"' in page
    bare = render(Page("Nothing"))
    assert not sections & {attributes.get("id") for _, attributes in Elements(bare).tags}
    assert 'role="alert"' not in bare


def test_gates_are_open_only_if_one_did_not_pass(page: str) -> None:
    assert "<details open><summary>1 of 2 passed" in page
    fine = render(replace(whole(), gates=(Gate("fine", "passed", "all well", "", ()),)))
    assert "<details><summary>1 of 1 passed" in fine


# ------------------------------------------------------------------------------------------------------------- words


def test_scores_are_said_as_they_are() -> None:
    section = score_section(scored())
    first, second = section.headline
    assert "explains 80 % [80 %, 80 %] of the total effect" in first
    assert "the most of 2 hypotheses" in first
    assert "do 90 %" in second
    assert section.glance["numerical floor"] == "1e-09"
    assert section.rows[0].cells[0] == "80 %"
    assert section.rows[0].cells[6:] == ("80 %", "[80 %, 80 %]")  # loss recovered: 1 - 0.4 / 2
    assert section.comparison[0].cells[0].startswith("-1.6")
    assert section.yardstick is None


def test_of_many_hypotheses_each_is_shown_beside_the_best_one() -> None:
    two = scored()
    names = [f"claim {i}" for i in range(500)]
    spread = np.linspace(1, 0.5, 500)[:, None]  # the last leaves least unexplained
    many = replace(
        two,
        names=names,
        unexplained=two.unexplained[:1] * spread,
        needed=two.needed[:1] * np.ones_like(spread),
        signed=two.signed[:1] * np.ones_like(spread),
    )
    section = score_section(many)
    assert len(section.comparison) == 499
    assert all(row.name.startswith("\N{LEFT DOUBLE QUOTATION MARK}claim 499") for row in section.comparison)
    page = render(Page("Which?", scores=section))
    assert "Of 500 hypotheses, each beside the one that leaves least unexplained" in page


def test_a_sweep_without_sure_total_speaks_of_no_share() -> None:
    found = swept()
    assert "of the total effect" in sweep_section(found).headline[0]
    turned = found.total * np.where(np.arange(len(found.total)) % 2, 1, -1)
    (said,) = sweep_section(replace(found, total=turned)).headline
    assert said.endswith(f"[+0.50, +0.50]. {NO_SHARES}")


@pytest.mark.parametrize(
    ("needed", "said"), [(0.3, "other paths can do the same work"), (1.3, "they need other paths")]
)
def test_sufficient_and_necessary_are_compared(needed: float, said: str) -> None:
    assert said in score_section(scored(explained=0.8, needed=needed)).headline[1]


def test_one_pair_has_numbers_and_no_intervals() -> None:
    """Nothing is resampled from one pair: the page says so, and never `nan`."""
    s, w = scored(), swept()
    one = replace(s, unexplained=s.unexplained[:, :1], needed=s.needed[:, :1], total=s.total[:1], floor=s.floor[:1],
                  signed=s.signed[:, :1], signed_null=s.signed_null[:1], signed_reference=s.signed_reference[:1],
                  clusters=["a"])  # fmt: skip
    senders = replace(w, effect=w.effect[:, :1], total=w.total[:1], clusters=["a"])
    m = mediated()
    split = replace(m, total=m.total[:1], direct=m.direct[:1], mediated=m.mediated[:1], mediators=senders)
    page = render(
        Page("one", scores=score_section(one), sweeps=(sweep_section(senders),), mediation=mediation_section(split))
    )
    assert not re.search(r"\bnan\b", re.sub(r"<script>.*?</script>", "", page, flags=re.S), flags=re.I)
    assert "81 % (no interval) of the total effect" in page
    assert "too few independent pairs" in page and "holds zero" not in page


def test_a_total_effect_near_the_floor_has_no_verdict() -> None:
    small = scored()
    small.floor[:] = 0.1
    said = score_section(small).headline
    assert len(said) == 1 and "noise" in said[0]


def test_pairs_without_an_effect_are_said_to_have_none() -> None:
    flat = scored()
    flat.total[:] = 0
    assert "leaves nothing to explain" in score_section(flat).headline[0]
    render(Page("flat", scores=score_section(flat)))


def test_the_token_that_is_predicted_is_the_one_coloured() -> None:
    section = attribution_section(attributed(), "claim", paths("** -> a0.h0 -> logits"), " end")
    strip = str(section.strip)
    shown = re.findall(r'class="ptok ?(\w*)"[^>]*title="([^"]*)"', strip)
    assert [tone for tone, _ in shown] == ["", "none", "up", "down"]
    assert shown[0][1] == "token 0: not predicted"
    assert shown[2][1].startswith("token 2: +1.50 nats [+1.40, +1.60]; in the model 2")
    assert strip.endswith(" end<small>\N{MINUS SIGN}0.50</small></span></p>")
    assert section.rows[0].name == f"{EVIL[2]!r} at 2"
    assert "+1.50 nats" in section.headline[0]


def test_every_share_and_score_stands_with_its_interval() -> None:
    page = render(
        Page("all", scores=score_section(scored()), sweeps=(sweep_section(swept()),),
             mediation=mediation_section(mediated()), refinement=refinement_section(refined()))
    )  # fmt: skip
    columns = ("loss recovered (means, not AUE)", "share of total", "share of its total", "held-out pairs")
    for column in columns:
        cells = re.findall(rf'<td data-h="{re.escape(column)}">(.*?)</td>', page)
        assert cells, column
        assert all(re.fullmatch(r'<b>[^<]*</b> <span class="ci">\[.*%, .*%\]</span>', cell) for cell in cells), column


def test_the_quantity_of_an_attribution_is_named() -> None:
    about = {"quantity": "logit difference, wrong less right", "patched": "not (x)", "always": None, "seed": 3}
    seen = replace(attributed(), about=about)
    page = render(Page("q", attributions=(attribution_section(seen, "c", paths("** -> a0.h0 -> logits")),)))
    assert "change of the logit difference, wrong less right" in page
    assert "the model's own logit difference" in page.replace("&#39;", "'")
    assert "<dt>seed</dt><dd>3</dd>" in page


def test_a_search_that_began_somewhere_says_where() -> None:
    begun = refined(1)
    begun.log.loc[0, "pattern"] = "** -> a7.h0 -> logits"
    page = render(Page("begun", refinement=refinement_section(begun)))
    assert "nothing claimed yet" not in page and "a7.h0 -&gt; logits" in page


def test_refinement_words() -> None:
    said = refinement_section(refined()).headline
    assert said[0].startswith("After 3 steps 3 patterns explain 70 % [60 %, 80 %] of the total effect")
    assert "20 % (median) and at most 30 % of 3" in said[1]
    nothing = refined(0)
    section = refinement_section(nothing)
    assert section.headline[0].startswith("No step surely")
    assert section.drawing is None
    assert "nothing claimed yet" in render(Page("empty", refinement=section))


# ----------------------------------------------------------------------------------------------------------- figures


def titles(text: str, *order: str) -> list[str]:
    """What is said of every box and line of the graph of a pattern."""
    return re.findall(r"<title>(.*?)</title>", str(hypothesis_graph(paths(text), order).html))


def test_links_are_drawn_by_their_kind() -> None:
    drawn = str(hypothesis_graph(paths("** -> a0.h1 ~> a2.h3.q -> logits")).html)
    lines = re.findall(r"<path ([^>]*)><title>(.*?)</title>", drawn)
    assert [title for _, title in lines] == [
        "input to a0.h1: any route",
        "a0.h1 to a2.h3 (q): through any number of MLPs",
        "a2.h3 to logits: direct edge",
    ]
    assert 'stroke-dasharray="1.5 5"' in lines[0][0]
    assert 'stroke-dasharray="7 4"' in lines[1][0]
    assert "stroke-dasharray" not in lines[2][0]


def test_a_node_stands_where_it_writes() -> None:
    said = titles("input -> a0.h1@S2 -> a2.h3.k@S2 -> a3.h0.q@END -> logits")
    # a2.h3 reads S2 and writes into a query at END.
    assert {"a0.h1 at S2", "a2.h3 at END", "a3.h0 at END"} <= set(said)
    assert "a0.h1 to a2.h3 (k): direct edge" in said
    # Through any route the position that is read cannot be seen from the line, so that it is written there.
    said = titles("** -> a2.h3.k@S2 -> logits")
    assert "a2.h3" in said
    assert "input to a2.h3 (k@S2): any route" in said


def test_an_mlp_keeps_the_position() -> None:
    assert "m1 at S2" in titles("** -> a0.h1@S2 -> m1 -> logits")
    assert "m1" in titles("** -> a0.h1@S2 -> ** -> m1 -> logits")


def test_columns_are_in_the_order_of_the_prompt() -> None:
    text = "** -> {a0.h1@later, a0.h2@early, a0.h3@END, a0.h0} -> ** -> logits"
    drawn = str(hypothesis_graph(paths(text), ["early", "later", "END"]).html)
    named = re.findall(r">(any position|early|later|END)</text>", drawn)
    assert named == ["any position", "early", "later", "END"]


def height(text: str, name: str) -> float:
    """The middle of a box in a drawing; larger is further down."""
    root = ElementTree.fromstring(str(hypothesis_graph(paths(text)).panels[0].element()))
    (box,) = [r for r in root.iter("rect") if (t := r.find("title")) is not None and t.text == name]
    return float(box.get("y", "nan")) + float(box.get("height", "nan")) / 2


def test_layers_go_upward() -> None:
    text = "input -> a0.* -> m0 -> m* -> a5.h1.q -> logits"
    heights = [height(text, name) for name in ("input", "a0.*", "m0", "m*", "a5.h1", "logits")]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == len(heights)


def test_routes_of_different_lengths_end_in_the_same_logits() -> None:
    figure = hypothesis_graph(paths("** -> a1.h0@END -> logits@END", "** -> a1.h0@END -> m4 -> a9.h2.q -> logits@END"))
    said = re.findall(r"<title>(.*?)</title>", str(figure.html))
    assert said.count("logits at END") == 1
    assert said.count("input to a1.h0: any route") == 1


def test_what_is_taken_away_is_marked() -> None:
    kept = paths("** -> a1.h0 -> logits")
    figure = hypothesis_graph(kept - paths("** -> m0 -> ** -> logits"))
    said = re.findall(r"<title>(.*?)</title>", str(figure.html))
    assert "input to a1.h0: any route" in said
    assert "input to m0: any route, taken away" in said
    assert "taken away" in figure.caption
    assert "taken away" not in hypothesis_graph(kept).caption
    twice = hypothesis_graph(~~(kept - ~paths("** -> m0 -> ** -> logits")))
    assert "taken away" not in twice.caption


def test_edge_sets_are_drawn_up_to_a_limit() -> None:
    few = hypothesis_graph(from_edges([("input", "a0.h1.v"), ("a0.h1", "m0"), ("m0", "logits")]))
    said = re.findall(r"<title>(.*?)</title>", str(few.html))
    assert "input to a0.h1 (v): direct edge" in said
    many = hypothesis_graph(from_edges([(f"a{i}.h{j}", "logits") for i in range(20) for j in range(20)]))
    assert "150 further edges are not drawn" in many.caption


@pytest.mark.parametrize(
    "text",
    [
        "input -> logits",
        "input -> ** -> logits",
        "** -> * -> m* -> a[0-3].* -> logits@-1",
        "** -> {a0.h1, m3} ~> logits",
    ],
)
def test_every_kind_of_pattern_is_well_formed(text: str) -> None:
    for claim in (paths(text), ~paths(text)):
        ElementTree.fromstring(str(hypothesis_graph(claim).html))


def test_senders_fall_into_their_cells() -> None:
    rows = swept().frame().to_dict("records")
    figure = figures.sender_maps(rows, "nats")
    assert figure is not None
    drawn = str(figure.html)
    assert "senders at S2" in drawn
    assert "senders at END" in drawn
    assert "a0.h1@S2: +0.50 nats [+0.50, +0.50], 50 % of the total" in drawn
    assert "m1@S2: \N{MINUS SIGN}0.25 nats" in drawn
    assert ">MLP</text>" in drawn
    assert figures.sender_maps([{**rows[0], "sender": "input"}], "nats") is None


def test_bars_mark_mean_and_interval_on_the_axis() -> None:
    lanes = [figures.Lane("explained", 0.5, 0.25, 0.75, "d"), figures.Lane("needed", float("nan"), 0, 0, "n")]
    axis = figures.axis_of(lanes[:1], least=-0.5, most=1.5, ends=(0.0, 1.0))
    root = ElementTree.fromstring(str(figures.bars(lanes, axis, share=True)))
    (line,) = [e for e in root.iter("line") if e.get("class") == "dl"]
    assert float(line.get("x1", "nan")) == pytest.approx(axis(0.25), abs=0.01)
    assert float(line.get("x2", "nan")) == pytest.approx(axis(0.75), abs=0.01)
    assert [t.text for t in root.iter("title")] == ["explained: 50 % [25 %, 75 %]"]
    far = figures.axis_of([figures.Lane("", -9.0, -10.0, -8.0, "d")], least=-0.5)
    assert far.low > -1


def test_the_step_chart_has_every_step_and_every_random_draw() -> None:
    figure = figures.step_chart([0, 0.5, 0.9], [(0, 0, 0), (0.4, 0.3, 0.6), (float("nan"),) * 3], np.array([0.1, 0.2]))
    said = re.findall(r"<title>(.*?)</title>", str(figure.html))
    assert "step 2, pairs searched: 90 %" in said
    assert "step 1, held-out pairs: 40 % [30 %, 60 %]" in said
    assert not [s for s in said if s.startswith("step 2, held-out")]
    assert len([s for s in said if s.startswith("random hypothesis")]) == 2


def test_positions_come_from_the_pairs() -> None:
    spans = [{"END": (3, 4), "S2": (2, 3), "S1": (0, 1)}]
    pairs = Pairs([[1] * 4], [[2] * 4], [(0,)], [(1,)], [[]], [[]], spans, ["a"], "toy")
    claim = paths("** -> {a0.h1@END, a0.h2@S2, a0.h3@S1} -> ** -> logits")
    section = attribution_section(attributed(), "claim", claim, pairs=pairs)
    named = re.findall(r">(S1|S2|END)</text>", str(section.drawing.figure.html))
    assert named == ["S1", "S2", "END"]


# -- mediation, counterfactuals apart, saved results ----------------------------------------------------------------


def mediated(total: float = 1.0) -> Mediation:
    spread = np.linspace(-0.05, 0.05, N)
    return Mediation(EVIL[0], total + spread, 0.25 * total + spread, 0.5 * total + spread, swept())


def decohered() -> Decohering:
    about = {
        "dissimilarity": "kl", "unit": "nats", "pairs": EVIL[1], "pairs_hash": "0", "null": "none",
        "hypotheses": {EVIL[0]: "** -> m0 -> logits"}, "groups": {EVIL[2]: "** -> a0.h0.q -> ** -> logits"},
        "always": None, "method": "memoised", "model": "toy", "norms": "frozen", "seed": 0,
    }  # fmt: skip
    total = np.full(N, 2.0)
    shared, apart, floor = total[None] * 0.25, total[None] * 0.5, total * 1e-9
    return Decohering([EVIL[0]], shared, apart, total, total, floor, [str(i) for i in range(N)], about)


def test_mediation_is_split_and_hostile_names_stay_text() -> None:
    section = mediation_section(mediated())
    assert "25 % [23 %, 27 %] of it straight to the logits, 50 % [49 %, 51 %] through" in section.headline[0]
    assert [row.name for row in section.parts] == ["total", "direct", "mediated", "interaction"]
    assert section.parts[3].cells[3] == "25 %"
    nothing = mediation_section(mediated(0.0))
    assert "no sure effect to split" in nothing.headline[0] and len(nothing.headline) == 1
    assert {row.cells[3] for row in nothing.parts} == {""}
    page = render(Page(EVIL[0], mediation=section, decohering=decohering_section(decohered())))
    assert [name for name, _ in Elements(page).tags].count("script") == 1
    assert "img" not in [name for name, _ in Elements(page).tags]


def test_counterfactuals_apart_say_how_far_aue_moves() -> None:
    section = decohering_section(decohered())
    assert section.rows[0].cells[0] == "75 %" and section.rows[0].cells[2] == "50 %"
    assert section.rows[0].cells[4].startswith("+0.5")
    assert EVIL[0] in section.headline[0] and EVIL[2] in section.groups[0]


@pytest.mark.parametrize("made", [scored, attributed, swept, refined, mediated, decohered])
def test_results_come_back_as_they_were_saved(made, tmp_path) -> None:
    before = made()
    after = load(save(before, tmp_path / "x.json", page={"title": EVIL[0]}))
    assert type(after) is type(before)
    assert to_json(after) == to_json(before)
    assert "nan" not in (tmp_path / "x.json").read_text().lower()


@pytest.mark.parametrize("data", [[], 3, {}, {"kind": "test"}, {"kind": []}, {"kind": "senders", "senders": 3}])
def test_other_files_are_refused(data) -> None:
    with pytest.raises(ResultError, match="no result of path patching"):
        from_json(data)
