"""The work behind `crosspatch circuit`: find a circuit, judge it, and put everything into one folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from crosspatch.cli.circuit_inputs import Given, Settings
from crosspatch.cli.console import Bars, finite
from crosspatch.errors import CircuitError
from crosspatch.report import circuits_files as files
from crosspatch.report.circuits_saved import is_circuit, read_ranking, read_run

if TYPE_CHECKING:
    import pandas as pd

    from crosspatch.attribution.scores import Scores
    from crosspatch.attribution.verify import Verification
    from crosspatch.circuits import Circuit
    from crosspatch.circuits.evaluation import CircuitEvaluation
    from crosspatch.circuits.frontier import Frontier
    from crosspatch.circuits.hypotheses import HypothesisTests
    from crosspatch.circuits.search import Found, Search
    from crosspatch.circuits.stability import Stability

WORST = 5
"""Pairs that the page shows."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """Everything that was found out about a circuit; what is None was not run."""

    evaluation: CircuitEvaluation
    worst: pd.DataFrame
    frontier: Frontier | None = None
    stability: Stability | None = None
    tests: HypothesisTests | None = None

    def save(self, folder: Path) -> None:
        """Write every part into a folder of its own."""
        from crosspatch.results.files import write_json

        self.evaluation.save(folder / files.EVALUATION)
        parts = {files.FRONTIER: self.frontier, files.STABILITY: self.stability, files.TESTS: self.tests}
        for name, part in parts.items():
            if part is not None:
                part.save(folder / name)
        write_json(folder / files.WORST, finite({"pairs": records(self.worst)}))

    def to_json(self) -> dict[str, Any]:
        """The tables, as JSON values."""
        shown: dict[str, Any] = {
            "circuit": records(self.evaluation.frame)[0],
            "gates_ok": self.evaluation.ok,
            "findings": [finding.to_dict() for finding in (*self.evaluation.findings, *self.evaluation.verdict())],
            "worst": records(self.worst),
        }
        if self.frontier is not None:
            shown["frontier"] = {"sizes": records(self.frontier.frame), "areas": records(self.frontier.areas)}
        if self.stability is not None:
            core = self.stability.core.edge_names()
            shown["stability"] = {
                "stable": self.stability.stable,
                "table": records(self.stability.frame),
                "core": core,
            }
        if self.tests is not None:
            shown["tests"] = records(self.tests.frame)
        return shown


def find(given: Given, search: Search, budget_mib: float | None, shown: Bars) -> Found:
    """Search for a circuit on the pairs that may be searched on."""
    from crosspatch.circuits.search import find_circuit

    return find_circuit(given.search, search, ablation=given.ablation, budget_mib=budget_mib, progress=shown.stage)


def verification(
    given: Given, found: Found, count: int, seed: int, budget_mib: float | None, shown: Bars
) -> Verification | None:
    """The strongest edges and as many others measured exactly; None where there are no scores per pair."""
    from crosspatch.attribution.verify import verify

    if found.scores is None or not count:
        return None
    options: dict[str, Any] = {} if budget_mib is None else {"budget_mib": budget_mib}
    return verify(
        given.search, found.scores, count, count, ablation=given.ablation, seed=seed, progress=shown.of("exact edges"),
        **options,
    )  # fmt: skip


def judge(
    given: Given,
    circuit: Circuit,
    found: Found | None,
    asked: Settings,
    *,
    n_random: int = 20,
    tests: bool = False,
    budget_mib: float | None = None,
    shown: Bars,
) -> Verdict:
    """Evaluate a circuit on the pairs held out.

    Args:
        found: what it was chosen from: with it the frontier is drawn, and with scores per pair the stability too.
        n_random: random circuits of the same size; of every size of the frontier half as many.
        tests: the hypothesis tests, which take a few hundred runs.
    """
    from crosspatch.circuits import mib
    from crosspatch.circuits.evaluate import evaluate
    from crosspatch.circuits.frontier import frontier
    from crosspatch.circuits.hypotheses import hypothesis_tests
    from crosspatch.circuits.stability import stability
    from crosspatch.circuits.worst import worst_pairs

    common: dict[str, Any] = {"ablation": given.ablation, "held_out": asked.held_out, "seed": asked.seed}
    common["budget_mib"] = budget_mib
    setup = given.setup
    evaluation = evaluate(setup, circuit, n_random=n_random, progress=shown.of("evaluation"), **common)
    worst = worst_pairs(setup, circuit, WORST, **common)
    curve = steady = tested = None
    if found is not None and not circuit.spans:
        sizes = mib.sizes(len(circuit.table))
        curve = frontier(
            setup, found.of_sizes(sizes), mib.GRID, n_random=max(1, n_random // 2), progress=shown.of("frontier"),
            **common,
        )  # fmt: skip
    if found is not None and found.scores is not None:
        shown.stage("stability", 0, 1)
        steady = stability(
            found.scores.per_example, found.select, circuit.shape, clusters=found.scores.clusters, seed=asked.seed
        )
    if tests:
        tested = hypothesis_tests(setup, circuit, progress=shown.of("hypothesis tests"), **common)
    return Verdict(evaluation, worst, curve, steady, tested)


def saved_verdict(folder: Path) -> Verdict:
    """What was found out about the circuit of a folder.

    Raises:
        ResultError, CircuitError: a damaged file.
    """
    import pandas as pd

    from crosspatch.circuits.evaluation import CircuitEvaluation
    from crosspatch.circuits.frontier import Frontier
    from crosspatch.circuits.stability import Stability
    from crosspatch.results.files import read_json

    worst = pd.DataFrame(read_json(folder / files.WORST).get("pairs"))
    curve = Frontier.load(folder / files.FRONTIER) if (folder / files.FRONTIER).is_dir() else None
    steady = Stability.load(folder / files.STABILITY) if (folder / files.STABILITY).is_dir() else None
    return Verdict(CircuitEvaluation.load(folder / files.EVALUATION), worst, curve, steady)


# -- the folder ------------------------------------------------------------------------------------------------------


def save_run(
    out: Path, circuit: Circuit, given: Given, asked: Settings, facts: Mapping[str, Any], search: Search | None = None
) -> None:
    """Write the circuit, what was asked for, and the gates."""
    from crosspatch.results.files import write_json

    circuit.save(out / files.CIRCUIT)
    shape, model = circuit.shape, given.setup.model
    task = given.setup.provenance["task"]
    called = "the embedded model" if model.name == "embedded" else model.name
    said = {
        "model": f"{model.name}, {shape.n_layers} layers of {shape.n_heads} heads",
        "metric": asked.metric,
        "cut edges carry": f"the {given.ablation.name} value of their sender",
        "pairs": f"{len(given.setup)} of task {task} ({given.setup.provenance['task_hash']}), "
        f"{len(given.search)} to search on, {len(given.setup) - len(given.search)} to judge on, seed {asked.seed}",
    }
    settings = dataclasses.asdict(asked)
    if search is not None:
        settings["search"] = dataclasses.asdict(search)
    write_json(
        out / files.RUN,
        finite(
            {
                "format": files.FORMAT,
                "version": files.VERSION,
                "title": f"Which edges of {called} carry {task}?",
                "settings": settings,
                "asked": given.about,
                "facts": {**said, **{name: str(value) for name, value in facts.items()}},
                "spans": list(given.spans),
                "also": [],
            }
        ),
    )
    write_json(out / files.GATES, given.gates.to_dict())


def save_ranking(out: Path, circuit: Circuit, ranking: np.ndarray) -> None:
    """Write what edges were chosen by, where there are no scores per pair: edge -> number."""
    from crosspatch.results.files import write_json

    names = circuit.table.names()
    known = np.flatnonzero(np.isfinite(ranking))
    write_json(out / files.RANKING, {"ranking": {names[e]: float(ranking[e]) for e in known}})


def save_verification(out: Path, checked: Verification) -> None:
    """Write what `verify` found: its words, its numbers, one row per measured edge."""
    from crosspatch.results.files import write_atomic, write_json

    frame = checked.frame()
    saved = {"describe": checked.describe(), "theta": checked.theta, "summary": checked.summary()}
    write_json(out / files.VERIFICATION, finite(saved | {"rows": records(frame)}))
    write_atomic(out / "verification.csv", frame.to_csv(index=False).encode())


def note_command(folder: Path) -> None:
    """Add this command to those that made a folder, once."""
    from crosspatch.cli.folders import with_this_command
    from crosspatch.results.files import write_json

    data = read_run(folder)
    write_json(folder / files.RUN, data | {"also": with_this_command(data["also"])})


def write_page(out: Path | None) -> str | None:
    """The report, from what the folder holds; its path."""
    from crosspatch.report import write_report

    return None if out is None else str(write_report(out))


def saved_settings(folder: Path) -> Settings:
    """What the run that made a folder was asked for.

    Raises:
        ResultError: see `read_run`.
        CircuitError: other settings than ours.
    """
    data = dict(read_run(folder)["settings"])
    data.pop("search", None)
    return _made(Settings, data, folder)


def saved_found(folder: Path, circuit: Circuit) -> Found | None:
    """What a circuit was chosen from: its scores, or its ranking, and how it was selected; None where nothing is saved.

    Raises:
        ResultError, CircuitError: a damaged file.
    """
    from crosspatch.attribution.scores import load_scores
    from crosspatch.circuits.search import Search

    settings = read_run(folder)["settings"].get("search")
    if settings is None:
        return found_from(circuit, read_ranking(folder, circuit))
    search = _made(Search, {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}, folder)
    if (folder / files.SCORES).is_dir():
        scores = load_scores(folder / files.SCORES)
        return _found(circuit, scores.values.mean(0).T if search.spans else scores.mean, scores, search)
    ranking = read_ranking(folder, circuit)
    return None if ranking is None else _found(circuit, ranking, None, search)


def found_from(circuit: Circuit, ranking: np.ndarray | None) -> Found | None:
    """A circuit from a file, with the scores that the file has."""
    from crosspatch.circuits.search import Search

    return None if ranking is None else _found(circuit, ranking, None, Search())


def _found(circuit: Circuit, ranking: np.ndarray, scores: Scores | None, search: Search) -> Found:
    import pandas as pd

    from crosspatch.circuits.search import Found

    return Found(circuit, ranking, scores, pd.DataFrame(), True, search)


T = TypeVar("T")


def _made(kind: type[T], data: Mapping[str, Any], folder: Path) -> T:
    """Settings from JSON.

    Raises:
        CircuitError: names or types that are not ours.
    """
    try:
        made = kind(**data)
        plain = kind()
        for name in data:
            have, default = getattr(made, name), getattr(plain, name)
            if default is not None and type(have) is not type(default) and not isinstance(have, (int, float)):
                raise TypeError(f"{name} is {have!r:.40}")
    except TypeError as error:
        raise CircuitError(f"unknown settings ({error})", where=str(folder / files.RUN), fix="make it again") from error
    return made


def copy_run(source: Path, out: Path, circuit: Circuit, given: Given, asked: Settings, found: Found | None) -> None:
    """Begin a new folder for the evaluation of a circuit that is already there, with what it was chosen from."""
    known = is_circuit(source)
    save_run(out, circuit, given, asked, {"circuit": str(source)}, found.search if known and found else None)
    if found is None:
        return
    if found.scores is not None:
        found.scores.save(out / files.SCORES)
    else:
        save_ranking(out, circuit, found.ranking)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def tried_words(tried: Sequence[Mapping[str, Any]]) -> str:
    """The sizes that were looked at."""
    return ", ".join(f"{row['edges']:,} edges {row['kept']:.0%}" for row in tried)
