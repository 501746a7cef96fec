"""Options that the commands of `crosspatch paths` share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Distance(StrEnum):
    """How far two outputs are apart."""

    kl = "kl"
    abs_loss = "abs_loss"
    sq_loss = "sq_loss"
    abs_logit_diff = "abs_logit_diff"


class Side(StrEnum):
    """Which prompt of a pair the claimed paths see."""

    clean = "clean"
    corrupt = "corrupt"


class Mlps(StrEnum):
    """What MLPs between sender and receiver are."""

    direct = "direct"
    frozen = "frozen"


class Semantics(StrEnum):
    """What several receivers mean."""

    last = "last"
    union = "union"


class Norms(StrEnum):
    """What norms of mixed streams do."""

    recomputed = "recomputed"
    frozen = "frozen"


FILE_HELP = "Text file of hypotheses: [name] lines, and below each patterns such as ** -> a9.h6 -> logits."
File = Annotated[Path, typer.Argument(help=FILE_HELP)]
Text = Annotated[
    Path | None,
    typer.Option("--text", help="Rows of a text instead of a task: lines of text, or .jsonl with rows of token ids."),
]
Length = Annotated[
    int, typer.Option(min=1, help="With --text: tokens of a row; longer lines are cut, shorter ones left out.")
]
Apart = Annotated[Distance, typer.Option("--dissimilarity", help="How far an output is from the reference run's.")]
Reference = Annotated[Side, typer.Option(help="The prompt that the claimed paths see; all others see the other one.")]
Named = Annotated[str | None, typer.Option("--name", help="Which hypothesis of the file.")]
Folder = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for result, tables and report.")]
NormScale = Annotated[
    Norms,
    typer.Option(
        "--norms", help="Norms of mixed inputs: recomputed, or frozen at the scale they have on the reference prompt."
    ),
]
