"""A COCO-sized annotation file through ``raylens coco``, killed midway and run again, beside a pycocotools script.

    python tests/bench/coco.py [--images 120000] [--annotations 900000] [--cpus 2] [--no-kill] [--no-script]

The file is drawn: COCO's 80 classes with its mix of how many share an image, polygons of 20 to 50 numbers, some
crowds; about 0.45 GB, as instances_train2017.json. ``seconds`` is one whole run of the command (Ray's start, the
shards, the kept json, the report); ``peak_rss_mb`` the memory of all its processes together, each page counted once
(PSS), and ``sum_rss_mb`` the plain sum, which counts shared libraries once for each process. The script is what one
would write with pycocotools: load, ask for each image's categories, dump the kept part. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray  # noqa: F401 - psutil comes with it

import psutil  # isort: skip

ROOT = Path(__file__).resolve().parents[2]
TAXONOMY = ROOT / "jobs/taxonomies/coco-paper.yaml"

SCRIPT = """
import json, sys
from pycocotools.coco import COCO
coco = COCO(sys.argv[1])
parent = {c["id"]: c["supercategory"] for c in coco.dataset["categories"]}
kept = []
for image in coco.getImgIds():
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image]))
    if len({parent[a["category_id"]] for a in annotations} - {"person"}) == 1:
        kept.append(image)
