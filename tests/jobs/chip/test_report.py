"""CHIP's page, from tables in the schemas of the steps, with pictures drawn here."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from jobs.chip import report_errors, report_fits, report_pictures
from jobs.chip.report import ChipReportData, Layer, Solve, chip_page
from jobs.report.totals import StepTotals
from pipeline.errors import RaylensError
from pipeline.report.blocks import PictureGrid, Section, Table
from pipeline.report.page import Page
from stages.metrics.boxes import CENTER_SIZES, THRESHOLDS, best_iou, center_box, threshold_boxes, whole_image
from stages.metrics.localization import LocalizationConfig, LocalizationMetrics, half_of
from stages.preprocess import Preprocess

EVIL = "<script>alert(1)</script>"
CLASSES = ["acorn", "badger", "canoe", "drum", "easel", "fern", "gull", "harp"]
METHODS = ("chip", "refined_chip", "chip:first_conv", "chip:features.9", "grad_cam", "gradient")
# How far (in pixels) each method's blob strays from the object, and the noise on it.
HABITS = {
    "chip": (9.0, 0.05, 14), "refined_chip": (6.0, 0.12, 28), "chip:first_conv": (40.0, 0.6, 56),
    "chip:features.9": (22.0, 0.25, 28), "grad_cam": (16.0, 0.05, 14), "gradient": (20.0, 0.9, 56),
}  # fmt: skip
WIDTH, HEIGHT = 200, 150


def draw(key: str, label: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A scene with one object of class ``label`` and the object's box."""
    rng = np.random.default_rng(abs(hash_of(key)))
    ground = rng.integers(60, 200, 3)
    field = ground + 35 * np.sin(np.add.outer(np.arange(HEIGHT) / rng.uniform(4, 20), np.arange(WIDTH) / 9))[..., None]
    image = Image.fromarray(np.clip(field + rng.normal(0, 9, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8))
    w, h = int(rng.integers(45, 110)), int(rng.integers(40, 95))
    x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
    pen, ink = ImageDraw.Draw(image), tuple(int(v) for v in rng.integers(20, 235, 3))
    (pen.ellipse if label % 2 else pen.rectangle)((x, y, x + w, y + h), fill=ink, outline="black", width=2)
    pen.line((x, y + h, x + w, y), fill="white", width=3)
    return np.asarray(image), (x, y, x + w, y + h)


def hash_of(key: str) -> int:
    return int.from_bytes(key.encode()[-6:], "little")


def blob(box: tuple[int, ...], method: str, rng: np.random.Generator) -> np.ndarray:
    stray, noise, side = HABITS[method]
    x, y = (box[0] + box[2]) / 2 + rng.normal(0, stray), (box[1] + box[3]) / 2 + rng.normal(0, stray)
    rows, columns = np.mgrid[0:side, 0:side]
    across = (columns + 0.5) * WIDTH / side - x
    down = (rows + 0.5) * HEIGHT / side - y
    bell = np.exp(-((across / (0.42 * (box[2] - box[0]))) ** 2) - (down / (0.42 * (box[3] - box[1]))) ** 2)
    return (bell + noise * rng.normal(0, 0.3, bell.shape)).astype(np.float16)


def solve_table(layers: tuple[tuple[str, int], ...], images: list[int], keep: float, seed: int) -> pa.Table:
    rng, rows = np.random.default_rng(seed), []
    for layer, channels in layers:
        for c in range(len(CLASSES)):
            n = images[c]
            w = np.where(rng.random(channels) < keep, rng.normal(0.2, 0.5, channels), 0.0)
            w[[c * 3 % channels, (c * 3 + 1) % channels, (c // 2 * 5) % channels]] = [2.4, 1.6, 1.1]
            held = float(np.clip(0.75 - 1.5 / max(n, 1) + rng.normal(0, 0.03), -3, 1))
            path = [
                {"lambda_rel": v, "nonzeros": int(channels * max(0.02, 0.8 - 0.16 * i + rng.normal(0, 0.02))),
                 "r2_heldout": held + 0.1 - 0.01 * i * i, "r2_heldout_centred": held - 0.012 * i * i,
                 "kkt": 1e-12, "gap": 1e-11}
                for i, v in enumerate((0.001, 0.003, 0.01, 0.03, 0.1))
            ]  # fmt: skip
            rows.append(
                {"layer": layer, "class_id": c, "lambda": 0.02 * (1 + c), "lambda_rel": 0.01, "w": w.tolist(),
                 "nonzeros": int(np.count_nonzero(w)), "objective": 1.0, "kkt": 2e-13, "gap": 3e-12, "iterations": 41,
                 "solver": "admm", "polished": True, "r2_fit": 0.95, "r2_fit_centred": min(0.97, held + 0.12),
                 "r2_heldout": held + 0.1, "r2_heldout_centred": held, "images": n, "samples": 100 * n,
                 "underdetermined": 100 * n < 4 * channels, "path": path}
            )  # fmt: skip
    return pa.Table.from_pylist(rows)


def localize_rows(n: int, split: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    keys, rows = [], []
    for i in range(n):
        label, key = i % len(CLASSES), f"{split}/{CLASSES[i % len(CLASSES)]}_{i:04d}.jpg"
        rng = np.random.default_rng(hash_of(key) + 1)
        _, box = draw(key, label)
        predicted = label if rng.random() < 0.85 else (label + 1) % len(CLASSES)
        ranked = [predicted, *[c for c in range(len(CLASSES)) if c != predicted][:4]]
        row: dict[str, Any] = {"key": key, "status": "ok", "split": split, "label": label, "classes": ranked,
                               "scores": [0.8, 0.1, 0.04, 0.02, 0.01], "width": WIDTH, "height": HEIGHT}  # fmt: skip
        for method in METHODS:
            heat = blob(box, method, rng)
            big = np.asarray(
                Image.fromarray(heat.astype(np.float32)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
            )
            boxes = threshold_boxes(big[None])[0]
            ious = best_iou(boxes, [box])
            row[f"box/{method}"] = boxes.ravel().tolist()
            row[f"iou/{method}"] = np.tile(ious, 5).tolist()
            row[f"map/{method}"] = heat.ravel()
            row[f"map_shape/{method}"] = list(heat.shape)
        row["iou/center"] = [float(best_iou(center_box(WIDTH, HEIGHT, s), [box])) for s in CENTER_SIZES]
        row["iou/whole_image"] = [float(best_iou(whole_image(WIDTH, HEIGHT), [box]))]
        keys.append({"key": key, "uri": key, "label": label, "labels": [label], "boxes": [list(map(float, box))],
                     "box_labels": [label], "masks": [None], "width": WIDTH, "height": HEIGHT})  # fmt: skip
        rows.append(row)
    return keys, rows


def report_data(n: int = 18) -> ChipReportData:
    keys, rows = localize_rows(n, "eval")
    tune = localize_rows(n // 2, "tune")[1]
    reduction = LocalizationMetrics(LocalizationConfig(methods=METHODS))
    state = reduction.add(reduction.start(), pa.Table.from_pylist(rows + tune))
    metrics = reduction.finish("all", state)
    images = [40, 60, 2, 80, 25, 1, 50, 90]
    layers = (("first_conv", 16), ("features.9", 32), ("last_conv", 48))
    return ChipReportData(
        run="/runs/scenes",
        config={"sweep": {"gates": 100, "layers": [name for name, _ in layers]}, "solve": {"lambda_rel": 0.01}},
        provenance={"raylens": "0.1.0", "torch": "2.13.0", "seed": 7, "machine": "one CPU"},
        network={"name": "squeezenet1_0", "weights": "squeezenet1_0.safetensors", "sha256": "3f9ac1", "classes": 8},
        layers=[
            Layer("first_conv", "features.1", 16, 56, 56, "prefix + suffix: a convolution follows"),
            Layer("features.9", "features.9", 32, 28, 28, "prefix + suffix: 6.1 MFLOP a gate"),
            Layer("last_conv", "features.12", 48, 14, 14, "push-down: flatten + Linear"),
        ],
        preprocess=Preprocess(),
        totals=[
            StepTotals("sweep", "fit", 348, 346, 0, 2, 812.4, [("fit/broken.jpg", "cannot identify image file")]),
            StepTotals("localize", "tune", n // 2, n // 2),
            StepTotals("localize", "eval", n, n, seconds=40.2),
        ],
        classes=CLASSES,
        solves=[
            Solve("default", solve_table(layers, images, 0.3, 1), metrics, "a1b2c3d4e5", 0.01, 12.0),
            Solve("sparse", solve_table(layers, images, 0.08, 2), metrics, "0badcafe77", 0.1, 12.0),
            Solve("wide sigma", solve_table(layers, images, 0.6, 3), None, "77aa88bb99", 0.01, 48.0, stale=True),
        ],
        keys=pa.Table.from_pylist(keys),
        localize=pa.Table.from_pylist(rows),
        load=lambda row: draw(row["key"], row["label"])[0],
        examples=2,
    )


@pytest.fixture(scope="module")
def data() -> ChipReportData:
    return report_data()


@pytest.fixture(scope="module")
def page(data: ChipReportData) -> Page:
    return chip_page(data)


@pytest.fixture(scope="module")
def html(page: Page) -> str:
    return page.html()


def bare(data: ChipReportData) -> ChipReportData:
    """A run that has not got anywhere yet."""
    return dataclasses.replace(
        data, totals=[], layers=[], solves=[], keys=None, localize=None, load=None, classes=[], provenance={}
    )


class Text(HTMLParser):
    """The page's visible words, and its images' alternative texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.alts, self.tags, self.quiet = [], [], [], False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.quiet = tag == "style"
        if tag == "img":
            self.alts.append(dict(attrs).get("alt") or "")

    def handle_endtag(self, tag: str) -> None:
        self.quiet = False

    def handle_data(self, data: str) -> None:
        if not self.quiet and data.strip():
            self.words.append(" ".join(data.split()))

    def __str__(self) -> str:
        return " ".join(self.words)


def words(sections: list[Section]) -> str:
    return str(Text(Page("parts", sections).html()))


def table(sections: Section | list[Section], caption: str) -> Table:
    listed = sections if isinstance(sections, list) else [sections]
    return next(b for s in listed for b in s.blocks if isinstance(b, Table) and b.caption == caption)


def by_name(table: Table) -> dict[str, list[Any]]:
    """Rows by their first cell's text; of equal ones the first."""
    return {row[0].text: row for _, rows in table.shown() for row in reversed(rows)}


def test_every_part_is_on_the_page(html: str) -> None:
    text = str(Text(html))
    for part in (
        "What ran", "Rows", "Localization", "Maps", "Interpretations across layers", "Channel weights",
        "Fit quality", "Solves side by side", "Provenance", "Good images", "Median images", "Bad images",
        "Top-10 channels", "Channels above max/1000", "Sparsity along the lambda path", "squashed to 224×224",
        "push-down: flatten + Linear", "cannot identify image file", "underdetermined", "sweep: gates: 100",
    ):  # fmt: skip
        assert part in text, part


def test_errors_are_percent_of_the_metrics_rows(data: ChipReportData) -> None:
    assert data.solves[0].metrics is not None
    row = next(r for r in data.solves[0].metrics.to_pylist() if (r["method"], r["rule"]) == ("chip", "tuned"))
    section = report_errors.section(data)
    shown = by_name(table(section, "Errors per method"))["CHIP"]
    assert [shown[2].text, shown[2].se] == [f"{100 * row['top1_loc_error']:.1f}", f"±{100 * row['top1_loc_se']:.1f}"]
    paired = by_name(table(section, "Paired differences on the same images"))["CHIP"]
    assert paired[1].text == f"{100 * row['vs_center']:.1f}".replace("-", "−")


def test_the_papers_numbers_stand_beside_ours_only_when_asked_and_never_win(data: ChipReportData, html: str) -> None:
    assert "51.45" not in html
    section = report_errors.section(dataclasses.replace(data, paper=True))
    found = table(section, "Errors per method")
    title, rows = found.shown()[-1]
    assert "Table II" in title
    assert {r[0].text: (r[2].text, r[3].text) for r in rows}["CHIP"] == ("51.45", "40.16")
    assert not any(cell.best for row in rows for cell in row)


def test_examples_are_ranked_by_overlap_and_the_groups_do_not_share_images() -> None:
    rng = np.random.default_rng(3)
    value = {f"{i:03d}.jpg": float(v) for i, v in enumerate(rng.random(60))} | {"unfit.jpg": math.nan}
    groups = report_pictures.choose_examples(value, 4)
    good, median, bad = ([value[k] for k in groups[g]] for g in ("good", "median", "bad"))
    assert len(good) == len(median) == len(bad) == 4
    order = sorted(v for v in value.values() if not math.isnan(v))
    assert set(good) <= set(order[-6:])
    assert set(median) == set(order[28:32])
    assert set(bad) <= set(order[:6])
    assert max(good) == order[-1]
    assert min(bad) == order[0]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 11])
def test_few_examples_are_shared_out_once(n: int) -> None:
    groups = report_pictures.choose_examples({str(i): i / 10 for i in range(n)}, 4)
    shown = [key for keys in groups.values() for key in keys]
    assert len(shown) == len(set(shown)) == n


def test_maps_of_a_large_split_are_read_for_the_examples_only(data: ChipReportData, html: str) -> None:
    assert data.localize is not None
    light = data.localize.drop_columns([c for c in data.localize.column_names if c.startswith("map")])
    chosen = [
        k for keys in report_pictures.example_keys(dataclasses.replace(data, localize=light)).values() for k in keys
    ]
    full = data.localize.filter(pa.array([k in chosen for k in data.localize["key"].to_pylist()]))
    assert full.num_rows < light.num_rows
    parts = dataclasses.replace(data, localize=light, maps=full)
    assert report_pictures.sections(parts) == report_pictures.sections(data)


def test_each_half_is_shown_at_the_threshold_that_judged_it(data: ChipReportData) -> None:
    row = {"method": "chip", "rule": "halves", "threshold": 0.3, "thresholds": [0.2, 0.4], "grid": list(THRESHOLDS)}
    halves = dataclasses.replace(
        data, solves=[dataclasses.replace(data.solves[0], metrics=pa.Table.from_pylist([row]))]
    )
    for key in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        used = (0.2, 0.4)[half_of(key)]
        assert report_pictures._choice(halves, "chip", key) == (THRESHOLDS.index(used), used)


def test_maps_show_truth_and_the_box_of_the_protocol(page: Page) -> None:
    maps = next(s for s in page.sections if s.title == "Maps")
    grid = next(b for b in maps.blocks if isinstance(b, PictureGrid))
    assert grid.headings == ["Image", "CHIP", "Refined CHIP", "Grad-CAM", "Gradient"]
    _, chip, *_ = grid.rows[0].pictures
    assert [b.style for b in chip.boxes] == ["truth", "predicted"]
    # Both are drawn to the far edge of their last pixel.
    truth, found = (np.array([b.x0 * WIDTH, b.y0 * HEIGHT, b.x1 * WIDTH - 1, b.y1 * HEIGHT - 1]) for b in chip.boxes)
    _, box = draw(grid.rows[0].title, CLASSES.index(Path(grid.rows[0].title).stem[:-5]))
    assert truth == pytest.approx(box)
    assert chip.note == f"IoU {float(best_iou(found, [truth])):.2f}"


def test_underdetermined_classes_are_warned_of_with_their_images(data: ChipReportData) -> None:
    notice = report_fits.underdetermined(data)
    assert notice is not None
    assert notice.title.startswith("1 of 8 classes")
    assert list(notice.items) == ["fern: 1 image, 100 samples"]
    rows = by_name(table(report_fits.sections(data), "Classes at last_conv"))
    assert rows["fern"][0].note == "underdetermined"
    assert [rows["gull"][1].text, rows["gull"][2].text, rows["gull"][5].text] == ["50", "5,000", "2.0e−13"]


def test_solves_stand_side_by_side_with_their_settings(data: ChipReportData) -> None:
    rows = by_name(table(report_fits.sections(data), "Settings and what they give"))
    assert [rows["default"][i].text for i in (1, 2, 3)] == ["a1b2c3d4", "0.01", "12"]
    mean = np.mean([r["nonzeros"] for r in data.solves[1].table.to_pylist() if r["layer"] == "last_conv"])
    assert rows["sparse"][5].text == f"{mean:.1f}"
    assert "stale" in rows["wide sigma"][0].note
    assert rows["wide sigma"][8].text == "–"
    alone = dataclasses.replace(data, solves=data.solves[:1])
    assert "Solves side by side" not in [s.title for s in report_fits.sections(alone)]


def test_a_held_out_value_that_chose_lambda_is_no_check_and_wins_nothing(data: ChipReportData) -> None:
    chose = dataclasses.replace(data, solves=[dataclasses.replace(data.solves[0], chose=True), *data.solves[1:]])
    (quality, solves) = report_fits.sections(chose)
    assert "no independent check" in quality.lead
    rows = by_name(table([solves], "Settings and what they give"))
    assert [rows["default"][i].note for i in (6, 7)] == ["chose λ", "chose λ"]
    assert [rows["sparse"][i].note for i in (6, 7)] == ["", ""]
    assert "no independent check" not in report_fits.sections(data)[0].lead


def test_rows_that_vanished_are_shouted_about(data: ChipReportData, page: Page) -> None:
    short = dataclasses.replace(bare(data), totals=[StepTotals("sweep", "fit", 100, 90, 3, 2)])
    assert chip_page(short).warnings[0].title == "sweep (fit) accounts for 95 of 100 planned rows"
    assert not any("accounts for" in w.title for w in page.warnings)


def test_user_strings_are_escaped_everywhere(data: ChipReportData) -> None:
    assert data.localize is not None
    assert data.keys is not None

    def poison(t: pa.Table) -> pa.Table:
        at = t.schema.get_field_index("key")
        return t.set_column(at, "key", pa.array([EVIL + k for k in t["key"].to_pylist()]))

    evil = dataclasses.replace(
        data,
        run=EVIL,
        title=EVIL,
        classes=[EVIL + c + "$\\frac$" for c in CLASSES],
        config={EVIL: EVIL},
        provenance={EVIL: EVIL},
        network={"name": EVIL},
        totals=[StepTotals(EVIL, EVIL, 1, 0, 0, 1, None, [(EVIL, EVIL + "\x00\udcff")])],
        solves=[dataclasses.replace(s, label=EVIL, fingerprint=EVIL) for s in data.solves],
        layers=[dataclasses.replace(a, path=EVIL, name=EVIL) for a in data.layers],
        localize=poison(data.localize),
        keys=poison(data.keys),
        load=lambda row: draw(row["key"].removeprefix(EVIL), row["label"])[0],
        notes=[EVIL],
    )
    html = chip_page(evil).html()
    assert "<script" not in html
    assert "script" not in Text(html).tags
    assert html.count("&lt;script&gt;") > 20
    html.encode("utf-8")


def test_missing_parts_are_said_and_not_raised(data: ChipReportData) -> None:
    text = str(Text(chip_page(bare(data)).html()))
    for sentence in (
        "No step of this run has finished a shard yet.",
        "This run holds no boxes on an evaluation split, so there are no localization errors to report.",
        "This run computed no maps on an evaluation split",
        "This run computed no maps, so there is nothing to compare.",
        "This run holds no solve yet",
    ):
        assert sentence in text, sentence


def test_images_that_cannot_be_reached_any_more(data: ChipReportData) -> None:
    def gone(row: dict[str, Any]) -> np.ndarray:
        raise RaylensError("no such file", where=row["uri"], cure="put it back")

    text = words(report_pictures.sections(dataclasses.replace(data, load=gone)))
    assert "the image is no longer reachable: eval/" in text
    assert "no such file" in text


def test_without_boxes_maps_are_shown_and_no_error_is_claimed(data: ChipReportData) -> None:
    assert data.localize is not None
    assert data.keys is not None
    empty = [f"iou/{m}" for m in (*METHODS, "center", "whole_image")]
    localize = data.localize.drop_columns(empty)
    none = pa.array([[]] * data.keys.num_rows, pa.list_(pa.list_(pa.float32())))
    keys = data.keys.set_column(data.keys.schema.get_field_index("boxes"), "boxes", none)
    solves = [dataclasses.replace(s, metrics=None) for s in data.solves]
    maps, _ = report_pictures.sections(dataclasses.replace(data, localize=localize, keys=keys, solves=solves))
    grid = next(b for b in maps.blocks if isinstance(b, PictureGrid))
    assert grid.title == "Examples"
    assert all(p.image is not None for row in grid.rows for p in row.pictures)
    assert not any(b.style == "truth" for row in grid.rows for p in row.pictures for b in p.boxes)
    assert "IoU 0" not in words([maps])


def test_a_predicted_class_without_a_fit_has_no_map_and_says_so(data: ChipReportData) -> None:
    assert data.localize is not None
    rows = data.localize.to_pylist()
    for row in rows:
        row["map/chip"], row["map_shape/chip"], row["box/chip"] = [], [], []
        row["iou/chip"] = [math.nan] * len(row["iou/chip"])
    text = words(report_pictures.sections(dataclasses.replace(data, localize=pa.Table.from_pylist(rows))))
    assert "no fit for the predicted class" in text


def test_a_crop_is_shown_as_the_network_saw_it(data: ChipReportData) -> None:
    crop = dataclasses.replace(data, preprocess=Preprocess((112, 112), frame="crop", resize=128))
    assert "short side resized to 128, centre crop of 112×112" in report_errors.frame_sentence(crop)
    grid = next(b for s in report_pictures.sections(crop) for b in s.blocks if isinstance(b, PictureGrid))
    image = grid.rows[0].pictures[0].image
    assert image is not None
    assert image.width == image.height


def test_every_picture_has_an_alternative_text_and_the_page_stays_small(html: str) -> None:
    parsed = Text(html)
    assert len(parsed.alts) > 40
    assert all(parsed.alts)
    assert len(html) < 6_000_000
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)


def test_the_same_run_gives_the_same_page(data: ChipReportData, html: str) -> None:
    assert chip_page(data).html() == html


@pytest.mark.browser
def test_opens_in_a_browser_without_a_complaint(html: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("no Chromium at /usr/bin/chromium")
    path = tmp_path / "index.html"
    path.write_text(html, encoding="utf-8")
    complaints, asked = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"], timeout=120_000)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("requestfailed", lambda r: complaints.append(r.url[:200]))
        page.on("request", lambda r: asked.append(r.url[:60]))
        page.goto(path.as_uri())
        widths = page.evaluate("Array.from(document.images, i => i.naturalWidth)")
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert len(widths) > 40
    assert min(widths) > 0
    assert overflow <= 0, "the page scrolls sideways on a phone"
