"""Training in a run folder: in this process or under Ray Train; what is learnt is committed like shards.

The loop itself comes from the job as a function (``TrainingFunction``); this module gives it a place in the world
(rank, device), the keys and inputs it asked for, checkpoints that are whole or absent, and commits what it returns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import images
from pipeline.checkpoints import CommittedCheckpoints
from pipeline.errors import RaylensError
from pipeline.learnt import Learnt, Trained, claim, keep, read_trained
from pipeline.provenance import cpu_count
from pipeline.run import KeyTable
from pipeline.signals import Stop
from pipeline.steps import Input
from pipeline.storage import Folder

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


@dataclass(frozen=True)
class Material:
    """What every worker of a training is given beside its place: small and picklable, loaded where it is used."""

    keys_url: str = ""
    splits: tuple[str, ...] = ()
    inputs: Mapping[str, Input] = field(default_factory=dict)
    limits: images.Limits = field(default_factory=images.Limits)
    code_path: tuple[str, ...] = ()  # where the user's own modules lie


@dataclass(frozen=True)
class Place:
    """Where one worker stands."""

    rank: int = 0
    world: int = 1
    local_world: int = 1  # workers on this node
    gpu: bool = False


TrainingFunction = Callable[[Worker], Learnt]


@dataclass(frozen=True)
class Channel:
    """What the worker of rank 0 says to the driver, and whether the driver wants it to stop."""

    log: Callable[[str], None] = print
    heard: Callable[[Epoch], None] = lambda _: None
    saved: Callable[[int], None] = lambda _: None  # the epoch of a checkpoint
    stop: Stop | None = None


def train(
    function: TrainingFunction,
    folder: Folder,
    *,
    fingerprint: Mapping[str, Any],
    workers: int = 0,
    gpus_per_worker: float = 0,
    threads: int | None = None,
    log: Callable[[str], None] = print,
    heard: Callable[[Epoch], None] = lambda _: None,
    saved: Callable[[int], None] = lambda _: None,
    stop: Stop | None = None,
    material: Material | None = None,
) -> Trained:
    """Trains in ``folder`` (``RUN/<training>``), going on from its newest whole checkpoint; returns at once when done.

    How many workers there are is no part of the fingerprint, though it is not without effect: sums are rounded
    otherwise, dropout is drawn on each worker for its own rows, and see ``Worker.wrap`` on batch norm.

    Args:
        function: called on every worker; what rank 0 returns is committed. Must pickle when ``workers`` > 0.
        fingerprint: JSON-able facts the result depends on (config, versions, digests of the data). A folder that holds
            checkpoints or a result of others is refused.
        workers: 0 trains in this process; n > 0 under Ray Train, with DDP when n > 1. A worker takes one CPU, the
            trainer none, so one free CPU is enough. A lost worker costs the epochs since the newest checkpoint.
        threads: PyTorch threads per worker; by default each node's cores shared among its workers.
        heard, saved: called for each epoch that is told, and with the epoch of each checkpoint.
        stop: where it is set, training ends with RunStopped: at once in this process's own thread and under Ray.

    Raises:
        UsageError: the folder belongs to another fingerprint, or there is no room for the workers and none can come;
            end the process then, for Ray goes on asking for that room until it is gone.
        RunStopped: asked to stop; what is committed is kept.
        RaylensError: training failed, with the reason.
    """
    claim(folder, fingerprint)
    done = read_trained(folder)
    if done is not None:
        return done
    material, channel = material or Material(), Channel(log, heard, saved, stop)
    if workers == 0:
        work(function, folder, Place(gpu=gpus_per_worker > 0), threads, material, channel)
    else:
        from pipeline.train_ray import under_ray

        under_ray(function, folder, workers, gpus_per_worker, threads, material, channel)
    done = read_trained(folder)
    if done is None:
        raise RaylensError("training ended without a result", where=folder.url, cure="look at the workers' logs above")
    return done


class _Told(CommittedCheckpoints):
    """Checkpoints that the driver hears of, and at which it may ask to stop."""

    def __init__(self, folder: Folder, channel: Channel) -> None:
        super().__init__(folder)
        self._channel = channel

    def latest(self) -> tuple[int, dict[str, bytes]] | None:
        """As ever; which one it is, and which are refused, is told where it is read: a state may be large."""
        found = super().latest()
        for line in self.refused:
            self._channel.log(line)
        if found is not None:
            self._channel.log(f"going on from checkpoint {found[0]}")
        return found

    def save(self, epoch: int, files: Mapping[str, bytes]) -> None:
        _check(self._channel.stop)  # first: another driver may have the run by now
        super().save(epoch, files)
        self._channel.saved(epoch)
        _check(self._channel.stop)


def _check(stop: Stop | None) -> None:
    if stop is not None:
        stop.check()


def work(
    function: TrainingFunction,
    folder: Folder,
    place: Place,
    threads: int | None,
    material: Material,
    channel: Channel,
) -> None:
    """One worker's part of a training; rank 0 commits the result."""
    import torch

    for path in reversed(material.code_path):
        if path not in sys.path:
            sys.path.insert(0, path)
    if place.rank > 0:
        channel = replace(channel, log=_quiet, heard=_quiet, saved=_quiet)
    before = torch.get_num_threads()
    # Not what this process happens to have set: a resumed training must round as its first part did.
    torch.set_num_threads(threads or max(1, cpu_count() // place.local_world))
    try:
        device = torch.device("cuda", torch.cuda.current_device()) if place.gpu else torch.device("cpu")
        worker = Worker(
            place.rank,
            place.world,
            device,
            _Told(folder.child("checkpoints"), channel),
            channel.log,
            {split: KeyTable(Folder(material.keys_url), split) for split in material.splits},
            {name: given.load(device) for name, given in material.inputs.items()},
            material.limits,
            channel.heard,
            place.local_world,
        )
        learnt = function(worker)
    finally:
        torch.set_num_threads(before)
    if place.rank == 0:
        _check(channel.stop)
        keep(folder.child("result"), learnt)


def _quiet(_: object) -> None:
    """Only rank 0 speaks."""
