"""`crosspatch discover`: behaviours that nobody asked for, clusters of confident predictions with a circuit each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli.console import Debug, Json, Quiet, bars, mode, note, result, say, table
from crosspatch.cli.features_inputs import Dictionaries, is_embedded, load_dictionaries
from crosspatch.cli.features_options import TextSource
from crosspatch.cli.folders import open_folder
from crosspatch.cli.inputs import Budget, Device, Dtype, ModelName, Seed, Threads, load_model
from crosspatch.cli.sweeping import Out, Overwrite, Resume
from crosspatch.errors import TaskError

if TYPE_CHECKING:
    import pandas as pd

    from crosspatch.discover.run import Discovery


class Kind(StrEnum):
    """What a sample is described by."""

    activations = "activations"
    features = "features"
    dense_effects = "dense-effects"
    effects = "effects"
    gradients = "gradients"


class Filter(StrEnum):
    """What counts as induction."""

    bigram = "bigram"
    trigram = "trigram"
    keep = "keep"


class Way(StrEnum):
    """How clusters are made."""

    auto = "auto"
    spectral = "spectral"
    kmeans = "kmeans"


class Effect(StrEnum):
    """How effects are found."""

    atp = "atp"
    ig = "ig"
    relp = "relp"


class Cut(StrEnum):
    """What takes the place of nodes outside a circuit."""

    zero = "zero"
    mean = "mean-all"


Kinds = Annotated[
    Kind,
    typer.Option(
        "--vectors",
        help="What samples are clustered by: activations; features (of the dictionaries); their effects on the answer; "
        "dense-effects (of the activations' own dimensions); gradients of the loss, hashed.",
    ),
]
Positions = Annotated[
    str, typer.Option(help="Of vectors: the last so many positions, each by itself, or sum: all added up.")
]
Clusters = Annotated[
    str,
    typer.Option("--clusters", "-k", help="How many; auto: the number of which most have --least different contexts."),
]


def discover(
    model: ModelName = "embedded",
    text: TextSource = None,
    dictionaries: Dictionaries = None,
    vectors: Kinds = Kind.features,
    samples: Annotated[int, typer.Option("--samples", "-n", min=2, help="Confident predictions to collect.")] = 600,
    threshold: Annotated[
        float, typer.Option(min=0.0, help="Largest cross-entropy of a confident prediction, in nats.")
    ] = 0.3,
    induction: Annotated[
        Filter,
        typer.Option(
            help="Drop answers that followed the same last token (bigram) or two tokens (trigram) earlier; keep: none."
        ),
    ] = Filter.bigram,
    per_document: Annotated[int, typer.Option(min=1, help="Most samples of one document.")] = 1,
    every: Annotated[int, typer.Option(min=1, help="Keep every so many-th sample.")] = 1,
    length: Annotated[int, typer.Option(min=3, help="Tokens of the longest context and its answer.")] = 64,
    positions: Positions = "1",
    method: Annotated[Effect, typer.Option(help="Of effects that samples are clustered by.")] = Effect.ig,
    steps: Annotated[int, typer.Option(min=1, help="Of --method ig.")] = 4,
    dims: Annotated[
        int, typer.Option(min=16, help="Longer vectors are hashed to this length; gradients always.")
    ] = 16384,
    clusters: Clusters = "auto",
    least: Annotated[int, typer.Option(min=2, help="See --clusters; 2 is the paper's.")] = 5,
    clustering: Annotated[
        Way, typer.Option(help="auto: spectral up to 10,000 samples, spherical k-means beyond.")
    ] = Way.auto,
    repeats: Annotated[int, typer.Option(min=0, help="Further seeds, for stability.")] = 4,
    circuits: Annotated[str, typer.Option(help="So many of the largest clusters get a circuit; all; 0: none.")] = "6",
    nodes: Annotated[int, typer.Option(min=1, help="Features and error terms of a circuit.")] = 200,
    edges: Annotated[
        int, typer.Option(min=0, help="Strongest edges of a circuit that are kept and drawn; 0: none are computed.")
    ] = 60,
    replaced: Annotated[Cut, typer.Option(help="What takes the place of all other nodes.")] = Cut.zero,
    start_block: Annotated[
        int | None,
        typer.Option(min=-1, help="Places of earlier blocks are left alone; default: the first third; -1: none are."),
    ] = None,
    contexts: Annotated[
        int, typer.Option(min=4, help="Contexts of a cluster that its circuit is found and judged on.")
    ] = 40,
    out: Out = Path("out/discover"),
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    budget_mib: Budget = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find behaviours in text: what the model is sure of, clustered by what it does for it, with circuits.

    Reads text for tokens that are predicted with confidence and are not induction; describes each by a vector; clusters
    them; says how stable the clusters are, how much of them the answer token explains and, on the embedded model's own
    text, how true they are; finds and judges a feature circuit for each of the largest. index.html is for browsing.
    """
    wanted_k = _whole("--clusters", clusters, "auto", 1)
    wanted_circuits = _whole("--circuits", circuits, "all", 0)
    wanted_positions = _whole("--positions", positions, "sum", 1)
    open_folder(out, resume=resume, overwrite=overwrite)
    mode.resumable = True
    loaded = load_model(model, dtype, device, threads)
    if text is None and not is_embedded(loaded):
        raise TaskError(f"no text was given for {loaded.name}", where="--text", fix="give a file, or a folder of them")
    from crosspatch.discover.circuits import CircuitSettings
    from crosspatch.discover.run import DiscoverSettings
    from crosspatch.discover.run import discover as find
    from crosspatch.discover.text import read_documents
    from crosspatch.report.discover import write_index

    source = text or "embedded"
    settings = DiscoverSettings(
        text=source,
        n=samples,
        threshold=threshold,
        induction=induction.value,
        per_document=per_document,
        every=every,
        length=length,
        vectors=vectors.value,
        positions="sum" if wanted_positions is None else wanted_positions,
        method=method.value,
        steps=steps,
        dims=dims,
        k=wanted_k,
        clustering=clustering.value,
        least=least,
        repeats=repeats,
        circuits=wanted_circuits,
        circuit=CircuitSettings(
            nodes=nodes,
            edges=edges,
            replaced=replaced.value,
            start_block=start_block,
            most=contexts,
            seed=seed,
        ),
        seed=seed,
    )
    needed = wanted_circuits != 0 or vectors in (Kind.features, Kind.effects)
    given = load_dictionaries(loaded, dictionaries) if needed else {}
    # Not the documents that the shipped dictionaries and the model were trained on, of which seed 0 is the first.
    documents = read_documents(source, f"discover {seed}")
    with bars() as shown:
        found = find(loaded, documents, out, given, settings, budget_mib=budget_mib, progress=shown.stage)
    page = str(write_index(out))
    if len(found.samples) < samples:
        note(f"The text has {len(found.samples)} samples that pass; all of them are used.")
    result(_json(found, page))
    _say(found, page)


