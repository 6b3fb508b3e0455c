"""The papers' own numbers, beside ours where the dataset is theirs."""

from __future__ import annotations

from jobs.compare.report_data import CompareReportData
from pipeline.report.blocks import Cell, Column, Group, Section, Table

#: name -> (heading, our measure, [(name, our method, the paper's percent)], what to keep in mind)
PAPERS: dict[str, tuple[str, str, tuple[tuple[str, str, float], ...], str]] = {
    "chip-table-2": (
        "CHIP, Table II: top-1 localization error on ILSVRC val",
        "chip_top1_error",
        (
            ("Backprop", "gradient", 61.11),
            ("c-MWP", "c_mwp", 70.92),
            ("Grad-CAM", "grad_cam", 56.47),
            ("CHIP", "chip", 51.45),
        ),
        "The paper: Caffe's VGG16 (class errors 30.12 / 10.85 %); compare the order, not the values.",
    ),
    "gfi-table-1": (
        "GFI, Table 1: localization error on ILSVRC val without the black-list",
        "gfi_error",
        (
            ("Grad", "gradient", 41.7),
            ("Guided BP", "guided_backprop", 42.0),
            ("LRP", "lrp", 57.8),
            ("CAM", "cam", 48.1),
            ("Mask", "optimised_mask", 43.2),
            ("Real-time saliency", "real_time_saliency", 36.9),
            ("GFI", "gfi", 38.2),
        ),
        "The paper: VGG-19, short side 224, centre crop; all but GFI are quoted there from another paper on another "
        "network. CAM needs a network that ends in global average pooling; real-time saliency needs a masking network "
        "trained for the classifier and is not reproduced.",
    ),
    "gfi-pointing": (
        "GFI, pointing game on VOC07 test, mean over classes",
        "pointing_0",
        (
            ("Center", "center", 48.3),
            ("Grad", "gradient", 53.1),
            ("Grad-CAM", "grad_cam", 55.0),
            ("GFI", "gfi", 54.7),
        ),
        "The paper: VGG-19 with a last layer trained on VOC. No tolerance, difficult objects included; center is the "
        "middle pixel.",
    ),
}


def sections(data: CompareReportData) -> list[Section]:
    """A table for each paper that the config names."""
    if not data.papers:
        return []
    tables = []
    for name in data.papers:
        heading, measure, rows, note = PAPERS[name]
        body = []
        for called, method, percent in rows:
            ours = data.value(measure, method)
            cell = Cell(None) if ours is None else Cell(100 * ours["value"], 100 * ours["se"])
            body.append([called, percent, cell])
        columns = [
            Column("Method"),
            Column("Paper", numeric=True, digits=1, unit="%"),
            Column("Ours", numeric=True, digits=1, unit="%"),
        ]
        tables.append(Table(columns, [Group(body)], heading, f"{note} Ours: {data.network}, {data.frame}."))
    return [Section("Beside the papers", tables)]
