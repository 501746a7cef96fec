"""What a compiled transformer computes and how large it is: `config.json` of a ground-truth folder, as plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from crosspatch.errors import ModelError
from crosspatch.graph.shape import ModelShape

_SIZES = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "n_ctx", "d_vocab", "d_out")
# What the forward pass of `modeling` takes for granted.
_FIXED = {"layer_norm": False, "activation": "relu", "attention_scale": "1/sqrt(d_head)"}

Token = str | int
Answer = str | int | float | bool


@dataclass(frozen=True)
class Program:
    """A program that was compiled into a transformer.

    Attributes:
        name: of the program.
        rule: what it returns, in words.
        shape: sizes of the model's graph.
        context: most tokens of an input, BOS included.
        vocab: tokens; a token's id is its place.
        output_values: what the columns of the output stand for; None where the output is a number, in column 0.
        residual_labels: what each residual dimension stands for.
    """

    name: str
    rule: str
    shape: ModelShape
    context: int
    vocab: tuple[Token, ...]
    output_values: tuple[Answer, ...] | None
    residual_labels: tuple[str, ...]

    def decode(self, output: Float[np.ndarray, "token column"]) -> list[Answer]:
        """The answer for every token after BOS."""
        if self.output_values is None:
            return [float(x) for x in output[1:, 0]]
        return [self.output_values[i] for i in output[1:].argmax(1)]


def read_program(folder: str | Path) -> Program:
    """Read `config.json` of a ground-truth folder.

    Raises:
        ModelError: not there, not JSON, sizes that are no positive integers or do not fit the lists, or an architecture
            other than that of `CompiledForCausalLM`.
    """
    path = Path(folder) / "config.json"
    config = read_object(path)
    where = str(path)
    sizes = {name: _size(config, name, where) for name in _SIZES}
    for name, value in _FIXED.items():
        if config.get(name) != value:
            raise ModelError(
                f"{name} is {config.get(name)!r:.40}", where=where, fix=f"only models with {name} {value!r} can be read"
            )
    if type(config.get("causal")) is not bool:
        raise ModelError(f"causal is {config.get('causal')!r:.40}", where=where, fix="give true or false")
    kind = config.get("output_kind")
    if kind not in ("categorical", "numerical"):
        raise ModelError(f"output_kind is {kind!r:.40}", where=where, fix="give 'categorical' or 'numerical'")
    values = None
    if kind == "categorical":
        values = _listed(config, "output_values", (str, int, float, bool), sizes["d_out"], where)
    return Program(
        name=str(config.get("name", Path(folder).name)),
        rule=str(config.get("rule", "")),
        shape=ModelShape(
            n_layers=sizes["n_layers"],
            n_heads=sizes["n_heads"],
            n_kv_heads=sizes["n_heads"],
            d_model=sizes["d_model"],
            d_head=sizes["d_head"],
            d_mlp=sizes["d_mlp"],
            vocab=sizes["d_out"],
            causal=config["causal"],
        ),
        context=sizes["n_ctx"],
        vocab=_listed(config, "vocab", (str, int), sizes["d_vocab"], where),
        output_values=values,
        residual_labels=_listed(config, "residual_labels", (str,), sizes["d_model"], where),
    )


def _size(config: dict[str, Any], name: str, where: str) -> int:
    size = config.get(name)
    if type(size) is not int or size < 1:
        raise ModelError(f"{name} is {size!r:.40}", where=where, fix="give a whole number above zero")
    return size


def _listed(config: dict[str, Any], name: str, types: tuple[type, ...], length: int, where: str) -> tuple[Any, ...]:
    """A list of `length` values that differ when they are written."""
    found = config.get(name)
    listed = isinstance(found, list) and all(isinstance(value, types) for value in found)
    if not isinstance(found, list) or not listed or not len({str(x) for x in found}) == length == len(found):
        raise ModelError(
            f"{name} does not hold {length} different values", where=where, fix="check the sizes beside it"
        )
    return tuple(found)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: not there, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=str(path), fix="check the folder") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"is not JSON ({error})", where=str(path), fix="restore the file from a copy") from error
    if not isinstance(data, dict):
        raise ModelError("is not a JSON object", where=str(path), fix="restore the file from a copy")
    return data
