"""What both scripts do: SHIFT on Bias in Bios with published dictionaries, beside table 2 of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crosspatch as cp
from crosspatch.dictionaries import Dictionary
from crosspatch.shift import Settings, TokenList, probe_circuit, read_answers, read_texts, shift, splits_of
from crosspatch.shift.data import GENDERED

AMBIGUOUS = (("professor", "male"), ("nurse", "female"))
CONCEPTS = (
    "nurse", "healthcare", "hospital", "patient", "medical", "clinic", "triage", "medication", "emergency", "surgery",
    "professor", "academia", "research", "university", "tenure", "faculty", "dissertation", "sabbatical", "publication",
    "grant",
)  # fmt: skip
"""The paper's words for the concept bottleneck."""
METHODS = {
    "Original": "original", "CBP": "concept bottleneck", "Random": "random features", "SHIFT": "SHIFT",
    "SHIFT + retrain": "SHIFT, retrained", "Neuron skyline": "neuron skyline", "Feature skyline": "feature skyline",
    "Oracle": "oracle",
}  # fmt: skip
"""Names in the paper, and in our tables."""


@dataclass(frozen=True)
class Table2:
    """One half of the paper's table 2.

    Attributes:
        layer: the block behind which the classifier reads.
        threshold: T_N of the circuit.
        features, ablated: of the circuit, and judged irrelevant by the authors' annotators.
        reported: by the paper's name, accuracy on profession, on gender, and on profession in the worst group, in %.
        with_bos: whether the first token counts.
    """

    layer: int
    threshold: float
    features: int
    ablated: int
    reported: Mapping[str, tuple[float, float, float]]
    with_bos: bool = False


def debias(
    model: cp.Model,
    dictionaries: Sequence[Dictionary],
    texts: tuple[Path, Path],
    plan: Table2,
    answers: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run SHIFT and print each accuracy beside the reported one.

    Args:
        texts: JSONL files to train on and to test on, a biography a line: `text`, `label` (`professor`, `nurse`) and
            `spurious` (`male`, `female`).
        answers: of a person, by feature; without them a list of words judges, which is no person.
    """
    train, test = (read_texts(path) for path in texts)
    splits = splits_of(train, test, ambiguous=AMBIGUOUS, origin="Bias in Bios", cues=GENDERED, concepts=CONCEPTS)
    settings = Settings(layer=plan.layer, training="adamw", threshold=plan.threshold, with_bos=plan.with_bos)
    found = probe_circuit(model, dictionaries, splits, settings)
    judge = TokenList.of(GENDERED) if answers is None else read_answers(answers)
    result = shift(found, judge)
    table = result.frame().set_index("method")
    say(f"\nSHIFT at block {plan.layer}, T_N {plan.threshold}, judged by {judge.about}")
    say(f"  {found.nodes.n_features} features (paper: {plan.features}), {result.method('SHIFT').ablated} taken out "
        f"(paper: {plan.ablated}, by people)")  # fmt: skip
    numbers: dict[str, Any] = {"features": found.nodes.n_features}
    for name, reported in plan.reported.items():
        if (own := METHODS[name]) not in table.index:
            say(f"  {name}: left out ({result.left_out.get(own, 'not run')})")
            continue
        row = [100 * float(table.loc[own, key]) for key in ("label", "spurious", "worst")]
        numbers[name] = row
        pairs = zip(("profession", "gender", "worst group"), row, reported, strict=True)
        say(f"  {name}: " + ", ".join(f"{what} {ours:.1f} (paper: {theirs})" for what, ours, theirs in pairs))
    return numbers
