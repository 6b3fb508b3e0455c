"""torchvision, importable beside any torch build, and without torch's compiler.

A torchvision wheel whose compiled operators do not match the installed torch (a CUDA wheel beside a CPU-only torch,
say) fails on import, because it registers fake kernels for operators that were never loaded. Defining the two schemas
first is enough: models, transforms and PIL-based I/O then work, and nothing here calls the operators themselves.

torchvision also imports torch's compiler, for one function of one operator: that is half of the time in which a
process of ours starts. It is left until somebody calls that function.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library = torch.library.Library("torchvision", "FRAGMENT")
_COMPILER, _ASKED = "torch._dynamo", "torch._dynamo.utils"


def _is_compile_supported(device_type: str) -> bool:
    answer: bool = importlib.import_module(_ASKED).is_compile_supported(device_type)
    return answer


@contextlib.contextmanager
def _compiler_left_out() -> Iterator[None]:
    """While torchvision is imported, its only name of the compiler stands for the real one."""
    if _COMPILER in sys.modules:
        yield
        return
    package, utils = ModuleType(_COMPILER), ModuleType(_ASKED)
    package.__path__ = []
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules |= {_COMPILER: package, _ASKED: utils}
    try:
        yield
    finally:
        for name in (_COMPILER, _ASKED):
            sys.modules.pop(name, None)


def _forget() -> None:
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]


def _load() -> None:
    try:
        with _compiler_left_out():
            _with_schemas()
    except (ImportError, AttributeError):  # a torchvision that wants more of the compiler gets all of it
        _forget()
        _with_schemas()


def _with_schemas() -> None:
    # A matching torchvision loads its own schemas: only step in where that has not happened and cannot.
    try:
        import torchvision
    except RuntimeError:
        _forget()
        for name, schema in _SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name):
                _library.define(name + schema)
        import torchvision  # noqa: F401


_load()

import torchvision  # noqa: E402

__all__ = ["torchvision"]
