"""What a training is called with on each of its workers: its place, its keys, its checkpoints, and whom it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import images
from pipeline.checkpoints import CommittedCheckpoints
from pipeline.key_table import KeyTable
from pipeline.learnt import Learnt

if TYPE_CHECKING:
    import torch


class EpochDone(Protocol):
    """What ``Worker.tell`` reads: ``stages.training.Progress`` has it."""

    @property
    def epoch(self) -> int: ...

    @property
    def epochs(self) -> int: ...

    @property
    def metrics(self) -> Mapping[str, float]: ...

    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class Epoch:
    """One epoch, as the driver hears of it."""

    epoch: int  # from 1
    epochs: int
    metrics: Mapping[str, float]
    seconds: float


@dataclass
class Worker:
    """One process of a training."""

    rank: int
    world: int
    device: torch.device
    checkpoints: CommittedCheckpoints
    log: Callable[[str], None] = print
    keys: Mapping[str, KeyTable] = field(default_factory=dict)  # by split
    inputs: Mapping[str, Any] = field(default_factory=dict)  # loaded, on the device
    limits: images.Limits = field(default_factory=images.Limits)
    heard: Callable[[Epoch], None] = lambda _: None
    local_world: int = 1  # workers on this node: they share its cores
    within: Callable[[float], None] = lambda _: None  # how many epochs are done, with what is done of the next

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network on this worker's device; gradients averaged over the workers where there are several.

        On GPUs batch norms then take their statistics over the whole batch, as one worker does. On CPUs PyTorch has no
        such thing: each worker's are of its own share, and what a network with batch norm learns there depends on how
        many workers there are.
        """
        network = network.to(self.device)
        if self.world == 1:
            return network
        from torch.nn import SyncBatchNorm
        from torch.nn.parallel import DistributedDataParallel

        if self.device.type == "cuda":
            network = SyncBatchNorm.convert_sync_batchnorm(network)

        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids)

    def tell(self, done: EpochDone) -> None:
        """One line for an epoch, and how far the training is: made to be ``progress`` of ``stages.training.fit``."""
        told = [f"{n} {v:.3g}" for n, v in done.metrics.items() if n != "epoch" and isinstance(v, (int, float))]
        self.log(f"epoch {done.epoch}/{done.epochs}: {', '.join(told)} ({done.seconds:.1f} s)")
        self.heard(Epoch(done.epoch, done.epochs, dict(done.metrics), done.seconds))


TrainingFunction = Callable[[Worker], Learnt]
