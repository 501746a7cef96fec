"""What `crosspatch localize` ends with: a circuit and its evaluation, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crosspatch.cli.circuit_inputs import Settings, pairs_of
from crosspatch.cli.console import Bars, note
from crosspatch.errors import CrosspatchError
from crosspatch.report import circuits_files as files

if TYPE_CHECKING:
    from crosspatch.cli.circuit_run import Verdict
    from crosspatch.model import Model

EXACT = 40
"""Edges measured exactly, of the top and of the others each."""


def ablation_of(source: str) -> str:
    """What cut edges carry, after what patches insert: the mean or zero where that is it, else the paired value."""
    name = source.partition(":")[0]
    return name if name in ("mean", "zero") else "paired"


def end_with_circuit(
    out: Path, model: Model, asked: Settings, force: bool, resume: bool, budget_mib: float | None, shown: Bars
) -> Verdict | None:
    """Find a circuit on half of the pairs and judge it on the others; None where that cannot be done, with the reason.

    With `resume` a circuit that is already there is kept.
    """
    from crosspatch.circuits.search import Search
    from crosspatch.cli import circuit_run as work
    from crosspatch.cli.circuit import facts_of

    folder = out / files.FOLDER
    if resume and (folder / "report.html").is_file():
        return work.saved_verdict(folder)
    try:
        given = pairs_of(model, asked, force)
        wanted = Search(seed=asked.seed)
        found = work.find(given, wanted, budget_mib, shown)
        checked = work.verification(given, found, EXACT, asked.seed, budget_mib, shown)
        verdict = work.judge(given, found.circuit, found, asked, budget_mib=budget_mib, shown=shown)
    except CrosspatchError as error:
        note(f"No circuit: {error.what}" + (f" ({error.where})" if error.where else ""))
        return None
    work.save_run(folder, found.circuit, given, asked, facts_of(found), wanted)
    if found.scores is not None:
        found.scores.save(folder / files.SCORES)
    if checked is not None:
        work.save_verification(folder, checked)
    verdict.save(folder)
    work.note_command(folder)
    work.write_page(folder)
    return verdict
