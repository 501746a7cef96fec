"""The page of a feature circuit from what a command saved; no model is loaded."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from crosspatch.errors import ResultError
from crosspatch.report.features_files import (
    CARDS,
    CARDS_PAGE,
    CIRCUIT,
    CURVES,
    EDGES,
    EVALUATION,
    EXACT,
    FORMAT,
    GATES,
    RUN,
    VERSION,
)
from crosspatch.report.runs import read_run_file
from crosspatch.results.files import read_json

if TYPE_CHECKING:
    from crosspatch.report.features import FeaturePage


def is_features(folder: Path) -> bool:
    """Whether the folder was written by `crosspatch features circuit`."""
    return (folder / CIRCUIT).is_file() and (folder / RUN).is_file()


def read_run(folder: Path) -> dict[str, Any]:
    """What was asked for and on what: the settings of the run that made the folder.

    Raises:
        ResultError: not there, damaged, or none of ours.
    """
    command = "crosspatch features circuit"
    return read_run_file(folder / RUN, FORMAT, VERSION, command, f"give a folder of `{command}`")


def read_page(folder: Path, command: str = "") -> FeaturePage:
    """The page of a folder that `crosspatch features circuit` wrote.

    Raises:
        ResultError: a file that was damaged, or is none of ours.
    """
    from crosspatch.features import load_circuit, load_effects
    from crosspatch.features.curve import load_curves
    from crosspatch.report import features_sections as sections
    from crosspatch.report.assemble import gates_of
    from crosspatch.report.features import FeaturePage
    from crosspatch.report.features_cards import cards_from
    from crosspatch.report.features_graph import feature_graph
    from crosspatch.report.words import UNITS

    run = read_run(folder)
    effects = load_effects(folder)
    circuit, edges = load_circuit(folder)
    if edges is None or circuit.spans != effects.spans:
        raise ResultError("the circuit does not belong to the effects", where=str(folder), fix="find it again")
    fields: dict[str, Any] = {}
    try:
        threshold = float(run["settings"]["edge_threshold"])
        unit = UNITS.get(str(run["settings"]["pairs"]["metric"]), "units of the metric")
        cards = cards_from(read_json(folder / CARDS))
        exact = _exact(read_json(folder / EXACT), len(effects.clean))
        gates = read_json(folder / GATES)
        fields |= {"gates": gates_of(gates), "forced": bool(gates.get("forced"))}
        labels = {str(span): str(token) for span, token in run.get("labels", {}).items()}
        order = [str(span) for span in run.get("spans", ())]
        commands = [command, *(shlex.join(["crosspatch", *map(str, words)]) for words in run["also"])]
        asked, facts = ({str(k): str(v) for k, v in run[part].items()} for part in ("asked", "facts"))
        title = str(run["title"])
        if (folder / EVALUATION).is_dir():
            fields["held"] = sections.held(load_curves(folder / EVALUATION), unit)
        if (folder / CURVES).is_dir():
            fields["sized"] = sections.sized(load_curves(folder / CURVES))
        if (folder / EDGES).is_dir():
            fields["edges_held"] = sections.edges_held(load_curves(folder / EDGES)[0])
        nodes = sections.graph_nodes(effects, circuit, exact, cards)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ResultError(
            f"is not what `crosspatch features circuit` writes ({type(error).__name__}: {error})", where=str(folder),
            fix="run the command that made it again, with --overwrite",
        ) from error  # fmt: skip
    lines = sections.graph_edges(edges, threshold)
    table, scale = sections.node_table(nodes, exact, effects.clusters)
    total = sum(mean.size for mean in effects.mean.values())
    return FeaturePage(
        title,
        feature_graph(nodes, lines, effects.places, order, labels),
        glance={
            "features": f"{circuit.n_features:,}",
            "error terms": f"{circuit.n_errors:,}",
            f"edges above {threshold:.3g}": f"{len(lines):,}",
            "nodes there are": f"{total:,}",
        },
        nodes=table,
        scale=scale,
        unit=unit,
        edges=sections.edge_table(lines, nodes),
        n_edges=len(lines),
        edge_threshold=f"{threshold:.3g}",
        exact=sections.exact_chart(nodes, unit),
        asked=asked,
        facts=facts,
        cards=(folder / CARDS_PAGE).is_file(),
        command="\n".join(filter(None, commands)),
        python=_python(folder),
        **fields,
    )


def _exact(saved: dict[str, Any], n: int) -> dict[str, Float[np.ndarray, " example"]]:
    found = {str(one["node"]): np.asarray(one["values"], dtype=np.float64) for one in saved["exact"]}
    if any(values.shape != (n,) for values in found.values()):
        raise ValueError(f"exact effects of other than {n} examples")
    return found


def _python(folder: Path) -> str:
    """How to read the results in Python."""
    return "\n".join(
        [
            "from crosspatch.features import load_circuit, load_effects",
            "",
            f"effects = load_effects({str(folder)!r})",
            f"nodes, edges = load_circuit({str(folder)!r})",
            "effects.frame(20)",
        ]
    )
