"""The report says what the data say, escapes what it did not write itself, and asks for nothing over the network."""

from __future__ import annotations

import html
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import toys
from html_elements import Elements
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.patching import localize
from crosspatch.report import words
from crosspatch.report.attention import attention_matrix, attention_strip
from crosspatch.report.data import (
    Attention,
    Band,
    Confirmed,
    Effect,
    Estimate,
    Example,
    Gate,
    Level,
    Remark,
    ReportData,
    Takeover,
)
from crosspatch.report.figures import Style, anchor, by_head, by_role, contribution_limit, level_figures
from crosspatch.report.html import POLICY, q_value, render
from crosspatch.report.strips import gate_plane, shared_axis, strip
from crosspatch.report.svg import diverging, interval, nice_ticks, percent, signed, tag
from crosspatch.report.tokens import role_names, visible

EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><b onmouseover=alert(1)>",
    "{{ 7 * 7 }}",
)
GAP = 4.0
ROLES = ("subject", "rest", "END")


def effect(
    address: str, kind: str, layer: int, index: int | None, position: str, denoise: float, noise: float
) -> Effect:
    """A row with three examples around the given shares of the gap."""
    spread = np.array([-0.1, 0.0, 0.1])

    def estimate(share: float) -> Estimate:
        return Estimate(GAP * share, GAP * share - 0.2, GAP * share + 0.2, share)

    both = {
        "each_denoise": GAP * denoise + spread,
        "each_noise": GAP * noise + spread,
        "matters": max(abs(denoise), abs(noise)) > 0.1,
    }
    difference = noise - denoise
    gate = "additive" if abs(GAP * difference) <= 0.2 else "and-like" if difference > 0 else "or-like"
    q = 0.001 if max(abs(denoise), abs(noise)) > 0.1 else 0.8
    return Effect(
        address,
        kind,
        layer,
        index,
        position,
        estimate(denoise),
        estimate(noise),
        estimate(difference),
        gate,
        q,
        q,
        **both,
    )


def sample(**changes: object) -> ReportData:
    """A small but complete report: two layers, three heads, one failed gate, hostile text in every field."""
    residual = [
        effect(f"r{layer}@{role}", "resid_pre", layer, None, role, share, share)
        for layer, shares in enumerate([(0.9, 0.0, 0.1), (0.2, 0.0, 0.8)])
        for role, share in zip(ROLES, shares, strict=True)
    ]
    strength = {(1, 2): (0.5, 0.7), (0, 1): (0.3, 0.1), (1, 0): (-0.4, -0.3)}
    heads = [
        effect(f"a{layer}.h{head}", "z", layer, head, "*", *strength.get((layer, head), (0.01, 0.0)))
        for layer in range(2)
        for head in range(3)
    ]
    tokens = ("<s>", " The", EVIL[0], " likes", EVIL[1])
    spans = {"subject": (2, 3), "END": (4, 5)}
    pattern = np.tril(np.ones((5, 5)))
    pattern /= pattern.sum(1, keepdims=True)
    data = ReportData(
        task=EVIL[1], model=EVIL[2], metric="logit_diff", n_examples=3,
        clean=Estimate(3.0, 2.5, 3.5), corrupt=Estimate(-1.0, -1.5, -0.5),
        varies=EVIL[0], holds=EVIL[3], description=EVIL[2], provenance=EVIL[0], unit="logits",
        model_facts={"layers": EVIL[1]},
        examples=(
            Example(tokens, ("<s>", " A", EVIL[2], " likes", " it"), spans, spans, (EVIL[0],), (EVIL[1],), 3.0, -1.0),
        ),
        gates=(
            Gate("behaviour", "passed", "clean beats corrupt"),
            Gate("alignment", "failed", EVIL[0], EVIL[1], (EVIL[2],)),
        ),
        forced=True,
        levels=(
            Level("residual", tuple(residual)),
            Level("heads", tuple(heads), {"prob": tuple(heads)}, Band((-0.1, 0.1), (-0.2, 0.2), "is the control")),
        ),
        attention=(Attention("a1.h2", 0, tokens, pattern, spans, tokens, pattern),),
        takeovers=(
            Takeover("a1.h2", "a0.h1", Estimate(0.1, 0, 0.2), Estimate(0.9, 0.8, 1), Estimate(0.8, 0.6, 1), 0.4, True),
        ),
        confirmed=(Confirmed("a1.h2", 0.5, 0.7, Estimate(0.4, 0.3, 0.5, 0.4), Estimate(0.6, 0.5, 0.7, 0.6), True),),
        n_held_out=5,
        findings=(Remark("warning", EVIL[0], EVIL * 2, EVIL[2], ("a1.h2", "a0.h0")), Remark("note", "all well")),
        methodology={"source": EVIL[0]}, environment={"torch": EVIL[1]}, cost={"wall time": "3 s"},
        command=f"crosspatch --task '{EVIL[0]}'",
    )  # fmt: skip
    return replace(data, **changes)


