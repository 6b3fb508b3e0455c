"""Losses and PSNR by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stages.asking.losses import squared_error, total_variation
from stages.asking.psnr import psnr


def test_ten_grey_levels_are_28_13_db_whatever_the_image() -> None:
    truth = torch.randint(0, 246, (3, 3, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = psnr(truth + 10, truth)
    assert found.tolist() == pytest.approx([28.13] * 3, abs=0.005)
    assert found.tolist() == pytest.approx([20 * math.log10(255 / 10)] * 3, rel=1e-12)


def test_psnr_is_of_each_image_and_not_of_all_of_them() -> None:
    truth = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    picture = truth.clone()
    picture[1, 0, 0, 0] = 255  # one value of twelve: mean square 255^2 / 12
    picture[2] = 255
    assert psnr(picture, truth).tolist() == [math.inf, pytest.approx(10 * math.log10(12)), 0.0]
    # Darker by more than the difference of unsigned bytes can hold.
    assert torch.equal(psnr(truth, picture), psnr(picture, truth))
    with pytest.raises(ValueError, match="8-bit pictures of one shape: got torch"):
        psnr(truth.float(), truth)


def test_squared_error_by_hand() -> None:
    y = torch.tensor([[[[1.0, 2.0]], [[0.0, 0.0]]], [[[0.0, 0.0]], [[0.0, 3.0]]]])
    truth = torch.tensor([[[[0.0, 0.0]], [[0.0, 1.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    assert squared_error(y, truth).tolist() == [(1 + 4 + 0 + 1) / 4, 9 / 4]


def test_total_variation_by_hand() -> None:
    question = torch.tensor([[0.0, 1.0, 1.0], [0.5, 0.5, 0.0]], dtype=torch.float64)[None, None]
    down, right = 0.5 + 0.5 + 1.0, (1.0 + 0.0) + (0.0 + 0.5)
    assert total_variation(question).tolist() == [(down + right) / 6]
    assert total_variation(torch.full((2, 1, 4, 4), 0.7)).tolist() == [0.0, 0.0]
    # A step over the whole height costs its length, wherever it is: what is asked about may be large.
    for at in (1, 4):
        step = torch.zeros(1, 1, 6, 8)
        step[..., at:] = 1
        assert total_variation(step).tolist() == pytest.approx([6 / 48])
