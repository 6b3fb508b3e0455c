"""The device an actor computes on, and what it holds from one step to the next."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import host
from pipeline.cluster import Slot
from pipeline.errors import RaylensError
from pipeline.host import Host

GPU = Slot("a", 0, "cuda", 0.5, 8)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """As far as the choice of a device needs it."""
    shares: list[float] = []
    cuda = SimpleNamespace(is_available=lambda: True, set_per_process_memory_fraction=shares.append)
    found = SimpleNamespace(cuda=cuda, shares=shares, __version__="2.13.0")
    monkeypatch.setitem(sys.modules, "torch", found)
    return found


def test_a_share_of_a_gpu_has_its_share_of_the_memory(torch: Any) -> None:
    assert Host(None, GPU)._device() == "cuda"
    assert torch.shares == [0.5]
    assert Host(None, Slot("a", 0, "cpu", 0.0, 8))._device() == "cpu"


def test_a_gpu_that_torch_cannot_use_is_an_error_and_not_a_slow_worker(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.cuda.is_available = lambda: False
    monkeypatch.setattr(host, "_nvidia_devices", lambda: ["/dev/nvidia0"])
    with pytest.raises(RaylensError, match=r"node .*: there is a GPU that torch 2.13.0 cannot use"):
        Host(None, GPU)._device()


def test_gpus_that_a_cluster_only_says_it_has_are_cpus(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.cuda.is_available = lambda: False
    monkeypatch.setattr(host, "_nvidia_devices", list)
    assert Host(None, GPU)._device() == "cpu"
