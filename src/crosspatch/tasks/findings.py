"""What a gate has to say: one statement in plain words, how bad it is, and about which examples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["info", "warning", "failure"]


@dataclass(frozen=True)
class GateFinding:
    """One statement of a gate.

    Args:
        code: short fixed name of the check, e.g. "alignment".
        level: "failure" stops a run unless it is forced; "warning" is shown; "info" is kept for the record.
        message: what was found, with numbers.
        examples: indices of the pairs concerned.
        shown: for some of these, the tokens or values, one readable text each.
        fix: what can be done.
    """

    code: str
    level: Level
    message: str
    examples: tuple[int, ...] = ()
    shown: tuple[str, ...] = ()
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"[{self.level}] {self.code}: {self.message}",
            *(f"    {line}" for s in self.shown for line in s.split("\n")),
        ]
        return "\n".join(lines + ([f"    Fix: {self.fix}"] if self.fix else []))
