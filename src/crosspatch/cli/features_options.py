"""Options that the commands of `crosspatch features` share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Kind(StrEnum):
    """How dictionaries are trained."""

    batch_topk = "batch-topk"
    topk = "topk"
    matryoshka = "matryoshka"
    jumprelu = "jumprelu"
    standard = "standard"
    gated = "gated"
    p_anneal = "p-anneal"


class Precision(StrEnum):
    """Of files."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Ablated(StrEnum):
    """What loss recovered is measured against."""

    zero = "zero"
    mean = "mean"


Places = Annotated[
    list[str] | None,
    typer.Option(
        "--places",
        "-p",
        help="all (input, a*, m*, r*.post), or names with * for every layer: input r3 r*.mid r*.post a* a*.z m* m*.act;"
        " several with commas. READ:WRITE is a transcoder: m*.in:m*.",
    ),
]
Kinds = Annotated[Kind, typer.Option("--variant", help="How they are trained; what sets the sparsity goes with it.")]
Ks = Annotated[
    list[int] | None,
    typer.Option(
        "--k", min=1, help="Active features per token (batch-topk, topk, matryoshka); default 32. Several: a sweep."
    ),
]
L1s = Annotated[
    list[float] | None,
    typer.Option("--l1", min=0.0, help="Weight of the penalty (standard, gated, p-anneal). Several: a sweep."),
]
TargetL0s = Annotated[
    list[float] | None,
    typer.Option("--target-l0", min=0.1, help="Wanted active features per token (jumprelu). Several: a sweep."),
]
Width = Annotated[int | None, typer.Option(min=1, help="Features of each; default: 8 times what it reads.")]
TextSource = Annotated[
    str | None,
    typer.Option(
        "--text",
        help="A .txt or .jsonl file (also .xz, .gz), a folder of them, or embedded: the embedded model's corpus, the "
        "default for that model.",
    ),
]
Context = Annotated[int, typer.Option(min=2, help="Tokens of a prompt.")]
HeldOut = Annotated[int, typer.Option("--held-out", min=100, help="Tokens of held-out text to measure on.")]
TextSeed = Annotated[int, typer.Option("--seed", help="Seed of weights, order and the embedded corpus.")]
Ablations = Annotated[Ablated, typer.Option("--ablation", help="What loss recovered is measured against.")]
Expected = Annotated[
    float | None, typer.Option(help="As published; another value, by more than --tolerance, is refused.")
]
Tolerance = Annotated[float, typer.Option(min=0.0, help="Largest relative difference from what is expected.")]
