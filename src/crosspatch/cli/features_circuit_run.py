"""The work behind `crosspatch features circuit`, `evaluate` and `edges`, and the folder that they share."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np

from crosspatch.cli.circuit_inputs import Given, Settings, pairs_of, spans_of
from crosspatch.cli.console import Bars, finite, note
from crosspatch.errors import CircuitError, DictionaryError, InterventionError
from crosspatch.report import features_files as files
from crosspatch.report.features_saved import read_run

if TYPE_CHECKING:
    from crosspatch.attribution.setup import Setup
    from crosspatch.dictionaries import Card, Dictionary
    from crosspatch.features.basis import Bases
    from crosspatch.features.curve import Curve
    from crosspatch.features.edge_scores import FeatureEdges
    from crosspatch.features.found import FeatureEffects
    from crosspatch.features.nodes import Node, NodeSet
    from crosspatch.features.replaced import Replacement
    from crosspatch.features.search import FeatureSearch, FoundFeatures
    from crosspatch.model import Model


@dataclass(frozen=True)
class Judge:
    """How sets are judged.

    Attributes:
        start_block, replacement: of `evaluate_nodes`; None: see `resolved`.
        random: random sets of every size.
    """

    start_block: int | None = None
    replacement: str | None = None
    random: int = 10


@dataclass(frozen=True, eq=False)
class Ready:
    """Everything that a search or an evaluation begins with.

    Attributes:
        given: pairs that passed their gates.
        setup: all of them, with a span for every position where positions are templatic.
        bases: features of the dictionaries.
        digests: of the dictionaries, by place.
        judge: with nothing left open.
        table: what replaces nodes when sets are judged.
    """

    given: Given
    setup: Setup
    bases: Bases
    dictionaries: dict[str, Dictionary]
    digests: dict[str, str]
    judge: Judge
    table: Replacement


def ready(
    model: Model,
    asked: Settings,
    dictionaries: Sequence[str] | None,
    search: FeatureSearch,
    judge: Judge,
    force: bool,
    known: Mapping[str, str] | None = None,
) -> tuple[Ready, FeatureSearch]:
    """Read dictionaries and pairs, check them, and take the means that sets are judged with, before anything runs.

    Args:
        known: digests of the dictionaries that a folder was made with.

    Returns:
        what is ready, and the search with the names of its spans.

    Raises:
        DictionaryError: no dictionaries, or others than `known`.
        GateError: a gate failed and --force was not given.
        TaskError, CircuitError, InterventionError: pairs, positions or means that cannot be.
    """
    from crosspatch.cli.features_inputs import load_dictionaries
    from crosspatch.features import bases_of
    from crosspatch.features.search import positioned

    read = load_dictionaries(model, dictionaries)
    bases = bases_of(model, read)
    digests = {place: digest_of(dictionary) for place, dictionary in read.items()}
    if known is not None and dict(known) != digests:
        raise DictionaryError(
            "the dictionaries are not those that the folder was made with", where="--dictionaries",
            fix="find the circuit again with `crosspatch features circuit`",
        )  # fmt: skip
    given = pairs_of(model, asked, force)
    if search.positions == "spans":
        search = dataclasses.replace(search, spans=spans_of(given, search.spans or ("all",)))
    setup, _ = positioned(given.setup, search.positions, search.spans)
    judge, table = resolved(setup, bases, judge)
    return Ready(given, setup, bases, read, digests, judge, table), search


def resolved(setup: Setup, bases: Bases, judge: Judge) -> tuple[Judge, Replacement]:
    """The settings with what was left open filled in, and what replaces nodes.

    Raises:
        InterventionError: see `replacement`.
    """
    from crosspatch.features import replacement

    start = setup.model.shape.n_layers // 3 if judge.start_block is None else judge.start_block
    name: Any = judge.replacement or "mean"
    try:
        table = replacement(setup, bases, name)
    except InterventionError as error:
        if judge.replacement is not None:
            raise
        note(f"Judged with mean-all: {error.what}")
        table = replacement(setup, bases, "mean-all")
    return Judge(start, table.name, judge.random), table


def digest_of(dictionary: Dictionary) -> str:
    """A short name for its numbers."""
    found = hashlib.sha256()
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold"):
        found.update(getattr(dictionary, name).detach().cpu().double().numpy().tobytes())
    return found.hexdigest()[:16]


def judged(
    at: Ready, circuit: NodeSet, effects: FeatureEffects, asked: Settings, shown: Bars, budget: Any
) -> list[Curve]:
    """The circuit on held-out pairs under every policy for error terms."""
    from crosspatch.features import evaluate_nodes
    from crosspatch.features.curve import Curve
    from crosspatch.features.nodes import Errors

    assert at.judge.start_block is not None  # resolved
    population, found = effects.active(), []
    named = dataclasses.replace(circuit, name="circuit")
    for policy in get_args(Errors):
        evaluation = evaluate_nodes(
            at.setup, at.bases, [named], at.table, start_block=at.judge.start_block, errors=policy,
            population=population, n_random=at.judge.random, held_out=asked.held_out, seed=asked.seed,
            budget_mib=budget, progress=shown.of(f"evaluation, errors {policy}"),
        )  # fmt: skip
        found.append(Curve("features", str(effects.origin["method"]), policy, evaluation))
    return found


def judged_edges(
    at: Ready,
    circuit: NodeSet,
    edges: FeatureEdges,
    threshold: float,
    sizes: Sequence[int],
    asked: Settings,
    random: int,
    shown: Bars,
    budget: Any,
) -> Curve | None:
    """Sets of edges of growing size, and those above the threshold, each node reading only along kept edges; None
    where there are none."""
    from crosspatch.features import evaluate_edges
    from crosspatch.features.curve import Curve

    assert at.judge.start_block is not None
    own = edges.above(threshold)
    sets = [dataclasses.replace(own, name="circuit"), *(edges.top(n) for n in sizes if n < len(edges))]
    sets = [one for one in sets if len(one)]
    if not sets:
        return None
    evaluation = evaluate_edges(
        at.setup, at.bases, circuit, sets, at.table, start_block=at.judge.start_block, n_random=random,
        held_out=asked.held_out, seed=asked.seed, budget_mib=budget, progress=shown.of("edges, evaluated"),
    )  # fmt: skip
    return Curve("edges", str(edges.origin["method"]), "", evaluation)


def cards_of(
    at: Ready, nodes: Sequence[Node], text: str | None, tokens: int, asked: Settings, shown: Bars
) -> list[Card]:
    """Cards of the features among some nodes. Contexts come from held-out text, or from the pairs' own prompts where
    the model has no text of its own and none was given."""
    from crosspatch.cli.features_inputs import is_embedded, text_of
    from crosspatch.dictionaries import feature_cards

    model = at.setup.model
    prompts: Any = [*at.setup.clean, *at.setup.corrupt]
    if text is not None or is_embedded(model):
        prompts = text_of(model, text, context=128, tokens=0, held_out=tokens, seed=asked.seed).held_out
    wanted: dict[str, list[int]] = {}
    for node in nodes:
        if node.feature is not None and node.feature not in wanted.setdefault(node.place, []):
            wanted[node.place].append(node.feature)
    found: list[Card] = []
    by_place = {basis.place: at.dictionaries[basis.place] for basis in at.bases}
    for i, (place, features) in enumerate(wanted.items()):
        shown.stage("cards", i, len(wanted))
        found += feature_cards(model, by_place[place], prompts, features, top=5, around=10)
    return found


# -- the folder ------------------------------------------------------------------------------------------------------


def save_run(out: Path, at: Ready, found: FoundFeatures, asked: Settings, dictionaries: Sequence[str] | None) -> None:
    """Write the circuit, its effects and edges, exact effects, gates, and what was asked for."""
    from crosspatch.features import save_circuit, save_effects
    from crosspatch.results.files import write_json

    save_effects(found.effects, out)
    save_circuit(out, found.circuit, found.edges)
    measured = [{"node": str(node), "values": found.exact[:, i].tolist()} for i, node in enumerate(found.measured)]
    write_json(out / files.EXACT, {"exact": measured})
    write_json(out / files.GATES, at.given.gates.to_dict())
    model, task = at.setup.model, at.setup.provenance["task"]
    search = found.search
    how = search.method + (f", {search.steps} steps, {search.rule} rule" if search.method == "ig" else "")
    chosen = f"the {search.nodes} largest" if search.threshold is None else f"effect above {search.threshold:g}"
    where = {"aggregate": "added up over tokens", "templatic": "one a position"}.get(
        search.positions, "at " + ", ".join(search.spans)
    )
    n, held = len(at.setup), len(at.setup) - len(at.given.search)
    facts = {
        "model": f"{model.name}, {model.shape.n_layers} layers",
        "dictionaries": f"{len(at.bases)} places ({', '.join(basis.place for basis in at.bases)}), "
        f"{sum(basis.width for basis in at.bases):,} features",
        "metric": asked.metric,
        "effects": f"{how}, {search.replaced} replacement",
        "nodes": f"{chosen}, {where}",
        "pairs": f"{n} of task {task} ({at.setup.provenance['task_hash']}), {n - held} to search on, {held} to judge "
        f"on, seed {asked.seed}",
    }
    called = "the embedded model" if model.name == "embedded" else model.name
    settings = {
        "pairs": dataclasses.asdict(asked),
        "dictionaries": None if dictionaries is None else list(dictionaries),
        "digests": at.digests,
        "search": dataclasses.asdict(search),
        "judge": dataclasses.asdict(at.judge),
        "edge_threshold": found.edge_threshold,
    }
    write_json(
        out / files.RUN,
        finite(
            {
                "format": files.FORMAT,
                "version": files.VERSION,
                "title": f"Which features of {called} carry {task}?",
                "settings": settings,
                "asked": at.given.about,
                "facts": facts,
                "spans": list(at.given.spans) if search.positions == "spans" else list(found.effects.spans),
                "labels": _labels(at, found),
                "also": [],
            }
        ),
    )


def _labels(at: Ready, found: FoundFeatures) -> dict[str, str]:
    """What stands at every position of the first prompt, where positions are templatic."""
    tokenizer = at.setup.model.tokenizer
    if found.search.positions != "templatic" or tokenizer is None:
        return {}
    tokens = zip(found.effects.spans, at.setup.clean[0], strict=True)
    return {span: str(tokenizer.decode([token])).strip() for span, token in tokens}


def save_cards(out: Path, cards: Sequence[Card], found: FoundFeatures) -> None:
    """Write the cards, and a page of them that can be read alone."""
    from crosspatch.features.search import mean_effects
    from crosspatch.report.feature_cards import cards_page
    from crosspatch.report.svg import signed
    from crosspatch.results.files import write_atomic, write_json

    write_json(out / files.CARDS, finite({"cards": [card.plain() for card in cards]}))
    effects = mean_effects(found.effects, found.circuit)
    notes: dict[str, str] = {}
    for node, effect in zip(found.circuit, effects, strict=True):
        name = f"{node.place}/{node.feature}"
        at = "" if node.span == "*" else f" at {node.span}"
        notes[name] = notes.get(name, "effect:") + f" {signed(effect)}{at}"
    page = cards_page(cards, f"The {len(cards)} features of the circuit", notes=notes)
    write_atomic(out / files.CARDS_PAGE, page.encode())


def change_run(folder: Path, **settings: Any) -> None:
    """Record other settings, and this command among those that made a folder."""
    from crosspatch.cli.folders import with_this_command
    from crosspatch.results.files import write_json

    data = read_run(folder)
    also = with_this_command(data["also"])
    write_json(folder / files.RUN, finite(data | {"settings": data["settings"] | settings, "also": also}))


@dataclass(frozen=True, eq=False)
class Saved:
    """What a folder says was asked for."""

    pairs: Settings
    dictionaries: list[str] | None
    digests: dict[str, str]
    search: FeatureSearch
    judge: Judge
    edge_threshold: float


def saved_settings(folder: Path) -> Saved:
    """The settings of the run that made a folder.

    Raises:
        ResultError: see `read_run`.
        CircuitError: other settings than ours.
    """
    from crosspatch.features.search import FeatureSearch

    said = read_run(folder)["settings"]
    try:
        search = dict(said["search"])
        return Saved(
            made(Settings, said["pairs"]),
            None if said["dictionaries"] is None else [str(text) for text in said["dictionaries"]],
            {str(place): str(name) for place, name in said["digests"].items()},
            made(FeatureSearch, search | {"spans": tuple(map(str, search["spans"]))}),
            made(Judge, said["judge"]),
            float(said["edge_threshold"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fix = "find the circuit again, with --overwrite"
        raise CircuitError(f"unknown settings ({error})", where=str(folder / files.RUN), fix=fix) from error


T = TypeVar("T")


def made(kind: type[T], data: Mapping[str, Any]) -> T:
    """Settings from JSON.

    Raises:
        TypeError: names or types that are not ours.
    """
    found = kind(**data)
    plain = kind()
    for name in data:
        have, default = getattr(found, name), getattr(plain, name)
        number = isinstance(have, (int, float)) and isinstance(default, (int, float, type(None)))
        if default is not None and type(have) is not type(default) and not number:
            raise TypeError(f"{name} is {have!r:.40}")
    return found


def write_page(out: Path | None) -> str | None:
    """The report, from what the folder holds; its path."""
    from crosspatch.report import write_report

    return None if out is None else str(write_report(out))


def node_rows(found: FoundFeatures) -> list[dict[str, Any]]:
    """The nodes of the circuit, the largest first, as plain values."""
    from crosspatch.features.search import mean_effects

    exact = {str(node): float(found.exact[:, i].mean()) for i, node in enumerate(found.measured)}
    rows: list[dict[str, Any]] = [
        {
            "node": str(node), "place": node.place, "feature": node.feature, "span": node.span, "effect": effect,
            "exact": exact.get(str(node), float("nan")),
        }
        for node, effect in zip(found.circuit, mean_effects(found.effects, found.circuit), strict=True)
    ]  # fmt: skip
    return [rows[i] for i in np.argsort([-abs(row["effect"]) for row in rows], kind="stable")]
