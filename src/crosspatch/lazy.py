"""Packages whose public names are imported when they are first used.

Reading a saved result, listing models or printing a help text then does not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package with `_home`: public name -> module that defines it."""

    _home: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._home:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(self._home[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the submodule `model.check` binds it here as `check`, which is the public name of its function.
        if not (isinstance(value, ModuleType) and name in self._home):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._home})


def make_lazy(package: str, home: Mapping[str, Sequence[str]]) -> None:
    """Give a package its public names.

    Args:
        package: `__name__` of the package, which is being imported.
        home: submodule -> the public names that it defines.
    """
    module = sys.modules[package]
    module.__dict__["_home"] = {name: f"{package}.{part}" for part, names in home.items() for name in names}
    module.__class__ = LazyPackage
