"""Boxes and masks of a finished run, in formats that annotation tools open.

A run's rows hold a box for every threshold; exported is the one at the threshold that the run itself chose (or that is
named). Boxes are in the image's own pixels, as far edges, whatever the run's convention; masks are the map above that
threshold, enlarged to the image (the part within the box, where that is around a largest component).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.export.detection import Detection, Exported
from jobs.export.formats import FORMATS, write
from jobs.export.rows import READERS, Drawing
from pipeline.errors import UsageError
from pipeline.report.wording import counted
from pipeline.run import Run


@dataclass(frozen=True)
class Asked:
    """What is exported: ``method`` and ``split`` default to the run's own, ``threshold`` to the one it chose.

    Detections with a probability below ``score``, or of fewer than ``min_area`` pixels (of the mask, where there is
    one, else of the box), are left out; their images stay.
    """

    format: str
    method: str = ""
    split: str = ""
    threshold: float | None = None
    score: float = 0.0
    min_area: float = 0.0


def export(run_url: str, out: str | Path, asked: Asked) -> dict[str, int]:
    """Write the export into ``out``; returns how many images, detections and files. UsageError for what is wrong."""
    if asked.format not in FORMATS:
        raise UsageError(f"there is no format '{asked.format}'", where="--format", cure=f"use {', '.join(FORMATS)}")
    if not 0 <= asked.score <= 1 or asked.min_area < 0:
        raise UsageError("--score is in 0..1 and --min-area is at least 0", where="export", cure="correct them")
    run = Run(run_url)
    described = run.describe()
    job = str(described.get("job", ""))
    if job not in READERS:
        raise UsageError(
            f"runs of job '{job}' hold no boxes", where=run_url, cure=f"jobs with boxes: {', '.join(READERS)}"
        )
    drawing = READERS[job](run, described, asked.method, asked.split, asked.threshold)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("is not an empty folder", where=str(folder), cure="name a new one with --out")
    folder.mkdir(parents=True, exist_ok=True)
    return write(asked.format, folder, drawing.classes, _images(drawing, asked))


def _images(drawing: Drawing, asked: Asked) -> Iterator[Exported]:
    for number, (row, found) in enumerate(drawing.rows(), 1):
        kept = []
        for class_id, score, box, mask in found:
            detection = Detection(class_id, score, box, mask)
            if score >= asked.score and detection.area >= max(asked.min_area, 1e-9):
                kept.append(detection)
        yield Exported(number, str(row["key"]), int(row["width"]), int(row["height"]), tuple(kept))


def lines(totals: dict[str, int], out: str | Path) -> list[str]:
    """What the command prints."""
    return [", ".join(counted(totals[f"{name}s"], name) for name in ("image", "detection", "file")) + f" in {out}"]
