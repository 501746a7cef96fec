"""The page of path patching from what a command saved; no model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosspatch.errors import ResultError
from crosspatch.paths.attribute import Attribution
from crosspatch.paths.decohere import Decohering
from crosspatch.paths.mediate import Mediation
from crosspatch.paths.pairs import Pairs
from crosspatch.paths.pathset import from_json
from crosspatch.paths.refine import Refinement
from crosspatch.paths.saved import Result
from crosspatch.paths.saved import from_json as read_result
from crosspatch.paths.scores import PathTest
from crosspatch.paths.sender import SenderEffects
from crosspatch.report.assemble import gates_of
from crosspatch.report.paths import (
    Page,
    attribution_section,
    refinement_section,
    score_section,
    sweep_section,
)
from crosspatch.report.paths_mediation import decohering_section, mediation_section
from crosspatch.results.files import read_json

RESULT, GATES = "paths.json", "gates.json"


def read_page(folder: Path, command: str = "") -> Page:
    """The page of a folder that `crosspatch paths` wrote.

    Raises:
        ResultError: a file that was damaged, or is none of ours.
    """
    path = folder / RESULT
    data = read_json(path)
    try:
        results = [read_result(one, str(path)) for one in (data, *data.get("also", ()))]
        about = data["page"]
        gates = read_json(folder / GATES) if (folder / GATES).is_file() else None
        fields: dict[str, Any] = {}
        for result in results:
            fields |= section_of(result, about)
        if gates is not None:
            fields |= {"gates": gates_of(gates), "forced": bool(gates["forced"])}
        asked, facts = (_words(about[name]) for name in ("asked", "facts"))
        return Page(str(about["title"]), asked=asked, facts=facts, command=command, **fields)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ResultError(
            f"is not what crosspatch paths writes ({type(error).__name__}: {error})",
            where=str(path),
            fix="run the command that made it again, with --overwrite",
        ) from error


def section_of(result: Result, about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Page` that show a result."""
    pairs = _prompt(about["prompt"])
    match result:
        case PathTest():
            return {"scores": score_section(result, pairs, _words(about["words"]))}
        case Decohering():
            return {"decohering": decohering_section(result)}
        case Attribution():
            claim = from_json(about["claim"])
            shown = attribution_section(result, str(about["hypothesis"]), claim, str(about["following"]), pairs)
            return {"attributions": (shown,)}
        case SenderEffects():
            return {"sweeps": (sweep_section(result),)}
        case Mediation():
            return {"mediation": mediation_section(result)}
        case Refinement():
            return {"refinement": refinement_section(result, pairs)}


def _prompt(about: Mapping[str, Any]) -> Pairs:
    """As much of the pairs as a page shows: provenance, and where the spans of the first prompt lie."""
    spans = {str(name): (int(ends[0]), int(ends[1])) for name, ends in about["spans"].items()}
    ids = [0] * max(1, *(end for _, end in spans.values()), 1)
    return Pairs([ids], [ids], [(0,)], [(-1,)], [[]], [[]], [spans], [""], str(about["provenance"]))


def _words(value: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(text) for name, text in value.items()}
