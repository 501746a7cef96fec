"""The index of discovered behaviours: one page to search and browse thousands of clusters, one page for each of them.

The index holds a short record of every cluster and draws only the ones that are looked at; contexts and circuits are on
the clusters' own pages. Contexts are untrusted: every token is escaped, or set as text by the script, and no page asks
for anything over the network.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Template
from markupsafe import Markup

from crosspatch.discover.clusters import (
    CLUSTER_FILE,
    CLUSTERS_FILE,
    FILE,
    FORMAT,
    TABLE,
    Clustering,
    cluster_folder,
    load_clustering,
    read_cluster,
)
from crosspatch.discover.samples import FILE as SAMPLES_FILE
from crosspatch.discover.samples import Samples, load_samples
from crosspatch.errors import ResultError
from crosspatch.report.discover_circuit import ClusterCircuit, cluster_circuit
from crosspatch.report.html import POLICY, encoded, template, template_text
from crosspatch.report.runs import written_by
from crosspatch.report.saved import command_of
from crosspatch.report.svg import FIGURE_CSS, FIGURE_CSS_DARK, MINUS, percent, tag
from crosspatch.report.tokens import visible
from crosspatch.results.files import REPAIR, read_json, write_atomic

INDEX, PAGES, CIRCUITS = "index.html", "pages", "circuits"
COMMAND, AGAIN = "crosspatch discover", "delete it, and run the command again with --resume"
CONTEXTS, AT_ONCE, SHOWN, AROUND = 200, 12, 3, 14
"""Contexts on a cluster's page, and of them seen at once; on the index, and how many of their last tokens."""
TOKENS, ANSWERS, NAMED = 12, 6, 3
"""Tokens and answers that stand for a cluster, and answers in its title."""

COMPARED = ("clusters", "stability", "stability_low", "stability_high", "answer")
JUDGED = ("truth", "truth_low", "truth_high", "null_high", "homogeneity", "completeness")
"""Columns of the comparison that are shown; the second where the text has labels."""
SHARES = ("faithfulness", "faithfulness_low", "faithfulness_high", "random_faithfulness_median")
"""What the index says of a circuit."""
LIKE_TOKENS = ("token histogram", "answer token", "last token", "last token and answer")
"""Clusterings of the comparison that know no model."""


def write_index(folder: str | Path) -> Path:
    """Write `index.html` and a page for every cluster into a folder of `discover`, from what is saved there.

    Returns:
        The path of the index.

    Raises:
        ResultError: the folder holds no clusters yet, or a file there was damaged.
    """
    folder = Path(folder)
    if missing := [name for name in (SAMPLES_FILE, CLUSTERS_FILE) if not (folder / name).is_file()]:
        fix = "run the command that made the folder again with --resume"
        what = "is not there: the run was stopped before there were clusters"
        raise ResultError(what, where=str(folder / missing[0]), fix=fix)
    samples = load_samples(folder)
    clustering = load_clustering(folder, samples.hash)
    if len(clustering.labels) != len(samples):
        raise ResultError("is of other samples", where=str(folder / CLUSTERS_FILE), fix=AGAIN)
    table, facts = _table(folder, samples.labels is not None), _facts(folder, samples, clustering)
    rare = _rarity(samples)
    form, look = template("discover_cluster.html.j2"), _look()  # read once: there may be thousands of pages
    records = []
    for number in range(clustering.k):
        own = cluster_folder(folder / CIRCUITS, number)
        with written_by(COMMAND, own / CLUSTER_FILE, AGAIN):
            data = _found(own, number)
            one = record(samples, clustering, number, data, rare)
            circuit = None if data is None or "error" in data else cluster_circuit(data, own)
            page = cluster_page(samples, clustering, one, circuit, form, look)
        write_atomic(folder / PAGES / page_name(number), encoded(page))
        records.append(one)
    path = folder / INDEX
    page = index_page(samples, clustering, records, table, facts, command_of(folder))
    write_atomic(path, encoded(page))
    _drop_other_pages(folder / PAGES, clustering.k)
    return path


def _found(folder: Path, number: int) -> dict[str, Any] | None:
    """What is known of a cluster's circuit, if anything was looked for.

    Raises:
        ValueError: a file that is none of ours, or of another cluster.
    """
    if not (folder / CLUSTER_FILE).is_file():
        return None
    data = read_cluster(folder)
    if data is None:
        raise ValueError("cut off, edited or of another version")
    if data["cluster"] != number:
        raise ValueError(f"of cluster {data['cluster']!r}")
    return data


