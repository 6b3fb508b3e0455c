"""Fast JPEG decoding: off unless asked for, part of the fingerprint, and only ever smaller than the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import chip
from jobs.config import check
from pipeline.decode import prepare_row
from pipeline.images import Limits
from pipeline.plan import measure_fields
from pipeline.steps import Measure
from stages.chip.sweep import ChipSweep, SweepConfig
from stages.preprocess import Preprocess


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """600 x 420 pixels of smooth colour, as a JPEG."""
    y, x = np.mgrid[0:420, 0:600]
    pixels = np.stack([x * 255 / 600, y * 255 / 420, 127 + 120 * np.sin(x / 40) * np.cos(y / 30)], axis=2)
    path = tmp_path / "photograph.jpg"
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)
    return path


def config(tmp_path: Path, **sweep: Any) -> chip.ChipConfig:
    values = {
        "model": {"name": "jobs.resnet20:cifar_resnet20", "seed": 0, "preprocess": {"size": 32}},
        "data": {"fit": {"kind": "folder", "root": str(tmp_path)}},
        "layers": ["last_conv"],
        "sweep": sweep,
    }
    return check(chip.ChipConfig, values, where="test")


def sweep_step(asked: chip.ChipConfig) -> Measure:
    step = chip.build(asked).step("sweep")
    assert isinstance(step, Measure)
    return step


def test_it_is_off_unless_asked_for_and_changes_the_fingerprint(tmp_path: Path) -> None:
    plain, fast = sweep_step(config(tmp_path)), sweep_step(config(tmp_path, draft=True))
    assert plain.stage.draft is None  # type: ignore[attr-defined]
    assert fast.stage.draft == (32, 32)  # type: ignore[attr-defined]
    before, after = (measure_fields(step, Limits(), {}, {}) for step in (plain, fast))
    assert {name for name in before if before[name] != after[name]} == {"config.draft"}


def size_seen(photograph: Path, asked: SweepConfig) -> tuple[int, int]:
    """(height, width) of what the decoder hands to the stage."""
    seen: list[tuple[int, int]] = []

    class Watched(ChipSweep):
        def prepare(self, image: np.ndarray, row: dict[str, Any]) -> dict[str, np.ndarray]:
            seen.append(image.shape[:2])  # type: ignore[arg-type]
            return super().prepare(image, row)

    found = prepare_row(Watched(asked), {"key": "a", "uri": str(photograph)}, Limits())  # type: ignore[arg-type]
    assert isinstance(found, dict)
    assert found["pixels"].shape == (3, *asked.preprocess.size)
    return seen[0]


@pytest.mark.parametrize(
    ("preprocess", "decoded"),
    [
        (Preprocess(size=(64, 64)), (105, 150)),  # a quarter: an eighth would have 53 rows
        (Preprocess(size=(64, 300)), (210, 300)),  # a half: the width may not shrink below 300
        (Preprocess(size=(224, 224)), (420, 600)),  # nothing: half of 420 is less than 224
        (Preprocess(size=(64, 64), frame="crop", resize=106), (210, 300)),  # a half: the short side before the crop
    ],
)
def test_the_decoder_never_goes_below_what_the_frame_needs(
    photograph: Path, preprocess: Preprocess, decoded: tuple[int, int]
) -> None:
    asked = SweepConfig(preprocess=preprocess)
    assert size_seen(photograph, asked) == (420, 600)
    assert size_seen(photograph, SweepConfig(preprocess=preprocess, draft=True)) == decoded


def test_a_smooth_picture_hardly_changes(photograph: Path) -> None:
    whole, fast = (
        prepare_row(
            ChipSweep(SweepConfig(preprocess=Preprocess(size=(64, 64)), draft=draft)),  # type: ignore[arg-type]
            {"key": "a", "uri": str(photograph)},
            Limits(),
        )
        for draft in (False, True)
    )
    assert isinstance(whole, dict)
    assert isinstance(fast, dict)
    away = np.abs(whole["pixels"].astype(int) - fast["pixels"])
    assert 0 < away.mean() < 2
