"""Training under Ray Train: one attempt after another until it is done, from checkpoint to checkpoint.

A lost worker or node is no failure of the training: it is free as long as new checkpoints come. What the training
itself raises ends it at once: it would only raise again.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue

from pipeline.checkpoints import CommittedCheckpoints
from pipeline.cluster import joined
from pipeline.errors import RaylensError
from pipeline.failures import backoff
from pipeline.remote_errors import told_cause
from pipeline.room import Room
from pipeline.signals import Stop
from pipeline.storage import Folder, UnreachableError
from pipeline.train_part import Channel, Material, Place, work
from pipeline.train_worker import TrainingFunction
from pipeline.waiting import Patience, cluster_has

FREE_RETRIES = 20  # lost workers in a row without a new checkpoint in between
_TICK_S = 0.5
_STOP_S = 12.0  # how long killed workers may take to be gone
_CUT_OFF = re.compile(r"Connection (closed|reset) by peer|NCCL|Gloo|ProcessGroup|c10d", re.IGNORECASE)


def under_ray(
    function: TrainingFunction,
    folder: Folder,
    workers: int,
    gpus_per_worker: float,
    threads: int | None,
    material: Material,
    channel: Channel,
) -> None:
    """Trains on ``workers`` workers of the cluster joined or of a Ray of our own; raises what ended it for good."""
    settings = {
        "function": function,
        "folder": folder,
        "gpu": gpus_per_worker > 0,
        "threads": threads,
        "material": material,
    }
    resources: dict[str, float] = {"CPU": 1} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
    checkpoints = CommittedCheckpoints(folder.child("checkpoints"))
    lost, reached = 0, checkpoints.newest()
    room = Room(workers, resources, joined())
    while True:
        attempt = _Attempt(settings, workers, resources, channel, room)
        error = attempt.go()
        if error is None:
            return
        why = _lost(error)
        if why is None:
            raise _told(error, folder) from error
        now = checkpoints.newest()
        lost, reached = (1 if now != reached else lost + 1), now
        if lost > FREE_RETRIES:
            raise RaylensError(
                f"training is given up: its workers were lost {lost} times without a new checkpoint ({why})",
                where=folder.url,
                cure="look at the nodes ('ray status'); run again to go on from the newest checkpoint",
            ) from error
        where = f"goes on from checkpoint {now}" if now else "begins again"
        channel.log(f"a worker was lost ({why}): training {where}")
        _pause(backoff(lost), channel.stop)


class _Attempt:
    """One start of a group of workers, until they are done, lost, failed or asked to stop."""

    def __init__(
        self, settings: dict[str, Any], workers: int, resources: dict[str, float], channel: Channel, room: Room
    ) -> None:
        self._settings, self._workers, self._resources, self._channel = settings, workers, resources, channel
        self._room = room
        self._actors: list[Any] = []
        self._error: BaseException | None = None

    def go(self) -> BaseException | None:
        """None when training is done, else what ended it. Raises RunStopped, UsageError where there is no room.

        Ray Train's own request for places that it waits for is only taken back when this process ends.
        """
        self._room.check()
        lines = Queue(actor_options={"num_cpus": 0})
        patience = Patience(self._channel.log, lambda: f"waiting for {self._room.wanted}; {cluster_has()}")
        # Ray's own records of the trial are of no use afterwards: the run folder holds what counts.
        # Where fit() goes on after the end it may still write there.
        with tempfile.TemporaryDirectory(prefix="raylens-train-", ignore_cleanup_errors=True) as scratch:
            # Ray's fit() blocks and takes SIGINT for itself where it is called from the main thread.
            thread = threading.Thread(target=self._fit, args=(lines, scratch), name="raylens-train", daemon=True)
            thread.start()
            try:
                while thread.is_alive():
                    thread.join(_TICK_S)
                    self._listen(lines)
                    if len(self._actors) < self._workers and thread.is_alive():
                        self._room.check()
                        patience.tick()
                    if self._channel.stop is not None and self._channel.stop.is_set():
                        self._kill()
                        thread.join(_STOP_S)
                        self._channel.stop.check()
                self._listen(lines)
            finally:
                lines.shutdown()
        return self._error

    def _fit(self, lines: Any, scratch: str) -> None:
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={**self._settings, "lines": lines},
            scaling_config=ScalingConfig(
                num_workers=self._workers,
                use_gpu="GPU" in self._resources,
                resources_per_worker=self._resources,
            ),
            run_config=RunConfig(name="training", storage_path=scratch),
        )
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - told in the thread that waits
            self._error = error

    def _listen(self, lines: Any) -> None:
        """Pass on what rank 0 says: the workers' own output may not reach this process."""
        try:
            said = lines.get_nowait_batch(lines.qsize())
        except ray.exceptions.RayError:  # its node went: only words are lost
            return
        for kind, what in said:
            if kind == "actor":
                self._actors.append(what)
            elif kind == "epoch":
                self._channel.heard(what)
            elif kind == "saved":
                self._channel.saved(what)
            elif kind == "within":
                self._channel.within(what)
            else:
                self._channel.log(what)

    def _kill(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


def _pause(seconds: float, stop: Stop | None) -> None:
    if stop is None:
        time.sleep(seconds)
    else:
        stop.wait(seconds)
        stop.check()


def _causes(error: BaseException) -> list[BaseException]:
    """What the workers died of, or the one thing that went wrong."""
    return list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]


def _lost(error: BaseException) -> str | None:
    """Why this says nothing about the training itself, or None where any worker raised something of its own.

    One worker's end cuts the others off in the middle of a sum, whether it was killed or raised an error.
    """
    deaths = [_death(cause) for cause in _causes(error)]
    if not all(dead or _cut_off(cause) for dead, cause in zip(deaths, _causes(error), strict=True)):
        return None
    return next(filter(None, deaths), "the workers lost each other")


def _death(cause: BaseException) -> str:
    """What took a worker or its storage away; "" where it was something else."""
    cause = getattr(cause, "health_check_failure", cause)
    if isinstance(cause, ray.exceptions.RayTaskError):
        return ""
    away = isinstance(cause, (ray.exceptions.RayError, UnreachableError)) or _of_ray(cause)
    return type(cause).__name__ if away else ""


def _cut_off(cause: BaseException) -> bool:
    return isinstance(cause, RuntimeError) and _CUT_OFF.search(str(cause)) is not None


def _of_ray(error: BaseException) -> bool:
    return type(error).__module__.startswith("ray.")


def _told(error: BaseException, folder: Folder) -> RaylensError:
    """What a worker raised of its own; the others were only cut off by that."""
    cause = next(c for c in _causes(error) if not _death(c) and not _cut_off(c))
    return told_cause(
        cause if isinstance(cause, Exception) else RuntimeError(str(cause)), folder.url.rpartition("/")[2]
    )


def _ray_worker(settings: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    lines = settings["lines"]
    lines.put(("actor", ray.get_runtime_context().current_actor))
    context = ray.train.get_context()
    if settings["gpu"]:
        import torch

        torch.cuda.set_device(ray.train.torch.get_device())
    channel = Channel(
        lambda text: lines.put(("log", text)),
        lambda epoch: lines.put(("epoch", epoch)),
        lambda epoch: lines.put(("saved", epoch)),
        within=lambda epochs: lines.put(("within", epochs)),
    )
    place = Place(
        context.get_world_rank(), context.get_world_size(), context.get_local_world_size(), bool(settings["gpu"])
    )
    work(settings["function"], settings["folder"], place, settings["threads"], settings["material"], channel)
