"""The actor that makes shards at a place of the cluster."""

from __future__ import annotations

import contextlib
import gc
import glob
import json
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import Slot
from pipeline.errors import RaylensError
from pipeline.estimate import Measured
from pipeline.slices import DeviceLostError
from pipeline.task_feeder import TaskFeeder
from pipeline.tasks import Done, Mark, Task, Work
from pipeline.torch_in_use import empty_cache
from pipeline.worker import Worker


class Host:
    """The actor around a worker. It outlives a step: its process and its libraries are loaded once for a whole job."""

    def __init__(self, ledger: Any, slot: Slot) -> None:
        self._ledger, self._slot = ledger, slot
        self._worker: Worker | None = None

    def setup(self, work: Work, spread: bool) -> float:
        """Load what the step needs; returns seconds. ``spread``: rows are decoded by tasks anywhere."""
        self._let_go()
        worker = Worker(work, self._device(), self._slot.threads)
        if spread:
            worker.feeder = TaskFeeder
        self._worker = worker
        return worker.setup_s

    def _let_go(self) -> None:
        """The network of another step leaves the device before this one's comes."""
        if self._worker is None:
            return
        self._worker.close()
        self._worker = None
        gc.collect()  # traced networks are full of circles
        empty_cache()

    def _device(self) -> str:
        """The slot's device; the CPU where a test cluster says it has GPUs on a machine without: receipts tell."""
        if self._slot.device != "cuda":
            return self._slot.device
        import torch

        if torch.cuda.is_available():
            if self._slot.gpus < 1:
                torch.cuda.set_per_process_memory_fraction(self._slot.gpus)
            return "cuda"
        if not _nvidia_devices():
            return "cpu"
        raise RaylensError(
            f"there is a GPU that torch {torch.__version__} cannot use",
            where=f"node {platform.node()}",
            cure="see there what python -c 'import torch; torch.cuda.init()' says: a build of torch without CUDA, a "
            "driver that is too old, or a device that is lost",
        )

    def measure(self, split: str, micro_batch: int, attempt: int) -> Measured:
        assert self._worker is not None
        with self._dying_if_the_device_is_lost(f"{split} (micro-run)"):
            return self._worker.measure(split, micro_batch, attempt)

    def micro_batch(self) -> int:
        assert self._worker is not None
        return self._worker.stage.micro_batch(self._worker.device)

    def run(self, task: Task) -> Done:
        assert self._worker is not None
        with self._dying_if_the_device_is_lost(task.name):
            return self._worker.run(task, self._mark)

    @contextlib.contextmanager
    def _dying_if_the_device_is_lost(self, shard: str) -> Iterator[None]:
        """That is what the driver understands: a death inside this slice, or of this micro-run."""
        assert self._worker is not None
        try:
            yield
        except DeviceLostError as error:
            told = {"kind": "device lost", "step": self._worker.work.step.name, "shard": shard, "error": str(error)}
            print(json.dumps(told), file=sys.stderr, flush=True)
            os._exit(1)

    @ray.method(concurrency_group="control")
    def prefetch(self, work_id: str, task: Task) -> None:
        if self._worker is not None and self._worker.work.id == work_id:
            self._worker.prefetch(task)

    @ray.method(concurrency_group="control")
    def placed(self) -> None:
        """Answers as soon as its process is there."""

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()

    def _mark(self, mark: Mark) -> None:
        sent = self._ledger.mark.remote(mark)
        if mark.begin:  # must be known before the slice can kill this process
            with contextlib.suppress(ray.exceptions.RayActorError):  # it starts again: a death here will be free
                ray.get(sent)


def _nvidia_devices() -> list[str]:
    return glob.glob("/dev/nvidia[0-9]*")


def start_host(slot: Slot, ledger: Any) -> Any:
    """A worker at a slot. It holds no CPU, so that it can never starve the tasks it waits for."""
    actor = ray.remote(concurrency_groups={"control": 1})(Host)
    return actor.options(
        num_cpus=0,
        num_gpus=slot.gpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node, soft=False),
    ).remote(ledger, slot)
