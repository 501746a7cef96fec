"""One self-contained HTML page from plain data. Everything that comes from a prompt, a file or a model is escaped."""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from crosspatch.report import figures, words
from crosspatch.report.attention import attention_matrix, attention_strip
from crosspatch.report.data import Attention, Band, Effect, ReportData
from crosspatch.report.strips import gate_plane, shared_axis, strip, strip_scale
from crosspatch.report.svg import FIGURE_CSS, FIGURE_CSS_DARK, interval, percent, signed
from crosspatch.report.tokens import example_block, role_names

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
"""What the page may do: style and run what is in it, and nothing else; no request of any kind."""
GROUPS = (
    ("blocks", "Blocks", ("attn_out", "mlp_out")),
    ("heads", "Attention heads", ("z",)),
    ("inputs", "Inside the heads: queries, keys, values, patterns", ("q", "k", "v", "pattern")),
    ("neurons", "MLP neurons", ("mlp_act", "neuron")),
)
TABLE_ROWS, FEWEST_ROWS = 12, 5


def render(data: ReportData) -> str:
    """The whole page as text. It asks for nothing over the network, which its content policy also forbids."""
    return template("report.html.j2").render(context(data))


def template(name: str) -> jinja2.Template:
    """A page of `templates/`; whatever is put into it is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(template_text),
    )
    environment.filters |= {"signed": signed, "percent": percent, "anchor": figures.anchor, "q": q_value}
    return environment.get_template(name)


def encoded(page: str) -> bytes:
    """A page as the bytes of a file. Halves of characters, which JSON can hold and UTF-8 cannot, are spelled out."""
    return page.encode("utf-8", "backslashreplace")


def template_text(name: str) -> str:
    """A file of `templates/` as it stands: styles and scripts."""
    return resources.files("crosspatch.report").joinpath("templates", name).read_text(encoding="utf-8")


def q_value(q: float) -> str:
    """A corrected p-value as a reader wants it."""
    if not math.isfinite(q):
        return "n/a"
    return "< 0.001" if q < 0.001 else f"{q:.3f}" if q < 0.1 else f"{q:.2f}"


def context(data: ReportData) -> dict[str, Any]:
    """What the template shows."""
    from crosspatch.report.circuits import headline_of
    from crosspatch.report.features import headline_of as headline_of_features

    tables = part_tables(data)
    linked = frozenset(row["key"] for table in tables for row in table["rows"])
    roles = role_names(data.examples)
    heads = [e for level in data.levels for e in level.effects if e.kind == "z"]
    plane = heads or [e for level in data.levels for e in level.effects if e.kind in ("attn_out", "mlp_out")]
    style = figures.Style(linked, figures.contribution_limit(data.levels), figures.role_order(data.levels))
    both = any(math.isfinite(e.interaction.mean) for e in plane)
    graphs = data.circuit is not None or data.features is not None
    return {
        "data": data,
        "policy": POLICY,
        "figure_css": Markup(FIGURE_CSS),
        "figure_css_dark": Markup(FIGURE_CSS_DARK),
        "style": Markup(template_text("style.css")),
        "script": Markup(template_text("report.js")),
        "headline": words.headline(data),
        "behaviour": words.behaviour(data),
        "scope": words.scope(data),
        "roles": roles,
        "examples": [example_block(e, roles, i) for i, e in enumerate(data.examples)],
        "heat_maps": [pair for level in data.levels for pair in figures.level_figures(level, style)],
        "plane": gate_plane(plane) if both else None,
        "tables": tables,
        "linked": linked,
        "attention": attention_items(data),
        "circuit_headline": headline_of(data.circuit) if data.circuit is not None else [],
        "features_headline": headline_of_features(data.features) if data.features is not None else [],
        "circuit_style": Markup(
            (template_text("circuits.css") if graphs else "") + (template_text("features.css") if data.features else "")
        ),
        "circuit_script": Markup(template_text("circuits.js") if graphs else ""),
        "interval": interval,
        "counts": {s: sum(f.severity == s for f in data.findings) for s in ("error", "warning", "note")},
    }


def attention_items(data: ReportData) -> list[dict[str, Any]]:
    """One item per head: its patterns on the first example in full, on the others as strips of text.

    A strip shows the row of the position at which patching the head has its largest effect.
    """
    heads: dict[str, list[Attention]] = {}
    for view in data.attention:
        heads.setdefault(view.head, []).append(view)
    position: dict[str, str] = {}
    for effect in sorted((e for level in data.levels for e in level.effects if e.kind == "z"), key=lambda e: -e.size):
        position.setdefault(effect.address.split("@")[0], effect.position)
    return [
        {
            "head": head,
            "position": position.get(head, "END"),
            "figure": attention_matrix(its[0]),
            "strips": [
                (
                    attention_strip(v, position.get(head, "END")),
                    attention_strip(v, position.get(head, "END"), corrupt=True),
                )
                for v in its
            ],
        }
        for head, its in heads.items()
    ]


def part_tables(data: ReportData) -> list[dict[str, Any]]:
    """One table for each granularity that was run: its strongest rows, with strips on one axis."""
    tables = []
    about: dict[str, list[int]] = {}
    for number, finding in enumerate(data.findings, 1):
        for address in finding.rows:
            about.setdefault(address, []).append(number)
    for name, title, kinds in GROUPS:
        rows = [(e, level) for level in data.levels for e in level.effects if e.kind in kinds]
        if not rows:
            continue
        rows.sort(key=lambda pair: -pair[0].size)
        mattering = sum(e.matters for e, _ in rows)
        shown = rows[: min(TABLE_ROWS, max(FEWEST_ROWS, mattering + 2))]
        band = next((level.band for _, level in shown if level.band != Band()), Band())
        axis = shared_axis([e for e, _ in shown], band)
        tables.append(
            {
                "name": name,
                "title": title,
                "total": len(rows),
                "mattering": mattering,
                "rule": next((level.rule for _, level in shown if level.rule), ""),
                "band": band,
                "scale": strip_scale(axis).element(),
                "rows": [_table_row(e, about.get(e.address, []), strip(e, axis, band).element()) for e, _ in shown],
                "metrics": _other_metrics(data, [e for e, _ in shown[:8]], kinds),
            }
        )
    return tables


def _table_row(effect: Effect, findings: list[int], drawn: Markup) -> dict[str, Any]:
    return {
        "effect": effect,
        "key": effect.key,
        "what": words.KIND_WORDS.get(effect.kind, effect.kind),
        "findings": findings,
        "strip": drawn,
    }


def _other_metrics(data: ReportData, shown: list[Effect], kinds: tuple[str, ...]) -> dict[str, Any] | None:
    """The same rows under every other metric, so that a reader sees whether they agree."""
    by_metric: dict[str, dict[str, Effect]] = {}
    for level in data.levels:
        for metric, effects in level.others.items():
            by_metric.setdefault(metric, {}).update({e.address: e for e in effects if e.kind in kinds})
    names = [m for m, found in by_metric.items() if found]
    if not names:
        return None
    return {"names": names, "rows": [(e, [by_metric[m].get(e.address) for m in names]) for e in shown]}
