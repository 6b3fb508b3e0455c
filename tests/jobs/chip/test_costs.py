"""What keeping classes costs, and that too much of it is refused before anything is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from jobs import chip
from jobs.chip.costs import class_costs, class_lines, refuse_too_large
from jobs.chip.job import _affordable
from jobs.cli import app
from jobs.config import check
from pipeline.errors import UsageError
from pipeline.options import Options
from pipeline.run import Run
from pipeline.steps import Job, Source
from stages.chip.statistics import ChipStatistics, StatisticsConfig
from stages.chip.sweep import ChipSweep, SweepConfig
from stages.preprocess import Preprocess

ILSVRC = 1_281_167


def costs(images: int, *, channels: tuple[int, ...] = (512,), classes: int = 1000, **fields: Any) -> dict[str, Any]:
    layers = tuple(f"layer{i}" for i in range(len(channels)))
    sweep = SweepConfig(layers=layers, **fields)
    statistics = StatisticsConfig(
        layers=layers, channels=channels, classes=classes, gates=sweep.gates, shared_gates=sweep.shared_gates
    )
    return class_costs(sweep, statistics, images)


def test_small_case_by_hand() -> None:
    found = costs(7, channels=(3, 5), classes=4, gates=10, max_classes=2)
    # label and lost mass 8, ids and f 8 a class; a layer: 4 a channel, 4 a gate and class, checksum 8
    assert found["all"].row_bytes == 8 + 8 * 4 + (12 + 160 + 8) + (20 + 160 + 8)
    assert found["coverage"].row_bytes == 8 + 8 * 2 + (12 + 80 + 8) + (20 + 80 + 8)
    assert found["all"].output_bytes == 7 * found["all"].row_bytes
    # of an image and layer: b takes 2 N C K, z z' over the gates 2 N K^2, its spread over the classes 2 C K^2
    per_image = sum(2 * 10 * 4 * k + 2 * 10 * k * k + 2 * 4 * k * k for k in (3, 5))
    assert found["all"].statistics_flops == 7 * per_image


def test_row_bytes_are_those_of_a_real_row() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6)
    ).eval()
    config = SweepConfig(layers=("1",), gates=9, classes="all", preprocess=Preprocess(size=(8, 8)))
    stage = ChipSweep(config)
    stage.setup(torch.device("cpu"), {"network": network})
    batch = {"key": ["a"], "split": "fit", "valid": np.array([True]), "rows": [{"label": 2}]}
    row = stage({**batch, "pixels": np.zeros((1, 3, 8, 8), np.uint8)})[0]
    held = sum(value.nbytes for value in row.values() if isinstance(value, np.ndarray))
    held += 4 + 4 + 8  # label, lost mass, checksum
    statistics = StatisticsConfig(layers=("1",), channels=(5,), classes=6, gates=9)
    assert class_costs(config, statistics, 1)["all"].row_bytes == held


def test_all_classes_of_ilsvrc_are_refused_for_two_layers_and_coverage_is_not() -> None:
    one = costs(ILSVRC)["all"]
    assert 0.5e12 < one.output_bytes < 0.53e12
    # b, the products and their spread; less than 2 S C K^2 = 6.7e14 for the last, which forms half of each Gram matrix
    assert 3.7e14 < one.statistics_flops < 6.7e14
    assert not one.too_large
    two = costs(ILSVRC, channels=(512, 64))
    assert len(two["all"].too_large) == 1
    with pytest.raises(UsageError, match=r"1,000 classes of 1,281,167 images takes 1.0 TB of output") as told:
        refuse_too_large(two["all"])
    assert "--yes" in str(told.value)
    assert "coverage" in str(told.value)
    three = costs(ILSVRC, channels=(512, 512, 512))["all"]
    assert len(three.too_large) == 2
    with pytest.raises(UsageError, match=r"and 1.6e\+15 FLOP of statistics"):
        refuse_too_large(three)
    assert two["coverage"].output_bytes < 25e9
    assert two["coverage"].statistics_flops < 1e15
    refuse_too_large(two["coverage"])


def test_coverage_is_never_refused_however_large() -> None:
    huge = costs(10**12)["coverage"]
    assert huge.output_bytes > 1e12
    refuse_too_large(huge)


def test_shared_gates_leave_only_the_spread_over_the_classes() -> None:
    own, shared = costs(1, gates=1000)["all"], costs(1, gates=1000, shared_gates=True)["all"]
    assert shared.statistics_flops < own.statistics_flops


def test_the_table_shows_both_modes_and_says_what_would_be_refused() -> None:
    lines = "\n".join(class_lines(costs(ILSVRC, channels=(512, 64)), "all"))
    assert "coverage" in lines
    assert "all (chosen)" in lines
    assert "refuses that without --yes" in lines
    lines = "\n".join(class_lines(costs(ILSVRC, channels=(512, 64)), "coverage"))
    assert "coverage (chosen)" in lines
    assert "refuses" not in lines


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """CHIP on two pictures and a network of 10 classes; so many gates that all classes take terabytes."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (9, 99, 200)).save(tmp_path / "images" / name / "a.png")
    return {
        "model": {"name": "jobs.resnet20:cifar_resnet20", "seed": 0, "preprocess": {"size": 32}},
        "data": {"fit": {"kind": "folder", "root": str(tmp_path / "images")}},
        "layers": ["last_conv"],
        "sweep": {"classes": "all", "gates": 20_000_000_000},
    }


