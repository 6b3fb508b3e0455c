"""What raylens linear refuses of image-to-image networks before it runs, and how a run is cut: no Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.config import check
from jobs.linear import LinearConfig, build, plan_lines
from jobs.linear.sizes import affordable, shard_rows
from pipeline.errors import UsageError
from pipeline.preview import preview
from pipeline.steps import Job

OWN = """
from torch import nn


class Own(nn.Module):
    def __init__(self, last: str, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.last = {"softmax": nn.Softmax(dim=1), "flat": nn.Flatten(), "relu": nn.ReLU()}[last]

    def forward(self, x):
        return self.last(self.first(x))


def own(last: str = "relu", channels: int = 1) -> nn.Module:
    return Own(last, channels)
"""
BICUBIC = {"name": "stages.linear.networks.bicubic:bicubic", "seed": 0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ownimages.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    for i in range(3):
        Image.fromarray(np.full((20, 20, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    yield tmp_path
    sys.modules.pop("ownimages", None)


def config(folder: Path, network: dict[str, Any] | None = None, **fields: Any) -> LinearConfig:
    values = {
        "task": "filters",
        "networks": {"net": network or BICUBIC},
        "data": {"images": {"kind": "folder", "root": str(folder)}},
        "filters": {"size": 12},
    }
    return check(LinearConfig, values | fields, where="test")


def own(**arguments: Any) -> dict[str, Any]:
    return {"name": "ownimages:own", "arguments": arguments, "seed": 0}


@pytest.mark.parametrize(
    ("network", "fields", "words"),
    [
        (
            own(last="softmax"),
            {},
            ["networks.net (ownimages:own)", "'last' (softmax) has no frozen form", "replace it"],
        ),
        (own(last="flat"), {}, ["gives [576] for an image of [1, 12, 12]", "residual, layers and votes"]),
        (own(channels=3), {}, ["cannot run on a luminance image of 12 x 12", "set filters.colour: rgb"]),
        (own(channels=1), {"filters": {"size": 12, "colour": "rgb"}}, ["set filters.colour: luminance"]),
        (own(channels=5), {"task": "svd"}, ["cannot run", "correct svd.size or svd.colour"]),
        (BICUBIC | {"preprocess": {"size": 32}}, {}, ["preprocess.size is for one network", "task's section"]),
        (None, {"filters": {"size": 12, "svd": 145}}, ["has 144 singular values", "filters.svd", "144 or fewer"]),
        (None, {"task": "svd", "svd": {"size": 4, "k": 17}}, ["16 singular values", "svd.k"]),
    ],
)
def test_a_wrong_network_is_refused_with_a_cure(
    folder: Path, network: dict[str, Any] | None, fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        build(config(folder, network, **fields))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.where


def test_unknown_and_wrong_fields_are_named(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"filters\.colour"):
        config(folder, filters={"colour": "grey"})
    with pytest.raises(UsageError, match=r"did you mean.*'places'"):
        config(folder, filters={"place": "grid"})


def sized(folder: Path, limit: float, *, yes: bool = False, **filters: Any) -> tuple[Job, Any, list[str]]:
    said: list[str] = []
    given = config(folder, filters={"size": 64, "max_gb": limit} | filters)
    job, options = affordable(given, build(given), str(folder / "run"), given.options(say=said.append, yes=yes))
    return job, options, said


def test_a_run_that_writes_too_much_is_refused_before_anything_is_written(folder: Path) -> None:
    """Three images of 128 x 128 rows of 5 x 5 and 64 x 64 columns of 9 x 9, with their places and corners."""
    image = 4 * (128 * 128 * (25 + 5) + 64 * 64 * (81 + 5) + 64 * 64 + 2 * 128 * 128)
    with pytest.raises(UsageError) as caught:
        sized(folder, 0.01)
    for word in ("3 images take 10.6 MB", "the limit is 10.0 MB", "filters.max_gb", "filters.places=grid", "--yes"):
        assert word in str(caught.value)
    assert 3 * image == pytest.approx(10.6e6, rel=0.005)
    assert not (folder / "run").exists()
    _, _, said = sized(folder, 0.01, yes=True)
    assert "refuses that without --yes" in said[-1]
    _, _, said = sized(folder, 0.01, places="grid", grid=4)
    assert said[1].split()[1:5] == ["16", "(grid)", "1", "x"]


def test_images_are_listed_once(folder: Path) -> None:
    job, options, _ = sized(folder, 1.0)
    (folder / "late.png").write_bytes((folder / "0.png").read_bytes())
    assert job.sources["images"].list().num_rows == 3
    assert options.resources.shard_rows == 1


def test_shards_fit_in_memory_and_leave_work_for_several() -> None:
    assert shard_rows(1e6, 10_000) == 64
    assert shard_rows(50e6, 10_000) == 5
    assert shard_rows(5e9, 10_000) == 1
    assert shard_rows(1e6, 40) == 5
    assert shard_rows(1e6, 3) == 1


def test_triplets_of_their_own_or_beside_the_filters(folder: Path) -> None:
    """Two networks on three images through the engine's micro-run, in this process."""
    both = {"a": BICUBIC, "b": own()}
    alone = build(config(folder, networks=both, task="svd", svd={"size": 8, "k": 3}))
    assert [step.name for step in alone.steps] == ["svd_a", "svd_b"]
    found = preview(alone, "memory://plan-svd")
    assert [(step.step, step.plan.keys) for step in found] == [("svd_a", 3), ("svd_b", 3)]
    assert all(step.plan.measured.bytes_per_row > 3 * 4 * (64 + 64) for step in found)
    beside = build(config(folder, networks=both, filters={"size": 8, "svd": 2}))
    assert [step.name for step in beside.steps] == ["filters_a", "svd_a", "filters_b", "svd_b"]
    assert (beside.step("svd_a").stage.config.k, alone.step("svd_a").stage.config.k) == (2, 3)


def test_the_plan_tells_the_sizes(folder: Path) -> None:
    given = config(folder)
    lines = plan_lines(given, build(given), [])
    assert [line.split()[0] for line in lines] == ["network", "net"]
    given = config(folder, task="svd", svd={"size": 12, "k": 3})
    assert plan_lines(given, build(given), [])[1].split()[:2] == ["net", "3"]
    beside = config(folder, filters={"size": 12, "svd": 2})
    assert [line.split()[0] for line in plan_lines(beside, build(beside), [])] == ["network", "net"] * 2


def test_singular_triplets_are_counted_and_cut_as_filters_are(folder: Path) -> None:
    """Of each: 20 eigen-inputs of 12 x 12 and eigen-outputs of 24 x 24, sigma and certificate."""
    for i in range(3, 40):
        (folder / f"{i}.png").write_bytes((folder / "0.png").read_bytes())
    image = 20 * (4 * (12 * 12 + 24 * 24) + 16)

    def asked(limit: float, **options: Any) -> Any:
        given = config(folder, task="svd", svd={"size": 12, "k": 20, "max_gb": limit})
        return affordable(given, build(given), str(folder / "run"), given.options(**options))[1]

    with pytest.raises(UsageError) as caught:
        asked(39.9 * image / 1e9)
    for word in ("singular triplets of 40 images", "svd.max_gb", "smaller svd.k", "--yes"):
        assert word in str(caught.value)
    assert asked(39.9 * image / 1e9, yes=True).resources.shard_rows == 4
    assert asked(40.1 * image / 1e9).resources.shard_rows == 4
    assert (shard_rows(1e3, 10_000, 4), shard_rows(1e3, 16, 4), shard_rows(200e6, 10_000, 4)) == (4, 2, 1)
