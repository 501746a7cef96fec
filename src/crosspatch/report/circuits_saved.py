"""The page of a circuit from what a command saved; no model is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from crosspatch.circuits import Circuit
from crosspatch.errors import ResultError
from crosspatch.report.circuits import CircuitPage
from crosspatch.report.circuits_files import (
    CIRCUIT,
    EVALUATION,
    FORMAT,
    FRONTIER,
    GATES,
    RANKING,
    RUN,
    SCORES,
    SPECIFICITY,
    STABILITY,
    TESTS,
    VERIFICATION,
    VERSION,
    WORST,
)
from crosspatch.report.runs import read_run_file
from crosspatch.results.files import read_json


def is_circuit(folder: Path) -> bool:
    """Whether the folder was written by `crosspatch circuit`."""
    return (folder / CIRCUIT).is_file() and (folder / RUN).is_file()


def read_run(folder: Path) -> dict[str, Any]:
    """What was asked for and on what: the settings of the run that made the folder.

    Raises:
        ResultError: not there, damaged, or none of ours.
    """
    return read_run_file(folder / RUN, FORMAT, VERSION, "crosspatch circuit", "make it again")


def read_ranking(folder: Path, circuit: Circuit) -> Float[np.ndarray, " edge"] | None:
    """What the edges of a circuit were chosen by, where no scores per pair are saved; NaN: not ranked.

    Raises:
        ResultError: a damaged file.
        AddressError: an edge that the model lacks.
    """
    path = folder / RANKING
    if not path.is_file():
        return None
    saved = read_json(path).get("ranking")
    if not isinstance(saved, dict) or not all(isinstance(value, (int, float)) for value in saved.values()):
        raise ResultError("holds no ranking", where=str(path), fix="run the command that made it again")
    found = np.full(len(circuit.table), np.nan)
    for name, value in saved.items():
        found[circuit.table.number(*circuit.table.parse(name))] = value
    return found


def read_page(folder: Path, command: str = "") -> CircuitPage:
    """The page of a folder that `crosspatch circuit` wrote.

    Raises:
        ResultError, CircuitError: a file that was damaged, or is none of ours.
    """
    from crosspatch.report import circuits_sections as sections
    from crosspatch.report.assemble import gates_of
    from crosspatch.report.words import UNITS

    run = read_run(folder)
    circuit = Circuit.load(folder / CIRCUIT)
    scores, stability, evaluation = _scores(folder), _stability(folder), _evaluation(folder)
    often = None if stability is None else stability.often
    unit = UNITS.get(str(run["settings"].get("metric")), "units of the metric")
    fields: dict[str, Any] = {}
    exact: dict[str, Any] = {}
    try:
        if (folder / VERIFICATION).is_file():
            saved = read_json(folder / VERIFICATION)
            measured = [_numbers(row) for row in saved["rows"]]
            fields["verified"] = sections.verified(str(saved["describe"]), measured, float(saved["theta"]), unit)
            exact = {row["part"]: row for row in measured}
        if (folder / WORST).is_file():
            fields["worst"] = sections.worst_rows([_numbers(row) for row in read_json(folder / WORST)["pairs"]])
        if (folder / GATES).is_file():
            gates = read_json(folder / GATES)
            fields |= {"gates": gates_of(gates), "forced": bool(gates.get("forced"))}
        title = str(run["title"])
        order = [str(span) for span in run.get("spans", ())]
        commands = [command, *(shlex.join(["crosspatch", *map(str, words)]) for words in run["also"])]
        asked, facts = ({str(k): str(v) for k, v in run[part].items()} for part in ("asked", "facts"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultError(
            f"is not what `crosspatch circuit` writes ({type(error).__name__}: {error})", where=str(folder),
            fix="run the command that made it again, with --overwrite",
        ) from error  # fmt: skip
    if evaluation is not None:
        fields["judged"] = sections.judged(evaluation)
    if (folder / FRONTIER).is_dir():
        from crosspatch.circuits.frontier import Frontier

        fields["frontier"] = sections.grown(Frontier.load(folder / FRONTIER), evaluation)
    if stability is not None:
        fields["stability"] = sections.steady(stability)
    if (folder / TESTS).is_dir():
        from crosspatch.circuits.hypotheses import HypothesisTests

        fields["tested"] = sections.tested(HypothesisTests.load(folder / TESTS))
    if (folder / SPECIFICITY).is_dir():
        from crosspatch.circuits.specificity import Specificity

        fields["specificity"] = sections.specific(Specificity.load(folder / SPECIFICITY))
    if scores is not None and scores.level == "edge":
        fields["ranked"] = sections.ranked(scores, circuit, unit, exact, often)
    return CircuitPage(
        title,
        sections.drawn(circuit, scores, read_ranking(folder, circuit), often, order),
        asked=asked,
        facts=facts,
        command="\n".join(filter(None, commands)),
        python=_python(folder, fields),
        **fields,
    )


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with NaN for what JSON had to write as null."""
    return {name: np.nan if value is None else value for name, value in row.items()}


def _scores(folder: Path) -> Any:
    from crosspatch.attribution.scores import load_scores

    return load_scores(folder / SCORES) if (folder / SCORES).is_dir() else None


def _stability(folder: Path) -> Any:
    from crosspatch.circuits.stability import Stability

    return Stability.load(folder / STABILITY) if (folder / STABILITY).is_dir() else None


def _evaluation(folder: Path) -> Any:
    from crosspatch.circuits.evaluation import CircuitEvaluation

    return CircuitEvaluation.load(folder / EVALUATION) if (folder / EVALUATION).is_dir() else None


def _python(folder: Path, fields: Mapping[str, Any]) -> str:
    """How to read the results in Python."""
    lines = ["from crosspatch.circuits import Circuit"]
    then = ["", f"circuit = Circuit.load({str(folder / CIRCUIT)!r})", "print(circuit.describe())"]
    if "ranked" in fields:
        lines.append("from crosspatch.attribution.scores import load_scores")
        then += [f"scores = load_scores({str(folder / SCORES)!r})", "scores.top(10)"]
    if "judged" in fields:
        lines.append("from crosspatch.circuits.evaluation import CircuitEvaluation")
        then += [f"print(CircuitEvaluation.load({str(folder / EVALUATION)!r}))"]
    return "\n".join([*lines, *then])
