"""The COCO job's page in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from coco_cases import config, drawn, put, through_the_engine
from PIL import Image

from jobs.coco.examples import examples
from jobs.coco.report import CocoReportData, coco_page
from jobs.coco.taxonomy import read_taxonomy


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
        browser = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"], timeout=120_000)
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
