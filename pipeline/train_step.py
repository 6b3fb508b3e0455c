"""A training step of a run: what it is, where it trains, and what the driver says meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from pipeline import checkpoints
from pipeline import plan as plans
from pipeline.checkpoints import CommittedCheckpoints, DamagedError
from pipeline.errors import RaylensError, UsageError
from pipeline.events import Events
from pipeline.learnt import refuse_other
from pipeline.loading import input_digests
from pipeline.options import Options, Resources
from pipeline.progress import Progress
from pipeline.remote_errors import told_cause
from pipeline.run import Run
from pipeline.signals import Stop
from pipeline.steps import Job, Train
from pipeline.train import train
from pipeline.train_part import Material
from pipeline.train_worker import Epoch
from pipeline.trainings import batch_wanted, epochs_wanted

_EPOCHS_S = 3600.0  # seconds over which the rate forgets: longer than what stands between epochs, so that it counts


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """One training of a job in its run."""

    step: Train
    job: Job
    run: Run
    options: Options

    @property
    def fields(self) -> dict[str, Any]:
        keys = {split: self.run.key_table(split).digest for split in self.step.splits}
        return plans.train_fields(self.step, self.job.limits, keys)

    def refuse_other(self) -> None:
        """UsageError when the folder holds what other settings made."""
        refuse_other(self.run.step_folder(self.step.name), self.fields)

    def go(self, events: Events, stop: Stop, free_gpus: Callable[[], None]) -> str:
        """Train to the end, unless that was done before; returns the digest of what was learnt."""
        folder, name = self.run.step_folder(self.step.name), self.step.name
        fields = self.fields
        refuse_other(folder, fields)
        result = folder.child("result")
        try:
            if digest := checkpoints.digest_of(result):
                return digest
        except DamagedError as error:
            self.options.say(f"step '{name}': its result is made again: {error.what} ({error.where})")
            events.say("damaged", step=name, why=error.what)
            checkpoints.withdraw(result)
        places = _places(self.options.resources, batch_wanted(fields))
        workers, gpus = places.workers, places.gpus_per_worker
        if gpus:
            free_gpus()
        if workers:
            from pipeline.cluster import connect

            connect(self.options.resources, self.options.say)
        self.options.say(f"step '{name}': trains {places.told}")
        done = CommittedCheckpoints(folder.child("checkpoints")).newest()
        events.say("train", step=name, workers=workers, world=max(1, workers), gpus_per_worker=gpus, checkpoint=done)
        with Progress(
            name, epochs_wanted(fields) or 0, done=done, unit="epochs", workers=workers, forgets_s=_EPOCHS_S
        ) as progress:
            told = _Told(name, progress, events, done)
            material = Material(
                self.run.keys.url,
                self.step.splits,
                self.step.inputs,
                self.job.limits,
                self.options.code_path,
                input_digests(self.step.inputs, fields),
            )
            try:
                # Under Ray the driver looks at the request itself; here it is busy with the training.
                with contextlib.nullcontext() if workers else stop.breaking_off():
                    learnt = train(
                        self.step.trainer,
                        folder,
                        fingerprint=fields,
                        workers=workers,
                        gpus_per_worker=gpus,
                        log=told.line,
                        heard=told.epoch,
                        saved=told.reached,
                        within=told.within,
                        stop=stop,
                        material=material,
                    )
            except RaylensError:
                raise
            except Exception as error:
                raise told_cause(error, name) from error
        events.say("trained", step=name, digest=learnt.digest)
        return learnt.digest


class _Told:
    """What the training says, on its way to the progress line and the events."""

    def __init__(self, name: str, progress: Progress, events: Events, done: int) -> None:
        self._name, self._progress, self._events, self._done = name, progress, events, done

    def line(self, text: str) -> None:
        self._progress.say(text)

    def epoch(self, epoch: Epoch) -> None:
        self._progress.total = epoch.epochs
        self.reached(epoch.epoch)
        self._events.say("epoch", step=self._name, **dataclasses.asdict(epoch))

    def within(self, epochs: float) -> None:
        self._progress.update({"ok": max(0.0, epochs - self._done)})

    def reached(self, epoch: int) -> None:
        """So many epochs are done: told, or seen by a checkpoint."""
        self._progress.total = max(self._progress.total, epoch)
        if epoch > self._done:
            self._progress.shard_done({"ok": epoch - self._done})
            self._done = epoch


@dataclasses.dataclass(frozen=True)
class _Places:
    """Where a training runs; no workers: in the driver's process."""

    workers: int
    gpus_per_worker: float
    told: str


def _places(resources: Resources, batch: int | None) -> _Places:
    """One worker for each GPU of the cluster, as many of them as divide the batch; without GPUs the driver itself.

    A cluster is joined only where it may matter: this process can train where there is nothing else.
    """
    wanted = resources.train_workers
    gpus = _gpus(resources)
    if wanted == 0 or (wanted is None and gpus == 0):
        return _Places(0, float(gpus > 0), f"in this process on {'a GPU' if gpus else 'the CPU'}")
    if wanted is None:
        count = next(n for n in range(gpus, 0, -1) if batch is None or batch % n == 0)
        spare = "" if count == gpus else f" of {gpus}: a batch of {batch} does not divide among more"
        return _Places(count, 1.0, f"on {_counted(count, 'GPU')}{spare}")
    if 0 < gpus < wanted:
        raise UsageError(
            f"{wanted} training workers cannot share {_counted(gpus, 'GPU')}: each needs its own",
            where="resources.train_workers",
            cure=f"set it to {gpus}, or leave it out",
        )
    return _Places(wanted, float(gpus > 0), f"on {_counted(wanted, 'GPU' if gpus else 'CPU worker')}")


def _gpus(resources: Resources) -> int:
    """GPUs to train on: of the cluster, where there is one or may be one with GPUs."""
    import torch

    from pipeline.cluster import alive_nodes, connect, joined
    from pipeline.growth import autoscaled

    wanted, connected = resources.train_workers, resources.cluster is not None or joined() is not None
    here = torch.cuda.is_available()
    if resources.gpus == 0 or (wanted == 0 and not here):
        return 0
    if not connected and (wanted == 0 or (not here and not resources.gpus)):
        return int(here)
    connect(resources)
    wanted = resources.gpus or 0
    there = int(sum(node.get("GPU", 0.0) for node in alive_nodes().values()))
    if joined() is None or there >= wanted:
        return there
    if autoscaled() or not (there or resources.train_workers == 0):  # 0: the driver is what was asked for
        return wanted  # its workers wait, and that brings nodes where something does
    return there


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
