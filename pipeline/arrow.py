"""pyarrow, without pandas until somebody imports it.

Where pandas is installed, pyarrow imports it with the first list it makes an array of, to ask whether the list is a
Series: more than a second of each worker's start. Here it is asked once while pandas cannot be found, and after that
does not look again; when pandas is imported, by whomever, pyarrow is told.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import pyarrow as pa


class _Hidden(MetaPathFinder):
    """For one thread there is no pandas."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "pandas" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("hidden from pyarrow's first look", name=name)


class _Awaited(MetaPathFinder):
    """The end of pandas' import is when pyarrow finds it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "pandas":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def executed(module: ModuleType) -> None:
                execute(module)
                with contextlib.suppress(ImportError):  # it says so where a pandas is too old for it
                    pa.lib._pandas_api.pd  # noqa: B018 - makes pyarrow look again

            loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def _ask_once() -> None:
    if "pandas" in sys.modules:
        return
    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([None])
    finally:
        sys.meta_path.remove(hidden)
    sys.meta_path.insert(0, _Awaited())


_ask_once()
