"""Options of `crosspatch features circuit`, `evaluate` and `edges`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Method(StrEnum):
    """How effects are estimated."""

    ig = "ig"
    atp = "atp"
    relp = "relp"


class Replaced(StrEnum):
    """What takes the place of a node."""

    paired = "paired"
    mean = "mean"
    mean_all = "mean-all"
    zero = "zero"


class Where(StrEnum):
    """What a node is."""

    aggregate = "aggregate"
    templatic = "templatic"
    spans = "spans"


class Policy(StrEnum):
    """Which error terms are kept."""

    nodes = "nodes"
    kept = "kept"
    removed = "removed"
    stream_kept = "stream-kept"

    @property
    def plain(self) -> str:
        """As the library calls it."""
        return self.value.replace("-", " ")


class Neurons(StrEnum):
    """Baselines."""

    outputs = "outputs"
    hidden = "hidden"
    hidden_attention = "hidden-attention"
    none = "none"

    @property
    def plain(self) -> str:
        """As the library calls it."""
        return "hidden and attention" if self is Neurons.hidden_attention else self.value


FOLDER_HELP = "A folder of `crosspatch features circuit`."
REPLACED_HELP = (
    "What takes the place of a node: paired (its value on the corrupt prompt), mean (over corrupt prompts of the "
    "template, by position), mean-all (over all tokens), zero."
)
JUDGED_HELP = (
    "What takes the place of the nodes outside the circuit when it is judged. Default: mean, as in the paper; mean-all "
    "where a template has only one prompt."
)
START_HELP = (
    "Blocks before this one are left to the model when a circuit is judged, and their nodes count for nothing; -1: "
    "even the input is replaced. Default: a third of the blocks, as in the paper."
)
Methods = Annotated[
    Method,
    typer.Option(
        "--method",
        help="ig: integrated gradients, the most faithful estimate. atp: one forward and one backward pass. relp: "
        "the same with RelP's rules.",
    ),
]
Replacements = Annotated[Replaced, typer.Option("--replacement", help=REPLACED_HELP)]
JudgedWith = Annotated[Replaced | None, typer.Option("--judged-with", help=JUDGED_HELP)]
StartBlock = Annotated[int | None, typer.Option("--start-block", min=-1, help=START_HELP)]
Nodes = Annotated[int | None, typer.Option("--nodes", min=1, help="So many nodes of largest effect; default 50.")]
Threshold = Annotated[
    float | None, typer.Option("--threshold", min=0.0, help="Instead: all nodes of larger effect (the paper's T_N).")
]
EdgeThreshold = Annotated[
    float | None,
    typer.Option(
        "--edge-threshold",
        min=0.0,
        help="Edges of the circuit have a larger effect (the paper's T_E); default: a tenth of the smallest node's.",
    ),
]
Positions = Annotated[
    Where,
    typer.Option(
        "--positions",
        help="aggregate: a node is a feature, effects are added up over tokens. templatic: one node a position "
        "(prompts of equal length). spans: one node a span.",
    ),
]
Spans = Annotated[
    list[str] | None,
    typer.Option("--span", help="With --positions spans: these only (repeat); default: every span of the task."),
]
Exact = Annotated[int, typer.Option("--exact", min=0, help="So many of the largest nodes are measured exactly too.")]
Random = Annotated[int, typer.Option("--random", min=0, help="Random sets of the same size to compare with.")]
Sizes = Annotated[
    list[int] | None, typer.Option("--size", min=1, help="Nodes of a set; repeat. Default: 1, 2, 5, 10, ... up to all.")
]
Policies = Annotated[
    list[Policy] | None,
    typer.Option(
        "--errors",
        help="Error terms: nodes (kept where they are in the circuit), kept, removed, stream-kept. Repeat; default: "
        "all.",
    ),
]
Baselines = Annotated[
    list[Neurons] | None,
    typer.Option(
        "--baseline",
        help="Neurons: outputs (dimensions of what the dictionaries read), hidden (of the MLPs, attention being left "
        "to the model), hidden-attention (and dimensions of attention outputs), none. Repeat; default: all.",
    ),
]
RankedBy = Annotated[
    list[Method] | None, typer.Option("--ranked-by", help="What neurons are ranked by; repeat. Default: ig and relp.")
]
CardTokens = Annotated[
    int, typer.Option("--card-tokens", min=100, help="Tokens of held-out text that the cards' contexts come from.")
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for effects, circuit, cards, evaluation and report.")
]