def _drop_other_pages(folder: Path, k: int) -> None:
    """Remove pages of clusters from `k` on, which an earlier result had."""
    if folder.is_symlink():
        return
    for path in list(folder.glob("c*.html")):
        if re.fullmatch(r"c[0-9]{5,}", path.stem) and int(path.stem[1:]) >= k:
            path.unlink()


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
    judged = found["evaluation"] if found else dict.fromkeys(SHARES)
    about = {
        "id": number,
        "page": f"{PAGES}/{page_name(number)}",
        "size": len(members),
        "documents": len(np.unique(samples.documents[members])),
        "loss": nats(float(losses.mean())),
        "mean": round(float(losses.mean()), 6),
        "answers": [[visible(word), n] for word, n in answers.most_common(ANSWERS)],
        "distinct": len(answers),
        "tokens": [visible(samples.tokens[token]) for token in telling],
        "label": labels[0][0] if labels else None,
        "purity": round(labels[0][1] / len(members), 4) if labels else None,
        "examples": [_example(samples, int(i)) for i in _spread(members, SHOWN)],
        "nodes": [node["node"] for node in found["nodes"]] if found else [],
        **{name: _share(judged[name]) for name in SHARES},
        "error": circuit["error"]["what"] if circuit is not None and failed else None,
    }
    return {**about, "title": title_of(about)}


def _share(value: Any) -> float | None:
    """A number for the index, or that there is none.

    Raises:
        ValueError: not a number.
    """
    if value is not None and not math.isfinite(value):
        raise ValueError(f"a share of {value}")
    return value


def index_page(
    samples: Samples,
    clustering: Clustering,
    records: Sequence[dict[str, Any]],
    table: list[dict[str, Any]],
    facts: dict[str, str],
    command: str = "",
) -> str:
    """The index as text."""
    return template("discover.html.j2").render(
        policy=POLICY,
        **_look(),
        own_script=Markup(template_text("discover.js")),
        data=_data(records),
        records=records,
        samples=samples,
        clustering=clustering,
        labelled=samples.labels is not None,
        circuits=sum(bool(one["nodes"]) for one in records),
        failed=sum(one["error"] is not None for one in records),
        table=table,
        headline=_headline(table),
        loss=nats(float(samples.losses.mean())),
        facts=facts,
        command=command,
    )


def cluster_page(
    samples: Samples,
    clustering: Clustering,
    about: dict[str, Any],
    circuit: ClusterCircuit | None,
    form: Template,
    look: dict[str, Markup],
) -> str:
    """The page of one cluster as text.

    Args:
        about: its `record`.
        circuit: its circuit, if it has one.
        form, look: template, and styles and scripts.
    """
    members = clustering.members(about["id"])
    shown = members[np.argsort(samples.losses[members], kind="stable")][:CONTEXTS]
    losses = samples.losses[members]
    number = about["id"]
    contexts = [(_context(samples, int(i)), nats(samples.losses[i]), _label(samples, int(i))) for i in shown]
    return form.render(
        policy=POLICY,
        **look,
        own_script=Markup(template_text("circuits.js")) if circuit is not None else "",
        about=about,
        before=page_name(number - 1) if number else None,
        after=page_name(number + 1) if number + 1 < clustering.k else None,
        contexts=contexts[:AT_ONCE],
        more=contexts[AT_ONCE:],
        total=len(members),
        losses=[nats(float(f(losses))) for f in (np.mean, np.median, np.max)],
        labels=_label_counts(samples, members),
        circuit=circuit,
    )


def title_of(about: dict[str, Any]) -> str:
    """What a cluster is called: by its answers, the commonest first."""
    words = [f"\N{LEFT DOUBLE QUOTATION MARK}{word.strip() or word}\N{RIGHT DOUBLE QUOTATION MARK}"
             for word, _ in about["answers"][:NAMED]]  # fmt: skip
    more = about["distinct"] - len(words)
    return f"Cluster {about['id']}: {', '.join(words)}" + (f" and {more} more" if more else "")


def nats(loss: float) -> str:
    """A loss; one that would be rounded to nothing says so."""
    return "< 0.001" if 0 <= loss < 0.0005 else f"{loss:.3f}"


