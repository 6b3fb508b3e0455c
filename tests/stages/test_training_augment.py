"""Crops in whole numbers: exact for each row, and what bilinear interpolation says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stages.training import row_seeds
from stages.training_augment import AugmentConfig, resample, vary, whole, windows

CONFIG = AugmentConfig()


def pictures(rows: int = 6, height: int = 20, width: int = 26) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, 3, height, width), dtype=torch.uint8, generator=generator)


def test_a_row_comes_out_the_same_in_any_batch() -> None:
    images, seeds = pictures(), row_seeds(0, 1, [f"k{n}" for n in range(6)])
    whole_batch = vary(images, seeds, CONFIG, (14, 16))
    assert whole_batch.dtype == torch.uint8
    assert whole_batch.shape == (6, 3, 14, 16)
    for i in range(6):
        assert torch.equal(vary(images[i : i + 1], seeds[i : i + 1], CONFIG, (14, 16))[0], whole_batch[i])
    order = [4, 1, 5]
    assert torch.equal(vary(images[order], seeds[order], CONFIG, (14, 16)), whole_batch[order])


def test_windows_lie_in_the_image_and_have_the_area_and_shape_asked_for() -> None:
    seeds = row_seeds(0, 0, [f"k{n}" for n in range(4000)])
    window, mirrored = windows(seeds, 240, 320, AugmentConfig(scale=(0.2, 0.5)))
    top, left, height, width = window.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 240).all()
    assert (left + width <= 320).all()
    share = height * width / (240 * 320)
    assert share.min() > 0.19
    assert share.max() < 0.51
    # Uniform over 0.2..0.5 and mirrored by half, to four standard errors.
    assert abs(share.mean() - 0.35) < 4 * 0.3 / np.sqrt(12 * 4000)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    ratio = width / height
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert not windows(seeds, 240, 320, AugmentConfig(flip=False))[1].any()


def test_the_whole_image_at_its_size_is_itself_and_its_mirror() -> None:
    images = pictures()
    assert whole(images, (20, 26)) is images
    window = np.tile([0, 0, 20, 26], (6, 1))
    assert torch.equal(resample(images, window, np.zeros(6, bool), (20, 26)), images)
    assert torch.equal(resample(images, window, np.ones(6, bool), (20, 26)), images.flip(3))


@pytest.mark.parametrize("size", [(7, 9), (20, 26), (33, 41)])
def test_a_window_is_the_bilinear_resize_of_its_crop(size: tuple[int, int]) -> None:
    images = pictures()
    window = np.array([[0, 0, 20, 26], [3, 5, 11, 9], [19, 25, 1, 1], [0, 10, 20, 16], [7, 0, 2, 26], [1, 2, 17, 3]])
    mirrored = np.array([False, True, False, False, True, False])
    found = resample(images, window, mirrored, size)
    for i, (top, left, height, width) in enumerate(window.tolist()):
        crop = images[i : i + 1, :, top : top + height, left : left + width].double()
        expected = F.interpolate(crop, size=size, mode="bilinear", align_corners=False)[0]
        expected = expected.flip(2) if mirrored[i] else expected
        # Weights in 1/128 on each axis are off by up to 1/128 of a grey-level step of at most 255, and rounding by 1/2.
        assert (found[i].double() - expected).abs().max() <= 2 * 255 / 128 + 0.5


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="scale"):
        AugmentConfig(scale=(0.0, 1.0))
    with pytest.raises(ValueError, match="scale"):
        AugmentConfig(ratio=(2.0, 1.0))
