"""Weights from files that somebody else wrote: no code is run, and every refusal names file, key and shape."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from crosspatch.errors import DictionaryError


@dataclass(frozen=True)
class Tensors:
    """The tensors of one file."""

    path: Path
    values: dict[str, Tensor]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def take(self, key: str, *shape: int | None) -> Tensor:
        """A tensor as float32.

        Args:
            key: its name.
            shape: sizes wanted; None = any.

        Raises:
            DictionaryError: missing, of another shape, or with values that are not finite.
        """
        if key not in self.values:
            raise DictionaryError(
                f"{key!r} is missing; the file has {', '.join(sorted(self.values)) or 'nothing'}",
                where=str(self.path),
                fix="name the format that it has: load_dictionary(path, format=...)",
            )
        value = self.values[key]
        have = list(value.shape)
        if len(have) != len(shape) or any(w is not None and h != w for h, w in zip(have, shape, strict=True)):
            wanted = [size if size is not None else "any" for size in shape]
            raise DictionaryError(
                f"{key!r} has shape {have}, expected {wanted}",
                where=str(self.path),
                fix="the file is damaged, of another format, or its config belongs to another one",
            )
        value = value.float()
        if not torch.isfinite(value).all():
            raise DictionaryError(f"{key!r} has values that are not finite", where=str(self.path), fix="get it again")
        return value

    def flat(self, key: str, size: int) -> Tensor:
        """A tensor of any shape with `size` numbers, as a vector.

        Raises:
            DictionaryError: as `take`.
        """
        value = self.values.get(key)
        return Tensors(self.path, {} if value is None else {key: value.reshape(-1)}).take(key, size)


def read_tensors(path: Path) -> Tensors:
    """Read a `.safetensors`, `.npz` or `.pt` file.

    Raises:
        DictionaryError: cannot be read, or holds more than tensors and plain data.
    """
    try:
        if path.suffix == ".safetensors":
            return Tensors(path, safetensors.torch.load_file(path, device="cpu"))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as data:
                return Tensors(path, {key: torch.from_numpy(np.asarray(data[key])) for key in data.files})
        if path.suffix == ".pt":
            data = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
            if isinstance(data, dict):
                return Tensors(path, {str(key): value for key, value in data.items() if isinstance(value, Tensor)})
            raise DictionaryError(f"holds a {type(data).__name__}, not a state dict", where=str(path))
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise DictionaryError(what, where=str(path), fix="check the path") from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        what = f"is no file of tensors and plain data ({(str(error).splitlines() or [''])[0]:.100})"
        raise DictionaryError(what, where=str(path), fix="nothing else is read, because it could run code") from error
    raise DictionaryError(f"{path.suffix!r} files are not read", where=str(path), fix="use .safetensors, .npz or .pt")


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DictionaryError: cannot be read, or is none.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DictionaryError(f"cannot be read ({error.strerror})", where=str(path), fix="check the path") from error
    except (ValueError, RecursionError) as error:
        raise DictionaryError(f"is not JSON ({error})", where=str(path)) from error
    if not isinstance(data, dict):
        raise DictionaryError("is not a JSON object", where=str(path))
    return data


def section(config: dict[str, Any], key: str, where: Path) -> dict[str, Any]:
    """An object inside a config; empty if there is none.

    Raises:
        DictionaryError: something else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise DictionaryError(f"{key!r} is {value!r:.60}, expected an object", where=str(where))
    return value or {}


def text(config: dict[str, Any], key: str, where: Path) -> str | None:
    """A text of a config, or None.

    Raises:
        DictionaryError: something else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise DictionaryError(f"{key!r} is {value!r:.60}, expected text", where=str(where))
    return value


def whole(config: dict[str, Any], key: str, where: Path) -> int:
    """A positive integer of a config.

    Raises:
        DictionaryError: missing, or something else.
    """
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value < 2**31 or value != int(value):
        raise DictionaryError(f"{key!r} is {value!r}, expected a whole number above 0", where=str(where))
    return int(value)


def positive(config: dict[str, Any], key: str, where: Path) -> float:
    """A number above 0 of a config.

    Raises:
        DictionaryError: missing, or something else.
    """
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise DictionaryError(f"{key!r} is {value!r}, expected a number above 0", where=str(where))
    return float(value)


def expect_size(found: int, config: dict[str, Any], key: str, where: Path) -> None:
    """The size that the weights have, if the config says one.

    Raises:
        DictionaryError: they differ.
    """
    said = config.get(key)
    if said is not None and said != found:
        raise DictionaryError(
            f"the config says {key} {said}, the weights have {found}", where=str(where), fix="they belong to two things"
        )
