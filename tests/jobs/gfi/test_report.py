"""GFI's page from rows that a stage gave, and from next to nothing. No Ray."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from jobs.gfi.report import gfi_page
from jobs.gfi.report_data import GfiReportData, Paths, chosen_alpha
from jobs.report.totals import StepTotals
from pipeline import slices
from pipeline.decode import stack
from pipeline.steps import row_schema
from stages.gfi.config import GfiConfig
from stages.gfi.metrics import GfiMetrics, GfiMetricsConfig
from stages.gfi.stage import GfiStage
from stages.metrics.localization import half_of
from stages.preprocess import Preprocess

SHORT = {"inversion_steps": 2, "class_steps": 3}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * 64, 5)
    ).eval()  # fmt: skip


def picture(row: dict) -> np.ndarray:
    return np.random.default_rng(int(row["key"])).integers(0, 256, (40, 52, 3)).astype(np.uint8)


@pytest.fixture(scope="module", params=["squash", "crop"])
def data(request: pytest.FixtureRequest) -> GfiReportData:
    frame = Preprocess(size=(32, 32), frame=request.param, resize=36 if request.param == "crop" else None)
    stage = GfiStage(GfiConfig(preprocess=frame, **SHORT))
    stage.setup(torch.device("cpu"), {"network": network()})
    rows = [{"key": str(i), "label": i % 5, "boxes": [[10.0, 8.0, 29.0, 23.0]]} for i in range(6)]
    prepared = stack([stage.prepare(picture(row), row) for row in rows])
    table = slices.to_table(slices.run_slice(stage, "eval", rows, prepared, 6), row_schema(stage), "gfi")
    metrics = GfiMetrics(GfiMetricsConfig(classes=5))
    counted = metrics.add(metrics.start(), table.append_column("split", pa.array(["eval"] * 6)))
    return GfiReportData(
        run="runs/x",
        config={"gfi": {}, "iou": 0.5},
        provenance={"raylens": "0"},
        network={"name": "tiny", "mask_layer": "1"},
        stage=stage.config,
        totals=[StepTotals("gfi", "eval", 7, 6, failed=1, seconds=3.0, failures=[("<b>k</b>", "no picture")])],
        metrics=metrics.finish("all", counted).to_pylist(),
        paths=Paths(6, [1.0, 0.8], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]),
        examples={
            "good": list(zip(table.to_pylist()[:2], rows[:2], strict=True)),
            "bad": [(table.to_pylist()[5], rows[5])],
        },
        load=picture,
        classes=["ant", "bee", "cat", "dog", "eel"],
    )


def test_the_page_tells_the_whole_run(data: GfiReportData) -> None:
    page = gfi_page(data).html()
    for word in ("Kept part, gain (paired)", "alpha × mean", "Centred box", "good images", "&lt;b&gt;k&lt;/b&gt;"):
        assert word.lower() in page.lower()
    assert page.count("data:image/jpeg") == 3 * 4
    assert page.count("data:image/svg") >= 3  # trajectories and two threshold curves
    assert "<b>k</b>" not in page
    frame = "squashed" if data.stage.preprocess.frame == "squash" else "centre crop"
    assert frame in page


def test_the_papers_numbers_stand_beside_the_measure_they_are_of(data: GfiReportData) -> None:
    table1, pointing = "Table 1 (VGG-19; the others", "The paper (VGG-19 with a last layer trained on VOC)"
    for paper, told in ((False, ()), (True, (table1,)), ("pointing", (pointing, "Grad-CAM", "54.7"))):
        page = gfi_page(GfiReportData(**{**vars(data), "paper": paper})).html()
        assert [t in page for t in (table1, pointing)] == [t in told for t in (table1, pointing)]
        assert all(t in page for t in told)


def test_an_unfinished_run_says_what_is_missing(data: GfiReportData) -> None:
    bare = GfiReportData("runs/x", {}, {}, {}, GfiConfig(), [StepTotals("gfi", "eval", 9, 3)])
    page = gfi_page(bare).html()
    for told in ("3 of 9 planned rows", "no true boxes", "No evaluation image has an answer", "nothing to show"):
        assert told in page


def test_images_that_are_gone_are_said_to_be(data: GfiReportData) -> None:
    def gone(row: dict) -> np.ndarray:
        raise OSError("moved away")

    page = gfi_page(GfiReportData(**{**vars(data), "load": gone})).html()
    assert "moved away" in page
    assert "data:image/jpeg" not in page


def test_each_half_is_drawn_at_its_own_alpha() -> None:
    row = {"kind": "localization", "name": "gfi", "box": "mean", "rule": "halves", "n": 9}
    metrics = [row | {"threshold": 1.25, "thresholds": [1.0, 1.5]}]
    grid = (0.0, 1.0, 1.5)
    for key in ("a", "b", "c", "d"):
        assert chosen_alpha(metrics, grid, key) == (2 if half_of(key) else 1)
    assert chosen_alpha([], grid, "a") == 2  # 1.5 where nothing was chosen
