"""What the commands print: plain aligned text, readable in a log as on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.compact import Compacted
    from pipeline.preview import StepEstimate, TrainingPreview
    from pipeline.status import RunStatus, StepStatus, TrainingStatus
    from pipeline.submission import Submitted
    from pipeline.verify import VerifyReport


def columns(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Rows under a head, numbers to the right."""
    cells = [[str(c) for c in row] for row in rows]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(head))]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    return [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in [list(head), *cells]
    ]


def status_lines(found: RunStatus) -> list[str]:
    """A run at a glance, then what is wrong with it."""
    state = "complete" if found.complete else "not complete"
    lines = [f"{found.url}  job {found.job}  {state}"]
    if found.driver:
        lines.append(f"driven by {found.driver}")
    rows = [_status_row(step) for step in found.steps]
    rows += [(name, "", "", "0/?", "", "", "", "", "waiting") for name in found.waiting]
    head = ("step", "setting", "label", "shards", "ok", "filtered", "failed", "quarantined", "")
    lines += ["", *columns(head, rows)]
    if found.trainings:
        trained = [_training_row(training) for training in found.trainings]
        lines += ["", *columns(("training", "setting", "epochs", "checkpoints", ""), trained)]
        lines += [f"  {training.step}: {why}" for training in found.trainings for why in training.refused]
    broken = [(step.name, why) for step in found.steps for why in step.broken]
    broken += [(training.step, training.broken) for training in found.trainings if training.broken]
    if broken:
        lines += ["", "broken (the next run makes these again):"]
        lines += [f"  {name}: {why}" for name, why in broken]
    for step in found.steps:
        if step.failed:
            lines += ["", f"failed in {step.name}:"]
            lines += [f"  {row.key}: {row.error}" for row in step.failed]
            more = step.rows.get("failed", 0) - len(step.failed)
            if more > 0:
                lines.append(f"  ... and {more:,} more")
    if any(step.failed for step in found.steps if step.current):
        lines += ["", "to try failed rows again, quarantined ones too: the same command with --retry-failed"]
    return lines


def _status_row(step: StepStatus) -> tuple[str, ...]:
    notes = [
        note
        for note, holds in (
            ("complete", step.complete and not step.stale),
            ("stale: its upstream changed, the next run computes it again", step.stale),
            ("another setting", not step.current),
        )
        if holds
    ]
    counts = [f"{step.rows.get(name, 0):,}" for name in ("ok", "filtered", "failed")]
    setting = step.fingerprint[:8]
    return (
        step.name,
        setting,
        step.label,
        f"{step.committed:,}/{step.shards:,}",
        *counts,
        f"{step.quarantined:,}",
        ", ".join(notes),
    )


def _training_row(training: TrainingStatus) -> tuple[str, ...]:
    notes = [
        note
        for note, holds in (("complete", training.complete), ("no step of the job any more", not training.current))
        if holds
    ]
    epochs = f"{training.epochs:,}/{'?' if training.wanted is None else format(training.wanted, ',')}"
    kept = ", ".join(str(epoch) for epoch in training.checkpoints) or "none"
    return (training.step, training.fingerprint[:8], epochs, kept, ", ".join(notes))


def verify_lines(found: VerifyReport) -> list[str]:
    lines = [str(problem) for problem in found.problems]
    lines += list(found.missing)
    if found.orphans:
        told = "removed" if found.removed else "no receipt names them; --clean removes them"
        lines += [f"{len(found.orphans):,} orphans ({told}):", *[f"  {name}" for name in found.orphans[:20]]]
        if len(found.orphans) > 20:
            lines.append(f"  ... and {len(found.orphans) - 20:,} more")
    read = f"{found.shards:,} shards, {found.rows:,} rows, {size(found.bytes)} read"
    if found.ok and not found.problems:
        lines.append(f"{read}; all is as the receipts say")
    else:
        again = "; run the job again to make them" if found.ok or found.missing else "; --repair withdraws bad shards"
        lines.append(f"{read}; {len(found.problems):,} bad, {len(found.missing):,} not there{again}")
    return lines