def add_to(app: typer.Typer) -> None:
    """Make it a command of the program."""
    app.command("discover", epilog="Example: crosspatch discover --vectors gradients --samples 500 --out out/discover")(
        discover
    )


def _whole(option: str, typed: str, word: str, least: int) -> int | None:
    """A number, or None for the one word that may stand in its place.

    Raises:
        TaskError: neither.
    """
    if typed == word:
        return None
    if not typed.isdecimal() or int(typed) < least:
        raise TaskError(f"{typed!r}", where=option, fix=f"give a number from {least} on, or {word}")
    return int(typed)


def _json(found: Discovery, page: str) -> dict[str, Any]:
    return {
        "ok": True,
        "out": str(found.folder),
        "index": page,
        "samples": len(found.samples),
        "sample_counts": found.samples.origin["counts"],
        "vectors": found.vectors.about,
        "clusters": found.clustering.k,
        "clustering": found.clustering.about,
        "comparison": found.table.to_dict("records"),
        "circuits": found.circuits,
    }


def _say(found: Discovery, page: str) -> None:
    counts = found.samples.origin["counts"]
    say(
        f"{len(found.samples):,} samples of {counts['tokens']:,} tokens: {counts['sure']:,} were sure, "
        f"{counts['induction']:,} of these induction."
    )
    about = found.clustering.about
    chosen = f" ({about['chosen']['rule']})" if "chosen" in about else ""
    method = {"spectral": "spectral clustering", "kmeans": "spherical k-means"}[about["method"]]
    say(f"{found.clustering.k} clusters by {method} on {found.vectors.kind}{chosen}\n")
    say(_comparison(found.table))
    say("\nAdjusted Rand index: 1 for the same partition, 0 for unrelated ones; in brackets over documents or seeds.\n")
    if found.circuits:
        say(_circuits(found))
        say("")
    say(f"Index: {page}")


def _comparison(frame: pd.DataFrame) -> str:
    head = ["clustering", "clusters", "between seeds", "with answer token"]
    labelled = "truth" in frame
    head += ["with truth", "shuffled 97.5 %", "homogeneity", "completeness"] if labelled else []
    rows = []
    for row in frame.to_dict("records"):
        cells = [row["clustering"], str(row["clusters"]), _ranged(row, "stability"), _number(row["answer"])]
        if labelled:
            cells.append(_ranged(row, "truth"))
            cells += [_number(row[name]) for name in ("null_high", "homogeneity", "completeness")]
        rows.append(cells)
    return table(rows, head)


def _circuits(found: Discovery) -> str:
    rows = []
    for one in found.circuits:
        members = found.clustering.members(one["cluster"])
        answer = max((found.samples.word(i) for i in members), key=[found.samples.word(i) for i in members].count)
        if "error" in one:
            rows.append([str(one["cluster"]), str(len(members)), answer, "-", "-", one["error"]["what"]])
            continue
        judged = one["evaluation"]
        strongest = next((node["node"] for node in one["nodes"] if node["feature"] is not None), "none")
        keeps = [_percent(judged[name]) for name in ("faithfulness", "random_faithfulness_median")]
        rows.append([str(one["cluster"]), str(len(members)), answer, *keeps, strongest])
    return table(rows, ["cluster", "samples", "commonest answer", "faithfulness", "random nodes", "strongest feature"])


def _ranged(row: dict[str, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value != value:
        return "-"
    return _number(value) if low != low else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _number(value: float) -> str:
    return f"{value:.2f}" if value == value else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
