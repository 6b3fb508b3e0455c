"""What a job will do and cost, without doing it."""

from __future__ import annotations

import dataclasses
import tempfile

import torch

from pipeline import plan as plans
from pipeline.estimate import Estimate, estimate
from pipeline.options import Options
from pipeline.plan import Plan
from pipeline.provenance import cpu_count
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.steps import Job, Measure, Train
from pipeline.train import refuse_other
from pipeline.trainings import epochs_wanted, training
from pipeline.worker import Work, Worker


@dataclasses.dataclass(frozen=True)
class StepEstimate:
    """What ``raylens plan`` prints of one step on one split."""

    step: str
    split: str
    plan: Plan
    committed: int  # shards there already
    estimate: Estimate


def preview(job: Job, url: str, options: Options | None = None, *, workers: int = 1) -> list[StepEstimate]:
    """What a job will do and cost, from micro-runs in this process; writes nothing and joins no cluster.

    Steps that stand on others that are not there yet cannot be measured and are left out.
    """
    options = options or Options()
    run = Run(url)
    found: list[StepEstimate] = []
    for step in job.steps:
        if not isinstance(step, Measure) or step.upstream:
            continue
        folders = {s: run.step_folder(step.name, split=s) for s in step.splits}
        for split, folder in folders.items():
            frozen = plans.load(folder)
            if frozen is None:
                frozen = _measure_here(job, step, split, options)
            else:  # a plan of other settings is not this job's
                keys = {s: run.key_table(s).digest for s in step.splits}
                fields = plans.measure_fields(step, job.limits, keys, {})
                plans.refuse_other(frozen, fields, folder.path("plan.json"))
            committed = len(Shards(folder, frozen.shards).committed())
            found.append(
                StepEstimate(
                    step.name,
                    split,
                    frozen,
                    committed,
                    estimate(
                        frozen.measured,
                        frozen.keys,
                        frozen.shards,
                        workers=workers,
                        price_per_hour=options.resources.price_per_hour,
                    ),
                )
            )
    return found


@dataclasses.dataclass(frozen=True)
class TrainingPreview:
    """What can be said of a training before it runs: no time, for a micro-run of one would be a training."""

    step: str
    images: int | None  # rows of its splits; None where they are not listed yet
    epochs: int | None  # None where the trainer's config has no field "epochs"
    reached: int  # the epoch of the newest checkpoint
    complete: bool


def preview_trainings(job: Job, url: str) -> list[TrainingPreview]:
    """The trainings of a job; writes nothing. UsageError where the run folder holds one of other settings."""
    run = Run(url)
    found = []
    for step in job.steps:
        if not isinstance(step, Train):
            continue
        frozen = set(run.splits())
        listed = all(split in frozen for split in step.splits)
        images = sum(len(run.key_table(split)) for split in step.splits) if listed else None
        begun = training(step.name, run.step_folder(step.name))
        if listed and begun.fields:
            keys = {split: run.key_table(split).digest for split in step.splits}
            refuse_other(begun.folder, plans.train_fields(step, job.limits, keys))
        wanted = epochs_wanted(plans.train_fields(step, job.limits, {}))
        found.append(TrainingPreview(step.name, images, wanted, begun.reached, begun.complete))
    return found


def _measure_here(job: Job, step: Measure, split: str, options: Options) -> Plan:
    with tempfile.TemporaryDirectory(prefix="raylens-plan-") as scratch:
        aside = Run(scratch)
        keys = aside.freeze_keys(split, job.sources[split])
        alone = dataclasses.replace(step, splits=(split,))
        work = Work("plan", alone, aside.keys.url, {}, {}, {}, job.limits, options.code_path)
        worker = Worker(work, _best_device(), options.resources.cpus_per_actor or cpu_count())
        try:
            size = options.resources.micro_batch or worker.stage.micro_batch(worker.device)
            measured = worker.measure(split, size)
        finally:
            worker.close()
        fields = plans.measure_fields(alone, job.limits, {split: keys.digest}, {})
        return plans.new_plan(step.name, split, fields, len(keys), size, measured, options.resources.shard_rows)


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
