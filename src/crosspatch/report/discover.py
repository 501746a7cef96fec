"""The index of discovered behaviours: one page to search and browse thousands of clusters, one page for each of them.

The index holds a short record of every cluster and draws only the ones that are looked at; contexts and circuits are on
the clusters' own pages. Contexts are untrusted: every token is escaped, or set as text by the script, and no page asks
for anything over the network.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Template
from markupsafe import Markup

from crosspatch.discover.clusters import Clustering, load_clustering, read_clusters
from crosspatch.discover.samples import Samples, load_samples
from crosspatch.errors import ResultError
from crosspatch.report.html import POLICY, template, template_text
from crosspatch.report.svg import percent, tag
from crosspatch.report.tokens import visible
from crosspatch.results.files import read_json, write_atomic

INDEX, PAGES = "index.html", "pages"
CONTEXTS, SHOWN, AROUND = 200, 3, 14
"""Contexts on a cluster's page; on the index, and how many of their last tokens."""
TOKENS, ANSWERS = 12, 6


def write_index(folder: str | Path) -> Path:
    """Write `index.html` and a page for every cluster into a folder of `discover`, from what is saved there.

    Returns:
        The path of the index.

    Raises:
        ResultError: the folder holds no clusters, or they were damaged.
    """
    folder = Path(folder)
    samples = load_samples(folder)
    clustering = load_clustering(folder, samples.hash)
    circuits = {data["cluster"]: data for data in read_clusters(folder / "circuits")}
    rare = _rarity(samples)
    records = [record(samples, clustering, number, circuits.get(number), rare) for number in range(clustering.k)]
    form, style = template("discover_cluster.html.j2"), _style()  # read once: there may be thousands of pages
    for number, one in enumerate(records):
        page = cluster_page(samples, clustering, one, circuits.get(number), form, style)
        write_atomic(folder / PAGES / page_name(number), page.encode())
    path = folder / INDEX
    write_atomic(path, index_page(samples, clustering, records, _table(folder), _facts(folder, samples)).encode())
    return path


def page_name(number: int) -> str:
    """The file of a cluster's page."""
    return f"c{number:05d}.html"


def record(
    samples: Samples, clustering: Clustering, number: int, circuit: dict[str, Any] | None, rare: dict[int, float]
) -> dict[str, Any]:
    """What the index knows of a cluster, as JSON values."""
    members = clustering.members(number)
    answers = Counter(samples.word(i) for i in members)
    common = Counter(token for i in members for token in set(samples.contexts[i]))
    telling = sorted(common, key=lambda token: (-common[token] * rare[token], token))[:TOKENS]
    labels = [] if samples.labels is None else Counter(samples.labels[i] for i in members).most_common()
    losses = samples.losses[members]
    failed = circuit is not None and "error" in circuit
    found = circuit if circuit is not None and not failed else None
    return {
        "id": number,
        "page": f"{PAGES}/{page_name(number)}",
        "size": len(members),
        "documents": len(np.unique(samples.documents[members])),
        "loss": round(float(losses.mean()), 4),
        "answers": [[visible(word), n] for word, n in answers.most_common(ANSWERS)],
        "distinct": len(answers),
        "tokens": [visible(samples.tokens[token]) for token in telling],
        "label": labels[0][0] if labels else None,
        "purity": round(labels[0][1] / len(members), 4) if labels else None,
        "examples": [_example(samples, int(i)) for i in _spread(members, SHOWN)],
        "nodes": [node["node"] for node in found["nodes"]] if found else [],
        "faithfulness": found["evaluation"]["faithfulness"] if found else None,
        "error": circuit["error"]["what"] if circuit is not None and failed else None,
    }


def index_page(
    samples: Samples,
    clustering: Clustering,
    records: Sequence[dict[str, Any]],
    table: list[dict[str, Any]],
    facts: dict[str, str],
) -> str:
    """The index as text."""
    return template("discover.html.j2").render(
        policy=POLICY,
        style=_style(),
        script=Markup(template_text("discover.js")),
        data=_data(records),
        records=records,
        samples=samples,
        clustering=clustering,
        labelled=samples.labels is not None,
        circuits=sum(bool(one["nodes"]) for one in records),
        failed=sum(one["error"] is not None for one in records),
        table=table,
        facts=facts,
    )


