"""One worker's part of a training, wherever it runs: what it is given, the training itself, and what rank 0 commits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from pipeline import images
from pipeline.checkpoints import CommittedCheckpoints
from pipeline.key_table import KeyTable
from pipeline.learnt import keep
from pipeline.loading import load_inputs
from pipeline.provenance import cpu_count
from pipeline.signals import Stop
from pipeline.steps import Input
from pipeline.storage import Folder
from pipeline.train_worker import Epoch, TrainingFunction, Worker


@dataclass(frozen=True)
class Material:
    """What every worker of a training is given beside its place: small and picklable, loaded where it is used."""

    keys_url: str = ""
    splits: tuple[str, ...] = ()
    inputs: Mapping[str, Input] = field(default_factory=dict)
    limits: images.Limits = field(default_factory=images.Limits)
    code_path: tuple[str, ...] = ()  # where the user's own modules lie
    digests: Mapping[str, str] = field(default_factory=dict)  # of the inputs, as in the training's fingerprint


@dataclass(frozen=True)
class Place:
    """Where one worker stands."""

    rank: int = 0
    world: int = 1
    local_world: int = 1  # workers on this node
    gpu: bool = False


@dataclass(frozen=True)
class Channel:
    """What the worker of rank 0 says to the driver, and whether the driver wants it to stop."""

    log: Callable[[str], None] = print
    heard: Callable[[Epoch], None] = lambda _: None
    saved: Callable[[int], None] = lambda _: None  # the epoch of a checkpoint
    stop: Stop | None = None
    within: Callable[[float], None] = lambda _: None


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
        channel = replace(channel, log=_quiet, heard=_quiet, saved=_quiet, within=_quiet)
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
            load_inputs(material.inputs, device, material.digests),
            material.limits,
            channel.heard,
            place.local_world,
            channel.within,
        )
        learnt = function(worker)
    finally:
        torch.set_num_threads(before)
    if place.rank == 0:
        _check(channel.stop)
        keep(folder.child("result"), learnt)


def _quiet(_: object) -> None:
    """Only rank 0 speaks."""
