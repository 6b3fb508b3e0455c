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
from pipeline.options import Options, Resources
from pipeline.progress import Progress
from pipeline.remote_errors import told_cause
from pipeline.run import Run
from pipeline.signals import Stop
from pipeline.steps import Job, Train
from pipeline.train import Epoch, Material, refuse_other, train
from pipeline.trainings import epochs_wanted


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
        workers, gpus = _places(self.options.resources)
        if workers and gpus:
            free_gpus()
        done = CommittedCheckpoints(folder.child("checkpoints")).newest()
        events.say("train", step=name, workers=workers, gpus_per_worker=gpus, checkpoint=done)
        with Progress(name, epochs_wanted(fields) or 0, done=done, unit="epochs", workers=workers) as progress:
            told = _Told(name, progress, events, done)
            material = Material(
                self.run.keys.url, self.step.splits, self.step.inputs, self.job.limits, self.options.code_path
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

    def reached(self, epoch: int) -> None:
        """So many epochs are done: told, or seen by a checkpoint."""
        self._progress.total = max(self._progress.total, epoch)
        if epoch > self._done:
            self._progress.shard_done({"ok": epoch - self._done})
            self._done = epoch


def _places(resources: Resources) -> tuple[int, float]:
    """(workers, GPUs of each): one worker for each GPU of the cluster, and without GPUs the driver itself.

    A cluster is joined only where it may matter: this process can train where there is nothing else.
    """
    import torch

    wanted = resources.train_workers
    if wanted == 0 or (wanted is None and not _elsewhere(resources)):
        return 0, float(torch.cuda.is_available())
    from pipeline.cluster import alive_nodes, connect

    connect(resources)
    gpus = int(sum(node.get("GPU", 0.0) for node in alive_nodes().values()))
    if wanted is None:
        return gpus, float(gpus > 0)
    if 0 < gpus < wanted:
        raise UsageError(
            f"{wanted} training workers cannot share {gpus} GPU{'s' * (gpus != 1)}: each needs its own",
            where="resources.train_workers",
            cure=f"set it to {gpus}, or leave it out",
        )
    return wanted, float(gpus > 0)


def _elsewhere(resources: Resources) -> bool:
    """Whether there may be GPUs to train on."""
    import ray
    import torch

    here = torch.cuda.is_available() if resources.gpus is None else resources.gpus > 0
    return here or resources.address is not None or ray.is_initialized()
