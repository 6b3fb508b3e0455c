"""The actor that makes shards at a place of the cluster."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import Slot
from pipeline.estimate import Measured
from pipeline.slices import DeviceLostError
from pipeline.task_feeder import TaskFeeder
from pipeline.tasks import Done, Mark, Task, Work
from pipeline.worker import Worker


class Host:
    """The actor around a worker. It outlives a step: its process and its libraries are loaded once for a whole job."""

    def __init__(self, ledger: Any, slot: Slot) -> None:
        self._ledger, self._slot = ledger, slot
        self._worker: Worker | None = None

    def setup(self, work: Work, spread: bool) -> float:
        """Load what the step needs; returns seconds. ``spread``: rows are decoded by tasks anywhere."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None
        device = self._slot.device
        if device == "cuda":
            import torch

            if not torch.cuda.is_available():  # logical GPUs, as on a test cluster; receipts name the device
                device = "cpu"
            elif self._slot.gpus < 1:
                torch.cuda.set_per_process_memory_fraction(self._slot.gpus)
        worker = Worker(work, device, self._slot.threads)
        if spread:
            worker.make_feeder = lambda split, todo: TaskFeeder(worker, split, todo)
        self._worker = worker
        return worker.setup_s

    def measure(self, split: str, micro_batch: int, attempt: int) -> Measured:
        assert self._worker is not None
        return self._worker.measure(split, micro_batch, attempt)

    def micro_batch(self) -> int:
        assert self._worker is not None
        return self._worker.stage.micro_batch(self._worker.device)

    def run(self, task: Task) -> Done:
        assert self._worker is not None
        try:
            return self._worker.run(task, self._mark)
        except DeviceLostError as error:  # dying is what the driver understands: a death inside this slice
            told = {"kind": "device lost", "step": self._worker.work.step.name, "shard": task.name, "error": str(error)}
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