def _headline(table: Sequence[dict[str, Any]]) -> str:
    """Whether the vectors have found more than tokens say; nothing without labels to judge by."""
    judged = [row for row in table if row.get("truth") is not None]
    known = [row for row in judged if row["clustering"] in LIKE_TOKENS]
    found = [row for row in judged if row["clustering"] not in LIKE_TOKENS]
    if not known or not found:
        return ""
    best, ours = (max(rows, key=lambda row: row["truth"]) for rows in (known, found))
    does = "more than" if ours["truth"] > best["truth"] else "no more than"
    return (
        f"Clusters by {ours['clustering']} agree with what the text's generator was doing {does} the best clustering "
        f"by tokens alone ({best['clustering']}): adjusted Rand index {_ranged(ours)} against {_ranged(best)}."
    )


def _ranged(row: dict[str, Any]) -> str:
    ends = "" if row["truth_low"] is None else f" [{row['truth_low']:.2f}, {row['truth_high']:.2f}]"
    return f"{row['truth']:.2f}{ends}".replace("-", MINUS)


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


def _look() -> dict[str, Markup]:
    """Styles and scripts of all pages."""
    sheets = ("style.css", "circuits.css", "features.css", "discover.css")
    return {
        "style": Markup("".join(map(template_text, sheets))),
        "figure_css": Markup(FIGURE_CSS),
        "figure_css_dark": Markup(FIGURE_CSS_DARK),
        "script": Markup(template_text("report.js")),
    }


def _data(records: Sequence[dict[str, Any]]) -> Markup:
    """JSON that no text in it can end: inside a script element only `<` could."""
    text = json.dumps(records, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _table(folder: Path, labelled: bool) -> list[dict[str, Any]]:
    """The comparison with baselines; empty where there is none."""
    path = folder / TABLE
    if not path.is_file():
        return []
    names = COMPARED + (JUDGED if labelled else ())
    with written_by(COMMAND, path, AGAIN):
        frame = pd.read_csv(path)
        numbers = frame[list(names)].astype(float).to_dict("records")
        rows = [{str(name): None if np.isnan(v) else float(v) for name, v in row.items()} for row in numbers]
        own = zip(frame["clustering"].astype(str), frame["clusters"].astype(int), strict=True)
        return [{**row, "clustering": name, "clusters": int(k)} for row, (name, k) in zip(rows, own, strict=True)]


INDUCTION = {
    "bigram": "answers that followed the same token earlier are dropped",
    "trigram": "answers that followed the same two tokens earlier are dropped",
    "keep": "induction is kept",
}
METHODS = {"spectral": "spectral clustering", "kmeans": "spherical k-means"}


def _facts(folder: Path, samples: Samples, clustering: Clustering) -> dict[str, str]:
    """What a reproduction needs."""
    origin, about = samples.origin, clustering.about
    with written_by(COMMAND, folder / SAMPLES_FILE, REPAIR):
        counts = {name: f"{n:,}" for name, n in origin.get("counts", {}).items()}
        induction = str(origin.get("induction"))
        facts = {"model": str(origin.get("model", "")), "text": str(origin.get("text", ""))}
        if {"documents", "tokens", "sure", "induction"} <= set(counts):
            facts["text"] += f": {counts['documents']} documents read, {counts['tokens']} tokens"
            facts["predictions"] = f"{counts['sure']} were sure, {counts['induction']} of these induction"
        facts["samples"] = f"loss below {origin.get('threshold')} nats; {INDUCTION.get(induction, induction)}"
    with written_by(COMMAND, folder / CLUSTERS_FILE, AGAIN):
        method = str(about.get("method"))
        rule = f", chosen: {about['chosen']['rule']}" if "chosen" in about else ""
        facts["clustering"] = f"{METHODS.get(method, method)}, {clustering.k} clusters{rule}"
    path = folder / FILE
    if path.is_file():
        data = read_json(path)
        with written_by(COMMAND, path, AGAIN):
            if data.get("format") != FORMAT:
                raise ValueError(f"format {data.get('format')!r}")
            facts |= _settings(data["settings"])
    return {**facts, "hash of the samples": samples.hash[:16]}


def _settings(settings: dict[str, Any]) -> dict[str, str]:
    """What was asked for, of which the samples and clusters say nothing themselves."""
    positions = settings.get("positions")
    where = "summed over positions" if positions == "sum" else f"of the last {positions} positions"
    where = "of the position that predicts the answer" if positions == 1 else where
    facts = {"vectors": f"{settings.get('vectors')} {where}", "seed": str(settings.get("seed"))}
    if features := settings.get("features"):
        names, width = ", ".join(str(place) for place, _ in features), sum(int(wide) for _, wide in features)
        facts["dictionaries"] = f"{width:,} features at {len(features)} places ({names})"
    return facts
