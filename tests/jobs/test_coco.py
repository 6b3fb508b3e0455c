"""raylens coco end to end: real annotation files, the engine, the kept json, kills and reruns."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.coco import CocoConfig, build, run
from jobs.coco_examples import examples
from jobs.coco_kept import filter_rows, write_kept
from jobs.coco_report import CocoReportData, coco_page
from jobs.coco_taxonomy import PAPER, read_taxonomy
from jobs.config import check, load_config
from pipeline import plan as plans
from pipeline.errors import UsageError
from pipeline.estimate import Measured
from pipeline.options import Options, Resources
from pipeline.reduce import Part, Reducing, reduce_here
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.worker import Task, Work, Worker
from stages.coco.masks import mask

ROOT = Path(__file__).resolve().parents[2]
KEPT = {("tiny", "train"): (25, 80), ("tiny", "val"): (26, 80), ("mini", "train"): (30, 80), ("mini", "val"): (30, 79)}
CLASSES = [("person", "person"), ("dog", "animal"), ("cat", "animal"), ("car", "vehicle"), ("bus", "vehicle")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


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
    root = Path(made.url)
    paths = [p for part in ("filter", "summary", "kept") for p in (root / part).rglob("*")]
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in paths
        if p.is_file() and "receipts" not in p.parts and p.name != "plan.json"
    }


@pytest.mark.parametrize("subset", ["tiny", "mini"])
def test_real_coco_goes_through_and_again(real_data: Path, tmp_path: Path, subset: str) -> None:
    base = real_data / "coco" / subset
    annotations = {s: base / f"annotations/instances_{s}2017.json" for s in ("train", "val")}
    given = config({s: {"annotations": str(p), "images": str(base / f"{s}2017")} for s, p in annotations.items()})
    said = finish(given, tmp_path / "run", shard_rows=24)
    made = Run(str(tmp_path / "run"))
    summary = json.loads(next(tmp_path.glob("run/kept/*/summary.json")).read_text())
    for split, path in annotations.items():
        content = json.loads(path.read_text())
        kept, images = KEPT[(subset, split)]
        assert (summary[split]["kept"], summary[split]["images"]) == (kept, images)
        readings = [len(kept_by_force(content, c, p)) for c in (True, False) for p in (False, True)]
        assert list(summary[split]["readings"].values()) == readings
        truth = kept_by_force(content)
        rows = filter_rows(
            made, split, ["image_id", "kept", "coarse_name", "status", "error", "fine_names"]
        ).to_pylist()
        assert len(rows) == images
        assert {r["image_id"] for r in rows if r["kept"]} == set(truth)
        assert all((r["status"] == "ok") == r["kept"] == (r["error"] is None) for r in rows)
        oracle, before = loaded(next(tmp_path.glob(f"run/kept/*/instances_{split}.json"))), loaded(path)
        assert set(oracle.getImgIds()) == set(truth)
        categories = {c["id"]: c for c in oracle.loadCats(oracle.getCatIds())}
        assert len(categories) == 80
        for row in rows:
            if not row["kept"]:
                continue
            mine = oracle.loadAnns(oracle.getAnnIds(imgIds=[row["image_id"]]))
            assert mine == before.loadAnns(before.getAnnIds(imgIds=[row["image_id"]]))
            shown = [categories[a["category_id"]] for a in mine]
            assert {c["supercategory"] for c in shown if not c["public"]} == {row["coarse_name"]}
            assert {c["name"] for c in shown if not c["public"]} == set(row["fine_names"])
            for annotation in mine:
                image = oracle.imgs[row["image_id"]]
                ours = mask(annotation["segmentation"], image["height"], image["width"])
                assert np.array_equal(ours, oracle.annToMask(annotation).astype(bool))
    before_files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json") if p.parent.name != "events"}
    report = Path(said[-1].removeprefix("report "))
    text = report.read_text()
    for words in ("Readings of the rule", "crowds do not count, people-only kept", "Kept images of each coarse class"):
        assert words in text
    assert text.count("data:image/jpeg") >= 10, "the images are there: examples are shown"
    hashes = files_of(made)
    finish(given, tmp_path / "run", shard_rows=24)
    assert files_of(made) == hashes
    again = {p: p.stat().st_mtime_ns for p in before_files if p.name.startswith(("instances_", "0"))}
    assert again == {p: before_files[p] for p in again}, "what was there was written again"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 30),
    rows=st.integers(1, 31),
    rule=st.fixed_dictionaries({"crowds": st.booleans(), "people_only": st.booleans()}),
)
def test_any_partition_into_shards_gives_the_same_output_and_the_rule_holds(
    tmp_path_factory: pytest.TempPathFactory, seed: int, images: int, rows: int, rule: dict[str, bool]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    content = drawn(images, seed)
    given = config({"all": {"annotations": str(put(folder / "x.json", content))}}, rule=rule)
    one, other = (through_the_engine(given, folder / str(n), n) for n in (images, min(rows, images)))
    tables = [filter_rows(m, "all") for m in (one, other)]
    assert tables[0].equals(tables[1])
    written = [next(Path(m.url).glob("kept/*/instances_all.json")) for m in (one, other)]
    assert written[0].read_bytes() == written[1].read_bytes()
    summaries = [json.loads(next(Path(m.url).glob("kept/*/summary.json")).read_text()) for m in (one, other)]
    assert summaries[0] == summaries[1]
    truth = kept_by_force(content, **rule)
    found = json.loads(written[0].read_text())
    assert {i["id"] for i in found["images"]} == set(truth)
    assert found["annotations"] == [a for a in content["annotations"] if a["image_id"] in truth]
    assert [i["id"] for i in found["images"]] == [i["id"] for i in content["images"] if i["id"] in truth]
    assert found["info"] == content["info"]
    assert set(loaded(written[0]).getImgIds()) == set(truth)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), order=st.randoms(use_true_random=False))
def test_order_of_annotations_does_not_matter_and_people_change_no_label(
    tmp_path_factory: pytest.TempPathFactory, seed: int, order: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("order")
    content = drawn(12, seed, people=False)
    shuffled = content | {"annotations": order.sample(content["annotations"], len(content["annotations"]))}
    person = {"image_id": content["images"][0]["id"], "category_id": 10, "id": 99_999}
    peopled = content | {"annotations": [*content["annotations"], person]}
    tables = []
    for name, value in (("a", content), ("b", shuffled), ("c", peopled)):
        given = config({"all": {"annotations": str(put(folder / f"{name}.json", value))}})
        tables.append(filter_rows(through_the_engine(given, folder / name, 5), "all"))
    assert tables[0].equals(tables[1])
    labels = ["key", "fine", "fine_names", "multi_hot", "coarse", "coarse_name", "kept"]
    assert tables[0].select(labels).equals(tables[2].select(labels))
    assert sum(tables[2].column("person").to_pylist()) == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A config file and the files of a run of it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "x.json.gz").write_bytes(gzip.compress(json.dumps(drawn(2000, 5)).encode(), 1))
    values = {"splits": {"all": {"annotations": "x.json.gz"}}, "resources": {"shard_rows": 50}}
    (folder / "coco.yaml").write_text(json.dumps(values))
    finish(load_config(CocoConfig, folder / "coco.yaml"), folder / "run", shard_rows=50)
    return folder / "coco.yaml", files_of(Run(str(folder / "run")))


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["listing", "shards", "kept"])
def test_killed_midway_and_run_again_gives_identical_output(
    tmp_path: Path, undisturbed: tuple[Path, dict[str, str]], moment: str
) -> None:
    import ray

    given, whole = undisturbed
    url = tmp_path / "run"
    command = [sys.executable, "-m", "jobs.cli", "coco", str(given), "--run", str(url)]
    command += ["--address", ray.get_runtime_context().gcs_address]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    signs = {
        "listing": lambda: (url / "lock.json").exists(),
        "shards": lambda: len(list(url.glob("filter/all/receipts/*"))) >= 3,
        "kept": lambda: any(url.glob("summary/*/metrics.json")),
    }
    end = time.monotonic() + 100
    while not signs[moment]():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(url.glob("report/*/index.html")), "it was finished: this test shows nothing"
    finish(load_config(CocoConfig, given), url, shard_rows=50)
    assert files_of(Run(str(url))) == whole


def test_bad_entries_are_counted_in_the_summary_and_on_the_page(tmp_path: Path) -> None:
    content = drawn(20, 1)
    content["annotations"][0]["category_id"] = 999
    content["images"][1]["file_name"] = "../up.jpg"
    path = put(tmp_path / "x.json", content)
    with pytest.raises(UsageError, match="bad: reject"):
        run(config({"all": {"annotations": str(path)}}), str(tmp_path / "refused"), Options(say=lambda _: None))
    said = finish(config({"all": {"annotations": str(path), "bad": "reject"}}), tmp_path / "run")
    summary = json.loads(next(tmp_path.glob("run/kept/*/summary.json")).read_text())["all"]
    assert summary["images"] == 19
    assert summary["kept"] + sum(summary["filtered"].values()) == 19
    assert summary["rejected"]["annotation of an unknown category"]["count"] == 1
    assert summary["rejected"]["file name outside the image folder"]["count"] == 1
    assert summary["filtered"]["bad_annotation"] == 1
    text = Path(said[-1].removeprefix("report ")).read_text()
    assert "annotation of an unknown category" in text
    assert "no category has the id 999" in text


def test_a_source_that_changed_under_the_run_is_refused_not_mixed(tmp_path: Path) -> None:
    path = put(tmp_path / "x.json", drawn(9, 3))
    given = config({"all": {"annotations": str(path)}})
    through_the_engine(given, tmp_path / "run", 4)
    for file in tmp_path.glob("run/kept/*/*"):
        file.unlink()
    path.write_text(path.read_text().replace('"area": 14.0', '"area": 15.0'))
    with pytest.raises(UsageError, match="has changed since"):
        write_kept(str(tmp_path / "run"), given, {"filter": "f" * 64, "summary": "0" * 64})
    assert not list(tmp_path.glob("run/kept/*/*.json"))


def test_another_taxonomy_is_a_file(tmp_path: Path) -> None:
    taxonomy = tmp_path / "mine.yaml"
    taxonomy.write_text("public: [car, bus]\nsupercategories: {animal: beast, person: human}\nrename: {dog: hound}\n")
    content = drawn(30, 8)
    given = config({"all": {"annotations": str(put(tmp_path / "x.json", content))}}, taxonomy=str(taxonomy))
    made = through_the_engine(given, tmp_path / "run", 7)
    rows = filter_rows(made, "all", ["coarse_name", "fine_names", "kept"]).to_pylist()
    assert {r["coarse_name"] for r in rows if r["kept"]} == {"beast", "human"}
    assert {n for r in rows for n in r["fine_names"]} == {"hound", "cat", "person"}
    categories = json.loads(next(tmp_path.glob("run/kept/*/instances_all.json")).read_text())["categories"]
    assert {c["name"]: (c["supercategory"], c["coarse_index"], c["public"]) for c in categories} == {
        "person": ("human", 1, False), "hound": ("beast", 0, False), "cat": ("beast", 0, False),
        "car": ("vehicle", None, True), "bus": ("vehicle", None, True),
    }  # fmt: skip


def test_classes_the_taxonomy_does_not_list_are_refused_by_name_or_filter_their_images(tmp_path: Path) -> None:
    content = drawn(30, 2)
    content["categories"][1]["name"] = "dgo"
    given = {"all": {"annotations": str(put(tmp_path / "x.json", content))}}
    with pytest.raises(UsageError, match="'dgo'"):
        through_the_engine(config(given), tmp_path / "refused", 7)
    taxonomy = tmp_path / "mine.yaml"
    taxonomy.write_text(PAPER.read_text().replace("unlisted: refuse", "unlisted: filter"))
    made = through_the_engine(config(given, taxonomy=str(taxonomy)), tmp_path / "run", 7)
    summary = json.loads(next(tmp_path.glob("run/kept/*/summary.json")).read_text())["all"]
    assert summary["filtered"]["unlisted_class"] > 0
    errors = filter_rows(made, "all", ["reason", "error"]).to_pylist()
    assert all(r["error"].endswith("dgo") for r in errors if r["reason"] == "unlisted_class")


def test_the_papers_taxonomy_has_80_fine_and_11_coarse_classes() -> None:
    taxonomy = read_taxonomy(None)
    assert len(taxonomy.coarse_names) == 11
    assert sum(len(members) for _, members in taxonomy.coarse) + len(taxonomy.public) == 80


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("coarse: {a: [x], b: [x]}", "'x' twice"),
        ("public: [x]", "no coarse class"),
        ("coars: {a: [x]}", "coarse"),
        ("coarse: {a: 5}", "coarse"),
    ],
)
def test_a_wrong_taxonomy_is_told_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_taxonomy(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_ready_made_config_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCO", "/data/coco")
    found = load_config(CocoConfig, ROOT / "jobs/configs/coco-2017.yaml")
    assert found.splits["train"].annotations == "/data/coco/annotations/instances_train2017.json"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", ""])
def test_splits_are_folder_names(name: str) -> None:
    with pytest.raises(UsageError, match="split"):
        config({name: {"annotations": "x.json"}})


def test_masks_of_every_form_agree_with_their_pixels() -> None:
    expected = np.zeros((4, 5), bool)
    expected[1:3, 2] = True
    runs = [9, 2, 9]  # down the columns: 2 x 4 + 1 off, 2 on
    assert np.array_equal(mask({"counts": runs, "size": [4, 5]}, 4, 5), expected)
    from pycocotools import mask as masks

    assert np.array_equal(mask(masks.encode(np.asfortranarray(expected.astype(np.uint8))), 4, 5), expected)
    assert np.array_equal(mask([[2, 1, 3, 1, 3, 3, 2, 3]], 4, 5), expected)
    for wrong in ({"counts": [3], "size": [9, 9]}, {"size": [4, 5]}, [["a"]]):
        with pytest.raises(ValueError, match="segmentation"):
            mask(wrong, 4, 5)


@pytest.mark.browser
def test_the_page_opens_in_a_browser_without_a_complaint(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("no Chromium at /usr/bin/chromium")
    evil = "<script>alert(1)</script>"
    content = drawn(40, 4)
    content["categories"][1]["name"] = evil
    for image in content["images"]:
        (tmp_path / image["file_name"]).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 8), "white").save(tmp_path / image["file_name"])
    taxonomy = tmp_path / "mine.yaml"
    taxonomy.write_text("public: [person]\nsupercategories: {animal: animal, vehicle: vehicle}\n")
    splits = {"all": {"annotations": str(put(tmp_path / "x.json", content)), "images": str(tmp_path)}}
    made = through_the_engine(config(splits, taxonomy=str(taxonomy)), tmp_path / "run", 40)
    summary = json.loads(next(tmp_path.glob("run/kept/*/summary.json")).read_text())
    given = config(splits, taxonomy=str(taxonomy))
    found = read_taxonomy(str(taxonomy))
    shown = examples(made, given, found)
    assert set(shown) == {"animal", "vehicle"}
    described = {"config": given.model_dump(mode="json"), "provenance": {"raylens": "0.1.0"}}
    data = CocoReportData(made.url, given, described, found.coarse_names, found.public, summary, "kept", shown)
    path = coco_page(data).write(tmp_path / "index.html")
    complaints, asked = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("console", lambda m: complaints.append(m.text))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("dialog", lambda d: complaints.append(d.message) or d.dismiss())
        page.on("request", lambda r: asked.append(r.url[:60]))
        page.goto(path.as_uri())
        widths = page.evaluate("Array.from(document.images, i => i.naturalWidth)")
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        text = page.inner_text("body")
        browser.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert len(widths) >= 2 + 2
    assert min(widths) > 0
    assert overflow <= 0, "the page scrolls sideways on a phone"
    assert evil in text


def test_a_finished_run_verifies(tmp_path: Path) -> None:
    from pipeline.verify import verify

    given = config({"all": {"annotations": str(put(tmp_path / "x.json", drawn(40, 6)))}})
    finish(given, tmp_path / "run", shard_rows=10)
    found = verify(str(tmp_path / "run"))
    assert found.problems == ()
    assert found.ok
