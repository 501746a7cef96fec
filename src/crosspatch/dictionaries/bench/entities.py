"""Entities with two attributes or more: what `ravel` asks about, and the reader of RAVEL's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspatch.errors import DictionaryError


@dataclass(frozen=True)
class Entities:
    """Entities, what is true of them, and prompts that ask for it.

    Args:
        name: what they are: `city`.
        entities: their names.
        values: attribute -> entity -> continuations that are right, without a leading space; any of them counts. An
            entity without a known value may be left out.
        prompts: attribute -> frames with one `%s`, which stands for the entity.

    Raises:
        DictionaryError: fewer than two attributes, or a frame without exactly one `%s`.
    """

    name: str
    entities: tuple[str, ...]
    values: Mapping[str, Mapping[str, tuple[str, ...]]]
    prompts: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or set(self.values) != set(self.prompts):
            raise DictionaryError("needs two attributes, each with values and prompts", where=self.name)
        for attribute, frames in self.prompts.items():
            for frame in frames:
                if frame.count("%s") != 1:
                    raise DictionaryError(f"the frame {frame!r} needs one %s", where=f"{self.name}/{attribute}")


def read_ravel(folder: str | Path, name: str, attributes: tuple[str, str], *, frames: int = 8) -> Entities:
    """Entities of RAVEL's own files (Huang et al. 2024, arXiv 2402.17700).

    Reads `ravel_<name>_entity_attributes.json` and `ravel_<name>_attribute_to_prompts.json`.

    Args:
        folder: where they are.
        name: `city`, `nobel_prize_winner`, `occupation`, `physical_object` or `verb`.
        attributes: two of its attributes, as `("Country", "Continent")`.
        frames: at most so many prompts for each attribute.

    Raises:
        DictionaryError: files that are missing, damaged, or lack these attributes.
    """
    base = Path(folder)
    about = _object(base / f"ravel_{name}_entity_attributes.json")
    asked = _object(base / f"ravel_{name}_attribute_to_prompts.json")
    for attribute in attributes:
        known = sorted(asked)
        if attribute not in asked or not isinstance(asked[attribute], list):
            raise DictionaryError(f"has no prompts for {attribute!r}", where=name, fix=f"one of {', '.join(known)}")
    values: dict[str, dict[str, tuple[str, ...]]] = {attribute: {} for attribute in attributes}
    for entity, facts in about.items():
        for attribute in attributes:
            value = facts.get(attribute) if isinstance(facts, dict) else None
            if isinstance(value, str) and value:
                values[attribute][entity] = (value,)
    prompts = {}
    for attribute in attributes:
        fitting = [frame for frame in asked[attribute] if isinstance(frame, str) and frame.count("%s") == 1]
        if not fitting:
            raise DictionaryError(f"has no usable prompt for {attribute!r}", where=name)
        prompts[attribute] = tuple(fitting[:frames])
    return Entities(name, tuple(about), values, prompts)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DictionaryError(
            f"cannot be read ({error.strerror})", where=str(path), fix="give the folder of RAVEL's JSON files"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DictionaryError(f"is not JSON ({error})", where=str(path)) from error
    if not isinstance(found, dict):
        raise DictionaryError("is not a JSON object", where=str(path))
    return found
