"""Run folders as the engine leaves them, made here without it, and a browser: what the explorer's tests share."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs.explorer.write import write_page
from pipeline import plan as plans
from pipeline import slices
from pipeline.decode import stack
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.steps import row_schema
from stages.linear.filters_stage import FiltersConfig, FiltersStage
from stages.linear.image_input import ImageInput
from stages.linear.svd_stage import SvdConfig, SvdStage
from stages.preprocess import Preprocess

CHROMIUM = Path("/usr/bin/chromium")


def network(seed: int, channels: int = 1, kernel: int = 5) -> nn.Module:
    """Twice as large, with biases and ReLUs: rows of kernel + 2 pixels or so."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 6, kernel, padding=kernel // 2),
        nn.ReLU(),
        nn.Conv2d(6, 4 * channels, 3, padding=1),
        nn.PixelShuffle(2),
    ).eval()


def drawn(size: int, seed: int) -> np.ndarray:
    """uint8 [size, size, 3]: a smooth picture with an edge."""
    y, x = np.mgrid[:size, :size] / size
    waves = np.stack([np.sin(3 * y + seed), np.cos(5 * x - seed), (y > x + 0.2 * seed - 0.3) * 1.0], axis=2)
    return np.round(127.5 + 100 * waves).clip(0, 255).astype(np.uint8)


def make_run(
    folder: Path,
    networks: Mapping[str, nn.Module],
    pictures: Mapping[str, np.ndarray | str],
    *,
    size: int = 16,
    colour: str = "luminance",
    places: str = "auto",
    grid: int = 4,
    svd: int = 0,
    taylor: bool = False,
    task: str = "filters",
    shard_rows: int = 2,
) -> Run:
    """A filters (or svd) run of these networks on these pictures by key; a text for a picture is why it failed."""
    run = Run(str(folder))
    image = ImageInput(Preprocess(size=(size, size), mean=(0, 0, 0), std=(1, 1, 1), frame="crop"), colour)
    filters = FiltersConfig(image, places=places, grid=grid, taylor=taylor)
    steps = []
    for name, module in networks.items():
        stages: dict[str, Any] = {}
        if task == "filters":
            stages[f"filters_{name}"] = FiltersStage(filters)
        if svd:
            stages[f"svd_{name}"] = SvdStage(SvdConfig(image, taylor, k=svd))
        for step, stage in stages.items():
            stage.setup(torch.device("cpu"), {"network": module})
            steps.append(
                {"name": step, "kind": "measure", "fingerprint": _commit(run, step, stage, pictures, shard_rows)}
            )
    described = {
        "job": "linear",
        "config": {"task": task, "networks": {name: {"name": "tiny", "weights": None, "seed": 0} for name in networks}},
        "steps": [{**step, "upstream": [], "splits": ["images"], "keyed": False, "label": ""} for step in steps],
        "provenance": {"raylens": "0.1.0"},
    }
    run.folder.write("run.json", json.dumps(described).encode())
    return run


def _commit(run: Run, step: str, stage: Any, pictures: Mapping[str, np.ndarray | str], shard_rows: int) -> str:
    keys = sorted(pictures)
    fields = plans.flatten({"step": step, "keys": keys})
    plan = plans.new_plan(step, "images", fields, len(keys), 1, plans.UNMEASURED, shard_rows)
    folder = run.step_folder(step, split="images")
    plans.freeze(folder, plan)
    for shard in range(plan.shards):
        rows = [{"key": key} for key in keys[slice(*plan.range(shard))]]
        given = [pictures[row["key"]] for row in rows]
        prepared = stack([p if isinstance(p, str) else stage.prepare(p, {}) for p in given])
        found = slices.run_slice(stage, "images", rows, prepared, len(rows))
        Shards(folder, plan.shards).commit(shard, slices.to_table(found, row_schema(stage), step), seconds=1.0)
    return plan.fingerprint


def write(run: Run, **options: Any) -> Path:
    return Path(write_page(run, run.describe(), **options))


def rows_of(run: Run, step: str) -> dict[str, dict[str, Any]]:
    """Rows by key, the lists as arrays of their stored type, read by the plainest means."""
    folder = run.step_folder(step, split="images")
    plan = plans.load(folder)
    assert plan is not None
    found = {}
    for table in Shards(folder, plan.shards).tables():
        for row in table.to_pylist():
            for field in table.schema:
                if row[field.name] is not None and hasattr(field.type, "value_type"):
                    row[field.name] = np.array(row[field.name], field.type.value_type.to_pandas_dtype())
            found[row["key"]] = row
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser for the tests of a module."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"], timeout=120_000)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, path: Path, *, expected: str = "", **options: Any) -> Iterator[Any]:
    """The page from disk; afterwards nothing was complained of but what is ``expected`` (a pattern, then something must
    match it), and nothing but files was asked for.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
    page = context.new_page()
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda m: told.append(m.text))
    page.on("pageerror", lambda e: told.append(str(e)))
    page.on("dialog", lambda d: told.append(d.message) or d.dismiss())
    page.on("requestfailed", lambda r: told.append(r.url[:200]))
    page.on("request", lambda r: asked.append(r.url[:200]))
    page.goto(path.as_uri())
    yield page
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    told, asked = list(told), list(asked)  # what is still on its way when the page is closed, fails
    context.close()
    assert [line for line in told if not expected or not re.search(expected, line)] == [], told
    assert bool(told) == bool(expected), expected
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert overflow <= 0, "the page scrolls sideways"
