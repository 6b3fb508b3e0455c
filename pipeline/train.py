"""Training in a run folder: in this process or under Ray Train; what is learnt is committed like shards.

The loop itself comes from the job as a function (``TrainingFunction``); each worker gives it a place in the
world (rank, device), the keys and inputs it asked for, checkpoints that are whole or absent, and commits what it
returns (train_part.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import RaylensError
from pipeline.learnt import Trained, claim, read_trained
from pipeline.signals import Stop
from pipeline.storage import Folder
from pipeline.train_part import Channel, Material, Place, work
from pipeline.train_worker import Epoch, TrainingFunction, Worker

__all__ = ["Channel", "Epoch", "Material", "Worker", "train"]


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
    within: Callable[[float], None] = lambda _: None,
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
        heard, saved, within: called for each epoch that is told, with the epoch of each checkpoint, and in between
            with how many epochs are done.
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
    material, channel = material or Material(), Channel(log, heard, saved, stop, within)
    if workers == 0:
        work(function, folder, Place(gpu=gpus_per_worker > 0), threads, material, channel)
    else:
        from pipeline.train_ray import under_ray

        under_ray(function, folder, workers, gpus_per_worker, threads, material, channel)
    done = read_trained(folder)
    if done is None:
        raise RaylensError("training ended without a result", where=folder.url, cure="look at the workers' logs above")
    return done
