"""Small annotation files, the rule written again, and ways through the job: what the COCO tests share."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

from jobs.coco import CocoConfig, build, run
from jobs.coco.kept import write_kept
from jobs.config import check
from pipeline import plan as plans
from pipeline.estimate import Measured
from pipeline.options import Options, Resources
from pipeline.reduce import Part, Reducing, reduce_here
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.tasks import Task, Work
from pipeline.worker import Worker

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [("person", "person"), ("dog", "animal"), ("cat", "animal"), ("car", "vehicle"), ("bus", "vehicle")]


def config(splits: dict[str, Any], **more: Any) -> CocoConfig:
    return check(CocoConfig, {"splits": splits, **more}, where="test")


def finish(given: CocoConfig, url: Path, **resources: Any) -> list[str]:
    said: list[str] = []
    outcome = run(given, str(url), Options(resources=Resources(**resources), say=said.append))
    assert outcome.exit_code == 0
    return said


def through_the_engine(given: CocoConfig, url: Path, shard_rows: int) -> Run:
    """The job's steps and its kept files, made by one worker in this process with shards of this size."""
    made, job = Run(str(url)), build(given)
    measure, reduce = job.steps
    keys = {split: made.freeze_keys(split, source) for split, source in job.sources.items()}
    fields = plans.measure_fields(measure, job.limits, {s: k.digest for s, k in keys.items()}, {})
    parts, planned, folders = [], {}, {}
    for split in measure.splits:
        folders[split] = made.step_folder("filter", split=split)
        quick = Measured(1e6, 0, 0, 0, 0, "cpu", 1)
        planned[split] = plans.freeze(
            folders[split], plans.new_plan("filter", split, fields, len(keys[split]), 4, quick, shard_rows)
        )
    urls = {s: f.url for s, f in folders.items()}
    worker = Worker(Work("w", measure, made.keys.url, urls, planned, {}, job.limits), "cpu", 1)
    for split in measure.splits:
        for shard in reversed(range(planned[split].shards)):
            worker.run(Task(split, shard))
        receipts = Shards(folders[split], planned[split].shards).committed()
        parts += [Part(urls[split], split, receipts[i]) for i in sorted(receipts)]
    worker.close()
    folder = made.step_folder("summary", fingerprint="0" * 64)
    reduce_here(Reducing("summary", reduce.reduction, folder.url, tuple(parts)), [0])
    table = next(iter(Shards(folder, 1).tables()))
    folder.write("metrics.json", json.dumps(reduce.reduction.summary(table)).encode())
    write_kept(made.url, given, {"filter": "f" * 64, "summary": "0" * 64})
    return made


def drawn(images: int, seed: int, people: bool = True) -> dict[str, Any]:
    """A small file: images with ids out of order, a few objects each, crowds among them."""
    rng = random.Random(seed)
    ids = rng.sample(range(10_000), images)
    annotations = []
    for image in ids:
        for _ in range(rng.randint(0, 4)):
            category = rng.choice([1, 1, *rng.choice([(2, 3), (4, 5), (2, 4)])])
            annotations.append({"image_id": image, "category_id": category * 10, "iscrowd": int(rng.random() < 0.2)})
    annotations = [a for a in annotations if people or a["category_id"] != 10]
    for i, annotation in enumerate(annotations):
        annotation |= {"id": i + 1, "bbox": [1.0, 2.0, 3.5, 4.0], "area": 14.0, "segmentation": [[1, 2, 4, 2, 4, 6]]}
    rng.shuffle(annotations)
    return {
        "info": {"description": "gezeichnet für Tests"},
        "images": [{"id": i, "file_name": f"{i % 7}/{i:05d}.jpg", "width": 9, "height": 8} for i in ids],
        "annotations": annotations,
        "categories": [{"id": 10 * i, "name": n, "supercategory": s} for i, (n, s) in enumerate(CLASSES, 1)],
    }


def put(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False))
    return path


def loaded(path: str | Path) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def kept_by_force(content: dict[str, Any], crowds: bool = True, people_only: bool = False) -> dict[int, str | None]:
    """The rule, written again from the sentence: image id -> supercategory of kept images."""
    parents = {c["id"]: c["supercategory"] for c in content["categories"]}
    found: dict[int, str | None] = {}
    for image in content["images"]:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        seen = {parents[a["category_id"]] for a in mine if crowds or not a.get("iscrowd")}
        if len(seen - {"person"}) == 1:
            found[image["id"]] = next(iter(seen - {"person"}))
        elif people_only and seen == {"person"}:
            found[image["id"]] = None
    return found


def files_of(made: Run) -> dict[str, str]:
    """What a run's readers find; a temporary file, which Ray may leave by killing a writer late, is not among it."""
    root = Path(made.url)
    paths = [p for part in ("filter", "summary", "kept") for p in (root / part).rglob("[!.]*")]
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in paths
        if p.is_file() and "receipts" not in p.parts and p.name != "plan.json"
    }
