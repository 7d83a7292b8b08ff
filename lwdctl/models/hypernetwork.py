"""hypnettorch's MLP hypernetwork, imported without matplotlib.

hypnettorch loads matplotlib.pyplot for a function that nothing here calls; that import takes longer
than the rest of hypnettorch and zarr together. It is put off until the function is called.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_PLOTS = "hypnettorch.utils.misc"
"""The module that imports matplotlib when it is loaded."""


class _Deferred(ModuleType):
    """A module that is imported when one of its attributes is first used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


class _Loader(SourceFileLoader):
    """Loads a module in which, and only in which, the import of matplotlib is put off."""

    def exec_module(self, module: ModuleType) -> None:
        def import_deferred(name: str, *arguments: Any, **options: Any) -> Any:
            return matplotlib if name in names else __import__(name, *arguments, **options)

        matplotlib, pyplot = _Deferred("matplotlib"), _Deferred("matplotlib.pyplot")
        vars(matplotlib)["pyplot"] = pyplot
        names = {matplotlib.__name__, pyplot.__name__}
        # A module's import statements call the `__import__` of its own builtins.
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": import_deferred}
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds that one module as Python does, and gives it the loader above."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _PLOTS else None
        if spec is None or spec.origin is None:
            return None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


_finder = _Finder()
sys.meta_path.insert(0, _finder)
try:
    from hypnettorch.hnets import HMLP
finally:
    sys.meta_path.remove(_finder)

__all__ = ["HMLP"]