inside = set(kept)
json.dump({
    "images": coco.loadImgs(kept),
    "annotations": [a for a in coco.dataset["annotations"] if a["image_id"] in inside],
    "categories": coco.dataset["categories"],
}, open(sys.argv[2], "w"))
print(len(kept))
"""


def draw(path: Path, images: int, annotations: int, seed: int = 0) -> None:
    """The annotation file: half of the images take all their classes from one supercategory and people."""
    import yaml

    rng = random.Random(seed)
    coarse: dict[str, list[str]] = yaml.safe_load(TAXONOMY.read_text())["coarse"]
    categories = [{"id": 1, "name": "person", "supercategory": "person"}]
    groups: list[list[int]] = []
    for parent, members in coarse.items():
        groups.append([len(categories) + i + 1 for i in range(len(members))])
        categories += [{"id": groups[-1][i], "name": n, "supercategory": parent} for i, n in enumerate(members)]
    lists = [[f"{rng.uniform(0, 640):.2f}" for _ in range(2 * rng.randint(10, 25))] for _ in range(2000)]
    polygons = [f"[[{', '.join(numbers)}]]" for numbers in lists]
    crowd = '{"counts": [' + ", ".join(str(rng.randint(1, 4000)) for _ in range(300)) + '], "size": [480, 640]}'
    with path.open("w") as file:
        file.write('{"info": {"description": "drawn"}, "licenses": [], "images": [')
        for i in range(images):
            url = f"http://images.cocodataset.org/train2017/{i:012d}.jpg"
            entry = {"license": 3, "file_name": f"{i:012d}.jpg", "coco_url": url, "height": 480, "width": 640,
                     "date_captured": "2013-11-14 11:18:45", "flickr_url": url, "id": i}  # fmt: skip
            file.write((", " if i else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for number in range(annotations):
            image = rng.randrange(images)
            group = groups[image % len(groups)] if image % 2 else groups[rng.randrange(len(groups))]
            category = 1 if rng.random() < 0.3 else rng.choice(group)
            is_crowd = rng.random() < 0.01
            where = f"{rng.uniform(0, 300):.2f}, {rng.uniform(0, 300):.2f}, {rng.uniform(1, 300):.2f}, 40.5"
            file.write(
                f'{", " if number else ""}{{"segmentation": {crowd if is_crowd else rng.choice(polygons)}, '
                f'"area": {rng.uniform(1, 9e4):.4f}, "iscrowd": {int(is_crowd)}, "image_id": {image}, '
                f'"bbox": [{where}], "category_id": {category}, "id": {number + 1}}}'
            )
        file.write('], "categories": ' + json.dumps(categories) + "}")


def start(config: Path, run: Path, cpus: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs.cli", "coco", str(config), "--run", str(run)]
    command += ["--set", f"resources.cpus={cpus}"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    environment["RAY_TMPDIR"] = str(config.parent)  # a cluster that runs on this machine is left alone
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def watched(process: subprocess.Popen[bytes]) -> tuple[float, float, float]:
    """(seconds, peak PSS, peak sum of RSS in MB) of a command and all it started."""
    began, pss, rss = time.perf_counter(), 0.0, 0.0
    root = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            here = [root, *root.children(recursive=True)]
            rss = max(rss, sum(_memory(p, "rss") for p in here))
            pss = max(pss, sum(_memory(p, "pss") for p in here))
        time.sleep(0.5)
    if process.returncode:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read().decode())
    return time.perf_counter() - began, pss / 1e6, rss / 1e6


def _memory(process: psutil.Process, kind: str) -> int:
    try:
        return int(getattr(process.memory_full_info() if kind == "pss" else process.memory_info(), kind))
    except psutil.Error:
        return 0


def digests(run: Path) -> dict[str, str]:
    """Every file of results, by what it holds: shards, reductions and kept files, without times."""
    found = {}
    for path in sorted(p for part in ("keys", "filter", "summary", "kept") for p in (run / part).rglob("*")):
        if path.is_file() and "receipt" not in str(path) and path.name != "plan.json":
            found[path.relative_to(run).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def killed_and_rerun(config: Path, run: Path, cpus: int, whole: dict[str, str]) -> dict[str, Any]:
    """Kill the command in the middle of its shards, and once more while it writes the kept json; then let it end."""
    kills = []
    for what, ready in (
        ("shards", lambda: len(list(run.glob("filter/train/receipts/*.json"))) >= 2),
        ("kept json", lambda: any(run.glob("kept/*/.instances_train.json.*"))),
    ):
        process = start(config, run, cpus)
        while process.poll() is None and not ready():
            time.sleep(0.01)
        if process.poll() is None:
            kills.append(what)
        tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        for child in tree:
            with contextlib.suppress(psutil.Error):
                child.kill()
    watched(start(config, run, cpus))
    return {"killed_in": kills, "identical": digests(run) == whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--annotations", type=int, default=900_000)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("--no-script", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raylens-bench-") as folder:
        place = Path(folder)
        file, config = place / "instances.json", place / "coco.yaml"
        draw(file, given.images, given.annotations)
        config.write_text(json.dumps({"splits": {"train": {"annotations": str(file)}}}))
        print(
            f"{given.images:,} images, {given.annotations:,} annotations, {file.stat().st_size / 1e6:.0f} MB",
            flush=True,
        )
        seconds, pss, rss = watched(start(config, place / "run", given.cpus))
        kept = json.loads(next(place.glob("run/kept/*/summary.json")).read_text())["train"]["kept"]
        print(f"raylens coco: {seconds:.1f} s, {pss:.0f} MB, {kept:,} images kept", flush=True)
        found: dict[str, Any] = {
            "bench": "coco", "seconds": round(seconds, 1), "peak_rss_mb": round(pss), "sum_rss_mb": round(rss),
            "file_mb": round(file.stat().st_size / 1e6), "kept": kept,
        }  # fmt: skip
        if not given.no_script:
            began = time.perf_counter()
            script = subprocess.Popen([sys.executable, "-c", SCRIPT, str(file), str(place / "kept.json")],
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
            took, script_pss, _ = watched(script)
            assert script.stdout is not None
            said = int(script.stdout.read().split()[-1])
            print(f"pycocotools script: {took:.1f} s, {script_pss:.0f} MB, {said:,} images kept", flush=True)
            assert said == kept, "the script keeps other images"
            found |= {"pycocotools_script_seconds": round(time.perf_counter() - began, 1)}
            found |= {"pycocotools_script_mb": round(script_pss)}
        if not given.no_kill:
            found |= killed_and_rerun(config, place / "again", given.cpus, digests(place / "run"))
        print(json.dumps(found))


if __name__ == "__main__":
    main()
