"""torchvision, importable beside any torch build.

A torchvision wheel whose compiled operators do not match the installed torch (a CUDA wheel beside a CPU-only torch,
say) fails on import, because it registers fake kernels for operators that were never loaded. Defining the two schemas
first is enough: models, transforms and PIL-based I/O then work, and nothing here calls the operators themselves.
"""

from __future__ import annotations

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library = torch.library.Library("torchvision", "FRAGMENT")


def _load() -> None:
    # A matching torchvision loads its own schemas: only step in where that has not happened and cannot.
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        import sys

        for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
            del sys.modules[name]
        for name, schema in _SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name):
                _library.define(name + schema)


_load()

import torchvision  # noqa: E402

__all__ = ["torchvision"]