def test_the_command_refuses_before_it_writes(values: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    done = CliRunner().invoke(app, ["chip", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "10 classes of 2 images takes 1.6 TB of output" in done.output
    assert "--yes" in done.output
    assert not (tmp_path / "run").exists()


def test_yes_and_coverage_go_on_and_a_refusal_counts_what_a_run_has_frozen(
    values: dict[str, Any], tmp_path: Path
) -> None:
    config = check(chip.ChipConfig, values, where="test")
    job, run = chip.build(config), str(tmp_path / "run")
    assert _affordable(config, job, run, Options(yes=True)) is job
    covered = config.model_copy(update={"sweep": config.sweep.model_copy(update={"classes": "coverage"})})
    assert _affordable(covered, job, run, Options()) is job
    Run(run).freeze_keys("fit", job.sources["fit"])

    def gone() -> Any:
        raise AssertionError("listed again")

    later: Job = dataclasses.replace(job, sources={"fit": Source(job.sources["fit"].description, gone)})
    with pytest.raises(UsageError, match="of 2 images"):
        _affordable(config, later, run, Options())


def test_an_affordable_job_lists_its_images_once(values: dict[str, Any], tmp_path: Path) -> None:
    values["sweep"]["gates"] = 10
    config = check(chip.ChipConfig, values, where="test")
    listed = 0
    job = chip.build(config)
    source = job.sources["fit"]

    def count() -> Any:
        nonlocal listed
        listed += 1
        return source.list()

    job = dataclasses.replace(job, sources={"fit": Source(source.description, count)})
    job = _affordable(config, job, str(tmp_path / "run"), Options())
    Run(str(tmp_path / "run")).freeze_keys("fit", job.sources["fit"])
    assert listed == 1


def test_classes_that_the_network_does_not_have_are_a_mistake_of_the_config(values: dict[str, Any]) -> None:
    config = check(chip.ChipConfig, values | {"solve": {"classes": [3, 10]}}, where="test")
    with pytest.raises(UsageError, match="solve: classes: class 10 does not exist, the network has classes 0 to 9"):
        chip.build(config)


def test_statistics_state_counts_the_same_entries() -> None:
    """The panels whose operations are counted are those the reduction holds: 16 bytes for each, fit and held out."""
    config = StatisticsConfig(layers=("l",), channels=(200,), classes=1, gates=1, shared_gates=True)
    state = ChipStatistics(config).state_bytes(("l", 0, 1))
    entries = state / 16 - 200 - 6
    found = class_costs(SweepConfig(layers=("l",), gates=1, shared_gates=True), config, 1)["all"]
    assert found.statistics_flops == 2 * 200 + entries + 2 * entries