@pytest.fixture(scope="module")
def page() -> str:
    return render(sample())


def test_hostile_text_stays_text(page: str) -> None:
    elements = Elements(page)
    names = [name for name, _ in elements.tags]
    assert names.count("script") == 1
    assert "img" not in names
    for name, attributes in elements.tags:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        assert not (attributes.get("href") or "#").lower().startswith("javascript")
    assert "alert(1)" in page, "the text itself must still be readable"
    assert "{{ 7 * 7 }}" in page
    assert "49" not in re.findall(r"held fixed</dt><dd>(.*?)</dd>", page)[0]


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    elements = Elements(page)
    for name, attributes in elements.tags:
        for key in ("src", "srcset", "data", "action", "xlink:href"):
            assert key not in attributes, (name, key)
        if name in ("link", "iframe", "object", "embed", "base"):
            raise AssertionError(f"<{name}> could load something")
        if "href" in attributes:
            assert str(attributes["href"]).startswith("#")
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|innerHTML", page)
    policy = [a["content"] for n, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [POLICY]
    assert "default-src 'none'" in POLICY


def test_every_link_has_a_target_and_every_id_is_unique(page: str) -> None:
    elements = Elements(page)
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in elements.tags:
        if attributes.get("href"):
            assert attributes["href"][1:] in ids, attributes


def test_the_headline_names_the_strongest_part_with_its_numbers() -> None:
    first, second, third = words.headline(sample())
    assert "The strongest, a1.h2, restores 50 % of the gap (+2.00 [+1.80, +2.20])" in first
    assert "breaks 70 % (+2.80 [+2.60, +3.00])" in first
    assert "INT = +0.80" in first
    assert "and-like" in first
    assert "Of 6 attention heads patched, 3 move" in first
    assert "Working against the behaviour: a1.h0" in first
    assert second.endswith("half of the gap is carried at subject before layer 0 and at END before layer 1.")
    assert "a0.h1 takes over" in third


def test_the_page_shows_every_section_that_has_something_to_say(page: str) -> None:
    ids = {attributes.get("id") for _, attributes in Elements(page).tags}
    assert {
        "summary",
        "question",
        "gates",
        "maps",
        "parts",
        "attention",
        "backup",
        "confirmed",
        "diagnosis",
        "reproduce",
    } <= ids
    assert 'role="alert"' in page
    assert "is the control" in page
    bare = render(
        sample(gates=(), levels=(), attention=(), takeovers=(), confirmed=(), findings=(), examples=(), forced=False)
    )
    ids = {attributes.get("id") for _, attributes in Elements(bare).tags}
    assert not {"gates", "maps", "parts", "attention", "backup", "confirmed"} & ids
    assert 'role="alert"' not in bare
    assert "found nothing to object to" in bare


def test_the_scope_repeats_what_varies_and_what_is_held() -> None:
    said = words.scope(sample(varies="the name", holds="the place"))
    assert "the name" in said
    assert "the place" in said
    assert "nothing wider" in said


def test_a_sweep_in_one_direction_draws_one_panel_and_no_gate_plane() -> None:
    data = sample()
    heads = tuple(
        replace(e, noise=Estimate(), interaction=Estimate(), gate="", q_noise=math.nan) for e in data.levels[1].effects
    )
    ((_, figure),) = level_figures(Level("heads", heads))
    assert len(figure.panels) == 1
    html = render(sample(levels=(Level("heads", heads),)))
    assert "OR-like: has a backup" not in html
    assert "not run" in html


def test_heat_map_cells_hold_the_numbers_and_share_one_scale() -> None:
    data = sample()
    limit = contribution_limit(data.levels)
    assert limit == pytest.approx(0.7)
    figure = by_head(data.levels[1].effects, Style(limit=limit))
    cells = [c for panel in figure.panels for c in ElementTree.fromstring(f"<g>{panel.body}</g>").iter("rect")]
    assert len(cells) == 2 * 6
    assert cells[5].attrib["fill"] == diverging(0.5, 0.7)
    assert cells[11].attrib["fill"] == diverging(0.7, 0.7)
    assert "INT +0.80" in (cells[5].findtext("title") or "")


def test_a_part_that_was_not_run_is_drawn_as_missing() -> None:
    figure = by_head(sample().levels[1].effects[:4])
    missing = [
        c
        for p in figure.panels
        for c in ElementTree.fromstring(f"<g>{p.body}</g>").iter("rect")
        if c.get("class") == "z"
    ]
    assert len(missing) == 2 * 2


def test_heads_patched_at_several_roles_show_the_largest() -> None:
    rows = [effect("a0.h0@END", "z", 0, 0, "END", 0.5, 0.5), effect("a0.h0@rest", "z", 0, 0, "rest", 0.1, 0.1)]
    figure = by_head(rows)
    assert "several roles" in str(figure.caption)
    assert "a0.h0@END" in figure.panels[0].body
    assert "a0.h0@rest" not in figure.panels[0].body


@pytest.mark.parametrize("make", [
    lambda d: by_role(d.levels[0].effects),
    lambda d: by_head(d.levels[1].effects),
    lambda d: gate_plane(d.levels[1].effects),
    lambda d: attention_matrix(d.attention[0]),
])  # fmt: skip
def test_figures_work_alone(make, tmp_path) -> None:
    figure = make(sample())
    path = figure.save(tmp_path / "figure.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    assert float(root.attrib["width"]) > 100
    assert "script" not in {e.tag.split("}")[-1] for e in root.iter()}
    assert figure.alt
    shown = figure._repr_html_()
    assert shown.startswith("<figure")
    assert [p.name for p in tmp_path.iterdir()] == ["figure.svg"], "no temporary file is left"


def test_strips_keep_every_finite_example() -> None:
    row = replace(sample().levels[1].effects[5], each_noise=np.array([math.nan, 1.0, 2.0]))
    drawn = strip(row, shared_axis([row]), Band((-1.0, 1.0))).body
    assert drawn.count("<circle") == 3 + 2
    assert drawn.count("random control") == 1


@given(st.text())
def test_what_is_shown_has_no_control_or_direction_marks(text: str) -> None:
    shown = visible(text)
    assert shown
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", shown)


@given(st.text(), st.text())
def test_elements_survive_any_text(text: str, attribute: str) -> None:
    keep = "".join(c for c in text if visible(c) == c)
    value = "".join(c for c in attribute if visible(c) == c)
    element = ElementTree.fromstring(str(tag("p", keep, data_x=value)))
    assert (element.text or "") == keep
    assert element.attrib["data-x"] == value


@given(st.lists(st.text(min_size=1), unique=True))
def test_anchors_are_safe_and_distinct(addresses: list[str]) -> None:
    anchors = [anchor(a) for a in addresses]
    assert all(re.fullmatch(r"row-[0-9A-Za-z-]+", a) for a in anchors)
    assert len(set(anchors)) == len(anchors)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_lie_inside_and_are_evenly_spaced(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width)
    assert 1 <= len(ticks) <= 12
    assert all(low - 1e-6 * width <= t <= low + width * (1 + 1e-6) for t in ticks)


def test_numbers_are_written_as_people_read_them() -> None:
    assert signed(-1.234) == "\N{MINUS SIGN}1.23"
    assert signed(0.00001) == "0.00"
    assert signed(0.0042) == "+0.004"
    assert signed(math.nan) == "n/a"
    assert percent(-0.124) == "\N{MINUS SIGN}12 %"
    assert percent(-0.001) == "0 %"
    assert percent(math.nan) == "n/a"
    assert interval(math.nan, 1.0) == ""
    assert q_value(0.00001) == "< 0.001"
    assert q_value(math.nan) == "n/a"
    assert diverging(0, 1) == "#f6f5f1"
    assert diverging(5, 1) == diverging(1, 1)


def test_roles_are_in_reading_order_with_the_answer_position_last() -> None:
    one = Example(("a", "b", "c"), ("a", "b", "c"), {"END": (2, 3), "verb": (1, 2), "noun": (0, 1)}, {})
    assert role_names([one]) == ["noun", "verb", "END"]


def test_a_report_is_made_without_torch(tmp_path):
    """From saved results to the page, in a process of its own."""
    folder = tmp_path / "run"
    localize(toys.or_network(), toys.gate_task(8), plan=("block", "head"), held_out=0, out=folder)
    script = (
        "import sys\nfrom crosspatch.report import write_report\nprint(write_report(sys.argv[1]))\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\nassert not heavy, heavy"
    )
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = folder / "report.html"
    assert "a0.h0@END" in page.read_text()
    if os.name == "posix":
        assert page.stat().st_mode & 0o400
        assert page.stat().st_mode == (folder / "localization.json").stat().st_mode


def test_patterns_of_bidirectional_attention_are_drawn_whole() -> None:
    """A weight above the diagonal is drawn, and so kept in the strip's rows; a causal pattern's rows end there."""
    tokens, both = ("a", "b", "c"), np.array([[0.2, 0.8, 0.0], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    causal = np.tril(both)
    for pattern, drawn, ends in ((both, 8, [3, 3, 3]), (causal, 6, [1, 2, 3])):
        view = Attention("a0.h1", 0, tokens, pattern)
        assert len(re.findall("<rect", attention_matrix(view).panels[0].body)) == drawn
        rows = json.loads(html.unescape(re.search(r'data-rows="([^"]*)"', attention_strip(view))[1]))
        assert [len(row) for row in rows] == ends
