"""What a job will do and cost, without doing it."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping

from pipeline import checkpoints
from pipeline import plan as plans
from pipeline.estimate import Estimate, estimate
from pipeline.learnt import Learnt, keep, refuse_other
from pipeline.options import Options
from pipeline.plan import Plan
from pipeline.provenance import cpu_count
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.steps import Job, Measure, Train
from pipeline.tasks import Work
from pipeline.torch_in_use import device_for, torch_in_use
from pipeline.trainings import epochs_wanted, training
from pipeline.worker import Worker


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

    Steps that stand on a training are measured with what it learnt or, before, with its untrained networks where the
    trainer gives them: they take the same time. Other steps on what is not there yet are left out.
    """
    options = options or Options()
    run = Run(url)
    price = options.resources.price_per_hour
    trainings = {step.name: step for step in job.steps if isinstance(step, Train)}
    untrained = functools.cache(lambda name: _untrained(trainings[name]))  # its inputs may be large
    found: list[StepEstimate] = []
    for step in job.steps:
        if not isinstance(step, Measure) or step.tables:
            continue
        learnt = {name: training(name, run.step_folder(name)).digest for name in step.trained.values()}
        if not all(digest or hasattr(trainings[name].trainer, "untrained") for name, digest in learnt.items()):
            continue
        for split in step.splits:
            plan, committed = _frozen(job, step, run, split, learnt) or (None, 0)
            plan = plan or _measure_here(job, step, run, split, learnt, untrained, options)
            whole = estimate(plan.measured, plan.keys, plan.shards, workers=workers, price_per_hour=price)
            found.append(StepEstimate(step.name, split, plan, committed, whole))
    return found


def _frozen(job: Job, step: Measure, run: Run, split: str, learnt: Mapping[str, str]) -> tuple[Plan, int] | None:
    """The plan that is there and the shards committed; UsageError where it is of other settings."""
    if not all(learnt.values()) or not set(step.splits) <= set(run.splits()):
        return None
    keys = {s: run.key_table(s).digest for s in step.splits}
    fields = plans.measure_fields(step, job.limits, keys, learnt)
    keyed = plans.fingerprint(fields) if job.keyed(step.name) else ""
    folder = run.step_folder(step.name, split=split, fingerprint=keyed)
    plan = plans.load(folder)
    if plan is None:
        return None
    plans.refuse_other(plan, fields, folder.path("plan.json"))
    return plan, len(Shards(folder, plan.shards).committed())


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


def _measure_here(
    job: Job,
    step: Measure,
    run: Run,
    split: str,
    learnt: Mapping[str, str],
    untrained: Callable[[str], Learnt],
    options: Options,
) -> Plan:
    with tempfile.TemporaryDirectory(prefix="raylens-plan-") as scratch:
        aside = Run(scratch)
        keys = aside.freeze_keys(split, job.sources[split])
        alone = dataclasses.replace(step, splits=(split,))
        trained = {}
        for name, upstream in step.trained.items():
            folder, digest = run.step_folder(upstream), learnt[upstream]
            if not digest:
                folder = aside.step_folder(upstream)
                keep(folder.child("result"), untrained(upstream))
                digest = checkpoints.digest_of(folder.child("result")) or ""
            trained[name] = (folder.url, digest)
        work = Work("plan", alone, aside.keys.url, {}, {}, {}, job.limits, options.code_path, trained)
        worker = Worker(work, _best_device(), options.resources.cpus_per_actor or cpu_count())
        try:
            size = options.resources.micro_batch or worker.stage.micro_batch(worker.device)
            measured = worker.measure(split, size)
        finally:
            worker.close()
        fields = plans.measure_fields(alone, job.limits, {split: keys.digest}, learnt)
        return plans.new_plan(step.name, split, fields, len(keys), size, measured, options.resources.shard_rows)


def _untrained(step: Train) -> Learnt:
    """As if it had been learnt."""
    inputs = {name: given.load(device_for("cpu")) for name, given in step.inputs.items()}
    learnt: Learnt = step.trainer.untrained(inputs)  # type: ignore[attr-defined]
    return learnt


def _best_device() -> str:
    torch = torch_in_use()
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
