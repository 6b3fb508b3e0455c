"""The demo's super-resolution network: it learns from scenes, is judged on others, and is explored beside bicubic."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from jobs.demo.run import PARTS
from jobs.demo.scenes import write_scenes
from jobs.demo.superres import RECIPE, SIZE, filters_config, halved, luminance, psnr, train_network
from jobs.linear import build
from jobs.linear.sizes import sizes_of
from pipeline.storage import Folder
from stages.linear.networks.bicubic import bicubic
from stages.training import TensorData


def test_it_learns_and_what_it_learnt_is_what_is_explored(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", {"train": 32, "val": 8}, size=64)
    recipe = dataclasses.replace(RECIPE, epochs=3)
    trained = train_network(Folder(str(tmp_path / "enlarging")), scenes, recipe, threads=1, log=lambda _: None)
    losses = [epoch["loss"] for epoch in trained.facts["history"]]
    assert losses[-1] < losses[0] / 2
    assert 15 < trained.facts["bicubic"] < 40
    config = filters_config(tmp_path)
    sizes = sizes_of(build(config))
    assert list(sizes) == ["filters_bicubic", "filters_trained"]
    assert all(s.input == (1, SIZE, SIZE) and s.bounded and not s.whole for s in sizes.values())
    images = config.data.images
    assert "val" in images.images  # the scenes it did not learn from
    assert filters_config(tmp_path, full=True).data.images.sample > images.sample


def test_psnr_by_hand() -> None:
    """A grey image loses nothing by halving; one level of 10 off everywhere is 28.13 dB."""
    grey = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    data = TensorData(["a", "b"], image=grey)
    assert torch.allclose(halved(luminance(grey)), torch.full((2, 1, 8, 8), 100 / 255))
    assert psnr(lambda x: bicubic(2)(x) + 10 / 255, data) == pytest.approx(28.13, abs=0.01)


def test_it_is_a_part_of_the_demo() -> None:
    names = [name for name, _ in PARTS]
    assert any("enlarges scenes" in name for name in names[2:])
