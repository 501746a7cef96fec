"""`crosspatch circuit compare` and `export`: circuits beside one another, and for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from jaxtyping import Float

from crosspatch.cli.circuit_inputs import REFERENCE, circuit_of
from crosspatch.cli.circuit_options import CIRCUIT_HELP, Format
from crosspatch.cli.console import Debug, Json, Quiet, result, say, table
from crosspatch.cli.sweeping import Overwrite
from crosspatch.errors import CircuitError

if TYPE_CHECKING:
    from crosspatch.circuits import Circuit

Scores = Float[np.ndarray, " edge"]
SUFFIXES = {
    Format.crosspatch: (".json",), Format.eap_ig: (".json", ".pt"), Format.mib: (), Format.neuronpedia: (".json",),
    Format.graphml: (".graphml",), Format.dot: (".dot",),
}  # fmt: skip
LISTED = 20


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("compare", epilog="Example: crosspatch circuit compare out/eap out/acdc reference:ioi")(compare)
    app.command("export", epilog="Example: crosspatch circuit export out/circuit ioi.graphml --format graphml")(export)


def saved_circuit(folder: Path) -> Circuit:
    """The circuit of a folder of `crosspatch circuit`.

    Raises:
        CircuitError: there is none, or it was damaged.
    """
    return circuit_of(str(folder))[0]


def compare(
    circuits: Annotated[list[str], typer.Argument(help=f"Two or more. {CIRCUIT_HELP}")],
    core: Annotated[
        Path | None, typer.Option("--core", help="Write the edges that all of them share as a circuit, a .json file.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """How alike circuits of one model are: intersection over union, edit distance, and what they all share."""
    from crosspatch.circuits import agreement, common_core, edit_distance, iou

    if len(circuits) < 2:
        raise CircuitError("one circuit", where="compare", fix="give two or more")
    read = _alike(circuits)
    names = list(read)
    rows: list[dict[str, Any]] = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            one, other = read[a], read[b]
            said = agreement(one, other)
            rows.append(
                {
                    "first": a,
                    "second": b,
                    "iou_edges": iou(one, other),
                    "iou_nodes": iou(one, other, "nodes"),
                    "edit_distance": edit_distance(one, other),
                    "first_in_second": said.precision,
                    "second_in_first": said.recall,
                }
            )
    shared = common_core(list(read.values()))
    if core is not None:
        shared.save(core)
    sizes = {name: {"edges": c.n_edges, "nodes": c.n_nodes, "connected": c.is_connected} for name, c in read.items()}
    result(
        {
            "ok": True,
            "circuits": sizes,
            "pairs": rows,
            "core": {
                "edges": shared.edge_names(),
                "connected": shared.is_connected,
                "saved": str(core) if core else None,
            },
        }
    )
    say(table([[name, f"{c.n_edges:,}", f"{c.n_nodes:,}"] for name, c in read.items()], ["circuit", "edges", "nodes"]))
    cells = [
        [r["first"], r["second"], f"{r['iou_edges']:.2f}", f"{r['iou_nodes']:.2f}", f"{r['edit_distance']:,}",
         f"{r['first_in_second']:.0%}", f"{r['second_in_first']:.0%}"]
        for r in rows
    ]  # fmt: skip
    head = ["first", "second", "IoU of edges", "IoU of nodes", "edit distance", "first in second", "second in first"]
    say(f"\n{table(cells, head)}")
    edges = shared.edge_names()
    say(f"\n{len(edges):,} edges are in all of them" + (f", of them {LISTED}:" if len(edges) > LISTED else ":"))
    for edge in edges[:LISTED]:
        say(f"  {edge}")
    if core is not None:
        say(f"Core: {core}")


def _alike(texts: Sequence[str]) -> dict[str, Circuit]:
    """The circuits by what was typed, with the spans that they share; references on the shape of the others."""
    files = [text for text in texts if not text.startswith(REFERENCE)]
    shape = circuit_of(files[0])[0].shape if files else None
    read = {text: circuit_of(text, shape)[0] for text in texts}
    if len(read) < len(texts):
        raise CircuitError("a circuit twice", where="compare", fix="name each once")
    if len({c.spans for c in read.values()}) > 1:
        return {text: circuit.any_span() for text, circuit in read.items()}
    return read


def export(
    circuit: Annotated[str, typer.Argument(help=CIRCUIT_HELP)],
    path: Annotated[Path, typer.Argument(help="The file to write; for mib a folder.")],
    kind: Annotated[
        Format, typer.Option("--format", help="eap-ig (.json, .pt), mib, neuronpedia, graphml, dot, crosspatch.")
    ] = Format.eap_ig,
    prompt: Annotated[
        str | None, typer.Option(help="With neuronpedia: the prompt to show, its tokens separated by |.")
    ] = None,
    answer: Annotated[str, typer.Option(help="With neuronpedia: the token that the logits stand for.")] = "answer",
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a circuit, with its edges' scores where there are any, for another program."""
    found, scores = circuit_of(circuit)
    wanted = SUFFIXES[kind]
    if wanted and path.suffix not in wanted:
        raise CircuitError(
            f"the file does not end in {' or '.join(wanted)}", where=str(path), fix=f"name it so, for {kind.value}"
        )
    if path.exists() and not overwrite and not (kind is Format.mib and path.is_dir()):
        raise CircuitError("is there already", where=str(path), fix="--overwrite, or another name")
    written = _write(found, scores, kind, path, circuit, prompt, answer)
    result({"ok": True, "format": kind.value, "files": [str(file) for file in written], "edges": found.n_edges})
    for file in written:
        say(f"Wrote {file}")


def _write(
    circuit: Circuit, scores: Scores | None, kind: Format, path: Path, name: str, prompt: str | None, answer: str
) -> list[Path]:
    from crosspatch.circuits import formats

    if kind is Format.mib:
        task, model = str(circuit.origin.get("task", "task")), str(circuit.origin.get("model", "model"))
        graph = formats.to_eap(circuit, scores)
        parts: dict[str, Any] = {"importances": graph} if scores is not None else {"circuits": {"circuit": graph}}
        return formats.write_mib(path, [formats.MibEntry(task, _plain(model), **parts)])
    if kind is Format.neuronpedia:
        if not prompt:
            fix = 'give --prompt "When|Mary|and|John", its tokens separated by |'
            raise CircuitError("a graph page shows a prompt", where=name, fix=fix)
        graph_ = formats.component_graph(
            circuit, scores, prompt_tokens=prompt.split("|"), output=answer, slug=path.stem
        )
        formats.write_attribution_graph(path, graph_)
        return [path]
    names = {Format.eap_ig: "eap-pt" if path.suffix == ".pt" else "eap"}
    formats.write_circuit(path, circuit, scores, names.get(kind, kind.value))
    return [path]


def _plain(model: str) -> str:
    """The name of a model as a part of a folder's name."""
    return model.rstrip("/").rpartition("/")[2].replace("_", "-") or "model"
