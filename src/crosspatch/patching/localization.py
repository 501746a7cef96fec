"""What `localize` found, and how it is kept in a folder.

    localization.json        what was asked and found: format, version, task (name, description, varies, holds,
                             provenance, corruptions, n_train, n_held_out), model (name, class, sizes, parameters),
                             levels (names, coarse to fine), top (the strongest parts), settings, seconds, findings
                             (code, severity, title, text, fix, rows = addresses)
    gates.json               `GateReport.to_dict()`
    examples.json            {"examples": [{clean, corrupt (tokens as text), spans, corrupt_spans (name -> [start,
                             end)), answers, wrong, template, corruption, clean_value, corrupt_value (primary metric)}]}
    attention.json           {"attention": [{head, example, tokens, spans, pattern, corrupt_tokens, corrupt_pattern}]};
                             a pattern is a list of rows, one per destination; causal ones end at the diagonal
    conditional.json         {"metric", "removed": {set -> effect}, "rows": [records of `Conditional.frame`]}
    levels/<granularity>/    a sweep result (`SweepResult.load`), for each level of the drill
    confirmation/            a sweep result on the held-out pairs
    confirmation.json        {"rows": [records of `Localization.confirmed`]}

The last two are missing where the task was too small to be split, conditional.json where no part was removed (none
matters, or the removal of each breaks everything).
JSON holds no NaN and no infinities: they are null. Nothing in the folder can run code.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crosspatch.errors import ResultError
from crosspatch.patching.levels import PLAN, Drill
from crosspatch.results import SEVERITIES, Finding, SweepResult, load_result
from crosspatch.results.files import read_json, write_json

FORMAT, VERSION = "crosspatch-localization", 1


@dataclass
class Localization:
    """A localised behaviour.

    Attributes:
        drill: the levels, from the residual stream to q/k/v and neurons.
        gates: what the gates said, as JSON values.
        examples: the pairs in tokens.
        attention: patterns of the top heads.
        conditional: rows of the conditional ablation; empty where nothing was removed.
        removed: effect of each removed set by itself.
        confirmation: the sweep of the top rows on held-out pairs; None where the task was too small to be split.
        confirmed: one row per confirmed address: effects on both parts of the task, and whether each held up.
        findings: everything that the diagnosis says; `rows` are those of `drill.result`.
        about: task, model, settings and seconds, as JSON values.
    """

    drill: Drill
    gates: dict[str, Any]
    examples: list[dict[str, Any]]
    attention: list[dict[str, Any]]
    conditional: pd.DataFrame
    removed: dict[str, float]
    confirmation: SweepResult | None
    confirmed: pd.DataFrame
    findings: list[Finding]
    about: dict[str, Any] = field(default_factory=dict)

    def frame(self, metric: str | None = None) -> pd.DataFrame:
        """The effect table of all levels; see `SweepResult.frame`."""
        return self.drill.frame(metric)

    def top(self, n: int = 10, granularity: str = "head", metric: str | None = None) -> pd.DataFrame:
        """The strongest rows of one level."""
        return self.drill.top(n, granularity, metric)

    def save(self, folder: str | Path) -> Path:
        """Write everything into a folder."""
        folder = Path(folder)
        for name, level in self.drill.levels.items():
            level.save(folder / "levels" / name)
        if self.confirmation is not None:
            self.confirmation.save(folder / "confirmation")
        return self.save_rest(folder)

    def save_rest(self, folder: Path) -> Path:
        """Write everything but the sweeps, which `localize` has saved as they were finished."""
        write_json(folder / "gates.json", finite(self.gates))
        write_json(folder / "examples.json", finite({"examples": self.examples}))
        write_json(folder / "attention.json", finite({"attention": self.attention}))
        if len(self.conditional):
            said = {"metric": self.about.get("metric"), "removed": self.removed, "rows": records(self.conditional)}
            write_json(folder / "conditional.json", finite(said))
        if self.confirmation is not None:
            write_json(folder / "confirmation.json", finite({"rows": records(self.confirmed)}))
        addresses = self.drill.result.rows["address"]
        findings = [asdict(f) | {"rows": list(dict.fromkeys(addresses.iloc[f.rows]))} for f in self.findings]
        said = {
            "format": FORMAT,
            "version": VERSION,
            "levels": list(self.drill.levels),
            "findings": findings,
            **self.about,
        }
        write_json(folder / "localization.json", finite(said))  # last: a folder with this file is complete
        return folder

    @staticmethod
    def load(folder: str | Path) -> Localization:
        """Read what `save` wrote.

        Raises:
            ResultError: a file that is missing, damaged, or of a newer format.
        """
        folder = Path(folder)
        path = folder / "localization.json"
        about = read_json(path)
        if about.pop("format", None) != FORMAT or about.pop("version", None) != VERSION:
            raise ResultError(
                "this is not a localization that this version reads",
                where=str(path),
                fix="run crosspatch localize again",
            )
        names, findings = about.pop("levels", None), about.pop("findings", None)
        if not isinstance(names, list) or not set(names) <= set(PLAN) or not isinstance(findings, list):
            raise ResultError("has no levels or findings", where=str(path), fix="run crosspatch localize again")
        drill = Drill({name: load_result(folder / "levels" / name) for name in names})
        row = {address: i for i, address in reversed(list(enumerate(drill.result.rows["address"])))}
        conditional = _optional(folder / "conditional.json")
        confirmation = folder / "confirmation"
        return Localization(
            drill,
            read_json(folder / "gates.json"),
            read_json(folder / "examples.json").get("examples", []),
            read_json(folder / "attention.json").get("attention", []),
            pd.DataFrame(conditional.get("rows", [])),
            conditional.get("removed", {}),
            load_result(confirmation) if confirmation.is_dir() else None,
            pd.DataFrame(_optional(folder / "confirmation.json").get("rows", [])),
            [Finding(**(f | {"rows": [row[a] for a in f["rows"] if a in row]})) for f in findings],
            about,
        )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries of plain values."""
    return frame.to_dict("records")


def finite(value: Any) -> Any:
    """JSON values: NaN and infinities become null, numpy numbers plain ones."""
    if isinstance(value, dict):
        return {str(name): finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def merge_findings(levels: dict[str, SweepResult], others: list[Finding]) -> list[Finding]:
    """Findings of all levels with row numbers of the joint table; what concerns no single row is said once."""
    found: dict[tuple[str, str], Finding] = {}
    start = 0
    for name, level in levels.items():
        for finding in level.findings:
            key = (finding.code, finding.text if finding.rows else "")
            if finding.code == "nothing-found":  # another level's nothing is another finding
                key = (finding.code, name)
            earlier = found.get(key)
            rows = [start + row for row in finding.rows]
            found[key] = replace(earlier or finding, rows=[*(earlier.rows if earlier else []), *rows])
        start += len(level.rows)
    return sorted([*found.values(), *others], key=lambda finding: SEVERITIES.index(finding.severity))
