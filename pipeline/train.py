"""Training in a run folder: inline or under Ray Train; what is learnt is committed like shards.

The loop itself comes from the job as a function (``TrainingFunction``); this module gives it a place in the world
(rank, device), checkpoints that are whole or absent, and commits what it returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import CommittedCheckpoints, commit, read_committed
from pipeline.errors import RaylensError, UsageError
from pipeline.storage import Folder

if TYPE_CHECKING:
    import torch


@dataclass
class Worker:
    """One process of a training."""

    rank: int
    world: int
    device: torch.device
    checkpoints: CommittedCheckpoints
    log: Callable[[str], None] = print

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network on this worker's device; gradients averaged over the workers where there are several."""
        network = network.to(self.device)
        if self.world == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids)


@dataclass(frozen=True)
class Learnt:
    """What a training returns: files to keep (weights) and JSON-able facts (history, metrics)."""

    files: dict[str, bytes]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A finished training, read back from its folder; ``digest`` names its contents for what is built on it."""

    files: dict[str, bytes]
    facts: dict[str, Any]
    digest: str
    refused: tuple[str, ...] = ()  # checkpoints that did not verify, newest first


TrainingFunction = Callable[[Worker], Learnt]


def train(
    function: TrainingFunction,
    folder: Folder,
    *,
    fingerprint: Mapping[str, Any],
    workers: int = 0,
    gpus_per_worker: float = 0,
    threads: int | None = None,
    log: Callable[[str], None] = print,
) -> Trained:
    """Trains in ``folder`` (``RUN/<training>``), going on from its newest whole checkpoint; returns at once when done.

    Args:
        function: called on every worker; what rank 0 returns is committed. Must pickle when ``workers`` > 0.
        fingerprint: JSON-able facts the result depends on (config, versions, digests of the data). A folder made with
            others is refused.
        workers: 0 trains in this process; n > 0 under Ray Train, with DDP when n > 1. A worker takes one CPU, the
            trainer none, so one free CPU is enough.
        threads: PyTorch threads per worker; by default the node's cores shared among the workers.

    Raises:
        UsageError: the folder belongs to another fingerprint.
        RaylensError: training failed, with the reason.
    """
    _claim(folder, fingerprint)
    done = _finished(folder)
    if done is not None:
        return done
    checkpoints = CommittedCheckpoints(folder.child("checkpoints"))
    found = checkpoints.latest()
    for line in checkpoints.refused:
        log(line)
    if found is not None:
        log(f"going on from checkpoint {found[0]}")
    if workers == 0:
        _work(function, folder, 0, 1, gpus_per_worker > 0, threads, log)
    else:
        _under_ray(function, folder, workers, gpus_per_worker, threads, log)
    done = _finished(folder)
    if done is None:
        raise RaylensError("training ended without a result", where=folder.url, cure="look at the workers' logs above")
    return Trained(done.files, done.facts, done.digest, tuple(checkpoints.refused))


def _claim(folder: Folder, fingerprint: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(fingerprint))
    folder.create("training.json", json.dumps(now, indent=1, sort_keys=True).encode())
    then = json.loads(folder.read("training.json"))
    changed = [f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in {**then, **now} if then.get(k) != now.get(k)]
    if changed:
        raise UsageError(
            "this training was begun with other settings: " + "; ".join(changed),
            where=folder.url,
            cure="set them back, or train into another run folder",
        )


def _finished(folder: Folder) -> Trained | None:
    found = read_committed(folder.child("result"))
    if found is None:
        return None
    facts = json.loads(found.files.pop("facts.json"))
    return Trained(found.files, facts, found.digest)


def _work(
    function: TrainingFunction,
    folder: Folder,
    rank: int,
    world: int,
    gpu: bool,
    threads: int | None,
    log: Callable[[str], None],
) -> None:
    import torch

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        checkpoints = CommittedCheckpoints(folder.child("checkpoints"))
        learnt = function(Worker(rank, world, device, checkpoints, log if rank == 0 else _quiet))
    finally:
        torch.set_num_threads(before)
    if rank == 0:
        facts = json.dumps(learnt.facts, sort_keys=True).encode()
        commit(folder.child("result"), {**learnt.files, "facts.json": facts})


def _quiet(line: str) -> None:
    """Only rank 0 speaks."""


def _under_ray(
    function: TrainingFunction,
    folder: Folder,
    workers: int,
    gpus_per_worker: float,
    threads: int | None,
    log: Callable[[str], None],
) -> None:
    import tempfile

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    resources: dict[str, float] = {"CPU": 1}
    if gpus_per_worker:
        resources["GPU"] = gpus_per_worker
    lines = Queue(actor_options={"num_cpus": 0})
    settings = {"lines": lines, "function": function, "folder": folder, "gpu": gpus_per_worker > 0, "threads": threads}
    # Ray's own records of the trial are of no use afterwards: the run folder holds what counts.
    with tempfile.TemporaryDirectory(prefix="raylens-train-") as scratch:
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config=settings,
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(name="training", storage_path=scratch),
        )
        try:
            with _heard(lines, log):
                trainer.fit()
        except ray.exceptions.RayError as error:
            raise _told(error, folder) from error
        except Exception as error:
            if type(error).__module__.startswith("ray."):
                raise _told(error, folder) from error
            raise


@contextlib.contextmanager
def _heard(lines: Any, log: Callable[[str], None]) -> Iterator[None]:
    """Passes on what rank 0 says while it works: the workers' own output may not reach this process."""
    over = threading.Event()

    def listen() -> None:
        while True:
            ending = over.is_set()
            for line in lines.get_nowait_batch(lines.qsize()):
                log(line)
            if ending:
                return
            over.wait(0.5)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)
        lines.shutdown()


def _told(error: BaseException, folder: Folder) -> RaylensError:
    reason = [line for line in str(error).splitlines() if line.strip()]
    what = reason[-1].strip() if reason else type(error).__name__
    return RaylensError(
        f"training failed: {what}",
        where=folder.url,
        cure="mend the cause and run again: training goes on from the newest checkpoint",
    )


def _ray_worker(settings: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    if settings["gpu"]:
        import torch

        torch.cuda.set_device(ray.train.torch.get_device())
    rank, world = context.get_world_rank(), context.get_world_size()
    _work(
        settings["function"],
        settings["folder"],
        rank,
        world,
        settings["gpu"],
        settings["threads"],
        settings["lines"].put,
    )
