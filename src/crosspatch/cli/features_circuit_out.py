"""What the commands on feature circuits print, and their evaluations as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crosspatch.cli.console import say, table
from crosspatch.cli.paths_out import records
from crosspatch.report.svg import interval, percent, signed

if TYPE_CHECKING:
    from crosspatch.cli.features_circuit_run import Judge
    from crosspatch.dictionaries import Card
    from crosspatch.features.curve import Curve

SHOWN = 15
"""Rows of a table."""
SHARES = ("faithfulness", "interval", "random", "completeness", "interval", "random")


def evaluations(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Evaluations as JSON values."""
    return [
        {
            "kind": curve.kind,
            "ranked_by": curve.method,
            "errors": curve.errors,
            "has_gap": curve.evaluation.has_gap,
            "about": curve.evaluation.about,
            "sets": records(curve.evaluation.frame),
        }
        for curve in curves
    ]


def edges_table(rows: Sequence[dict[str, Any]]) -> str:
    """The largest edges."""
    cells = [[row["from"], row["to"], signed(row["effect"]), interval(row["low"], row["high"])] for row in rows[:SHOWN]]
    return table(cells, ["from", "to", "effect", "interval"])


def say_evaluation(curves: Sequence[Curve], judge: Judge) -> None:
    """What the circuit explains, for a person."""
    if not curves:
        return
    found = curves[0].evaluation
    row = found.frame.to_dict("records")[0]
    say(
        f"\nJudged on {len(found.model)} other pairs, {judge.replacement} replacement: "
        f"m(model) {signed(row['m_model'])}, m(nothing) {signed(row['m_empty'])}"
    )
    if not found.has_gap:
        say("The two cannot be told apart: there is nothing to explain, and no share below means anything.")
    say(f"{start_words(judge)} {row['features']} features and {row['error_terms']} error terms count.\n")
    cells = []
    for curve in curves:
        row = curve.evaluation.frame.to_dict("records")[0]
        cells.append([curve.errors, signed(row["m_kept"]), signed(row["m_cut"]), *shares_of(row)])
    say(table(cells, ["error terms", "m(circuit)", "m(rest)", *SHARES]))


def say_edges(curves: Sequence[Curve]) -> None:
    """What sets of edges explain, for a person."""
    for curve in curves:
        rows = curve.evaluation.frame.to_dict("records")
        say("\nEvery node reads along kept edges only:\n")
        cells = [[str(row["set"]), f"{row['edges']:,}", signed(row["m_kept"]), *shares_of(row)] for row in rows]
        say(table(cells, ["edges", "number", "m(edges)", *SHARES]))
        nodes_alone = f"{percent(rows[0]['node_faithfulness'])} with every edge between the nodes"
        say(f"{nodes_alone}; model {signed(rows[0]['m_model'])}, everything replaced {signed(rows[0]['m_empty'])}.")
    say("")


def start_words(judge: Judge) -> str:
    """What is replaced at all."""
    start = judge.start_block
    if start == -1:
        return "Everything is replaced, the input too."
    return f"Start block {start}: {'the input is' if not start else f'blocks before {start} are'} left to the model."


def shares_of(row: dict[str, Any]) -> list[str]:
    """The cells of `SHARES`."""
    cells = []
    for name in ("faithfulness", "completeness"):
        low, high = row[f"random_{name}_low"], row[f"random_{name}_high"]
        cells += [
            percent(row[name]),
            f"[{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]",
            f"{percent(low)} to {percent(high)}" if low == low else "none",
        ]
    return cells


def tokens_of(card: Card | None) -> str:
    """A feature in a few words: the token of its strongest context, and what it raises."""
    if card is None:
        return ""
    at = card.top[0].tokens[card.top[0].at].strip() if card.top else "nothing here"
    return f"{at!r}; " + " ".join(token.strip() for token, _ in card.promoted[:4])
