"""Options that the commands of `crosspatch circuit` share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Method(StrEnum):
    """How edges are ranked, or a circuit is searched for."""

    eap = "eap"
    eap_ig = "eap-ig"
    eap_ig_activations = "eap-ig-activations"
    relp = "relp"
    exact = "exact"
    acdc = "acdc"
    edge_pruning = "edge-pruning"


class Cut(StrEnum):
    """What a cut edge carries."""

    paired = "paired"
    mean = "mean"
    mean_all = "mean-all"
    zero = "zero"
    optimal = "optimal"


class Rule(StrEnum):
    """Where an integral is sampled."""

    midpoint = "midpoint"
    left = "left"
    right = "right"
    trapezoid = "trapezoid"


class Selection(StrEnum):
    """From scores to a circuit."""

    path_aware = "path-aware"
    top_n = "top-n"
    greedy = "greedy"


class Format(StrEnum):
    """Files of other programs."""

    crosspatch = "crosspatch"
    eap_ig = "eap-ig"
    mib = "mib"
    neuronpedia = "neuronpedia"
    graphml = "graphml"
    dot = "dot"


METHOD_HELP = (
    "eap, eap-ig, eap-ig-activations, relp: estimates by gradients. exact: every edge patched. acdc: cut one by one. "
    "edge-pruning: a learned mask."
)
CUT_HELP = (
    "What a cut edge carries: the value on the paired prompt, a mean at each position or over all tokens, zero, or a "
    "learned constant."
)
CIRCUIT_HELP = (
    "A folder of `crosspatch circuit find`, a circuit's .json, a file of EAP-IG or MIB (.json, .pt), GraphML, a graph "
    "of parts for Neuronpedia, or reference:ioi, reference:greater-than, reference:docstring."
)
Methods = Annotated[Method, typer.Option("--method", help=METHOD_HELP)]
Ablations = Annotated[Cut, typer.Option("--ablation", help=CUT_HELP)]
MetricName = Annotated[str, typer.Option("--metric", help="The metric whose change counts, by name.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the integral (eap-ig, eap-ig-activations).")]
Rules = Annotated[Rule, typer.Option("--rule", help="Where the integral is sampled.")]
Spans = Annotated[
    list[str] | None,
    typer.Option("--span", help="Keep edges at this span only (repeat for several; `all`: every span of the task)."),
]
Selections = Annotated[
    Selection,
    typer.Option(
        "--selection",
        help="path-aware: whole paths, exactly n edges. top-n: the best n, pruned. greedy: grown from the logits.",
    ),
]
Sizes = Annotated[
    list[int] | None,
    typer.Option("--size", min=1, help="Edges of the circuit; several: the smallest that reaches --target."),
]
Target = Annotated[
    float,
    typer.Option(
        min=0.0, max=1.0, help="Take the smallest circuit that keeps this share of the gap on the pairs searched on."
    ),
]
Signed = Annotated[
    bool, typer.Option("--signed", help="Rank by the most positive scores; by default by their size, either sign.")
]
Threshold = Annotated[
    float, typer.Option(min=0.0, help="With acdc: an edge is cut if that costs less than this share of the gap.")
]
Exact = Annotated[
    int, typer.Option("--exact", min=0, help="Edges to measure exactly: so many of the top, and as many at random.")
]
HeldOut = Annotated[float, typer.Option(min=0.1, max=0.9, help="Share of the pairs kept back to judge the circuit on.")]
Random = Annotated[int, typer.Option("--random", min=0, help="Random circuits of the same size to compare with.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for circuit, scores, evaluation and report.")]