def plan_lines(
    found: Sequence[StepEstimate],
    reductions: Mapping[str, tuple[int, int]],
    measuring: Sequence[str] = (),
    trainings: Sequence[TrainingPreview] = (),
) -> list[str]:
    """What each measuring step takes; for reductions (blocks, bytes of the largest state) by name.

    ``measuring`` names all measuring steps of the job: those that could not be measured yet are told. Of ``trainings``
    only what they are is told.
    """
    from pipeline.progress import duration

    work, cost = [], []
    for step in found:
        e, measured = step.estimate, step.plan.measured
        name = f"{step.step}/{step.split}"
        work.append(
            (
                name,
                f"{e.rows:,}",
                f"{step.committed:,}/{e.shards:,}",
                f"{step.plan.shard_rows:,}",
                f"{step.plan.micro_batch:,}",
                f"{e.networks:,.0f}" if e.networks else "",
                f"{e.forwards:,.0f}" if e.forwards else "",
                f"{e.flops:.2g}" if e.flops else "",
                size(measured.bytes_per_row),
                size(e.output_bytes),
            )
        )
        cost.append(
            (
                name,
                f"{e.workers:,} x {measured.device}, {measured.threads} thread{'s' * (measured.threads != 1)}",
                f"{e.rows_per_s:,.1f}",
                f"{e.networks_per_s:,.0f}" if e.networks else "",
                duration(e.hours * 3600),
                f"{e.worker_hours:,.2f}",
                "" if e.cost is None else f"{e.cost:,.2f}",
            )
        )
    head = ("step", "images", "shards", "images/shard", "batch", "networks", "forwards", "FLOP", "a row", "output")
    lines = columns(head, work)
    lines += ["", *columns(("step", "workers", "images/s", "networks/s", "time", "worker hours", "cost"), cost)]
    waiting = sorted(set(measuring) - {step.step for step in found}, key=list(measuring).index)
    lines += [f"{name}: stands on other steps, is measured when the run gets there" for name in waiting]
    lines += [_training_line(training) for training in trainings]
    if reductions:
        lines.append("")
        lines += columns(
            ("reduction", "blocks", "memory per block in flight"),
            [(name, f"{blocks:,}", size(state)) for name, (blocks, state) in reductions.items()],
        )
    return lines


def _training_line(training: TrainingPreview) -> str:
    about = "" if training.epochs is None else f", {training.epochs:,} epochs"
    images = "" if not training.images else f" on {training.images:,} images"
    line = f"{training.step}: a training{images}{about}"
    if training.complete:
        return f"{line}; it is finished"
    resumed = f"; it goes on from epoch {training.reached:,}" if training.reached else ""
    return f"{line}{resumed}; its time, memory and cost cannot be estimated: its first epoch will tell"


def totals_lines(totals: Mapping[str, Mapping[str, int]]) -> list[str]:
    rows = [(step, *(f"{counts.get(n, 0):,}" for n in ("ok", "filtered", "failed"))) for step, counts in totals.items()]
    return columns(("step", "ok", "filtered", "failed"), rows)


def job_lines(jobs: Sequence[Submitted], now: float) -> list[str]:
    """What runs and ran there, the newest first."""
    if not jobs:
        return ["no jobs were submitted there"]
    from pipeline.progress import duration

    rows = [
        (job.id, job.status.lower(), "" if job.began is None else duration((job.ended or now) - job.began), job.run)
        for job in jobs
    ]
    return columns(("job", "status", "time", "run"), rows)


def compact_lines(found: Sequence[Compacted]) -> list[str]:
    rows = [
        (c.name, f"{c.shards:,}", f"{c.files:,}", f"{c.rows:,}", size(c.bytes), "" if c.made else "was there", c.url)
        for c in found
    ]
    return columns(("step", "shards", "files", "rows", "size", "", "where"), rows)


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _is_number(text: str) -> bool:
    return not text or text.replace(",", "").replace(".", "").replace("/", "").replace("?", "").isdigit()