def cluster_page(
    samples: Samples,
    clustering: Clustering,
    about: dict[str, Any],
    circuit: dict[str, Any] | None,
    form: Template,
    style: Markup,
) -> str:
    """The page of one cluster as text.

    Args:
        about: its `record`.
        circuit: its `cluster.json`.
        form, style: template and style sheet.
    """
    members = clustering.members(about["id"])
    shown = members[np.argsort(samples.losses[members], kind="stable")][:CONTEXTS]
    losses = samples.losses[members]
    number = about["id"]
    return form.render(
        policy=POLICY,
        style=style,
        about=about,
        before=page_name(number - 1) if number else None,
        after=page_name(number + 1) if number + 1 < clustering.k else None,
        contexts=[(_context(samples, int(i)), f"{samples.losses[i]:.3f}", _label(samples, int(i))) for i in shown],
        total=len(members),
        losses={"mean": losses.mean(), "median": np.median(losses), "largest": losses.max()},
        labels=_label_counts(samples, members),
        circuit=circuit if circuit is not None and "error" not in circuit else None,
        bars=_bars(circuit),
        percent=percent,
    )


def _rarity(samples: Samples) -> dict[int, float]:
    """How telling a token is: the logarithm of how few contexts have it."""
    counts = Counter(token for context in samples.contexts for token in set(context))
    return {token: float(np.log(len(samples) / n)) for token, n in counts.items()}


def _spread(members: np.ndarray, n: int) -> np.ndarray:
    """A few members, far from one another in the text."""
    return members[np.unique(np.linspace(0, len(members) - 1, min(n, len(members))).astype(int))]


def _example(samples: Samples, i: int) -> list[str]:
    """The end of a context, and its answer."""
    words = samples.words(i)
    cut = ["\N{HORIZONTAL ELLIPSIS}"] if len(words) > AROUND else []
    return ["".join([*cut, *map(visible, words[-AROUND:])]), visible(samples.word(i))]


def _context(samples: Samples, i: int) -> Markup:
    """A whole context with its answer marked."""
    text = "".join(visible(word) for word in samples.words(i))
    return tag("span", text, class_="ctx") + tag("mark", visible(samples.word(i)), class_="answer")


def _label(samples: Samples, i: int) -> str:
    return "" if samples.labels is None else samples.labels[i]


def _label_counts(samples: Samples, members: np.ndarray) -> list[tuple[str, str]]:
    if samples.labels is None:
        return []
    counts = Counter(samples.labels[i] for i in members).most_common(8)
    return [(label, percent(n / len(members))) for label, n in counts]


def _bars(circuit: dict[str, Any] | None) -> dict[str, float]:
    """Width of each node's bar, of the largest 100."""
    if circuit is None or "error" in circuit or not circuit["nodes"]:
        return {}
    most = max(abs(node["effect"]) for node in circuit["nodes"]) or 1.0
    return {node["node"]: round(100 * abs(node["effect"]) / most, 1) for node in circuit["nodes"]}


def _style() -> Markup:
    return Markup(template_text("style.css") + template_text("discover.css"))


def _data(records: Sequence[dict[str, Any]]) -> Markup:
    """JSON that no text in it can end: inside a script element only `<` could."""
    text = json.dumps(records, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _table(folder: Path) -> list[dict[str, Any]]:
    """The comparison with baselines."""
    path = folder / "comparison.csv"
    if not path.is_file():
        return []
    try:
        frame = pd.read_csv(path)
        return [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in frame.to_dict("records")]
    except (ValueError, pd.errors.ParserError) as error:
        raise ResultError(f"cannot be read ({error})", where=str(path), fix="delete it") from error


def _facts(folder: Path, samples: Samples) -> dict[str, str]:
    """What a reproduction needs."""
    counts = samples.origin.get("counts", {})
    facts = {
        "text": str(samples.origin.get("text", "")),
        "model": str(samples.origin.get("model", "")),
        "kept": f"loss below {samples.origin.get('threshold')} nats, induction: {samples.origin.get('induction')}",
        "read": ", ".join(f"{n:,} {name}" for name, n in counts.items()),
        "samples": samples.hash[:16],
    }
    path = folder / "discover.json"
    if path.is_file():
        settings = read_json(path).get("settings", {})
        for name in ("vectors", "positions", "clustering", "k", "seed", "features"):
            if name in settings:
                facts[name] = json.dumps(settings[name], ensure_ascii=False)
    return facts
