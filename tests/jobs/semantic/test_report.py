"""The semantic job's page from made-up results: the paper's numbers, what is undefined, what is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest

from jobs.config import check
from jobs.semantic import SemanticConfig, report_tables
from jobs.semantic.report import semantic_page
from jobs.semantic.report_data import PAPER, Path, Result, Rows, SemanticReportData, best
from jobs.semantic.variants import variants
from pipeline.report.blocks import Cell, Table

EVIL = "<script>alert(1)</script>"
FINE, COARSE = ("person", "cat", "dog", EVIL), ("animal", "vehicle")


def interval(value: float | None) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def summary(rules: tuple[str, ...], ia: float, ip: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "images": 20,
        "unlabelled": 1,
        "coarse_accuracy": interval(0.9),
        "confusion": [[9, 1], [0, 0]],
        "coarse_classes": {
            "animal": {"images": 10, "right": 9, "accuracy": 0.9},
            "vehicle": {"images": 0, "right": 0, "accuracy": None},
        },
        "rules": {},
    }
    for rule in rules:
        indexes = {"IA": interval(ia), "IP": interval(ip), "IR": interval(0.7), "IF": {"1": interval(ip)}}
        found["rules"][rule] = {
            "oracle": rule == "oracle_k",
            "cases": {"FTCT": 12, "FTCF": 1, "FFCT": 5, "FFCF": 2},
            "fine_exact": interval(0.65),
            "set": indexes,
            "batches": indexes | {"batches": 2, "undefined": {"IP": 1}},
        }
    return {"eval": found, "tune": found}


def facts(coarse_only: bool) -> dict[str, Any]:
    extra = {} if coarse_only else {"fine_exact": 0.4, "ia": 0.3}
    history = [{"epoch": e, "loss": 1 / e, "tune_loss": 2 / e, "coarse_accuracy": 0.5, **extra} for e in (1, 2, 3)]
    return {
        "history": history,
        "best_epoch": 2,
        "metrics": history[1],
        "features": {"layer": "avgpool", "width": 512},
        "rows": {"train": 30, "tune": 5},
        "unreadable": {"train": {"bad.jpg": "not an image"}, "tune": {}},
    }


def data(paper: bool = False, **more: Any) -> SemanticReportData:
    values = {"coco": "x", "networks": [{"name": "vgg16", "seed": 0}], "report": {"paper": paper}}
    config = check(SemanticConfig, values, where="test")
    results = [
        Result(v, facts(v.kind == "coarse"), summary(v.rules, *{"focal": (0.6, 0.95)}.get(v.kind, (0.4, None))))
        for v in variants(config)
    ]  # fmt: skip
    counts = {
        "split": "train",
        "images": 90,
        "kept": 35,
        "used": 30,
        "people": 0,
        "coarse": {"animal": 30, "vehicle": 0},
    }
    path = Path(
        "a/b.jpg", np.zeros((20, 30, 3), np.uint8), "FFCT", ["cat", EVIL], ["cat"], "animal", "animal",
        [("cat", 0.9, 2.0), ("dog", 0.1, -0.5)], 0.1, -0.2, [("animal", 0.8), ("vehicle", 0.2)],
    )  # fmt: skip
    made = SemanticReportData(
        run="runs/x", config=config, described={"config": {}, "provenance": {"raylens": "0.1"}},
        fine=FINE, coarse=COARSE, splits={"train": counts, "eval": counts}, results=results,
        rows=[Rows("vgg16_focal", "eval", 30, 29, 1, [("gone.jpg", "the file does not exist")])],
        paths=[path], shown=results[0],
    )  # fmt: skip
    return dataclasses.replace(made, **more)


def test_the_tables_have_our_numbers_with_intervals_and_the_papers_beside_them_when_asked() -> None:
    plain, paper = semantic_page(data()).html(), semantic_page(data(paper=True)).html()
    for text in (
        "Table 2",
        "Table 3",
        "Table 4",
        "0.6000",
        "0.550 to 0.650",
        "Images by case, focal loss",
        "2 batches, 1 value undefined",
    ):
        assert text in plain
    theirs = [f"{value:.4f}" for value in (PAPER["vgg16"]["coarse"], *PAPER["vgg16"]["focal"], *PAPER["vgg16"]["bce"])]
    assert not [number for number in theirs if number in plain and number != "1.0000"]
    assert [number for number in theirs if number not in paper] == []


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 1.0), (0.5,)], ids=["1", "0.5 and 1", "0.5"])
def test_the_papers_row_stands_under_the_losss_own_rule_alone(weights: tuple[float, ...]) -> None:
    made = data(paper=True)
    asked = made.config.evaluation.model_copy(update={"a": weights})
    made = dataclasses.replace(made, config=made.config.model_copy(update={"evaluation": asked}))
    for result in made.results:
        for rule in (result.measured or {})["rules"].values():
            for aggregate in ("set", "batches"):
                rule[aggregate]["IF"] = {f"{a:g}": interval(0.5) for a in weights}
    blocks = [b for b in report_tables.section(made).blocks if isinstance(b, Table)]
    for kind, number in (("focal", 3), ("bce", 4)):
        table = next(b for b in blocks if b.caption.startswith(f"Table {number}."))
        ia, ip, ir, f1 = PAPER["vgg16"][kind]
        for group in table.groups:
            shown = [[cell.value if isinstance(cell, Cell) else cell for cell in row] for row in group.rows]
            theirs = [row for row in shown if row[0] != "vgg16"]
            if "0.5 × the best one" in group.title:
                assert theirs == [], "the paper's numbers are by the oracle"
            else:
                f = [f1 if a == 1 else None for a in weights]
                assert theirs == [["the paper’s", ia, ip, ir, *f, None]]


def test_what_could_not_be_read_and_what_failed_is_named() -> None:
    text = semantic_page(data()).html()
    for words in ("1 image of train", "bad.jpg: not an image", "gone.jpg", "the file does not exist"):
        assert words in text


def test_names_are_text_and_the_path_is_told_in_words() -> None:
    text = semantic_page(data()).html()
    assert EVIL not in text
    assert "missed &lt;script&gt;" in text
    assert "FFCT: fine set wrong, coarse class right" in text


@pytest.mark.parametrize("held", ["nothing", "trained", "no paths"])
def test_a_page_of_an_unfinished_run_says_what_is_missing(held: str) -> None:
    full = data()
    results = [dataclasses.replace(r, summary=None, facts=None if held == "nothing" else r.facts) for r in full.results]
    made = dataclasses.replace(full, paths=[]) if held == "no paths" else dataclasses.replace(
        full, results=results, shown=None, paths=[], rows=[], splits={} if held == "nothing" else full.splits
    )  # fmt: skip
    text = semantic_page(made).html()
    words = {
        "nothing": "No network has been trained",
        "trained": "no network has been measured",
        "no paths": "can be shown",
    }
    assert words[held] in text


def test_the_network_shown_has_the_highest_ia_under_its_own_rule() -> None:
    results = data().results
    chosen = best(results)
    assert chosen is not None
    assert chosen.variant.kind == "focal"
    assert best([r for r in results if r.variant.kind == "coarse"]) is results[-1]
    assert best([]) is None


@pytest.mark.browser
def test_the_page_opens_in_a_browser_without_a_complaint(tmp_path: FilePath) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = FilePath("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("no Chromium at /usr/bin/chromium")
    path = semantic_page(data(paper=True)).write(tmp_path / "index.html")
    complaints: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"], timeout=120_000)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("console", lambda m: complaints.append(m.text))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.goto(path.as_uri())
        widths = page.evaluate("Array.from(document.images, i => i.naturalWidth)")
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.close()
    assert complaints == []
    assert len(widths) >= 3  # curves, confusion, path
    assert min(widths) > 0
    assert overflow <= 0, "the page scrolls sideways on a phone"
