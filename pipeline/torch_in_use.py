"""torch, where the method has imported it: importing takes seconds, and a stage may have no use for it."""

from __future__ import annotations

import sys
from typing import Any


def torch_in_use() -> Any | None:
    """The module, or None where nothing in this process has imported it."""
    return sys.modules.get("torch")


def device_for(name: str) -> Any:
    """torch.device(name); its name alone where torch is not in use."""
    torch = torch_in_use()
    return torch.device(name) if torch is not None else name


def set_threads(threads: int) -> None:
    """torch's threads for what the calling thread computes."""
    torch = torch_in_use()
    if torch is not None:
        torch.set_num_threads(threads)


def empty_cache() -> None:
    """Give the device what freed tensors hold of its memory, where there is a device."""
    torch = torch_in_use()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def full_float32() -> None:
    """float32 is float32 on GPUs, too.

    By default their convolutions round to TF32's ten bits, and sums that must come out at 1e-5 would not. Who wants
    speed for precision asks for bfloat16, which is in the config and the fingerprint.
    """
    torch = torch_in_use()
    if torch is not None:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
